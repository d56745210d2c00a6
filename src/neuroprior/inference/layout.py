"""Where windows lie in a volume, how they are blended, and the rows of the volume that are done; for arrays of numpy and of torch.

Windows lie on a regular grid, so the blending weight of a voxel is a product of three one-dimensional weights that are known
before anything is computed: each axis' Gaussians (sigma an eighth of the window, as in nnU-Net, Isensee et al. 2021) are divided
by their sum over the windows that cover a voxel. The weights of a voxel then sum to one, nothing has to be divided at the end, and
rows of the volume are final as soon as the last window that covers them is done. Only ``classes x window rows`` of a volume are
held at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIGMA = 0.125
"""Standard deviation of the blending weight, as a share of the window."""

BLOCK_BYTES = 128 << 20
"""About the size of the blocks in which finished rows are handed on."""


@dataclass(frozen=True)
class Layout:
    """Where windows lie in a volume.

    Attributes:
        shape: of the volume, padded to at least a window.
        before: zeros in front of the volume along each axis.
        inner: shape of the volume itself.
        window: size in voxels.
        starts: first voxel of the windows along each axis.
        weights: per axis one float32 array a window; over the windows that cover a voxel they sum to one.
    """

    shape: tuple[int, int, int]
    before: tuple[int, int, int]
    inner: tuple[int, int, int]
    window: tuple[int, int, int]
    starts: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[np.ndarray, ...], ...]

    def __len__(self) -> int:
        return math.prod(len(starts) for starts in self.starts)

    @property
    def padding(self) -> list[tuple[int, int]]:
        """Zeros before and after the volume along each axis."""
        return [(before, full - n - before) for before, full, n in zip(self.before, self.shape, self.inner, strict=True)]

    def box(self, place: Sequence[int]) -> tuple[slice, slice, slice]:
        """The voxels of the padded volume in the window that is ``place``-th (i, j, k) along the axes."""
        x, y, z = (slice(s[n], s[n] + size) for s, n, size in zip(self.starts, place, self.window, strict=True))
        return x, y, z


def lay(shape: Sequence[int], window: Sequence[int], overlap: float) -> Layout:
    """Windows over a volume, spread evenly and in mirror symmetry.

    Args:
        shape: of the volume; an axis shorter than the window is padded with zeros on both sides.
        window: size in voxels.
        overlap: least overlap of neighbours as a share of the window, in [0, 1).
    """
    padded, before, starts, weights = [], [], [], []
    for length, size in zip(shape, window, strict=True):
        full = max(length, size)
        padded.append(full)
        before.append((full - length) // 2)
        step = max(1, int(size * (1 - overlap)))
        n = -(-(full - size) // step) + 1
        places = [round(k * (full - size) / max(n - 1, 1)) for k in range(n)]
        for k in range(n // 2):
            places[n - 1 - k] = full - size - places[k]
        bell = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (SIGMA * size)) ** 2)
        total = np.zeros(full)
        for place in places:
            total[place : place + size] += bell
        starts.append(tuple(places))
        weights.append(tuple((bell / total[place : place + size]).astype(np.float32) for place in places))
    (x, y, z), (a, b, c), (i, j, k), (p, q, r) = padded, before, window, shape
    return Layout((x, y, z), (a, b, c), (int(p), int(q), int(r)), (int(i), int(j), int(k)), tuple(starts), tuple(weights))


class Ring:
    """The rows of a volume that windows still add to.

    Args:
        layout: of the windows.
        rows: (C, window rows, y, z) zeros, an array of numpy or torch; row r of the padded volume is row r % window of it.
    """

    def __init__(self, layout: Layout, rows: Any) -> None:
        self.layout, self.rows = layout, rows

    def add(self, answer: Any, place: Sequence[int]) -> None:
        """Add what was found in the window that is ``place``-th (i, j, k): (C, *window) of the rows' kind, times its weights already."""
        first, *where = self.layout.box(place)
        plane = self.rows[(slice(None), slice(None), *where)]
        rows = self.layout.window[0]
        turn = first.start % rows
        plane[:, turn:] += answer[:, : rows - turn]
        if turn:
            plane[:, :turn] += answer[:, rows - turn :]

    def finished(self, i: int) -> Iterator[tuple[int, Any]]:
        """The rows that are done with the windows that are ``i``-th along x, once all of these were added.

        Yields:
            (first row of the volume, (C, rows, y, z)): consecutive rows, without the padding. They are lost at the next step.
        """
        (rows, _, _), starts = self.layout.window, self.layout.starts[0]
        (px, py, pz), (x, y, z) = self.layout.before, self.layout.inner
        at = starts[i]
        end = starts[i + 1] if i + 1 < len(starts) else self.layout.shape[0]
        c, _, full_y, full_z = self.rows.shape
        step = max(1, BLOCK_BYTES // (c * full_y * full_z * 4))
        while at < end:
            place = at % rows
            count = min(step, end - at, rows - place)
            low, high = max(at, px), min(at + count, px + x)
            if low < high:
                yield low - px, self.rows[:, place + low - at : place + high - at, py : py + y, pz : pz + z]
            self.rows[:, place : place + count] = 0
            at += count


def centring(shape: Sequence[int], window: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The voxels of a volume that are in a box of ``window`` voxels around its centre, and where in the box they lie."""
    source, target = [], []
    for extent, length in zip(shape, window, strict=True):
        start = (extent - length) // 2
        low, high = max(start, 0), min(start + length, extent)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return tuple(source), tuple(target)
