"""A model's answer for a case: prepared scans through the net, and back to native space.

The preprocessing replayed is the one stored in the model folder (``reading``); the way back is the exact inverse that conforming
recorded. Probabilities (not labels) are brought to the native grid, row by row (``native``), so that memory does not grow
with the number of classes at full resolution. When memory runs out the work begins anew on a smaller footing (``ladder``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.covariates import encode
from . import ladder, windows
from .answers import CaseOutput, pooled, segmented
from .layout import lay
from .model import Model, require_head
from .presets import PredictConfig
from .reading import CaseInput, Prepared, read_case

logger = logging.getLogger(__name__)


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

    def move(target: str) -> None:
        for member in model.each:
            member.net.to(target)
            assert member.head is not None
            member.head.to(target)

    def work(rung: ladder.Rung) -> CaseOutput:
        move(rung.device)
        if model.task["name"] == "segmentation":
            return _segment(model, prepared, config, passes, rung)
        return _pool(model, prepared, passes, rung)

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
    model: Model, prepared: Prepared, config: PredictConfig, passes: windows.Passes, rung: ladder.Rung
) -> CaseOutput:  # fmt: skip
    spread = config.uncertainty and len(model.each) * len(passes) > 1
    images = torch.from_numpy(prepared.images)
    blocks = windows.stream(
        model.each, images, prepared.contrasts, lay(images.shape[1:], model.task["window"], config.overlap), passes=passes,
        batch=rung.batch, device=rung.device, stitch=rung.stitch, spread=spread,
    )  # fmt: skip
    rows = ((first, block.cpu().numpy()) for first, block in blocks)
    return segmented(model, prepared, rows, config, spread=spread, rung=rung.name)


def _pool(model: Model, prepared: Prepared, passes: windows.Passes, rung: ladder.Rung) -> CaseOutput:
    images = torch.from_numpy(prepared.images).to(rung.device)
    raw = []  # one (passes, outputs) a member
    for number, member in enumerate(model.each):
        raw.append(
            windows.pool_passes(
                member, images, prepared.contrasts, window=member.task["window"], passes=passes, member=number,
                covariates=encoded_covariates(member, prepared.covariates, rung.device),
            ).cpu().double().numpy()
        )  # fmt: skip
    return pooled(model, prepared, raw, [member.task for member in model.each], rung=rung.name)


def encoded_covariates(member: Model, values: Mapping[str, Any], device: str) -> Tensor | None:
    """(1, F) covariates for a head that takes some, NaN for missing; None for any other head."""
    wanted = getattr(getattr(member.head, "config", None), "covariates", ())
    if not wanted:
        return None
    return torch.tensor([encode(values, wanted)], dtype=torch.float32, device=device)
