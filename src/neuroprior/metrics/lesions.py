"""Detection of lesions, each a connected component (26 neighbours): lesion-wise F1 (as in the ISBI and MICCAI MS challenges).

The overlap rule: a reference lesion is found when the prediction covers any voxel of it, or, with ``overlap`` above 0, at
least that share of its voxels; a predicted lesion that covers no voxel of the reference (or less than that share of
its own voxels) is a false alarm. One predicted component may find several lesions, and several may find one: lesions are
counted, not matched (Commowick et al. 2018; Maier-Hein et al. 2024 call this "any overlap").

Counts by size: a reference lesion belongs to the bin of its own volume, a false alarm to the bin of the predicted one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from . import _inputs

NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)

Bin = tuple[str, float, float]
"""Name, and the volumes in ml from which (included) to which (excluded) it reaches."""


@dataclass(frozen=True)
class Detection:
    """Counts of lesions: found, missed, and false alarms."""

    found: int
    missed: int
    false_alarms: int

    @property
    def f1(self) -> float:
        """2 found / (2 found + missed + false alarms); NaN when there is nothing to find and nothing was found."""
        total = 2 * self.found + self.missed + self.false_alarms
        return 2 * self.found / total if total else float("nan")

    @property
    def recall(self) -> float:
        """Share of the reference's lesions found; NaN when it has none."""
        total = self.found + self.missed
        return self.found / total if total else float("nan")

    @property
    def precision(self) -> float:
        """Found / (found + false alarms); NaN when nothing was found and there was no alarm."""
        total = self.found + self.false_alarms
        return self.found / total if total else float("nan")


@dataclass(frozen=True)
class Lesions:
    """Each lesion of a pair of masks: its volume and whether it counts as found (or as true).

    Attributes:
        size_ml, found: (n,) of the reference's lesions.
        guess_ml, true: (m,) of the predicted lesions; one that is not true is a false alarm.
    """

    size_ml: np.ndarray
    found: np.ndarray
    guess_ml: np.ndarray
    true: np.ndarray

    def within(self, min_ml: float = 0.0, max_ml: float = np.inf) -> Detection:
        """Counts of lesions of min_ml <= volume < max_ml."""
        here = (self.size_ml >= min_ml) & (self.size_ml < max_ml)
        alarm = (self.guess_ml >= min_ml) & (self.guess_ml < max_ml) & ~self.true
        return Detection(int((self.found & here).sum()), int((~self.found & here).sum()), int(alarm.sum()))


def each(prediction: np.ndarray, reference: np.ndarray, *, voxel_ml: float = 1.0, overlap: float = 0.0) -> Lesions:
    """The lesions of two boolean masks, one by one.

    Args:
        prediction, reference: (x, y, z) bool.
        voxel_ml: volume of a voxel.
        overlap: share of a lesion's voxels that the other mask must cover, in [0, 1]; 0 asks for any voxel.
    """
    p, r = _inputs.masks(prediction, reference)
    box = _inputs.crop(p, r)
    if box is None:
        nothing, none = np.empty(0), np.empty(0, dtype=bool)
        return Lesions(nothing, none, nothing, none)
    p, r = p[box], r[box]
    sides = []
    for own, other in ((r, p), (p, r)):
        labels, n = ndimage.label(own, NEIGHBOURS)  # type: ignore[misc]  # scipy's stubs return a union here
        size = np.bincount(labels.ravel(), minlength=n + 1)[1:]
        covered = np.bincount(labels[other].ravel(), minlength=n + 1)[1:]
        sides.append((size * voxel_ml, (covered > 0) & (covered >= overlap * size)))
    return Lesions(*sides[0], *sides[1])


def detect(
    prediction: np.ndarray, reference: np.ndarray, *, min_ml: float = 0.0, max_ml: float = np.inf, voxel_ml: float = 1.0,
    overlap: float = 0.0,
) -> Detection:  # fmt: skip
    """Lesion counts of two boolean masks.

    Args:
        prediction, reference: (x, y, z) bool.
        min_ml, max_ml: only reference lesions of min_ml <= volume < max_ml are counted as found or missed, and only
            predicted lesions of that size as false alarms.
        voxel_ml: volume of a voxel.
        overlap: as in :func:`each`.
    """
    return each(prediction, reference, voxel_ml=voxel_ml, overlap=overlap).within(min_ml, max_ml)


def by_size(
    prediction: np.ndarray, reference: np.ndarray, bins: Iterable[Bin], *, voxel_ml: float, overlap: float = 0.0
) -> dict[str, Detection]:
    """Lesion counts in each size bin; components are labelled once. Arguments as in :func:`detect`."""
    found = each(prediction, reference, voxel_ml=voxel_ml, overlap=overlap)
    return {name: found.within(low, high) for name, low, high in bins}
