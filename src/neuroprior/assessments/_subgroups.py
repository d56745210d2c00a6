"""Groups of cases compared by a metric: each with its interval, the gap between them, and whether chance makes as large a one.

A largest-minus-smallest gap is never negative, and grows with the number of groups and with how small they are, so its interval says little of
whether there is a difference at all. Beside it stands a permutation p-value: how often groups dealt to the subjects at random are as far apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core import seeds
from ..core.records import Score
from ..metrics._bootstrap import FEWEST, bounds, counts
from ._answers import Answers
from .significance import LOWER_IS_BETTER

PERMUTATIONS, PERMUTATIONS_OF_A_SET = 1000, 200
"""How often groups are dealt anew for a metric that is a mean over cases, and for one of a whole set."""


@dataclass(frozen=True)
class Part:
    """One group.

    Attributes:
        name: of the group.
        rows: (k,) numbers of its cases that have a value.
        subjects: how many.
        value: the metric.
        reason: why it is not compared; empty where it is.
    """

    name: str
    rows: np.ndarray
    subjects: int
    value: float
    reason: str = ""


def value_of(found: Answers, metric: str, rows: np.ndarray) -> float:
    """The metric over some cases; NaN where it is not defined."""
    statistic = found.measures[metric]
    if not rows.size:
        return float("nan")
    return float(statistic[rows].mean()) if isinstance(statistic, np.ndarray) else statistic(rows)


def with_value(found: Answers, metric: str) -> np.ndarray:
    """(n,) bool: the cases that the metric can be computed from."""
    statistic = found.measures[metric]
    return np.isfinite(statistic) if isinstance(statistic, np.ndarray) else np.ones(len(found.cases), dtype=bool)


def parts(found: Answers, labels: np.ndarray, metric: str, least: int) -> list[Part]:
    """The groups of a variable, in sorted order.

    Args:
        found: answers.
        labels: (n,) group names, empty where not known.
        metric: of ``found.measures``.
        least: subjects below which a group is not compared.
    """
    made = []
    usable = with_value(found, metric)
    for name in sorted({str(label) for label in labels} - {""}):
        rows = np.flatnonzero((labels == name) & usable)
        n = len({found.subjects[k] for k in rows})
        value = value_of(found, metric, rows)
        reason = ""
        if n < least:
            reason = f"{n} subject{'' if n == 1 else 's'}, {least} are needed to be compared"
        elif not np.isfinite(value):
            reason = "one class only, or too few cases"
        made.append(Part(name, rows, n, value, reason))
    return made


def group_rows(found: Answers, variable: str, metric: str, groups: Sequence[Part]) -> list[Score]:
    """A row for each group: ``variable=group``."""
    made = []
    for one in groups:
        mask = np.zeros(len(found.cases), dtype=bool)
        mask[one.rows] = True
        made.append(found.measured(metric, mask, f"{variable}={one.name}", one.reason if one.subjects else ""))
    return made


def drawn(found: Answers, metric: str, groups: Sequence[Part]) -> np.ndarray | None:
    """(draws, groups) the metric of each group when its subjects are drawn again; None with a group of fewer than three."""
    context = found.context
    if context.resamples == 0 or min(one.subjects for one in groups) < FEWEST:
        return None
    statistic = found.measures[metric]
    columns = []
    for number, one in enumerate(groups):
        names = np.array([found.subjects[k] for k in one.rows])
        _, who = np.unique(names, return_inverse=True)
        seed = seeds.entropy(context.seed, "group", number) % 2**31
        if isinstance(statistic, np.ndarray):
            total, size = np.bincount(who, statistic[one.rows]), np.bincount(who).astype(float)
            weights = counts(len(size), resamples=context.resamples, seed=seed)
            columns.append(weights @ total / (weights @ size))
        else:
            weights = counts(int(who.max()) + 1, resamples=min(context.resamples, 500), seed=seed).astype(int)
            columns.append(np.array([statistic(one.rows[np.repeat(np.arange(who.size), row[who])]) for row in weights]))
    return np.stack(columns, 1)


def interval_of(values: np.ndarray | None, groups: Sequence[Part]) -> tuple[float | None, float | None]:
    """The expanded percentile interval of a function of drawn groups, for as many subjects as the smallest group has."""
    if values is None:
        return None, None
    return bounds(values, 0.95, min(one.subjects for one in groups))


def by_chance(found: Answers, metric: str, groups: Sequence[Part], seen: float) -> float:
    """p-value of a largest-minus-smallest difference when the groups are dealt to the subjects (or cases) at random.

    Args:
        found: answers.
        metric: of ``found.measures``.
        groups: compared ones, at least two.
        seen: the difference.
    """
    rows = np.concatenate([one.rows for one in groups])
    label = np.repeat(np.arange(len(groups)), [one.rows.size for one in groups])
    names = np.array([found.subjects[k] for k in rows])
    unique, who = np.unique(names, return_inverse=True)
    of_subject = np.full(len(unique), -1)
    of_subject[who] = label
    whole = bool((of_subject[who] == label).all())  # each subject in one group: subjects are dealt, else cases
    statistic = found.measures[metric]
    times = PERMUTATIONS if isinstance(statistic, np.ndarray) else PERMUTATIONS_OF_A_SET
    draw = seeds.generator(found.context.seed, "groups at random")
    as_far = 0
    for _ in range(times):
        dealt = draw.permutation(of_subject)[who] if whole else draw.permutation(label)
        if isinstance(statistic, np.ndarray):
            size = np.bincount(dealt, minlength=len(groups))
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.bincount(dealt, statistic[rows], minlength=len(groups)) / size
        else:
            values = np.array([value_of(found, metric, rows[dealt == k]) for k in range(len(groups))])
        values = values[np.isfinite(values)]
        as_far += values.size >= 2 and float(np.ptp(values)) >= seen - 1e-12
    return (1 + as_far) / (1 + times)


def worst(metric: str, groups: Sequence[Part]) -> int:
    """The number of the group that the metric serves worst; of a signed error the one furthest from 0."""
    values = np.array([one.value for one in groups])
    if metric == "mean_error":
        return int(np.argmax(np.abs(values)))
    return int(np.argmax(values) if metric in LOWER_IS_BETTER else np.argmin(values))
