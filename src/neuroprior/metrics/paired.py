"""Two models on the same subjects: is the difference more than chance, and how large is it?

Tests: Wilcoxon's signed ranks (1945), a randomisation test for any statistic of a whole set (Fisher 1935; Edgington 1969),
and Holm's correction (1979) for several comparisons. Effect sizes: Cohen's d_z (1988), the matched-pairs rank-biserial
correlation (Kerby 2014), and the probability of superiority (Grissom 1994).

Each takes one value a subject: average the sessions of a subject first, they are not independent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from ..core import seeds
from . import _inputs


def wilcoxon(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed ranks of a - b; exact for few subjects, differences of zero left out.

    Args:
        a, b: (n,) of the same subjects.

    Returns:
        In (0, 1]; 1 when all differences are zero, NaN with no subject. With five subjects or fewer it cannot fall below 0.05.
    """
    first, second = _inputs.pair(a, b)
    difference = first - second
    # a last bit is no difference, and would break ties
    difference = difference[np.abs(difference) > 1e-12 * np.maximum(np.abs(first), np.abs(second))]
    if first.size == 0:
        return float("nan")
    if difference.size == 0:
        return 1.0
    size = np.abs(difference)
    ranks = stats.rankdata(np.round(size, 12))
    if difference.size <= 25:
        return _exact(ranks, difference > 0)
    n = difference.size
    mean = ranks.sum() / 2
    spread = np.sqrt((ranks**2).sum() / 4)  # with ties, the variance of the ranks as they are
    above = abs(ranks[difference > 0].sum() - mean)
    return float(min(1.0, 2 * stats.norm.sf(above / spread))) if n else 1.0


def _exact(ranks: np.ndarray, positive: np.ndarray) -> float:
    """The share of all 2^n signs whose rank sum is as far from the middle, by counting sums (ranks may be halves)."""
    doubled = np.rint(2 * ranks).astype(int)
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1
    for rank in doubled:
        shifted = ways.copy()
        shifted[rank:] += ways[: ways.size - rank]
        ways = shifted
    seen = doubled[positive].sum()
    far = np.abs(2 * np.arange(ways.size) - doubled.sum()) >= abs(2 * seen - doubled.sum())
    return float(ways[far].sum() / 2.0**ranks.size)


def randomisation(
    a: np.ndarray, b: np.ndarray, statistic: Callable[[np.ndarray], float], *, permutations: int = 2000, seed: int = 0
) -> float:
    """Two-sided p-value of statistic(a) - statistic(b) when, for each subject, the two models' outputs change places by a coin.

    For metrics of a whole set (AUROC, correlation), where there is no value a subject. Outputs must be on one scale.

    Args:
        a, b: (n,) outputs on the same subjects.
        statistic: of (n,) outputs.
        permutations: coins thrown.
        seed: of the coins.

    Returns:
        In (0, 1]: (1 + as far as seen) / (1 + permutations); NaN when the statistic is not defined.
    """
    first, second = _inputs.pair(a, b)
    seen = abs(statistic(first) - statistic(second))
    if not np.isfinite(seen):
        return float("nan")
    coins = seeds.generator(seed, "randomisation").random((permutations, first.size)) < 0.5
    as_far = sum(
        abs(statistic(np.where(coin, second, first)) - statistic(np.where(coin, first, second))) >= seen - 1e-12 for coin in coins
    )
    return float((1 + as_far) / (1 + permutations))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values in the order given; NaN stays NaN and does not count as a comparison.

    Args:
        p: (k,) in [0, 1].
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    some = np.flatnonzero(np.isfinite(values))
    order = some[np.argsort(values[some], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate((order.size - np.arange(order.size)) * values[order]))
    return adjusted


def cohen_dz(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of a - b over its standard deviation (n - 1); NaN with fewer than two subjects or no spread."""
    first, second = _inputs.pair(a, b)
    difference = first - second
    if difference.size < 2:
        return float("nan")
    spread = difference.std(ddof=1)
    return float(difference.mean() / spread) if spread > 1e-12 * max(1.0, np.abs(difference).max()) else float("nan")


def rank_biserial(a: np.ndarray, b: np.ndarray) -> float:
    """Share of rank sum that speaks for a less the share that speaks for b, in [-1, 1]; zeros left out, NaN with nothing else."""
    first, second = _inputs.pair(a, b)
    difference = (first - second)[first != second]
    if difference.size == 0:
        return float("nan")
    ranks = stats.rankdata(np.abs(difference))
    return float((ranks[difference > 0].sum() - ranks[difference < 0].sum()) / ranks.sum())


def superiority(a: np.ndarray, b: np.ndarray) -> float:
    """Share of subjects on whom a is larger than b, ties counted half, in [0, 1]; NaN with no subject."""
    first, second = _inputs.pair(a, b)
    return float((first > second).mean() + (first == second).mean() / 2) if first.size else float("nan")


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of two rankings of the same models (Kendall 1945), in [-1, 1]; NaN when one of them ties all."""
    first, second = _inputs.pair(a, b)
    upper = np.triu_indices(first.size, 1)
    x, y = (np.sign(values[:, None] - values[None])[upper] for values in (first, second))
    size = np.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y / size) if size > 0 else float("nan")
