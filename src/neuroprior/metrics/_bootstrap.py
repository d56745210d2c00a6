"""Bootstrap intervals over subjects, and over seeds and subjects.

Methods, by name:

- ``percentile`` (Efron 1979): quantiles of the draws. Too narrow for few subjects: 95 % intervals of a mean cover about 89 %
  at 10 subjects, 93 % at 20.
- ``expanded`` (Hesterberg 2015): the same quantiles taken further out, by as much as Student's t with n - 1 degrees of
  freedom and the n / (n - 1) of the variance ask for. Works for every statistic and costs nothing.
- ``bca`` (Efron 1987): corrected for bias and skewness, and expanded as above.
- ``studentised`` (bootstrap-t; Efron and Tibshirani 1993, chapter 12): means only; near its level for skewed values, but it can leave the
  metric's range, and fails for values of 0 and 1.
- ``envelope``: means only, and the default of means: on each side the wider of ``studentised`` and Student's t, at most three times the
  latter, and inside the metric's range; Wilson's interval (1927) for values of 0 and 1. Student's t misses skewed values, bootstrap-t differences whose few large values are
  rare; together they hold 0.93 to 0.97 of samples, but for what :data:`FEW` says.

``benchmarks/intervals.py`` simulates the coverage of these and of others that were tried; ``docs/metrics.md`` has its table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy.special import betaincinv as _beta_quantile
from scipy.special import ndtr, ndtri, stdtrit

from ..core import seeds
from ..core.errors import InputError

Statistic = Callable[[np.ndarray], float]
"""Takes (k,) row numbers, with repeats, and gives a number or NaN."""

Method = Literal["percentile", "expanded", "bca", "studentised", "envelope"]

OF_MEANS: Method = "envelope"
"""The method of means over cases."""
OF_SETS: Method = "expanded"
"""The method of other statistics (AUROC, correlation), which have no standard error to divide by."""

FURTHEST = 3.0
"""How many half-widths of Student's t an end of ``envelope`` may lie from the mean. Bootstrap-t of a few subjects and one outlier can reach a hundred
times as far; the bound costs no coverage in the simulation."""
FEWEST = 3
"""Subjects below which there is no interval: two subjects have three different draws."""
FEW = 30
"""Subjects below which a failure in one case of ten may be absent from the sample (in 5 % of samples of 29), so that no interval can know of it:
at ten subjects those of ``envelope`` then hold the truth in 0.88 of samples, at twenty in 0.92; of strongly skewed values in 0.93 and 0.95."""


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
    method: Method = "percentile", within: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float | None, float | None]:  # fmt: skip
    """The interval of the mean of (n,) values: :func:`interval` of a mean, with the same draws, computed all at once.

    Args:
        subjects: (n,) who each value belongs to.
        values: (n,) finite.
        resamples, level, seed: of the draws.
        method: as in the module's text.
        within: the range that a mean of such values lies in; the ends are kept inside (``envelope`` only).

    Returns:
        (low, high), or (None, None) with fewer than three subjects.
    """
    _, who = np.unique(np.array(subjects), return_inverse=True)
    n = int(who.max(initial=-1)) + 1
    if n < FEWEST:
        return None, None
    total, rows = np.bincount(who, values), np.bincount(who).astype(float)
    if method == "envelope" and np.isin(values, (0.0, 1.0)).all():
        return wilson(float(np.mean(values)), n, level)
    weights = counts(n, resamples=resamples, seed=seed)
    if method == "bca":
        drawn = weights @ total / (weights @ rows)
        return _bca(drawn, total.sum() / rows.sum(), (total.sum() - total) / (rows.sum() - rows), level, n)
    low, high = _of_means(total[None], rows, weights, level, method)
    return float(max(low[0], within[0])), float(min(high[0], within[1]))


def mean_intervals(
    values: np.ndarray, *, resamples: int = 2000, level: float = 0.95, seed: int = 0, method: Method = "envelope"
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`mean_interval` of many samples at once, one value a subject and the same draws for all: for simulations.

    Args:
        values: (t, n) t samples of n subjects, n at least three; values of 0 and 1 only are no special case here.
        resamples, level, seed: of the draws.
        method: any but ``bca``.

    Returns:
        (t,) low and (t,) high ends.
    """
    n = values.shape[1]
    return _of_means(values, np.ones(n), counts(n, resamples=resamples, seed=seed), level, method)


def wilson(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of ``n`` subjects (Wilson 1927)."""
    z = float(-ndtri((1 - level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934): never below its level, and wider than Wilson's."""
    outside = (1 - level) / 2
    low = 0.0 if successes == 0 else float(_beta_quantile(successes, n - successes + 1, outside))
    high = 1.0 if successes == n else float(_beta_quantile(successes + 1, n - successes, 1 - outside))
    return low, high


def unseen(n: int, level: float = 0.95) -> float:
    """The largest share of failures of which ``n`` cases show none with probability 1 - ``level``: 0.26 for ten cases."""
    return float(1 - (1 - level) ** (1 / n))


def _of_means(
    total: np.ndarray, rows: np.ndarray, weights: np.ndarray, level: float, method: Method
) -> tuple[np.ndarray, np.ndarray]:
    """The intervals of t ratios of sums.

    Args:
        total: (t, n) sum of each subject's values.
        rows: (n,) how many values each subject has.
        weights: (resamples, n) how often each is drawn.
        level: coverage.
        method: ``percentile``, ``expanded``, ``studentised`` or ``envelope``.
    """
    n = rows.size
    size = weights @ rows
    drawn = total @ weights.T / size
    if method in ("percentile", "expanded"):
        outside = tail(level, n if method == "expanded" else None)
        low, high = np.quantile(drawn, [outside, 1 - outside], axis=1)
        return low, high
    mean = total.sum(1) / rows.sum()
    # the standard error of a ratio of sums; subjects with several rows count as one observation
    error = np.sqrt(n / (n - 1) * ((total - mean[:, None] * rows) ** 2).sum(1)) / rows.sum()
    squares = total**2 @ weights.T - 2 * drawn * ((total * rows) @ weights.T) + drawn**2 * (weights @ rows**2)
    own = np.sqrt(n / (n - 1) * np.maximum(squares, 0)) / size
    spread = own > 1e-9 * np.maximum(error, np.finfo(float).tiny)[:, None]  # a draw of one subject only has no spread
    outside = (1 - level) / 2
    low, high = mean.copy(), mean.copy()
    for k in np.flatnonzero((error > 1e-12 * np.abs(mean)) & spread.any(1)):
        some = spread[k]
        below, above = np.quantile((drawn[k, some] - mean[k]) / own[k, some], [outside, 1 - outside])
        low[k], high[k] = mean[k] - above * error[k], mean[k] - below * error[k]
    if method == "envelope":
        half = -stdtrit(n - 1, outside) * error
        low = np.clip(low, mean - FURTHEST * half, mean - half)
        high = np.clip(high, mean + half, mean + FURTHEST * half)
    return low, high


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
