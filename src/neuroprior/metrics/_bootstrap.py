"""Percentile bootstrap over subjects (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core import seeds

Statistic = Callable[[np.ndarray], float]
"""Takes (k,) row numbers, with repeats, and gives a number or NaN."""


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
    values = values[np.isfinite(values)]
    if values.size < resamples / 2:
        return None, None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
