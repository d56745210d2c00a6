"""A random gain and offset of the intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from torch import Tensor

from ..core.config import Config as BaseConfig

SPATIAL = False


class Config(BaseConfig):
    """Spreads."""

    gain: float = Field(default=0.1, ge=0)
    """Standard deviation of the factor about 1."""
    shift: float = Field(default=0.1, ge=0)
    """Standard deviation of the offset, in standard deviations of the image."""


@dataclass(frozen=True)
class Draw:
    """What was drawn: ``images * gain + shift``."""

    gain: float
    shift: float


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """A gain and an offset."""
    gain, shift = rng.standard_normal(2)
    return Draw(float(1 + config.gain * gain), float(config.shift * shift))


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) with another gain and offset."""
    return images * drawn.gain + drawn.shift
