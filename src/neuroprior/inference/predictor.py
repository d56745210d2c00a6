"""One case from files to a result in native space: read, conform, run, decode, undo.

The preprocessing replayed is the one stored in the model folder; the way back is the exact inverse that conforming
recorded. Probabilities (not labels) are brought to the native grid, one class at a time, so that memory does not grow
with the number of classes at full resolution.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import nifti
from ..core.errors import ConfigError, InputError
from ..core.geometry import Conformed, to_native
from ..core.session import conform_session
from ..core.volume import Volume
from . import windows
from .model import Model, require_head

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseInput:
    """The scans of one session, before anything is read.

    Attributes:
        case: unique name, ``dataset/sub-01/ses-1``.
        dataset, subject, session: as in the index; subject is namespaced.
        scans: canonical contrast name -> path.
    """

    case: str
    dataset: str
    subject: str
    session: str
    scans: Mapping[str, Path]


@dataclass(frozen=True)
class CaseOutput:
    """What a model says of a case.

    Attributes:
        mask: (x, y, z) label map on the reference scan's native grid, or None.
        foreground: (x, y, z) float32 probability of not being background on that grid, or None.
        value: the predicted number, or None.
        classes: class name -> probability; empty for other tasks.
        reference: the contrast whose native grid the mask lies on.
        missing: contrasts that the model knows and the case has not.
        notes: what was repaired or assumed on the way.
    """

    reference: str
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()
    mask: np.ndarray | None = None
    foreground: np.ndarray | None = None
    value: float | None = None
    classes: Mapping[str, float] = field(default_factory=dict)


def predict_case(
    model: Model, case: CaseInput, *, reference: str | None = None, overlap: float = 0.5, window_batch: int = 2
) -> CaseOutput:
    """The model's answer for one case.

    Args:
        model: fine-tuned.
        case: at least one scan of a contrast that the model knows; scans of other contrasts are left out, told in a note.
        reference: contrast whose native grid the mask is given on; by default the first of T1w, T2w, FLAIR, any.
        overlap: of neighbouring windows.
        window_batch: windows a step.

    Raises:
        InputError: a scan cannot be read, or none has a contrast that the model knows.
        ConfigError: the model has no head.
    """
    require_head(model)
    known = {name: path for name, path in case.scans.items() if name in model.contrasts}
    if not known:
        raise InputError(
            "no scan of this case has a contrast that the model knows",
            expected=", ".join(model.contrasts), got=", ".join(sorted(case.scans)) or "no scans",
            next_step="name the contrast as in T1w=scan.nii.gz, or fine-tune on the contrasts that you have",
        )  # fmt: skip
    notes: list[str] = []
    unknown = sorted(set(case.scans) - set(known))
    if unknown:
        notes.append(f"not used, unknown to the model: {', '.join(unknown)}")
    volumes: dict[str, Volume] = {}
    for name in sorted(known):
        volumes[name], repairs = nifti.read_scan(known[name])
        problems = nifti.check_voxels(volumes[name])
        if problems:
            raise InputError(f"{name}: {'; '.join(problems)}", file=known[name], expected="finite intensities that vary")
        notes += [f"{name}: {text}" for text in repairs]
    session = conform_session(volumes, model.spec, reference=reference)
    notes += session.notes
    contrasts = sorted(session.volumes)
    device = next(model.net.parameters()).device
    images = torch.stack([torch.from_numpy(np.ascontiguousarray(session.volumes[name].voxels)) for name in contrasts])
    images = images.float().to(device)
    missing = tuple(name for name in model.contrasts if name not in contrasts)
    task = model.task
    window = task["window"]
    if task["name"] == "segmentation":
        probability = windows.segment(model, images, contrasts, window=window, overlap=overlap, batch=window_batch)
        record = session.records[session.reference]
        labels, foreground = native_labels(probability.cpu().numpy(), record, task["label_values"])
        return CaseOutput(session.reference, missing, tuple(notes), mask=labels, foreground=foreground)
    raw = windows.pool(model, images, contrasts, window=window).cpu()
    if task["name"] == "classification":
        probabilities = raw.softmax(0).tolist()
        classes = dict(zip(task["classes"], probabilities, strict=True))
        return CaseOutput(session.reference, missing, tuple(notes), classes=classes)
    if task["name"] == "regression":
        value = float(raw[0]) * task["std"] + task["mean"]
        return CaseOutput(session.reference, missing, tuple(notes), value=value)
    raise ConfigError(f"inference does not know the task {task['name']!r}", file=model.folder)


def native_labels(probability: np.ndarray, record: Conformed, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The most probable label value and the foreground probability on the native grid.

    Args:
        probability: (classes, x, y, z) on the conformed grid, class 0 is background.
        record: how the scan was conformed.
        values: the label values of classes 1, 2, ...

    Returns:
        (label map of the smallest integer type, float32 foreground probability), both on the native grid; outside the
        conformed box everything is background.
    """
    kind = np.min_scalar_type(max(values)) if min(values) >= 0 else np.int32
    best = labels = total = None
    for number, value in enumerate(values, start=1):
        native = to_native(probability[number], record, order=1)
        if best is None or labels is None or total is None:
            best, total = np.zeros_like(native), np.zeros_like(native)
            labels = np.zeros(native.shape, dtype=kind)
        labels[native > best] = value
        np.maximum(best, native, out=best)
        total += native
    assert best is not None and labels is not None and total is not None
    labels[best <= 1 - total] = 0
    return labels, np.clip(total, 0, 1)


def describe(output: CaseOutput, task: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of ``predictions.tsv`` that hold the answer: ``value``, ``probability`` and ``p_<class>``."""
    row: dict[str, Any] = {}
    if output.value is not None:
        row["value"] = output.value
    if output.classes:
        row["value"] = max(output.classes, key=lambda name: output.classes[name])
        row["probability"] = output.classes[task["positive"]]
        row |= {f"p_{name}": probability for name, probability in output.classes.items()}
    if output.foreground is not None and output.mask is not None:
        row["value"] = int(np.count_nonzero(output.mask))
        inside = output.mask > 0
        row["probability"] = float(output.foreground[inside].mean()) if inside.any() else float(output.foreground.max())
    return row
