"""The subgroups part of a report: the same metric in every group of subjects, as a table and a forest plot.

A group's number is computed from the rows of its cases alone; groups come from the index (sex, age, site, scanner or any column of the
participants table). A small group has a wide interval, and one with fewer than three subjects has none: that is said, not hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assessments import _seeds
from ..assessments.fairness import Config, group_names
from ..assessments.significance import LOWER_IS_BETTER
from ..core.records import Score
from ..metrics import auroc
from ..metrics._bootstrap import FEWEST, interval, mean_interval
from . import assessed, figures
from ._rows import FLOOR, number, records, stem
from .scores import positive_class

if TYPE_CHECKING:
    import pandas as pd

METRIC = {"segmentation": "dice", "regression": "absolute_error", "classification": "auroc"}
"""Task -> the metric of its forest plot."""
AGE_EDGES = (40.0, 60.0)
"""Ages are cut at these years, as in the conformal intervals; any other number in thirds."""
MAX_GROUPS = 12
"""Of one column: a column with more values (a name, a date) makes no groups."""


def of_cases(values: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Column -> case -> group.

    Args:
        values: case -> column -> value, None where it is unknown.
        columns: to group by; one without two groups, or with more than ``MAX_GROUPS``, is left out.
    """
    config = Config(edges={"age": AGE_EDGES})
    made = {}
    for column in columns:
        cases = [case for case, found in values.items() if found.get(column) is not None]
        if not cases:
            continue
        edges = config if column == "age" else Config()
        names = group_names(column, [values[case][column] for case in cases], edges)
        groups = {case: name for case, name in zip(cases, names, strict=True) if name is not None}
        if 2 <= len(set(groups.values())) <= MAX_GROUPS:
            made[column] = groups
    return made


def forests(scores: pd.DataFrame, groups: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """What the page shows of each task: value, interval and count of every group and model, the gaps, and a forest plot.

    Args:
        scores: rows of the condition ``clean``; groups that the table itself has rows of (regions such as ``sex=F``) are taken from it.
        groups: column -> case -> group, of :func:`of_cases`.
    """
    made = []
    for task, target in dict.fromkeys(zip(scores["task"], scores["target"], strict=True)):
        frame = scores[(scores["task"] == task) & (scores["target"] == target) & (scores["condition"] == "clean")]
        frame = frame[~frame["model"].str.startswith(FLOOR)]
        block = _forest(str(task), str(target), frame, groups)
        if block is not None:
            made.append(block)
    return made


def _forest(task: str, target: str, frame: pd.DataFrame, groups: Mapping[str, Mapping[str, str]]) -> dict[str, Any] | None:
    metric = METRIC.get(task)
    cases = set(frame[frame["case"] != "all"]["case"])
    if metric is None or not cases:
        return None
    runs: dict[str, list[list[Score]]] = {}
    name = "probability" if metric == "auroc" else metric
    rows = frame[(frame["case"] != "all") & (frame["metric"] == name)]
    rows = rows[~rows["region"].str.contains(",")]
    positive = positive_class(frame) if metric == "auroc" else ""
    for model, part in rows.groupby("model", sort=False):
        runs.setdefault(stem(str(model)), []).append(records(part))
    lines: list[tuple[str, dict[str, tuple[float, float | None, float | None, int]]]] = []
    gaps = []
    parts: list[tuple[str, str, set[str]]] = [("", "all cases", cases)]
    for column, found in groups.items():
        here = sorted({group for case, group in found.items() if case in cases}, key=_natural)
        if len(here) >= 2:
            parts += [(column, f"{column} {group}", {case for case in cases if found.get(case) == group}) for group in here]
    ready = [
        line
        for line in assessed.of_table(frame[frame["case"] == "all"], "mae" if task == "regression" else metric)
        if line[0] not in groups
    ]
    if len(parts) == 1 and not ready:
        return None
    values: dict[tuple[str, str], dict[str, float]] = {}
    computed = []
    for column, label, members in parts:
        computed.append((column, label, {
            model: _value([[row for row in one if row.case in members] for one in found], metric, positive) for model, found in runs.items()
        }))  # fmt: skip
    for column, label, numbers in [*computed, *ready]:
        lines.append((label, {model: found for model, found in numbers.items() if np.isfinite(found[0])}))
        for model, found in numbers.items():
            if column and np.isfinite(found[0]):
                values.setdefault((column, model), {})[label] = found[0]
    for (column, model), found in values.items():
        if len(found) >= 2:
            best = min if metric in LOWER_IS_BETTER else max
            worst = max if metric in LOWER_IS_BETTER else min
            first, last = best(found, key=lambda k: found[k]), worst(found, key=lambda k: found[k])
            gaps.append(
                f"{model} by {column}: worst in {last} ({number(found[last])}), best in {first} ({number(found[first])}), gap {number(abs(found[first] - found[last]))}"
            )
    small = [label for label, found in lines if any(n < FEWEST for *_, n in found.values())]
    shown = metric.replace("_", " ")
    return {
        "name": f"{task} of {target}", "metric": shown, "gaps": gaps,
        "small": f"No interval: {', '.join(small)} (fewer than three subjects)." if small else "",
        "heads": ["group", *(f"{model}: {shown}" for model in runs)],
        "rows": [[label, *(_text(found.get(model)) for model in runs)] for label, found in lines],
        "figure": {
            "title": f"{shown} by group; dashed: all cases", "src": figures.forest([line for line in lines if line[1]], shown), "wide": True,
            "alt": f"Forest plot of {shown}, {task} of {target}. {'; '.join(gaps)}",
        },
    }  # fmt: skip


def _natural(group: str) -> tuple[int, str]:
    """``< 40`` before ``40 to 60`` before ``>= 60``."""
    return (0 if group.startswith("<") else 2 if group.startswith(">") else 1, group)


def _text(found: tuple[float, float | None, float | None, int] | None) -> str:
    if found is None:
        return "not defined"
    value, low, high, n = found
    between = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return f"{number(value)}{between} n={n}"


def _value(runs: Sequence[Sequence[Score]], metric: str, positive: str) -> tuple[float, float | None, float | None, int]:
    """Value, interval and number of subjects of one group; the mean over runs of a model with several seeds."""
    runs = [[row for row in one if row.value is not None] for one in runs]
    subjects = [row.subject for one in runs for row in one]
    if not subjects:
        return float("nan"), None, None, 0
    n = len(set(subjects))
    if metric != "auroc":
        value = float(np.mean([np.mean([float(row.value or 0) for row in one]) for one in runs if one]))
        if len(runs) > 1:
            return value, *_seeds.mean_interval(runs), n
        return value, *mean_interval(subjects, np.array([row.value for row in runs[0]], dtype=float), method="expanded"), n
    cases = sorted({row.case for one in runs for row in one})
    owner = {row.case: row.subject for one in runs for row in one}
    truth = np.array(
        [any(row.note.split(";")[0] == f"truth {positive}" for one in runs for row in one if row.case == case) for case in cases]
    )
    table = np.array([[{row.case: float(row.value or 0) for row in one}.get(case, np.nan) for case in cases] for one in runs])

    def mean(k: np.ndarray) -> float:
        return float(np.mean([auroc.auroc(truth[k], one[k]) for one in table]))

    if np.isnan(table).any() or truth.all() or not truth.any():
        return float("nan"), None, None, n
    low, high = interval([owner[case] for case in cases], mean, resamples=500, method="expanded")
    return mean(np.arange(len(cases))), low, high, n
