"""Continuous ranked probability score of predicted distributions: the absolute error, for distributions.

Gneiting and Raftery 2007. CRPS(F, y) = integral of (F(x) - [x >= y])^2 dx = E|X - y| - E|X - X'| / 2, in the target's
unit; for a point it is the absolute error.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

from ..core.errors import InputError
from . import _inputs


def gaussian(truth: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(n,) CRPS of normal predictions in closed form; with a standard deviation of 0 the absolute error.

    Args:
        truth, mean: (n,) in the target's unit.
        std: (n,) at least 0.

    Raises:
        InputError: a negative standard deviation.
    """
    y, mu = _inputs.pair(truth, mean)
    sigma = np.broadcast_to(np.asarray(std, dtype=float), y.shape)
    if not (sigma >= 0).all():
        raise InputError("a standard deviation is negative or not a number", expected="at least 0", got=float(np.min(sigma)))
    safe = np.where(sigma > 0, sigma, 1.0)
    z = (y - mu) / safe
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.where(sigma > 0, safe * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi)), np.abs(y - mu))


def ensemble(truth: np.ndarray, members: np.ndarray, *, fair: bool = False) -> np.ndarray:
    """(n,) CRPS of the members' empirical distribution.

    Args:
        truth: (n,).
        members: (n, m) predictions.
        fair: divide the spread by m (m - 1) instead of m^2, which is without bias for members drawn from the predicted
            distribution (Ferro 2014); needs two members.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or fewer than two members with ``fair``.
    """
    y, x = np.asarray(truth, dtype=float), np.asarray(members, dtype=float)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] < 1 + fair:
        raise InputError("truth and members do not fit", expected=f"(n,) and (n, m) with m >= {1 + fair}", got=(y.shape, x.shape))
    if not np.isfinite(y).all() or not np.isfinite(x).all():
        raise InputError("an ensemble member or a truth is not finite")
    m = x.shape[1]
    ordered = np.sort(x, 1)
    # sum over pairs of |xi - xj| from the sorted members
    pairs = 2 * (ordered * (2 * np.arange(1, m + 1) - m - 1)).sum(1)
    return np.abs(x - y[:, None]).mean(1) - pairs / (2 * m * ((m - 1) if fair else m))
