"""Low resolution along one axis: thick slices, brought back to the grid by linear interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core.config import Config as BaseConfig
from ._grid import flat

SPATIAL = False


class Config(BaseConfig):
    """Range."""

    thickness_mm: float = Field(default=6.0, gt=0)
    """Thickest slices in mm; the thinnest are the grid's."""
    axes: tuple[int, ...] = (0, 1, 2)
    """Axes that slices may be stacked along."""


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        axis: along which slices are thick.
        slices: how many there are in the box.
    """

    axis: int
    slices: int


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """An axis and a number of slices."""
    axis = config.axes[int(rng.integers(len(config.axes)))]
    thinnest = float(spacing_mm[axis])
    thickness = rng.uniform(thinnest, max(config.thickness_mm, thinnest))
    return Draw(axis, max(1, min(int(shape[axis]), round(shape[axis] * thinnest / thickness))))


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z): averages over thick slices, interpolated back."""
    rows, shape = flat(images)
    size = list(rows.shape[2:])
    size[drawn.axis] = drawn.slices
    thick = functional.adaptive_avg_pool3d(rows, size)
    return functional.interpolate(thick, size=rows.shape[2:], mode="trilinear", align_corners=False).reshape(shape)
