"""Blur by a Gaussian whose width is given in mm, the same along all axes of the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from torch import Tensor

from ..core.config import Config as BaseConfig
from ._grid import smooth

SPATIAL = False


class Config(BaseConfig):
    """Range."""

    sigma_mm: float = Field(default=1.5, ge=0)
    """Largest standard deviation in mm."""


@dataclass(frozen=True)
class Draw:
    """What was drawn: the width along each axis in voxels."""

    sigma_voxels: tuple[float, ...]


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """A width."""
    sigma = config.sigma_mm * rng.random()
    return Draw(tuple(float(sigma / length) for length in spacing_mm))


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) smoothed."""
    return smooth(images, drawn.sigma_voxels)
