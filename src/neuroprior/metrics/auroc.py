"""Ranking of cases by a score: areas under the ROC curve (Hanley and McNeil 1982) and the precision-recall curve."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from . import _inputs


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Probability that a positive case scores above a negative one, ties counted half; NaN with one class only.

    Args:
        truth: (n,) bool.
        score: (n,) any real number, larger for positive.
    """
    t, s = _positives(truth, score)
    positive = int(t.sum())
    negative = t.size - positive
    if positive == 0 or negative == 0:
        return float("nan")
    return float((rankdata(s)[t].sum() - positive * (positive + 1) / 2) / (positive * negative))


def auprc(truth: np.ndarray, score: np.ndarray) -> float:
    """Average precision: the sum of precision times the step of recall, over thresholds (no interpolation: Davis and Goadrich 2006).

    Its floor is the prevalence. NaN without a positive case.
    """
    t, s = _positives(truth, score)
    if not t.any():
        return float("nan")
    order = np.argsort(-s, kind="stable")
    t, s = t[order], s[order]
    last = np.append(np.flatnonzero(np.diff(s)), s.size - 1)  # the last case of each run of ties
    found = np.cumsum(t)[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / t.sum())


def _positives(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t, s = _inputs.pair(truth, score)
    return t.astype(bool), s
