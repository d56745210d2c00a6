"""A scan as one vector: the halves of its representation, and the encoder's stages, pooled over the head.

Each map is pooled twice: its mean over the head (every cell of the map counts by the share of head voxels in it, so that air and
padding count for nothing) and its largest value over the cells that are mostly head (a mean hides a small lesion). Then

- ``anatomy``: mean and maximum of the anatomy half,
- ``contrast``: mean and maximum of the contrast half; empty for a net with no split,
- ``whole``: anatomy, contrast, then the mean of every stage of the encoder, finest first.

The lengths depend on the model alone, never on the scan's size. Nothing is random: a split with noise gives its posterior means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core import nifti
from ..core.conforming import ConformSpec
from ..core.errors import ArtifactError, ConfigError, InputError
from ..core.grids import grid_of
from ..core.headmask import head_mask
from ..core.resampling import resample_labels
from ..core.session import conform_session
from ..core.volume import Volume
from .model import Model
from .reading import CaseInput

Half = Literal["whole", "anatomy", "contrast"]

MAX_VOXELS = 320**3
"""A larger conformed volume is centre-cropped to the nearest box below it: a whole head at 0.6 mm still fits."""

HEAD_SHARE = 0.5
"""A cell counts for the maximum when at least this share of its voxels is head (or the most that any cell has)."""


@dataclass(frozen=True)
class Embedding:
    """A case as vectors.

    Attributes:
        anatomy, contrast, stages: (d,) float32 each; ``contrast`` is empty for a net with no split.
        notes: what was repaired or assumed on the way.
    """

    anatomy: np.ndarray
    contrast: np.ndarray
    stages: np.ndarray
    notes: tuple[str, ...] = ()

    def half(self, half: Half) -> np.ndarray:
        """(d,) float32.

        Raises:
            ConfigError: there is no such half, or this net has none.
        """
        if half == "whole":
            return np.concatenate([self.anatomy, self.contrast, self.stages])
        if half not in ("anatomy", "contrast"):
            raise ConfigError(f"a scan has no half {half!r}", expected="whole, anatomy or contrast")
        vector = self.anatomy if half == "anatomy" else self.contrast
        if vector.size == 0:
            raise ConfigError(
                f"this net has no {half} half",
                expected="a net whose representation is split",
                next_step="embed with half='whole'",
            )
        return vector


def lengths(model: Model) -> dict[str, int]:
    """How long each vector of a model is."""
    net = model.net
    anatomy, contrast = 2 * int(net.anatomy_channels), 2 * int(net.contrast_channels)
    return {"whole": anatomy + contrast + sum(net.stage_channels), "anatomy": anatomy, "contrast": contrast}


def embed_case(model: Model, case: CaseInput, *, half: Half = "whole") -> np.ndarray:
    """One case as one vector.

    Args:
        model: pretrained or fine-tuned; only its net is used.
        case: one scan or several of one session. A contrast's name does not matter here (every contrast has the same encoder), so a
            scan of any name is taken; of several, the vectors are averaged, so that the length stays the same.
        half: ``whole``, ``anatomy`` or ``contrast``.

    Returns:
        (d,) float32, finite; d depends on the model and the half alone (:func:`lengths`).

    Raises:
        InputError: no scan, or one that cannot be read.
        ConfigError: the net has no such half.
        ArtifactError: the net's features are not finite.
    """
    return embed(model, case).half(half)


def embed(model: Model, case: CaseInput) -> Embedding:
    """All vectors of a case from one pass of the encoder; arguments and errors as for :func:`embed_case`."""
    if not case.scans:
        raise InputError("the case has no scan", got=case.case)
    made, notes = [], []
    for name in sorted(case.scans):
        path = case.scans[name]
        volume, repairs = nifti.read_scan(path)
        problems = nifti.check_voxels(volume)
        if problems:
            raise InputError(f"{name}: {'; '.join(problems)}", file=path, expected="finite intensities that vary")
        notes += [f"{name}: {text}" for text in repairs]
        image, head = conformed(volume, model.spec)
        if image.size > MAX_VOXELS:
            box = _centre(image.shape)
            notes.append(
                f"{name}: {' x '.join(map(str, image.shape))} voxels were cut to the central {' x '.join(str(s.stop - s.start) for s in box)}"
            )
            image, head = image[box], head[box]
        made.append(_vectors(model, image, head))
    parts = [np.mean([vectors[k] for vectors in made], axis=0, dtype=np.float64).astype(np.float32) for k in range(3)]
    if not all(np.isfinite(part).all() for part in parts):
        raise ArtifactError(
            "the model's features of this scan are not finite",
            file=model.folder,
            next_step="check the model with neuroprior probe",
        )
    return Embedding(parts[0], parts[1], parts[2], tuple(notes))


def conformed(volume: Volume, spec: ConformSpec) -> tuple[np.ndarray, np.ndarray]:
    """A scan as the model sees it, and where its head is: float32 and bool, both (x, y, z) on the conformed grid.

    The head is looked for in the scan's own intensities, where the background can be told; if none is found it is everything.
    """
    session = conform_session({"scan": volume}, spec)
    seen = session.volumes["scan"]
    native = head_mask(np.asarray(volume.voxels, dtype=np.float32), volume.spacing_mm)
    head = resample_labels(Volume(native.astype(np.uint8), volume.affine), grid_of(seen)) > 0
    return np.asarray(seen.voxels, dtype=np.float32), head if head.any() else np.ones(seen.shape, dtype=bool)


def _centre(shape: Sequence[int]) -> tuple[slice, ...]:
    """The central box of at most ``MAX_VOXELS``, every axis cut in proportion."""
    scale = (MAX_VOXELS / np.prod([float(n) for n in shape])) ** (1 / 3)
    sizes = [max(1, int(n * scale)) for n in shape]
    return tuple(slice((n - size) // 2, (n - size) // 2 + size) for n, size in zip(shape, sizes, strict=True))


@torch.inference_mode()
def _vectors(model: Model, image: np.ndarray, head: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anatomy, contrast and stages of one conformed scan, float64."""
    device = next(model.net.parameters()).device
    model.net.eval()
    code = model.net.encode(torch.from_numpy(np.ascontiguousarray(image))[None, None].to(device))
    strides = [int(stride) for stride in tuple(model.net.stage_strides)]  # pyright: ignore[reportGeneralTypeIssues]

    def pooled(part: Tensor, stride: int, *, largest: bool = True) -> list[Tensor]:
        weight = torch.from_numpy(head_share(head, part.shape[2:], stride)).flatten().to(device)
        flat = part[0].double().flatten(1)
        mean = (flat @ weight) / weight.sum()
        if not largest:
            return [mean]
        return [mean, flat[:, weight >= min(HEAD_SHARE, float(weight.max()))].amax(1)]

    anatomy = pooled(code.anatomy, strides[-1])
    finer = code.contrast.shape[2] // code.anatomy.shape[2]
    contrast = pooled(code.contrast, strides[-1] // finer) if code.contrast.shape[1] else []
    stages = [v for stage, stride in zip(code.stages, strides, strict=True) for v in pooled(stage, stride, largest=False)]
    return tuple(torch.cat(parts).cpu().numpy() if parts else np.zeros(0) for parts in (anatomy, contrast, stages))  # type: ignore[return-value]


def head_share(head: np.ndarray, grid: Sequence[int], stride: int) -> np.ndarray:
    """The share of head voxels in each cell of a feature map.

    Args:
        head: (x, y, z) bool on the input grid.
        grid: cells along each axis, enough to cover the volume.
        stride: voxels along each axis of a cell; nets pad at the far end.

    Returns:
        ``grid``-shaped float64 in [0, 1]; what lies beyond the volume counts as no head.
    """
    share = head.astype(np.float64)
    for axis, cells in enumerate(grid):
        padding = [(0, 0)] * share.ndim
        padding[axis] = (0, cells * stride - share.shape[axis])
        wide = np.pad(share, padding)
        share = wide.reshape(*wide.shape[:axis], cells, stride, *wide.shape[axis + 1 :]).mean(axis + 1)
    return share
