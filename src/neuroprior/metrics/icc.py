"""Agreement of repeated measurements: intraclass correlation ICC(3,1), two-way mixed, consistency, a single rater.

Shrout and Fleiss, "Intraclass correlations: uses in assessing rater reliability", Psychological Bulletin 86 (1979) 420-428:
(BMS - EMS) / (BMS + (k - 1) EMS), from the two-way analysis of variance of n targets by k raters. Raters may differ by a
constant without loss.
"""

from __future__ import annotations

import numpy as np


def icc31(ratings: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """ICC(3,1) of one or many measured quantities at once.

    Args:
        ratings: (n, k) or (n, k, d): n targets by k raters, of d quantities.
        weights: (n,) or (R, n), how often each target counts (bootstrap draws); once each by default.

    Returns:
        (d,), or (R, d) with draws; without a last axis in ``ratings`` the d is left out. In [-1 / (k - 1), 1]; NaN for a quantity
        that does not vary, or with fewer than two targets or raters.
    """
    values = np.asarray(ratings, dtype=float)
    single = values.ndim == 2
    values = values[..., None] if single else values
    n, k, d = values.shape
    w = np.ones((1, n)) if weights is None else np.atleast_2d(np.asarray(weights, dtype=float))
    values = values - values.mean((0, 1)) if n and k else values  # sums of squares of small numbers
    total = w.sum(1, keepdims=True)
    target = values.mean(1) if k else np.zeros((n, d))
    with np.errstate(divide="ignore", invalid="ignore"):
        grand = w @ target / total
        raters = sum(np.square(w @ values[:, j] / total - grand) for j in range(k)) * total
        between = k * (w @ np.square(target) - total * np.square(grand))
        everything = w @ np.square(values).sum(1) - k * total * np.square(grand)
        error = everything - between - raters
        flat = everything <= 1e-12 * np.maximum(everything.max(initial=0.0), np.finfo(float).tiny)
        bms, ems = between / (total - 1), np.maximum(error, 0) / ((total - 1) * (k - 1))
        icc = np.where(flat | (n < 2) | (k < 2), np.nan, (bms - ems) / (bms + (k - 1) * ems))
    icc = icc[:, 0] if single else icc
    return icc if weights is not None and np.ndim(weights) == 2 else icc[0]
