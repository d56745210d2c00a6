"""Gibbs ringing: waves beside sharp edges, since the outer part of k-space was not measured."""

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
    """Range."""

    cut: float = Field(default=0.5, ge=0, lt=1)
    """Largest share of the way from the centre of k-space to its corner that is cut away, from outside."""


@dataclass(frozen=True)
class Draw:
    """What was drawn: the radius that is kept, as a share of the way from the centre of k-space to its corner."""

    radius: float


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """A radius."""
    return Draw(float(1 - config.cut * rng.random()))


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) without the frequencies beyond the radius."""
    squared = torch.zeros(images.shape[-3:], device=images.device, dtype=images.dtype)
    for axis, n in enumerate(images.shape[-3:]):
        lines = (torch.arange(n, device=images.device, dtype=images.dtype) - n // 2) / max(1, n // 2)
        squared = squared + along(lines**2, axis)
    return from_fourier(to_fourier(images) * (squared <= drawn.radius**2 * 3 + 1e-6))
