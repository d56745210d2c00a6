"""Robustness: how far the scores of a model fall when its scans get worse, artefact by artefact.

The protocol of ROOD-MRI (Boone et al. 2023, NeuroImage 278:120289): every scan of a case goes through one artefact at five severities s, and
with weights w_s = (2/3)^s a metric m has the mean (m_clean + sum w_s m_s) / (1 + sum w_s) and the degradation
sum w_s (m_clean - m_s) / sum w_s, both averaged over artefacts. Two departures: the levels are our own (``_corruptions``), and for a
metric of which less is better the degradation is given with its sign turned, so that positive is always worse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from ..core import nifti, seeds
from ..core.config import Config as BaseConfig
from ..core.errors import ArtifactError, InputError, NeuropriorError, suggestion
from ..core.grids import corner_distance_mm, grid_of
from ..core.records import BAD, Scan, Score
from ..core.resampling import resample_labels
from ..core.volume import Volume
from ..data.cases import mapped_labels
from ..inference.answers import CaseOutput
from ..inference.inputs import from_scans
from ..inference.model import Model
from ..inference.predictor import compute
from ..inference.presets import PredictConfig
from ..inference.reading import CaseInput, prepare, usable
from ..metrics._bootstrap import FEWEST, bounds, counts
from ._corruptions import LEVELS, SEVERITIES, corrupt
from .accuracy import Context, classify, regress, segmentation_case, summarise
from .significance import LOWER_IS_BETTER

logger = logging.getLogger(__name__)

CLEAN = "clean"
EVERY = "every corruption"
"""Condition of the rows that average over artefacts."""
HEADLINES = {
    "segmentation": ("dice", "nsd", "lesion_f1"),
    "classification": ("auroc", "balanced_accuracy", "brier"),
    "regression": ("mae", "pearson_r"),
}
"""Task -> the metrics that are summarised over severities."""
CASE_METRIC = {"dice": "dice", "nsd": "nsd", "lesion_f1": "lesion_f1", "mae": "absolute_error"}
"""Metric of the set -> the per-case metric whose mean it is, where there is one: its summary has an interval."""


class Config(BaseConfig):
    """What is done to the scans."""

    corruptions: tuple[str, ...] = tuple(LEVELS)
    """Artefacts, names of ``_corruptions.LEVELS``."""
    severities: tuple[int, ...] = SEVERITIES
    """Levels, 1 to 5."""
    seed: int = Field(default=0, ge=0)
    """Of axes, signs and phases: drawn once a scan, the same at every severity."""

    @field_validator("corruptions")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in LEVELS:
                raise ValueError(f"there is no corruption {name!r}; {suggestion(name, list(LEVELS)) or ', '.join(LEVELS)}")
        return value

    @field_validator("severities")
    @classmethod
    def _possible(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or not set(value) <= set(SEVERITIES):
            raise ValueError(f"severities are some of 1 to 5, got {value}")
        return value

    def conditions(self) -> list[tuple[str, int]]:
        """(corruption, severity) in order; the clean scans, ("", 0), come first."""
        return [("", 0), *((name, level) for name in self.corruptions for level in sorted(self.severities))]


@dataclass(frozen=True)
class Judged:
    """A case and what is true of it.

    Attributes:
        case: its scans.
        truth: path of a label map, a class name, or a number.
    """

    case: CaseInput
    truth: Any


def condition_name(corruption: str, severity: int) -> str:
    """How a condition is called in the score table: ``clean`` or ``motion 3``."""
    return f"{corruption} {severity}" if corruption else CLEAN


def judged(model: Model, scans: Sequence[Scan]) -> list[Judged]:
    """The cases among index rows that have a contrast the model knows and a truth of its target.

    Raises:
        InputError: there is none.
    """
    task = model.task
    rows: dict[tuple[str, str], list[Scan]] = {}
    for scan in scans:
        if scan.status != BAD:
            rows.setdefault((scan.subject, scan.session), []).append(scan)
    found = []
    for case in from_scans(scans):
        here = rows[(case.subject, case.session)]
        if task["name"] == "segmentation":
            truth = next((scan.labels[task["target"]] for scan in here if task["target"] in scan.labels), None)
        else:
            truth = next((v for v in (scan.value(task["target"]) for scan in here) if v is not None), None)
        if truth is not None and any(name in model.contrasts for name in case.scans):
            found.append(Judged(case, truth))
    if not found:
        raise InputError(
            f"no case of the index has a contrast of the model and a truth of {task['target']!r}",
            expected=f"{task['target']} and one of {', '.join(model.contrasts)}",
        )
    return found


def corrupted(
    volumes: Mapping[str, Volume], case: str, corruption: str, severity: int, seed: int
) -> tuple[dict[str, Volume], dict[str, Any]]:
    """All scans of a case under one artefact, each with a draw of its own; contrast -> the drawn parameters beside them."""
    if not corruption:
        return dict(volumes), {}
    made, drawn = {}, {}
    for contrast, volume in sorted(volumes.items()):
        rng = seeds.generator(seed, "corruption", case, contrast, corruption)
        made[contrast], drawn[contrast] = corrupt(volume, corruption, severity, rng)
    return made, drawn


def assess(
    model: Model,
    cases: Sequence[Judged],
    corruption: str,
    severity: int,
    *,
    config: Config,
    context: Context,
    predict: PredictConfig | None = None,
    done: Callable[[], object] = lambda: None,
) -> tuple[list[Score], dict[str, Any]]:
    """Scores of one condition.

    Args:
        model: fine-tuned, or an ensemble.
        cases: see :func:`judged`.
        corruption, severity: the condition; an empty name is the clean scans.
        config: gives the seed.
        context: origin and rule; its condition is replaced.
        predict: settings of prediction.
        done: called after every case.

    Returns:
        Rows of every case and of the set, and case -> contrast -> drawn parameters. A case that cannot be predicted counts as the
        worst, with its reason in the note.
    """
    context = replace(context, condition=condition_name(corruption, severity))
    outputs: list[tuple[CaseOutput | None, str]] = []
    draws: dict[str, Any] = {}
    rows: list[Score] = []
    for item in cases:
        case = item.case
        output, reason = None, ""
        try:
            volumes = {name: nifti.read_scan(path)[0] for name, path in usable(model, case.scans).items()}
            made, draws[case.case] = corrupted(volumes, case.case, corruption, severity, config.seed)
            prepared = prepare(model, made, name=case.case, covariates=case.covariates)
            output = compute(model, prepared, predict)[0]
            if model.task["name"] == "segmentation":
                rows += _mask_rows(context, model, item, output.mask, grid_of(volumes[output.reference]))
                output = replace(output, mask=None)
        except ArtifactError:
            raise
        except NeuropriorError as error:
            reason = error.reason
            logger.warning("%s under %s: %s", case.case, context.condition, reason)
            if model.task["name"] == "segmentation":
                rows += _mask_rows(context, model, item, None, None, f"failed: {reason}")
        outputs.append((output, reason))
        done()
    if model.task["name"] == "segmentation":
        return rows + summarise(context, rows), draws
    return _set_rows(context, model, cases, outputs), draws


def _mask_rows(context: Context, model: Model, item: Judged, mask: np.ndarray | None, grid: Any, note: str = "") -> list[Score]:
    """Rows of one mask against its reference; a missing mask counts as an empty one."""
    truth, _ = nifti.read_labels(item.truth)
    truth = Volume(mapped_labels(truth.voxels, model.task), truth.affine)
    voxels, spacing = truth.voxels, truth.spacing_mm
    if mask is None:
        mask = np.zeros_like(voxels)
    elif grid.shape != truth.shape or corner_distance_mm(grid, grid_of(truth)) > 0.01 * min(truth.spacing_mm):
        voxels, spacing = resample_labels(truth, grid), grid.spacing_mm
        note = "reference resampled to the prediction's grid"
    values = model.task["label_values"]
    target = model.task["target"]
    regions = {target: values[0]} if len(values) == 1 else {f"{target} {value}": value for value in values}
    return segmentation_case(context, item.case.case, item.case.subject, mask, voxels, spacing, regions, note)


def _set_rows(
    context: Context, model: Model, cases: Sequence[Judged], outputs: Sequence[tuple[CaseOutput | None, str]]
) -> list[Score]:
    names, subjects = [item.case.case for item in cases], [item.case.subject for item in cases]
    notes = [f"failed: {reason}" if output is None else "" for output, reason in outputs]
    task = model.task
    if task["name"] == "regression":
        guess = [float("nan") if output is None or output.value is None else output.value for output, _ in outputs]
        return regress(context, names, subjects, [float(item.truth) for item in cases], guess, notes, task["floor"]["mean"])
    said = [{} if output is None else output.classes for output, _ in outputs]
    guess = [max(classes, key=lambda name: classes[name]) if classes else "failed" for classes in said]
    probability = [classes.get(task["positive"], float("nan")) for classes in said]
    return classify(context, names, subjects, [str(item.truth) for item in cases], guess, probability, task["positive"], notes)


# ----------------------------------------------------------------------------------------------------------- summaries


def weights(severities: Sequence[int]) -> np.ndarray:
    """(2/3)^s of each severity."""
    return (2 / 3) ** np.asarray(severities, dtype=float)


def overall(clean: float, at: Mapping[int, float]) -> float:
    """The mean of a metric over the clean scans and all severities of an artefact; NaN where one is not defined."""
    w = weights(list(at))
    return float((clean + (w * np.array(list(at.values()), dtype=float)).sum()) / (1 + w.sum()))


def degradation(clean: float, at: Mapping[int, float], *, less_is_better: bool = False) -> float:
    """How far a metric falls from the clean scans, weighted over severities; positive is worse."""
    w = weights(list(at))
    fall = float((w * (clean - np.array(list(at.values()), dtype=float))).sum() / w.sum())
    return -fall if less_is_better else fall


def summary(rows: Sequence[Score], context: Context) -> list[Score]:
    """For every headline metric the overall mean and the degradation, for each artefact and over all of them.

    Args:
        rows: of all conditions, cases and sets.
        context: origin.

    Returns:
        Rows ``<metric>_overall`` and ``<metric>_degradation`` whose condition is the artefact, or ``every corruption``. Metrics that are
        means over cases have a bootstrap interval over subjects, the same draw of subjects under every artefact.
    """
    values: dict[tuple[str, str], dict[tuple[str, int], dict[str, Score]]] = {}
    for row in rows:
        corruption, _, level = row.condition.rpartition(" ")
        place = (corruption, int(level)) if corruption else ("", 0)
        values.setdefault((row.metric, row.region), {}).setdefault(place, {})[row.case] = row
    made: list[Score] = []
    for metric in HEADLINES.get(context.task, ()):
        for (name, region), conditions in sorted(values.items()):
            if name == metric and ("", 0) in conditions and "," not in region:
                made += _summary_of(metric, region, conditions, values.get((CASE_METRIC.get(metric, ""), region)), context)
    return made


def _summary_of(
    metric: str, region: str, conditions: Mapping[tuple[str, int], Mapping[str, Score]],
    cases: Mapping[tuple[str, int], Mapping[str, Score]] | None, context: Context,
) -> list[Score]:  # fmt: skip
    corruptions = list(dict.fromkeys(name for name, _ in conditions if name))
    less = metric in LOWER_IS_BETTER
    measures = {"overall": overall, "degradation": lambda clean, at: degradation(clean, at, less_is_better=less)}
    drawn = _drawn_means(cases, context) if cases else {}
    made = []
    for measure, function in measures.items():
        each, again = {}, {}
        for corruption in corruptions:
            levels = [level for name, level in conditions if name == corruption]
            get = _number(conditions, "all")
            each[corruption] = function(get("", 0), {level: get(corruption, level) for level in levels})
            if ("", 0) in drawn and all((corruption, level) in drawn for level in levels):
                at = np.array([drawn[corruption, level] for level in levels])
                again[corruption] = np.array([
                    function(clean, dict(zip(levels, column, strict=True))) for clean, column in zip(drawn["", 0], at.T, strict=True)
                ])  # fmt: skip
        rows = [(corruption, each[corruption], again.get(corruption)) for corruption in corruptions]
        whole = np.mean(list(again.values()), axis=0) if len(again) == len(corruptions) else None
        rows.append((EVERY, float(np.mean(list(each.values()))), whole))
        for condition, value, values in rows:
            row = replace(context, condition=condition).row("all", "all", f"{metric}_{measure}", region, value)
            if values is not None and cases:
                defined = _defined(cases)
                low, high = bounds(values, 0.95, len({row.subject for row in defined.values()}))
                row = replace(row, low=low, high=high, n=len(defined))
            made.append(row)
    return made


def _defined(cases: Mapping[tuple[str, int], Mapping[str, Score]]) -> dict[str, Score]:
    """The cases that have a value under some condition, by name."""
    return {name: row for rows in cases.values() for name, row in rows.items() if name != "all" and row.value is not None}


def _drawn_means(cases: Mapping[tuple[str, int], Mapping[str, Score]], context: Context) -> dict[tuple[str, int], np.ndarray]:
    """Condition -> (draws,) the mean over the cases that it is defined for, in each bootstrap draw of the subjects; one draw serves all conditions.

    A case may be defined under some conditions only (both masks empty on the clean scan, a false lesion on a noisy one): it counts where it is, as in
    the mean over the set.
    """
    defined = _defined(cases)
    subjects = sorted({row.subject for row in defined.values()})
    if len(subjects) < FEWEST or not context.resamples:
        return {}
    weights = counts(len(subjects), resamples=context.resamples, seed=context.seed)
    place = {name: k for k, name in enumerate(subjects)}
    made = {}
    for condition, rows in cases.items():
        total, number = np.zeros(len(subjects)), np.zeros(len(subjects))
        for name, row in rows.items():
            if name != "all" and row.value is not None:
                total[place[row.subject]] += row.value
                number[place[row.subject]] += 1
        with np.errstate(invalid="ignore"):
            made[condition] = (weights @ total) / (weights @ number)
    return made


def _number(conditions: Mapping[tuple[str, int], Mapping[str, Score]], case: str) -> Callable[[str, int], float]:
    def of(corruption: str, severity: int) -> float:
        row = conditions.get((corruption, severity), {}).get(case)
        return float("nan") if row is None or row.value is None else row.value

    return of
