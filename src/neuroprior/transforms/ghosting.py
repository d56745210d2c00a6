"""Motion ghosting: copies of the head along the phase-encoding axis, from lines of k-space that moved in a rhythm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..core.config import Config as BaseConfig
from ._grid import along, from_fourier, to_fourier

SPATIAL = False


class Config(BaseConfig):
    """Ranges."""

    ghosts: int = Field(default=6, ge=2)
    """Largest number of copies over the box."""
    intensity: float = Field(default=0.5, ge=0, le=1)
    """Largest loss of the lines that moved."""
    keep_centre: float = Field(default=0.05, ge=0, lt=1)
    """Middle share of k-space that is left as it is, so that the image keeps its contrast."""
    axes: tuple[int, ...] = (0, 1, 2)
    """Axes that phase may be encoded along."""


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        axis: of phase encoding.
        ghosts: every how many lines one has moved.
        intensity: what these lines lose.
        keep_centre: as in the config.
    """

    axis: int
    ghosts: int
    intensity: float
    keep_centre: float


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """An axis, a rhythm and a strength."""
    axis = config.axes[int(rng.integers(len(config.axes)))]
    return Draw(axis, int(rng.integers(2, config.ghosts + 1)), float(config.intensity * rng.random()), config.keep_centre)


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) with ghosts."""
    n = images.shape[drawn.axis - 3]
    lines = torch.arange(n, device=images.device)
    moved = lines % drawn.ghosts == 0
    moved &= (lines - n // 2).abs() > drawn.keep_centre * n / 2
    weight = 1 - drawn.intensity * moved.to(images.dtype)
    return from_fourier(to_fourier(images) * along(weight, drawn.axis))
