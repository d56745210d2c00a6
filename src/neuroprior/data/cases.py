"""Labelled cases: a session's contrasts with a target, drawn for fine-tuning.

A draw is a function of (seed, sample number), in two levels: first what is wanted and a case that has it (a class, or for label
maps a label value, so that rare ones have an equal chance), then a box in that case (around a voxel of that value, at a random
place in the box, for a share of the draws), then an augmentation from a generator of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core import seeds
from ..core.covariates import Covariate, encode
from ..core.errors import ConfigError, InputError
from .augmentation import Augmentation
from .store import Box, SessionView, Store


class CaseBatch(TypedDict):
    """A ragged batch: row n of ``images`` belongs to case ``case[n]`` and shows contrast number ``contrast[n]``."""

    images: Tensor
    """(N, 1, x, y, z) float32, conformed."""
    case: Tensor
    """(N,) int64 in [0, B)."""
    contrast: Tensor
    """(N,) int64, the place in the model's list of contrasts."""
    target: Tensor
    """(B, x, y, z) int64 class numbers or (B, classes, x, y, z) float32 shares; (B,) int64 class numbers, or (B,) float32 values."""
    names: list[str]
    """The B sessions' keys."""
    covariates: NotRequired[Tensor]
    """(B, F) float32 encoded covariates, NaN where missing; only where the head takes some."""


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
    """The box of ``size`` voxels that begins at ``start`` (may be negative); outside the array it is zero. The array itself where it is
    that box.

    Args:
        array: (x, y, z).
        start: first voxel of the box along each axis.
        size: voxels along each axis.
    """
    if array.shape == tuple(size) and not any(start):
        return array
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


Source = int | tuple[int, ...]
"""The label value, or values, that are one class."""


def class_numbers(label: np.ndarray, values: Sequence[Source]) -> np.ndarray:
    """A label map as int64 class numbers: ``values[k]`` (one value or several) becomes k + 1, everything else 0."""
    numbers = np.zeros(label.shape, dtype=np.int64)
    for number, value in enumerate(values, start=1):
        numbers[np.isin(label, value)] = number
    return numbers


def mapped_labels(labels: np.ndarray, task: Mapping[str, Any]) -> np.ndarray:
    """A reference as the model's label values: the same array, or, where the model learned with a label map, mapped by it.

    Args:
        labels: label map as in the files.
        task: with ``label_values`` and, with a label map, ``label_sources``.
    """
    sources = task.get("label_sources")
    if not sources:
        return labels
    lookup = np.array([0, *task["label_values"]])
    return lookup[class_numbers(labels, [tuple(source) for source in sources])]


def class_shares(store: Store, key: str, name: str, values: Sequence[Source], box: Box | None = None) -> np.ndarray:
    """(1 + len(values), x, y, z) float32 shares of the classes in each voxel, the background (what is left of 1) first."""
    sources = [value if isinstance(value, tuple) else (value,) for value in values]
    each = store.read_shares(key, name, [value for source in sources for value in source], box)
    rows, at = [], 0
    for source in sources:
        rows.append(each[at : at + len(source)].sum(0))
        at += len(source)
    shares = np.stack(rows).astype(np.float32)
    return np.concatenate([1 - np.clip(shares.sum(0, keepdims=True), 0, 1), shares])


def foreground_centres(store: Store, case: Case, values: Sequence[Source], limit: int = 512) -> dict[int, np.ndarray]:
    """Class number -> (n, 3) voxels of it, at most ``limit`` for all classes together (but 16 for each), spread evenly."""
    numbers = class_numbers(store.read_label(case.session.key, str(case.target)), values)
    each = max(16, limit // len(values))
    found = {}
    for number in range(1, len(values) + 1):
        inside = np.argwhere(numbers == number)
        if not len(inside) and np.isin(case.session.labels[str(case.target)]["values"], values[number - 1]).any():
            inside = np.argwhere(class_shares(store, case.session.key, str(case.target), values[number - 1 : number])[1] > 0)
        if len(inside) > each:
            inside = inside[np.linspace(0, len(inside) - 1, each).astype(int)]
        if len(inside):
            found[number] = inside
    return found


def case_weights(cases: Sequence[Case], column: str | None, temperature: float) -> np.ndarray:
    """(n,) weights of the cases that sum to one.

    Args:
        cases: see above.
        column: cases with the same value in this column are a group; None weighs all alike.
        temperature: a group of n cases is drawn in proportion to n^(1 / temperature): 1 as they come, large numbers all groups alike.
    """
    if column is None:
        return np.full(len(cases), 1 / len(cases))
    if not any(case.session.value(column) is not None for case in cases):
        raise ConfigError(f"data.weight_by names the column {column!r}, which no training case has a value in")
    names = [str(case.session.value(column)) for case in cases]
    counts = {name: names.count(name) for name in set(names)}
    weights = np.array([counts[name] ** (1 / temperature - 1) for name in names])
    return weights / weights.sum()


def _choose(draw: np.random.Generator, numbers: Sequence[int], weights: np.ndarray) -> int:
    edges = np.cumsum(weights[list(numbers)])
    return numbers[min(int(np.searchsorted(edges, draw.random() * edges[-1], side="right")), len(numbers) - 1)]


class CaseDataset(Dataset[dict[str, Any]]):
    """Map from a global sample number to one augmented, cropped case.

    Args:
        store: the store the cases lie in.
        cases: at least one.
        contrasts: the model's list of contrasts; its order numbers them.
        patch: box size in voxels.
        seed: of every draw.
        augmentation: mirroring and transforms; None for none.
        foreground: share of draws whose box contains foreground (label targets only), in [0, 1].
        balance: classes, or label values of these draws, have equal chances; else cases are drawn as they come.
        weights: (n,) of the cases; all alike by default.
        contrast_dropout: probability that a contrast of a case is left out of a draw (one always stays).
        label_values: the label values (or tuples of them) that are classes 1, 2, ... in this order; every other value is background.
        shares: targets are shares where a voxel is of several classes; else every voxel is of the one that the store says.
        jitter: largest shift in voxels of the box of a value or class target (its box is otherwise centred).
        covariates: what the head takes beside the images.
        covariate_dropout: probability that a known covariate is hidden, so that the head learns to do without.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[Case],
        contrasts: Sequence[str],
        patch: tuple[int, int, int],
        *,
        seed: int,
        augmentation: Augmentation | None = None,
        foreground: float = 0.5,
        balance: bool = True,
        weights: np.ndarray | None = None,
        contrast_dropout: float = 0.0,
        label_values: Sequence[Source] = (1,),
        shares: bool = True,
        jitter: int = 4,
        covariates: Sequence[Covariate] = (),
        covariate_dropout: float = 0.0,
    ) -> None:
        if not cases:
            raise InputError("there is no labelled case to train on")
        self.store, self.cases, self.contrasts, self.patch = store, tuple(cases), tuple(contrasts), patch
        self.seed, self.augmentation, self.foreground, self.balance = seed, augmentation, foreground, balance
        self.weights = case_weights(cases, None, 1.0) if weights is None else weights
        self.contrast_dropout, self.jitter, self.shares = contrast_dropout, jitter, shares
        self.label_values = tuple(label_values)
        self.covariates, self.covariate_dropout = tuple(covariates), covariate_dropout
        self._all = list(range(len(self.cases)))
        self._groups = self._grouped()
        self._centres: dict[int, dict[int, np.ndarray]] = {}

    def _grouped(self) -> dict[int, list[int]]:
        """Class number -> the cases of that class, or whose label map has it."""
        groups: dict[int, list[int]] = {}
        for number, case in enumerate(self.cases):
            if isinstance(case.target, str):
                there = np.array(case.session.labels[case.target]["values"])
                present = [k for k, value in enumerate(self.label_values, start=1) if np.isin(there, value).any()]
            else:
                present = [case.group]
            for group in present:
                groups.setdefault(group, []).append(number)
        return dict(sorted(groups.items()))

    def pick(self, sample: int) -> tuple[int, int | None, np.random.Generator]:
        """Which case a sample shows, the class its box must hold (None for any place), and the generator that goes on from there."""
        draw = seeds.generator(self.seed, "case", sample)
        labelled = isinstance(self.cases[0].target, str)
        inside = labelled and draw.random() < self.foreground
        groups = list(self._groups)
        if labelled and not (inside and groups):
            return _choose(draw, self._all, self.weights), None, draw
        if self.balance:
            group = groups[int(draw.integers(len(groups)))]
            return _choose(draw, self._groups[group], self.weights), group, draw
        number = _choose(draw, self._all, self.weights)
        there = [group for group in groups if number in self._groups[group]]
        return number, there[int(draw.integers(len(there)))] if there else None, draw

    def name(self, sample: int) -> str:
        """The session and contrasts of a sample's case; nothing is read."""
        case = self.cases[self.pick(sample)[0]]
        return f"{case.session.key} {', '.join(case.contrasts)}"

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """One case: ``images`` (K, x, y, z), ``contrast`` (K,), ``target``, ``name``, ``covariates``."""
        number, group, draw = self.pick(sample)
        case = self.cases[number]
        kept = [name for name in case.contrasts if draw.random() >= self.contrast_dropout]
        if not kept:
            kept = [case.contrasts[int(draw.integers(len(case.contrasts)))]]
        start = self._start(number, case, group, draw)
        box, offset = box_slices(start, self.patch, case.session.shape)
        images = torch.from_numpy(
            np.stack([crop(self.store.read(case.session.key, name, box), offset, self.patch) for name in kept])
        )
        target: Any = case.target
        label = self._label(case, box, offset) if isinstance(case.target, str) else None
        if self.augmentation is not None:
            images, label = self.augmentation(seeds.generator(self.seed, "augment", sample), images, label)
        row = encode(case.session.columns, self.covariates)
        row = [math.nan if draw.random() < self.covariate_dropout else value for value in row]
        return {
            "images": images, "contrast": [self.contrasts.index(name) for name in kept],
            "target": target if label is None else label, "name": case.session.key, "covariates": row,
        }  # fmt: skip

    def _label(self, case: Case, box: Box, offset: Sequence[int]) -> Tensor:
        """(x, y, z) int64 class numbers, or (classes, x, y, z) float32 shares where a voxel of the box is of several classes."""
        name = str(case.target)
        if self.shares:
            shares = class_shares(self.store, case.session.key, name, self.label_values, box)
            if ((shares > 0) & (shares < 1)).any():
                cut = np.stack([crop(share, offset, self.patch) for share in shares])
                cut[0] = 1 - np.clip(cut[1:].sum(0), 0, 1)
                return torch.from_numpy(cut)
            numbers = shares.argmax(0) if shares.size else np.zeros(shares.shape[1:], dtype=np.int64)
        else:
            numbers = class_numbers(self.store.read_label(case.session.key, name, box), self.label_values)
        return torch.from_numpy(np.ascontiguousarray(crop(numbers.astype(np.int64), offset, self.patch)))

    def _start(self, number: int, case: Case, group: int | None, draw: np.random.Generator) -> list[int]:
        shape = case.session.shape
        if not isinstance(case.target, str):
            return [first + int(draw.integers(-self.jitter, self.jitter + 1)) for first in centred(shape, self.patch)]
        if group is not None:
            if number not in self._centres:
                self._centres[number] = foreground_centres(self.store, case, self.label_values)
            centres = self._centres[number].get(group)
            if centres is not None:
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


def as_shares(numbers: Tensor, classes: int) -> Tensor:
    """(..., x, y, z) int64 class numbers as (..., classes, x, y, z) float32 shares of 0 and 1."""
    return torch.nn.functional.one_hot(numbers, classes).movedim(-1, -4).float()


def collate(samples: Sequence[Mapping[str, Any]]) -> CaseBatch:
    """Samples of :class:`CaseDataset` as one ragged batch; whole class numbers become shares where a sample of the batch has shares."""
    counts = [len(sample["contrast"]) for sample in samples]
    first = samples[0]["target"]
    if isinstance(first, Tensor):
        targets = [sample["target"] for sample in samples]
        classes = next((t.shape[0] for t in targets if t.ndim == 4), None)
        if classes is not None:
            targets = [t if t.ndim == 4 else as_shares(t, classes) for t in targets]
        target = torch.stack(targets)
    else:
        kind = torch.int64 if isinstance(first, int) else torch.float32
        target = torch.tensor([sample["target"] for sample in samples], dtype=kind)
    batch = CaseBatch(
        images=torch.cat([sample["images"] for sample in samples])[:, None],
        case=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
        contrast=torch.tensor([place for sample in samples for place in sample["contrast"]], dtype=torch.int64),
        target=target,
        names=[sample["name"] for sample in samples],
    )
    if samples[0].get("covariates"):
        batch["covariates"] = torch.tensor([sample["covariates"] for sample in samples], dtype=torch.float32)
    return batch
