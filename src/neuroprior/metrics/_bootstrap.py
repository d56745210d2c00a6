"""Bootstrap intervals over subjects, and over seeds and subjects.

Methods, by name:

- ``percentile`` (Efron 1979): quantiles of the draws. Too narrow for few subjects: 95 % intervals of a mean cover about 89 %
  at 10 subjects, 93 % at 20.
- ``expanded`` (Hesterberg 2015): the same quantiles taken further out, by as much as Student's t with n - 1 degrees of
  freedom and the n / (n - 1) of the variance ask for. Works for every statistic and costs nothing.
- ``bca`` (Efron 1987): corrected for bias and skewness, and expanded as above.
- ``studentised`` (bootstrap-t; Efron and Tibshirani 1993, chapter 12): means only; nearest to its level for skewed values, but
  it can leave the metric's range.

``benchmarks/metrics.py --coverage`` simulates the coverage of all four; ``docs/metrics.md`` has its table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from ..core import seeds
from ..core.errors import InputError

Statistic = Callable[[np.ndarray], float]
"""Takes (k,) row numbers, with repeats, and gives a number or NaN."""

Method = Literal["percentile", "expanded", "bca", "studentised"]

FEWEST = 3
"""Subjects below which there is no interval: two subjects have three different draws."""


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


def tail(level: float, n: int | None = None) -> float:
    """The share of draws outside an interval on each side: (1 - level) / 2, or less with ``n`` subjects (``expanded``)."""
    outside = (1 - level) / 2
    if n is None:
        return outside
    return float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, outside)))


def bounds(values: np.ndarray, level: float = 0.95, n: int | None = None) -> tuple[float | None, float | None]:
    """The percentile interval of bootstrap values; (None, None) when fewer than half of them are defined.

    Args:
        values: (resamples,) the statistic of each draw, NaN where it is not defined.
        level: coverage.
        n: how many subjects were drawn, to expand the interval for few; as it is without.
    """
    outside = tail(level, n)
    return _quantiles(values, outside, 1 - outside)


def interval(
    subjects: Sequence[str], statistic: Statistic, *, resamples: int = 2000, level: float = 0.95, seed: int = 0,
    method: Method = "percentile",
) -> tuple[float | None, float | None]:  # fmt: skip
    """The interval of a statistic when whole subjects are drawn with replacement.

    Args:
        subjects: (n,) who each row belongs to.
        statistic: of the drawn rows.
        resamples: draws; those on which the statistic is not defined are left out.
        level: coverage.
        seed: of the draws.
        method: as in the module's text; ``studentised`` is for :func:`mean_interval` only.

    Returns:
        (low, high), or (None, None) with fewer than three subjects or when fewer than half of the draws are defined.
    """
    names = np.array(subjects)
    unique = np.unique(names)
    n = len(unique)
    if n < FEWEST:
        return None, None
    rows = [np.flatnonzero(names == name) for name in unique]
    draw = seeds.generator(seed, "bootstrap")
    single = np.concatenate(rows) if len(names) == n else None  # one row a subject needs no joining

    def drawn() -> np.ndarray:
        picked = draw.integers(0, n, n)
        return single[picked] if single is not None else np.concatenate([rows[k] for k in picked])

    values = np.array([statistic(drawn()) for _ in range(resamples)])
    if method == "percentile":
        return bounds(values, level)
    if method == "expanded":
        return bounds(values, level, n)
    if method == "bca":
        left_out = [statistic(np.concatenate([rows[k] for k in range(n) if k != out])) for out in range(n)]
        return _bca(values, statistic(np.arange(len(names))), np.array(left_out), level, n)
    raise InputError(f"{method!r} is no interval of any statistic", expected="percentile, expanded or bca")


def mean_interval(
    subjects: Sequence[str], values: np.ndarray, *, resamples: int = 2000, level: float = 0.95, seed: int = 0,
    method: Method = "percentile",
) -> tuple[float | None, float | None]:  # fmt: skip
    """The interval of the mean of (n,) values: :func:`interval` of a mean, with the same draws, computed all at once."""
    _, who = np.unique(np.array(subjects), return_inverse=True)
    n = int(who.max(initial=-1)) + 1
    if n < FEWEST:
        return None, None
    total, rows = np.bincount(who, values), np.bincount(who).astype(float)
    weights = counts(n, resamples=resamples, seed=seed)
    drawn = weights @ total / (weights @ rows)
    if method == "percentile":
        return bounds(drawn, level)
    if method == "expanded":
        return bounds(drawn, level, n)
    mean = total.sum() / rows.sum()
    if method == "bca":
        return _bca(drawn, mean, (total.sum() - total) / (rows.sum() - rows), level, n)
    # the standard error of a ratio of sums; subjects with several rows count as one observation
    error = np.sqrt(n / (n - 1) * ((total - mean * rows) ** 2).sum()) / rows.sum()
    squares = weights @ total**2 - 2 * drawn * (weights @ (total * rows)) + drawn**2 * (weights @ rows**2)
    own = np.sqrt(n / (n - 1) * np.maximum(squares, 0)) / (weights @ rows)
    some = own > 1e-9 * max(error, np.finfo(float).tiny)  # a draw of one subject only has no spread
    if error == 0 or not some.any():
        return float(mean), float(mean)
    low, high = np.quantile((drawn[some] - mean) / own[some], [(1 - level) / 2, (1 + level) / 2])
    return float(mean - high * error), float(mean - low * error)


def hierarchical(
    values: np.ndarray, *, statistic: Callable[[np.ndarray, np.ndarray], float] | None = None, resamples: int = 2000,
    level: float = 0.95, seed: int = 0,
) -> tuple[float | None, float | None]:  # fmt: skip
    """The interval of a statistic when training seeds and subjects are both drawn with replacement, each from its own list.

    Seeds and subjects are crossed (every seed's model is tried on the same subjects), so one draw of subjects serves all drawn
    seeds: the pigeonhole bootstrap (Owen 2007), which errs to the wide side for the subjects' part. Expanded for the number
    of subjects; fewer than five seeds cannot show their own spread, so an interval from three still says little of a fourth.

    Args:
        values: (s, n) of s seeds on n subjects, finite.
        statistic: of (s,) drawn seed numbers and (n,) drawn subject numbers; by default the mean of ``values``.
        resamples: draws.
        level: coverage.
        seed: of the draws.

    Returns:
        (low, high), or (None, None) with fewer than three subjects or two seeds.

    Raises:
        InputError: values that are not finite or not (s, n).
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise InputError("seeds by subjects: every seed needs a finite value of every subject", got=f"shape {table.shape}")
    s, n = table.shape
    if n < FEWEST or s < 2:
        return None, None
    draw = seeds.generator(seed, "bootstrap", "seeds")
    if statistic is not None:
        drawn = np.array([statistic(draw.integers(0, s, s), draw.integers(0, n, n)) for _ in range(resamples)])
        return bounds(drawn, level, n)

    def weights(k: int) -> np.ndarray:
        picked = draw.integers(0, k, (resamples, k)) + k * np.arange(resamples)[:, None]
        return np.bincount(picked.ravel(), minlength=resamples * k).reshape(resamples, k) / k

    of_seeds, of_subjects = weights(s), weights(n)
    return bounds(((of_seeds @ table) * of_subjects).sum(1), level, n)


def _quantiles(values: np.ndarray, low: float, high: float) -> tuple[float | None, float | None]:
    defined = values[np.isfinite(values)]
    if defined.size == 0 or defined.size < values.size / 2:
        return None, None
    a, b = np.quantile(defined, [low, high])
    return float(a), float(b)


def _bca(drawn: np.ndarray, value: float, left_out: np.ndarray, level: float, n: int) -> tuple[float | None, float | None]:
    """Bias-corrected and accelerated; ``left_out`` are the (n,) values without each subject."""
    defined, jack = drawn[np.isfinite(drawn)], left_out[np.isfinite(left_out)]
    if defined.size < drawn.size / 2 or jack.size < 2 or not np.isfinite(value):
        return None, None
    below = (np.mean(defined < value) + np.mean(defined <= value)) / 2
    bias = ndtri(np.clip(below, 0.5 / defined.size, 1 - 0.5 / defined.size))
    pull = jack.mean() - jack
    spread = (pull**2).sum() ** 1.5
    skew = (pull**3).sum() / (6 * spread) if spread > 0 else 0.0
    edge = ndtri(tail(level, n))
    low, high = (float(ndtr(bias + (bias + z) / (1 - skew * (bias + z)))) for z in (edge, -edge))
    return _quantiles(drawn, low, high)
