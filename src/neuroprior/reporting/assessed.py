"""What a score table says beyond accuracy, set apart for the page: groups, calibration, selective prediction, rare things, cost, and a k-shot curve.

The rows are told by their names alone (``sex=F`` is a group, ``coverage=0.8`` a share of answered cases, ``shots=5`` a place on a curve, ``auroc_gap``
a comparison of groups, ``device_hours`` a cost), so that a table is shown as far as it goes and an assessment that was not made is not missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assessments.significance import LOWER_IS_BETTER
from . import figures
from ._rows import CARD, COSTS, FLOOR, cell, missing, number, part_of, stem

if TYPE_CHECKING:
    import pandas as pd

FRONTS = ("device_hours", "seconds_per_case", "parameters")
"""Costs that a Pareto picture is drawn against, where they are known of two models."""
SECTIONS = {
    "groups": "Gaps between groups", "calibration": "Calibration before and after the temperature", "selective": "When only the surest cases are answered",
    "rare": "Rare classes and small lesions", "cost": "Cost",
}  # fmt: skip
"""Part -> its title, in order; every single group is in the forest plot's table."""


def sections(whole: pd.DataFrame, models: Sequence[str]) -> list[dict[str, Any]]:
    """For each part that has rows: ``title``, ``heads`` and ``rows`` of text, a column a model, the reasons in the last one.

    Args:
        whole: rows of the set of one task under one condition.
        models: in order.
    """
    made = []
    for part, title in SECTIONS.items():
        mine = whole[[part_of(m, r) == part for m, r in zip(whole["metric"], whole["region"], strict=True)]]
        if len(mine) == 0:
            continue
        shown = [model for model in models if model in set(mine["model"])]
        rows = []
        for metric, region in dict.fromkeys(zip(mine["metric"], mine["region"], strict=True)):
            found = mine[(mine["metric"] == metric) & (mine["region"] == region)]
            by_model = {row["model"]: row for row in found.to_dict("records")}
            notes = list(dict.fromkeys(row["note"] for row in by_model.values() if row["note"]))
            name = metric.replace("_", " ") + ("" if region == "all" else f" ({region})")
            rows.append([name, *(_cell(by_model[m]) if m in by_model else "" for m in shown), notes[0] if len(notes) == 1 else "; ".join(
                f"{stem(m)}: {row['note']}" for m, row in by_model.items() if row["note"])])  # fmt: skip
        told = any(row[-1] for row in rows)
        made.append({
            "title": title, "heads": ["metric", *shown, *(["note"] if told else [])], "rows": rows if told else [row[:-1] for row in rows],
        })  # fmt: skip
    return made


def _cell(row: Mapping[str, Any]) -> str:
    """A cost has no count; a large number is short."""
    value = row["value"]
    if not missing(value) and (abs(value) >= 1e4 or row["metric"] in COSTS):
        return f"{value:.3g}"
    return cell(row)


def reasons(whole: pd.DataFrame) -> list[str]:
    """Assessments that could not be made, each with its reason and the models that it is of."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in whole[whole["metric"] == "not_assessed"].itertuples():
        found.setdefault((str(row.region), str(row.note)), []).append(str(row.model))
    return [f"{assessment.replace('_', ' ')}: {reason} ({', '.join(models)})" for (assessment, reason), models in found.items()]


def of_table(whole: pd.DataFrame, metric: str) -> list[tuple[str, str, dict[str, tuple[float, float | None, float | None, int]]]]:
    """The groups that a table has rows of, as (column, label, model -> (value, low, high, n)); of several seeds the mean, without an interval.

    Args:
        whole: rows of the set of one task, floors left out.
        metric: whose value is drawn.
    """
    lines = []
    mine = whole[(whole["metric"] == metric) & whole["value"].notna()]
    for region in dict.fromkeys(mine["region"]):
        if part_of(metric, region) != "group":
            continue
        found: dict[str, list[dict[str, Any]]] = {}
        for row in mine[mine["region"] == region].to_dict("records"):
            found.setdefault(stem(row["model"]), []).append(row)
        of_model = {}
        for model, rows in found.items():
            low, high = (None if len(rows) > 1 or missing(rows[0][key]) else rows[0][key] for key in ("low", "high"))
            of_model[model] = float(np.mean([row["value"] for row in rows])), low, high, int(rows[0]["n"])
        lines.append((str(region).split("=")[0], str(region).replace("=", " ", 1), of_model))
    return lines


def front(points: Mapping[str, tuple[float, float]], *, less_is_better: bool) -> list[str]:
    """The models that no other beats in both cost and metric; equal ones stay.

    Args:
        points: model -> (cost, metric).
        less_is_better: of the metric.
    """
    sign = -1 if less_is_better else 1

    def beaten(model: str) -> bool:
        cost, value = points[model]
        return any(
            c <= cost and sign * v >= sign * value and (c < cost or sign * v > sign * value)
            for other, (c, v) in points.items()
            if other != model
        )

    return [model for model in points if not beaten(model)]


def pareto(whole: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """A picture a cost that is known of at least two models: the metric against it, the front marked."""
    metric = (CARD.get(task) or ("",))[0]
    rows = whole[~whole["model"].str.startswith(FLOOR) & whole["value"].notna()]
    quality = rows[(rows["metric"] == metric) & ~rows["region"].str.contains("[,=]")]
    made = []
    for cost in FRONTS:
        points: dict[str, tuple[float, float]] = {}
        for model in dict.fromkeys(rows["model"].map(stem)):
            value = quality[quality["model"].map(stem) == model]["value"]
            price = rows[(rows["model"].map(stem) == model) & (rows["metric"] == cost) & (rows["region"] == "all")]["value"]
            if len(value) and len(price):
                points[model] = float(price.mean()), float(value.mean())
        if len(points) < 2 or len({price for price, _ in points.values()}) < 2:
            continue
        best = front(points, less_is_better=metric in LOWER_IS_BETTER)
        said = "; ".join(f"{model} {number(value)} for {price:.3g}" for model, (price, value) in points.items())
        made.append({
            "title": f"{metric.replace('_', ' ')} against {COSTS[cost]}; joined: not beaten in both", "wide": False,
            "src": figures.pareto(points, best, metric.replace("_", " "), COSTS[cost]),
            "alt": f"{metric.replace('_', ' ')} against {COSTS[cost]}: {said}. Not beaten in both: {', '.join(best)}",
        })  # fmt: skip
    return made


def shots(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The k-shot curve of a table that has one (condition ``few-shot``), a line a starting point."""
    rows = frame[frame["region"].str.startswith("shots=") & frame["value"].notna()]
    if rows.empty:
        return []
    curves: dict[str, list[tuple[str, float, float | None, float | None]]] = {}
    for row in rows.to_dict("records"):
        low, high = (None if missing(row[key]) else row[key] for key in ("low", "high"))
        curves.setdefault(row["model"], []).append((row["region"].split("=")[1], row["value"], low, high))
    metric = str(rows["metric"].iloc[0]).replace("_", " ")
    said = "; ".join(f"{model}: " + ", ".join(f"{k} {number(v)}" for k, v, *_ in points) for model, points in curves.items())
    return [{
        "title": f"{metric} from few labelled subjects", "src": figures.shots(curves, metric), "wide": False,
        "alt": f"{metric} against the number of labelled subjects. {said}",
    }]  # fmt: skip


def risk_coverage(cases: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """Risk against coverage of masks and numbers whose cases say how sure the model is; a failed case is the least sure."""
    loss_of = {"segmentation": ("dice", "1 - Dice"), "regression": ("absolute_error", "absolute error")}.get(task)
    if loss_of is None or "confidence" not in set(cases["metric"]):
        return []
    metric, words = loss_of
    curves = {}
    for model, part in cases[~cases["region"].str.contains(",")].groupby("model", sort=False):
        value = part[part["metric"] == metric].groupby("case")["value"].mean().dropna()
        sure = part[part["metric"] == "confidence"].groupby("case")["value"].mean().reindex(value.index)
        if int(sure.notna().sum()) < 3 or len(set(sure.dropna())) < 2:
            continue
        loss = 1 - value if metric == "dice" else value
        order = np.argsort(-sure.fillna(-np.inf).to_numpy(), kind="stable")
        curves[str(model)] = np.cumsum(loss.to_numpy()[order]) / np.arange(1, len(order) + 1)
    if not curves:
        return []
    said = "; ".join(
        f"{model} {number(c[max(0, len(c) // 2 - 1)])} at half, {number(c[-1])} at all" for model, c in curves.items()
    )
    return [{
        "title": f"Risk against coverage, the surest first ({words})", "src": figures.risks(curves, f"mean {words}"), "wide": False,
        "alt": f"Mean {words} of the surest cases against the share that is answered: {said}",
    }]  # fmt: skip
