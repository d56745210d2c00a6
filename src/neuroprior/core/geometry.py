"""Where voxels are: grids, resampling between them, and conforming a scan with its exact inverse.

Every affine takes voxel indices to RAS+ millimetres. Conforming is: reorient to the closest RAS+ axes, resample to the
wanted spacing, crop to the head, normalise; the :class:`Conformed` record holds what is needed to undo each step.

Where two grids differ by flips, permutations and whole voxels only, voxels are copied, not interpolated. Otherwise
``scipy.ndimage`` interpolates; towards a coarser grid the source is first smoothed with a Gaussian whose width adds up
to the coarser voxel (full width at half maximum), so that nothing aliases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy import ndimage

from .config import Config
from .volume import Volume, orientation, spacing_mm

EXACT = 1e-3
"""Two grids that differ by less than this many voxels are taken for the same."""


@dataclass(frozen=True)
class Grid:
    """A voxel grid with no voxels in it.

    Attributes:
        shape: voxels along each axis.
        affine: (4, 4) float64, voxel index -> RAS+ mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        x, y, z = (int(n) for n in self.shape)
        object.__setattr__(self, "shape", (x, y, z))
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis."""
        return spacing_mm(self.affine)

    @property
    def orientation(self) -> str:
        """Axis codes such as ``RAS``."""
        return orientation(self.affine)

    def corners_mm(self) -> np.ndarray:
        """(8, 3) centres of the corner voxels in RAS+ mm."""
        points = np.array(list(itertools.product(*((0, n - 1) for n in self.shape))), dtype=np.float64)
        return points @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Grid:
        """The inverse of :meth:`to_json`."""
        x, y, z = value["shape"]
        return cls((x, y, z), np.array(value["affine"], dtype=np.float64))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))


def grid_of(volume: Volume) -> Grid:
    """The grid that a volume's voxels lie on."""
    return Grid(volume.shape, volume.affine)


def corner_distance_mm(a: Grid, b: Grid) -> float:
    """The largest distance between corresponding corners of two grids of one shape; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a.corners_mm() - b.corners_mm(), axis=1).max())


def overlap(a: Grid, b: Grid) -> float:
    """The fraction of grid ``a`` that lies inside grid ``b``, counted on a lattice of 16 points an axis."""
    points = np.array(list(itertools.product(*(np.linspace(0, n - 1, 16) for n in a.shape))))
    world = points @ a.affine[:3, :3].T + a.affine[:3, 3]
    inverse = np.linalg.inv(b.affine)
    index = world @ inverse[:3, :3].T + inverse[:3, 3]
    return float(((index >= -0.5) & (index <= np.array(b.shape) - 0.5)).all(1).mean())


def orthonormalise(grid: Grid) -> tuple[Grid, float]:
    """The grid with the nearest orthonormal axes (polar decomposition), its centre kept, and the largest corner shift in mm."""
    linear = grid.affine[:3, :3]
    zooms = np.linalg.norm(linear, axis=0)
    u, _, vt = np.linalg.svd(linear / zooms)
    repaired = np.eye(4)
    repaired[:3, :3] = (u @ vt) * zooms
    centre = (np.array(grid.shape) - 1) / 2
    repaired[:3, 3] = linear @ centre + grid.affine[:3, 3] - repaired[:3, :3] @ centre
    made = Grid(grid.shape, repaired)
    return made, corner_distance_mm(grid, made)


def canonical_grid(grid: Grid, spacing: float | None) -> Grid:
    """The grid with its axes permuted and flipped to the closest RAS+, at ``spacing`` mm (None keeps the spacing).

    The centre stays where it is and the extent grows by less than a voxel, so that nothing is cut off. A spacing within 0.1 % of the wanted one is
    kept, so that a 1.0000001 mm scan is copied and not interpolated.
    """
    from nibabel import orientations

    axes = orientations.io_orientation(grid.affine)
    x, y, z = (grid.shape[int(np.flatnonzero(axes[:, 0] == axis)[0])] for axis in range(3))
    affine = grid.affine @ orientations.inv_ornt_aff(axes, grid.shape)
    if spacing is None:
        return Grid((x, y, z), affine)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = np.where(np.abs(zooms / spacing - 1) < 1e-3, zooms, spacing)
    shape = [max(1, math.ceil(n * zoom / want - 0.01)) if zoom != want else n for n, zoom, want in zip((x, y, z), zooms, wanted, strict=True)]
    made = np.eye(4)
    made[:3, :3] = affine[:3, :3] / zooms * wanted
    centre = affine[:3, :3] @ ((np.array([x, y, z]) - 1) / 2) + affine[:3, 3]
    made[:3, 3] = centre - made[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), made)


def crop_grid(grid: Grid, box: Sequence[slice]) -> Grid:
    """The part of a grid inside a box of voxel slices."""
    starts = np.array([part.start for part in box], dtype=np.float64)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ starts
    x, y, z = (part.stop - part.start for part in box)
    return Grid((x, y, z), affine)


# ---------------------------------------------------------------------------------------------------------------------
# Resampling


@dataclass(frozen=True)
class _Mapping:
    """How target voxel indices become source voxel indices, with the source's axes already permuted to the target's."""

    axes: tuple[int, int, int]
    matrix: np.ndarray  # (3, 3), rows in permuted source order
    offset: np.ndarray  # (3,)
    diagonal: bool
    exact: bool


def _mapping(source: Grid, target: Grid) -> _Mapping:
    full = np.linalg.inv(source.affine) @ target.affine
    matrix, offset = full[:3, :3].copy(), full[:3, 3].copy()
    extent = max(max(source.shape), max(target.shape))
    matrix[np.abs(matrix) * extent < EXACT] = 0.0
    nonzero = matrix != 0
    diagonal = bool((nonzero.sum(0) == 1).all() and (nonzero.sum(1) == 1).all())
    if not diagonal:
        return _Mapping((0, 1, 2), matrix, offset, False, False)
    order = tuple(int(np.flatnonzero(nonzero[:, axis])[0]) for axis in range(3))  # source axis for each target axis
    matrix, offset = matrix[list(order)], offset[list(order)]
    scale = np.diag(matrix)
    whole = bool((np.abs(np.abs(scale) - 1) * extent < EXACT).all() and (np.abs(offset - np.round(offset)) < EXACT).all())
    if whole:
        matrix, offset = np.diag(np.sign(scale)), np.round(offset)
    return _Mapping((order[0], order[1], order[2]), matrix, offset, True, whole)


def _copy(array: np.ndarray, mapping: _Mapping, shape: Sequence[int], fill: float) -> np.ndarray:
    """Voxels copied between grids that differ by flips, permutations and whole voxels."""
    out = np.full(tuple(shape), fill, dtype=array.dtype)
    source, target = [], []
    for axis, extent in enumerate(shape):
        step, first, length = int(mapping.matrix[axis, axis]), int(mapping.offset[axis]), array.shape[axis]
        low, high = (max(0, -first), min(extent, length - first)) if step > 0 else (max(0, first - length + 1), min(extent, first + 1))
        high = max(high, low)
        target.append(slice(low, high))
        if step > 0:
            source.append(slice(first + low, first + high))
        else:
            stop = first - high
            source.append(slice(first - low, None if stop < 0 else stop, -1) if high > low else slice(0, 0))
    out[tuple(target)] = array[tuple(source)]
    return out


def _smooth(array: np.ndarray, mapping: _Mapping, from_step: float = 1.0) -> np.ndarray:
    """Low-pass for steps beyond ``from_step`` source voxels; linear interpolation itself averages up to 2."""
    step = np.abs(mapping.matrix).max(1)  # target voxel in source voxels, along each source axis
    sigma = np.where(step > from_step * 1.01, np.sqrt(np.maximum(step**2 - from_step**2, 0)) / 2.3548, 0.0)
    if not sigma.any():
        return array
    return ndimage.gaussian_filter(array, sigma, mode="nearest", truncate=3.0)


def _interpolate(array: np.ndarray, mapping: _Mapping, shape: Sequence[int], order: int) -> np.ndarray:
    matrix = np.diag(mapping.matrix) if mapping.diagonal else mapping.matrix
    if mapping.diagonal and (matrix < 0).any():  # scipy's separable path wants positive steps
        flips = tuple(axis for axis in range(3) if matrix[axis] < 0)
        offset = mapping.offset.copy()
        for axis in flips:
            offset[axis] = array.shape[axis] - 1 - offset[axis]
        array, matrix = np.flip(array, flips), np.abs(matrix)
        return ndimage.affine_transform(array, matrix, offset, tuple(shape), np.float32, order, mode="nearest")
    return ndimage.affine_transform(array, matrix, mapping.offset, tuple(shape), np.float32, order, mode="nearest")


def inside(source: Grid, target: Grid) -> np.ndarray:
    """(target shape) bool: which voxels of ``target`` have their centre inside the field of view of ``source``."""
    mapping = _mapping(source, target)
    lengths = [source.shape[axis] for axis in mapping.axes]
    return _inside(mapping, lengths, target.shape)


def _inside(mapping: _Mapping, lengths: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    result = np.ones(tuple(shape), dtype=bool)
    ranges = [np.arange(n, dtype=np.float32) for n in shape]
    for row in range(3):
        place: np.ndarray | None = None
        for axis in range(3):
            if mapping.matrix[row, axis] == 0 and not (place is None and axis == 2):
                continue
            part = (mapping.matrix[row, axis] * ranges[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
            place = part if place is None else place + part
        assert place is not None
        place = place + mapping.offset[row]
        result &= (place >= -0.5 - EXACT) & (place <= lengths[row] - 0.5 + EXACT)
    return result


def resample(volume: Volume, grid: Grid, *, order: int = 1, fill: float = 0.0) -> np.ndarray:
    """A volume's values on another grid.

    Args:
        volume: any numeric voxels.
        grid: the target.
        order: of the spline, 0 (nearest), 1 (linear) or 3 (cubic).
        fill: value outside the volume's field of view (half a voxel beyond its outermost centres).

    Returns:
        (grid.shape) float32; an exact copy where the grids differ by flips, permutations and whole voxels.
    """
    mapping = _mapping(grid_of(volume), grid)
    array = np.transpose(np.asarray(volume.voxels, dtype=np.float32), mapping.axes)
    if mapping.exact:
        return _copy(array, mapping, grid.shape, fill)
    out = _interpolate(_smooth(array, mapping) if order else array, mapping, grid.shape, order)
    out[~_inside(mapping, array.shape, grid.shape)] = fill
    return out


def resample_labels(volume: Volume, grid: Grid) -> np.ndarray:
    """A label map on another grid: each label is interpolated linearly as a mask, and the largest wins.

    One label is in memory at a time, inside its bounding box only. The dtype is kept; outside the field of view it is 0.
    """
    mapping = _mapping(grid_of(volume), grid)
    array = np.transpose(volume.voxels, mapping.axes)
    if mapping.exact:
        return _copy(array, mapping, grid.shape, 0)
    out = np.zeros(grid.shape, dtype=array.dtype)
    best, total = np.zeros(grid.shape, dtype=np.float32), np.zeros(grid.shape, dtype=np.float32)
    step = np.abs(mapping.matrix).max(1)
    inverse = np.linalg.inv(mapping.matrix)
    for value in np.unique(array):
        if value == 0:
            continue
        where = array == value
        found = [np.flatnonzero(where.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        pad = np.ceil(2 * step).astype(int) + 2
        box = tuple(
            slice(max(0, int(f[0]) - int(p)), min(n, int(f[-1]) + int(p) + 1)) for f, p, n in zip(found, pad, array.shape, strict=True)
        )
        points = np.array(list(itertools.product(*((b.start - 0.5, b.stop - 0.5) for b in box))), dtype=np.float64)
        index = (points - mapping.offset) @ inverse.T
        low = np.maximum(np.floor(index.min(0)).astype(int), 0)
        high = np.minimum(np.ceil(index.max(0)).astype(int) + 1, grid.shape)
        if (high <= low).any():
            continue
        starts = np.array([b.start for b in box], dtype=np.float64)
        local = _Mapping(mapping.axes, mapping.matrix, mapping.matrix @ low + mapping.offset - starts, mapping.diagonal, False)
        share = _interpolate(_smooth(where[box].astype(np.float32), local, 1.5), local, high - low, 1)
        target = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        wins = share > best[target]
        out[target][wins] = value
        np.maximum(best[target], share, out=best[target])
        total[target] += share
    out[best <= 1 - total] = 0
    out[~_inside(mapping, array.shape, grid.shape)] = 0
    return out


# ---------------------------------------------------------------------------------------------------------------------
# The head


def head_threshold(voxels: np.ndarray) -> float:
    """The intensity that separates head from air or from the zeros of a skull-strip: 0.35 of Otsu's threshold.

    Computed on every n-th voxel, clipped at the 99.5th percentile. Values at or below it are background.
    """
    stride = max(1, round((voxels.size / 200_000) ** (1 / 3)))
    sample = voxels[::stride, ::stride, ::stride].astype(np.float32).ravel()
    low, high = float(min(sample.min(), 0.0)), float(np.percentile(sample, 99.5))
    if high <= low:
        return low
    counts, edges = np.histogram(np.clip(sample, low, high), bins=256, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)
    mean = np.cumsum(counts * centres)
    rest, total = weight[-1] - weight, mean[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = weight * rest * (mean / weight - (total - mean) / rest) ** 2
    otsu = centres[int(np.nanargmax(between))]
    return float(low + 0.35 * (otsu - low)) if low < 0 else float(0.35 * otsu)


def head_box(voxels: np.ndarray, spacing: Sequence[float], margin_mm: float = 4.0) -> tuple[slice, slice, slice]:
    """The box around the head (or the stripped brain): the largest bright component on a grid of about 4 mm, plus a margin.

    Args:
        voxels: (x, y, z) native intensities.
        spacing: mm along each axis.
        margin_mm: added on every side, cut at the volume's edge.
    """
    steps = [max(1, round(4.0 / s)) for s in spacing]
    coarse = ndimage.uniform_filter(np.asarray(voxels, dtype=np.float32), steps, mode="nearest")
    coarse = coarse[:: steps[0], :: steps[1], :: steps[2]]
    bright = ndimage.binary_opening(coarse > head_threshold(coarse)) if min(coarse.shape) > 4 else coarse > head_threshold(coarse)
    if not bright.any():
        bright = coarse > head_threshold(coarse)
    components, n = ndimage.label(bright)  # type: ignore[misc]  # scipy's stubs return a union here
    if n == 0:
        return slice(0, voxels.shape[0]), slice(0, voxels.shape[1]), slice(0, voxels.shape[2])
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    box = ndimage.find_objects((components == sizes.argmax()).astype(np.int8))[0]
    result = []
    for part, step, size, length in zip(box, steps, spacing, voxels.shape, strict=True):
        pad = step + round(margin_mm / size)
        result.append(slice(max(0, part.start * step - pad), min(length, part.stop * step + pad)))
    a, b, c = result
    return a, b, c


# ---------------------------------------------------------------------------------------------------------------------
# Conforming


class ConformSpec(Config):
    """How scans are made alike before a network sees them."""

    spacing_mm: float | Literal["native"] = 1.0
    """Isotropic spacing in mm, or ``native`` to keep each session's own (for tiny structures)."""
    crop: Literal["head", "nonzero", "none"] = "head"
    """What the grid is cropped to: the head, the voxels that are not zero, or nothing."""
    margin_mm: float = Field(default=4.0, ge=0)
    """Margin around the crop."""
    normalise: Literal["zscore", "clamp_zscore_01", "none"] = "zscore"
    """``zscore`` over the head; ``clamp_zscore_01`` clamps to percentiles first and rescales to 0-1 after."""
    clamp_percentiles: tuple[float, float] = (0.5, 99.5)
    """Percentiles of the head's intensities that ``clamp_zscore_01`` clamps to."""
    order: Literal[1, 3] = 1
    """Order of the interpolating spline."""

    def model_post_init(self, _: Any) -> None:
        """Refuse impossible spacings and percentiles."""
        if self.spacing_mm != "native" and not 0.1 <= self.spacing_mm <= 20:
            raise ValueError(f"spacing_mm must lie between 0.1 and 20 mm, got {self.spacing_mm}")
        low, high = self.clamp_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"clamp_percentiles must rise within 0-100, got {self.clamp_percentiles}")


@dataclass(frozen=True)
class Conformed:
    """What was done to a scan, so that it can be undone.

    Attributes:
        native: the scan's own grid.
        conformed: the grid it was brought to.
        intensity: ``method``, ``mean``, ``std``, and for a clamped volume ``low`` and ``high`` (native intensities).
    """

    native: Grid
    conformed: Grid
    intensity: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"native": self.native.to_json(), "conformed": self.conformed.to_json(), "intensity": dict(self.intensity)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Conformed:
        """The inverse of :meth:`to_json`."""
        return cls(Grid.from_json(value["native"]), Grid.from_json(value["conformed"]), dict(value["intensity"]))


def session_grid(reference: Volume, spec: ConformSpec, mask: np.ndarray | None = None) -> Grid:
    """The grid that all scans of a session are brought to: the reference's crop, in RAS+ axes, at the wanted spacing.

    Args:
        reference: native volume.
        spec: spacing, crop and margin.
        mask: (x, y, z) bool on the reference's grid; where given, it is cropped to instead.
    """
    native = grid_of(reference)
    upright = canonical_grid(native, None)  # the box must not depend on how the axes are stored
    voxels = resample(reference, upright, order=0)
    if mask is not None and mask.any() and spec.crop != "none":
        turned = resample(Volume(mask.astype(np.uint8), native.affine), upright, order=0) > 0
        box = _bounding_box(turned, upright.spacing_mm, spec.margin_mm)
    elif spec.crop == "head":
        box = head_box(voxels, upright.spacing_mm, spec.margin_mm)
    elif spec.crop == "nonzero" and (voxels != 0).any():
        box = _bounding_box(voxels != 0, upright.spacing_mm, spec.margin_mm)
    else:
        box = (slice(0, voxels.shape[0]), slice(0, voxels.shape[1]), slice(0, voxels.shape[2]))
    spacing = None if spec.spacing_mm == "native" else spec.spacing_mm
    return canonical_grid(crop_grid(upright, box), spacing)


def _bounding_box(mask: np.ndarray, spacing: Sequence[float], margin_mm: float) -> tuple[slice, slice, slice]:
    result = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        pad = round(margin_mm / spacing[axis])
        result.append(slice(max(0, int(found[0]) - pad), min(mask.shape[axis], int(found[-1]) + 1 + pad)))
    a, b, c = result
    return a, b, c


def conform(
    volume: Volume, spec: ConformSpec, *, grid: Grid | None = None, mask: np.ndarray | None = None
) -> tuple[Volume, Conformed]:
    """A scan made ready for a network, and the record that undoes it.

    Args:
        volume: native, finite intensities.
        spec: what to do.
        grid: where to bring it (a session's common grid); by default the scan's own :func:`session_grid`.
        mask: (grid.shape) bool, the voxels whose intensities are normalised by; by default those above the head threshold.

    Returns:
        float32 (x, y, z) volume and its record. Voxels outside the field of view, and voxels that are exactly zero (a
        skull-strip's background), are 0 after normalisation too.
    """
    target = session_grid(volume, spec) if grid is None else grid
    native = grid_of(volume)
    voxels = resample(volume, target, order=spec.order, fill=0.0)
    if spec.normalise == "none":
        return Volume(voxels, target.affine), Conformed(native, target, {"method": "none", "mean": 0.0, "std": 1.0})
    background = voxels == 0
    head = mask if mask is not None and (mask & ~background).any() else voxels > head_threshold(voxels)
    values = voxels[head & ~background]
    if values.size < 8:
        values = voxels[~background] if not background.all() else voxels.ravel()
    intensity: dict[str, Any] = {"method": spec.normalise}
    if spec.normalise == "clamp_zscore_01":
        low, high = (float(v) for v in np.percentile(values, spec.clamp_percentiles))
        high = high if high > low else low + 1.0
        np.clip(voxels, low, high, out=voxels)
        voxels -= low
        voxels /= high - low
        intensity |= {"mean": low, "std": high - low, "low": low, "high": high}
    else:
        mean = float(values.mean(dtype=np.float64))
        std = float(values.std(dtype=np.float64)) or 1.0
        voxels -= np.float32(mean)
        voxels /= np.float32(std)
        intensity |= {"mean": mean, "std": std}
    voxels[background] = 0.0
    return Volume(voxels, target.affine), Conformed(native, target, intensity)


def denormalise(array: np.ndarray, record: Conformed) -> np.ndarray:
    """Conformed intensities in the scan's own units (float32); a value of exactly 0 is background and stays 0.

    Clamped intensities stay clamped.
    """
    out = array.astype(np.float32) * np.float32(record.intensity["std"]) + np.float32(record.intensity["mean"])
    out[array == 0] = 0.0
    return out


def to_native(array: np.ndarray, record: Conformed, order: int = 1) -> np.ndarray:
    """Values on the conformed grid, brought back to the scan's own grid (float32; 0 outside the conformed box)."""
    return resample(Volume(array, record.conformed.affine), record.native, order=order)


def to_native_labels(labels: np.ndarray, record: Conformed) -> np.ndarray:
    """A label map on the conformed grid, brought back to the scan's own grid (same dtype; 0 outside the conformed box)."""
    return resample_labels(Volume(labels, record.conformed.affine), record.native)
