"""Do 95 % intervals of a mean hold the truth in 95 of 100 samples? benchmarks/intervals.py has the whole table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from neuroprior.metrics._bootstrap import (
    FEW,
    FURTHEST,
    OF_MEANS,
    clopper_pearson,
    counts,
    mean_interval,
    mean_intervals,
    unseen,
    wilson,
)

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

KINDS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, shape: g.normal(3, 2, shape), 3.0),
    "absolute error": (lambda g, shape: np.abs(g.normal(0, 1, shape)), float(np.sqrt(2 / np.pi))),
    "DSC": (lambda g, shape: g.beta(8, 2, shape), 0.8),
    "skewed": (lambda g, shape: g.exponential(1, shape), 1.0),
    "HD95": (lambda g, shape: g.lognormal(0, 0.8, shape), float(np.exp(0.32))),
    "DSC, one of ten missed": (lambda g, shape: g.beta(8, 2, shape) * (g.random(shape) > 0.1), 0.72),
    "difference": (
        lambda g, shape: g.beta(8, 2, shape) * (g.random(shape) > 0.1) - g.beta(8, 2, shape) * (g.random(shape) > 0.1),
        0.0,
    ),
}


def held(kind: str, n: int, draws: int, method: str = OF_MEANS) -> float:
    make, truth = KINDS[kind]
    values = make(np.random.default_rng([7, n]), (draws, n))
    low, high = mean_intervals(values, resamples=500, method=method)  # type: ignore[arg-type]
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("n", [10, 20, 50, 100])
@pytest.mark.parametrize("kind", ["normal", "absolute error", "DSC", "skewed"])
def test_the_default_covers_at_its_level(kind: str, n: int) -> None:
    """95 % +- 2, on 3,000 samples, so that the share is known to +- 0.008."""
    assert abs(held(kind, n, 3000) - 0.95) <= 0.02


@pytest.mark.parametrize(("kind", "n"), [("HD95", 20), ("HD95", 50), ("HD95", 100), ("difference", 20), ("difference", 50)])
def test_and_for_very_skewed_values_from_twenty_subjects_on(kind: str, n: int) -> None:
    assert abs(held(kind, n, 3000) - 0.95) <= 0.02


@pytest.mark.parametrize("n", [50, 100])
def test_and_errs_to_the_wide_side_where_one_case_in_ten_fails(n: int) -> None:
    assert 0.95 <= held("DSC, one of ten missed", n, 3000) <= 0.98


def test_five_hundred_draws_as_the_protocol_asks() -> None:
    for kind in ("normal", "DSC"):
        assert abs(held(kind, 20, 500) - 0.95) <= 0.02


def test_below_that_no_method_does_and_it_is_said() -> None:
    """The failures are not in the sample: nothing can see them, but the note that accuracy.caution writes."""
    methods = ("percentile", "expanded", "studentised", OF_MEANS)
    for kind in ("HD95", "DSC, one of ten missed"):
        shares = {method: held(kind, 10, 2000, method) for method in methods}
        assert max(shares, key=lambda method: shares[method]) == OF_MEANS
        assert 0.86 < shares[OF_MEANS] < 0.945
        assert shares["percentile"] < shares[OF_MEANS] - 0.04
    assert unseen(FEW) < 0.1 < unseen(FEW - 2)  # from here on a failure in one case of ten is seen


def test_the_envelope_is_student_and_bootstrap_t_side_by_side() -> None:
    rng = np.random.default_rng(3)
    for values in (rng.lognormal(0, 1, 15), rng.normal(0, 1, 15), rng.beta(8, 2, 15) * (rng.random(15) > 0.2)):
        names = [str(k) for k in range(15)]
        low, high = mean_interval(names, values, method="envelope")
        t = stats.t.interval(0.95, 14, values.mean(), stats.sem(values))
        # bootstrap-t by definition, with the shelf's own draws
        weights = counts(15)
        order = np.argsort(np.argsort(np.unique(names)))
        sample = values[[int(name) for name in np.unique(names)]][order]
        mean = weights @ sample / 15
        spread = np.sqrt((weights @ sample**2 / 15 - mean**2) * 15 / 14)
        quantiles = np.quantile(((mean - sample.mean()) / spread)[spread > 1e-12], [0.025, 0.975])
        own = sample.mean() - quantiles[::-1] * sample.std(ddof=1)
        half = t[1] - values.mean()
        assert low == pytest.approx(max(min(t[0], own[0]), values.mean() - FURTHEST * half))
        assert high == pytest.approx(min(max(t[1], own[1]), values.mean() + FURTHEST * half))


def test_one_outlier_of_few_does_not_make_an_endless_interval() -> None:
    values = np.array([1.0, 1.01, 0.99, 1.0, 1.0, 30.0])
    names = [str(k) for k in range(6)]
    half = stats.t.ppf(0.975, 5) * stats.sem(values)
    _, alone = mean_interval(names, values, method="studentised")
    low, high = mean_interval(names, values, method="envelope")
    assert alone is not None and low is not None and high is not None
    assert alone > values.mean() + 10 * half
    assert high == pytest.approx(values.mean() + 3 * half)
    assert low == pytest.approx(values.mean() - half)


def test_percentile_and_bca_agree_with_scipy() -> None:
    """An independent implementation, with draws of its own."""
    values = np.random.default_rng(0).lognormal(0, 0.8, 25)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    mine = mean_interval([str(k) for k in range(25)], values, resamples=20_000, method="percentile")
    assert mine == pytest.approx(tuple(theirs.confidence_interval), rel=0.02)


def test_shares_have_binomial_intervals() -> None:
    names = [str(k) for k in range(12)]
    for hits in (0, 1, 6, 12):
        values = np.array([1.0] * hits + [0.0] * (12 - hits))
        theirs = stats.binomtest(hits, 12)
        assert mean_interval(names, values, method="envelope") == pytest.approx(tuple(theirs.proportion_ci(method="wilson")))
        assert wilson(hits / 12, 12) == pytest.approx(tuple(theirs.proportion_ci(method="wilson")))
        assert clopper_pearson(hits, 12) == pytest.approx(tuple(theirs.proportion_ci(method="exact")))
    for share in (0.8, 0.5):
        k = np.arange(21)
        chance = stats.binom.pmf(k, 20, share)
        inside = [wilson(one / 20, 20)[0] <= share <= wilson(one / 20, 20)[1] for one in k]
        assert abs(chance[inside].sum() - 0.95) <= 0.02


def test_ends_stay_in_the_range_of_the_metric_and_two_subjects_have_none() -> None:
    names = list("abcd")
    low, high = mean_interval(names, np.array([0.99, 0.98, 0.2, 0.99]), method="envelope", within=(0.0, 1.0))
    assert (low, high) == (0.0, 1.0)
    assert mean_interval(["a", "b"], np.array([0.2, 0.4]), method="envelope") == (None, None)
    assert mean_interval(["a", "a", "b", "b"], np.array([0.2, 0.4, 0.1, 0.3]), method="envelope") == (None, None)
    assert mean_interval(names, np.full(4, 0.7), method="envelope") == pytest.approx((0.7, 0.7))


def test_what_may_be_unseen() -> None:
    assert unseen(10) == pytest.approx(0.2589, abs=1e-4)
    assert (1 - unseen(10)) ** 10 == pytest.approx(0.05)
