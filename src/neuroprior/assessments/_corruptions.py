"""Scans made worse on purpose: nine artefacts at five severities, each a stated amount in physical units.

The protocol is ROOD-MRI's (Boone et al. 2023, NeuroImage 278:120289): the same transforms, five levels each. The levels below are ours:
the first is hardly seen, the third is what a radiologist would remark on, the fifth is a scan that would be repeated. What a
level leaves open (an axis, a sign, a phase) is drawn once a scan and is the same at all levels, so that severity alone differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch

from ..core import shelf
from ..core.headmask import head_mask
from ..core.volume import Volume

SEVERITIES = (1, 2, 3, 4, 5)
LEVELS: Mapping[str, tuple[float, ...]] = {
    "motion": (1.0, 1.5, 2.5, 3.5, 5.0),  # degrees and mm of each pose; with STILL
    "ghosting": (0.1, 0.25, 0.4, 0.6, 0.8),  # share of the signal that every other line loses
    "spike": (0.15, 0.3, 0.6, 1.0, 1.6),  # amplitude of the stripes, in standard deviations of the image
    "bias": (0.15, 0.3, 0.5, 0.8, 1.2),  # largest coefficient of the logarithm of the field
    "blur": (0.5, 1.0, 1.6, 2.4, 3.5),  # standard deviation in mm
    "noise": (0.08, 0.16, 0.3, 0.5, 0.8),  # Rician, in standard deviations of the image
    "lowres": (2.0, 3.0, 4.5, 6.5, 9.0),  # slice thickness in mm along one axis; at least the grid's times 1.25, 1.5, 2, 3, 4
    "gamma": (0.15, 0.3, 0.5, 0.75, 1.05),  # logarithm of the exponent
    "gibbs": (0.45, 0.55, 0.65, 0.75, 0.84),  # share of the way from the centre of k-space to its corner that is cut away
}
"""Transform -> the strength at severities 1 to 5."""

STILL = (0.3, 0.2, 0.12, 0.07, 0.03)
"""Share of the lines on either side of the centre of k-space that are measured at rest: more and more of it moves."""


def corrupt(volume: Volume, name: str, severity: int, rng: np.random.Generator) -> tuple[Volume, dict[str, Any]]:
    """A scan under one artefact.

    Args:
        volume: native scan in its own units; left untouched.
        name: a key of ``LEVELS``.
        severity: 1 to 5.
        rng: gives what the severity leaves open; equal generators give equal axes, signs and phases at every severity.

    Returns:
        The corrupted scan on the same grid in the same units, float32, and the drawn parameters as plain data.
    """
    if name not in LEVELS or severity not in SEVERITIES:
        raise ValueError(f"corruptions are {', '.join(LEVELS)} at severities 1 to 5, got {name!r} at {severity}")
    values = volume.voxels.astype(np.float32)
    head = head_mask(values, volume.spacing_mm)
    inside = values[head] if head.any() else values
    mean, spread = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64)) or 1.0
    drawn = _DRAWS[name](LEVELS[name][severity - 1], severity, rng, volume)
    module = shelf.load("transforms", name)
    image = torch.from_numpy((values - np.float32(mean)) / np.float32(spread))
    done = module.apply(drawn, image).numpy() * np.float32(spread) + np.float32(mean)
    assert is_dataclass(drawn)
    return Volume(done.astype(np.float32), volume.affine), asdict(drawn)  # type: ignore[arg-type]  # an instance, not the class


def _motion(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    module = shelf.load("transforms", "motion")
    axis = int(rng.integers(3))
    directions = rng.uniform(-1, 1, (2, 3, 3))
    directions /= np.abs(directions).max(-1, keepdims=True)
    turns, shifts = ([tuple(float(v) for v in row) for row in level * part] for part in directions)
    still = STILL[severity - 1]
    return module.Draw(axis, (0.5 - still, 0.5 + still), tuple(turns), tuple(shifts), volume.spacing_mm)


def _ghosting(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    return shelf.load("transforms", "ghosting").Draw(int(rng.integers(3)), int(rng.integers(2, 5)), level, 0.03)


def _spike(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    x, y, z = (float(v) for v in rng.uniform(0.15, 0.5, 3) * rng.choice([-1, 1], 3))
    return shelf.load("transforms", "spike").Draw((x, y, z), level, float(rng.uniform(0, 2 * np.pi)))


def _bias(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    module = shelf.load("transforms", "bias")
    shape = module.draw(module.Config(strength=1.0), rng, volume.shape, volume.spacing_mm)
    largest = max(abs(value) for value in shape.coefficients)
    return module.Draw(shape.powers, tuple(level * value / largest for value in shape.coefficients))


def _blur(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    return shelf.load("transforms", "blur").Draw(tuple(level / mm for mm in volume.spacing_mm))


def _noise(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    return shelf.load("transforms", "noise").Draw(level, int(rng.integers(2**62)))


def _lowres(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    axis = int(rng.integers(3))
    thickness = max(level, volume.spacing_mm[axis] * (1.25, 1.5, 2.0, 3.0, 4.0)[severity - 1])
    slices = max(1, int(volume.shape[axis] * volume.spacing_mm[axis] / thickness))
    return shelf.load("transforms", "lowres").Draw(axis, slices)


def _gamma(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    return shelf.load("transforms", "gamma").Draw(float(np.exp(level * rng.choice([-1, 1]))))


def _gibbs(level: float, severity: int, rng: np.random.Generator, volume: Volume) -> Any:
    return shelf.load("transforms", "gibbs").Draw(1 - level)


_DRAWS: Mapping[str, Callable[[float, int, np.random.Generator, Volume], Any]] = {
    "motion": _motion, "ghosting": _ghosting, "spike": _spike, "bias": _bias, "blur": _blur, "noise": _noise, "lowres": _lowres,
    "gamma": _gamma, "gibbs": _gibbs,
}  # fmt: skip
