"""What every metric asks of its arrays, with the errors that say what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import InputError


def masks(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as boolean arrays of one shape.

    Raises:
        InputError: the shapes differ.
    """
    p, r = np.asarray(prediction), np.asarray(reference)
    if p.shape != r.shape:
        raise InputError(
            "the prediction and the reference lie on different grids",
            expected=f"the reference's shape {r.shape}",
            got=p.shape,
            next_step="resample the reference to the prediction's grid by nearest neighbour, and say so",
        )
    return p.astype(bool, copy=False), r.astype(bool, copy=False)


def spacing(spacing_mm: Sequence[float], ndim: int) -> np.ndarray:
    """(ndim,) float64, the voxel edges in mm.

    Raises:
        InputError: one of them is zero, negative or not finite, or there are too few or too many.
    """
    edges = np.asarray(spacing_mm, dtype=float)
    if edges.shape != (ndim,) or not np.isfinite(edges).all() or (edges <= 0).any():
        raise InputError(
            "the voxel spacing cannot be used",
            expected=f"{ndim} positive numbers in mm",
            got=tuple(float(edge) for edge in edges.ravel()),
            next_step="check the header's pixdim; neuroprior index repairs what can be repaired",
        )
    return edges


def pair(truth: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (n,) float64 without NaN.

    Raises:
        InputError: the lengths differ, or a value is not finite.
    """
    t, g = np.asarray(truth, dtype=float).ravel(), np.asarray(guess, dtype=float).ravel()
    if t.size != g.size:
        raise InputError("truth and prediction have different lengths", expected=t.size, got=g.size)
    for name, values in (("truth", t), ("prediction", g)):
        if not np.isfinite(values).all():
            raise InputError(
                f"{int((~np.isfinite(values)).sum())} of {values.size} values of the {name} are not finite",
                next_step="assessments.accuracy counts such cases as failures; a metric alone cannot",
            )
    return t, g


def binary(truth: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool and (n,) float64 in [0, 1].

    Raises:
        InputError: the lengths differ, or a probability is NaN or outside [0, 1].
    """
    t, p = np.asarray(truth).astype(bool).ravel(), np.asarray(probability, dtype=float).ravel()
    if t.size != p.size:
        raise InputError("truth and probability have different lengths", expected=t.size, got=p.size)
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise InputError(
            f"{int(wrong.sum())} of {p.size} probabilities cannot be used",
            expected="numbers in [0, 1]",
            got=", ".join(f"{value:g}" for value in p[wrong][:3]),
        )
    return t, p


def simplex(truth: np.ndarray, probability: np.ndarray, tolerance: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """(n,) class numbers and (n, c) probabilities, each row summing to one.

    Args:
        truth: (n,) class numbers 0 .. c - 1.
        probability: (n, c).
        tolerance: how far a row's sum may be from one (float16 and rounding to three digits pass).

    Raises:
        InputError: shapes that do not fit, a class outside the columns, a value outside [0, 1], a sum that is not one.
    """
    t, p = np.asarray(truth), np.asarray(probability, dtype=float)
    if p.ndim != 2 or t.shape != p.shape[:1]:
        raise InputError(
            "truth and probabilities do not fit", expected="(n,) classes and (n, c) probabilities", got=(t.shape, p.shape)
        )
    t = t.astype(int)
    if t.size and (t.min() < 0 or t.max() >= p.shape[1]):
        raise InputError("a class has no column", expected=f"0 to {p.shape[1] - 1}", got=f"{t.min()} to {t.max()}")
    outside = ~((p >= 0) & (p <= 1)).all(1)
    if outside.any():
        raise InputError(f"{int(outside.sum())} rows hold values that are no probabilities", expected="numbers in [0, 1]")
    off = np.abs(p.sum(1) - 1) > tolerance
    if off.any():
        raise InputError(
            f"the probabilities of {int(off.sum())} of {len(p)} cases do not sum to one",
            expected=f"1 within {tolerance:g}",
            got=", ".join(f"{value:.4g}" for value in p.sum(1)[off][:3]),
            next_step="are these logits, or one-against-rest scores? apply softmax, or judge each class alone",
        )
    return t, p


def crop(prediction: np.ndarray, reference: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds both boolean masks; None when both are empty."""
    box: list[slice] = []
    p, r = prediction, reference
    for axis in range(prediction.ndim):
        rest = tuple(k for k in range(prediction.ndim) if k != axis)
        filled = np.flatnonzero(p.any(rest) | r.any(rest))
        if filled.size == 0:
            return None
        here = slice(int(filled[0]), int(filled[-1]) + 1)
        box.append(here)
        cut = (slice(None),) * axis + (here,)
        p, r = p[cut], r[cut]  # the next axis only looks at what is left
    return tuple(box)
