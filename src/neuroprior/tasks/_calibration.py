"""Calibrating a finished model on validation cases: run it on whole volumes, compare, fit, and write the result into its folder.

Answers are taken on the store's grid, through the same windows as a prediction. What is fitted, and by which formulas, is in
``inference/calibration.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import ranks, seeds
from ..core.errors import InputError
from ..core.volume import spacing_mm
from ..data.cases import Case, class_numbers, mapped_labels
from ..data.store import Store
from ..inference import calibration as calibrating
from ..inference import model as models
from ..inference import windows
from ..inference.calibration import Calibration
from ..inference.predictor import encoded_covariates
from ..metrics import ece

logger = logging.getLogger(__name__)

VOXELS = 4000
"""Voxels of a case that a segmentation's temperature is fitted on."""
GROUPS = ("sex",)
"""Columns by whose values intervals are also learned, where a value has enough cases; known before a scan is read."""
AGE_GROUPS = (40, 60)
"""Ages in years where the age groups of scores meet, and the ranges of an age's intervals."""

Look = Callable[[Case, np.ndarray, np.ndarray, tuple[float, float, float]], list[dict[str, Any]]]
"""Takes a case, predicted and true label maps on the store's grid and the spacing in mm; gives rows to keep with the answer."""


@dataclass(frozen=True)
class Answer:
    """What a model says of a case whose truth is known. Voxels apart, it is plain data.

    Attributes:
        case, subject: the session's key, and whose it is.
        truth: class number, value in the target's unit, or None for a segmentation.
        probabilities: of the classes, before any temperature; empty for other tasks.
        value: predicted number in the target's unit, or None.
        volumes_ml: label value as text -> (predicted, true) millilitres.
        confidence: of a segmentation, in [0, 1]: the mean probability of the winning class over the mask, or the smallest background
            probability anywhere where the mask is empty, as a prediction gives it; before any temperature. None for others.
        groups: what is known of the person, for intervals by group and for scores by group.
        rows: what a caller wanted kept.
        voxels: (m, classes) float32 probabilities of sampled voxels, or None.
        voxel_truth: (m,) int class numbers of those.
        voxel_weights: (m,) how many voxels each stands for.
    """

    case: str
    subject: str
    truth: float | None = None
    probabilities: tuple[float, ...] = ()
    value: float | None = None
    volumes_ml: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    confidence: float | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[dict[str, Any], ...] = ()
    voxels: np.ndarray | None = None
    voxel_truth: np.ndarray | None = None
    voxel_weights: np.ndarray | None = None


def group_of(columns: Mapping[str, Any]) -> dict[str, str]:
    """Sex and age group (``<40``, ``40-59``, ``60+``) of a person, as far as known."""
    made = {}
    if columns.get("sex") is not None:
        made["sex"] = str(columns["sex"])
    try:
        age = float(columns["age"])
    except (KeyError, TypeError, ValueError):
        return made
    if np.isfinite(age):
        young, old = AGE_GROUPS
        made["age"] = f"<{young}" if age < young else f"{young}-{old - 1}" if age < old else f"{old}+"
    return made


def sample_voxels(images: np.ndarray, truth: np.ndarray, n: int, *key: seeds.Key) -> tuple[np.ndarray, np.ndarray]:
    """Voxels in and around the head: half of them in or near the labels, where a temperature is decided, half elsewhere.

    The places depend on the images, the truth and the key alone, so that several models are read at the same ones.

    Args:
        images: (K, x, y, z), zero outside the field of view.
        truth: (x, y, z) class numbers.
        n: how many, fewer where there are fewer.
        key: names the draw.

    Returns:
        ((m,) flat positions, (m,) float64 weights: how many voxels of the head each stands for).
    """
    from scipy.ndimage import binary_dilation

    head = np.asarray(binary_dilation((images != 0).any(0), iterations=2), dtype=bool)
    near = np.asarray(binary_dilation(truth > 0, iterations=2), dtype=bool) & head
    draw = seeds.generator(*key)
    places, weights = [], []
    for part in (np.flatnonzero(near), np.flatnonzero(head & ~near)):
        m = min(n // 2, len(part))
        if m:
            places.append(np.sort(draw.choice(part, m, replace=False)))
            weights.append(np.full(m, len(part) / m))
    if not places:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    return np.concatenate(places), np.concatenate(weights)


@torch.inference_mode()
def answers(
    model: models.Model, store: Store, cases: Sequence[Case], *, voxels: int = VOXELS, seed: int = 0, look: Look | None = None
) -> list[Answer]:
    """A model's answers for cases of a store, each seen whole, without any calibration.

    Args:
        model: fine-tuned, for the task of the cases.
        store: of the cases.
        cases: with the task's targets (class numbers, standardised values or label names).
        voxels: kept of each segmentation.
        seed: of the choice of voxels.
        look: called with each segmentation.
    """
    task = model.task
    device = next(model.net.parameters()).device
    model.net.eval()
    made = []
    for case in cases:
        session = case.session
        names = [name for name in case.contrasts if name in model.contrasts]
        images = np.stack([store.read(session.key, name) for name in names])
        tensor = torch.from_numpy(images).float().to(device)
        common: dict[str, Any] = {"case": session.key, "subject": session.subject, "groups": group_of(session.columns)}
        if task["name"] == "segmentation":
            made.append(_segmentation(model, store, case, names, images, tensor, voxels, seed, look, common))
            continue
        raw = windows.pool_passes(
            model, tensor, names, window=task["window"], passes=windows.Passes(),
            covariates=encoded_covariates(model, session.columns, str(device)),
        )[0].cpu()  # fmt: skip
        if task["name"] == "classification":
            probabilities = tuple(float(p) for p in raw[: len(task["classes"])].softmax(0))
            made.append(Answer(truth=float(case.target), probabilities=probabilities, **common))
        else:
            mean, std = task["mean"], task["std"]
            # the case's target is standardised by the task that made the case, which may be another fold's: read it anew
            truth = session.value(task["target"])
            made.append(Answer(truth=float(truth), value=float(raw[0]) * std + mean, **common))
    return made


def _segmentation(
    model: models.Model, store: Store, case: Case, names: Sequence[str], images: np.ndarray, tensor: torch.Tensor, voxels: int,
    seed: int, look: Look | None, common: dict[str, Any],
) -> Answer:  # fmt: skip
    values = model.task["label_values"]
    probability = windows.segment(model, tensor, names, window=model.task["window"]).float().cpu().numpy()
    label = store.read_label(case.session.key, str(case.target))
    truth = class_numbers(mapped_labels(label, model.task), values)
    guess = probability.argmax(0)
    spacing = spacing_mm(case.session.affine)
    voxel_ml = float(np.prod(spacing)) / 1000
    volumes = {
        str(value): (float((guess == k).sum()) * voxel_ml, float((truth == k).sum()) * voxel_ml)
        for k, value in enumerate(values, start=1)
    }
    inside = guess > 0
    places, weights = sample_voxels(images, truth, voxels, seed, "calibration voxels", case.session.key)
    rows: list[dict[str, Any]] = []
    if look is not None:
        lookup = np.array([0, *values], dtype=np.int64)
        rows = look(case, lookup[guess], lookup[truth], spacing)
    return Answer(
        volumes_ml=volumes, confidence=float(probability.max(0)[inside].mean()) if inside.any() else float(probability[0].min()),
        rows=tuple(rows), voxels=probability.reshape(len(probability), -1)[:, places].T.astype(np.float32).copy(),
        voxel_truth=truth.reshape(-1)[places].astype(np.int32), voxel_weights=weights, **common,
    )  # fmt: skip


def fit(
    given: Sequence[Answer], task: Mapping[str, Any], *, source: str, level: float = 0.9, coverage: float = 0.9
) -> Calibration:
    """What answers with known truth teach.

    Args:
        given: answers on cases that the model did not learn from.
        task: the model's description of its task.
        source: where the cases come from, in words, for the model's card.
        level: coverage of the intervals.
        coverage: share of the cases that ``--abstain`` would still answer.

    Raises:
        InputError: too few cases, or one class only.
    """
    n = len(given)
    if n < calibrating.MIN_CASES:
        raise InputError("too few cases to calibrate on", expected=f"at least {calibrating.MIN_CASES}", got=n)
    facts: dict[str, Any] = {"source": source, "cases": n, "subjects": len({a.subject for a in given})}
    if task["name"] == "regression":
        errors = np.array([abs((a.value or 0.0) - (a.truth or 0.0)) for a in given])
        width = calibrating.conformal(errors, level)
        groups: dict[str, dict[str, float]] = {}
        if width.level >= level:
            for name in GROUPS:
                found = calibrating.conformal_by_group(errors, [a.groups.get(name) for a in given], level)
                if found:
                    groups[name] = {value: entry.value for value, entry in found.items()}
        truth = [float(a.truth or 0.0) for a in given]
        # where a person is by the number that is predicted: those are the groups that users look at, or else thirds of the cases
        edges = AGE_GROUPS if task["target"] == "age" else sorted(set(np.quantile(truth, [1 / 3, 2 / 3]).tolist()))
        of = {name: [a.groups.get(name) for a in given] for name in GROUPS}
        ranges = calibrating.conformal_by_range(errors, truth, edges, level, of)
        return Calibration(n, 1.0, width.level, {"value": width.value}, None, level, groups, ranges, facts)
    if task["name"] == "classification":
        p, truth = probability_table(given), np.array([int(a.truth or 0) for a in given])
        temperature = calibrating.fit_temperature(p, truth)
        after = calibrating.temper(p, temperature)
        facts |= {"nll_before": calibrating.nll(p, truth), "nll_after": calibrating.nll(after, truth)}
        right = p.argmax(1) == truth
        facts |= {"ece_before": ece.ece(right, p.max(1)), "ece_after": ece.ece(right, after.max(1))}
        threshold = calibrating.abstain_threshold(after.max(1), coverage=coverage)
        return Calibration(n, temperature, level, {}, threshold, level, {}, (), facts)
    p = np.concatenate([a.voxels for a in given if a.voxels is not None])
    truth = np.concatenate([a.voxel_truth for a in given if a.voxel_truth is not None])
    weights = np.concatenate([a.voxel_weights for a in given if a.voxel_weights is not None])
    temperature = calibrating.fit_temperature(p, truth, weights=weights, prior=None)
    after = calibrating.temper(p, temperature)
    facts |= {"nll_before": calibrating.nll(p, truth, weights), "nll_after": calibrating.nll(after, truth, weights)}
    widths = {
        value: calibrating.conformal([a.volumes_ml[value][0] - a.volumes_ml[value][1] for a in given], level)
        for value in given[0].volumes_ml
    }
    reached = min(width.level for width in widths.values())
    threshold = calibrating.abstain_threshold([mask_confidence(a, temperature) for a in given], coverage=coverage)
    quantiles = {"volume_ml": {value: width.value for value, width in widths.items()}}
    return Calibration(n, temperature, reached, quantiles, threshold, level, {}, (), facts)


def mask_confidence(answer: Answer, temperature: float) -> float:
    """A segmentation's confidence as a prediction gives it after the temperature, estimated from the sampled voxels of its mask."""
    assert answer.voxels is not None and answer.voxel_weights is not None and answer.confidence is not None
    found = answer.voxels.argmax(1) > 0
    if found.any():
        sure = calibrating.temper(answer.voxels[found].astype(float), temperature).max(1)
        return float(np.average(sure, weights=answer.voxel_weights[found]))
    return float(calibrating.temper(np.array([answer.confidence, 1 - answer.confidence]), temperature)[0])


def probability_table(given: Sequence[Answer]) -> np.ndarray:
    """(n, classes) float64 probabilities of some answers."""
    return np.array([a.probabilities for a in given], dtype=float)


def calibrate(
    folder: str | Path,
    store: Store,
    cases: Sequence[Case],
    *,
    level: float = 0.9,
    coverage: float = 0.9,
    seed: int = 0,
    source: str = "validation",
) -> Calibration | None:
    """Calibrate the model in a folder on validation cases, and write the result into its ``model.json``.

    A model that has a calibration is left as it is, so a finished run is not calibrated twice.

    Args:
        folder: run or model folder.
        store: of the cases.
        cases: that the model did not learn from.
        level: coverage of the intervals.
        coverage: share of the cases that ``--abstain`` would still answer.
        seed: of the choice of voxels.
        source: where the cases come from, in words.

    Returns:
        What was stored; None where the cases are too few or of one class only, which is told.
    """
    if not ranks.is_first():
        return None  # one process of a run on several devices is enough
    before = calibrating.read(folder)
    if before is not None:
        return before
    if len(cases) < calibrating.MIN_CASES:
        _tell_not(f"{len(cases)} validation cases are too few, {calibrating.MIN_CASES} are needed")
        return None
    model = models.load(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        made = fit(answers(model, store, cases, seed=seed), model.task, source=source, level=level, coverage=coverage)
    except InputError as error:
        _tell_not(error.reason)
        return None
    calibrating.attach(folder, made)
    tell(made)
    return made


def _tell_not(why: str) -> None:
    logger.warning("the model is not calibrated: %s. neuroprior crossvalidate calibrates on every labelled case", why)


def tell(made: Calibration) -> None:
    """Say what was learned, and that a level was not reached where it was not."""
    parts = [f"temperature {made.temperature:.3g}"] if made.temperature != 1.0 else []
    if made.quantiles.get("value") is not None:
        parts.append(f"intervals of +- {made.quantiles['value']:.3g}")
        if made.ranges:
            words = (
                ("below" if np.isinf(part.low) else "from", part.high if np.isinf(part.low) else part.low) for part in made.ranges
            )
            parts[-1] += ", by where the truth lies: " + ", ".join(
                f"{word} {end:.3g} +- {part.half_width:.3g}" for (word, end), part in zip(words, made.ranges, strict=True)
            )
    if made.quantiles.get("volume_ml"):
        widths = made.quantiles["volume_ml"]
        parts.append("volumes " + ", ".join(f"{value}: +- {width:.3g} ml" for value, width in list(widths.items())[:5]))
    if made.abstain_below is not None:
        parts.append(f"--abstain below {made.abstain_below:.3g}")
    logger.info(
        "calibrated on %d %s cases: %s", made.n, made.facts.get("source", "validation"), ", ".join(parts) or "nothing to change"
    )
    if made.level < made.asked:
        logger.warning(
            "%d cases are too few for intervals at %.0f %%: the stored ones cover %.0f %%",
            made.n,
            100 * made.asked,
            100 * made.level,
        )
