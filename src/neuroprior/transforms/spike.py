"""Spike: a single point of k-space far too strong, seen as stripes over the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..core.config import Config as BaseConfig
from ._grid import AXES, along

SPATIAL = False


class Config(BaseConfig):
    """Range."""

    intensity: float = Field(default=0.5, ge=0)
    """Largest amplitude of the stripes, in standard deviations of the image."""


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        place: of the point, as shares of the largest frequency along each axis, in [-1, 1].
        amplitude: of the stripes, in standard deviations of the image.
        phase: in radians.
    """

    place: tuple[float, float, float]
    amplitude: float
    phase: float


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """A point, an amplitude and a phase."""
    x, y, z = (float(value) for value in rng.uniform(-0.5, 0.5, 3))
    return Draw((x, y, z), float(config.intensity * rng.random()), float(rng.uniform(0, 2 * np.pi)))


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) plus the plane wave that a point and its mirror in k-space are."""
    angle = torch.full(images.shape[-3:], drawn.phase, device=images.device, dtype=images.dtype)
    for axis, (n, share) in enumerate(zip(images.shape[-3:], drawn.place, strict=True)):
        cycles = round(share * (n // 2))  # a whole number: one point of the grid in k-space
        angle = angle + along(2 * torch.pi * cycles * torch.arange(n, device=images.device, dtype=images.dtype) / n, axis)
    spread = images.std(AXES, keepdim=True, correction=0)
    return images + drawn.amplitude * spread * angle.cos()
