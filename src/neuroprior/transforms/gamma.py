"""Gamma: the intensities bent between their extremes, as another window or sequence would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from torch import Tensor

from ..core.config import Config as BaseConfig
from ._grid import AXES

SPATIAL = False


class Config(BaseConfig):
    """Range."""

    log_gamma: float = Field(default=0.3, ge=0)
    """The exponent is drawn from exp(-log_gamma) to exp(log_gamma), evenly in its logarithm."""


@dataclass(frozen=True)
class Draw:
    """What was drawn: the exponent."""

    gamma: float


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """An exponent."""
    return Draw(float(np.exp(config.log_gamma * rng.uniform(-1, 1))))


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z): each volume to [0, 1], to the power, and back to its own minimum and maximum."""
    low, high = images.amin(AXES, keepdim=True), images.amax(AXES, keepdim=True)
    span = (high - low).clamp_min(1e-6)
    return ((images - low) / span).clamp(0, 1) ** drawn.gamma * span + low
