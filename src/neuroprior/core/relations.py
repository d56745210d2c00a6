"""How two grids lie to each other: along shared axes, or obliquely."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grids import Grid, closest_axes, directions

SAME_VOXEL = 1e-3
"""Displacements below this fraction of a source voxel are rounding of the header and are ignored."""

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Axis:
    """One axis of two grids that share their axes; the source is flipped already where ``flip`` says so.

    Target voxel ``j`` lies at ``step * j + offset`` of the source axis, with step > 0. ``first`` and ``last`` (exclusive)
    bound the target voxels in the source's field of view. ``exact`` says that those coincide with source voxels.
    """

    flip: bool
    step: float
    offset: float
    n_source: int
    first: int
    last: int
    exact: bool


@dataclass(frozen=True)
class Separable:
    """Grids that share their axes: ``axes[k]`` is the source axis along target axis ``k``."""

    axes: tuple[int, int, int]
    along: tuple[Axis, Axis, Axis]

    @property
    def region(self) -> Slices:
        """The target voxels in the source's field of view."""
        x, y, z = (slice(axis.first, axis.last) for axis in self.along)
        return x, y, z

    def turned(self, voxels: np.ndarray) -> np.ndarray:
        """A view of the source's voxels with its axes in the target's order and direction."""
        turned = voxels.transpose(self.axes)
        return turned[tuple(slice(None, None, -1) if axis.flip else slice(None) for axis in self.along)]


@dataclass(frozen=True)
class Oblique:
    """Grids whose axes differ: target index ``j`` lies at ``matrix @ j + offset`` of the source."""

    matrix: np.ndarray
    offset: np.ndarray


def relate(source: Grid, target: Grid) -> Separable | Oblique:
    """How the voxels of ``target`` lie in ``source``; axes that are shared within :data:`SAME_VOXEL` count as shared."""
    relative = np.linalg.solve(source.affine, target.affine)
    matrix, offset = relative[:3, :3], relative[:3, 3]
    axes, _ = closest_axes(directions(source.affine), directions(target.affine))
    along_axes = np.zeros((3, 3), dtype=bool)
    along_axes[axes, np.arange(3)] = True
    half = (np.asarray(target.shape) - 1) / 2
    if (np.abs(np.where(along_axes, 0.0, matrix)) @ half).max() >= SAME_VOXEL:
        return Oblique(matrix, offset)
    centre = matrix @ half + offset
    along = [_axis(matrix[axes[k], k], centre[axes[k]], source.shape[axes[k]], target.shape[k]) for k in range(3)]
    return Separable((int(axes[0]), int(axes[1]), int(axes[2])), (along[0], along[1], along[2]))


def _axis(step: float, centre: float, n_source: int, n_target: int) -> Axis:
    flip = step < 0
    if flip:
        step, centre = -step, n_source - 1 - centre
    half = (n_target - 1) / 2
    if abs(step - 1) * half < SAME_VOXEL:
        step = 1.0
    # rounding far below SAME_VOXEL: copies of a scan in other orientations then get the same weights, bit for bit
    step = round(step, 9)
    offset = round(centre - step * half, 6)
    exact = step == 1.0 and abs(offset - round(offset)) < SAME_VOXEL
    if exact:
        offset = float(round(offset))
    low = (-0.5 - SAME_VOXEL - offset) / step
    high = (n_source - 0.5 + SAME_VOXEL - offset) / step
    first = min(max(int(np.ceil(low)), 0), n_target)
    last = max(min(int(np.floor(high)) + 1, n_target), first)
    return Axis(bool(flip), step, offset, n_source, first, last, exact)


def inside(source_grid: Grid, grid: Grid) -> np.ndarray:
    """Which voxels of ``grid`` have their centre in the field of view of ``source_grid``.

    Returns:
        bool array of ``grid``'s shape.
    """
    relation = relate(source_grid, grid)
    if isinstance(relation, Separable):
        out = np.zeros(grid.shape, dtype=bool)
        out[relation.region] = True
        return out
    i, j, k = (np.arange(n, dtype=np.float64) for n in grid.shape)
    out = np.ones(grid.shape, dtype=bool)
    for row, shift, n in zip(relation.matrix, relation.offset, source_grid.shape, strict=True):
        plane = row[1] * j[:, None] + row[2] * k[None, :] + shift
        low, high = -0.5 - SAME_VOXEL, n - 0.5 + SAME_VOXEL
        for x, start in enumerate(row[0] * i):
            out[x] &= (plane >= low - start) & (plane <= high - start)
    return out


def overlap(a: Grid, b: Grid) -> float:
    """The fraction of ``a``'s field of view that lies inside ``b``'s, in [0, 1], judged at 32 x 32 x 32 points."""
    points = 32
    cell = np.asarray(a.shape) / points
    affine = a.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((cell - 1) / 2)
    affine[:3, :3] *= cell
    return float(inside(b, Grid((points, points, points), affine)).mean())
