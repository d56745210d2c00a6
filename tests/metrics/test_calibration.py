"""Calibration measures by definition and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from neuroprior.metrics import calibration as measures


def drawn(n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    p = draw.random(n)
    return draw.random(n) < p**2, p


def test_equal_mass_bins_are_scikit_learns_quantile_curve() -> None:
    from sklearn.calibration import calibration_curve

    truth, p = drawn()
    share, mean = calibration_curve(truth, p, n_bins=10, strategy="quantile")
    assert measures.ece_equal_mass(truth, p) == pytest.approx(np.abs(share - mean).mean())
    assert measures.ece_equal_mass(truth[:3], p[:3]) == pytest.approx(np.abs(truth[:3] - p[:3]).mean())
    assert np.isnan(measures.ece_equal_mass(truth[:0], p[:0]))


def test_log_likelihood_is_scikit_learns() -> None:
    from sklearn.metrics import log_loss

    truth, p = drawn()
    assert measures.nll(truth, p) == pytest.approx(log_loss(truth, p))
    assert np.isfinite(measures.nll(np.array([True]), np.array([0.0])))


def test_coverage_and_width_leave_out_cases_without_an_interval() -> None:
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    low, high = np.array([0.0, 2.0, 4.0, np.nan]), np.array([1.0, 3.0, 5.0, np.nan])
    assert measures.coverage(truth, low, high) == pytest.approx(2 / 3)
    assert measures.width(low, high) == 1.0
    assert np.isnan(measures.coverage(truth[:1], low[3:], high[3:]))
