"""Scores of answers under many splits: cross-validation tables, calibration before and after, few-shot curves.

Everything is compared on the same cases: differences are paired over subjects, with bootstrap intervals over subjects, and the
trivial floor stands beside every row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.records import Score
from ..data.cases import Case
from ..inference import calibration as calibrating
from ..inference.calibration import Calibration
from ..metrics._bootstrap import interval
from ..tasks import _calibration as fitting
from ..tasks._calibration import Answer, Look
from .accuracy import Context, classify, regress, segmentation_case, summarise
from .calibration import before_and_after, compared
from .conformal import interval_scores

CASE_METRIC = {"segmentation": "dice", "classification": "correct", "regression": "absolute_error"}
"""The metric of single cases that curves and paired differences are drawn from."""
HEADLINES = {
    "segmentation": ("dice", "nsd"), "classification": ("auroc", "balanced_accuracy"), "regression": ("mae", "pearson_r"),
}  # fmt: skip
COLOURS = ("#2563a8", "#c2571a", "#4b7f52", "#8a94a0")
"""Of the curves; the last is the floor's."""


def looker(context: Context, label_values: Sequence[int]) -> Look:
    """A function that scores a segmentation on the store's grid, for ``tasks._calibration.answers``."""
    regions = regions_of(context.target, label_values)

    def look(case: Case, guess: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> list[dict[str, Any]]:
        session = case.session
        rows = segmentation_case(context, session.key, session.subject, guess, truth, spacing, regions)
        floor = segmentation_case(
            replace(context, model="floor: empty mask"),
            session.key,
            session.subject,
            np.zeros_like(truth),
            truth,
            spacing,
            regions,
        )
        return [vars(row).copy() for row in (*rows, *floor)]

    return look


def regions_of(target: str, label_values: Sequence[int]) -> dict[str, int]:
    """Region name -> label value, as in ``evaluate``."""
    if len(label_values) == 1:
        return {target: label_values[0]}
    return {f"{target} {value}": value for value in label_values}


def score(context: Context, found: Sequence[Answer], task: Mapping[str, Any], *, floor: bool = True) -> list[Score]:
    """Every case's scores, those over the set, and (with ``floor``) those of the trivial prediction.

    Args:
        context: origin.
        found: answers with truth, of one model or of the models of several folds.
        task: ``name``, ``classes``, ``positive`` and ``floor`` of the models.
        floor: also score the floor.
    """
    cases, subjects = [a.case for a in found], [a.subject for a in found]
    if task["name"] == "segmentation":
        rows = [Score(**row) for a in found for row in a.rows]
        mine = _mean_over_members([
            replace(row, model=context.model, condition=context.condition) for row in rows if not row.model.startswith("floor")
        ])  # fmt: skip
        made = mine + summarise(context, mine)
        if floor:
            trivial = replace(context, model="floor: empty mask")
            theirs = _mean_over_members([
                replace(row, condition=context.condition) for row in rows if row.model.startswith("floor")
            ])  # fmt: skip
            made += theirs + summarise(trivial, theirs)
        return made
    if task["name"] == "classification":
        classes, positive = list(task["classes"]), task["positive"]
        p = fitting.probability_table(found)
        truth = [classes[int(a.truth or 0)] for a in found]
        guess = [classes[k] for k in p.argmax(1)]
        made = classify(context, cases, subjects, truth, guess, p[:, classes.index(positive)].tolist(), positive)
        if floor:
            prior = task["floor"]["prior"]
            common = max(prior, key=lambda name: prior[name])
            made += classify(
                replace(context, model="floor: prior"), cases, subjects, truth, [common] * len(found),
                [prior.get(positive, 0.0)] * len(found), positive,
            )  # fmt: skip
        return made
    truth_values = [float(a.truth or 0.0) for a in found]
    made = regress(context, cases, subjects, truth_values, [float(a.value or 0.0) for a in found])
    if floor:
        mean = float(task["floor"]["mean"])
        made += regress(replace(context, model="floor: training mean"), cases, subjects, truth_values, [mean] * len(found))
    return made


def _mean_over_members(rows: Sequence[Score]) -> list[Score]:
    """One row a case, metric and region: the mean over the members of an ensemble that were scored one by one."""
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for row in rows:
        groups.setdefault((row.case, row.metric, row.region), []).append(row)
    made = []
    for members in groups.values():
        values = [row.value for row in members if row.value is not None]
        made.append(replace(members[0], value=float(np.mean(values)) if values else None))
    return made


# ---------------------------------------------------------------------------------------------------------- calibration


def cross_calibrated(
    folds: Sequence[Sequence[Answer]], task: Mapping[str, Any], *, level: float = 0.9
) -> list[Calibration | None]:
    """For each fold the calibration learned on the answers of all *other* folds: what is said of a fold did not see it.

    None where the other folds cannot teach one.
    """
    made: list[Calibration | None] = []
    for number in range(len(folds)):
        others = [answer for n, fold in enumerate(folds) if n != number for answer in fold]
        try:
            made.append(fitting.fit(others, task, source="other folds", level=level))
        except InputError:
            made.append(None)
    return made


def calibration_scores(
    context: Context, folds: Sequence[Sequence[Answer]], task: Mapping[str, Any], *, level: float = 0.9
) -> list[Score]:
    """Calibration before and after, on cases that the calibration did not see, with bootstrap intervals over subjects.

    Classification and segmentation: ECE (equal width, equal mass), Brier score and log-likelihood before and after the temperature, and
    the paired difference (after - before). Regression: coverage and mean width of the intervals, over all and by sex and age group.

    Args:
        context: origin.
        folds: the answers of each fold's test cases.
        task: of the models.
        level: of the intervals.
    """
    learned = cross_calibrated(folds, task, level=level)
    pairs = [(answer, made) for fold, made in zip(folds, learned, strict=True) for answer in fold if made is not None]
    if not pairs:
        return []
    found = [answer for answer, _ in pairs]
    if task["name"] == "regression":
        ends = [
            (made.interval(float(answer.value or 0.0), answer.groups) if made else None) or (np.nan, np.nan)
            for answer, made in pairs
        ]
        truth = np.array([a.truth for a in found], dtype=float)
        low, high = np.array(ends, dtype=float).T
        return interval_scores(context, found, truth, low, high, level)
    if task["name"] == "classification":
        classes = list(task["classes"])
        column = classes.index(task["positive"])
        before = fitting.probability_table(found)
        after = np.stack([calibrating.temper(p, made.temperature) for p, (_, made) in zip(before, pairs, strict=True) if made])
        truth = np.array([int(a.truth or 0) for a in found]) == column
        return before_and_after(context, [a.subject for a in found], truth, before[:, column], after[:, column])
    subjects, truths, befores, afters, weights = [], [], [], [], []
    for answer, made in pairs:
        if made is None or answer.voxels is None or answer.voxel_truth is None or answer.voxel_weights is None:
            continue
        subjects += [answer.subject] * len(answer.voxels)
        truths.append(answer.voxel_truth > 0)
        befores.append(1 - answer.voxels[:, 0])
        afters.append(1 - calibrating.temper(answer.voxels.astype(float), made.temperature)[:, 0])
        weights.append(answer.voxel_weights)
    return _voxel_scores(context, subjects, *(np.concatenate(part) for part in (truths, befores, afters, weights)))


def _voxel_scores(
    context: Context, subjects: Sequence[str], truth: np.ndarray, before: np.ndarray, after: np.ndarray, weights: np.ndarray
) -> list[Score]:
    """Weighted foreground ECE, Brier score and log-likelihood over sampled voxels, before and after; intervals over subjects."""
    place = {name: np.flatnonzero(np.array(subjects) == name) for name in sorted(set(subjects))}
    names = list(place)

    def measured(metric: str, p: np.ndarray, k: np.ndarray) -> float:
        w, y, q = weights[k], truth[k], np.clip(p[k], 1e-7, 1 - 1e-7)
        if metric == "brier":
            return float(np.average((q - y) ** 2, weights=w))
        if metric == "nll":
            return float(np.average(-np.where(y, np.log(q), np.log1p(-q)), weights=w))
        bins = np.minimum((q * 10).astype(int), 9)
        gap = np.bincount(bins, weights=w * (y - q), minlength=10)
        return float(np.abs(gap).sum() / w.sum())

    made = []
    for metric in ("ece", "brier", "nll"):

        def both(k: np.ndarray, metric: str = metric) -> tuple[float, float]:
            rows = np.concatenate([place[names[n]] for n in k])
            return measured(metric, before, rows), measured(metric, after, rows)

        made += compared(context, metric, "voxels, ", names, both, min(context.resamples, 500))
    return made


# ----------------------------------------------------------------------------------------------------------- few-shot


@dataclass(frozen=True)
class Point:
    """A place on a curve.

    Attributes:
        condition: what the runs start from: ``pretrained`` or ``scratch``.
        shots: as given, ``all`` for everybody.
        subjects: labelled subjects that were learned from.
        metric: of single cases.
        value, low, high: mean over cases of the mean over seeds, with its bootstrap interval over subjects.
        seeds: runs behind it.
        spread: standard deviation over seeds of the mean over cases, None with one seed.
    """

    condition: str
    shots: str
    subjects: float
    metric: str
    value: float
    low: float | None
    high: float | None
    seeds: int
    spread: float | None


@dataclass(frozen=True)
class Difference:
    """The paired difference of two conditions at as many shots: first minus second, over the same cases and seeds."""

    shots: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int


def case_means(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[tuple[str, str], dict[str, tuple[str, float]]]:
    """(condition, shots) -> case -> (subject, mean over seeds and regions of a metric of single cases)."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    subject: dict[str, str] = {}
    for row in rows:
        if row["metric"] == metric and row["case"] != "all" and row["value"] is not None and "," not in row["region"]:
            values.setdefault((row["condition"], row["shots"]), {}).setdefault(row["case"], []).append(float(row["value"]))
            subject[row["case"]] = row["subject"]
    return {
        key: {case: (subject[case], float(np.mean(many))) for case, many in by_case.items()} for key, by_case in values.items()
    }


def curve(rows: Sequence[Mapping[str, Any]], metric: str, *, seed: int = 0) -> list[Point]:
    """The points of every condition's curve, in the order of shots.

    Args:
        rows: score rows with ``condition``, ``shots``, ``seed`` and ``subjects_learned`` beside the fields of a score; floors left out.
        metric: of single cases.
        seed: of the bootstrap.
    """
    made = []
    for (condition, shots), by_case in case_means(rows, metric).items():
        mine = [
            r for r in rows if (r["condition"], r["shots"]) == (condition, shots) and r["metric"] == metric and r["case"] != "all"
        ]
        names, values = [s for s, _ in by_case.values()], np.array([v for _, v in by_case.values()])
        low, high = interval(names, lambda k, values=values: float(values[k].mean()), seed=seed)
        means = [
            float(np.mean([r["value"] for r in mine if r["seed"] == s and r["value"] is not None] or [np.nan]))
            for s in sorted({r["seed"] for r in mine})
        ]
        spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
        learned = float(np.mean([r["subjects_learned"] for r in mine]))
        made.append(Point(condition, shots, learned, metric, float(values.mean()), low, high, len(means), spread))
    return sorted(made, key=lambda point: (point.condition, point.subjects, point.shots))


def differences(rows: Sequence[Mapping[str, Any]], metric: str, first: str, second: str, *, seed: int = 0) -> list[Difference]:
    """``first`` minus ``second`` for every number of shots that both have, paired over cases, bootstrapped over subjects."""
    means = case_means(rows, metric)
    made = []
    for shots in dict.fromkeys(s for condition, s in means if condition == first and (second, s) in means):
        a, b = means[first, shots], means[second, shots]
        shared = sorted(a.keys() & b.keys())
        if not shared:
            continue
        d = np.array([a[case][1] - b[case][1] for case in shared])
        low, high = interval([a[case][0] for case in shared], lambda k, d=d: float(d[k].mean()), seed=seed)
        made.append(Difference(shots, metric, float(d.mean()), low, high, len(shared)))
    return made


def plot(path: Path, points: Sequence[Point], floor: float | None, title: str) -> None:
    """Draw the curves with their intervals, and the trivial floor as a line, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..core import artifacts

    grey = COLOURS[-1]
    figure = Figure(figsize=(5.5, 3.6))
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    conditions = sorted({point.condition for point in points})
    for number, (condition, colour) in enumerate(zip(conditions, itertools.cycle(COLOURS))):
        mine = sorted((p for p in points if p.condition == condition), key=lambda p: p.subjects)
        x = np.array([p.subjects for p in mine]) * (1 + 0.02 * number)  # side by side, so that intervals do not hide one another
        y = np.array([p.value for p in mine])
        low = np.array([p.value - (p.low if p.low is not None else p.value) for p in mine])
        high = np.array([(p.high if p.high is not None else p.value) - p.value for p in mine])
        axis.errorbar(x, y, yerr=np.stack([low, high]).clip(0), fmt="o-", color=colour, markersize=4, capsize=2, label=condition)
    if floor is not None:
        axis.axhline(floor, color=grey, linestyle="--", linewidth=1, label="floor")
    axis.set_xscale("log")
    ticks = sorted({round(p.subjects, 1) for p in points})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("labelled subjects", fontsize=8)
    axis.set_ylabel(points[0].metric.replace("_", " ") if points else "", fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    with artifacts.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
