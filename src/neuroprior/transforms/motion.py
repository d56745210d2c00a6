"""Motion: the head lies in another pose while a part of k-space is measured (after Shaw et al. 2019, simplified).

The lines along one phase-encoding axis are cut into segments; each is taken from the scan in a pose of its own. The
segment that holds the centre of k-space is taken at rest, so that the head as a whole stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from pydantic import Field
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..core.config import Config as BaseConfig
from . import affine

SPATIAL = False


class Config(BaseConfig):
    """Ranges, drawn evenly from minus to plus."""

    rotation_degrees: float = Field(default=3.0, ge=0)
    """About each axis."""
    shift_mm: float = Field(default=2.0, ge=0)
    """Along each axis."""
    movements: int = Field(default=2, ge=1)
    """Largest number of moments at which the head moves."""
    axes: tuple[int, ...] = (0, 1, 2)
    """Axes that phase may be encoded along."""


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        axis: of phase encoding.
        breaks: rising shares of the lines, in (0, 1), at which the head moves.
        rotations_degrees: (n + 1, 3) angles about x, y, z of each segment's pose.
        shifts_mm: (n + 1, 3) of each segment's pose.
        spacing_mm: of the grid.
    """

    axis: int
    breaks: tuple[float, ...]
    rotations_degrees: tuple[tuple[float, float, float], ...]
    shifts_mm: tuple[tuple[float, float, float], ...]
    spacing_mm: tuple[float, float, float]


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """An axis, moments and poses."""
    axis = config.axes[int(rng.integers(len(config.axes)))]
    n = int(rng.integers(1, config.movements + 1))
    breaks = tuple(sorted(float(value) for value in rng.uniform(0.05, 0.95, n)))
    turns, shifts = (scale * rng.uniform(-1, 1, (n + 1, 3)) for scale in (config.rotation_degrees, config.shift_mm))
    x, y, z = (float(value) for value in spacing_mm)
    return Draw(axis, breaks, _triples(turns), _triples(shifts), (x, y, z))


def _triples(values: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    return tuple((float(a), float(b), float(c)) for a, b, c in values)


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) as measured of a head that moved; each volume's minimum counts as no signal."""
    low = images.amin((-3, -2, -1), keepdim=True)
    signal = images - low
    along = drawn.axis - 3
    n = images.shape[along]
    edges = [0, *(round(share * n) for share in drawn.breaks), n]
    still = next(k for k in range(len(edges) - 1) if edges[k] <= n // 2 < edges[k + 1])
    space = _lines(signal, along)
    for k, (first, last) in enumerate(pairwise(edges)):
        if k == still or first == last:
            continue
        turn = Rotation.from_euler("xyz", drawn.rotations_degrees[k], degrees=True).as_matrix()
        pose = affine.Draw(tuple(map(float, turn.ravel())), drawn.shifts_mm[k], drawn.spacing_mm)
        moved = _lines(affine.apply(pose, signal), along)
        space.narrow(along, first, last - first).copy_(moved.narrow(along, first, last - first))
    return torch.fft.ifft(torch.fft.ifftshift(space, dim=along), dim=along).real + low


def _lines(images: Tensor, along: int) -> Tensor:
    """The centred Fourier transform along the phase-encoding axis alone: within a line nothing moves."""
    return torch.fft.fftshift(torch.fft.fft(images, dim=along), dim=along)
