"""ICC(3,1) against the published example and a plain analysis of variance."""

from __future__ import annotations

import numpy as np
import pytest

from neuroprior.metrics._bootstrap import counts, interval
from neuroprior.metrics.icc import icc31

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)
"""Six targets by four judges: table 2 of Shrout and Fleiss (1979); ICC(3,1) is given as 0.71."""


def anova(x: np.ndarray) -> float:
    n, k = x.shape
    grand = x.mean()
    between = k * sum((row.mean() - grand) ** 2 for row in x) / (n - 1)
    residual = sum((x[i, j] - x[i].mean() - x[:, j].mean() + grand) ** 2 for i in range(n) for j in range(k))
    error = residual / ((n - 1) * (k - 1))
    return (between - error) / (between + (k - 1) * error)


def test_the_published_example() -> None:
    assert icc31(SHROUT_FLEISS) == pytest.approx(0.7148, abs=5e-4)


def test_it_equals_an_analysis_of_variance_and_ignores_a_raters_offset() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(12, 3)) + 2 * draw.normal(size=(12, 1)) + 100
    assert icc31(x) == pytest.approx(anova(x))
    assert icc31(x + np.array([0.0, 5.0, -9.0])) == pytest.approx(anova(x))
    both = icc31(np.stack([x, SHROUT_FLEISS[:4, :3].repeat(3, 0)], -1))
    assert both == pytest.approx([anova(x), anova(SHROUT_FLEISS[:4, :3].repeat(3, 0))])


def test_weights_are_repeats() -> None:
    weights = np.array([[2.0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    found = icc31(SHROUT_FLEISS, weights)
    assert found == pytest.approx([anova(SHROUT_FLEISS[[0, 0, 2, 3, 4, 5]]), anova(SHROUT_FLEISS)])


def test_what_does_not_vary_is_not_defined() -> None:
    assert np.isnan(icc31(np.ones((5, 3))))
    assert np.isnan(icc31(SHROUT_FLEISS[:1]))
    assert np.isnan(icc31(SHROUT_FLEISS[:, :1]))


def test_the_draws_are_those_of_the_interval() -> None:
    values = np.random.default_rng(1).normal(size=9)
    names = [f"sub-{n}" for n in range(9)]
    drawn = counts(9, resamples=300, seed=5) @ values / 9
    assert interval(names, lambda k: float(values[k].mean()), resamples=300, seed=5) == pytest.approx(
        np.quantile(drawn, [0.025, 0.975])
    )
