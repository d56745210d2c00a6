"""Where the head is in a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

HEAD_BLOCK_MM = 4.0
"""Edge of the blocks whose means the head is found in."""

HEAD_FRACTION = 0.25
"""A block brighter than this fraction of the median head block belongs to the head."""


@dataclass(frozen=True)
class Head:
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


def find_head(values: np.ndarray, spacing: tuple[float, float, float]) -> Head:
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
            return Head(np.zeros(means.shape, dtype=bool), edges, background)
        lifted = HEAD_FRACTION * float(np.median(above))
        if abs(lifted - threshold) <= 1e-3 * threshold:
            break
        threshold = lifted
    parts, n_parts = ndimage.label(means > threshold)  # pyright: ignore[reportGeneralTypeIssues]  # a pair, as documented
    sizes = np.bincount(parts.ravel(), minlength=n_parts + 1)
    sizes[0] = 0
    head = (sizes >= 0.1 * sizes.max())[parts] & (parts > 0)
    head = ndimage.binary_closing(np.pad(head, 2), iterations=2)[2:-2, 2:-2, 2:-2] | head
    return Head(ndimage.binary_fill_holes(head), edges, background)


def head_mask(values: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Where the head is in a volume: bool (x, y, z), in blocks of about ``HEAD_BLOCK_MM``, holes filled.

    Args:
        values: (x, y, z) float32 in the scan's own units, noise or one constant value around the head.
        spacing_mm: of the grid.
    """
    return find_head(values, spacing_mm).voxels(values)
