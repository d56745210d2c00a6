"""From conformed probabilities, row by row, to an answer on the native grid, slab by slab.

Rows arrive in order along x (``windows.stream``). As soon as the rows that a native slab needs are there, the slab is resampled one
class at a time and decided; then the rows are forgotten. Neither the native nor the conformed grid ever holds a map a class, and
the voxels are those that resampling each class as a whole would give, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.conforming import Conformed
from ..core.slabs import Slab, Slabs
from .calibration import temper

SLAB_VOXELS = 1 << 22
"""About the largest native slab, in voxels."""

ROWS_BYTES = 128 << 20
"""About the largest part of the conformed rows (all classes) that a slab may need."""

MARGIN = 0.99
"""A class whose largest probability is below this share of 1 / classes cannot win a voxel, and is not resampled."""


@dataclass(frozen=True)
class NativeAnswer:
    """A segmentation on the native grid.

    Attributes:
        mask: (x, y, z) label values in the smallest integer type that holds them.
        foreground: float32 probability of not being background, or None where it was not asked for.
        entropy: float32, in [0, 1]: of the (calibrated) class probabilities, as a share of the largest possible; or None.
        mutual: float32, in [0, 1]: the part of the entropy that is disagreement between passes (members, samples, mirrored
            copies and overlapping windows), before any temperature; or None.
        voxels: label value -> voxels.
        inside: mean foreground probability over the voxels of the mask, or the largest anywhere where the mask is empty.
        confidence: mean probability of the winning class over the voxels of the mask, or the smallest background probability
            anywhere where the mask is empty.
    """

    mask: np.ndarray
    foreground: np.ndarray | None
    entropy: np.ndarray | None
    mutual: np.ndarray | None
    voxels: dict[int, int]
    inside: float
    confidence: float


class NativeBuilder:
    """Collects rows of class probabilities and decides the native voxels.

    Args:
        record: how the scan was conformed.
        values: label values of the classes 1, 2, ...
        temperature: acts on the rows' probabilities (``calibration.temper``).
        foreground, entropy: whether these maps are kept.
        spread: the rows carry a last channel with the mean entropy of single passes, and the mutual information is kept.
        thickness: native voxels a slab; chosen by memory where None.
    """

    def __init__(
        self,
        record: Conformed,
        values: Sequence[int],
        *,
        temperature: float = 1.0,
        foreground: bool = False,
        entropy: bool = False,
        spread: bool = False,
        thickness: int | None = None,
    ) -> None:
        self._values = tuple(values)
        self._classes = len(self._values) + 1
        self._temperature = temperature
        native, grid = record.native, record.grid
        probe = Slabs(grid, native, 1)
        if thickness is None:
            plane = max(1, native.shape[0] * native.shape[1] * native.shape[2] // native.shape[probe.axis])
            row = self._classes * grid.shape[1] * grid.shape[2] * 4
            rows_each = grid.spacing_mm[0] / native.spacing_mm[probe.axis]  # native voxels a conformed row
            thickness = max(1, min(SLAB_VOXELS // plane, int(max(1, ROWS_BYTES // row) * rows_each)))
        self._slabs = Slabs(grid, native, thickness)
        self._waiting = list(self._slabs.slabs)
        self._rows: np.ndarray | None = None
        self._first = self._next = 0
        kind = np.min_scalar_type(max(self._values)) if min(self._values) >= 0 else np.dtype(np.int32)
        self._table = np.array([0, *self._values], dtype=kind)
        self.mask = np.zeros(native.shape, dtype=kind)
        self.foreground = np.zeros(native.shape, dtype=np.float32) if foreground else None
        self.entropy = np.zeros(native.shape, dtype=np.float32) if entropy else None
        self.mutual = np.zeros(native.shape, dtype=np.float32) if spread else None
        self._counts = np.zeros(self._classes, dtype=np.int64)
        self._inside = self._confidence = 0.0
        self._largest = 0.0

    def push(self, first: int, block: np.ndarray) -> None:
        """Take the next rows.

        Args:
            first: row that the block begins with; the one after the last block's last.
            block: (classes [+ 1], rows, y, z) float32 probabilities; it may be changed.
        """
        if first != self._next:
            raise ValueError(f"rows come in order: expected row {self._next}, got {first}")
        self._next = first + block.shape[1]
        channels = [block[: self._classes]]
        scale = math.log(self._classes)
        if self.mutual is not None:
            disagreement = (entropy(block[: self._classes]) - block[self._classes]) / scale
            channels.append(np.clip(disagreement, 0, 1, out=disagreement)[None])
        channels[0] = temper(channels[0], self._temperature, axis=0)
        if self.entropy is not None:
            channels.insert(1, (entropy(channels[0]) / scale)[None])
        rows = channels[0] if len(channels) == 1 else np.concatenate(channels)
        if self._rows is None or self._rows.shape[1] == 0:
            self._rows, self._first = rows, first
        else:
            self._rows = np.concatenate([self._rows, rows], axis=1)
        while self._waiting and self._waiting[0].last <= self._next:
            self._decide(self._waiting.pop(0))
        needed = min((slab.first for slab in self._waiting), default=self._next)
        if needed > self._first:
            self._rows = self._rows[:, needed - self._first :].copy()
            self._first = needed

    def _decide(self, slab: Slab) -> None:
        assert self._rows is not None
        rows = self._rows[:, slab.first - self._first : slab.last - self._first]
        background = self._slabs.sample(slab, rows[0])
        best, number = background.copy(), np.zeros(background.shape, dtype=np.uint16)
        for k in range(1, self._classes):
            if rows[k].max() < MARGIN / self._classes:
                continue
            share = self._slabs.sample(slab, rows[k])
            number[share > best] = k
            np.maximum(best, share, out=best)
        self.mask[slab.where] = self._table[number]
        foreground = np.clip(1 - background, 0, 1)
        found = number > 0
        self._counts += np.bincount(number.ravel(), minlength=self._classes)
        self._inside += float(foreground[found].sum(dtype=np.float64))
        self._confidence += float(best[found].sum(dtype=np.float64))
        self._largest = max(self._largest, float(foreground.max()))
        place = self._classes
        if self.foreground is not None:
            self.foreground[slab.where] = foreground
        if self.entropy is not None:
            self.entropy[slab.where] = self._slabs.sample(slab, rows[place])
            place += 1
        if self.mutual is not None:
            self.mutual[slab.where] = self._slabs.sample(slab, rows[place])

    def finish(self) -> NativeAnswer:
        """The answer, once every row was pushed.

        Raises:
            ValueError: rows are missing.
        """
        if self._waiting:
            raise ValueError(f"rows {self._next} to {self._waiting[-1].last} were never pushed")
        found = int(self._counts[1:].sum())
        return NativeAnswer(
            self.mask, self.foreground, self.entropy, self.mutual,
            {value: int(count) for value, count in zip(self._values, self._counts[1:], strict=True)},
            self._inside / found if found else self._largest,
            self._confidence / found if found else 1 - self._largest,
        )  # fmt: skip


def entropy(p: np.ndarray) -> np.ndarray:
    """(classes, ...) -> (...) Shannon entropy in nats, float32."""
    total = np.zeros(p.shape[1:], dtype=np.float32)
    for row in p:
        total -= row * np.log(np.maximum(row, np.float32(1e-12)))
    return total


def native_labels(probability: np.ndarray, record: Conformed, values: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The most probable label value and the foreground probability on the native grid, from a map that is whole.

    Args:
        probability: (classes, x, y, z) on the conformed grid, class 0 is background.
        record: how the scan was conformed.
        values: the label values of classes 1, 2, ...

    Returns:
        (label map of the smallest integer type, float32 foreground probability), both on the native grid; outside the
        conformed box everything is background.
    """
    builder = NativeBuilder(record, values, foreground=True)
    builder.push(0, probability.astype(np.float32, copy=False))
    answer = builder.finish()
    assert answer.foreground is not None
    return answer.mask, answer.foreground
