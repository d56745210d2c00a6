"""Mirroring along chosen axes; axis 0 is left and right, where labels with a side must change names too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from torch import Tensor

from ..core.config import Config as BaseConfig

SPATIAL = True


class Config(BaseConfig):
    """Settings of the mirroring."""

    probability: float = Field(default=0.5, ge=0, le=1)
    """Of each axis."""
    axes: tuple[int, ...] = (0,)
    """Which axes may be mirrored (RAS+: 0 is left-right, 1 back-front, 2 down-up)."""
    label_pairs: tuple[tuple[int, int], ...] = ()
    """Label values that are each other's mirror image; every other value is its own."""


@dataclass(frozen=True)
class Draw:
    """What was drawn.

    Attributes:
        axes: the axes that are mirrored.
        label_pairs: as in the config.
    """

    axes: tuple[int, ...]
    label_pairs: tuple[tuple[int, int], ...] = ()


def draw(config: Config, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]) -> Draw:
    """Which axes are mirrored."""
    return Draw(tuple(axis for axis in config.axes if rng.random() < config.probability), config.label_pairs)


def apply(drawn: Draw, images: Tensor) -> Tensor:
    """(..., x, y, z) mirrored; exactly undone by doing it again."""
    return images.flip([axis - 3 for axis in drawn.axes]) if drawn.axes else images


def apply_labels(drawn: Draw, labels: Tensor) -> Tensor:
    """(x, y, z) integer label values mirrored; where left and right change places, so do the names of paired values."""
    out = apply(drawn, labels)
    if 0 not in drawn.axes:
        return out
    swapped = out.clone()
    for one, other in drawn.label_pairs:
        swapped[out == one], swapped[out == other] = other, one
    return swapped
