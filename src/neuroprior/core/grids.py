"""Grids: a shape and an affine.

Coordinates: voxel centres have integer indices; a grid's field of view reaches half a voxel beyond its outer centres.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .volume import Volume, spacing_mm


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: a shape and an affine.

    Attributes:
        shape: number of voxels along x, y, z.
        affine: (4, 4) float64, voxel index -> RAS+ millimetres.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three axes of at least one voxel, got shape {self.shape}")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError(f"a grid needs an invertible 4 x 4 affine, got {affine.tolist()}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, in millimetres."""
        return spacing_mm(self.affine)

    def corners(self) -> np.ndarray:
        """(8, 3) RAS+ millimetres of the centres of the eight corner voxels."""
        ends = np.array(list(itertools.product(*((0, n - 1) for n in self.shape))), dtype=np.float64)
        return ends @ self.affine[:3, :3].T + self.affine[:3, 3]

    def box(self, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Grid:
        """The grid of a box of this grid's voxels that begins at voxel ``start`` (which may lie outside)."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=np.float64)
        return Grid(shape, affine)

    def to_json(self) -> dict[str, Any]:
        """Plain data: ``{"shape": [...], "affine": [[...], ...]}``."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Grid:
        """The grid that :meth:`to_json` described; the affine returns bit for bit."""
        x, y, z = value["shape"]
        return cls((x, y, z), np.array(value["affine"], dtype=np.float64))


def grid_of(volume: Volume) -> Grid:
    """The grid that a volume's voxels lie on."""
    return Grid(volume.shape, volume.affine)


def corner_distance_mm(a: Grid, b: Grid) -> float:
    """The largest distance between corresponding corner voxels of two grids, in millimetres."""
    return float(np.linalg.norm(a.corners() - b.corners(), axis=1).max())


def canonical_grid(grid: Grid, spacing_mm: float | None) -> Grid:
    """The grid of the same field of view on the closest RAS axes of ``grid``'s own frame.

    Args:
        grid: any grid; an oblique one keeps its obliqueness, since turning it would blur it for nothing.
        spacing_mm: isotropic spacing of the result; None keeps the native spacing of each axis.

    Returns:
        A grid with the same centre; the field of view is covered whole (up to a hundredth of a voxel).
    """
    axes, signs = closest_axes(np.eye(3), directions(grid.affine))
    source = np.array(grid.spacing_mm)
    target = source if spacing_mm is None else np.full(3, float(spacing_mm))
    counts = np.asarray(grid.shape) * source / target
    counts = np.maximum(np.ceil(counts - 1e-2), 1).astype(int)
    linear = directions(grid.affine) * (signs * target)  # columns still in the order of the source's axes
    order = np.argsort(axes)  # order[k]: the source axis that runs along world axis k
    shape, linear = counts[order], linear[:, order]
    affine = np.eye(4)
    affine[:3, :3] = linear
    centre = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = centre - linear @ ((shape - 1) / 2)
    x, y, z = shape.tolist()
    return Grid((x, y, z), affine)


def directions(affine: np.ndarray) -> np.ndarray:
    """(3, 3) unit vectors of the voxel axes, one a column."""
    linear = np.asarray(affine, dtype=np.float64)[:3, :3]
    return linear / np.linalg.norm(linear, axis=0)


def closest_axes(frame: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each column of ``directions`` the column of ``frame`` it runs along (each used once), and +1 or -1."""
    cosines = frame.T @ directions  # [frame axis, axis]
    orders = list(itertools.permutations(range(3)))
    best = max(orders, key=lambda order: sum(abs(cosines[order[k], k]) for k in range(3)))
    signs = np.array([1.0 if cosines[best[k], k] >= 0 else -1.0 for k in range(3)])
    return np.array(best), signs
