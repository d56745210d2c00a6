"""Overlap of two masks: Dice similarity coefficient (Dice 1945)."""

from __future__ import annotations

import numpy as np


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """2 |P and R| / (|P| + |R|) of two boolean arrays of one shape, in [0, 1]; NaN when both are empty."""
    size = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    if size == 0:
        return float("nan")
    return 2 * int(np.count_nonzero(prediction & reference)) / size


def volume_difference_ml(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Predicted minus reference volume in millilitres."""
    return (int(np.count_nonzero(prediction)) - int(np.count_nonzero(reference))) * float(np.prod(spacing_mm)) / 1000
