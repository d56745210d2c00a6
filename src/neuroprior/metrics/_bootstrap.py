"""Percentile bootstrap over subjects (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core import seeds

Statistic = Callable[[np.ndarray], float]
"""Takes (k,) row numbers, with repeats, and gives a number or NaN."""


def counts(n: int, *, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each of ``n`` subjects (in sorted order) is drawn in each resample: the draws of :func:`interval`.

    Statistics that can be written with weights are computed for all resamples at once from these, and two rows of a table
    that rest on the same subjects are compared draw by draw.

    Args:
        n: how many subjects.
        resamples: draws.
        seed: of the draws.

    Returns:
        (resamples, n) float64; each row sums to ``n``.
    """
    draw = seeds.generator(seed, "bootstrap")
    picked = draw.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(picked.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def bounds(values: np.ndarray, level: float = 0.95) -> tuple[float | None, float | None]:
    """The percentile interval of bootstrap values; (None, None) when fewer than half of them are defined.

    Args:
        values: (resamples,) the statistic of each draw, NaN where it is not defined.
        level: coverage.
    """
    defined = values[np.isfinite(values)]
    if defined.size == 0 or defined.size < values.size / 2:
        return None, None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    subjects: Sequence[str], statistic: Statistic, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float | None, float | None]:
    """The percentile interval of a statistic when whole subjects are drawn with replacement.

    Args:
        subjects: (n,) who each row belongs to.
        statistic: of the drawn rows.
        resamples: draws; those on which the statistic is not defined are left out.
        level: coverage.
        seed: of the draws.

    Returns:
        (low, high), or (None, None) with fewer than three subjects or when fewer than half of the draws are defined.
    """
    names = np.array(subjects)
    unique = np.unique(names)
    if len(unique) < 3:
        return None, None
    rows = [np.flatnonzero(names == name) for name in unique]
    draw = seeds.generator(seed, "bootstrap")
    values = np.array([
        statistic(np.concatenate([rows[k] for k in draw.integers(0, len(unique), len(unique))])) for _ in range(resamples)
    ])  # fmt: skip
    return bounds(values, level)
