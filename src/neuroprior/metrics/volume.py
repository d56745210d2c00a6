"""Errors of a structure's volume. The signed difference in millilitres is :func:`neuroprior.metrics.dice.volume_difference_ml`."""

from __future__ import annotations

import numpy as np

from . import _inputs
from .dice import volume_difference_ml


def absolute_error_ml(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """|predicted - reference volume| in millilitres; 0 when both are empty."""
    return abs(volume_difference_ml(prediction, reference, spacing_mm))


def relative_difference(prediction: np.ndarray, reference: np.ndarray) -> float:
    """(predicted - reference volume) / reference volume, in [-1, inf); NaN when the reference is empty (a share of nothing).

    Its absolute value is the relative volume error; -1 is a structure that was missed. Spacing cancels.
    """
    p, r = _inputs.masks(prediction, reference)
    size = int(np.count_nonzero(r))
    return (int(np.count_nonzero(p)) - size) / size if size else float("nan")
