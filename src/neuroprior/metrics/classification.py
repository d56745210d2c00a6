"""Decisions against the truth, by scikit-learn: balanced accuracy, F1, sensitivity and specificity."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score, recall_score


def balanced_accuracy(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean recall over the classes that occur in the truth; (n,) names or numbers each. NaN with no case."""
    if truth.size == 0:
        return float("nan")
    classes = np.unique(truth)
    return float(np.mean([np.mean(guess[truth == name] == name) for name in classes]))


def f1(truth: np.ndarray, guess: np.ndarray, positive: object) -> float:
    """F1 of the positive class; 0 when nothing was found, NaN when there is nothing to find and nothing was found."""
    t, g = truth == positive, guess == positive
    return float(f1_score(t, g, zero_division=0.0)) if t.any() or g.any() else float("nan")


def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean of the F1 of every class that occurs in truth or guess."""
    classes = np.unique(np.concatenate([truth, guess]))
    return float(f1_score(truth, guess, labels=classes, average="macro", zero_division=0.0))


def sensitivity(truth: np.ndarray, guess: np.ndarray, positive: object) -> float:
    """Share of positive cases found; NaN without one."""
    t = truth == positive
    return float(recall_score(t, guess == positive)) if t.any() else float("nan")


def specificity(truth: np.ndarray, guess: np.ndarray, positive: object) -> float:
    """Share of negative cases left alone; NaN without one."""
    t = truth != positive
    return float(np.mean(guess[t] != positive)) if t.any() else float("nan")
