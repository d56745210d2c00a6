"""Overlap of two masks: Dice similarity coefficient (Dice 1945) and intersection over union (Jaccard 1912)."""

from __future__ import annotations

import numpy as np

from . import _inputs


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """2 |P and R| / (|P| + |R|) of two boolean arrays of one shape, in [0, 1]; NaN when both are empty."""
    p, r = _inputs.masks(prediction, reference)
    size = int(np.count_nonzero(p)) + int(np.count_nonzero(r))
    if size == 0:
        return float("nan")
    return 2 * int(np.count_nonzero(p & r)) / size


def iou(prediction: np.ndarray, reference: np.ndarray) -> float:
    """|P and R| / |P or R| of two boolean arrays of one shape, in [0, 1]; NaN when both are empty. It is dice / (2 - dice)."""
    p, r = _inputs.masks(prediction, reference)
    union = int(np.count_nonzero(p | r))
    return int(np.count_nonzero(p & r)) / union if union else float("nan")


def volume_difference_ml(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Predicted minus reference volume in millilitres."""
    p, r = _inputs.masks(prediction, reference)
    voxel_mm3 = float(np.prod(_inputs.spacing(spacing_mm, p.ndim)))
    return (int(np.count_nonzero(p)) - int(np.count_nonzero(r))) * voxel_mm3 / 1000
