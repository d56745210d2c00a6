"""What a score finds at a stated price: sensitivity at a fixed specificity, and the reverse.

A threshold t calls every case with score >= t positive. Of all thresholds that keep what is asked for, the best is taken, on
the cases that are judged: it is a point of their own ROC curve (no interpolation between points), so it is optimistic as
an estimate for new cases with the threshold kept; :func:`threshold_at_specificity` on validation cases gives one to keep.
"""

from __future__ import annotations

import numpy as np

from . import _inputs


def _curve(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(k,) thresholds from strict to lax, and the sensitivity and specificity of each."""
    t, s = _inputs.pair(truth, score)
    t = t.astype(bool)
    order = np.argsort(-s, kind="stable")
    t, s = t[order], s[order]
    last = np.append(np.flatnonzero(np.diff(s)), s.size - 1)
    sensitivity = np.append(0.0, np.cumsum(t)[last] / t.sum())
    specificity = np.append(1.0, 1 - np.cumsum(~t)[last] / (~t).sum())
    return np.append(np.inf, s[last]), sensitivity, specificity


def sensitivity_at_specificity(truth: np.ndarray, score: np.ndarray, specificity: float = 0.9) -> float:
    """The largest sensitivity of any threshold whose specificity is at least ``specificity``; NaN with one class only.

    Args:
        truth: (n,) bool.
        score: (n,) any real number, larger for positive.
        specificity: in [0, 1].
    """
    if truth.size == 0 or truth.all() or not truth.any():
        return float("nan")
    _, found, spared = _curve(truth, score)
    return float(found[spared >= specificity - 1e-12].max())


def specificity_at_sensitivity(truth: np.ndarray, score: np.ndarray, sensitivity: float = 0.9) -> float:
    """The largest specificity of any threshold whose sensitivity is at least ``sensitivity``; NaN with one class only."""
    if truth.size == 0 or truth.all() or not truth.any():
        return float("nan")
    _, found, spared = _curve(truth, score)
    return float(spared[found >= sensitivity - 1e-12].max())


def threshold_at_specificity(truth: np.ndarray, score: np.ndarray, specificity: float = 0.9) -> float:
    """The lowest threshold whose specificity is at least ``specificity``, to be chosen on validation and kept; inf calls nobody."""
    if truth.size == 0 or truth.all() or not truth.any():
        return float("nan")
    threshold, _, spared = _curve(truth, score)
    return float(threshold[spared >= specificity - 1e-12].min())
