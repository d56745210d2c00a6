"""Expected calibration error in its variants, with the table behind a reliability diagram.

Equal width: bins of [0, 1] (Naeini et al. 2015; Guo et al. 2017), the last including 1. Equal mass: bins of equal numbers of cases in the order of the probabilities
(Nguyen and O'Connor 2015); equal probabilities stay in one bin. Class-wise: the mean over classes of each class's own ECE (Kull et al. 2019).
Top label: the largest probability against whether its class is right.

The plain estimate is biased upwards: calibrated probabilities of n cases in b bins score about sqrt(b / n), not 0. ``debiased``
takes the expected noise of each bin away (Kumar et al. 2019, here in closed form by the folded normal), and
``squared_debiased`` is the squared error without bias (it can fall below 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr

from . import _inputs

Scheme = Literal["width", "mass"]


@dataclass(frozen=True)
class Reliability:
    """The bins that hold a case.

    Attributes:
        n: (b,) cases in each bin.
        predicted: (b,) mean probability.
        observed: (b,) share of positives.
        low, high: (b,) smallest and largest probability of each bin.
    """

    n: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """(b,) observed - predicted."""
        return self.observed - self.predicted


def reliability(truth: np.ndarray, probability: np.ndarray, bins: int = 10, scheme: Scheme = "width") -> Reliability:
    """The table of a reliability diagram.

    Args:
        truth: (n,) bool.
        probability: (n,) of the positive class, in [0, 1].
        bins: how many; with equal mass fewer where probabilities are tied.
        scheme: ``width`` or ``mass``.

    Raises:
        InputError: a probability that is NaN or outside [0, 1].
    """
    t, p = _inputs.binary(truth, probability)
    if t.size == 0:
        nothing = np.empty(0)
        return Reliability(np.empty(0, dtype=int), nothing, nothing, nothing, nothing)
    if scheme == "width":
        place = np.minimum((p * bins).astype(int), bins - 1)
    else:
        place = np.searchsorted(np.sort(p), p) * bins // p.size  # by the number of smaller probabilities: ties stay together
    _, place = np.unique(place, return_inverse=True)
    n = np.bincount(place)
    low, high = np.full(n.size, np.inf), np.full(n.size, -np.inf)
    np.minimum.at(low, place, p)
    np.maximum.at(high, place, p)
    return Reliability(n, np.bincount(place, p) / n, np.bincount(place, t) / n, low, high)


def ece(truth: np.ndarray, probability: np.ndarray, bins: int = 10, scheme: Scheme = "width") -> float:
    """Mean |share of positives - mean probability| over bins, weighted by their cases, in [0, 1]; NaN with no case."""
    table = reliability(truth, probability, bins, scheme)
    return float(table.n @ np.abs(table.gap) / table.n.sum()) if table.n.size else float("nan")


def mce(truth: np.ndarray, probability: np.ndarray, bins: int = 10, scheme: Scheme = "width") -> float:
    """Maximum calibration error: the largest gap of any bin (Naeini et al. 2015); NaN with no case."""
    table = reliability(truth, probability, bins, scheme)
    return float(np.abs(table.gap).max()) if table.n.size else float("nan")


def class_wise(truth: np.ndarray, probability: np.ndarray, bins: int = 10, scheme: Scheme = "width") -> float:
    """Mean over classes of the ECE of each class against the rest.

    Args:
        truth: (n,) class numbers 0 .. c - 1.
        probability: (n, c), rows that sum to one.
        bins, scheme: as in :func:`reliability`.

    Raises:
        InputError: probabilities that do not sum to one.
    """
    t, p = _inputs.simplex(truth, probability)
    return float(np.mean([ece(t == k, np.clip(p[:, k], 0, 1), bins, scheme) for k in range(p.shape[1])]))


def top_label(truth: np.ndarray, probability: np.ndarray, bins: int = 10, scheme: Scheme = "width") -> float:
    """ECE of the largest probability against whether its class is right; arguments as in :func:`class_wise`."""
    t, p = _inputs.simplex(truth, probability)
    return ece(p.argmax(1) == t, p.max(1), bins, scheme) if t.size else float("nan")


def debiased(truth: np.ndarray, probability: np.ndarray, bins: int = 10, scheme: Scheme = "width") -> float:
    """ECE less the part that the noise of each bin's share explains (Kumar et al. 2019), at least 0; NaN with no case.

    The gap of a bin of n cases is taken as normal with variance s^2 = share (1 - share) / (n - 1), the share drawn towards
    one half by one case so that a pure bin has noise too; its expected size is that of the folded normal, and the excess over the gap is taken away.
    A bin of one case has no variance and enters as it is.
    """
    table = reliability(truth, probability, bins, scheme)
    if not table.n.size:
        return float("nan")
    gap, share = np.abs(table.gap), (table.observed * table.n + 0.5) / (table.n + 1)
    noise = np.where(table.n > 1, np.sqrt(share * (1 - share) / np.maximum(table.n - 1, 1)), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(noise > 0, gap / noise, np.inf)
    expected = noise * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + gap * (1 - 2 * ndtr(-z))
    return float(max(0.0, table.n @ (2 * gap - expected) / table.n.sum()))


def squared_debiased(truth: np.ndarray, probability: np.ndarray, bins: int = 10, scheme: Scheme = "width") -> float:
    """Mean squared gap of the bins without bias (Kumar et al. 2019; Bröcker 2012): below 0 by chance when calibrated.

    Bins of one case, which tell nothing of their noise, are left out; NaN when no bin has two.
    """
    table = reliability(truth, probability, bins, scheme)
    more = table.n > 1
    if not more.any():
        return float("nan")
    n, share = table.n[more], table.observed[more]
    return float(n @ (table.gap[more] ** 2 - share * (1 - share) / (n - 1)) / n.sum())
