"""Ranking of cases by a score: area under the ROC curve (Hanley and McNeil 1982), by scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Probability that a positive case scores above a negative one, ties counted half; NaN with one class only.

    Args:
        truth: (n,) bool.
        score: (n,) any real number, larger for positive.
    """
    if truth.all() or not truth.any():
        return float("nan")
    return float(roc_auc_score(truth, score))


def auprc(truth: np.ndarray, score: np.ndarray) -> float:
    """Average precision; its floor is the prevalence. NaN without a positive case."""
    return float(average_precision_score(truth, score)) if truth.any() else float("nan")
