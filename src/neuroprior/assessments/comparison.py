"""Comparison: several models in one order, and how far the data support it.

Each metric ranks the models by its value on all cases (ties averaged; a model on which it is not defined comes last); ranks are
averaged over the metrics of a task, then over tasks with their weights, and the models are ranked by that. The whole
is done again on bootstrap draws of each task's subjects (Wiesenfarth et al. 2021, challengeR): intervals of the ranks,
Kendall's tau between the order of all cases and of each draw, and the share of draws in which one model is ahead of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from ..core import seeds
from ..core.errors import InputError
from ..core.records import Score
from ..metrics import paired
from ..metrics._bootstrap import FEWEST, bounds, counts
from .significance import Measure, measure

BY_TASK: Mapping[str, tuple[str, ...]] = {
    "segmentation": ("dice", "nsd"),
    "classification": ("auroc",),
    "regression": ("absolute_error", "pearson_r"),
}
"""The metrics that rank the models of a task, as in FOMO25."""


@dataclass(frozen=True)
class Ranking:
    """Models in one order.

    Attributes:
        models: (m,) from first to last.
        rank: (m,) final ranks, 1 is first, ties averaged.
        mean_rank: (m,) weighted mean over tasks, from which they follow.
        low, high: (m,) the 95 % bootstrap interval of the final rank.
        by_measure: (task, metric) -> (m,) ranks.
        values: (task, metric) -> (m,) the metric itself.
        by_task: task -> (m,) mean rank.
        ahead: (m, m) share of draws in which the row's model is before the column's, ties counted half.
        tau: Kendall's tau of each draw's order with the final one, (draws,); NaN where a draw ties all.
        subjects: task -> how many were drawn.
        level: of the support: a neighbour counts as behind when it is in this share of draws.
    """

    models: tuple[str, ...]
    rank: np.ndarray
    mean_rank: np.ndarray
    low: np.ndarray
    high: np.ndarray
    by_measure: Mapping[tuple[str, str], np.ndarray]
    values: Mapping[tuple[str, str], np.ndarray]
    by_task: Mapping[str, np.ndarray]
    ahead: np.ndarray
    tau: np.ndarray
    subjects: Mapping[str, int]
    level: float = 0.975

    @property
    def mean_tau(self) -> float:
        """Mean of Kendall's tau over the draws: 1 is an order that no draw changes; NaN when no draw has one."""
        defined = self.tau[np.isfinite(self.tau)]
        return float(defined.mean()) if defined.size else float("nan")

    @property
    def supported(self) -> bool:
        """Whether each model is ahead of the next in enough of the draws."""
        return min(self.subjects.values()) >= FEWEST and all(
            self.ahead[k, k + 1] >= self.level for k in range(len(self.models) - 1)
        )

    @property
    def sentence(self) -> str:
        """How far the data support the order, in words."""
        few = [task for task, n in self.subjects.items() if n < FEWEST]
        if few:
            return f"Nothing can be said of the order: {', '.join(few)} has fewer than {FEWEST} subjects."
        order = self.models[0] + "".join(
            f" {'=' if self.rank[k] == self.rank[k - 1] else '>'} {self.models[k]}" for k in range(1, len(self.models))
        )
        tau = f"Kendall's tau between draws {self.mean_tau:.2f}" if np.isfinite(self.mean_tau) else "all models tie"
        if self.supported:
            return f"The order {order} is supported by the data: each model is ahead of the next in at least {self.level:.1%} of the draws ({tau})."
        doubtful = [
            f"{self.models[k]} is ahead of {self.models[k + 1]} in {self.ahead[k, k + 1]:.0%} of the draws only "
            f"(ranks {self.low[k]:g}-{self.high[k]:g} and {self.low[k + 1]:g}-{self.high[k + 1]:g})"
            for k in range(len(self.models) - 1)
            if self.ahead[k, k + 1] < self.level
        ]
        return f"The order {order} is not supported by the data: {'; '.join(doubtful)} ({tau})."


def ranks(values: np.ndarray, *, higher_is_better: bool = True) -> np.ndarray:
    """Ranks along the last axis, 1 is best, ties averaged, NaN last.

    Args:
        values: (..., m); differences below 1e-12 of the largest value are ties.
        higher_is_better: or lower.
    """
    numbers = np.asarray(values, dtype=float)
    largest = np.max(np.abs(numbers), axis=-1, keepdims=True, initial=0, where=np.isfinite(numbers))
    with np.errstate(divide="ignore", invalid="ignore"):
        rounded = np.where(largest > 0, np.round(numbers / largest, 12), numbers)
    return rankdata(np.where(np.isfinite(rounded), -rounded if higher_is_better else rounded, np.inf), axis=-1)


def measures(
    scores: Sequence[Score], metrics: Mapping[str, Sequence[str]] = BY_TASK, *, condition: str = "clean"
) -> list[Measure]:
    """All measures of the tasks in a table of scores, the models of each in one order.

    Args:
        scores: rows of several models and any number of tasks; trivial floors (``floor: ...``) are left out.
        metrics: task -> its metrics.
        condition: of the inputs.

    Raises:
        InputError: a task without metrics, or a model that was not tried on every task.
    """
    rows = [row for row in scores if not row.model.startswith("floor:") and row.condition == condition]
    models = tuple(dict.fromkeys(row.model for row in rows))
    made = []
    for task, target in dict.fromkeys((row.task, row.target) for row in rows):
        here = [row for row in rows if (row.task, row.target) == (task, target)]
        missing = [model for model in models if model not in {row.model for row in here}]
        if missing:
            raise InputError(
                f"{', '.join(missing)} has no scores of {task} of {target}",
                next_step="rank only models that were tried on every task",
            )
        if task not in metrics:
            raise InputError(f"no metric ranks the task {task!r}", expected=", ".join(metrics))
        for name in metrics[task]:
            found = measure(here, name, condition=condition)
            order = [found.models.index(model) for model in models]
            made.append(Measure(found.task, name, models, found.subjects, found.values[order], found.truth, found.left_out))
    return made


def rank(
    found: Sequence[Measure],
    *,
    weights: Mapping[str, float] | None = None,
    resamples: int = 1000,
    level: float = 0.975,
    seed: int = 0,
) -> Ranking:
    """Models in one order with its support.

    Args:
        found: measures of the same models in the same order; metrics of one task share its draws of subjects.
        weights: task -> weight; equal by default.
        resamples: draws.
        level: share of draws in which a model must be ahead for its place to be supported.
        seed: of the draws.

    Raises:
        InputError: no measure, models that differ, or weights that do not name the tasks.
    """
    share = shares(found, weights)
    values = [one.of(np.arange(one.values.shape[1])) for one in found]
    return placed(found[0].models, found, values, [_draws(one, resamples, seed) for one in found], share, level)[0]


def shares(found: Sequence[Measure], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Task -> its part of the whole, summing to one, of measures that can be ranked together.

    Raises:
        InputError: no measure, models that differ, or weights that do not name the tasks.
    """
    if not found:
        raise InputError("there is nothing to rank by")
    if any(one.models != found[0].models for one in found):
        raise InputError("the measures are of different models", expected=", ".join(found[0].models))
    tasks = list(dict.fromkeys(one.task for one in found))
    if weights is not None and set(weights) != set(tasks):
        raise InputError("the weights do not name the tasks", expected=", ".join(tasks), got=", ".join(weights))
    share = {task: 1.0 if weights is None else float(weights[task]) for task in tasks}
    if min(share.values()) < 0 or sum(share.values()) <= 0:
        raise InputError("the weights of the tasks must be positive", got=list(share.values()))
    return {task: part / sum(share.values()) for task, part in share.items()}


def placed(
    models: Sequence[str], found: Sequence[Measure], values: Sequence[np.ndarray], drawn: Sequence[np.ndarray], share: Mapping[str, float],
    level: float,
) -> tuple[Ranking, np.ndarray]:  # fmt: skip
    """The order of models from what was measured and what it was in each draw: metrics ranked, averaged within tasks, then over tasks.

    Args:
        models: m names.
        found: the measures, for their tasks and metrics.
        values: (m,) for each measure.
        drawn: (draws, m) for each measure.
        share: task -> its part of the whole, summing to one; of the tasks of ``found``.
        level: share of draws in which a model must be ahead for its place to be supported.

    Returns:
        The ranking, and (draws, m) the final rank in each draw, in the ranking's order.
    """
    keys = [(one.task, one.metric) for one in found]
    of_all = {
        key: ranks(value, higher_is_better=one.higher_is_better) for key, one, value in zip(keys, found, values, strict=True)
    }
    again = {key: ranks(value, higher_is_better=one.higher_is_better) for key, one, value in zip(keys, found, drawn, strict=True)}

    def by_task(of: Mapping[tuple[str, str], np.ndarray]) -> dict[str, np.ndarray]:
        return {task: np.mean([place for key, place in of.items() if key[0] == task], 0) for task in share}

    def whole(of: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
        return np.tensordot(np.array(list(share.values())), np.array(list(by_task(of).values())), 1)

    mean = whole(of_all)
    order = np.argsort(mean, kind="stable")
    final = ranks(mean, higher_is_better=False)[order]
    each = ranks(whole(again), higher_is_better=False)[:, order]
    low, high = np.quantile(each, [0.025, 0.975], axis=0, method="inverted_cdf")
    ahead = ((each[:, :, None] < each[:, None, :]) + (each[:, :, None] == each[:, None, :]) / 2).mean(0)
    tau = np.array([paired.kendall_tau(final, one) for one in each])
    made = Ranking(
        tuple(models[k] for k in order), final, mean[order], low, high, {key: place[order] for key, place in of_all.items()},
        {key: value[order] for key, value in zip(keys, values, strict=True)}, {task: place[order] for task, place in by_task(of_all).items()},
        ahead, tau, {one.task: len(set(one.subjects)) for one in found}, level,
    )  # fmt: skip
    return made, each


@dataclass(frozen=True)
class OverSeeds:
    """One model over its training seeds, or its difference from another over theirs.

    Attributes:
        metric: what was measured.
        value: mean over seeds of the metric over all subjects (or the difference of two such means).
        low, high: 95 % interval when seeds and subjects are both drawn again; None with fewer than three subjects or two seeds.
        by_seed: (s,) the metric of each seed of the first model.
        subjects: how many.
        note: what the interval cannot say.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    by_seed: np.ndarray
    subjects: int
    note: str


def over_seeds(
    runs: Sequence[Sequence[Score]], metric: str, *, against: Sequence[Sequence[Score]] | None = None, region: str | None = None,
    resamples: int = 2000, seed: int = 0,
) -> OverSeeds:  # fmt: skip
    """A metric over training seeds and subjects, both drawn with replacement (``metrics/_bootstrap.py``, ``hierarchical``).

    Args:
        runs: the scores of each seed, of one task.
        metric: as in :func:`~neuroprior.assessments.significance.measure`.
        against: the scores of each seed of another model on the same subjects; its seeds are drawn apart, subjects together.
        region: of a segmentation.
        resamples, seed: of the bootstrap.

    Raises:
        InputError: fewer than two sets of scores, or no common case.
    """
    sides = [("first", runs), ("second", against or [])]
    named = [
        replace(row, model=f"{side} {k}")
        for side, found in sides
        for k, one in enumerate(found)
        for row in one
        if not row.model.startswith("floor:")
    ]
    found = measure(named, metric, region=region)
    of_side = [np.array([k for k, model in enumerate(found.models) if model.startswith(side)], dtype=int) for side, _ in sides]
    every = found.of(np.arange(found.values.shape[1]))

    def statistic(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
        return float(values[first].mean() - (values[second].mean() if second.size else 0.0))

    groups = found.rows_of_subjects()
    n = len(groups)
    few = min(side.size for side in of_side if side.size)
    low = high = None
    if n >= FEWEST and few >= 2:
        draw = seeds.generator(seed, "bootstrap", "seeds")
        drawn = []
        for _ in range(resamples):
            first, second = (draw.choice(side, side.size) if side.size else side for side in of_side)
            rows = np.concatenate([groups[k] for k in draw.integers(0, n, n)])
            drawn.append(statistic(found.of(rows), first, second))
        low, high = bounds(np.array(drawn), 0.95, n)
    note = f"{few} seeds say little of the spread between seeds; five or more do" if few < 5 else ""
    return OverSeeds(metric, statistic(every, *of_side), low, high, every[of_side[0]], n, note)


def _draws(one: Measure, resamples: int, seed: int) -> np.ndarray:
    """(resamples, m) the metric on bootstrap draws of its subjects; measures of one task and the same subjects share them."""
    groups = one.rows_of_subjects()
    n = len(groups)
    key = seeds.entropy(seed, "rank", one.task) % 2**31
    weights = counts(n, resamples=resamples, seed=key)
    if one.truth is None:
        sizes = np.array([len(rows) for rows in groups], dtype=float)
        totals = np.array([one.values[:, rows].sum(1) for rows in groups])
        return weights @ totals / (weights @ sizes)[:, None]
    return np.array([
        one.of(np.concatenate([np.tile(groups[k], int(times)) for k, times in enumerate(row) if times])) for row in weights
    ])  # fmt: skip
