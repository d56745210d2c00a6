"""Whether probabilities mean what they say: expected calibration error (Naeini et al. 2015; Guo et al. 2017) and Brier score (1950)."""

from __future__ import annotations

import numpy as np


def ece(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Mean |share of positives - mean probability| over equal-width bins, weighted by their cases.

    Args:
        truth: (n,) bool.
        probability: (n,) of the positive class, in [0, 1].
        bins: of [0, 1]; the last includes 1.
    """
    if truth.size == 0:
        return float("nan")
    place = np.minimum((probability * bins).astype(int), bins - 1)
    total = 0.0
    for k in range(bins):
        here = place == k
        if here.any():
            total += here.sum() * abs(truth[here].mean() - probability[here].mean())
    return float(total / truth.size)


def brier(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared difference of the positive class's probability from 0 or 1."""
    return float(((probability - truth) ** 2).mean()) if truth.size else float("nan")
