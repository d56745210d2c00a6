"""Lesions in template space: where they sit, how they grow, and how a tumour pushes the brain aside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fields import smooth_noise
from .template import ORIGIN_MM, Template, coordinates

WMH_LEVEL, INFARCT_LEVEL = 0.5, 0.5
TUMOUR_NECROSIS, TUMOUR_RIM, TUMOUR_OEDEMA = 0.62, 1.0, 1.75
"""Tumour radii in units of the enhancing rim's outer radius."""


@dataclass(frozen=True)
class Lesion:
    """The seeds of a subject's lesion; the same at every time point, apart from its growth.

    Attributes:
        kind: ``wmh``, ``infarct`` or ``tumour``.
        centres_mm: (n, 3) in MNI millimetres.
        radii_mm: (n, 3) at the first session.
        growth_per_year: relative growth of the radii.
        noise: (seed of the outline's unevenness).
    """

    kind: str
    centres_mm: np.ndarray
    radii_mm: np.ndarray
    growth_per_year: float
    noise_seed: int


def draw_lesion(kind: str, maps: Template, rng: np.random.Generator) -> Lesion | None:
    """A lesion of this kind, or None for ``healthy``."""
    if kind == "healthy":
        return None
    seed = int(rng.integers(2**31))
    if kind == "wmh":
        n = int(rng.integers(16, 46))
        centres = _sample(maps, maps.periventricular, n, rng)
        radii = rng.gamma(4.0, 0.9, size=(n, 1)).clip(1.5, 8) * rng.uniform(0.7, 1.4, size=(n, 3))
        return Lesion(kind, centres, radii, float(rng.uniform(0.03, 0.08)), seed)
    depth = 8.0 if kind == "infarct" else 16.0
    side = np.abs(coordinates(maps.shape, maps.spacing_mm)[0]) > 18
    weight = side & (maps.brain_mm < -depth) & (maps.parenchyma > 0.6) & np.isin(maps.cortex_region, range(7, 17))
    centres = _sample(maps, weight.astype(np.float32), 1, rng)
    if kind == "infarct":
        n = int(rng.integers(3, 7))
        spread = rng.normal(0, 6.0, size=(n, 3))
        radii = rng.uniform(7, 14, size=(n, 1)) * rng.uniform(0.6, 1.3, size=(n, 3))
        return Lesion(kind, centres + spread - spread.mean(0), radii, float(rng.uniform(-0.02, 0.02)), seed)
    radii = np.full((1, 3), rng.uniform(8, 15)) * rng.uniform(0.85, 1.15, size=(1, 3))
    return Lesion(kind, centres, radii, float(rng.uniform(0.06, 0.15)), seed)


def lesion_level(lesion: Lesion, years: float, maps: Template) -> np.ndarray:
    """The lesion as a float32 map on the template's grid.

    For ``wmh`` and ``infarct`` the lesion is where the map exceeds 0.5. For ``tumour`` it is the distance from the
    centre in units of the tumour's radius (so that shells can be read off), 9 far away.
    """
    growth = 1 + lesion.growth_per_year * years
    rng = np.random.Generator(np.random.PCG64(lesion.noise_seed))
    scale = 7.0 if lesion.kind == "wmh" else 10.0
    uneven = smooth_noise(maps.shape, maps.spacing_mm, scale, rng)
    level = np.zeros(maps.shape, np.float32)
    x, y, z = coordinates(maps.shape, maps.spacing_mm)
    nearest = np.full(maps.shape, 9.0, np.float32) if lesion.kind == "tumour" else None
    for centre, radii in zip(lesion.centres_mm, lesion.radii_mm * growth, strict=True):
        reach = radii * (4.0 if lesion.kind == "tumour" else 2.5)
        box = _box(centre - reach, centre + reach, maps)
        squares = (
            ((x[box[0]] - centre[0]) / radii[0]) ** 2
            + ((y[:, box[1]] - centre[1]) / radii[1]) ** 2
            + ((z[:, :, box[2]] - centre[2]) / radii[2]) ** 2
        )
        if nearest is not None:
            nearest[box] = np.sqrt(squares) * (1 + 0.12 * uneven[box])
        else:
            level[box] += np.exp(-0.7 * squares)
    if nearest is not None:
        return nearest
    if lesion.kind == "infarct":  # an artery's territory ends at the midline
        level *= np.clip(0.5 + x * np.sign(lesion.centres_mm[:, 0].mean()) / 3, 0, 1)
    return level * (1 + 0.25 * uneven)


def mass_effect(lesion: Lesion, years: float, points_mm: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """The velocity (3, x, y, z) in mm with which a tumour pushes template points away from its centre."""
    growth = 1 + lesion.growth_per_year * years
    radius = float(lesion.radii_mm.mean() * growth)
    away = np.stack(np.broadcast_arrays(*(p - c for p, c in zip(points_mm, lesion.centres_mm[0], strict=True))))
    falloff = np.exp(-(away**2).sum(0) / (2 * (1.9 * radius) ** 2))
    return (0.35 * away * falloff).astype(np.float32)


def _sample(maps: Template, weight: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    cumulative = np.cumsum(weight.ravel(), dtype=np.float64)
    picks = np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right")
    index = np.stack(np.unravel_index(picks, weight.shape), axis=1)
    return np.asarray(ORIGIN_MM) + maps.spacing_mm * (index + rng.uniform(-0.5, 0.5, size=(n, 3)))


def _box(low: np.ndarray, high: np.ndarray, maps: Template) -> tuple[slice, slice, slice]:
    first = np.floor((low - np.asarray(ORIGIN_MM)) / maps.spacing_mm).astype(int)
    last = np.ceil((high - np.asarray(ORIGIN_MM)) / maps.spacing_mm).astype(int) + 1
    a, b, c = (slice(max(0, int(f)), max(0, int(e))) for f, e in zip(first, last, strict=True))
    return a, b, c
