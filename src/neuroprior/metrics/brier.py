"""The Brier score (1950) taken apart: reliability, resolution and uncertainty (Murphy 1973).

With probabilities that take few values the three parts are exact: Brier = reliability - resolution + uncertainty. Where
different probabilities share a bin two more parts stand for what happens inside bins (Stephenson et al. 2008), so the sum
is exact with any bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _inputs


@dataclass(frozen=True)
class Decomposition:
    """Brier = reliability - resolution + uncertainty + spread - covariance.

    Attributes:
        reliability: mean squared gap between a bin's probability and its share of positives; 0 is calibrated.
        resolution: mean squared difference of a bin's share from the prevalence; larger is better.
        uncertainty: prevalence (1 - prevalence), what the cases alone decide.
        spread: mean variance of the probabilities inside bins.
        covariance: twice the mean covariance of probability and truth inside bins.
    """

    reliability: float
    resolution: float
    uncertainty: float
    spread: float
    covariance: float

    @property
    def brier(self) -> float:
        """The score itself."""
        return self.reliability - self.resolution + self.uncertainty + self.spread - self.covariance


def decompose(truth: np.ndarray, probability: np.ndarray, bins: int | None = 10) -> Decomposition:
    """The parts of the Brier score of the positive class; all NaN with no case.

    Args:
        truth: (n,) bool.
        probability: (n,) in [0, 1].
        bins: of equal width; None makes every distinct probability a bin.

    Raises:
        InputError: a probability that is NaN or outside [0, 1].
    """
    t, p = _inputs.binary(truth, probability)
    if t.size == 0:
        nothing = float("nan")
        return Decomposition(nothing, nothing, nothing, nothing, nothing)
    y = t.astype(float)
    key = p if bins is None else np.minimum((p * bins).astype(int), bins - 1)
    _, place = np.unique(key, return_inverse=True)
    n = np.bincount(place)
    mean, share, base = np.bincount(place, p) / n, np.bincount(place, y) / n, y.mean()
    weight = n / t.size
    inner = p - mean[place]
    return Decomposition(
        float(weight @ (mean - share) ** 2),
        float(weight @ (share - base) ** 2),
        float(base * (1 - base)),
        float((inner**2).mean()),
        float(2 * (inner * (y - share[place])).mean()),
    )


def brier(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared difference of the positive class's (n,) probability from 0 or 1; NaN with no case."""
    t, p = _inputs.binary(truth, probability)
    return float(((p - t) ** 2).mean()) if t.size else float("nan")


def multiclass(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean over cases of the squared distance to the one-hot truth, in [0, 2] (Brier 1950): twice the binary score with two classes.

    Args:
        truth: (n,) class numbers.
        probability: (n, c), rows that sum to one.
    """
    t, p = _inputs.simplex(truth, probability)
    if t.size == 0:
        return float("nan")
    return float((((p - np.eye(p.shape[1])[t]) ** 2).sum(1)).mean())
