"""Predicted intervals: how often they hold the truth, how wide they are, and both in one number (Winkler 1972)."""

from __future__ import annotations

import numpy as np

from ..core.errors import InputError


def _checked(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, a, b = (np.asarray(values, dtype=float) for values in (truth, low, high))
    if not y.shape == a.shape == b.shape:
        raise InputError("truth and interval ends have different shapes", got=(y.shape, a.shape, b.shape))
    if np.isnan(y).any() or not (a <= b).all():
        raise InputError(
            f"{int((~(a <= b)).sum())} intervals end before they begin, or an end is not a number", expected="low <= high"
        )
    return y, a, b


def coverage(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Share of truths inside their interval, ends included; (n,) each. NaN with no case."""
    y, a, b = _checked(truth, low, high)
    return float(((y >= a) & (y <= b)).mean()) if y.size else float("nan")


def width(low: np.ndarray, high: np.ndarray) -> float:
    """Mean width in the target's unit; NaN with no case."""
    _, a, b = _checked(low, low, high)
    return float((b - a).mean()) if a.size else float("nan")


def interval_score(truth: np.ndarray, low: np.ndarray, high: np.ndarray, level: float = 0.9) -> float:
    """Mean of width + 2 / alpha times the distance by which the truth is missed, alpha = 1 - level (Winkler 1972; Gneiting and Raftery 2007).

    Smaller is better, and it is best for the true quantiles; (n,) each, in the target's unit. NaN with no case.
    """
    y, a, b = _checked(truth, low, high)
    if y.size == 0:
        return float("nan")
    return float(((b - a) + 2 / (1 - level) * (np.maximum(a - y, 0) + np.maximum(y - b, 0))).mean())
