"""Accuracy: predictions against a reference, case by case and over the set, with bootstrap intervals over subjects.

Empty masks by a stated rule. ``honest``: both empty is not counted (and the specificity on empty cases is given); one
empty gives DSC 0, NSD 0, HD95 and ASSD the image's diagonal. ``fomo26``: both empty DSC 1 and NSD 0, one empty both 0.
A case that failed counts as the worst: an empty mask, an uninformative probability, or the floor's error doubled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.records import Score
from ..metrics import auroc, calibration, classification, dice, errors, lesions, surface
from ..metrics._bootstrap import interval

SIZE_BINS_ML = (("small", 0.0, 0.1), ("medium", 0.1, 1.0), ("large", 1.0, np.inf))
"""Lesion sizes in millilitres that detection is also given for."""


@dataclass(frozen=True)
class Context:
    """What every score row says of its origin.

    Attributes:
        model: short name.
        task, target: as in the model.
        condition: ``clean`` or what was done to the inputs.
        rule: ``honest`` or ``fomo26``.
        tolerance_mm: of the NSD.
        resamples, seed: of the bootstrap.
    """

    model: str
    task: str
    target: str
    condition: str = "clean"
    rule: str = "honest"
    tolerance_mm: float = 1.0
    resamples: int = 2000
    seed: int = 0

    def row(self, case: str, subject: str, metric: str, region: str, value: float, note: str = "", n: int = 1) -> Score:
        """A score; a value that is not finite becomes None."""
        number = float(value) if np.isfinite(value) else None
        return Score(self.model, self.task, self.target, case, subject, metric, region, self.condition, number, n=n, note=note)


def segmentation_case(
    context: Context, case: str, subject: str, prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float],
    regions: Mapping[str, int], note: str = "",
) -> list[Score]:  # fmt: skip
    """Scores of one case.

    Args:
        context: origin and rule.
        case, subject: who.
        prediction, reference: (x, y, z) integer label maps on one grid.
        spacing_mm: of that grid.
        regions: name -> label value; the background is never one.
        note: put on every row.
    """
    rows = []
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for region, value in regions.items():
        p, r = prediction == value, reference == value
        empty = (
            "both empty"
            if not p.any() and not r.any()
            else "reference empty"
            if not r.any()
            else "prediction empty"
            if not p.any()
            else ""
        )
        text = "; ".join(part for part in (note, empty) if part)

        def add(metric: str, number: float, region: str = region, text: str = text) -> None:
            rows.append(context.row(case, subject, metric, region, number, text))

        overlap_dice = dice.dice(p, r)
        overlap_nsd = surface.nsd(p, r, spacing_mm, context.tolerance_mm)
        if context.rule == "fomo26" and empty == "both empty":
            overlap_dice, overlap_nsd = 1.0, 0.0
        add("dice", overlap_dice)
        add("nsd", overlap_nsd)
        add("hd95_mm", surface.hd95(p, r, spacing_mm))
        add("volume_difference_ml", dice.volume_difference_ml(p, r, spacing_mm))
        if not r.any():
            add("empty_specificity", float(not p.any()))
        if len(regions) == 1:
            found = lesions.detect(p, r)
            add("lesion_f1", found.f1)
            add("lesion_recall", found.recall)
            for name, low, high in SIZE_BINS_ML:
                add("lesion_recall", lesions.detect(p, r, min_ml=low, max_ml=high, voxel_ml=voxel_ml).recall, f"{region}, {name}")
    return rows


def summarise(context: Context, rows: Sequence[Score]) -> list[Score]:
    """The mean of each metric and region over cases, with its interval and the number of cases that count."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for row in rows:
        groups.setdefault((row.metric, row.region), []).append(row)
    made = []
    for (metric, region), members in groups.items():
        counted = [row for row in members if row.value is not None]
        values = np.array([row.value for row in counted], dtype=float)
        left = len(members) - len(counted)
        note = f"{left} of {len(members)} cases not defined" if left else ""
        if values.size == 0:
            made.append(context.row("all", "all", metric, region, float("nan"), note, n=0))
            continue
        low, high = interval(
            [row.subject for row in counted],
            lambda k, values=values: float(values[k].mean()),
            resamples=context.resamples,
            seed=context.seed,
        )
        made.append(
            replace(context.row("all", "all", metric, region, float(values.mean()), note, n=len(values)), low=low, high=high)
        )
    return made


def _over_set(
    context: Context, subjects: Sequence[str], metrics: Mapping[str, Callable[[np.ndarray], float]], note: str = ""
) -> list[Score]:
    n = len(subjects)
    made = []
    for name, statistic in metrics.items():
        value = statistic(np.arange(n))
        low, high = interval(subjects, statistic, resamples=context.resamples, seed=context.seed)
        made.append(replace(context.row("all", "all", name, "all", value, note, n=n), low=low, high=high))
    return made


def classify(
    context: Context, cases: Sequence[str], subjects: Sequence[str], truth: Sequence[str], guess: Sequence[str],
    probability: Sequence[float], positive: str, notes: Sequence[str] | None = None,
) -> list[Score]:  # fmt: skip
    """Scores of a classification.

    Args:
        context: origin.
        cases, subjects: (n,) who.
        truth, guess: (n,) class names.
        probability: (n,) of the positive class.
        positive: its name.
        notes: (n,) a note for each case.
    """
    t, g, p = np.array(truth, dtype=object), np.array(guess, dtype=object), np.array(probability, dtype=float)
    yes = t == positive
    rows = [
        context.row(
            case,
            subject,
            "correct",
            "all",
            float(t[k] == g[k]),
            f"truth {t[k]}, predicted {g[k]}" + (f"; {notes[k]}" if notes and notes[k] else ""),
        )
        for k, (case, subject) in enumerate(zip(cases, subjects, strict=True))
    ]
    rows += [
        context.row(case, subject, "probability", "all", float(p[k]), f"truth {t[k]}")
        for k, (case, subject) in enumerate(zip(cases, subjects, strict=True))
    ]
    return rows + _over_set(
        context,
        subjects,
        {
            "auroc": lambda k: auroc.auroc(yes[k], p[k]),
            "auprc": lambda k: auroc.auprc(yes[k], p[k]),
            "balanced_accuracy": lambda k: classification.balanced_accuracy(t[k].astype(str), g[k].astype(str)),
            "f1": lambda k: classification.f1(t[k].astype(str), g[k].astype(str), positive),
            "sensitivity": lambda k: classification.sensitivity(t[k].astype(str), g[k].astype(str), positive),
            "specificity": lambda k: classification.specificity(t[k].astype(str), g[k].astype(str), positive),
            "ece": lambda k: calibration.ece(yes[k], p[k]),
            "brier": lambda k: calibration.brier(yes[k], p[k]),
        },
        f"positive class {positive}, {int(yes.sum())} of {len(yes)}",
    )


def regress(
    context: Context, cases: Sequence[str], subjects: Sequence[str], truth: Sequence[float], guess: Sequence[float],
    notes: Sequence[str] | None = None,
) -> list[Score]:  # fmt: skip
    """Scores of a regression; ``truth`` and ``guess`` are (n,) in the target's unit."""
    t, g = np.array(truth, dtype=float), np.array(guess, dtype=float)
    rows = []
    for k, (case, subject) in enumerate(zip(cases, subjects, strict=True)):
        note = notes[k] if notes else ""
        rows.append(context.row(case, subject, "absolute_error", "all", abs(g[k] - t[k]), note))
        rows.append(context.row(case, subject, "truth", "all", t[k]))
        rows.append(context.row(case, subject, "predicted", "all", g[k], note))
    return rows + _over_set(
        context, subjects,
        {
            "mae": lambda k: errors.mae(t[k], g[k]),
            "rmse": lambda k: errors.rmse(t[k], g[k]),
            "pearson_r": lambda k: errors.pearson(t[k], g[k]),
        },
    )  # fmt: skip


def paired_difference(
    a: Sequence[Score], b: Sequence[Score], metric: str, region: str, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any] | None:
    """Mean of a - b over the cases that both score, with its paired bootstrap interval; None where they share none."""
    left = {
        row.case: row
        for row in a
        if row.metric == metric and row.region == region and row.case != "all" and row.value is not None
    }
    right = {
        row.case: row
        for row in b
        if row.metric == metric and row.region == region and row.case != "all" and row.value is not None
    }
    shared = sorted(left.keys() & right.keys())
    if not shared:
        return None
    difference = np.array([float(left[c].value or 0) - float(right[c].value or 0) for c in shared])
    low, high = interval([left[c].subject for c in shared], lambda k: float(difference[k].mean()), resamples=resamples, seed=seed)
    return {
        "metric": metric,
        "region": region,
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "n": len(shared),
    }
