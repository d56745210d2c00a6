"""Who is in the features, without fitting anything: retrieval, agreement over scanners, variances, dependence of the halves.

Every function gives per-subject quantities or a statistic of bootstrap weights (how often each subject is drawn), so that all
resamples are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..core import seeds
from ..metrics.icc import icc31
from ._features import Scans

Weighted = Callable[[np.ndarray], np.ndarray]
"""(R, S) weights of the evaluated subjects in sorted order -> (R,) values of a statistic."""


@dataclass(frozen=True)
class Retrieval:
    """Queries for the same subject.

    Attributes:
        rows: (Q,) row numbers of the queries.
        rank: (Q,) place of the right scan among the gallery's, 1 the best; ties share their places.
        top1: (Q,) 1 where it is the nearest, a share where it ties.
        gallery: (Q,) how many scans there were, one a subject.
    """

    rows: np.ndarray
    rank: np.ndarray
    top1: np.ndarray
    gallery: np.ndarray


KINDS = ("contrasts", "scanners", "scanners and contrasts", "time")
"""Across what a subject is looked for."""


def retrieve(similarity: np.ndarray, scans: Scans, rows: np.ndarray, kind: str) -> Retrieval:
    """Every scan as a query for another scan of its subject, among scans that are like that one: one of each subject.

    The gallery holds, for every subject, one scan of the wanted scan's contrast on the wanted scan's scanner (the first by session), so
    that neither contrast nor scanner tells right from wrong.

    Args:
        similarity: (n, n) of the evaluated scans.
        scans: all scans.
        rows: (n,) the evaluated ones' row numbers.
        kind: what differs between query and wanted scan: ``contrasts`` (same session), ``scanners`` (same time and contrast),
            ``scanners and contrasts`` (same time), ``time`` (same contrast).
    """
    who, what, where, when, sitting = (
        np.unique(values[rows].astype(str), return_inverse=True)[1]
        for values in (scans.subjects, scans.contrasts, scans.scanners, scans.times, scans.sessions)
    )
    order = np.argsort(scans.sessions[rows].astype(str), kind="stable")
    found: list[tuple[int, float, float, int]] = []
    galleries: dict[tuple[int, int], np.ndarray] = {}
    for q in range(len(rows)):
        same = who == who[q]
        if kind == "contrasts":
            wanted = same & (sitting == sitting[q]) & (what != what[q])
        elif kind == "time":
            wanted = same & (when != when[q]) & (what == what[q])
        else:
            wanted = same & (when == when[q]) & (where != where[q]) & ((what == what[q]) == (kind == "scanners"))
        for p in np.flatnonzero(wanted):
            key = (int(what[p]), int(where[p]))
            if key not in galleries:
                like = order[(what[order] == key[0]) & (where[order] == key[1])]
                galleries[key] = like[np.unique(who[like], return_index=True)[1]]
            others = galleries[key][who[galleries[key]] != who[q]]
            if others.size == 0:
                continue
            above = np.count_nonzero(similarity[q, others] > similarity[q, p])
            ties = np.count_nonzero(similarity[q, others] == similarity[q, p])
            found.append((q, 1 + above + ties / 2, 1 / (1 + ties) if above == 0 else 0.0, len(others) + 1))
    table = np.array(found).reshape(-1, 4)
    return Retrieval(rows[table[:, 0].astype(int)], table[:, 1], table[:, 2], table[:, 3])


def cosine(features: np.ndarray) -> np.ndarray:
    """(n, n) cosine similarity after the mean over all rows, whatever their contrast, is taken away; rounded to 1e-9."""
    values = np.asarray(features, dtype=np.float64)
    values = values - values.mean(0)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    values = values / np.maximum(length, np.finfo(float).tiny)
    return np.round(values @ values.T, 9)


def travelling(scans: Scans, rows: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scans of one contrast of subjects who were scanned on every scanner: contrast -> row numbers (n, k) and subjects (n,).

    A subject's time point is one target of the agreement; the k scanners are those of the evaluated scans. Empty where fewer
    than two scanners are known or fewer than three targets are complete.
    """
    made = {}
    for contrast in sorted(set(scans.contrasts[rows])):
        here = rows[(scans.contrasts[rows] == contrast) & (scans.scanners[rows] != "")]
        machines = sorted(set(scans.scanners[here]))
        places: dict[tuple[str, str], dict[str, int]] = {}
        for row in here:
            places.setdefault((scans.subjects[row], scans.times[row]), {}).setdefault(scans.scanners[row], int(row))
        whole = {target: found for target, found in sorted(places.items()) if len(found) == len(machines)}
        if len(machines) > 1 and len(whole) > 2:
            made[contrast] = (
                np.array([[found[machine] for machine in machines] for found in whole.values()]),
                np.array([subject for subject, _ in whole], dtype=object),
            )
    return made


def agreement(
    features: np.ndarray, fit: np.ndarray, scans: Scans, targets: dict[str, tuple[np.ndarray, np.ndarray]], subjects: np.ndarray
) -> dict[str, Weighted]:
    """ICC(3,1) over travelling subjects, averaged over contrasts.

    Args:
        features: (N, D).
        fit: (N,) bool; the first principal component of each contrast is found on these scans (on the evaluated ones where
            fewer than three are there).
        scans: all scans.
        targets: of :func:`travelling`.
        subjects: the evaluated subjects, sorted.

    Returns:
        ``icc_median`` (over at most 512 evenly spread dimensions) and ``icc_pc1``.
    """
    keep = np.unique(np.linspace(0, features.shape[1] - 1, 512).astype(int))
    parts = []
    for contrast, (rows, who) in targets.items():
        learnt = features[fit & (scans.contrasts == contrast)]
        learnt = learnt if len(learnt) > 2 else features[rows.ravel()]
        centre = learnt.mean(0, dtype=np.float64)
        axis = np.linalg.svd(learnt - centre, full_matrices=False)[2][0]
        component = (features[rows] - centre) @ axis
        parts.append((features[rows][..., keep], component, np.searchsorted(subjects.astype(str), who.astype(str))))

    def median(weights: np.ndarray) -> np.ndarray:
        return np.mean([_median(icc31(values, weights[:, who])) for values, _, who in parts], axis=0)

    def first(weights: np.ndarray) -> np.ndarray:
        return np.mean([icc31(component, weights[:, who]) for _, component, who in parts], axis=0)

    return {"icc_median": median, "icc_pc1": first}


def _median(values: np.ndarray) -> np.ndarray:
    """(R,) median over the dimensions that vary."""
    kept = values[:, np.isfinite(values).any(0)]
    if kept.shape[1] == 0:
        return np.full(len(values), np.nan)
    filled = np.where(np.isfinite(kept), kept, 0.0)  # a draw of copies of one subject: no agreement to speak of
    return np.median(filled, axis=1)


def variances(features: np.ndarray, scans: Scans, rows: np.ndarray, subjects: np.ndarray) -> dict[str, Weighted]:
    """Variance between subjects and within sessions across contrasts, of the first complete session of every subject.

    One-way analysis of variance, summed over dimensions: the mean square between is the variance of a subject's mean over
    contrasts, the mean square within is the variance across contrasts; what the second adds to the first is taken away.

    Args:
        features: (N, D), sampled places of a half's map.
        scans: all scans.
        rows: the evaluated scans.
        subjects: the evaluated subjects, sorted.

    Returns:
        ``between`` (per dimension, not below 0) and ``within``; empty where no session has every contrast of the evaluated scans.
    """
    names = sorted(set(scans.contrasts[rows]))
    sessions: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        sittings = sessions.setdefault(scans.subjects[row], {})
        sittings.setdefault(scans.sessions[row], {}).setdefault(scans.contrasts[row], int(row))
    first = {}
    for subject, sittings in sessions.items():
        whole = [found for _, found in sorted(sittings.items()) if len(found) == len(names)]
        if whole:
            first[subject] = [whole[0][name] for name in names]
    if len(first) < 3 or len(names) < 2:
        return {}
    who = np.searchsorted(subjects.astype(str), np.array(sorted(first), dtype=str))
    values = features[np.array([first[subject] for subject in sorted(first)])].astype(np.float64)  # (S, k, D)
    k, d = values.shape[1:]
    means = values.mean(1)
    means = means - means.mean(0)
    spread = np.square(values - values.mean(1, keepdims=True)).sum((1, 2)) / d
    gram = means @ means.T / d

    def within(weights: np.ndarray) -> np.ndarray:
        w = weights[:, who]
        return w @ spread / (w.sum(1) * (k - 1))

    def between(weights: np.ndarray) -> np.ndarray:
        w = weights[:, who]
        total = w.sum(1)
        squares = w @ np.diag(gram) - np.einsum("rs,rs->r", w @ gram, w) / total
        return np.maximum(squares / np.maximum(total - 1, 1) - within(weights) / k, 0)

    return {"between": between, "within": within}


def rv(a: np.ndarray, b: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The RV coefficient of two sets of standardised features as a function of (R, n) weights of the rows; (R,) in [0, 1].

    Robert and Escoufier, Applied Statistics 25 (1976) 257-265: tr(Cab Cba) / sqrt(tr(Caa^2) tr(Cbb^2)), the squared Frobenius norm
    of the halves' cross-covariance over what it could be. No shrinkage, so it grows with dimensions over scans: read it
    beside its floor (:func:`rv_floor`).
    """
    ka, kb = a @ a.T, b @ b.T

    def product(x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
        """<X, Y> of the kernels centred by the weighted mean."""
        px, py = p @ x, p @ y
        crossed = np.einsum("rn,rn->r", p @ (x * y), p) - 2 * np.einsum("rn,rn,rn->r", p, px, py)
        return crossed + np.einsum("rn,rn->r", px, p) * np.einsum("rn,rn->r", py, p)

    def statistic(weights: np.ndarray) -> np.ndarray:
        p = weights / weights.sum(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return product(ka, kb, p) / np.sqrt(product(ka, ka, p) * product(kb, kb, p))

    return statistic


def rv_floor(a: np.ndarray, b: np.ndarray, *, permutations: int = 200, seed: int = 0) -> np.ndarray:
    """(permutations,) RV coefficients when the rows of one set are shuffled: what chance alone gives."""
    ka, kb = (x @ x.T for x in (a - a.mean(0), b - b.mean(0)))
    scale = np.linalg.norm(ka) * np.linalg.norm(kb)
    draw = seeds.generator(seed, "permutation")
    orders = [draw.permutation(len(a)) for _ in range(permutations)]
    return np.array([np.vdot(ka, kb[np.ix_(order, order)]) / scale for order in orders])
