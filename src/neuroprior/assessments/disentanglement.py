"""Disentanglement: what each half of a frozen representation says of who, what and how, beside rows that know nothing.

Probes are fitted on some subjects and tried on others; who is there is asked by retrieval, agreement over scanners and
variances, without any fitting. Every number has a percentile bootstrap interval over the evaluated subjects, and all numbers
share their draws, so that any two rows can be compared (:func:`difference`). The trivial rows (``outline``, ``raw_pixels``,
``random_weights``) go through the same code: what counts is the margin over the best of them.

:func:`assess_nets` starts from nets and a store; :func:`assess` from arrays of features and a record of who the scans are of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from ..core import artifacts
from ..core.config import Config as BaseConfig
from ..core.errors import ArtifactError, InputError
from ..core.records import Score
from ..data.store import Store
from ..metrics import _bootstrap
from . import _identity as identity
from . import _probes as probes
from ._features import IMAGE, Features, Scans, ViewConfig, Views, describe, extract, outline, raw_pixels, untrained
from ._probes import ProbeConfig
from ._swaps import Swaps, swap

__all__ = [
    "Assessment", "Config", "Features", "Key", "ProbeConfig", "Scans", "Swaps", "ViewConfig", "Views", "assess", "assess_nets",
    "describe", "difference", "extract", "merge", "read", "swap", "untrained", "write",
]  # fmt: skip

TASK = "disentanglement"
"""The ``task`` of every score row."""
TRIVIAL = ("outline", "raw_pixels", "random_weights")
"""The rows that know nothing."""
POOLINGS = ("pooled", "spatial")
AUROCS = ("linear_auroc", "linear_auroc_same_place")
"""Lesions have their places: the second metric only compares cells that lie in one place of the box, so that knowing the place is
worth nothing."""

Key = tuple[str, str, str, str, str]
"""(model, target, metric, region, condition) of a row."""


class Config(BaseConfig):
    """Settings of the assessment."""

    views: ViewConfig = ViewConfig()
    """What of each scan is seen."""
    probes: ProbeConfig = ProbeConfig()
    """How probes are fitted."""
    poolings: tuple[str, ...] = POOLINGS
    """Kinds of features that are assessed."""
    swaps: int = Field(default=96, ge=0)
    """Most evaluated scans whose reconstructions are swapped; 0 for none."""
    resamples: int = Field(default=1000, ge=1)
    """Of the bootstrap."""
    permutations: int = Field(default=200, ge=1)
    """Of the floor of the halves' cross-covariance."""
    seed: int = 0
    """Of the bootstrap and the permutations."""


@dataclass(frozen=True)
class Assessment:
    """The table, and the draws behind its intervals.

    Attributes:
        scores: a row for model x target x metric x half (``region``) x features (``condition``).
        draws: key -> (resamples,) the statistic of each bootstrap draw; only for rows with a value.
        subjects: the evaluated subjects, sorted; draw n is the same choice of them in every row.
        facts: how the table was made.
    """

    scores: tuple[Score, ...]
    draws: Mapping[Key, np.ndarray]
    subjects: tuple[str, ...]
    facts: Mapping[str, Any]

    def score(self, model: str, target: str, metric: str, region: str, condition: str = "pooled") -> Score:
        """One row.

        Raises:
            InputError: there is no such row.
        """
        key = (model, target, metric, region, condition)
        found = next((row for row in self.scores if _key(row) == key), None)
        if found is None:
            near = sorted({_key(row) for row in self.scores if row.model == model and row.target == target})
            raise InputError(f"there is no row {key}", expected=near[:12] or sorted({row.model for row in self.scores}))
        return found


def _key(row: Score) -> Key:
    return row.model, row.target, row.metric, row.region, row.condition


def assess_nets(
    nets: Mapping[str, nn.Module], store: Store, *, fit: Sequence[str] = ("train",), evaluate: Sequence[str] = ("test",),
    config: Config | None = None, trivial: Sequence[str] = TRIVIAL, targets: Mapping[str, Mapping[str, Any]] | None = None,
    pictures: Path | None = None,
) -> Assessment:  # fmt: skip
    """Assess nets on a store.

    Args:
        nets: row name -> net with ``encode`` and ``decode``; left as they are.
        store: the scans.
        fit: splits whose subjects the probes are fitted on.
        evaluate: splits that are evaluated; disjoint from ``fit``.
        config: settings.
        trivial: which trivial rows to add; ``random_weights`` has the architecture of the first net.
        targets: name -> (session key or subject -> number or vector), further numbers to probe for; ``volumes`` replaces the
            store's columns.
        pictures: folder for a picture of the swaps of each net, or None.

    Returns:
        The table. What cannot be said is a row without a value, with the reason in ``note``.

    Raises:
        InputError: a split is empty, a row name is used twice or unknown, the spacings differ.
        LeakageError: a subject is both fitted on and evaluated.
        ConfigError: a net cannot be built afresh for ``random_weights``.
    """
    config = config or Config()
    unknown = sorted(set(trivial) - set(TRIVIAL))
    twice = sorted(set(trivial) & set(nets))
    if unknown or twice or not (nets or trivial):
        raise InputError(
            "these rows cannot be made", expected=f"nets, and some of {', '.join(TRIVIAL)}",
            got=f"unknown {unknown}" if unknown else f"named twice {twice}" if twice else "nothing",
        )  # fmt: skip
    if "random_weights" in trivial and not nets:
        raise InputError("random_weights needs a net whose architecture it has", next_step="give a net, or leave the row out")
    views = Views(store, fit, evaluate, config.views)
    scans = describe(views, targets)
    every = dict(nets)
    if "random_weights" in trivial:
        every["random_weights"] = untrained(next(iter(nets.values())), config.views.seed)
    features = [found for name, net in every.items() for found in extract(name, net, views)]
    features += [make(views) for name, make in (("outline", outline), ("raw_pixels", raw_pixels)) if name in trivial]
    swaps = []
    if config.swaps:
        for name, net in every.items():
            picture = pictures / f"swaps-{name}.png" if pictures is not None else None
            swaps.append(swap(name, net, views, limit=config.swaps, picture=picture))
        swaps += [Swaps(name, reason="this row decodes nothing") for name in trivial if name != "random_weights"]
    facts = {
        "fit": list(fit), "evaluate": list(evaluate), "box": list(views.box), "spacing_mm": list(views.spacing_mm),
        "store_hash": store.store_hash, "scans_fitted_on": int(views.fit.sum()), "scans_evaluated": int((~views.fit).sum()),
    }  # fmt: skip
    made = assess(features, scans, config, swaps)
    return replace(made, facts={**made.facts, **facts})


def assess(features: Sequence[Features], scans: Scans, config: Config | None = None, swaps: Sequence[Swaps] = ()) -> Assessment:
    """Assess features that are there already.

    Args:
        features: what each half of each model says of the N scans.
        scans: who and what the N scans are.
        config: settings; of ``views`` only whether there is an outline, for the name of the condition.
        swaps: swapped reconstructions, where there are any.

    Returns:
        The table; see the module for what is in it.

    Raises:
        InputError: an array does not fit the scans, or two records have the same model and half.
    """
    config = config or Config()
    _check(features, scans)
    rows = np.flatnonzero(~scans.fit)
    table = _Table(config, scans, rows)
    for found in features:
        _who(table, found)
        _what(table, found)
    for model in dict.fromkeys(found.model for found in features):
        _dependence(table, model, [found for found in features if found.model == model])
    for found in swaps:
        _swapped(table, found)
    facts = {"config": config.model_dump(mode="json"), "subjects_evaluated": len(table.subjects)}
    return Assessment(tuple(table.scores), table.draws, tuple(table.subjects), facts)


def _check(features: Sequence[Features], scans: Scans) -> None:
    seen: set[tuple[str, str]] = set()
    for found in features:
        if (found.model, found.half) in seen:
            raise InputError(f"the {found.half} half of {found.model} is given twice")
        seen.add((found.model, found.half))
        for name in ("pooled", "spatial", "cells", "sampled", "posterior_variance"):
            values = getattr(found, name)
            if values is None:
                continue
            if len(values) != len(scans.cases):
                raise InputError(
                    f"{name} of the {found.half} half of {found.model} does not fit the scans",
                    expected=f"{len(scans.cases)} rows", got=values.shape,
                )  # fmt: skip
            if not np.isfinite(values).all():
                raise InputError(f"{name} of the {found.half} half of {found.model} is not finite", expected="finite numbers")


class _Table:
    """Rows as they come, and the draws that all of them share."""

    def __init__(self, config: Config, scans: Scans, rows: np.ndarray) -> None:
        self.config, self.scans, self.rows = config, scans, rows
        names, place = np.unique(scans.subjects[rows].astype(str), return_inverse=True)
        self.subjects = names.astype(object)
        self.place = np.full(len(scans.cases), -1)
        self.place[rows] = place
        self.weights = _bootstrap.counts(len(names), resamples=config.resamples, seed=config.seed)
        self.scores: list[Score] = []
        self.draws: dict[Key, np.ndarray] = {}

    def add(
        self, model: str, target: str, metric: str, region: str, condition: str, statistic: identity.Weighted | None,
        *, n: int = 0, note: str = "", subjects: int | None = None,
    ) -> None:  # fmt: skip
        """A row: its value with every subject once, its interval over the draws; without a statistic only the note."""
        if not self.config.views.outline_free and condition != "swaps":
            condition += ", whole head"
        row = Score(model, TASK, target, "all", "all", metric, region, condition, None, n=n, note=note)
        if statistic is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                value = float(statistic(np.ones((1, len(self.subjects))))[0])
                drawn = statistic(self.weights)
            if np.isfinite(value):
                enough = (len(self.subjects) if subjects is None else subjects) >= 3
                low, high = _bootstrap.bounds(drawn) if enough else (None, None)
                row = replace(row, value=value, low=low, high=high)
                self.draws[_key(row)] = drawn.astype(np.float32)
            else:
                row = replace(row, note="; ".join(part for part in (note, "not defined on these scans") if part))
        self.scores.append(row)

    def sums(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(S,) or (S, q): the values of some rows summed by evaluated subject."""
        out = np.zeros((len(self.subjects), *values.shape[1:]))
        np.add.at(out, self.place[rows], values)
        return out

    def mean(self, rows: np.ndarray, values: np.ndarray) -> identity.Weighted:
        """The mean over rows."""
        total, count = self.sums(rows, values.astype(float)), self.sums(rows, np.ones(len(rows)))
        return lambda w: w @ total / (w @ count)

    def present(self, rows: np.ndarray) -> int:
        """How many subjects some rows are of."""
        return len(np.unique(self.place[rows]))


# ---------------------------------------------------------------------------------------------------------------- statistics


def _balanced_accuracy(table: _Table, guess: probes.Guess) -> identity.Weighted:
    """Mean recall over the classes that occur in a draw."""
    parts = [
        (table.sums(guess.rows[here], (guess.guess[here] == name).astype(float)), table.sums(guess.rows[here], np.ones(here.sum())))
        for name in np.unique(guess.truth) for here in [guess.truth == name]
    ]  # fmt: skip

    def statistic(w: np.ndarray) -> np.ndarray:
        recalls = np.stack([w @ right / (w @ count) for right, count in parts])
        known = np.isfinite(recalls)
        return np.where(known, recalls, 0).sum(0) / known.sum(0)

    return statistic


def _r2(table: _Table, guess: probes.Guess) -> identity.Weighted:
    """Share of the squared error of the fitting scans' mean that the guess removes, averaged over columns: out-of-sample R2.

    The constant is known before the evaluated scans are, so it is 0 in every draw for a probe that guesses it.
    """
    assert guess.constant is not None
    error = table.sums(guess.rows, np.square(guess.guess - guess.truth))
    floor = table.sums(guess.rows, np.square(guess.truth - guess.constant))

    def statistic(w: np.ndarray) -> np.ndarray:
        total = w @ floor
        return (1 - w @ error / np.where(total > 0, total, np.nan)).mean(1)

    return statistic


def _auroc(table: _Table, guess: probes.Guess, strata: np.ndarray) -> identity.Weighted:
    """Area under the ROC curve of pairs of cells in one stratum, a cell weighing as often as its subject is drawn; ties count half."""
    order = np.lexsort((guess.guess, strata))
    score, group = guess.guess[order], strata[order]
    positive, place = guess.truth[order] == 1, table.place[guess.rows[order]]
    turns = group[1:] != group[:-1]
    starts = np.flatnonzero(np.concatenate([[True], (score[1:] > score[:-1]) | turns]))  # of ties
    first = np.searchsorted(starts, np.flatnonzero(np.concatenate([[True], turns])))  # of strata, among the ties
    stratum = np.cumsum(np.isin(np.arange(len(starts)), first)) - 1

    def statistic(w: np.ndarray) -> np.ndarray:
        out = np.empty(len(w))
        for chunk in range(0, len(w), 100):
            each = w[chunk : chunk + 100][:, place]
            yes = np.add.reduceat(each * positive, starts, axis=1)
            no = np.add.reduceat(each * ~positive, starts, axis=1)
            running = np.cumsum(no, axis=1)
            before = np.where(first > 0, running[:, first - 1], 0)[:, stratum]
            pairs = (np.add.reduceat(yes, first, axis=1) * np.add.reduceat(no, first, axis=1)).sum(1)
            out[chunk : chunk + 100] = (yes * (running - before - no / 2)).sum(1) / pairs
        return out

    return statistic


# ---------------------------------------------------------------------------------------------------------------------- rows


def _who(table: _Table, found: Features) -> None:
    """Retrieval, agreement over scanners, variances."""
    scans, rows = table.scans, table.rows
    targets = identity.travelling(scans, rows)
    for pooling in table.config.poolings:
        values, reason = _values(found, pooling)
        if values is not None and not _varies(values[rows]):
            values, reason = None, "the features are the same for every scan"
        similarity = None if values is None else identity.cosine(values[rows])
        for kind in identity.KINDS:
            target, metrics = f"subject across {kind}", ("retrieval_top1", "retrieval_mean_rank")
            if similarity is None:
                for metric in metrics:
                    table.add(found.model, target, metric, found.half, pooling, None, note=reason)
                continue
            asked = identity.retrieve(similarity, scans, rows, kind)
            if asked.rows.size == 0:
                if kind == "contrasts":  # the others are simply not in this store
                    table.add(
                        found.model, target, metrics[0], found.half, pooling, None, note="no two scans of a session to compare"
                    )
                continue
            chances = (np.mean(1 / asked.gallery), np.mean((asked.gallery + 1) / 2))
            for metric, each, chance in zip(metrics, (asked.top1, asked.rank), chances, strict=True):
                note = f"chance {chance:.3g}, among {asked.gallery.min():.0f} to {asked.gallery.max():.0f} subjects"
                table.add(
                    found.model, target, metric, found.half, pooling, table.mean(asked.rows, each),
                    n=len(asked.rows), note=note, subjects=table.present(asked.rows),
                )  # fmt: skip
        if not targets:
            note = "no three subjects were scanned on all of two or more scanners"
            table.add(found.model, "scanners", "icc_pc1", found.half, pooling, None, note=note)
        elif values is None:
            table.add(found.model, "scanners", "icc_pc1", found.half, pooling, None, note=reason)
        else:
            n = sum(at.size for at, _ in targets.values())
            seen = min(len(set(who)) for _, who in targets.values())
            note = f"ICC(3,1) over {next(iter(targets.values()))[0].shape[1]} scanners, mean over {len(targets)} contrasts"
            for metric, statistic in identity.agreement(values, scans.fit, scans, targets, table.subjects).items():
                table.add(found.model, "scanners", metric, found.half, pooling, statistic, n=n, note=note, subjects=seen)
    _variances(table, found)


def _variances(table: _Table, found: Features) -> None:
    scans, rows = table.scans, table.rows
    metrics = ("variance_ratio_contrasts", "variance_ratio_posterior")
    parts = {} if found.sampled is None else identity.variances(found.sampled, scans, rows, table.subjects)
    if not parts:
        note = found.reason or (
            "no map of this half was given" if found.sampled is None else "no three subjects have a session with every contrast"
        )
        table.add(found.model, "subject", metrics[0], found.half, "sampled", None, note=note)
        return
    note = "variance between subjects over variance across the contrasts of a session"
    ratio = lambda w: parts["between"](w) / parts["within"](w)  # noqa: E731
    table.add(found.model, "subject", metrics[0], found.half, "sampled", ratio, n=len(rows), note=note)
    if found.posterior_variance is None:
        if found.half != IMAGE:
            note = "this half has no posterior variance"
            table.add(found.model, "subject", metrics[1], found.half, "sampled", None, note=note)
        return
    posterior = table.mean(rows, found.posterior_variance[rows])
    ratio = lambda w: parts["between"](w) / posterior(w)  # noqa: E731
    note = "variance between subjects over posterior variance"
    table.add(found.model, "subject", metrics[1], found.half, "sampled", ratio, n=len(rows), note=note)


def _values(found: Features, pooling: str) -> tuple[np.ndarray | None, str]:
    values = getattr(found, pooling)
    if values is None or values.shape[1] == 0:
        return None, found.reason or f"no {pooling} features were given"
    return values, ""


def _varies(values: np.ndarray) -> bool:
    """Whether any feature differs between the scans by more than rounding."""
    return bool((values.std(0, dtype=np.float64) > 1e-6 * np.maximum(np.abs(values).mean(0), 1e-6)).any())


def _what(table: _Table, found: Features) -> None:
    """Probes of classes and numbers, and lesions in cells."""
    scans, config = table.scans, table.config.probes
    classes = {name: labels for name, labels in scans.classes.items() if (labels != "").any()}
    numbers = {name: values for name, values in scans.numbers.items() if np.isfinite(values).any()}
    for pooling in table.config.poolings:
        values, reason = _values(found, pooling)
        standard = None
        if values is not None and scans.fit.any():
            standard = probes.standardise(values, scans.fit)
            reason = "the features are the same for every fitting scan"
        elif values is not None:
            reason = "there are no scans to fit on"
        for name, labels in classes.items():
            nonlinear = name in config.nonlinear
            kinds = ("linear", "knn", "mlp") if nonlinear else ("linear", "knn")
            guesses = (
                {kind: probes.Guess.none(reason) for kind in kinds} if standard is None
                else probes.classify(standard, labels, scans.fit, scans.subjects.astype(str), config, nonlinear=nonlinear)
            )  # fmt: skip
            for kind, guess in guesses.items():
                _probe(table, found, name, f"{kind}_balanced_accuracy", pooling, guess)
        guessed = (
            {(name, kind): probes.Guess.none(reason) for name in numbers for kind in ("linear", "knn")} if standard is None
            else probes.regress(standard, numbers, scans.fit, scans.subjects.astype(str), config)
        )  # fmt: skip
        for (name, kind), guess in guessed.items():
            _probe(table, found, name, f"{kind}_r2", pooling, guess)
    _lesions(table, found)


def _probe(table: _Table, found: Features, target: str, metric: str, pooling: str, guess: probes.Guess) -> None:
    if guess.reason:
        table.add(found.model, target, metric, found.half, pooling, None, note=guess.reason)
        return
    if guess.classes:
        statistic, note = _balanced_accuracy(table, guess), f"chance {1 / len(np.unique(guess.truth)):.3g}"
    else:
        statistic, note = _r2(table, guess), f"{guess.truth.shape[1]} numbers" if guess.truth.shape[1] > 1 else ""
    seen = table.present(guess.rows)
    table.add(found.model, target, metric, found.half, pooling, statistic, n=len(guess.rows), note=note, subjects=seen)


def _lesions(table: _Table, found: Features) -> None:
    scans = table.scans
    if scans.lesions is None:
        return
    for contrast in sorted(set(scans.contrasts[table.rows])):
        place = f"cells, {contrast}"
        if found.cells is None or not scans.fit.any():
            reason = found.reason or ("no cells were given" if found.cells is None else "there are no scans to fit on")
            for metric in AUROCS:
                table.add(found.model, "lesion", metric, found.half, place, None, note=reason)
            continue
        if found.cells.shape[1] != scans.lesions.shape[1]:
            raise InputError(
                f"the cells of the {found.half} half of {found.model} are not those of the lesions",
                expected=f"{scans.lesions.shape[1]} cells", got=found.cells.shape[1],
            )  # fmt: skip
        here = np.flatnonzero(scans.contrasts == contrast)
        guess = probes.find_lesions(found.cells, scans.lesions, here, scans.fit, scans.subjects.astype(str), table.config.probes)
        if guess.reason:
            for metric in AUROCS:
                table.add(found.model, "lesion", metric, found.half, place, None, note=guess.reason)
            continue
        note = f"{int(guess.truth.sum())} of {len(guess.truth)} cells hold a lesion"
        seen = table.present(guess.rows)
        assert guess.strata is not None
        for metric, strata, text in zip(
            AUROCS, (np.zeros_like(guess.strata), guess.strata),
            ("all pairs of cells; the place alone tells something", "pairs of cells in one place of the box; chance 0.5"), strict=True,
        ):  # fmt: skip
            statistic = _auroc(table, guess, strata)
            table.add(
                found.model,
                "lesion",
                metric,
                found.half,
                place,
                statistic,
                n=len(guess.truth),
                note=f"{text}; {note}",
                subjects=seen,
            )


def _dependence(table: _Table, model: str, found: Sequence[Features]) -> None:
    """The cross-covariance of the two halves, and what chance gives."""
    halves = {part.half: part for part in found if part.half in ("anatomy", "contrast")}
    if not halves:
        return
    rows = table.rows
    parts, reason = [], ""
    for half in ("anatomy", "contrast"):
        part = halves.get(half)
        if part is None or part.pooled is None or part.pooled.shape[1] == 0:
            reason = part.reason if part is not None and part.reason else f"there is no {half} half"
            continue
        values = probes.standardise(part.pooled[rows], np.ones(len(rows), dtype=bool))
        if values is None:
            reason = f"the {half} half is the same for every scan"
            continue
        parts.append(values)
    if len(parts) < 2:
        table.add(model, "halves", "cross_covariance", "anatomy and contrast", "pooled", None, note=reason)
        return
    floor = identity.rv_floor(*parts, permutations=table.config.permutations, seed=table.config.seed)
    statistic = identity.rv(*parts)
    value = float(statistic(np.ones((1, len(rows))))[0])
    above = (1 + np.count_nonzero(floor >= value)) / (1 + len(floor))
    note = f"RV coefficient; shuffled scans give {floor.mean():.3f} (95 % below {np.quantile(floor, 0.95):.3f}), p = {above:.3g}"
    place = table.place[rows]
    region = "anatomy and contrast"
    table.add(model, "halves", "cross_covariance", region, "pooled", lambda w: statistic(w[:, place]), n=len(rows), note=note)


def _swapped(table: _Table, found: Swaps) -> None:
    """Reconstruction errors with the own, another contrast's and a wrong subject's anatomy, and what the swaps cost."""
    if found.reason:
        table.add(found.model, "reconstruction", "swap_mae", "own anatomy", "swaps", None, note=found.reason)
        return
    rows = np.searchsorted(
        table.scans.cases.astype(str), found.cases.astype(str), sorter=np.argsort(table.scans.cases.astype(str))
    )
    rows = np.argsort(table.scans.cases.astype(str))[rows]
    named = {"own anatomy": found.own, "other contrast's anatomy": found.other, "wrong subject's anatomy": found.wrong}
    for region, errors in named.items():
        kept = np.isfinite(errors)
        note = "mean absolute error over the head, in standard deviations of the scan"
        if not kept.any():
            table.add(found.model, "reconstruction", "swap_mae", region, "swaps", None, note="no scan has such a partner")
            continue
        statistic = table.mean(rows[kept], errors[kept])
        table.add(found.model, "reconstruction", "swap_mae", region, "swaps", statistic, n=int(kept.sum()), note=note)
    for region, a, b in (
        ("other contrast's anatomy", found.other, found.own),
        ("wrong subject's anatomy", found.wrong, found.other),
    ):
        cost = a - b
        kept = np.isfinite(cost)
        if kept.any():
            note = "above the own anatomy" if b is found.own else "above the other contrast's anatomy"
            statistic = table.mean(rows[kept], cost[kept])
            table.add(found.model, "reconstruction", "swap_cost", region, "swaps", statistic, n=int(kept.sum()), note=note)


# ---------------------------------------------------------------------------------------------------- comparing, writing


def difference(assessment: Assessment, left: Key, right: Key) -> dict[str, Any]:
    """One row minus another, with the paired bootstrap interval over subjects: both are computed on every draw.

    Args:
        assessment: the table that holds both (see :func:`merge`).
        left, right: (model, target, metric, region, condition).

    Returns:
        ``difference``, ``low``, ``high`` (None with fewer than three subjects), ``clear`` (the interval excludes zero) and ``n`` subjects.

    Raises:
        InputError: a row is not there or has no value.
    """
    missing = [key for key in (left, right) if key not in assessment.draws]
    if missing:
        row = next((row for row in assessment.scores if _key(row) == missing[0]), None)
        raise InputError(
            f"the row {missing[0]} has no value to compare", got="no such row" if row is None else row.note or "not defined"
        )
    drawn = assessment.draws[left].astype(float) - assessment.draws[right]
    values = [assessment.score(*key).value or 0.0 for key in (left, right)]
    low, high = _bootstrap.bounds(drawn) if len(assessment.subjects) >= 3 else (None, None)
    clear = low is not None and high is not None and (low > 0 or high < 0)
    return {"difference": values[0] - values[1], "low": low, "high": high, "clear": clear, "n": len(assessment.subjects)}


def merge(assessments: Sequence[Assessment]) -> Assessment:
    """Several tables of the same evaluated subjects and draws as one.

    Raises:
        InputError: there is none, the subjects or draws differ, or a row is there twice.
    """
    if not assessments:
        raise InputError("there is no table to merge")
    first = assessments[0]
    settings = [(a.facts.get("config", {}).get("resamples"), a.facts.get("config", {}).get("seed")) for a in assessments]
    if any(a.subjects != first.subjects for a in assessments) or len(set(settings)) > 1:
        raise InputError(
            "these tables do not rest on the same draws", expected="the same evaluated subjects, resamples and seed", got=settings
        )
    keys = [_key(row) for a in assessments for row in a.scores]
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if twice:
        raise InputError("a row is in two of the tables", got=twice[0], next_step="give every net a name of its own")
    draws = {key: values for a in assessments for key, values in a.draws.items()}
    return Assessment(tuple(row for a in assessments for row in a.scores), draws, first.subjects, first.facts)


def write(assessment: Assessment, out: Path) -> Path:
    """Write the scores as Parquet and, beside them, the bootstrap draws (``OUT.draws.npz``), atomically; returns ``out``."""
    import json
    from dataclasses import asdict

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .. import __version__

    keys = list(assessment.draws)
    with artifacts.atomic(draws_file(out)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, keys=np.array(keys, dtype=str).reshape(-1, 5), subjects=np.array(assessment.subjects, dtype=str),
            draws=np.array([assessment.draws[key] for key in keys], dtype=np.float32),
        )  # fmt: skip
    table = pa.Table.from_pandas(pd.DataFrame([asdict(row) for row in assessment.scores]), preserve_index=False)
    note = {"artifact": "scores", "version": 1, "neuroprior": __version__, "rule": "none", "assessment": TASK, **assessment.facts}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"neuroprior": json.dumps(note).encode()})
    with artifacts.atomic(out) as temporary:
        pq.write_table(table, temporary)
    return out


def draws_file(out: Path) -> Path:
    """Where the draws of a table lie."""
    return out.with_name(out.stem + ".draws.npz")


def read(path: Path) -> Assessment:
    """The table and draws that :func:`write` wrote.

    Raises:
        ArtifactError: a file is missing or is no such table.
    """
    import json

    import pyarrow.parquet as pq

    if not path.is_file() or not draws_file(path).is_file():
        raise ArtifactError("there is no table of probes here", file=path, expected=f"{path.name} and {draws_file(path).name}")
    table = pq.read_table(path)
    facts = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
    if facts.get("assessment") != TASK:
        raise ArtifactError(
            "this table holds no probes", file=path, expected="made by neuroprior probe", got=facts.get("artifact")
        )
    rows = [{k: None if v != v else v for k, v in row.items()} for row in table.to_pandas().to_dict("records")]
    with np.load(draws_file(path)) as file:
        keys, draws, subjects = file["keys"].tolist(), file["draws"], file["subjects"].tolist()
    named = {(a, b, c, d, e): values for (a, b, c, d, e), values in zip(keys, draws, strict=True)}
    return Assessment(tuple(Score(**row) for row in rows), named, tuple(subjects), facts)
