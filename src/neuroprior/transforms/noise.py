"""Rician noise: what the magnitude of a complex signal with Gaussian noise looks like (Gudbjartsson and Patz 1995)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..core.config import Config as BaseConfig
from ._grid import AXES

SPATIAL = False


class Config(BaseConfig):
    """Range."""

    sigma: float = Field(default=0.2, ge=0)
    """Largest standard deviation of either channel, in standard deviations of the image."""


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        sigma: standard deviation of either channel.
        seed: of the noise itself.
    """

    sigma: float
    seed: int


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """A level and the seed of the noise."""
    return Draw(float(config.sigma * rng.random()), int(rng.integers(2**62)))


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) with noise; each volume's minimum counts as no signal."""
    generator = torch.Generator().manual_seed(drawn.seed)
    real, imaginary = (torch.randn(images.shape, generator=generator).to(images) * drawn.sigma for _ in range(2))
    low = images.amin(AXES, keepdim=True)
    return ((images - low + real) ** 2 + imaginary**2).sqrt() + low
