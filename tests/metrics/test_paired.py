"""Tests, effect sizes and intervals against scipy, enumeration and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from neuroprior.core.errors import InputError
from neuroprior.metrics import auroc, paired
from neuroprior.metrics._bootstrap import bounds, hierarchical, interval, mean_interval, tail


def two(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.beta(8, 2, n)
    b = a + rng.normal(0.02, 0.05, n)
    return (np.round(a, 2), np.round(b, 2)) if seed % 2 else (a, b)


def test_wilcoxon_equals_scipy() -> None:
    for seed in range(200):
        a, b = two(seed, 6 + seed % 60)
        if seed % 2 == 0:  # without ties scipy's exact and normal p-values are the textbook's
            method = "exact" if a.size <= 25 else "asymptotic"
            assert paired.wilcoxon(a, b) == pytest.approx(stats.wilcoxon(a, b, method=method).pvalue, abs=1e-9)
        elif a.size > 25:
            difference = np.round(a - b, 12)
            theirs = stats.wilcoxon(difference, method="asymptotic", zero_method="wilcox").pvalue
            assert paired.wilcoxon(a, b) == pytest.approx(theirs, abs=1e-9)


def test_wilcoxon_with_ties_equals_all_signs() -> None:
    for seed in range(1, 40, 2):
        a, b = two(seed, 9)
        difference = np.round(a - b, 12)
        difference = difference[difference != 0]
        ranks = stats.rankdata(np.abs(difference))
        middle = ranks.sum() / 2
        seen = abs(ranks[difference > 0].sum() - middle)
        sums = [ranks[np.array(signs)].sum() for signs in itertools.product([True, False], repeat=ranks.size)]
        expected = np.mean([abs(total - middle) >= seen - 1e-9 for total in sums])
        assert paired.wilcoxon(a, b) == pytest.approx(expected, abs=1e-12)
    assert paired.wilcoxon(a, a) == 1
    assert np.isnan(paired.wilcoxon(a[:0], a[:0]))
    assert paired.wilcoxon(np.arange(5.0) + 1, np.zeros(5)) == pytest.approx(2 / 32)


def test_holm_by_definition() -> None:
    for seed in range(200):
        p = np.random.default_rng(seed).uniform(0, 0.2, 1 + seed % 9)
        order = np.argsort(p)
        by_hand = np.array([max(min(1, (p.size - j) * p[order[j]]) for j in range(k + 1)) for k in range(p.size)])
        np.testing.assert_allclose(paired.holm(p)[order], by_hand, atol=1e-12)
    np.testing.assert_allclose(paired.holm(np.array([0.01, np.nan, 0.04])), [0.02, np.nan, 0.04])
    assert paired.holm(np.empty(0)).size == 0


def test_effect_sizes() -> None:
    for seed in range(200):
        a, b = two(seed, 5 + seed % 40)
        t = stats.ttest_rel(a, b).statistic
        assert paired.cohen_dz(a, b) == pytest.approx(t / np.sqrt(a.size), abs=1e-9)
        difference = a - b
        kept = difference[difference != 0]
        ranks = stats.rankdata(np.abs(kept))
        assert paired.rank_biserial(a, b) == pytest.approx(float((np.sign(kept) * ranks).sum() / ranks.sum()), abs=1e-12)
        assert paired.rank_biserial(a, b) == pytest.approx(-paired.rank_biserial(b, a), abs=1e-12)
        wins = np.mean([1.0 if x > y else 0.5 if x == y else 0.0 for x, y in zip(a, b)])
        assert paired.superiority(a, b) == pytest.approx(wins, abs=1e-12)
    assert np.isnan(paired.cohen_dz(a, a + 1))
    assert np.isnan(paired.rank_biserial(a, a))
    assert paired.superiority(a, a) == 0.5


def test_kendall_equals_scipy() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.integers(0, 5, 7), rng.integers(0, 5, 7)
        assert paired.kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-9, nan_ok=True)
    assert np.isnan(paired.kendall_tau(np.ones(3), np.arange(3)))


def test_randomisation_holds_its_level_and_finds_a_difference() -> None:
    false = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = np.arange(30) < 12
        a, b = truth + rng.normal(0, 1.5, 30), truth + rng.normal(0, 1.5, 30)
        false += paired.randomisation(a, b, lambda s, t=truth: auroc.auroc(t, s), permutations=100, seed=seed) <= 0.05
    assert false <= 8
    good = truth + rng.normal(0, 0.1, 30)
    assert paired.randomisation(good, b, lambda s: auroc.auroc(truth, s), permutations=400) < 0.05
    assert paired.randomisation(good, good, lambda s: auroc.auroc(truth, s), permutations=20) == 1
    assert np.isnan(paired.randomisation(good, b, lambda s: float("nan")))


# --- intervals


def test_the_mean_is_the_interval_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.beta(8, 2, 25)
    subjects = [f"s{k // 2}" for k in range(25)]
    for method in ("percentile", "expanded", "bca"):
        slow = interval(subjects, lambda k: float(values[k].mean()), resamples=300, seed=4, method=method)
        assert mean_interval(subjects, values, resamples=300, seed=4, method=method) == pytest.approx(slow)


def test_bca_equals_scipy_at_its_own_level() -> None:
    """scipy's BCa is not expanded: asked for the level that we use after expanding, it gives the same ends up to its own draws."""
    rng = np.random.default_rng(1)
    values = rng.lognormal(0, 1, 30)
    n = values.size
    level = 1 - 2 * tail(0.95, n)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=level, method="BCa", rng=rng
    ).confidence_interval
    mine = mean_interval([str(k) for k in range(n)], values, resamples=20_000, method="bca")
    assert mine == pytest.approx((theirs.low, theirs.high), rel=0.03)


def test_expansion_is_that_of_student() -> None:
    for n in (5, 10, 50):
        z = np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)
        assert tail(0.95, n) == pytest.approx(stats.norm.sf(z))
    assert tail(0.95) == pytest.approx(0.025)
    assert bounds(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    assert bounds(np.array([1.0, np.nan, np.nan])) == (None, None)


@pytest.mark.parametrize("n", [10, 20, 50])
def test_coverage(n: int) -> None:
    """95 % intervals of the mean of 400 samples of n DSC-like values; benchmarks/metrics.py --coverage has the full simulation."""
    names = [str(k) for k in range(n)]
    hits = {"percentile": 0, "expanded": 0, "bca": 0, "studentised": 0}
    for trial in range(400):
        values = np.random.default_rng((n, trial)).beta(8, 2, n)
        for method in hits:
            low, high = mean_interval(names, values, resamples=500, seed=trial, method=method)  # type: ignore[arg-type]
            assert low is not None and high is not None
            hits[method] += low <= 0.8 <= high
    assert all(abs(hits[method] / 400 - 0.95) < 0.035 for method in ("expanded", "bca", "studentised")), hits
    assert hits["percentile"] <= hits["expanded"]


def test_two_levels_cover_where_one_does_not() -> None:
    """Seeds that differ: the interval over subjects of one average of seeds misses the mean over all seeds too often."""
    one = both = 0
    for trial in range(150):
        rng = np.random.default_rng(trial)
        values = 0.7 + rng.normal(0, 0.05, (10, 1)) + rng.normal(0, 0.05, (1, 20)) + rng.normal(0, 0.02, (10, 20))
        low, high = hierarchical(values, resamples=400, seed=trial)
        assert low is not None and high is not None
        both += low <= 0.7 <= high
        low, high = mean_interval([str(k) for k in range(20)], values.mean(0), resamples=400, seed=trial, method="expanded")
        assert low is not None and high is not None
        one += low <= 0.7 <= high
    assert both >= 135
    assert one < both - 20


def test_two_levels_take_any_statistic_and_refuse_holes() -> None:
    values = np.random.default_rng(0).normal(size=(4, 12))
    mean = hierarchical(values, resamples=3000)
    same = hierarchical(values, statistic=lambda s, n: float(values[np.ix_(s, n)].mean()), resamples=3000)
    assert same == pytest.approx(mean, abs=0.1)
    assert hierarchical(values[:, :2]) == (None, None)
    assert hierarchical(values[:1]) == (None, None)
    values[0, 0] = np.nan
    with pytest.raises(InputError, match="finite value of every subject"):
        hierarchical(values)


def test_few_subjects_and_no_spread() -> None:
    assert mean_interval(["a", "b"], np.array([1.0, 2.0])) == (None, None)
    assert mean_interval(["a", "a", "b", "b"], np.arange(4.0), method="studentised") == (None, None)
    for method in ("percentile", "expanded", "bca", "studentised"):
        assert mean_interval(["a", "b", "c"], np.ones(3), method=method) == (1, 1)
    with pytest.raises(InputError, match="no interval of any statistic"):
        interval(["a", "b", "c"], lambda k: 1.0, method="studentised", resamples=2)
