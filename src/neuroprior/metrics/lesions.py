"""Detection of lesions, each a connected component (26 neighbours): lesion-wise F1 (as in the ISBI and MICCAI MS challenges).

A reference lesion is found when the prediction covers any voxel of it; a predicted lesion that covers no voxel of the
reference is a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


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


def detect(
    prediction: np.ndarray, reference: np.ndarray, *, min_ml: float = 0.0, max_ml: float = np.inf, voxel_ml: float = 1.0
) -> Detection:
    """Lesion counts of two boolean masks.

    Args:
        prediction, reference: (x, y, z) bool.
        min_ml, max_ml: only reference lesions of min_ml <= volume < max_ml are counted as found or missed, and only
            predicted lesions of that size as false alarms.
        voxel_ml: volume of a voxel.
    """
    lesions, n = ndimage.label(reference, NEIGHBOURS)  # type: ignore[misc]  # scipy's stubs return a union here
    guesses, m = ndimage.label(prediction, NEIGHBOURS)  # type: ignore[misc]
    size = np.bincount(lesions.ravel(), minlength=n + 1) * voxel_ml
    hit = np.bincount(lesions[prediction].ravel(), minlength=n + 1) > 0
    counted = (size >= min_ml) & (size < max_ml)
    counted[0] = False
    guess_size = np.bincount(guesses.ravel(), minlength=m + 1) * voxel_ml
    touched = np.bincount(guesses[reference].ravel(), minlength=m + 1) > 0
    alarm = ~touched & (guess_size >= min_ml) & (guess_size < max_ml)
    alarm[0] = False
    return Detection(int((hit & counted).sum()), int((~hit & counted).sum()), int(alarm.sum()))
