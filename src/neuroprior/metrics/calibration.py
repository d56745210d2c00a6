"""Whether probabilities mean what they say: expected calibration error (Naeini et al. 2015; Guo et al. 2017) with bins of equal
width or of equal count (Nguyen and O'Connor 2015), Brier score (1950), log-likelihood; and whether intervals hold what they promise.
"""

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


def ece_equal_mass(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """As :func:`ece` with bins of (nearly) equal count, which do not depend on where probabilities crowd.

    Args:
        truth: (n,) bool.
        probability: (n,) of the positive class, in [0, 1].
        bins: at most this many, and no more than cases; equal probabilities may fall into neighbouring bins, in the order given.
    """
    if truth.size == 0:
        return float("nan")
    order = np.argsort(probability, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(bins, truth.size)):
        total += part.size * abs(truth[part].mean() - probability[part].mean())
    return float(total / truth.size)


def nll(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean negative log-likelihood in nats of a positive class's probability (clipped to [1e-12, 1 - 1e-12])."""
    if truth.size == 0:
        return float("nan")
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return float(-np.where(truth, np.log(p), np.log1p(-p)).mean())


def coverage(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Share of (n,) numbers that lie in their intervals, ends included; cases whose interval is NaN are left out."""
    known = np.isfinite(low) & np.isfinite(high)
    return float(((truth >= low) & (truth <= high))[known].mean()) if known.any() else float("nan")


def width(low: np.ndarray, high: np.ndarray) -> float:
    """Mean width of (n,) intervals, NaN ones left out."""
    known = np.isfinite(low) & np.isfinite(high)
    return float((high - low)[known].mean()) if known.any() else float("nan")
