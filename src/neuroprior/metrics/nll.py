"""Negative log-likelihood of the truth (log loss; Good 1952)."""

from __future__ import annotations

import numpy as np

from . import _inputs

SMALLEST = float(np.finfo(float).eps)
"""Probabilities are kept from 0 and 1 by this much, so that one sure mistake costs 36 nats and not infinity."""


def binary(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean of -log p(truth) in nats; NaN with no case.

    Args:
        truth: (n,) bool.
        probability: (n,) of the positive class, in [0, 1].
    """
    t, p = _inputs.binary(truth, probability)
    if t.size == 0:
        return float("nan")
    return float(-np.log(np.clip(np.where(t, p, 1 - p), SMALLEST, 1 - SMALLEST)).mean())


def multiclass(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean of -log p(truth) in nats; NaN with no case.

    Args:
        truth: (n,) class numbers.
        probability: (n, c), rows that sum to one.

    Raises:
        InputError: probabilities that do not sum to one.
    """
    t, p = _inputs.simplex(truth, probability)
    if t.size == 0:
        return float("nan")
    return float(-np.log(np.clip(p[np.arange(t.size), t], SMALLEST, 1 - SMALLEST)).mean())
