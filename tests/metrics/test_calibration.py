"""Calibration measures by definition and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from neuroprior.metrics import ece, nll


def drawn(n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    p = draw.random(n)
    return draw.random(n) < p**2, p


def test_equal_mass_bins_are_scikit_learns_quantile_curve() -> None:
    from sklearn.calibration import calibration_curve

    truth, p = drawn()
    share, mean = calibration_curve(truth, p, n_bins=10, strategy="quantile")
    assert ece.ece(truth, p, scheme="mass") == pytest.approx(np.abs(share - mean).mean())
    assert ece.ece(truth[:3], p[:3], scheme="mass") == pytest.approx(np.abs(truth[:3] - p[:3]).mean())
    assert np.isnan(ece.ece(truth[:0], p[:0], scheme="mass"))


def test_log_likelihood_is_scikit_learns() -> None:
    from sklearn.metrics import log_loss

    truth, p = drawn()
    assert nll.binary(truth, p) == pytest.approx(log_loss(truth, p))
    assert np.isfinite(nll.binary(np.array([True]), np.array([0.0])))
