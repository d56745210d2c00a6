"""Resampling from one grid to another, intensities and labels.

Where two grids share their axes (up to permutation and flips) resampling is a product of three one-dimensional sparse
matrices, and an axis on which the voxels coincide is sliced, not interpolated. So a scan stored in another orientation
gives bit-identical voxels, and a scan that lies on the wanted grid already is copied.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, sparse

from .grids import Grid, grid_of
from .relations import Axis, Oblique, Separable, Slices, inside, relate
from .volume import Volume


def resample(volume: Volume, grid: Grid, *, order: int = 1, fill: float = 0.0, antialias: bool = True) -> np.ndarray:
    """A volume's voxels on another grid of the same world.

    Args:
        volume: any numeric voxels; left untouched.
        grid: where to sample.
        order: 1 linear; 3 cubic B-spline (which rings at edges, and may leave the value range).
        fill: value of voxels outside the volume's field of view.
        antialias: along an axis on which ``grid`` is coarser, widen the kernel to the target spacing (a Gaussian of that width where the grids'
            axes differ), so that nothing aliases; without it the interpolant is sampled as it stands, whatever lies between the samples.

    Returns:
        float32 array of ``grid``'s shape. Where the grids are related by flips, permutations and an integer shift the values are copied.
    """
    if order not in (1, 3):
        raise ValueError(f"order is 1 or 3, got {order}")
    relation = relate(grid_of(volume), grid)
    if isinstance(relation, Oblique):
        out = _oblique(volume.voxels.astype(np.float32, copy=False), relation, grid.shape, order, antialias)
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
        matrix = weights_along(axis, order, antialias)
        if order == 3 and (axis.step <= 1 or not antialias):
            values = ndimage.spline_filter1d(values, 3, axis=k, output=np.float32, mode="mirror") if axis.n_source > 1 else values
        first, last = span(matrix)
        values = values[(slice(None),) * k + (slice(first, last),)]
        weights.append(matrix[:, first:last])
    sampled = product(values, weights)
    if tuple(counts) == grid.shape:
        return sampled
    out = np.full(grid.shape, fill, dtype=np.float32)
    out[region] = sampled
    return out


def weights_along(axis: Axis, order: int, antialias: bool = True) -> sparse.csr_array:
    """(targets in view, n_source) float32 interpolation weights of one axis; rows sum to one. Of order 3 they are for the coefficients of
    :func:`scipy.ndimage.spline_filter1d`, except where the kernel is widened: then for the values."""
    n, step = axis.n_source, axis.step
    position = step * np.arange(axis.first, axis.last, dtype=np.float64) + axis.offset
    reach = order // 2 + 1.0  # half the kernel's support
    widened = antialias and step > 1
    width = step if widened else 1.0
    taps = int(np.floor(2 * reach * width)) + 1
    if order == 1:
        position = position if widened else np.clip(position, 0, n - 1)
    index = np.ceil(position - reach * width)[:, None] + np.arange(taps)
    distance = np.abs(index - position[:, None]) / width
    if order == 1:
        weight = np.maximum(1 - distance, 0)
    elif not widened:  # cubic B-spline, on filtered coefficients
        near = 2 / 3 - distance**2 + distance**3 / 2
        weight = np.where(distance < 1, near, np.maximum(2 - distance, 0) ** 3 / 6)
    else:  # Keys' cubic convolution, a = -1/2, stretched
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weight = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    if order == 3 and not widened:
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


def span(matrix: sparse.csr_array) -> tuple[int, int]:
    """The columns of a matrix that hold anything: first and one past the last."""
    return int(matrix.indices.min()), int(matrix.indices.max()) + 1


def product(values: np.ndarray, weights: list[sparse.csr_array | None]) -> np.ndarray:
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


def _oblique(values: np.ndarray, relation: Oblique, shape: tuple[int, int, int], order: int, antialias: bool) -> np.ndarray:
    for axis, sigma in enumerate(_blur(relation.matrix) if antialias else ()):
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
    relation = relate(grid_of(volume), grid)
    first, second = np.zeros(grid.shape, dtype=labels.dtype), np.zeros(grid.shape, dtype=labels.dtype)
    none = np.zeros(grid.shape, dtype=np.float32)
    matrices = []
    if isinstance(relation, Separable):
        if min(axis.last - axis.first for axis in relation.along) == 0:
            return LabelShares(first, second, none)
        labels = relation.turned(labels)
        if all(axis.exact for axis in relation.along):
            starts = [axis.first + int(axis.offset) for axis in relation.along]
            box = tuple(slice(s, s + a.last - a.first) for s, a in zip(starts, relation.along, strict=True))
            first[relation.region] = labels[box]
            return LabelShares(first, second, none)
        matrices = [_extents(axis) if axis.step > 1 else weights_along(axis, 1) for axis in relation.along]
    values, numbers = _compact(labels)
    best, next_best, total = none, np.zeros_like(none), np.zeros_like(none)
    for number, found in enumerate(ndimage.find_objects(numbers), start=1):
        if found is None:
            continue
        x, y, z = found
        if isinstance(relation, Separable):
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
    if isinstance(relation, Oblique):
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


def _extents(axis: Axis) -> sparse.csr_array:
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
    numbers: np.ndarray, number: int, box: Slices, matrices: list[sparse.csr_array], relation: Separable
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
    return (x, y, z), product(numbers[box] == number, weights)


def _oblique_share(
    numbers: np.ndarray, number: int, box: Slices, relation: Oblique, shape: tuple[int, int, int]
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
