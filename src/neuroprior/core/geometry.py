"""Grids, resampling and conforming: how a scan reaches the grid that models see, and the exact way back.

A *grid* is a shape and an affine. To *conform* a scan is to reorient it to the closest RAS+ axes of its own (possibly
oblique) frame, resample it to a spacing, crop it to the head and normalise its intensities; :class:`Conformed` records
each step, so that labels, probabilities and intensities return to the scan's native grid.

Where two grids share their axes (up to permutation and flips) resampling is a product of three one-dimensional sparse
matrices, and an axis on which the voxels coincide is sliced, not interpolated. So a scan stored in another orientation
conforms to bit-identical voxels, and a scan that lies on the wanted grid already is copied.

Coordinates: voxel centres have integer indices; a grid's field of view reaches half a voxel beyond its outer centres.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from scipy import ndimage, sparse

from .config import Config
from .errors import InputError
from .volume import Volume, spacing_mm

SAME_VOXEL = 1e-3
"""Displacements below this fraction of a source voxel are rounding of the header and are ignored."""

HEAD_BLOCK_MM = 4.0
"""Edge of the blocks whose means the head is found in."""

HEAD_FRACTION = 0.25
"""A block brighter than this fraction of the median head block belongs to the head."""

Slices = tuple[slice, slice, slice]


# ---------------------------------------------------------------------------------------------------------------- grids


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


def overlap(a: Grid, b: Grid) -> float:
    """The fraction of ``a``'s field of view that lies inside ``b``'s, in [0, 1], judged at 32 x 32 x 32 points."""
    points = 32
    cell = np.asarray(a.shape) / points
    affine = a.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((cell - 1) / 2)
    affine[:3, :3] *= cell
    return float(inside(b, Grid((points, points, points), affine)).mean())


def canonical_grid(grid: Grid, spacing_mm: float | None) -> Grid:
    """The grid of the same field of view on the closest RAS axes of ``grid``'s own frame.

    Args:
        grid: any grid; an oblique one keeps its obliqueness, since turning it would blur it for nothing.
        spacing_mm: isotropic spacing of the result; None keeps the native spacing of each axis.

    Returns:
        A grid with the same centre; the field of view is covered whole (up to a hundredth of a voxel).
    """
    axes, signs = _closest_axes(np.eye(3), _directions(grid.affine))
    source = np.array(grid.spacing_mm)
    target = source if spacing_mm is None else np.full(3, float(spacing_mm))
    counts = np.asarray(grid.shape) * source / target
    counts = np.maximum(np.ceil(counts - 1e-2), 1).astype(int)
    linear = _directions(grid.affine) * (signs * target)  # columns still in the order of the source's axes
    order = np.argsort(axes)  # order[k]: the source axis that runs along world axis k
    shape, linear = counts[order], linear[:, order]
    affine = np.eye(4)
    affine[:3, :3] = linear
    centre = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = centre - linear @ ((shape - 1) / 2)
    x, y, z = shape.tolist()
    return Grid((x, y, z), affine)


def inside(source_grid: Grid, grid: Grid) -> np.ndarray:
    """Which voxels of ``grid`` have their centre in the field of view of ``source_grid``.

    Returns:
        bool array of ``grid``'s shape.
    """
    relation = _relate(source_grid, grid)
    if isinstance(relation, _Separable):
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


def _directions(affine: np.ndarray) -> np.ndarray:
    """(3, 3) unit vectors of the voxel axes, one a column."""
    linear = np.asarray(affine, dtype=np.float64)[:3, :3]
    return linear / np.linalg.norm(linear, axis=0)


def _closest_axes(frame: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each column of ``directions`` the column of ``frame`` it runs along (each used once), and +1 or -1."""
    cosines = frame.T @ directions  # [frame axis, axis]
    orders = list(itertools.permutations(range(3)))
    best = max(orders, key=lambda order: sum(abs(cosines[order[k], k]) for k in range(3)))
    signs = np.array([1.0 if cosines[best[k], k] >= 0 else -1.0 for k in range(3)])
    return np.array(best), signs


# ----------------------------------------------------------------------------------------- how two grids lie to each other


@dataclass(frozen=True)
class _Axis:
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
class _Separable:
    """Grids that share their axes: ``axes[k]`` is the source axis along target axis ``k``."""

    axes: tuple[int, int, int]
    along: tuple[_Axis, _Axis, _Axis]

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
class _Oblique:
    """Grids whose axes differ: target index ``j`` lies at ``matrix @ j + offset`` of the source."""

    matrix: np.ndarray
    offset: np.ndarray


def _relate(source: Grid, target: Grid) -> _Separable | _Oblique:
    relative = np.linalg.solve(source.affine, target.affine)
    matrix, offset = relative[:3, :3], relative[:3, 3]
    axes, _ = _closest_axes(_directions(source.affine), _directions(target.affine))
    along_axes = np.zeros((3, 3), dtype=bool)
    along_axes[axes, np.arange(3)] = True
    half = (np.asarray(target.shape) - 1) / 2
    if (np.abs(np.where(along_axes, 0.0, matrix)) @ half).max() >= SAME_VOXEL:
        return _Oblique(matrix, offset)
    centre = matrix @ half + offset
    along = [_axis(matrix[axes[k], k], centre[axes[k]], source.shape[axes[k]], target.shape[k]) for k in range(3)]
    return _Separable((int(axes[0]), int(axes[1]), int(axes[2])), (along[0], along[1], along[2]))


def _axis(step: float, centre: float, n_source: int, n_target: int) -> _Axis:
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
    return _Axis(bool(flip), step, offset, n_source, first, last, exact)


# ----------------------------------------------------------------------------------------------------------- resampling


def resample(volume: Volume, grid: Grid, *, order: int = 1, fill: float = 0.0) -> np.ndarray:
    """A volume's voxels on another grid of the same world.

    Args:
        volume: any numeric voxels; left untouched.
        grid: where to sample.
        order: 1 linear; 3 cubic B-spline (which rings at edges, and may leave the value range).
        fill: value of voxels outside the volume's field of view.

    Returns:
        float32 array of ``grid``'s shape. Along an axis on which ``grid`` is coarser the kernel is widened to the target
        spacing (a Gaussian of that width where the grids' axes differ), so that nothing aliases. Where the grids are
        related by flips, permutations and an integer shift the values are copied.
    """
    if order not in (1, 3):
        raise ValueError(f"order is 1 or 3, got {order}")
    relation = _relate(grid_of(volume), grid)
    if isinstance(relation, _Oblique):
        out = _oblique(volume.voxels.astype(np.float32, copy=False), relation, grid.shape, order)
        out[~inside(grid_of(volume), grid)] = fill
        return out
    region = relation.region
    counts = [axis.last - axis.first for axis in relation.along]
    if min(counts) == 0:
        return np.full(grid.shape, fill, dtype=np.float32)
    values = relation.turned(volume.voxels)
    weights: list[sparse.csr_array | None] = []
    for k, axis in enumerate(relation.along):
        if axis.exact:
            start = axis.first + int(axis.offset)
            values = values[(slice(None),) * k + (slice(start, start + counts[k]),)]
            weights.append(None)
            continue
        matrix = _weights(axis, order)
        if order == 3 and axis.step <= 1:
            values = ndimage.spline_filter1d(values, 3, axis=k, output=np.float32, mode="mirror") if axis.n_source > 1 else values
        first, last = _span(matrix)
        values = values[(slice(None),) * k + (slice(first, last),)]
        weights.append(matrix[:, first:last])
    sampled = _product(values, weights)
    if tuple(counts) == grid.shape:
        return sampled
    out = np.full(grid.shape, fill, dtype=np.float32)
    out[region] = sampled
    return out


def _weights(axis: _Axis, order: int) -> sparse.csr_array:
    """(targets in view, n_source) float32 interpolation weights of one axis; rows sum to one."""
    n, step = axis.n_source, axis.step
    position = step * np.arange(axis.first, axis.last, dtype=np.float64) + axis.offset
    reach = order // 2 + 1.0  # half the kernel's support
    width = max(step, 1.0)  # a coarser target widens the kernel
    taps = int(np.floor(2 * reach * width)) + 1
    if order == 1:
        position = np.clip(position, 0, n - 1) if step <= 1 else position
    index = np.ceil(position - reach * width)[:, None] + np.arange(taps)
    distance = np.abs(index - position[:, None]) / width
    if order == 1:
        weight = np.maximum(1 - distance, 0)
    elif step <= 1:  # cubic B-spline, on filtered coefficients
        near = 2 / 3 - distance**2 + distance**3 / 2
        weight = np.where(distance < 1, near, np.maximum(2 - distance, 0) ** 3 / 6)
    else:  # Keys' cubic convolution, a = -1/2, stretched
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weight = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    if order == 3 and step <= 1:
        period = max(2 * (n - 1), 1)
        index = np.abs(index) % period
        index = np.minimum(index, period - index) if n > 1 else np.zeros_like(index)
    else:
        index = np.clip(index, 0, n - 1)
    weight /= weight.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(len(position)), taps)
    matrix = sparse.coo_array((weight.ravel(), (rows, index.astype(np.int64).ravel())), shape=(len(position), n)).tocsr()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return sparse.csr_array(matrix.astype(np.float32))


def _span(matrix: sparse.csr_array) -> tuple[int, int]:
    """The columns of a matrix that hold anything: first and one past the last."""
    return int(matrix.indices.min()), int(matrix.indices.max()) + 1


def _product(values: np.ndarray, weights: list[sparse.csr_array | None]) -> np.ndarray:
    """A contiguous float32 array: ``values`` (x, y, z) with a matrix applied along each axis that has one."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    first, second, third = weights
    if first is not None:
        values = (first @ values.reshape(values.shape[0], -1)).reshape(-1, *values.shape[1:])
    if second is None and third is None:
        return values if first is not None or values.base is None else values.copy()
    n_y = values.shape[1] if second is None else np.shape(second)[0]
    n_z = values.shape[2] if third is None else np.shape(third)[0]
    out = np.empty((values.shape[0], n_y, n_z), dtype=np.float32)
    for x, plane in enumerate(values):  # plane by plane, which stays in the cache
        if second is not None:
            plane = second @ plane
        out[x] = plane if third is None else (third @ np.ascontiguousarray(plane.T)).T
    return out


def _oblique(values: np.ndarray, relation: _Oblique, shape: tuple[int, int, int], order: int) -> np.ndarray:
    sigmas = _blur(relation.matrix)
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            values = ndimage.gaussian_filter1d(values, sigma, axis=axis, mode="nearest", output=np.float32)
    out = np.empty(shape, dtype=np.float32)
    mode = "nearest" if order == 1 else "mirror"
    ndimage.affine_transform(values, relation.matrix, relation.offset, output=out, output_shape=shape, order=order, mode=mode)
    return out


def _blur(matrix: np.ndarray) -> np.ndarray:
    """Per source axis the Gaussian's sigma in voxels that takes the source's resolution to the target's."""
    footprint = np.linalg.norm(matrix, axis=1)  # extent of a target voxel along each source axis
    return np.where(footprint > 1.01, np.sqrt(np.maximum(footprint**2 - 1, 0)) / np.sqrt(8 * np.log(2)), 0.0)


@dataclass(frozen=True)
class LabelShares:
    """A label map that knows its partial volumes: which two labels fill most of each voxel, and how much the lesser of them.

    Attributes:
        first: integer labels with the largest share of each voxel, background (0) included: the hard label map.
        second: integer labels with the next largest share; 0 where there is none.
        share: float32 in [0, 0.5], the second's part of what the two fill together. A third label in a voxel is left out.
    """

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray

    def of(self, value: int) -> np.ndarray:
        """float32 array in [0, 1]: the share of each voxel that a label value fills."""
        filled = np.where(self.first == value, 1 - self.share, np.float32(0))
        return np.where((self.second == value) & (self.first != value), self.share, filled).astype(np.float32, copy=False)


def resample_labels(volume: Volume, grid: Grid) -> np.ndarray:
    """A label map on another grid of the same world: the label that fills most of a voxel wins.

    Args:
        volume: integer (or boolean) voxels, 0 is background; left untouched.
        grid: where to sample.

    Returns:
        Array of ``grid``'s shape and the input's dtype; 0 outside the field of view, and wherever background has at least
        as large a share as every label. A structure smaller than a voxel of ``grid`` may be lost: see
        :func:`resample_label_shares`.
    """
    return resample_label_shares(volume, grid).first


def resample_label_shares(volume: Volume, grid: Grid) -> LabelShares:
    """A label map on another grid, with the share of each voxel that its two main labels fill.

    Along an axis on which ``grid`` is coarser the share is that of the voxel's own extent, so that the volume of a label
    (sum of shares times voxel volume) is kept; along the others it is interpolated linearly. Where the grids' axes differ
    the extent is a Gaussian of that width. The working memory is four float32 arrays of the target's size, whatever the
    number of labels.

    Args:
        volume: integer (or boolean) voxels, 0 is background; left untouched.
        grid: where to sample.
    """
    labels = volume.voxels
    if labels.dtype.kind not in "iub":
        raise TypeError(f"labels are integers, got {labels.dtype}")
    relation = _relate(grid_of(volume), grid)
    first, second = np.zeros(grid.shape, dtype=labels.dtype), np.zeros(grid.shape, dtype=labels.dtype)
    none = np.zeros(grid.shape, dtype=np.float32)
    matrices = []
    if isinstance(relation, _Separable):
        if min(axis.last - axis.first for axis in relation.along) == 0:
            return LabelShares(first, second, none)
        labels = relation.turned(labels)
        if all(axis.exact for axis in relation.along):
            starts = [axis.first + int(axis.offset) for axis in relation.along]
            box = tuple(slice(s, s + a.last - a.first) for s, a in zip(starts, relation.along, strict=True))
            first[relation.region] = labels[box]
            return LabelShares(first, second, none)
        matrices = [_extents(axis) if axis.step > 1 else _weights(axis, 1) for axis in relation.along]
    values, numbers = _compact(labels)
    best, next_best, total = none, np.zeros_like(none), np.zeros_like(none)
    for number, found in enumerate(ndimage.find_objects(numbers), start=1):
        if found is None:
            continue
        x, y, z = found
        if isinstance(relation, _Separable):
            where, share = _separable_share(numbers, number, (x, y, z), matrices, relation)
        else:
            where, share = _oblique_share(numbers, number, (x, y, z), relation, grid.shape)
        if share.size == 0:
            continue
        total[where] += share
        _rank(share, values[number], (first[where], best[where]), (second[where], next_best[where]))
    background = np.maximum(1 - total, 0)
    background[background < 1e-5] = 0
    _rank(background + np.float32(1e-5), 0, (first, best), (second, next_best))  # a tie is background's
    if isinstance(relation, _Oblique):
        beyond = ~inside(grid_of(volume), grid)
        first[beyond] = second[beyond] = 0
        next_best[beyond] = 0
    next_best[next_best <= 2e-5] = 0
    second[next_best == 0] = 0
    return LabelShares(first, second, np.minimum(next_best / np.maximum(best + next_best, 1e-6), 0.5))


def _rank(share: np.ndarray, value: Any, top: tuple[np.ndarray, np.ndarray], following: tuple[np.ndarray, np.ndarray]) -> None:
    """Enter a label's share into the two best (label, share) of each voxel, in place; an equal share does not displace."""
    wins = share > top[1]
    follows = ~wins & (share > following[1])
    following[0][wins], following[1][wins] = top[0][wins], top[1][wins]
    top[0][wins], top[1][wins] = value, share[wins]
    following[0][follows], following[1][follows] = value, share[follows]


def _extents(axis: _Axis) -> sparse.csr_array:
    """(targets in view, n_source) float32: the part of each target voxel's extent that lies in each source voxel."""
    n, step = axis.n_source, axis.step
    position = step * np.arange(axis.first, axis.last, dtype=np.float64) + axis.offset
    taps = int(np.ceil(step)) + 2
    index = np.floor(position - step / 2 + 0.5)[:, None] + np.arange(taps)
    low = np.maximum(index - 0.5, (position - step / 2)[:, None])
    high = np.minimum(index + 0.5, (position + step / 2)[:, None])
    weight = np.maximum(high - low, 0) / step
    weight[(index < 0) | (index > n - 1)] = 0
    index = np.clip(index, 0, n - 1)
    rows = np.repeat(np.arange(len(position)), taps)
    matrix = sparse.coo_array((weight.ravel(), (rows, index.astype(np.int64).ravel())), shape=(len(position), n)).tocsr()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return sparse.csr_array(matrix.astype(np.float32))


def _compact(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted label values with 0 first, and the map of their numbers (0 is background)."""
    if labels.dtype == bool:
        labels = labels.view(np.uint8)
    low, high = int(labels.min()), int(labels.max())
    if high - low < 1 << 16:
        shifted = labels.astype(np.int64) - low if low < 0 or labels.dtype.itemsize > 2 else labels - labels.dtype.type(low)
        present = np.flatnonzero(np.bincount(shifted.ravel(), minlength=1)) + low
        values = np.concatenate([[0], present[present != 0]])
        table = np.zeros(high - low + 1, dtype=np.min_scalar_type(len(values)))
        table[values[1:] - low] = np.arange(1, len(values))
        return values, table[shifted]
    present, inverse = np.unique(labels, return_inverse=True)
    values = np.concatenate([[0], present[present != 0]])
    numbers = np.searchsorted(values[1:], present) + 1
    numbers[present == 0] = 0
    return values, numbers.astype(np.min_scalar_type(len(values)))[inverse.reshape(labels.shape)]


def _separable_share(
    numbers: np.ndarray, number: int, box: Slices, matrices: list[sparse.csr_array], relation: _Separable
) -> tuple[Slices, np.ndarray]:
    """A label's share of each target voxel in the box of target voxels that it can reach."""
    where, weights = [], []
    for part, matrix, axis in zip(box, matrices, relation.along, strict=True):
        columns = matrix[:, part]
        rows = np.flatnonzero(np.diff(columns.indptr))
        if rows.size == 0:
            return box, np.empty(0, dtype=np.float32)
        where.append(slice(axis.first + int(rows[0]), axis.first + int(rows[-1]) + 1))
        weights.append(columns[rows[0] : rows[-1] + 1])
    x, y, z = where
    return (x, y, z), _product(numbers[box] == number, weights)


def _oblique_share(
    numbers: np.ndarray, number: int, box: Slices, relation: _Oblique, shape: tuple[int, int, int]
) -> tuple[Slices, np.ndarray]:
    sigmas = _blur(relation.matrix)
    pads = [int(np.ceil(4 * sigma)) + 1 for sigma in sigmas]
    wanted = [(part.start - pad, part.stop + pad) for part, pad in zip(box, pads, strict=True)]
    kept = [(max(low, 0), min(high, n)) for (low, high), n in zip(wanted, numbers.shape, strict=True)]
    mask = (numbers[tuple(slice(*part) for part in kept)] == number).astype(np.float32)
    beyond = [(k[0] - w[0], w[1] - k[1]) for k, w in zip(kept, wanted, strict=True)]
    mask = np.pad(mask, beyond, mode="edge")
    start = np.array([low for low, _ in wanted], dtype=np.float64)
    ends = np.array(list(itertools.product(*((low, high - 1) for low, high in wanted))), dtype=np.float64)
    reached = np.linalg.solve(relation.matrix, (ends - relation.offset).T).T
    first = np.clip(np.floor(reached.min(axis=0)), 0, shape).astype(int)
    last = np.clip(np.ceil(reached.max(axis=0)) + 1, first, shape).astype(int)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    if (last == first).any():
        return (x, y, z), np.empty(0, dtype=np.float32)
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            mask = ndimage.gaussian_filter1d(mask, sigma, axis=axis, mode="nearest", output=np.float32)
    share = np.empty(tuple(last - first), dtype=np.float32)
    offset = relation.matrix @ first + relation.offset - start
    ndimage.affine_transform(mask, relation.matrix, offset, output=share, output_shape=share.shape, order=1, mode="constant")
    return (x, y, z), share


# ------------------------------------------------------------------------------------------------------------- the head


@dataclass(frozen=True)
class _Head:
    """Where the head is: a coarse mask of blocks, and the value of an empty background where there is one."""

    blocks: np.ndarray
    edges: tuple[int, int, int]
    background: float | None

    def voxels(self, values: np.ndarray) -> np.ndarray:
        """bool array: voxels in a head block that do not hold the empty background's value."""
        mask = self.blocks
        for axis, (edge, n) in enumerate(zip(self.edges, values.shape, strict=True)):
            mask = np.repeat(mask, edge, axis=axis)[(slice(None),) * axis + (slice(n),)]
        return mask if self.background is None else mask & (values != self.background)

    def box(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """First and one past the last voxel of the head along each axis; the whole volume where there is no head."""
        if not self.blocks.any():
            return [(0, n) for n in shape]
        found = []
        for axis, (edge, n) in enumerate(zip(self.edges, shape, strict=True)):
            hit = np.flatnonzero(self.blocks.any(axis=tuple(a for a in range(3) if a != axis)))
            found.append((int(hit[0]) * edge, min((int(hit[-1]) + 1) * edge, n)))
        return found


def _find_head(values: np.ndarray, spacing: tuple[float, float, float]) -> _Head:
    """The head in a raw scan (noise around it) or a skull-stripped one (one value around it).

    The volume becomes block means of its distance from the background; the threshold is a quarter of the median of the
    blocks above it, iterated; components smaller than a tenth of the largest are dropped, gaps closed, holes filled.
    """
    x, y, z = (max(1, min(round(HEAD_BLOCK_MM / mm), n)) for mm, n in zip(spacing, values.shape, strict=True))
    edges = (x, y, z)
    low = float(values.min())
    candidates = {value: np.count_nonzero(values == np.float32(value)) for value in {0.0, low, float(values[0, 0, 0])}}
    frequent = max(candidates, key=lambda value: (candidates[value], value == 0.0))
    background = frequent if candidates[frequent] >= 0.05 * values.size else None
    if background is not None:
        values = np.abs(values - np.float32(background))
    means = values
    for axis, edge in enumerate(edges):
        if edge > 1:
            starts = np.arange(0, means.shape[axis], edge)
            counts = np.diff([*starts, means.shape[axis]]).astype(np.float32)
            means = np.add.reduceat(means, starts, axis=axis)
            means = means / counts.reshape([-1 if a == axis else 1 for a in range(3)])
    if background is None:
        means = means - (0.0 if low >= 0 else np.percentile(means, 1))
    means = np.clip(means, 0, np.percentile(means, 99.5))
    threshold = float(np.sqrt(np.mean(np.square(means, dtype=np.float64)))) * HEAD_FRACTION
    for _ in range(20):
        above = means[means > threshold]
        if above.size == 0:
            return _Head(np.zeros(means.shape, dtype=bool), edges, background)
        lifted = HEAD_FRACTION * float(np.median(above))
        if abs(lifted - threshold) <= 1e-3 * threshold:
            break
        threshold = lifted
    parts, n_parts = ndimage.label(means > threshold)  # pyright: ignore[reportGeneralTypeIssues]  # a pair, as documented
    sizes = np.bincount(parts.ravel(), minlength=n_parts + 1)
    sizes[0] = 0
    head = (sizes >= 0.1 * sizes.max())[parts] & (parts > 0)
    head = ndimage.binary_closing(np.pad(head, 2), iterations=2)[2:-2, 2:-2, 2:-2] | head
    return _Head(ndimage.binary_fill_holes(head), edges, background)


def head_mask(values: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Where the head is in a volume: bool (x, y, z), in blocks of about ``HEAD_BLOCK_MM``, holes filled.

    Args:
        values: (x, y, z) float32 in the scan's own units, noise or one constant value around the head.
        spacing_mm: of the grid.
    """
    return _find_head(values, spacing_mm).voxels(values)


# ----------------------------------------------------------------------------------------------------------- conforming


class ConformSpec(Config):
    """How scans become what a model sees. It travels with every store and model and is replayed at prediction."""

    spacing_mm: float | Literal["native"] = 1.0
    """Isotropic voxel spacing in millimetres, or ``native`` to keep each scan's own."""
    crop: Literal["head", "nonzero", "none"] = "head"
    """Box that is kept: around the head, around every voxel that is not the empty background, or everything."""
    margin_mm: float = Field(default=4.0, ge=0)
    """Room around the crop's box on each side, in millimetres; it never exceeds the field of view."""
    normalise: Literal["zscore", "clamp_zscore_01", "none"] = "zscore"
    """``zscore``: mean 0, standard deviation 1 over the head. ``clamp_zscore_01``: clamped to the head's percentiles, then
    z-scored and rescaled to 0..1. ``none``: as stored."""
    clamp_percentiles: tuple[float, float] = (0.5, 99.5)
    """Percentiles of the head's voxels that ``clamp_zscore_01`` clamps to."""
    order: Literal[1, 3] = 1
    """Interpolation of intensities: 1 linear, 3 cubic B-spline."""

    @model_validator(mode="after")
    def _possible(self) -> ConformSpec:
        if self.spacing_mm != "native" and not 0 < self.spacing_mm < 1000:
            raise ValueError(f"spacing_mm is a positive number of millimetres or 'native', got {self.spacing_mm}")
        low, high = self.clamp_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"clamp_percentiles are two rising numbers in 0..100, got {self.clamp_percentiles}")
        return self


@dataclass(frozen=True)
class Intensity:
    """What was done to a scan's intensities.

    Attributes:
        method: ``zscore``, ``clamp_zscore_01`` or ``none``.
        mean, std: of the head's voxels on the conformed grid (after clamping, where there is clamping), native units.
        low, high: what values were clamped to, native units; None without clamping.
    """

    method: Literal["zscore", "clamp_zscore_01", "none"]
    mean: float = 0.0
    std: float = 1.0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Conformed:
    """How a scan was conformed: everything needed to go back.

    Attributes:
        native: the scan's own grid.
        grid: the grid it was brought to, after the crop.
        intensity: how its intensities were normalised.
    """

    native: Grid
    grid: Grid
    intensity: Intensity

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON; floats return bit for bit."""
        return {"native": self.native.to_json(), "grid": self.grid.to_json(), "intensity": dict(vars(self.intensity))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Conformed:
        """The record that :meth:`to_json` described."""
        return cls(Grid.from_json(value["native"]), Grid.from_json(value["grid"]), Intensity(**value["intensity"]))


def session_grid(reference: Volume, spec: ConformSpec, mask: np.ndarray | None = None) -> Grid:
    """The cropped canonical grid that all contrasts of a session are conformed to.

    Args:
        reference: the scan that gives the frame and the head box.
        spec: spacing, crop and margin.
        mask: bool array on the reference's own grid; where given and not empty, the box is drawn around it.

    Raises:
        InputError: the reference holds NaN or infinite voxels, so that no head can be found in it.
    """
    native = grid_of(reference)
    if mask is not None and mask.shape != native.shape:
        raise ValueError(f"the mask lies on the reference's grid: expected shape {native.shape}, got {mask.shape}")
    turned = canonical_grid(native, None)
    grid = turned if spec.spacing_mm == "native" else canonical_grid(native, spec.spacing_mm)
    if spec.crop == "none":
        return grid
    relation = _relate(native, turned)
    assert isinstance(relation, _Separable)
    if mask is not None and mask.any():
        box = _Head(relation.turned(mask.astype(bool, copy=False)), (1, 1, 1), None).box(turned.shape)
    else:
        values = np.ascontiguousarray(relation.turned(reference.voxels), dtype=np.float32)
        _require_finite(values)
        if spec.crop == "head":
            box = _find_head(values, turned.spacing_mm).box(turned.shape)
        else:
            empty = np.float32(0 if (values == 0).any() else values.min())
            tiny = np.float32(1e-4) * np.abs(values - empty).max()
            box = _Head(np.abs(values - empty) > tiny, (1, 1, 1), None).box(turned.shape)
    start, shape = [], []
    for k, (low, high) in enumerate(box):
        scale = grid.spacing_mm[k] / turned.spacing_mm[k]
        offset = (turned.shape[k] - 1) / 2 - scale * (grid.shape[k] - 1) / 2
        margin = spec.margin_mm / turned.spacing_mm[k]
        first = int(np.floor((low - 0.5 - margin - offset) / scale + 0.5 + 1e-6))
        last = int(np.ceil((high - 0.5 + margin - offset) / scale + 0.5 - 1e-6))
        first, last = max(first, 0), min(last, grid.shape[k])
        start.append(first)
        shape.append(last - first)
    return grid.box((start[0], start[1], start[2]), (shape[0], shape[1], shape[2]))


def conform(
    volume: Volume, spec: ConformSpec, *, grid: Grid | None = None, mask: np.ndarray | None = None
) -> tuple[Volume, Conformed]:
    """A scan as a model sees it, and the record of the way there.

    Args:
        volume: native scan; left untouched.
        spec: spacing, crop, normalisation.
        grid: where given, the scan is brought to it and nothing is cropped (``spec.spacing_mm`` is not looked at).
        mask: bool array of the voxels whose statistics normalise the scan, on ``grid`` where that is given, else on the
            volume's own grid (it then gives the crop's box too). By default the head that is found in the scan.

    Returns:
        float32 volume, 0 outside the scan's field of view, and its record.

    Raises:
        InputError: NaN or infinite voxels; or nothing but one value where the statistics are taken.
    """
    native = grid_of(volume)
    _require_finite(volume.voxels)
    if grid is None:
        grid = session_grid(volume, spec, mask)
        if mask is not None:
            mask = resample_labels(Volume(mask.astype(np.uint8), volume.affine), grid) > 0
    elif mask is not None and mask.shape != grid.shape:
        raise ValueError(f"the mask lies on the given grid: expected shape {grid.shape}, got {mask.shape}")
    values = resample(volume, grid, order=spec.order)
    relation = _relate(native, grid)
    whole = isinstance(relation, _Separable) and all(
        axis.first == 0 and axis.last == n for axis, n in zip(relation.along, grid.shape, strict=True)
    )
    covered = None if whole else inside(native, grid)
    values, intensity = _normalise(values, spec, covered, mask, grid.spacing_mm)
    return Volume(values, grid.affine), Conformed(native, grid, intensity)


def _require_finite(values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values.sum(dtype=np.float64)):
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise InputError(
            "the scan holds voxels that are no numbers", expected="finite voxels", got=f"{bad} NaN or infinite",
            next_step="repair the scan, or read it with nonfinite='zero'",
        )  # fmt: skip


def _normalise(
    values: np.ndarray,
    spec: ConformSpec,
    covered: np.ndarray | None,
    mask: np.ndarray | None,
    spacing: tuple[float, float, float],
) -> tuple[np.ndarray, Intensity]:
    """Normalised values (in place) and what was done."""
    if spec.normalise == "none":
        return values, Intensity("none")
    if mask is None or not (mask if covered is None else mask & covered).any():
        mask = _find_head(values, spacing).voxels(values)
    if covered is not None:
        mask = mask & covered
    chosen = values[mask]
    if chosen.size == 0:
        chosen = (values if covered is None else values[covered]).ravel()
    low = high = None
    if spec.normalise == "clamp_zscore_01" and chosen.size:
        low, high = (float(v) for v in np.percentile(chosen, spec.clamp_percentiles))
        chosen = np.clip(chosen, low, high)
    spread = float(chosen.std(dtype=np.float64)) if chosen.size else 0.0
    mean = float(chosen.mean(dtype=np.float64)) if chosen.size else 0.0
    if spread <= 1e-6 * abs(mean) or spread == 0 or (low is not None and low == high):
        raise InputError(
            "the scan has the same value everywhere, so its intensities cannot be normalised",
            expected="voxels that differ", got=f"{mean:g} in {chosen.size} voxels of the field of view",
            next_step="leave the scan out, or look at it in a viewer",
        )  # fmt: skip
    if low is not None and high is not None:
        np.clip(values, low, high, out=values)  # rescaling the z-scores to 0..1 leaves only this
        values -= np.float32(low)
        values *= np.float32(1 / (high - low))
    else:
        values -= np.float32(mean)
        values *= np.float32(1 / spread)
    if covered is not None:
        values[~covered] = 0
    return values, Intensity(spec.normalise, mean, spread, low, high)


# ------------------------------------------------------------------------------------------------------------- the way back


def to_native(array: np.ndarray, record: Conformed, order: int = 1) -> np.ndarray:
    """An array on the conformed grid (an image, a probability map) on the scan's native grid.

    Args:
        array: of the conformed grid's shape.
        record: how the scan was conformed.
        order: 1 or 3.

    Returns:
        float32 array of the native shape; 0 outside the conformed box.
    """
    _require_shape(array, record)
    return resample(Volume(array, record.grid.affine), record.native, order=order)


def to_native_labels(labels: np.ndarray | LabelShares, record: Conformed) -> np.ndarray:
    """Labels on the conformed grid as labels on the scan's native grid; 0 outside the conformed box, same dtype.

    From shares each label's share is interpolated and the largest wins, as from a model's probabilities; what a hard map
    has lost at a coarser spacing is lost.
    """
    hard = labels if isinstance(labels, np.ndarray) else labels.first
    _require_shape(hard, record)
    if isinstance(labels, np.ndarray) or not labels.share.any():
        return resample_labels(Volume(hard, record.grid.affine), record.native)
    out = np.zeros(record.native.shape, dtype=hard.dtype)
    best, total = np.zeros(out.shape, dtype=np.float32), np.zeros(out.shape, dtype=np.float32)
    for value in np.union1d(hard, labels.second):
        if value:
            share = resample(Volume(labels.of(value), record.grid.affine), record.native)
            out[share > best] = value
            np.maximum(best, share, out=best)
            total += share
    out[best <= 1 - total + 1e-5] = 0
    return out


def denormalise(array: np.ndarray, record: Conformed) -> np.ndarray:
    """Normalised intensities in the scan's own units, float32; what was clamped stays clamped.

    Voxels outside the field of view, which hold 0, become the value that 0 stands for.
    """
    done = record.intensity
    if done.method == "none":
        return np.array(array, dtype=np.float32)
    if done.low is not None and done.high is not None:
        return (array * np.float32(done.high - done.low) + np.float32(done.low)).astype(np.float32, copy=False)
    return (array * np.float32(done.std) + np.float32(done.mean)).astype(np.float32, copy=False)


def _require_shape(array: np.ndarray, record: Conformed) -> None:
    if array.shape != record.grid.shape:
        raise ValueError(f"the array lies on the conformed grid: expected shape {record.grid.shape}, got {array.shape}")
