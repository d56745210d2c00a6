"""Bias field: the smooth shading of a receive coil, as a polynomial of the place (Van Leemput et al. 1999)."""

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

    strength: float = Field(default=0.3, ge=0)
    """Largest coefficient of the field's logarithm; 0.3 shades by about a third from one end of the box to the other."""
    order: int = Field(default=3, ge=1, le=5)
    """Degree of the polynomial."""


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        powers: (n, 3) exponents of x, y, z.
        coefficients: (n,) of the field's logarithm, places running from -1 to 1 over the box.
    """

    powers: tuple[tuple[int, int, int], ...]
    coefficients: tuple[float, ...]


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """A coefficient for every power up to the order."""
    n = config.order + 1
    powers = tuple((i, j, k) for i in range(n) for j in range(n) for k in range(n) if 0 < i + j + k <= config.order)
    return Draw(powers, tuple(map(float, config.strength * rng.uniform(-1, 1, len(powers)) / np.sqrt(len(powers) / 3))))


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) times the field; each volume's minimum counts as no signal."""
    places = [along(torch.linspace(-1, 1, n, device=images.device, dtype=images.dtype), axis)
              for axis, n in enumerate(images.shape[-3:])]  # fmt: skip
    logarithm = torch.zeros(images.shape[-3:], device=images.device, dtype=images.dtype)
    for (i, j, k), coefficient in zip(drawn.powers, drawn.coefficients, strict=True):
        logarithm = logarithm + coefficient * places[0] ** i * places[1] ** j * places[2] ** k
    low = images.amin(AXES, keepdim=True)
    return (images - low) * logarithm.exp() + low
