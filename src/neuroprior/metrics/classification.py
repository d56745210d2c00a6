"""Decisions against the truth: balanced accuracy, F1, sensitivity, specificity and Matthews' correlation."""

from __future__ import annotations

import numpy as np


def balanced_accuracy(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean recall over the classes that occur in the truth; (n,) names or numbers each. NaN with no case."""
    if truth.size == 0:
        return float("nan")
    classes = np.unique(truth)
    return float(np.mean([np.mean(guess[truth == name] == name) for name in classes]))


def f1(truth: np.ndarray, guess: np.ndarray, positive: object) -> float:
    """F1 of the positive class; 0 when nothing was found, NaN when there is nothing to find and nothing was found."""
    t, g = truth == positive, guess == positive
    total = int(np.sum(t)) + int(np.sum(g))
    return 2 * int(np.sum(t & g)) / total if total else float("nan")


def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean of the F1 of every class that occurs in truth or guess; NaN with no case."""
    classes = np.unique(np.concatenate([truth, guess]))
    return float(np.mean([f1(truth, guess, name) for name in classes])) if classes.size else float("nan")


def sensitivity(truth: np.ndarray, guess: np.ndarray, positive: object) -> float:
    """Share of positive cases found; NaN without one."""
    t = truth == positive
    return float(np.mean(guess[t] == positive)) if np.any(t) else float("nan")


def specificity(truth: np.ndarray, guess: np.ndarray, positive: object) -> float:
    """Share of negative cases left alone; NaN without one."""
    t = truth != positive
    return float(np.mean(guess[t] != positive)) if np.any(t) else float("nan")


def mcc(truth: np.ndarray, guess: np.ndarray) -> float:
    """Matthews' correlation coefficient of any number of classes (Matthews 1975; Gorodkin 2004), in [-1, 1].

    0 when every guess is the same (no information); NaN when the truth has one class only.
    """
    if truth.size == 0:
        return float("nan")
    classes, code = np.unique(np.concatenate([truth, guess]), return_inverse=True)
    t, g = code[: truth.size], code[truth.size :]
    table = np.bincount(t * classes.size + g, minlength=classes.size**2).reshape(classes.size, -1).astype(float)
    n, right, rows, columns = table.sum(), np.trace(table), table.sum(1), table.sum(0)
    spread, guessed = n**2 - rows @ rows, n**2 - columns @ columns
    if spread <= 0:
        return float("nan")
    return float((right * n - rows @ columns) / np.sqrt(spread * guessed)) if guessed > 0 else 0.0
