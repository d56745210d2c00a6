"""Does a model serve all groups alike? Gaps between groups, worst groups, calibration and coverage by group; FOMO26's fairness score.

:func:`assess` takes the answers of any task and any of its metrics. For each variable it gives every group's value, the largest difference of two groups
with a permutation p-value, and the worst group. A group with few subjects is shown with what its interval can say (with two subjects: nothing) and is
not compared.

FOMO26's score is the mean over variables of 1 - (best group - worst group); :func:`assess_probe` gives it for a linear probe. A variable is a column such as sex, age group or scanner; a group's performance is a score in [0, 1] over its members, by default the
one-vs-rest AUROC. What the organisers leave open is decided here: a number with more than ``bins`` values is cut into ``bins`` groups
of equal size (or at given edges), a group with fewer than ``least`` subjects or with one class only is left out and told, and a
variable with fewer than two groups left has no gap and is left out of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ..core.config import Config as BaseConfig
from ..core.errors import InputError
from ..core.records import Score
from ..metrics._bootstrap import interval
from ..metrics.classification import balanced_accuracy, macro_f1
from ..metrics.one_vs_rest import auroc_one_vs_rest
from . import _subgroups
from ._answers import Answers, Groups, not_assessed
from .linear_probe import Probed


class Config(BaseConfig):
    """Settings of the fairness score."""

    metric: Literal["auroc", "macro_f1", "balanced_accuracy"] = "auroc"
    """A group's performance."""
    bins: int = Field(default=3, ge=2)
    """Groups of a number."""
    edges: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Variable -> rising edges, instead of groups of equal size; (40, 60) makes three groups."""
    least: int = Field(default=5, ge=1)
    """Subjects that a group needs."""
    resamples: int = Field(default=1000, ge=0)
    """Of the bootstrap over subjects, for a probe."""
    variables: tuple[str, ...] = ("sex", "age")
    """Whose groups are compared, where they are known; ``assess`` only."""
    metrics: dict[str, tuple[str, ...]] = Field(
        default_factory=lambda: {
            "segmentation": ("dice", "nsd", "lesion_f1"),
            "classification": ("auroc", "balanced_accuracy", "brier", "ece"),
            "regression": ("mae", "mean_error", "coverage"),
        }
    )
    """Task -> the metrics that groups are compared by; ``assess`` only."""


@dataclass(frozen=True)
class Group:
    """One group of one variable.

    Attributes:
        variable, name: such as ``sex`` and ``F``.
        rows: (k,) row numbers.
        value: its performance, NaN when it is left out.
        subjects: how many.
        reason: why it is left out.
    """

    variable: str
    name: str
    rows: np.ndarray
    value: float
    subjects: int
    reason: str = ""


def score(groups: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over variables of 1 - (best group - worst group).

    Args:
        groups: variable -> group -> performance in [0, 1]; NaN groups and variables with fewer than two others are left out.

    Returns:
        In [0, 1], 1 when no group is behind another; NaN when no variable has two groups.
    """
    gaps = []
    for values in groups.values():
        defined = [value for value in values.values() if np.isfinite(value)]
        if len(defined) >= 2:
            gaps.append(max(defined) - min(defined))
    return float(np.mean([1 - gap for gap in gaps])) if gaps else float("nan")


def group_names(variable: str, values: Sequence[Any], config: Config) -> list[str | None]:
    """The group of each row; None where the value is missing.

    Args:
        variable: its name, for ``config.edges``.
        values: text, or numbers; a number with more than ``config.bins`` values is cut.
        config: bins and edges.

    Raises:
        InputError: edges that do not rise, or edges for a variable that is no number.
    """
    missing = [
        v is None or (isinstance(v, float) and np.isnan(v)) or str(v).strip().lower() in {"", "n/a", "nan"} for v in values
    ]
    present = [v for v, gone in zip(values, missing, strict=True) if not gone]
    try:
        numbers = np.array([float(v) for v in present])
    except (TypeError, ValueError):
        numbers = None
    edges = config.edges.get(variable)
    if edges is not None and (numbers is None or list(edges) != sorted(set(edges))):
        raise InputError(
            f"the edges of {variable!r} cannot be used", expected="a column of numbers and rising edges", got=list(edges)
        )
    if numbers is not None and edges is None and len(np.unique(numbers)) > config.bins:
        inner = np.quantile(numbers, np.linspace(0, 1, config.bins + 1)[1:-1])
        edges = tuple(float(edge) for edge in np.unique(inner))
    if edges is None or numbers is None:
        return [None if gone else str(v) for v, gone in zip(values, missing, strict=True)]
    places = iter(np.searchsorted(edges, numbers, side="right"))
    words = [f"< {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges)), f">= {edges[-1]:g}"]
    return [None if gone else words[next(places)] for gone in missing]


def groups_of(
    truth: np.ndarray,
    probability: np.ndarray,
    subjects: Sequence[str],
    variables: Mapping[str, Sequence[Any]],
    config: Config | None = None,
) -> list[Group]:
    """Every group's performance.

    Args:
        truth: (n,) class numbers.
        probability: (n, classes).
        subjects: (n,) who each row is.
        variables: name -> (n,) values.
        config: metric, bins, least.

    Raises:
        InputError: a variable's length differs.
    """
    config = config or Config()
    who = np.array(subjects)
    made = []
    for variable, values in variables.items():
        if len(values) != len(truth):
            raise InputError(f"the variable {variable!r} has another length", expected=len(truth), got=len(values))
        names = np.array(group_names(variable, values, config), dtype=object)
        for name in sorted({name for name in names if name is not None}):
            rows = np.flatnonzero(names == name)
            count = len(np.unique(who[rows]))
            value = performance(truth[rows], probability[rows], config)
            reason = (
                f"{count} subjects, {config.least} are needed"
                if count < config.least
                else ""
                if np.isfinite(value)
                else "one class only"
            )
            made.append(Group(variable, str(name), rows, float("nan") if reason else value, count, reason))
    return made


def performance(truth: np.ndarray, probability: np.ndarray, config: Config) -> float:
    """One group's score in [0, 1]; NaN with one class only."""
    if len(np.unique(truth)) < 2:
        return float("nan")
    if config.metric == "auroc":
        return auroc_one_vs_rest(truth, probability)
    guess = probability.argmax(1)
    return macro_f1(truth, guess) if config.metric == "macro_f1" else balanced_accuracy(truth, guess)


def assess(found: Answers, groups: Groups, info: Mapping[str, Any], config: Config | None = None) -> list[Score]:
    """Every group's value of each metric, the gap and the worst group of each variable.

    Args:
        found: answers of one model.
        groups: case -> variable -> group; numbers must be cut into groups before.
        info: not used.
        config: variables, metrics, least.

    Returns:
        Rows of the metric itself in regions ``sex=F``; ``<metric>_gap`` (largest minus smallest) and ``<metric>_worst_group`` in the region ``sex``; for a
        classification ``fairness`` (1 - gap of the AUROC) by variable and over all. One row with the reason where no variable is known.
    """
    config = config or Config()
    context = found.context
    known = [name for name in config.variables if any(groups.get(case, {}).get(name) for case in found.cases)]
    if not known:
        return [not_assessed(context, "fairness", f"none of {', '.join(config.variables)} is known of the cases")]
    made: list[Score] = []
    auroc_gaps = []
    for variable in known:
        labels = found.of(groups, variable)
        for metric in config.metrics.get(context.task, ()):
            if metric not in found.measures:
                continue
            parts = _subgroups.parts(found, labels, metric, config.least)
            made += _subgroups.group_rows(found, variable, metric, parts)
            rows = _gap(found, variable, metric, parts)
            made += rows
            if metric == "auroc" and rows[0].value is not None:
                auroc_gaps.append(rows[0].value)
                made.append(
                    context.row("all", "all", "fairness", variable, 1 - rows[0].value, "1 - gap of the AUROC", n=rows[0].n)
                )
    if auroc_gaps:
        note = f"mean over {len(auroc_gaps)} variables of 1 - gap of the AUROC"
        made.append(
            context.row(
                "all", "all", "fairness", "all", float(np.mean([1 - gap for gap in auroc_gaps])), note, n=len(found.cases)
            )
        )
    return made


def _gap(found: Answers, variable: str, metric: str, parts: Sequence[_subgroups.Part]) -> list[Score]:
    """The gap and the worst group among those that are compared."""
    context = found.context
    compared = [part for part in parts if not part.reason]
    left = "; ".join(f"{variable}={part.name} left out: {part.reason}" for part in parts if part.reason)
    if len(compared) < 2:
        note = "; ".join(part for part in ("no two groups to compare", left) if part)
        return [context.row("all", "all", f"{metric}_gap", variable, float("nan"), note, n=0)]
    values = np.array([part.value for part in compared])
    gap = float(np.ptp(values))
    drawn = _subgroups.drawn(found, metric, compared)
    low, high = _subgroups.interval_of(None if drawn is None else np.ptp(drawn, axis=1), compared)
    p = _subgroups.by_chance(found, metric, compared, gap)
    worst = compared[_subgroups.worst(metric, compared)]
    told = ", ".join(f"{part.name} {part.value:.3g} (n = {part.rows.size})" for part in compared)
    note = "; ".join(part for part in (told, f"p = {p:.2g} when groups are dealt at random", left) if part)
    n = sum(part.rows.size for part in compared)
    row = replace(context.row("all", "all", f"{metric}_gap", variable, gap, note, n=n), low=low, high=high)
    mask = np.zeros(len(found.cases), dtype=bool)
    mask[worst.rows] = True
    last = found.measured(metric, mask, variable, f"worst group: {worst.name}")
    return [row, replace(last, metric=f"{metric}_worst_group")]


def assess_probe(
    probed: Probed, variables: Mapping[str, Sequence[Any]], *, model: str, target: str, config: Config | None = None
) -> list[Score]:
    """The fairness of a linear probe on its test part.

    Args:
        probed: a fitted probe (``linear_probe``).
        variables: name -> (n,) values of all rows that the probe was given.
        model, target: names for the table.
        config: metric, bins, least.

    Returns:
        ``fairness`` over all variables with its interval (subjects drawn with replacement), ``fairness`` of each variable as its region,
        and each group's performance, or why it is left out.
    """
    config = config or Config()
    rows = probed.parts.test
    truth, probability = probed.truth[rows], probed.probability[rows]
    who = [probed.subjects[k] for k in rows]
    cut: dict[str, list[Any]] = {}
    for name, values in variables.items():
        if len(values) != len(probed.truth):
            raise InputError(f"the variable {name!r} has another length", expected=len(probed.truth), got=len(values))
        cut[name] = [values[k] for k in rows]
    groups = groups_of(truth, probability, who, cut, config)

    def fairness(drawn: np.ndarray, only: str | None = None) -> float:
        found: dict[str, dict[str, float]] = {}
        for group in groups:
            if group.reason or only not in (None, group.variable):
                continue
            inside = drawn[np.isin(drawn, group.rows)]
            value = performance(truth[inside], probability[inside], config) if len(inside) else float("nan")
            found.setdefault(group.variable, {})[group.name] = value
        return score(found)

    def row(metric: str, region: str, value: float, between: tuple[float | None, float | None], n: int, note: str) -> Score:
        return Score(
            model,
            "fairness",
            target,
            "all",
            "all",
            metric,
            region,
            "clean",
            value if np.isfinite(value) else None,
            *between,
            n,
            note,
        )

    everyone = np.arange(len(rows))
    made = []
    for only in (None, *variables):
        value = fairness(everyone, only)
        draws = config.resamples and np.isfinite(value)
        between = interval(who, lambda k, only=only: fairness(k, only), resamples=config.resamples) if draws else (None, None)
        note = f"groups compared by {config.metric}" if np.isfinite(value) else "no variable has two groups to compare"
        made.append(row("fairness", only or "all", value, between, len(rows), note))
    for group in groups:
        made.append(
            row(config.metric, f"{group.variable}={group.name}", group.value, (None, None), len(group.rows), group.reason)
        )
    return made
