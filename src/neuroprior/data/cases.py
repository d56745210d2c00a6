"""Labelled cases: a session's contrasts with a target, drawn for fine-tuning.

A draw is a function of (seed, sample number): first a case (balanced over classes where the target has classes), then a
box in it (centred near the foreground for a share of the draws), then an augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core import seeds
from ..core.errors import InputError
from .store import SessionView, Store


class CaseBatch(TypedDict):
    """A ragged batch: row n of ``images`` belongs to case ``case[n]`` and shows contrast number ``contrast[n]``."""

    images: Tensor
    """(N, 1, x, y, z) float32, conformed."""
    case: Tensor
    """(N,) int64 in [0, B)."""
    contrast: Tensor
    """(N,) int64, the place in the model's list of contrasts."""
    target: Tensor
    """(B, x, y, z) int64 label map, (B,) int64 class numbers, or (B,) float32 values."""
    names: list[str]
    """The B sessions' keys."""


@dataclass(frozen=True)
class Case:
    """A session and what is to be predicted of it.

    Attributes:
        session: the session in the store.
        contrasts: the contrasts used of it, canonical names, at least one.
        target: a label's name (segmentation), a class number, or a value.
        group: class number used to balance the draws; 0 where there are no classes.
    """

    session: SessionView
    contrasts: tuple[str, ...]
    target: str | int | float
    group: int = 0


def crop(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The box of ``size`` voxels that begins at ``start`` (may be negative); outside the array it is zero.

    Args:
        array: (x, y, z).
        start: first voxel of the box along each axis.
        size: voxels along each axis.
    """
    out = np.zeros(tuple(size), dtype=array.dtype)
    source, target = [], []
    for first, length, extent in zip(start, size, array.shape, strict=True):
        low, high = max(first, 0), min(first + length, extent)
        source.append(slice(low, max(high, low)))
        target.append(slice(low - first, max(high, low) - first))
    out[tuple(target)] = array[tuple(source)]
    return out


def box_slices(start: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> tuple[tuple[slice, slice, slice], list[int]]:
    """The part of a box that lies inside an array of ``shape``, and where the box begins relative to that part."""
    slices, offset = [], []
    for first, length, extent in zip(start, size, shape, strict=True):
        low, high = max(first, 0), max(min(first + length, extent), 0)
        slices.append(slice(low, max(high, low)))
        offset.append(first - low)
    a, b, c = slices
    return (a, b, c), offset


def centred(shape: Sequence[int], size: Sequence[int]) -> list[int]:
    """Where a box of ``size`` begins when its centre is the centre of an array of ``shape``."""
    return [(extent - length) // 2 for extent, length in zip(shape, size, strict=True)]


def class_numbers(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """A label map as int64 class numbers: ``values[k]`` becomes k + 1, everything else 0."""
    numbers = np.zeros(label.shape, dtype=np.int64)
    for number, value in enumerate(values, start=1):
        numbers[label == value] = number
    return numbers


def foreground_centres(store: Store, case: Case, limit: int = 512) -> np.ndarray:
    """(n, 3) voxel coordinates inside the target label, at most ``limit`` of them, spread evenly; may be empty."""
    inside = np.argwhere(store.read_label(case.session.key, str(case.target)) > 0)
    if len(inside) > limit:
        inside = inside[np.linspace(0, len(inside) - 1, limit).astype(int)]
    return inside


class CaseDataset(Dataset[dict[str, Any]]):
    """Map from a global sample number to one augmented, cropped case.

    Args:
        store: the store the cases lie in.
        cases: at least one.
        contrasts: the model's list of contrasts; its order numbers them.
        patch: box size in voxels.
        seed: of every draw.
        foreground: share of draws whose box contains foreground (label targets only), in [0, 1].
        contrast_dropout: probability that a contrast of a case is left out of a draw (one always stays).
        label_values: the label values that are classes 1, 2, ... in this order; every other value is background.
        jitter: largest shift in voxels of the box of a value or class target (its box is otherwise centred).
        flip_axes: axes that may be mirrored. Left and right (axis 0) only where labels have no side.
        intensity: spread of the random gain and offset, in standard deviations of the image.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[Case],
        contrasts: Sequence[str],
        patch: tuple[int, int, int],
        *,
        seed: int,
        foreground: float = 0.5,
        contrast_dropout: float = 0.0,
        label_values: Sequence[int] = (1,),
        jitter: int = 4,
        flip_axes: tuple[int, ...] = (0,),
        intensity: float = 0.1,
    ) -> None:
        if not cases:
            raise InputError("there is no labelled case to train on")
        self.store, self.cases, self.contrasts, self.patch = store, tuple(cases), tuple(contrasts), patch
        self.seed, self.foreground, self.contrast_dropout = seed, foreground, contrast_dropout
        self.label_values = tuple(label_values)
        self.jitter, self.flip_axes, self.intensity = jitter, flip_axes, intensity
        self._groups = [
            [number for number, case in enumerate(self.cases) if case.group == group]
            for group in sorted({case.group for case in self.cases})
        ]
        self._centres: dict[int, np.ndarray] = {}

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """One case: ``images`` (K, x, y, z), ``contrast`` (K,), ``target``, ``name``."""
        draw = seeds.generator(self.seed, "case", sample)
        group = self._groups[int(draw.integers(len(self._groups)))]
        number = group[int(draw.integers(len(group)))]
        case = self.cases[number]
        kept = [name for name in case.contrasts if draw.random() >= self.contrast_dropout]
        if not kept:
            kept = [case.contrasts[int(draw.integers(len(case.contrasts)))]]
        start = self._start(number, case, draw)
        box, offset = box_slices(start, self.patch, case.session.shape)
        flips = [axis + 1 for axis in self.flip_axes if draw.random() < 0.5]
        images = np.stack([crop(self.store.read(case.session.key, name, box), offset, self.patch) for name in kept])
        gain = 1 + self.intensity * draw.standard_normal((len(kept), 1, 1, 1))
        shift = self.intensity * draw.standard_normal((len(kept), 1, 1, 1))
        images = np.where(images != 0, images * gain + shift, 0)  # outside the field of view stays 0
        images = np.ascontiguousarray(np.flip(images, flips), dtype=np.float32)
        target: Any = case.target
        if isinstance(case.target, str):
            label = crop(self.store.read_label(case.session.key, case.target, box), offset, self.patch)
            label = class_numbers(label, self.label_values)
            target = np.ascontiguousarray(np.flip(label, [axis - 1 for axis in flips]))
        order = [self.contrasts.index(name) for name in kept]
        return {"images": images, "contrast": order, "target": target, "name": case.session.key}

    def _start(self, number: int, case: Case, draw: np.random.Generator) -> list[int]:
        shape = case.session.shape
        if not isinstance(case.target, str):
            return [first + int(draw.integers(-self.jitter, self.jitter + 1)) for first in centred(shape, self.patch)]
        if draw.random() < self.foreground:
            if number not in self._centres:
                self._centres[number] = foreground_centres(self.store, case)
            centres = self._centres[number]
            if len(centres):
                centre = centres[int(draw.integers(len(centres)))]
                # anywhere in the middle half of the box, so that the model does not learn that lesions are central
                away = [int(draw.integers(length // 4, length - length // 4)) for length in self.patch]
                return [int(point) - distance for point, distance in zip(centre, away, strict=True)]
        start = []
        for extent, length in zip(shape, self.patch, strict=True):
            low, high = min(0, extent - length), max(0, extent - length)
            start.append(int(draw.integers(low, high + 1)) if extent > length else centred([extent], [length])[0])
        return start

    def __len__(self) -> int:
        """Number of cases; sample numbers may be any non-negative integer."""
        return len(self.cases)


def collate(samples: Sequence[Mapping[str, Any]]) -> CaseBatch:
    """Samples of :class:`CaseDataset` as one ragged batch."""
    counts = [len(sample["contrast"]) for sample in samples]
    first = samples[0]["target"]
    if isinstance(first, np.ndarray):
        target = torch.from_numpy(np.stack([sample["target"] for sample in samples]))
    else:
        kind = torch.int64 if isinstance(first, int) else torch.float32
        target = torch.tensor([sample["target"] for sample in samples], dtype=kind)
    return CaseBatch(
        images=torch.from_numpy(np.concatenate([sample["images"] for sample in samples]))[:, None],
        case=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
        contrast=torch.tensor([place for sample in samples for place in sample["contrast"]], dtype=torch.int64),
        target=target,
        names=[sample["name"] for sample in samples],
    )
