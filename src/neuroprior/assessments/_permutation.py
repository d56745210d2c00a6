"""How well features predict a label of held-out subjects, with a permutation test that is exact by construction.

One row a subject. The model is ridge regression on the label (on one indicator a class), its penalty set by the features alone
so that it has at most one effective parameter for eight subjects. Cross-validation folds are drawn without looking at the
label, so held-out predictions are ``H y`` for a matrix H that depends on features and folds only; shuffling y then gives all
permuted cross-validations as one matrix product, each exactly what refitting would give. Folds that are stratified by the true
label would favour it over its permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core import seeds
from ..metrics._bootstrap import bounds, counts


@dataclass(frozen=True)
class Outcome:
    """The result for one set of features.

    Attributes:
        metric: ``r`` (Pearson, held-out predictions) for numbers, ``auroc`` for classes (mean of one against the rest).
        value, low, high: of the metric, with its 95 % bootstrap interval over subjects at fixed predictions.
        second_metric, second: ``r2`` or ``balanced_accuracy``.
        statistic: what is tested: the correlation of held-out predictions and truth, mean over classes.
        p: share of permutations that reach the statistic, the true labelling counted in.
        detectable: the statistic that the given share of permutations stays below.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    second_metric: str
    second: float
    statistic: float
    p: float
    detectable: float


def basis(numbers: np.ndarray) -> np.ndarray:
    """A small additive basis of numeric columns: value (winsorised), rank, quarters; levels where there are six or fewer.

    Args:
        numbers: (n, k) float, NaN where missing.

    Returns:
        (n, d) float64, each column of mean 0 and standard deviation 1; d is 0 where nothing varies.
    """
    made: list[np.ndarray] = []
    for column in numbers.T:
        there = np.isfinite(column)
        if not there.all():
            made.append((~there).astype(float))
        if not there.any():
            continue
        levels, which = np.unique(column[there], return_inverse=True)
        if len(levels) == 1:
            continue
        spread = np.full(len(column), np.nan)
        spread[there] = _ranks(which)
        if len(levels) <= 6:
            made += [np.where(there, column == level, 0.0) for level in levels[: None if len(levels) > 2 else 1]]
        else:
            edges = np.nanquantile(spread, [0.25, 0.5, 0.75])
            quarter = np.where(there, np.searchsorted(edges, np.nan_to_num(spread), side="right"), -1)
            made += [(quarter == k).astype(float) for k in range(4)]
        low, high = np.nanquantile(column, [0.02, 0.98])
        if high > low:
            made.append(np.nan_to_num(np.clip(column, low, high) - np.nanmean(np.clip(column, low, high))))
        made.append(np.nan_to_num(spread))
    if not made:
        return np.empty((len(numbers), 0))
    return standardised(np.stack(made, axis=1))


def standardised(columns: np.ndarray) -> np.ndarray:
    """The columns that vary, each with mean 0 and standard deviation 1."""
    columns = columns - columns.mean(axis=0)
    spread = columns.std(axis=0)
    kept = spread > 1e-9
    return columns[:, kept] / spread[kept]


def _ranks(which: np.ndarray) -> np.ndarray:
    """Mid-ranks in [-0.5, 0.5] of level numbers."""
    sizes = np.bincount(which)
    middle = np.cumsum(sizes) - (sizes + 1) / 2
    return middle[which] / max(len(which) - 1, 1) - 0.5


def penalty(features: np.ndarray) -> float:
    """The ridge penalty at which the model has at most one effective parameter for eight subjects (and a trace more than none)."""
    power = np.linalg.svd(features, compute_uv=False) ** 2
    power = power[power > 1e-9 * power.max()]
    most = max(1.0, len(features) / 8)
    low, high = 1e-3 * len(features), 1e6 * len(features)
    if (power / (power + low)).sum() <= most:
        return low
    for _ in range(60):
        middle = np.sqrt(low * high)
        if (power / (power + middle)).sum() > most:
            low = middle
        else:
            high = middle
    return float(high)


def held_out(features: np.ndarray, *, folds: int = 5, repeats: int = 2, seed: int = 0) -> np.ndarray:
    """The matrix that takes centred labels to cross-validated predictions, averaged over repeats.

    Args:
        features: (n, d) standardised.
        folds, repeats: of the cross-validation; folds are random and do not see the label.
        seed: of the folds.

    Returns:
        (n, n) float64 with a zero diagonal: no subject's prediction uses its own label.
    """
    n = len(features)
    strength = penalty(features)
    made = np.zeros((n, n))
    for repeat in range(repeats):
        part = seeds.generator(seed, "audit folds", repeat).permutation(np.arange(n) % min(folds, n))
        for fold in range(min(folds, n)):
            out, fit = np.flatnonzero(part == fold), np.flatnonzero(part != fold)
            x = features[fit]
            ridge = strength * len(fit) / n
            if x.shape[1] <= len(fit):
                weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T)
            else:
                weights = x.T @ np.linalg.inv(x @ x.T + ridge * np.eye(len(fit)))
            made[np.ix_(out, fit)] += features[out] @ weights / repeats
    return made


def shuffles(n: int, permutations: int, seed: int, strata: np.ndarray | None = None) -> np.ndarray:
    """(permutations, n) orders of the subjects; within strata where they are given."""
    draw = seeds.generator(seed, "audit permutations")
    if strata is None:
        return draw.permuted(np.broadcast_to(np.arange(n, dtype=np.int32), (permutations, n)), axis=1)
    made = np.tile(np.arange(n, dtype=np.int32), (permutations, 1))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum).astype(np.int32)
        made[:, rows] = draw.permuted(np.broadcast_to(rows, (permutations, len(rows))), axis=1)
    return made


def _centred(columns: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    if strata is None:
        return columns - columns.mean(axis=0)
    made = columns.astype(float)
    for stratum in np.unique(strata):
        rows = strata == stratum
        made[rows] -= made[rows].mean(axis=0)
    return made


def test(
    features: np.ndarray, label: np.ndarray, orders: np.ndarray, *, classes: Sequence[str] | None = None,
    strata: np.ndarray | None = None, level: float = 0.99, folds: int = 5, repeats: int = 2, resamples: int = 1000, seed: int = 0,
) -> Outcome:  # fmt: skip
    """Test whether features predict the label of held-out subjects.

    Args:
        features: (n, d) standardised, d at least 1.
        label: (n,) float, or class numbers where ``classes`` is given.
        orders: (permutations, n) from :func:`shuffles`; the same for all sets of features.
        classes: names of the class numbers.
        strata: (n,) the stratum of each subject; the label's mean in each stratum is taken away, and orders stay within.
        level: share of permutations that ``detectable`` lies above.
        folds, repeats, resamples, seed: of cross-validation and bootstrap.
    """
    matrix = held_out(features, folds=folds, repeats=repeats, seed=seed).astype(np.float32)
    truth = label[:, None].astype(float) if classes is None else (label[:, None] == np.arange(len(classes))[None]).astype(float)
    if classes is not None and len(classes) == 2:
        truth = truth[:, 1:]
    truth = _centred(truth, strata)
    guess = matrix.astype(float) @ truth
    statistic = float(np.mean([_correlation(guess[:, k], truth[:, k]) for k in range(truth.shape[1])]))
    null = np.zeros(len(orders))
    for start in range(0, len(orders), 1000):
        some = orders[start : start + 1000]
        for k in range(truth.shape[1]):
            shuffled = truth[:, k].astype(np.float32)[some.T]
            null[start : start + 1000] += _columns_correlation(matrix @ shuffled, shuffled) / truth.shape[1]
    reached = int((null >= statistic - 1e-6).sum())  # float32 products: an equal labelling must count as equal
    p = (1 + reached) / (1 + len(orders))
    weights = counts(len(label), resamples=resamples, seed=seed)
    if classes is None:
        value, draws = _correlation(guess[:, 0], truth[:, 0]), _weighted_correlation(guess[:, 0], truth[:, 0], weights)
        error, total = float(((truth - guess) ** 2).sum()), float((truth**2).sum())
        metric, second_metric, second = "r", "r2", 1 - error / total
    else:
        binary = len(classes) == 2
        sides = [(guess[:, 0], label == 1)] if binary else [(guess[:, k], label == k) for k in range(len(classes))]
        value = float(np.mean([weighted_auroc(g, t, np.ones((1, len(g))))[0] for g, t in sides]))
        draws = np.mean([weighted_auroc(g, t, weights) for g, t in sides], axis=0)
        chosen = (guess[:, 0] > 0).astype(int) if binary else guess.argmax(axis=1)
        hits = [float((chosen[label == k] == k).mean()) for k in range(len(classes))]
        metric, second_metric, second = "auroc", "balanced_accuracy", float(np.mean(hits))
    low, high = bounds(draws)
    return Outcome(metric, value, low, high, second_metric, second, statistic, p, float(np.quantile(null, level)))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 1e-12 else 0.0


def _columns_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(columns,) Pearson correlation of the columns of two (n, columns) arrays; 0 where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.sqrt(np.einsum("ij,ij->j", a, a) * np.einsum("ij,ij->j", b, b))
    return np.einsum("ij,ij->j", a, b) / np.where(size > 1e-12, size, np.inf)


def _weighted_correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws,) Pearson correlation under each row of (draws, n) weights; NaN where one is constant."""
    total = weights.sum(axis=1)
    ma, mb = weights @ a / total, weights @ b / total
    cov = weights @ (a * b) / total - ma * mb
    size = np.sqrt(np.clip(weights @ (a * a) / total - ma**2, 0, None) * np.clip(weights @ (b * b) / total - mb**2, 0, None))
    return np.where(size > 1e-12, cov / np.where(size > 1e-12, size, 1), np.nan)


def weighted_auroc(score: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws,) area under the ROC curve under each row of (draws, n) weights, ties counted half; NaN with one class only."""
    _, tie = np.unique(score, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.flatnonzero(np.diff(tie[order], prepend=-1))
    yes = np.add.reduceat((weights * truth)[:, order], starts, axis=1)
    no = np.add.reduceat((weights * ~truth)[:, order], starts, axis=1)
    below = np.cumsum(no, axis=1) - no / 2
    size = yes.sum(axis=1) * no.sum(axis=1)
    return np.where(size > 0, (yes * below).sum(axis=1) / np.where(size > 0, size, 1), np.nan)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the chance that any of the family is found by accident stays below the level."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    made = np.empty(len(values))
    made[order] = np.minimum(adjusted, 1)
    return made.tolist()
