"""One case from files to a result in native space: read, conform, run, decode, undo.

The preprocessing replayed is the one stored in the model folder; the way back is the exact inverse that conforming
recorded. Probabilities (not labels) are brought to the native grid, row by row (``native``), so that memory does not grow
with the number of classes at full resolution. When memory runs out the work begins anew on a smaller footing (``ladder``).
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import bias, nifti
from ..core.conforming import Conformed
from ..core.errors import ConfigError, InputError
from ..core.grids import corner_distance_mm, grid_of
from ..core.relations import overlap
from ..core.session import conform_session
from ..core.volume import Volume
from . import ladder, windows
from .calibration import Calibration, interval, temper
from .model import Model, require_head
from .native import NativeBuilder
from .presets import PredictConfig

logger = logging.getLogger(__name__)

SAME_GRID_VOXELS = 0.1
"""Scans of a case whose corners lie further apart than this are told to be resampled."""

LOW_OVERLAP = 0.8
"""A scan that covers less than this share of the reference's head is flagged."""


@dataclass(frozen=True)
class CaseInput:
    """The scans of one session, before anything is read.

    Attributes:
        case: unique name, ``dataset/sub-01/ses-1``.
        dataset, subject, session: as in the index; subject is namespaced.
        scans: canonical contrast name -> path.
        notes: what was assumed while the inputs were collected (duplicates, one of several contrasts ...).
        covariates: participants column -> value, for models that take some; a missing one is simply not there.
    """

    case: str
    dataset: str
    subject: str
    session: str
    scans: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    covariates: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A case as the net sees it.

    Attributes:
        name: of the case, names random draws and messages.
        contrasts: canonical names, sorted.
        images: (K, x, y, z) float32, conformed.
        reference: the contrast whose native grid answers are given on.
        record: how the reference was conformed.
        missing: contrasts that the model knows and the case has not.
        notes: what was repaired or assumed on the way.
        flags: words for the ``flags`` column.
        covariates: see :class:`CaseInput`.
    """

    name: str
    contrasts: tuple[str, ...]
    images: Tensor
    reference: str
    record: Conformed
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    flags: tuple[str, ...]
    covariates: Mapping[str, Any] = field(default_factory=dict)


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


# ------------------------------------------------------------------------------------------------------ reading a case


def read_case(model: Model, case: CaseInput, *, reference: str | None = None) -> Prepared:
    """The scans of a case, read and conformed.

    Args:
        model: fine-tuned, or an ensemble.
        case: at least one scan of a contrast that the model knows; scans of other contrasts are left out, told in a note.
        reference: contrast whose native grid the mask is given on; by default the first of T1w, T2w, FLAIR, any.

    Raises:
        InputError: a scan cannot be read, or none has a contrast that the model knows, or two scans show different places.
    """
    known = usable(model, case.scans)
    volumes: dict[str, Volume] = {}
    notes = [*case.notes]
    for name in sorted(known):
        volumes[name], repairs = nifti.read_scan(known[name])
        notes += [f"{name}: {text}" for text in repairs]
    files = {name: str(path) for name, path in known.items()}
    unknown = sorted(set(case.scans) - set(known))
    if unknown:
        notes.append(f"not used, unknown to the model: {', '.join(unknown)}")
    return prepare(model, volumes, name=case.case, reference=reference, notes=notes, files=files, covariates=case.covariates)


def usable(model: Model, scans: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the scans whose contrast the model knows.

    Raises:
        InputError: there is none.
    """
    known = {name: scan for name, scan in scans.items() if name in model.contrasts}
    if not known:
        raise InputError(
            "no scan of this case has a contrast that the model knows",
            expected=", ".join(model.contrasts), got=", ".join(sorted(scans)) or "no scans",
            next_step=f"name the contrast as in {model.contrasts[0]}=scan.nii.gz, take it for one that the model knows "
            f"(--as {model.contrasts[0]}), or fine-tune on the contrasts that you have",
        )  # fmt: skip
    return known


def prepare(
    model: Model, volumes: Mapping[str, Volume], *, name: str = "scan", reference: str | None = None, notes: Sequence[str] = (),
    files: Mapping[str, str] | None = None, covariates: Mapping[str, Any] | None = None,
) -> Prepared:  # fmt: skip
    """Native volumes as the net sees them: checked, brought to one grid, normalised as in training.

    Args:
        model: gives the preprocessing and the contrasts.
        volumes: contrast that the model knows -> native volume.
        name: of the case.
        reference: contrast that gives the grid.
        notes: what was told already.
        files: contrast -> where it came from, for messages.
        covariates: see :class:`CaseInput`.

    Raises:
        InputError: voxels that are not finite or all the same, or scans that do not show the same place.
        MissingDependency: the model wants N4, and SimpleITK is missing.
    """
    told = [*notes]
    flags: list[str] = []
    for contrast in sorted(volumes):
        problems = nifti.check_voxels(volumes[contrast])
        if problems:
            raise InputError(
                f"{contrast}: {'; '.join(problems)}", file=(files or {}).get(contrast), expected="finite intensities that vary"
            )
        if _looks_normalised(volumes[contrast], contrast):
            flags.append(f"already_normalised:{contrast}")
            told.append(f"{contrast}: the intensities look normalised already; raw scans are expected")
    if model.steps.get("bias") == "n4":
        volumes = {contrast: _without_bias(volumes[contrast], contrast, told) for contrast in sorted(volumes)}
    if model.steps.get("mask", "head") != "head":
        flags.append("other_mask")
        told.append(
            "the model learned from scans that were normalised over another tool's brain masks; here it is the head that is found"
        )
    session = conform_session(volumes, model.spec, reference=reference)
    if session.refused:
        raise InputError(
            "the scans of this case do not show the same place", got="; ".join(session.refused.values()),
            expected="contrasts of one session, aligned by their headers",
            next_step="register them, or predict from one of them alone",
        )  # fmt: skip
    told += session.notes
    base = grid_of(volumes[session.reference])
    for contrast in sorted(volumes):
        grid = grid_of(volumes[contrast])
        if contrast == session.reference:
            continue
        if grid.shape != base.shape or corner_distance_mm(grid, base) > SAME_GRID_VOXELS * min(base.spacing_mm):
            told.append(f"{contrast} lies on another grid than {session.reference} and was resampled to it")
        covered = overlap(session.grid, grid)
        if covered < LOW_OVERLAP:
            flags.append(f"low_overlap:{contrast}")
            told.append(f"only {covered:.0%} of the head of {session.reference} lies in the field of view of {contrast}")
    contrasts = tuple(sorted(session.volumes))
    images = torch.stack([torch.from_numpy(np.ascontiguousarray(session.volumes[c].voxels)) for c in contrasts]).float()
    missing = tuple(contrast for contrast in model.contrasts if contrast not in contrasts)
    record = session.records[session.reference]
    return Prepared(
        name, contrasts, images, session.reference, record, missing, tuple(told), tuple(flags), dict(covariates or {})
    )


def _without_bias(volume: Volume, contrast: str, told: list[str]) -> Volume:
    """What preparing did to the scans of a model that learned without their intensity drifts."""
    bias.need_n4("this model, which learned from scans without intensity drifts,")
    try:
        return bias.without_bias(volume)
    except InputError as error:
        told.append(f"{contrast}: its intensity drifts are left as they are: {error.reason}")
        return volume


def _looks_normalised(volume: Volume, contrast: str) -> bool:
    """Whether voxels look z-scored (negative, mean 0, spread 1) or rescaled to 0..1 (fractional anisotropy is so by nature)."""
    values = volume.voxels[:: max(1, volume.shape[0] // 32)]
    low, high = float(values.min()), float(values.max())
    if low < 0:
        for chosen in (values, values[values != values.flat[0]]):  # with the empty background, and without
            if chosen.size > 1 and abs(float(chosen.mean())) < 0.3 and 0.5 < float(chosen.std()) < 2 and high < 100:
                return True
        return False
    return contrast != "FA" and 0.9 <= high <= 1.0 and bool((values != np.rint(values)).any())


# ---------------------------------------------------------------------------------------------------------- computing


def mirror_axes(task: Mapping[str, Any]) -> tuple[int, ...]:
    """The axes along which a model may be asked mirrored copies.

    ``mirror_axes`` of the task where it is there; else left-right for a single label. Left-right is left out where there are
    several label values and no ``label_pairs`` says which of them change sides.
    """
    several = len(task.get("label_values", ())) > 1
    given = task.get("mirror_axes")
    if given is None:
        given = (0,) if task["name"] == "segmentation" and not several else ()
    return tuple(axis for axis in sorted(given) if axis != 0 or not several or task.get("label_pairs"))


def passes_of(model: Model, config: PredictConfig, name: str) -> windows.Passes:
    """How often a window is looked at under some settings.

    Raises:
        ConfigError: samples are wanted of a net that has no posterior, or the label pairs do not fit.
    """
    if config.samples:
        for member in model.each:
            windows.require_variational(member)
    task = model.task
    swap = None
    if task.get("label_pairs"):
        swap = windows.swapped_classes(task["label_values"], task["label_pairs"])
    axes = mirror_axes(task) if config.mirror else ()
    precision = config.precision
    if precision == "int8" and task["name"] != "segmentation":
        precision = "auto"  # a case seen whole is one box: little to gain, and a single number to lose
    return windows.Passes(windows.mirrored(axes), swap, config.samples, (config.seed, name), precision)


def compute(
    model: Model,
    prepared: Prepared,
    config: PredictConfig | None = None,
    *,
    rungs: Sequence[ladder.Rung] | None = None,
    start: int = 0,
) -> tuple[CaseOutput, int]:
    """The model's answer for a prepared case.

    Args:
        model: fine-tuned, or an ensemble.
        prepared: see :func:`prepare`.
        config: settings.
        rungs: ways to compute, best first; by default those of the device that the model is on.
        start: rung to begin with.

    Returns:
        The answer, and the rung that gave it.

    Raises:
        ConfigError: the model has no head, or its task is unknown.
        MemoryError: it fits nowhere.
    """
    require_head(model)
    config = config or PredictConfig()
    passes = passes_of(model, config, prepared.name)
    device = str(next(model.net.parameters()).device)
    rungs = ladder.rungs(device, config.window_batch) if rungs is None else rungs
    calibration = Calibration.from_json(model.info.get("calibration"))

    def move(target: str) -> None:
        for member in model.each:
            member.net.to(target)
            assert member.head is not None
            member.head.to(target)

    def work(rung: ladder.Rung) -> CaseOutput:
        move(rung.device)
        if model.task["name"] == "segmentation":
            return _segment(model, prepared, config, passes, calibration, rung)
        return _pool(model, prepared, passes, calibration, rung)

    try:
        return ladder.climb_down(rungs, work, what=prepared.name, start=start)
    finally:
        move(device)  # a case that went to the CPU does not leave the model there


def predict_case(
    model: Model, case: CaseInput, config: PredictConfig | None = None, *, reference: str | None = None,
    rungs: Sequence[ladder.Rung] | None = None,
) -> CaseOutput:  # fmt: skip
    """The model's answer for one case: :func:`read_case`, then :func:`compute`."""
    require_head(model)
    return compute(model, read_case(model, case, reference=reference), config, rungs=rungs)[0]


def _segment(
    model: Model, prepared: Prepared, config: PredictConfig, passes: windows.Passes, calibration: Calibration | None, rung: ladder.Rung
) -> CaseOutput:  # fmt: skip
    task, record = model.task, prepared.record
    values = task["label_values"]
    spread = config.uncertainty and len(model.each) * len(passes) > 1
    builder = NativeBuilder(
        record, values, temperature=calibration.temperature if calibration else 1.0, foreground=config.probabilities,
        entropy=config.uncertainty, spread=spread,
    )  # fmt: skip
    layout = windows.lay(prepared.images.shape[1:], task["window"], config.overlap)
    blocks = windows.stream(
        model.each, prepared.images, prepared.contrasts, layout, passes=passes, batch=rung.batch, device=rung.device,
        stitch=rung.stitch, spread=spread,
    )  # fmt: skip
    for first, block in blocks:
        builder.push(first, block.cpu().numpy())
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
        volumes_ml=volumes, confidence=answer.confidence, flags=_doubted(flags, answer.confidence, calibration), rung=rung.name,
    )  # fmt: skip


def _pool(
    model: Model, prepared: Prepared, passes: windows.Passes, calibration: Calibration | None, rung: ladder.Rung
) -> CaseOutput:  # fmt: skip
    task = model.task
    images = prepared.images.to(rung.device)
    raw = []  # one (passes, outputs) a member
    for number, member in enumerate(model.each):
        raw.append(
            windows.pool_passes(
                member, images, prepared.contrasts, window=member.task["window"], passes=passes, member=number,
                covariates=_covariates(member, prepared.covariates, rung.device),
            ).cpu().double().numpy()
        )  # fmt: skip
    told = CaseOutput(prepared.reference, prepared.missing, prepared.notes, flags=prepared.flags, rung=rung.name)
    if task["name"] == "classification":
        mean = np.mean([_softmax(rows).mean(0) for rows in raw], axis=0)
        if calibration:
            mean = temper(mean, calibration.temperature, axis=0)
        classes = {name: float(p) for name, p in zip(task["classes"], mean, strict=True)}
        confidence = max(classes.values())
        return _replace(told, classes=classes, confidence=confidence, flags=_doubted(prepared.flags, confidence, calibration))
    if task["name"] == "regression":
        values, own = [], []
        for rows, member in zip(raw, model.each, strict=True):
            scale = member.task
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
        return _replace(told, value=value, std=std, low=low, high=high)
    raise ConfigError(f"inference does not know the task {task['name']!r}", file=model.folder)


def _replace(output: CaseOutput, **changes: Any) -> CaseOutput:
    from dataclasses import replace

    return replace(output, **changes)


def _softmax(rows: np.ndarray) -> np.ndarray:
    raised = np.exp(rows - rows.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


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


def _covariates(member: Model, values: Mapping[str, Any], device: str) -> Tensor | None:
    """(1, F) encoded covariates for a head that takes some, NaN for missing; None for any other head."""
    wanted = getattr(getattr(member.head, "config", None), "covariates", ())
    if not wanted:
        return None
    encode = importlib.import_module("neuroprior.heads._covariates").encode
    return torch.tensor([encode(values, wanted)], dtype=torch.float32, device=device)


def _touches_edge(mask: np.ndarray) -> bool:
    """Whether a mask reaches an outer plane of its field of view (axes of one or two voxels have no inside)."""
    return any(bool(mask.take(place, axis).any()) for axis in range(3) if mask.shape[axis] > 2 for place in (0, -1))


def _doubted(flags: Sequence[str], confidence: float, calibration: Calibration | None) -> tuple[str, ...]:
    low = calibration is not None and calibration.abstain_below is not None and confidence < calibration.abstain_below
    return (*flags, "low_confidence") if low else tuple(flags)


# --------------------------------------------------------------------------------------------------------- telling it


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
