"""Selective prediction: what is risked when the least confident cases are sent to a human.

Risk-coverage curve: cases are taken from the most to the least confident; the risk at coverage k / n is the mean loss of the
first k (El-Yaniv and Wiener 2010). AURC is its mean over k = 1 .. n; excess AURC is AURC less that of the best order of the
same losses (Geifman et al. 2019). Cases of equal confidence are taken in random order: their *expected* risk is used, so
the number depends on no order of files.
"""

from __future__ import annotations

import numpy as np

from . import _inputs


def risk_coverage(loss: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) coverages 1/n .. 1 and the mean loss of the cases kept at each.

    Args:
        loss: (n,) at least 0: 0 or 1 for wrong, 1 - DSC, absolute error ...
        confidence: (n,) any real number, larger for surer.
    """
    losses, sure = _inputs.pair(loss, confidence)
    n = losses.size
    if n == 0:
        return np.empty(0), np.empty(0)
    _, group = np.unique(-sure, return_inverse=True)
    order = np.argsort(group, kind="stable")
    expected = (np.bincount(group, losses) / np.bincount(group))[group[order]]
    kept = np.arange(1, n + 1)
    return kept / n, np.cumsum(expected) / kept


def aurc(loss: np.ndarray, confidence: np.ndarray) -> float:
    """Area under the risk-coverage curve in the loss's unit; NaN with no case."""
    risk = risk_coverage(loss, confidence)[1]
    return float(risk.mean()) if risk.size else float("nan")


def best_aurc(loss: np.ndarray) -> float:
    """AURC of the best order of these losses, smallest first."""
    return aurc(loss, -np.asarray(loss, dtype=float))


def best_aurc_of_errors(wrong: int, n: int) -> float:
    """The same in closed form for losses of 0 and 1: r + (1 - r) ln(1 - r) in the limit, with r = wrong / n (Geifman et al. 2019).

    For n cases it is (1 / n) sum over k > n - wrong of (k - n + wrong) / k = r - (1 - r) (H_n - H_(n - wrong)), with harmonic
    numbers H.
    """
    if n == 0:
        return float("nan")
    k = np.arange(n - wrong + 1, n + 1)
    return wrong / n - (n - wrong) / n * float((1 / k).sum())


def limit_aurc_of_errors(rate: float) -> float:
    """Geifman's closed form of the best AURC for many cases with this error rate in [0, 1]."""
    return float(rate + (1 - rate) * np.log1p(-rate)) if rate < 1 else 1.0


def excess_aurc(loss: np.ndarray, confidence: np.ndarray) -> float:
    """AURC less the best possible for these losses; 0 when confidence orders them perfectly."""
    return aurc(loss, confidence) - best_aurc(loss)


def aurc_of_chance(loss: np.ndarray) -> float:
    """AURC of a confidence that knows nothing: the mean loss."""
    return float(np.mean(loss)) if np.size(loss) else float("nan")
