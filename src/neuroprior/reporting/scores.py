"""The scores part of a report: the card, the tables, paired differences and figures of each task, from score tables alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assessments.accuracy import paired_difference
from ..assessments.significance import LOWER_IS_BETTER
from ..core.records import Score
from . import figures

if TYPE_CHECKING:
    import pandas as pd

ORDER = (
    "dice", "nsd", "hd95_mm", "lesion_f1", "lesion_recall", "empty_specificity", "volume_difference_ml", "auroc", "auprc",
    "balanced_accuracy", "f1", "sensitivity", "specificity", "ece", "brier", "mae", "rmse", "pearson_r",
)  # fmt: skip
"""The order of metrics in tables; others follow by name."""
CARD = {
    "segmentation": ("dice", "nsd", "lesion_f1"),
    "classification": ("auroc", "balanced_accuracy", "ece"),
    "regression": ("mae", "pearson_r"),
}
"""Task -> the metrics that the card shows."""
PER_CASE = {"segmentation": "dice", "regression": "absolute_error", "classification": "correct"}
"""Task -> the metric by which models are compared case by case and cases are called best or worst."""
MAX_CASE_ROWS = 400
WIDTH = 240
"""Of a whisker drawing, in pixels."""


def number(value: Any) -> str:
    """A number as a table shows it; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def cell(row: Mapping[str, Any]) -> str:
    """A score with its interval and count."""
    if row["value"] is None or row["value"] != row["value"]:
        return "not defined"
    between = "" if row["low"] is None or row["low"] != row["low"] else f" [{number(row['low'])}, {number(row['high'])}]"
    return f"{number(row['value'])}{between} n={row['n']}"


def is_floor(model: str) -> bool:
    """Whether a model's name says that it is a trivial prediction."""
    return model.startswith("floor")


def tasks(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page shows of each task and target.

    Args:
        scores: rows of :class:`neuroprior.core.records.Score`; only those of the condition ``clean`` are shown here.

    Returns:
        For each task: ``name``, ``card``, ``models``, ``rows``, ``differences``, ``figures`` (title, src, alt), ``extremes``, ``cases``.
    """
    made = []
    for task, target, everything in _by_task(scores):
        frame = everything[everything["condition"] == "clean"]
        if frame.empty:
            continue
        whole = frame[frame["case"] == "all"]
        models = sorted(dict.fromkeys(frame["model"]), key=is_floor)
        cases = frame[(frame["case"] != "all") & ~frame["model"].map(is_floor)]
        made.append({
            "name": f"{task} of {target}", "task": task, "target": target,
            "card": _card(whole, models, task),
            "models": [{"model": model, "floor": is_floor(model)} for model in models],
            "rows": _table(whole, models, target),
            "differences": differences(frame, models, task),
            "figures": _figures(frame, task, target),
            "extremes": _extremes(cases, task),
            "cases": [
                {"case": r.case, "model": r.model, "metric": r.metric, "region": r.region, "value": number(r.value), "note": r.note}
                for r in cases.head(MAX_CASE_ROWS).itertuples()
            ],
            "cases_left_out": max(0, len(cases) - MAX_CASE_ROWS),
        })  # fmt: skip
    return made


def _by_task(scores: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Task, target and their rows, in order of first appearance."""
    for task, target in dict.fromkeys(zip(scores["task"], scores["target"], strict=True)):
        yield str(task), str(target), scores.loc[(scores["task"] == task) & (scores["target"] == target)]


def _table(whole: pd.DataFrame, models: Sequence[str], target: str) -> list[dict[str, Any]]:
    """A row a metric and region, a cell a model: there are many metrics and few models."""
    pairs = sorted(
        set(zip(whole["metric"], whole["region"], strict=True)),
        key=lambda pair: (ORDER.index(pair[0]) if pair[0] in ORDER else len(ORDER), pair),
    )
    several = len({region for _, region in pairs}) > 1
    rows = []
    for metric, region in pairs:
        found = whole[(whole["metric"] == metric) & (whole["region"] == region)]
        by_model = {row["model"]: cell(row) for row in found.to_dict("records")}
        name = metric.replace("_", " ") + (f" ({region})" if several and region not in ("all", target) else "")
        better = "less is better" if metric in LOWER_IS_BETTER else "more is better"
        rows.append({"metric": name, "better": better, "cells": [by_model.get(model, "") for model in models]})
    return rows


def _card(whole: pd.DataFrame, models: Sequence[str], task: str) -> list[dict[str, Any]]:
    """The headline metrics, each with a whisker a model on one scale."""
    blocks = []
    for metric in CARD.get(task, ()):
        found = whole[(whole["metric"] == metric) & whole["value"].notna()]
        plain = [
            region for region in found["region"] if "," not in region and not region.startswith(("small", "medium", "large"))
        ]
        if not plain:
            continue
        found = found[found["region"] == plain[0]]
        rows = [row for model in models for row in found[found["model"] == model].head(1).to_dict("records")]
        ends = [row[key] for row in rows for key in ("value", "low", "high") if row[key] is not None and row[key] == row[key]]
        low, high = min(ends), max(ends)
        if metric not in LOWER_IS_BETTER and low >= 0 and high <= 1:
            low, high = min(low, 0.0), 1.0
        elif low >= 0:
            low = 0.0
        span = (high - low) or 1.0

        place = partial(_place, low=low, span=span)
        blocks.append({
            "metric": metric.replace("_", " "), "region": plain[0], "better": "less is better" if metric in LOWER_IS_BETTER else "more is better",
            "from": number(low), "to": number(high),
            "rows": [
                {
                    "model": row["model"], "floor": is_floor(row["model"]), "text": cell(row), "at": place(row["value"]),
                    "low": place(row["low"]),
                    "high": place(row["high"]),
                }
                for row in rows
            ],
        })  # fmt: skip
    return blocks


def _place(value: float | None, *, low: float, span: float) -> float | None:
    """Where a number lies on a whisker drawing, in pixels; None where there is none."""
    return None if value is None or value != value else round(8 + (WIDTH - 16) * (value - low) / span, 1)


def differences(frame: pd.DataFrame, models: Sequence[str], task: str) -> list[dict[str, Any]]:
    """Every two models over the same cases: mean paired difference, its interval, and what may be said of it."""
    real = [name for name in models if not is_floor(name)]
    metric = PER_CASE.get(task)
    if metric is None:
        return []
    rows = {
        name: [
            Score(**{k: (None if v != v else v) for k, v in row.items()})
            for row in frame[(frame["model"] == name) & (frame["metric"] == metric)].to_dict("records")
        ]
        for name in real
    }
    made = []
    for first, second in combinations(real, 2):
        for region in sorted(set(frame[frame["metric"] == metric]["region"])):
            found = paired_difference(rows[first], rows[second], metric, region)
            if found is None:
                continue
            better = (found["difference"] < 0) == (metric in LOWER_IS_BETTER)
            clear = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
            made.append({
                "pair": f"{first} – {second}", "metric": f"{metric.replace('_', ' ')} ({region})", "value": f"{found['difference']:+.3f}",
                "interval": "too few cases" if found["low"] is None else f"[{found['low']:+.3f}, {found['high']:+.3f}]", "n": found["n"],
                "verdict": f"{first if better else second} better" if clear else "no clear difference",
            })  # fmt: skip
    return made


def conditions(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Tables of what is not ``clean`` (contrast subsets, corruptions, groups): a row a condition, a column a headline metric and model.

    Args:
        scores: rows of :class:`neuroprior.core.records.Score`.

    Returns:
        For each task with other conditions: ``title``, ``note``, ``heads`` and ``rows`` of text, the clean row first.
    """
    made = []
    for task, target, frame in _by_task(scores[scores["case"] == "all"]):
        names = list(dict.fromkeys(frame["condition"]))
        if set(names) <= {"clean"}:
            continue
        names.sort(key=lambda name: name != "clean")
        models = [model for model in dict.fromkeys(frame["model"]) if not is_floor(model)]
        metrics = [metric for metric in CARD.get(task, ()) if (frame["metric"] == metric).any()]
        pairs = [(model, metric) for model in models for metric in metrics]
        rows = []
        for name in names:
            part = frame[frame["condition"] == name]
            found = {
                (row["model"], row["metric"]): cell(row) for row in part.to_dict("records") if row["region"] in ("all", target)
            }
            rows.append([name, *(found.get(pair, "") for pair in pairs)])
        made.append({
            "title": f"{task} of {target}", "note": "Every row asks the same cases under another condition; the intervals are over subjects.",
            "heads": ["condition", *(f"{model}: {metric.replace('_', ' ')}" for model, metric in pairs)], "rows": rows,
        })  # fmt: skip
    return made


def robustness(frame: pd.DataFrame, note: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the page shows of a stress test: curves over severity, and overall mean and degradation of every artefact.

    Args:
        frame: rows of ``assessments.robustness``.
        note: what the table says of itself.
        name: of the table.
    """
    whole = frame[frame["case"] == "all"]
    measures = [metric for metric in dict.fromkeys(whole["metric"]) if metric.endswith(("_overall", "_degradation"))]
    artefacts = list(dict.fromkeys(whole[whole["metric"].isin(measures)]["condition"]))
    blocks = []
    for model in dict.fromkeys(whole["model"]):
        part = whole[whole["model"] == model]
        found = {(row["condition"], row["metric"]): cell(row) for row in part.to_dict("records")}
        rows = [[artefact, *(found.get((artefact, metric), "") for metric in measures)] for artefact in artefacts]
        plots = []
        for metric in dict.fromkeys(metric.rsplit("_", 1)[0] for metric in measures):
            curves = _severity_curves(part[part["metric"] == metric], artefacts)
            if curves:
                plots.append(
                    _figure(f"{metric.replace('_', ' ')} over severity", figures.severities(curves, metric.replace("_", " ")))
                )
        blocks.append({
            "model": model, "heads": ["artefact", *(metric.replace("_", " ") for metric in measures)], "rows": rows, "figures": plots,
        })  # fmt: skip
    return {"name": name, "blocks": blocks, "severities": note.get("config", {}).get("severities", []), "pictures": []}


def _severity_curves(rows: pd.DataFrame, artefacts: Sequence[str]) -> dict[str, dict[int, float]]:
    """Artefact -> severity -> value; severity 0 is the clean scans. Of several regions the first is taken."""
    first: dict[str, float] = {}
    for row in rows.to_dict("records"):
        if row["value"] is not None and row["value"] == row["value"]:
            first.setdefault(row["condition"], float(row["value"]))
    curves = {}
    for artefact in artefacts:
        levels = {
            int(name.rsplit(" ", 1)[1]): value
            for name, value in first.items()
            if name.rsplit(" ", 1)[0] == artefact and name[-1].isdigit()
        }
        if levels and "clean" in first:
            curves[artefact] = {0: first["clean"], **levels}
    return curves


def _figures(frame: pd.DataFrame, task: str, target: str) -> list[dict[str, str]]:
    cases = frame[(frame["case"] != "all") & ~frame["model"].map(is_floor)]
    if task == "regression":
        wide = {
            name: cases[cases["metric"] == name].pivot_table(index="case", columns="model", values="value")
            for name in ("truth", "predicted")
        }
        shared = wide["predicted"].dropna()
        if len(shared) < 2:
            return []
        truth = wide["truth"].loc[shared.index].iloc[:, 0]
        guesses = {str(model): list(shared[model]) for model in shared}
        return [
            _figure("Predicted against true", figures.scatter(list(truth), guesses, target)),
            _figure("Error against the truth: a slope is a bias", figures.bias(list(truth), guesses, target)),
        ]
    if task == "classification":
        return _classification_figures(frame, cases)
    rows = cases[cases["metric"] == "dice"]
    if int(rows["value"].notna().sum()) < 3:
        return []
    return [
        _figure(
            "Dice of every case", figures.strips({str(m): list(g["value"].dropna()) for m, g in rows.groupby("model")}, "dice")
        )
    ]


def _classification_figures(frame: pd.DataFrame, cases: pd.DataFrame) -> list[dict[str, str]]:
    rows = cases[cases["metric"] == "probability"]
    notes = frame[(frame["case"] == "all") & (frame["metric"] == "auroc")]["note"]
    positive = notes.iloc[0].removeprefix("positive class ").rsplit(",", 1)[0] if len(notes) else ""
    truth = rows["note"].str.removeprefix("truth ") == positive
    if truth.nunique() < 2:
        return []
    by_model = {str(m): (np.asarray(truth[g.index]), np.asarray(g["value"], dtype=float)) for m, g in rows.groupby("model")}
    return [
        _figure(f"ROC, {positive} against the rest", figures.roc(by_model)),
        _figure("Reliability: said against seen", figures.reliability(by_model)),
        _figure("Risk against coverage, the surest first", figures.risk_coverage(by_model)),
    ]


def _figure(title: str, source: str) -> dict[str, str]:
    return {"title": title, "src": source}


def _extremes(cases: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """The three worst and three best cases of each model by the per-case metric."""
    metric = PER_CASE.get(task)
    if metric is None or metric == "correct":
        return []
    made = []
    for model, rows in cases[(cases["metric"] == metric) & cases["value"].notna()].groupby("model", sort=False):
        ordered = rows.sort_values("value", ascending=metric not in LOWER_IS_BETTER, kind="stable")
        if len(ordered) < 2:
            continue
        k = min(3, len(ordered) // 2)
        for kind, part in (("worst", ordered.head(k)), ("best", ordered.tail(k)[::-1])):
            made += [
                {"model": model, "kind": kind, "case": row.case, "value": number(row.value), "metric": metric.replace("_", " ")}
                for row in part.itertuples()
            ]
    return made
