"""Distances between the surfaces of two masks, in millimetres.

A mask's surface is its voxels that touch the outside through a face (the mask minus its 6-neighbour erosion; what lies
beyond the image is outside); distances run between voxel centres. This is the definition of MONAI and of medpy. DeepMind's
surface-distance package lays surface elements between the voxels and weighs them by area: its numbers are close, not equal
(``docs/metrics.md`` has the differences).

HD: the larger of the two directed maxima (Hausdorff 1914; Huttenlocher et al. 1993). HD95: the larger of the two directed
95th percentiles, each with linear interpolation. ASSD: mean over both surfaces together (Heimann et al. 2009). NSD: share
of both surfaces within a tolerance of the other (Nikolov et al. 2021, arXiv 1809.04430).

Both masks are cropped to the box that holds them, and the nearest voxels of each surface are looked up once (a k-d tree of
surface voxels: exact, and far smaller than a distance map of the volume); all four numbers share the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from . import _inputs


@dataclass(frozen=True)
class Distances:
    """Distances between two surfaces, in mm.

    Attributes:
        there: (n,) from each surface voxel of the prediction to the reference's surface.
        back: (m,) from each surface voxel of the reference to the prediction's surface.
        empty: how many of the two masks are empty: 0, 1 or 2; the arrays are empty unless it is 0.
        diagonal_mm: of the whole image, the worst that a distance can be.
    """

    there: np.ndarray
    back: np.ndarray
    empty: int
    diagonal_mm: float

    def nsd(self, tolerance_mm: float = 1.0) -> float:
        """Normalised surface Dice in [0, 1]; 0 when one mask is empty, NaN when both are."""
        if self.empty:
            return 0.0 if self.empty == 1 else float("nan")
        # voxels exactly at the tolerance are inside, whatever the last bit of their distance
        limit = tolerance_mm * (1 + 1e-9)
        within = int(np.count_nonzero(self.there <= limit)) + int(np.count_nonzero(self.back <= limit))
        return within / (self.there.size + self.back.size)

    def hausdorff(self, percentile: float = 95.0) -> float:
        """Hausdorff distance at a percentile, in mm; the image's diagonal when one mask is empty, NaN when both are."""
        if self.empty:
            return self._missing()
        if percentile == 100:
            return float(max(self.there.max(), self.back.max()))
        return float(max(np.percentile(self.there, percentile), np.percentile(self.back, percentile)))

    def assd(self) -> float:
        """Average symmetric surface distance in mm; the image's diagonal when one mask is empty, NaN when both are."""
        if self.empty:
            return self._missing()
        return float((self.there.sum() + self.back.sum()) / (self.there.size + self.back.size))

    def _missing(self) -> float:
        return self.diagonal_mm if self.empty == 1 else float("nan")


def surface_of(mask: np.ndarray) -> np.ndarray:
    """The voxels of a boolean array that touch the outside through a face, as a boolean array of its shape."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    whole = (slice(1, -1),) * mask.ndim
    for axis in range(mask.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            inside &= padded[whole[:axis] + (shifted,) + whole[axis + 1 :]]
    return mask & ~inside


def measure(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    image_shape: tuple[int, ...] | None = None,
) -> Distances:
    """The distances between the surfaces of two boolean arrays of one shape, from which all surface metrics are read.

    Args:
        prediction, reference: (x, y, z) bool (any number of axes).
        spacing_mm: voxel edges, one for each axis.
        image_shape: of the whole image where the masks are cut out of one; its diagonal stands for a missing mask.

    Raises:
        InputError: shapes that differ, or a spacing that is not positive.
    """
    p, r = _inputs.masks(prediction, reference)
    edges = _inputs.spacing(spacing_mm, p.ndim)
    diagonal = float(np.linalg.norm(np.array(image_shape or p.shape) * edges))
    box = _inputs.crop(p, r)
    if box is None:
        return Distances(np.empty(0), np.empty(0), 2, diagonal)
    p, r = p[box], r[box]
    if not p.any() or not r.any():
        return Distances(np.empty(0), np.empty(0), 1, diagonal)
    surfaces = surface_of(p), surface_of(r)
    places = [np.flatnonzero(surface) for surface in surfaces]
    points = [np.stack(np.unravel_index(place, p.shape), 1) * edges for place in places]
    found = []
    for own, other in ((0, 1), (1, 0)):
        distance = np.zeros(places[own].size)
        away = ~surfaces[other].ravel()[places[own]]  # voxels that lie on both surfaces are at distance 0
        if away.any():
            tree = KDTree(points[other], balanced_tree=False, compact_nodes=False)
            distance[away] = tree.query(points[own][away])[0]
        found.append(distance)
    return Distances(found[0], found[1], 0, diagonal)


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) distances from each surface voxel of the prediction to the reference's surface, and (m,) the other way, in mm.

    Both empty arrays when a mask is empty.
    """
    found = measure(prediction, reference, spacing_mm)
    return found.there, found.back


def nsd(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float], tolerance_mm: float = 1.0
) -> float:
    """Normalised surface Dice in [0, 1]; 0 when one mask is empty, NaN when both are."""
    return measure(prediction, reference, spacing_mm).nsd(tolerance_mm)


def hd(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Hausdorff distance in mm; the image's diagonal when one mask is empty, NaN when both are."""
    return measure(prediction, reference, spacing_mm).hausdorff(100.0)


def hd95(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """95th percentile Hausdorff distance in mm; the image's diagonal when one mask is empty, NaN when both are."""
    return measure(prediction, reference, spacing_mm).hausdorff(95.0)


def assd(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Average symmetric surface distance in mm; the image's diagonal when one mask is empty, NaN when both are."""
    return measure(prediction, reference, spacing_mm).assd()
