"""Errors of predicted numbers: MAE, RMSE, mean error; Pearson's and Spearman's correlation."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def mae(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean absolute error in the target's unit; (n,) each."""
    return float(np.abs(guess - truth).mean()) if truth.size else float("nan")


def rmse(truth: np.ndarray, guess: np.ndarray) -> float:
    """Root mean squared error in the target's unit."""
    return float(np.sqrt(((guess - truth) ** 2).mean())) if truth.size else float("nan")


def mean_error(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean of guess - truth in the target's unit."""
    return float((guess - truth).mean()) if truth.size else float("nan")


def pearson(truth: np.ndarray, guess: np.ndarray) -> float:
    """Pearson's correlation in [-1, 1]; NaN with fewer than three cases or a constant side."""
    if truth.size < 3 or truth.std() == 0 or guess.std() == 0:
        return float("nan")
    return float(np.corrcoef(truth, guess)[0, 1])


def spearman(truth: np.ndarray, guess: np.ndarray) -> float:
    """Spearman's correlation in [-1, 1]: Pearson's of the ranks, ties averaged (Spearman 1904); NaN as :func:`pearson`."""
    return pearson(rankdata(truth), rankdata(guess))
