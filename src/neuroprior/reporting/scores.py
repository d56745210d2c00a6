"""The scores part of a report: the card, the tables, paired differences and figures of each task, from score tables alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assessments import _seeds, comparison
from ..assessments.accuracy import paired_difference
from ..assessments.significance import LOWER_IS_BETTER, OF_A_SET
from ..core.errors import InputError
from ..core.records import Score
from . import assessed, figures
from ._rows import CARD, FEWSHOT, FLOOR, ORDER, PER_CASE, cell, is_floor, less_is_better, missing, number, part_of, records, stem

if TYPE_CHECKING:
    import pandas as pd

MAX_CASE_ROWS = 1500
"""Rows (a case and a model) of the table of cases; all others are in the score tables."""
WIDTH = 240
"""Of a whisker drawing, in pixels."""


def tasks(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page shows of each task and target.

    Args:
        scores: rows of :class:`neuroprior.core.records.Score`; only those of the condition ``clean`` are shown here.

    Returns:
        For each task: ``name``, ``card``, ``models``, ``rows``, ``sections`` and ``reasons`` (of ``assessed``), ``differences``, ``figures`` (title, src, alt), ``extremes``, ``cases``.
    """
    made = []
    for task, target, everything in _by_task(scores):
        frame = everything[everything["condition"] == "clean"]
        if frame.empty:
            continue
        whole = frame[frame["case"] == "all"]
        models = sorted(dict.fromkeys(frame["model"]), key=is_floor)
        cases = frame[(frame["case"] != "all") & ~frame["model"].str.startswith(FLOOR)]
        made.append({
            "name": f"{task} of {target}", "task": task, "target": target,
            "card": _card(frame, models, task),
            "models": [{"model": model, "floor": is_floor(model)} for model in models],
            "rows": _table(whole, models, target),
            "sections": assessed.sections(whole, models), "reasons": assessed.reasons(whole),
            "differences": differences(frame, models, task),
            "figures": [
                *_figures(frame, task, target), *assessed.risk_coverage(cases, task), *assessed.shots(everything), *assessed.pareto(whole, task),
            ],
            "extremes": _extremes(cases, task),
            "cases": case_table(cases, target),
        })  # fmt: skip
    return made


def _by_task(scores: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Task, target and their rows, in order of first appearance."""
    for task, target in dict.fromkeys(zip(scores["task"], scores["target"], strict=True)):
        yield str(task), str(target), scores.loc[(scores["task"] == task) & (scores["target"] == target)]


def _table(whole: pd.DataFrame, models: Sequence[str], target: str) -> list[dict[str, Any]]:
    """A row a metric and region, a cell a model: there are many metrics and few models."""
    pairs = sorted(
        {pair for pair in zip(whole["metric"], whole["region"], strict=True) if not part_of(*pair)},
        key=lambda pair: (ORDER.index(pair[0]) if pair[0] in ORDER else len(ORDER), pair),
    )
    several = len({region for _, region in pairs}) > 1
    rows = []
    for metric, region in pairs:
        found = whole[(whole["metric"] == metric) & (whole["region"] == region)]
        by_model = {row["model"]: cell(row) for row in found.to_dict("records")}
        name = metric.replace("_", " ") + (f" ({region})" if several and region not in ("all", target) else "")
        better = "less is better" if less_is_better(metric) else "more is better"
        rows.append({"metric": name, "better": better, "cells": [by_model.get(model, "") for model in models]})
    return rows


def case_table(cases: pd.DataFrame, target: str) -> dict[str, Any]:
    """A row a case and model, a column a metric and region: of many metrics a long table could not be read.

    Args:
        cases: rows of single cases, without floors.
        target: of the task; a region of that name is not repeated in the heads.

    Returns:
        ``heads`` (of the numbers), ``rows`` (case, model, cells, note) and ``left_out``, rows that are only in the score tables.
    """
    columns = sorted(
        dict.fromkeys(zip(cases["metric"], cases["region"], strict=True)),
        key=lambda pair: ("," in pair[1], ORDER.index(pair[0]) if pair[0] in ORDER else len(ORDER), pair),
    )
    rows: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    notes: dict[tuple[str, str], dict[str, None]] = {}
    for row in cases.itertuples():
        key = str(row.case), str(row.model)
        rows.setdefault(key, {})[str(row.metric), str(row.region)] = number(row.value)
        if row.note:
            notes.setdefault(key, {})[str(row.note)] = None
    shown = list(rows.items())[:MAX_CASE_ROWS]
    return {
        "heads": [metric.replace("_", " ") + ("" if region in ("all", target) else f" ({region})") for metric, region in columns],
        "rows": [
            {"case": case, "model": model, "cells": [found.get(pair, "") for pair in columns], "note": _told(notes.get((case, model), {}))}
            for (case, model), found in shown
        ],
        "left_out": len(rows) - len(shown),
    }  # fmt: skip


def _told(notes: Mapping[str, None]) -> str:
    """The notes of a case, those that another one contains left out."""
    return "; ".join(note for note in notes if not any(note != other and note in other for other in notes))


def over_runs(frame: pd.DataFrame, models: Sequence[str], metric: str, region: str) -> list[dict[str, Any]]:
    """One number a model: its own row, or, of a model with several seeds, the mean over them, seeds and subjects drawn for its interval.

    Args:
        frame: rows of one task and condition, of cases and sets.
        models: runs and floors, in order.
        metric, region: of the rows.
    """
    whole = frame[(frame["case"] == "all") & (frame["metric"] == metric) & (frame["region"] == region) & frame["value"].notna()]
    made = []
    for name in dict.fromkeys(stem(model) for model in models):
        runs = [model for model in models if stem(model) == name]
        rows = [row for run in runs for row in whole[whole["model"] == run].head(1).to_dict("records")]
        if len(rows) < 2:
            made += [row | {"model": name, "runs": 1, "spread": ""} for row in rows]
            continue
        values = [float(row["value"]) for row in rows]
        per_case = "absolute_error" if metric == "mae" else metric
        part = frame[(frame["metric"] == per_case) & (frame["region"] == region) & (frame["case"] != "all")]
        low = high = None
        if len(part):
            low, high = _seeds.mean_interval([records(part[part["model"] == run]) for run in runs])
        elif metric in OF_A_SET:
            found = comparison.over_seeds([records(frame[frame["model"] == run]) for run in runs], metric, resamples=500)
            low, high = found.low, found.high
        made.append(rows[0] | {
            "model": name, "value": float(np.mean(values)), "low": low, "high": high, "runs": len(values),
            "spread": f", {len(values)} seeds: {number(min(values))} to {number(max(values))}",
        })  # fmt: skip
    return made


def _card(frame: pd.DataFrame, models: Sequence[str], task: str) -> list[dict[str, Any]]:
    """The headline metrics, each with a whisker a model on one scale."""
    whole = frame[frame["case"] == "all"]
    blocks = []
    for metric in CARD.get(task, ()):
        found = whole[(whole["metric"] == metric) & whole["value"].notna()]
        plain = [
            region
            for region in found["region"]
            if "," not in region
            and "=" not in region
            and not region.startswith(("small", "medium", "large"))
            and "temperature" not in region
        ]
        if not plain:
            continue
        rows = over_runs(frame, models, metric, plain[0])
        ends = [row[key] for row in rows for key in ("value", "low", "high") if not missing(row[key])]
        low, high = min(ends), max(ends)
        if not less_is_better(metric) and low >= 0 and high <= 1:
            low, high = min(low, 0.0), 1.0
        elif low >= 0:
            low = 0.0
        span = (high - low) or 1.0

        place = partial(_place, low=low, span=span)
        blocks.append({
            "metric": metric.replace("_", " "), "region": plain[0], "better": "less is better" if less_is_better(metric) else "more is better",
            "from": number(low), "to": number(high),
            "rows": [
                {
                    "model": row["model"], "floor": is_floor(row["model"]), "text": cell(row) + row["spread"], "at": place(row["value"]),
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
    """Every two models over the same cases: mean paired difference, its interval, and what may be said of it.

    Of models with several seeds the means over seeds are compared, and seeds are drawn as well.
    """
    metric = PER_CASE.get(task)
    if metric is None:
        return []
    runs: dict[str, list[list[Score]]] = {}
    for name in (name for name in models if not is_floor(name)):
        runs.setdefault(stem(name), []).append(records(frame[(frame["model"] == name) & (frame["metric"] == metric)]))
    made = []
    for first, second in combinations(runs, 2):
        for region in sorted({region for region in frame[frame["metric"] == metric]["region"] if "," not in region}):
            found = _difference(runs[first], runs[second], metric, region)
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


def _difference(
    first: Sequence[Sequence[Score]], second: Sequence[Sequence[Score]], metric: str, region: str
) -> dict[str, Any] | None:
    if len(first) == len(second) == 1:
        return paired_difference(first[0], second[0], metric, region)
    try:
        found = comparison.over_seeds(first, metric, against=second, region=region)
    except InputError:
        return None
    return {"difference": found.value, "low": found.low, "high": found.high, "n": found.subjects}


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
        names = [name for name in names if name != FEWSHOT]
        if set(names) <= {"clean"}:
            continue
        names.sort(key=lambda name: name != "clean")
        models = [model for model in dict.fromkeys(frame["model"]) if not is_floor(model)]
        metrics = [metric for metric in CARD.get(task, ())[:3] if (frame["metric"] == metric).any()]
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
                    _figure(
                        f"{metric.replace('_', ' ')} over severity",
                        figures.severities(curves, metric.replace("_", " ")),
                        f"{metric.replace('_', ' ')} of {model} from the clean scans to the strongest artefact: "
                        + "; ".join(f"{name} {number(v[min(v)])} to {number(v[max(v)])}" for name, v in curves.items()),
                    )
                )
        blocks.append({
            "model": model, "heads": ["artefact", *(metric.replace("_", " ") for metric in measures)], "rows": rows, "figures": plots,
        })  # fmt: skip
    return {"name": name, "blocks": blocks, "severities": note.get("config", {}).get("severities", []), "pictures": []}


def _severity_curves(rows: pd.DataFrame, artefacts: Sequence[str]) -> dict[str, dict[int, float]]:
    """Artefact -> severity -> value; severity 0 is the clean scans. Of several regions the first is taken."""
    first: dict[str, float] = {}
    for row in rows.to_dict("records"):
        if not missing(row["value"]):
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


def _figures(frame: pd.DataFrame, task: str, target: str) -> list[dict[str, Any]]:
    cases = frame[(frame["case"] != "all") & ~frame["model"].str.startswith(FLOOR)]
    cases = cases.assign(stem=cases["model"].map(stem))
    seeded = "" if len(set(cases["stem"])) == len(set(cases["model"])) else ", mean over seeds"
    if task == "regression":
        wide = {
            name: cases[cases["metric"] == name].pivot_table(index="case", columns="stem", values="value")
            for name in ("truth", "predicted")
        }
        shared = wide["predicted"].dropna()
        if len(shared) < 2:
            return []
        truth = wide["truth"].loc[shared.index].iloc[:, 0]
        guesses = {str(model): list(shared[model]) for model in shared}
        said = "; ".join(f"{name} r = {number(_pearson(truth, values))}" for name, values in guesses.items())
        return [
            _figure(f"Predicted against true{seeded}", figures.scatter(list(truth), guesses, target),
                    f"Scatter of predicted against true {target}, {len(truth)} cases; {said}"),
            _figure(f"Error against the truth{seeded}: a slope is a bias", figures.bias(list(truth), guesses, target),
                    f"Error of the prediction against the true {target} with a fitted line for each model"),
        ]  # fmt: skip
    if task == "classification":
        return _classification_figures(frame, cases)
    rows = cases[(cases["metric"] == "dice") & cases["value"].notna()]
    if len(rows) < 3:
        return []
    values = {str(m): list(g.groupby("case")["value"].mean()) for m, g in rows.groupby("stem", sort=False)}
    said = "; ".join(f"median of {name} {number(float(np.median(v)))}" for name, v in values.items())
    return [
        _figure(
            f"Dice of every case{seeded}",
            figures.strips(values, "dice"),
            f"Dice of every case as a dot, a column a model; {said}",
        )
    ]


def _pearson(x: Any, y: Any) -> float:
    from ..metrics import errors

    return errors.pearson(np.asarray(x, dtype=float), np.asarray(y, dtype=float))


def positive_class(frame: pd.DataFrame) -> str:
    """The positive class of a classification, from the note of its AUROC; empty where nothing says it."""
    notes = frame[(frame["case"] == "all") & (frame["metric"] == "auroc")]["note"]
    return notes.iloc[0].split(";")[0].removeprefix("positive class ").rsplit(",", 1)[0] if len(notes) else ""


_SAID = re.compile(r"truth (.*?), predicted (.*?)(?:;|$)")


def confusions(cases: pd.DataFrame) -> dict[str, tuple[list[str], np.ndarray]]:
    """Model -> (classes, (c, c) counts, a row a true class), summed over its seeds; from the notes of the rows ``correct``."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    for row in cases[cases["metric"] == "correct"].itertuples():
        found = _SAID.match(str(row.note))
        if found:
            pairs.setdefault(stem(str(row.model)), []).append((found[1], found[2]))
    classes = sorted(
        {name for found in pairs.values() for pair in found for name in pair}, key=lambda name: (name == "failed", name)
    )
    made = {}
    for model, found in pairs.items():
        table = np.zeros((len(classes), len(classes)), dtype=int)
        for true, guess in found:
            table[classes.index(true), classes.index(guess)] += 1
        made[model] = classes, table
    return made


def _classification_figures(frame: pd.DataFrame, cases: pd.DataFrame) -> list[dict[str, Any]]:
    made = []
    tables = confusions(cases)
    if tables:
        said = "; ".join(
            f"{model}: " + ", ".join(f"{names[i]} taken for {names[j]} {table[i, j]}" for i in range(len(names)) for j in range(len(names)) if table[i, j])
            for model, (names, table) in tables.items()
        )  # fmt: skip
        made.append(
            _figure(
                "Confusion: a row a true class, all seeds together",
                figures.confusion(tables),
                f"Confusion matrices. {said}",
                wide=len(tables) > 1,
            )
        )
    rows = cases[cases["metric"] == "probability"]
    positive = positive_class(frame)
    truth = rows["note"].str.removeprefix("truth ") == positive
    if truth.nunique() < 2:
        return made
    by_model = {
        str(m): (np.asarray(truth[g.index]), np.asarray(g["value"], dtype=float)) for m, g in rows.groupby("model", sort=False)
    }
    return [
        _figure(f"ROC, {positive} against the rest", figures.roc(by_model), f"ROC curves of {', '.join(by_model)} for {positive}"),
        _figure("Reliability: said against seen", figures.reliability(by_model), f"Reliability diagram of {', '.join(by_model)}: observed share against predicted probability of {positive}"),
        _figure("Risk against coverage, the surest first", figures.risk_coverage(by_model), f"Share of wrong answers of {', '.join(by_model)} when only the surest cases are answered"),
        *made,
    ]  # fmt: skip


def _figure(title: str, source: str, alt: str = "", *, wide: bool = False) -> dict[str, Any]:
    return {"title": title, "src": source, "alt": alt or title, "wide": wide}


def _extremes(cases: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """The three worst and three best cases of each model by the per-case metric, the mean over its regions and seeds."""
    metric = PER_CASE.get(task)
    if metric is None or metric == "correct":
        return []
    made = []
    found = cases[(cases["metric"] == metric) & cases["value"].notna() & ~cases["region"].str.contains(",")]
    means = found.assign(model=found["model"].map(stem)).groupby(["model", "case"], sort=False)["value"].mean().reset_index()
    for model, rows in means.groupby("model", sort=False):
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
