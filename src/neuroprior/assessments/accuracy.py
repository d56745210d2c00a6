"""Accuracy: predictions against a reference, case by case and over the set, with bootstrap intervals over subjects.

Empty masks by a stated rule, :data:`EMPTY_RULES`, which :func:`printed_rule` says in words. ``honest``: both empty is not
counted (and the specificity on empty cases is given); one empty gives DSC 0, NSD 0, and the image's diagonal for distances.
``fomo26``: both empty DSC 1 and NSD 0, one empty both 0. A case that failed counts as the worst: an empty mask, a probability at
the wrong end, or twice the floor's error; a prediction that is not a finite number is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import ConfigError, InputError, suggestion
from ..core.records import Score
from ..metrics import (
    _inputs,
    age_bias,
    auroc,
    classification,
    dice,
    ece,
    errors,
    lesions,
    nll,
    operating,
    surface,
    volume,
)
from ..metrics._bootstrap import FEW, FEWEST, OF_MEANS, OF_SETS, Method, interval, mean_interval, unseen

SIZE_BINS_ML: tuple[lesions.Bin, ...] = (("small", 0.0, 0.1), ("medium", 0.1, 1.0), ("large", 1.0, np.inf))
"""Lesion sizes in millilitres that detection is also given for."""

WITHIN: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys((
        "dice", "iou", "nsd", "lesion_f1", "lesion_recall", "lesion_precision", "empty_specificity", "correct", "brier",
    ), (0.0, 1.0)),
    **dict.fromkeys((
        "hd95_mm", "hd_mm", "assd_mm", "volume_error_ml", "volume_error_relative", "voxels_outside_map", "absolute_error", "mae", "interval_width",
        "seconds", "volume_ml", "true_volume_ml", "lesion_count", "risk",
    ), (0.0, np.inf)),
    **dict.fromkeys(("brier_multiclass",), (0.0, 2.0)),
    **dict.fromkeys(("nll", "nll_multiclass"), (0.0, float(-np.log(nll.SMALLEST)))),
}  # fmt: skip
"""Metric -> the range that its mean lies in; any number where it is not named."""

DIAGONAL = "diagonal"
"""In a rule: the distance from one corner of the image to the other, the worst that a distance can be."""

_ONE_EMPTY: Mapping[str, float | str | None] = {
    "dice": 0.0, "iou": 0.0, "nsd": 0.0, "hd95_mm": DIAGONAL, "hd_mm": DIAGONAL, "assd_mm": DIAGONAL,
}  # fmt: skip
_NOT_COUNTED: Mapping[str, float | str | None] = dict.fromkeys(_ONE_EMPTY)

EMPTY_RULES: Mapping[str, Mapping[str, Mapping[str, float | str | None]]] = {
    "honest": {"both empty": _NOT_COUNTED, "reference empty": _ONE_EMPTY, "prediction empty": _ONE_EMPTY},
    "fomo26": {
        "both empty": {**_NOT_COUNTED, "dice": 1.0, "iou": 1.0, "nsd": 0.0},
        "reference empty": _ONE_EMPTY,
        "prediction empty": _ONE_EMPTY,
    },
}
"""Rule -> which masks are empty -> metric -> its value; None is not counted."""


def printed_rule(rule: str) -> str:
    """The rule for empty masks in words, one line for each case, for logs and reports.

    Raises:
        ConfigError: there is no such rule.
    """
    lines = []
    for state, values in empty_rule(rule).items():
        said = {
            name: "not counted" if value is None else f"{value:g}" if isinstance(value, float) else f"the image's {value}"
            for name, value in values.items()
        }
        groups: dict[str, list[str]] = {}
        for name, text in said.items():
            groups.setdefault(text, []).append(name)
        lines.append(f"{state}: " + "; ".join(f"{', '.join(names)} {text}" for text, names in groups.items()))
    return "\n".join([f"rule for empty masks: {rule}", *lines])


def empty_rule(rule: str) -> Mapping[str, Mapping[str, float | str | None]]:
    """The table of one rule.

    Raises:
        ConfigError: there is no such rule.
    """
    if rule not in EMPTY_RULES:
        raise ConfigError(
            f"unknown rule for empty masks {rule!r}",
            expected=" or ".join(EMPTY_RULES),
            next_step=suggestion(rule, list(EMPTY_RULES)),
        )
    return EMPTY_RULES[rule]


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
        method: of the intervals of means (``metrics/_bootstrap.py``).
    """

    model: str
    task: str
    target: str
    condition: str = "clean"
    rule: str = "honest"
    tolerance_mm: float = 1.0
    resamples: int = 2000
    seed: int = 0
    method: Method = OF_MEANS

    def row(self, case: str, subject: str, metric: str, region: str, value: float, note: str = "", n: int = 1) -> Score:
        """A score; a value that is not finite becomes None."""
        number = float(value) if np.isfinite(value) else None
        return Score(self.model, self.task, self.target, case, subject, metric, region, self.condition, number, n=n, note=note)


def outside_map(labels: np.ndarray, regions: Mapping[str, int]) -> dict[int, int]:
    """Label values that are neither background nor in ``regions``, each with its number of voxels."""
    values, counts = np.unique(labels, return_counts=True)
    known = {0, *regions.values()}
    return {int(value): int(count) for value, count in zip(values, counts, strict=True) if int(value) not in known}


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
        regions: name -> label value; the background is never one. Voxels of a label outside this map belong to no region: a
            row ``voxels_outside_map`` counts them, and its note names the labels.
        note: put on every row.

    Raises:
        InputError: two grids, or a spacing that is not positive.
        ConfigError: an unknown rule.
    """
    table = empty_rule(context.rule)
    if prediction.shape != reference.shape:
        raise InputError(
            "the prediction and the reference lie on different grids", expected=reference.shape, got=prediction.shape, file=case
        )
    rows = []
    voxel_ml = float(np.prod(_inputs.spacing(spacing_mm, prediction.ndim))) / 1000
    for side, labels in (("prediction", prediction), ("reference", reference)):
        strange = outside_map(labels, regions)
        if strange:
            text = f"{side} has labels outside the map: " + ", ".join(f"{value} ({n} voxels)" for value, n in strange.items())
            text = "; ".join(part for part in (note, text) if part)
            rows.append(context.row(case, subject, "voxels_outside_map", side, float(sum(strange.values())), text))
    for region, value in regions.items():
        whole = prediction == value, reference == value
        box = _inputs.crop(*whole) or (slice(0, 0),) * prediction.ndim
        p, r = whole[0][box], whole[1][box]
        distances = surface.measure(p, r, spacing_mm, prediction.shape)
        empty = {(False, False): "both empty", (True, False): "reference empty", (False, True): "prediction empty"}.get(
            (bool(p.any()), bool(r.any())), ""
        )
        text = "; ".join(part for part in (note, empty) if part)

        def add(metric: str, number: float, region: str = region, text: str = text) -> None:
            rows.append(context.row(case, subject, metric, region, number, text))

        if empty:
            for metric, worst in table[empty].items():
                add(metric, distances.diagonal_mm if worst == DIAGONAL else float("nan") if worst is None else float(worst))
        else:
            add("dice", dice.dice(p, r))
            add("iou", dice.iou(p, r))
            add("nsd", distances.nsd(context.tolerance_mm))
            add("hd95_mm", distances.hausdorff())
            add("hd_mm", distances.hausdorff(100))
            add("assd_mm", distances.assd())
        add("volume_ml", float(p.sum()) * voxel_ml)
        add("true_volume_ml", float(r.sum()) * voxel_ml)
        add("volume_difference_ml", dice.volume_difference_ml(p, r, spacing_mm))
        add("volume_error_ml", volume.absolute_error_ml(p, r, spacing_mm))
        add("volume_error_relative", abs(volume.relative_difference(p, r)))
        if not r.any():
            add("empty_specificity", float(not p.any()))
        if len(regions) == 1:
            found = lesions.each(p, r, voxel_ml=voxel_ml)
            add("lesion_f1", found.within().f1)
            add("lesion_recall", found.within().recall)
            add("lesion_precision", found.within().precision)
            for name, low, high in SIZE_BINS_ML:
                here = found.within(low, high)
                for metric, number in (
                    ("lesion_f1", here.f1),
                    ("lesion_recall", here.recall),
                    ("lesion_precision", here.precision),
                ):
                    add(metric, number, f"{region}, {name}")
                add("lesion_count", float(here.found + here.missed), f"{region}, {name}")
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
        subjects = [row.subject for row in counted]
        low, high = mean_of(context, metric, subjects, values)
        note = "; ".join(part for part in (note, caution(subjects, (low, high) if context.resamples else None)) if part)
        made.append(
            replace(context.row("all", "all", metric, region, float(values.mean()), note, n=len(values)), low=low, high=high)
        )
    return made


Between = tuple[float | None, float | None]
"""The ends of an interval, or (None, None)."""


def mean_of(context: Context, metric: str, subjects: Sequence[str], values: np.ndarray) -> Between:
    """The interval of the mean of (n,) values of a metric, over subjects and within the metric's range; none without resamples."""
    if context.resamples == 0:
        return None, None
    return _unless_a_point(mean_interval(
        subjects, values, resamples=context.resamples, seed=context.seed, method=context.method,
        within=WITHIN.get(metric, (-np.inf, np.inf)),
    ))  # fmt: skip


def set_interval(context: Context, subjects: Sequence[str], statistic: Callable[[np.ndarray], float]) -> Between:
    """The interval of a statistic of (k,) row numbers, over subjects; none without resamples."""
    if context.resamples == 0:
        return None, None
    method: Method = OF_SETS if context.method in ("studentised", "envelope") else context.method
    return _unless_a_point(interval(subjects, statistic, resamples=context.resamples, seed=context.seed, method=method))


def _unless_a_point(between: Between) -> Between:
    """An interval whose ends are one number says that draws do not differ, not that there is no doubt: it is none."""
    return (None, None) if between[0] is not None and between[0] == between[1] else between


def caution(subjects: Sequence[str], between: Between | None = None) -> str:
    """What an interval over so few subjects does not say, or why there is none; empty from :data:`~neuroprior.metrics._bootstrap.FEW` on.

    Args:
        subjects: whose the cases are.
        between: the interval, where one was asked for.
    """
    n = len(set(subjects))
    if n < FEWEST:
        return f"no interval: {n} subject{'' if n == 1 else 's'}, at least {FEWEST} are needed"
    if between is not None and between[0] is None:
        return "no interval: draws of the subjects do not differ, or most are not defined"
    return f"few subjects: failures in up to {unseen(n):.0%} of cases may be unseen" if n < FEW else ""


def over_set(
    context: Context, subjects: Sequence[str], metrics: Mapping[str, Callable[[np.ndarray], float] | np.ndarray], note: str = "",
    undefined: str = "", region: str = "all",
) -> list[Score]:  # fmt: skip
    """Metrics of a whole set, each with its interval over subjects.

    Args:
        context: origin.
        subjects: (n,) whose each case is.
        metrics: name -> a function of (k,) row numbers, or (n,) values whose mean it is.
        note: of every row.
        undefined: why one may not be defined.
        region: of every row.
    """
    n = len(subjects)
    made = []
    for name, statistic in metrics.items():
        if isinstance(statistic, np.ndarray):
            value = float(statistic.mean()) if n else float("nan")
            low, high = mean_of(context, name, subjects, statistic) if n else (None, None)
        else:
            value = statistic(np.arange(n))
            low, high = set_interval(context, subjects, statistic) if np.isfinite(value) else (None, None)
        between = (low, high) if context.resamples else None
        reason = f"not defined: {undefined}" if not np.isfinite(value) and undefined else caution(subjects, between)
        text = "; ".join(part for part in (note, reason) if part)
        made.append(replace(context.row("all", "all", name, region, value, text, n=n), low=low, high=high))
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
        probability: (n,) of the positive class; one that is NaN is a failure, put at the wrong end.
        positive: its name.
        notes: (n,) a note for each case.

    Raises:
        InputError: a probability outside [0, 1].
    """
    t, g, p = np.array(truth, dtype=object), np.array(guess, dtype=object), np.array(probability, dtype=float)
    said = list(notes) if notes else [""] * len(t)
    yes = t == positive
    failed = np.isnan(p)
    p[failed] = np.where(yes[failed], 0.0, 1.0)
    g[failed] = "failed"
    for k in np.flatnonzero(failed):
        said[k] = "; ".join(part for part in (said[k], "failed: the probability is not a number") if part)
    _inputs.binary(yes, p)
    rows = [
        context.row(
            case,
            subject,
            "correct",
            "all",
            float(t[k] == g[k]),
            f"truth {t[k]}, predicted {g[k]}" + (f"; {said[k]}" if said[k] else ""),
        )
        for k, (case, subject) in enumerate(zip(cases, subjects, strict=True))
    ]
    rows += [
        context.row(case, subject, "probability", "all", float(p[k]), f"truth {t[k]}")
        for k, (case, subject) in enumerate(zip(cases, subjects, strict=True))
    ]
    # numbers compare faster than names, and the bootstrap compares them thousands of times
    _, code = np.unique(np.concatenate([t, g, [positive]]).astype(str), return_inverse=True)
    t, g, sign = code[: len(t)], code[len(t) : -1], code[-1]
    unlikely = -np.log(np.clip(np.where(yes, p, 1 - p), nll.SMALLEST, 1 - nll.SMALLEST))
    head = f"positive class {positive}, {int(yes.sum())} of {len(yes)}"
    over = over_set(
        context,
        subjects,
        {
            "auroc": lambda k: auroc.auroc(yes[k], p[k]),
            "auprc": lambda k: auroc.auprc(yes[k], p[k]),
            "balanced_accuracy": lambda k: classification.balanced_accuracy(t[k], g[k]),
            "f1": lambda k: classification.f1(t[k], g[k], sign),
            "macro_f1": lambda k: classification.macro_f1(t[k], g[k]),
            "mcc": lambda k: classification.mcc(t[k], g[k]),
            "sensitivity": lambda k: classification.sensitivity(t[k], g[k], sign),
            "specificity": lambda k: classification.specificity(t[k], g[k], sign),
            "sensitivity_at_specificity_90": lambda k: operating.sensitivity_at_specificity(yes[k], p[k], 0.9),
            "specificity_at_sensitivity_90": lambda k: operating.specificity_at_sensitivity(yes[k], p[k], 0.9),
            "ece": lambda k: ece.ece(yes[k], p[k]),
            "ece_mass": lambda k: ece.ece(yes[k], p[k], scheme="mass"),
            "ece_debiased": lambda k: ece.debiased(yes[k], p[k]),
            "brier": (p - yes) ** 2,
            "nll": unlikely,
        },
        head,
        "one class only" if yes.all() or not yes.any() else "no case of the class that it needs",
    )
    # a share of the cases of one class: binomial over its subjects, where a bootstrap of 5 hits of 5 knows no doubt
    for place, row in enumerate(over):
        of = {"sensitivity": yes, "specificity": ~yes}.get(row.metric)
        if of is not None and of.any():
            hit, who = ((t == sign) == (g == sign))[of].astype(float), [subjects[k] for k in np.flatnonzero(of)]
            low, high = mean_of(context, "correct", who, hit)
            said_of = caution(who, (low, high) if context.resamples else None)
            over[place] = replace(row, low=low, high=high, note="; ".join(part for part in (head, said_of) if part))
    return rows + over


def regress(
    context: Context, cases: Sequence[str], subjects: Sequence[str], truth: Sequence[float], guess: Sequence[float],
    notes: Sequence[str] | None = None, floor: float | None = None,
) -> list[Score]:  # fmt: skip
    """Scores of a regression.

    Args:
        context: origin.
        cases, subjects: (n,) who.
        truth, guess: (n,) in the target's unit. A guess that is not finite is a failure and counts as twice the floor's error.
        notes: (n,) a note for each case.
        floor: the constant prediction that a failure is measured by, the training mean; by default the mean of ``truth``.
    """
    t, g = np.array(truth, dtype=float), np.array(guess, dtype=float)
    said = list(notes) if notes else [""] * len(t)
    failed = ~np.isfinite(g)
    g[failed] = t[failed] + 2 * ((t.mean() if floor is None else floor) - t[failed])
    for k in np.flatnonzero(failed):
        said[k] = "; ".join(
            part for part in (said[k], "failed: the prediction is not a number, counted as twice the floor's error") if part
        )
    rows = []
    for k, (case, subject) in enumerate(zip(cases, subjects, strict=True)):
        rows.append(context.row(case, subject, "absolute_error", "all", abs(g[k] - t[k]), said[k]))
        rows.append(context.row(case, subject, "truth", "all", t[k]))
        rows.append(context.row(case, subject, "predicted", "all", g[k], said[k]))
    return rows + over_set(
        context, subjects,
        {
            "mae": np.abs(g - t),
            "rmse": lambda k: errors.rmse(t[k], g[k]),
            "mean_error": g - t,
            "pearson_r": lambda k: errors.pearson(t[k], g[k]),
            "spearman_r": lambda k: errors.spearman(t[k], g[k]),
            "error_slope": lambda k: age_bias.slope(t[k], g[k]),
        },
        f"{int(failed.sum())} failed cases counted as twice the floor's error" if failed.any() else "",
        "fewer than three cases, or values that do not vary",
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
    low, high = mean_interval([left[c].subject for c in shared], difference, resamples=resamples, seed=seed, method=OF_MEANS)
    return {
        "metric": metric,
        "region": region,
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "n": len(shared),
    }
