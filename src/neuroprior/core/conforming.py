"""Conforming: how a scan reaches the grid that models see, and the exact way back.

To conform a scan is to reorient it to the closest RAS+ axes of its own (possibly oblique) frame, resample it to a spacing, crop it to the
head and normalise its intensities; :class:`Conformed` records each step, so that labels, probabilities and intensities return to the scan's
native grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .config import Config
from .errors import InputError
from .grids import Grid, canonical_grid, grid_of
from .headmask import Head, find_head
from .relations import Separable, inside, relate
from .resampling import LabelShares, resample, resample_labels
from .volume import Volume


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
    antialias: bool = True
    """Whether a scan that is finer than the spacing is smoothed to it; without, it is interpolated as it stands, as nnU-Net and most others do."""

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is not asked for is not told, so that stores and models from before there was a choice keep their hashes."""
        return {name: value for name, value in plain(self).items() if name != "antialias" or not value}

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
    relation = relate(native, turned)
    assert isinstance(relation, Separable)
    if mask is not None and mask.any():
        box = Head(relation.turned(mask.astype(bool, copy=False)), (1, 1, 1), None).box(turned.shape)
    else:
        values = np.ascontiguousarray(relation.turned(reference.voxels), dtype=np.float32)
        _require_finite(values)
        if spec.crop == "head":
            box = find_head(values, turned.spacing_mm).box(turned.shape)
        else:
            empty = np.float32(0 if (values == 0).any() else values.min())
            tiny = np.float32(1e-4) * np.abs(values - empty).max()
            box = Head(np.abs(values - empty) > tiny, (1, 1, 1), None).box(turned.shape)
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
    values = resample(volume, grid, order=spec.order, antialias=spec.antialias)
    relation = relate(native, grid)
    whole = isinstance(relation, Separable) and all(
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
        mask = find_head(values, spacing).voxels(values)
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
