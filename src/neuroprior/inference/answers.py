"""From what a net says to what a user is told: labels, volumes and numbers in native space, with what is known of them. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import softmax

from ..core.errors import ConfigError
from .calibration import Calibration, interval, temper
from .described import Described
from .native import NativeBuilder
from .presets import PredictConfig
from .reading import Prepared


@dataclass(frozen=True)
class CaseOutput:
    """What a model says of a case.

    Attributes:
        mask: (x, y, z) label map on the reference scan's native grid, or None.
        foreground: (x, y, z) float32 probability of not being background on that grid, or None where it was not asked for.
        entropy, mutual: (x, y, z) float32 in [0, 1] on that grid, or None (``native.NativeAnswer``).
        voxels: voxels of the mask in all labels.
        probability: of a segmentation, the mean foreground probability in the mask.
        volumes_ml: label value -> (ml, low, high); low and high are None where the model has no calibrated interval.
        value: the predicted number, or None.
        std: its spread over members, samples and mirrored copies, or what the head itself says; None where nothing tells it.
        low, high: its conformal interval, or None.
        classes: class name -> calibrated probability; empty for other tasks.
        confidence: in [0, 1]: of the most probable class, or of the winning class over the mask; None for a number.
        reference: the contrast whose native grid the mask lies on.
        missing: contrasts that the model knows and the case has not.
        notes: what was repaired or assumed on the way.
        flags: words about quality: ``empty_mask``, ``touches_edge``, ``low_overlap:FLAIR``, ``already_normalised:T1w``, ``other_mask``,
            ``low_confidence``.
        rung: which way of computing was used (``ladder.Rung.name``).
    """

    reference: str
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()
    mask: np.ndarray | None = None
    foreground: np.ndarray | None = None
    entropy: np.ndarray | None = None
    mutual: np.ndarray | None = None
    voxels: int | None = None
    probability: float | None = None
    volumes_ml: Mapping[int, tuple[float, float | None, float | None]] = field(default_factory=dict)
    value: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    classes: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None
    flags: tuple[str, ...] = ()
    rung: str = ""


def segmented(
    model: Described, prepared: Prepared, blocks: Iterable[tuple[int, np.ndarray]], config: PredictConfig, *, spread: bool, rung: str = ""
) -> CaseOutput:  # fmt: skip
    """The answer of a segmentation.

    Args:
        model: says what the classes are, and holds the calibration.
        prepared: the case.
        blocks: (first row, (classes [+ 1], rows, y, z) float32 probabilities), consecutive; they may be changed.
        config: which maps are kept.
        spread: the blocks carry a last channel with the mean entropy of single passes.
        rung: see :class:`CaseOutput`.
    """
    task, record = model.task, prepared.record
    calibration = Calibration.from_json(model.info.get("calibration"))
    builder = NativeBuilder(
        record, task["label_values"], temperature=calibration.temperature if calibration else 1.0, foreground=config.probabilities,
        entropy=config.uncertainty, spread=spread,
    )  # fmt: skip
    for first, block in blocks:
        builder.push(first, block)
    answer = builder.finish()
    ml = abs(float(np.linalg.det(record.native.affine[:3, :3]))) / 1000
    widths = (calibration.quantiles.get("volume_ml") or {}) if calibration else {}
    volumes: dict[int, tuple[float, float | None, float | None]] = {}
    for value, count in answer.voxels.items():
        width = widths.get(str(value))
        low, high = (None, None) if width is None else interval(count * ml, float(width), lowest=0.0)
        volumes[value] = (count * ml, low, high)
    flags = [*prepared.flags]
    if not answer.mask.any():
        flags.append("empty_mask")
    elif _touches_edge(answer.mask):
        flags.append("touches_edge")
    return CaseOutput(
        prepared.reference, prepared.missing, prepared.notes, mask=answer.mask, foreground=answer.foreground,
        entropy=answer.entropy, mutual=answer.mutual, voxels=sum(answer.voxels.values()), probability=answer.inside,
        volumes_ml=volumes, confidence=answer.confidence, flags=_doubted(flags, answer.confidence, calibration), rung=rung,
    )  # fmt: skip


def pooled(
    model: Described, prepared: Prepared, raw: Sequence[np.ndarray], tasks: Sequence[Mapping[str, Any]], *, rung: str = ""
) -> CaseOutput:  # fmt: skip
    """The answer of a classification or a regression.

    Args:
        model: says what is predicted, and holds the calibration.
        prepared: the case.
        raw: one (passes, outputs) float64 a member.
        tasks: of the members; each has its own scale of a number.
        rung: see :class:`CaseOutput`.

    Raises:
        ConfigError: the task is unknown.
    """
    task = model.task
    calibration = Calibration.from_json(model.info.get("calibration"))
    told = CaseOutput(prepared.reference, prepared.missing, prepared.notes, flags=prepared.flags, rung=rung)
    if task["name"] == "classification":
        mean = np.mean([softmax(rows, axis=1).mean(0) for rows in raw], axis=0)
        if calibration:
            mean = temper(mean, calibration.temperature, axis=0)
        classes = {name: float(p) for name, p in zip(task["classes"], mean, strict=True)}
        confidence = max(classes.values())
        return replace(told, classes=classes, confidence=confidence, flags=_doubted(prepared.flags, confidence, calibration))
    if task["name"] == "regression":
        values, own = [], []
        for rows, scale in zip(raw, tasks, strict=True):
            values.append(rows[:, 0] * scale["std"] + scale["mean"])
            spread = _own_spread(rows, scale)
            if spread is not None:
                own.append(spread * scale["std"])
        drawn = np.concatenate(values)
        value = float(np.mean([rows.mean() for rows in values]))
        variance = (float(drawn.var()) if drawn.size > 1 else 0.0) + (float(np.mean(np.concatenate(own) ** 2)) if own else 0.0)
        std = math.sqrt(variance) if drawn.size > 1 or own else None
        groups = {name: None if v is None else str(v) for name, v in prepared.covariates.items()}
        found = calibration.interval(value, groups) if calibration else None
        low, high = found or (None, None)
        return replace(told, value=value, std=std, low=low, high=high)
    raise ConfigError(f"inference does not know the task {task['name']!r}", file=model.folder)


def _own_spread(rows: np.ndarray, task: Mapping[str, Any]) -> np.ndarray | None:
    """The standard deviation (standardised) that the head itself gives for each pass, or None.

    ``spread`` of the task says how: ``log_variance`` is one more output; ``cumulative`` are logits of lying above the middles
    between neighbouring levels.
    """
    spread = task.get("spread")
    if not spread:
        return None
    if spread["kind"] == "log_variance":
        low, high = spread.get("clamp", (-np.inf, np.inf))
        return np.exp(0.5 * np.clip(rows[:, spread["output"]], low, high))
    if spread["kind"] == "cumulative":
        levels = np.asarray(spread["levels"], dtype=np.float64)
        above = 1 / (1 + np.exp(-rows[:, 1:]))
        above = np.minimum.accumulate(above, axis=1)
        bounded = np.concatenate([np.ones((len(rows), 1)), above, np.zeros((len(rows), 1))], 1)
        share = bounded[:, :-1] - bounded[:, 1:]
        mean = share @ levels
        return np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    raise ConfigError(f"inference does not know the spread {spread['kind']!r}", expected="log_variance or cumulative")


def _touches_edge(mask: np.ndarray) -> bool:
    """Whether a mask reaches an outer plane of its field of view (axes of one or two voxels have no inside)."""
    return any(bool(mask.take(place, axis).any()) for axis in range(3) if mask.shape[axis] > 2 for place in (0, -1))


def _doubted(flags: Sequence[str], confidence: float, calibration: Calibration | None) -> tuple[str, ...]:
    low = calibration is not None and calibration.abstain_below is not None and confidence < calibration.abstain_below
    return (*flags, "low_confidence") if low else tuple(flags)


def describe(output: CaseOutput, task: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of ``predictions.tsv`` that hold the answer and what is known about it."""
    row: dict[str, Any] = {"confidence": output.confidence, "flags": ",".join(output.flags)}
    if output.value is not None:
        row |= {"value": output.value, "value_std": output.std, "value_low": output.low, "value_high": output.high}
    if output.classes:
        row["value"] = max(output.classes, key=lambda name: output.classes[name])
        row["probability"] = output.classes[task["positive"]]
        row |= {f"p_{name}": probability for name, probability in output.classes.items()}
    if output.mask is not None:
        row |= {"value": output.voxels, "probability": output.probability}
        for value, (ml, low, high) in output.volumes_ml.items():
            row |= {f"volume_ml_{value}": ml, f"volume_ml_{value}_low": low, f"volume_ml_{value}_high": high}
    return row


def withhold(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose answer is left out: its values, probabilities and volumes are ``n/a``, and its status says so."""
    hidden = ("value", "value_std", "value_low", "value_high", "probability")
    kept = {k: None if k in hidden or k.startswith(("p_", "volume_ml_")) else v for k, v in row.items()}
    return kept | {"status": "abstained"}
