"""A small rotation, scaling, shearing and shift about the centre of the box, in degrees, shares and mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core.config import Config as BaseConfig

SPATIAL = True


class Config(BaseConfig):
    """Ranges, drawn evenly from minus to plus."""

    rotation_degrees: float = Field(default=10.0, ge=0)
    """About each axis."""
    scaling: float = Field(default=0.1, ge=0, lt=1)
    """Of each axis, as a share."""
    shear: float = Field(default=0.0, ge=0, lt=1)
    """Tangent of the angle, for each pair of axes."""
    shift_mm: float = Field(default=4.0, ge=0)
    """Along each axis."""


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        matrix: (3, 3) row by row and (3,): where, in mm from the box's centre, the output's point takes its value from.
        shift_mm: see above.
        spacing_mm: of the grid.
    """

    matrix: tuple[float, ...]
    shift_mm: tuple[float, ...]
    spacing_mm: tuple[float, ...]


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """Angles, scales, shears and shifts as one affine map."""
    angles = np.deg2rad(config.rotation_degrees) * rng.uniform(-1, 1, 3)
    scales = 1 + config.scaling * rng.uniform(-1, 1, 3)
    shears = config.shear * rng.uniform(-1, 1, 3)
    shift = config.shift_mm * rng.uniform(-1, 1, 3)
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    slant = np.eye(3)
    slant[0, 1], slant[0, 2], slant[1, 2] = shears
    matrix = turn @ slant @ np.diag(scales)
    return Draw(tuple(map(float, matrix.ravel())), tuple(map(float, shift)), tuple(map(float, spacing_mm)))


def _points(drawn: Draw, like: Tensor) -> Tensor:
    """(1, x, y, z, 3) where each output voxel looks, in torch's coordinates (-1 to 1 along z, y, x)."""
    shape = like.shape[-3:]
    spacing = torch.tensor(drawn.spacing_mm, dtype=torch.float64)
    half = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij"), -1)
    matrix = torch.tensor(drawn.matrix, dtype=torch.float64).view(3, 3)
    source = ((grid - half) * spacing) @ matrix.T + torch.tensor(drawn.shift_mm, dtype=torch.float64)
    scaled = source / spacing / half.clamp_min(0.5)
    return scaled.flip(-1)[None].to(like.device, torch.float32)


def _sample(drawn: Draw, images: Tensor, mode: str) -> Tensor:
    rows = images.reshape(1, -1, *images.shape[-3:]).float()
    out = functional.grid_sample(rows, _points(drawn, images), mode=mode, padding_mode="zeros", align_corners=True)
    return out.reshape(images.shape)


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) by linear interpolation; 0 where the source lies outside."""
    return _sample(drawn, images, "bilinear").to(images.dtype)


def apply_labels(drawn: Draw, labels: Tensor) -> Tensor:
    """(..., x, y, z) float shares by linear interpolation, integer labels by the nearest voxel; background outside."""
    if labels.is_floating_point():
        return apply(drawn, labels)
    return _sample(drawn, labels, "nearest").round().to(labels.dtype)
