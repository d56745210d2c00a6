"""Metrics of numbers against scikit-learn, scipy, numerical integrals and plain loops on 200 random cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn import calibration as sk_calibration
from sklearn import metrics as sk

from neuroprior.core.errors import InputError
from neuroprior.metrics import (
    age_bias,
    auroc,
    brier,
    classification,
    crps,
    ece,
    errors,
    intervals,
    nll,
    operating,
    selective,
)

DRAWS = range(200)


def binary_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) truth with both classes and probabilities, tied in every other draw."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 120))
    truth = rng.uniform(size=n) < rng.uniform(0.1, 0.9)
    truth[:2] = True, False
    p = np.clip(rng.normal(0.4 + 0.2 * truth, 0.25), 0, 1)
    return truth, np.round(p, 1) if seed % 2 else p


def classes_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) class numbers and (n, c) probabilities."""
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(8, 80)), int(rng.integers(2, 6))
    p = rng.dirichlet(np.ones(c), n)
    truth = np.array([rng.choice(c, p=row) for row in p])
    truth[:2] = 0, 1
    return truth, p


def test_ranking() -> None:
    for seed in DRAWS:
        t, p = binary_case(seed)
        assert auroc.auroc(t, p) == pytest.approx(sk.roc_auc_score(t, p), abs=1e-9)
        assert auroc.auprc(t, p) == pytest.approx(sk.average_precision_score(t, p), abs=1e-9)
        fpr, tpr, _ = sk.roc_curve(t, p, drop_intermediate=False)
        for level in (0.5, 0.8, 0.9, 1.0):
            assert operating.sensitivity_at_specificity(t, p, level) == pytest.approx(
                tpr[1 - fpr >= level - 1e-9].max(), abs=1e-9
            )
            assert operating.specificity_at_sensitivity(t, p, level) == pytest.approx(
                (1 - fpr)[tpr >= level - 1e-9].max(), abs=1e-9
            )
            kept = operating.threshold_at_specificity(t, p, level)
            assert classification.specificity(t, p >= kept, True) >= level - 1e-9
            assert classification.sensitivity(t, p >= kept, True) == pytest.approx(
                operating.sensitivity_at_specificity(t, p, level), abs=1e-9
            )


def test_decisions() -> None:
    for seed in DRAWS:
        t, p = classes_case(seed)
        g = p.argmax(1)
        assert classification.balanced_accuracy(t, g) == pytest.approx(
            sk.recall_score(t, g, labels=np.unique(t), average="macro")
        )
        assert classification.macro_f1(t, g) == pytest.approx(sk.f1_score(t, g, average="macro", zero_division=0), abs=1e-9)
        assert classification.mcc(t, g) == pytest.approx(sk.matthews_corrcoef(t, g), abs=1e-9)
        b, q = binary_case(seed)
        assert classification.f1(b, q > 0.5, True) == pytest.approx(sk.f1_score(b, q > 0.5, zero_division=0), abs=1e-9)
        assert classification.sensitivity(b, q > 0.5, True) == pytest.approx(sk.recall_score(b, q > 0.5), abs=1e-9)
        assert classification.specificity(b, q > 0.5, True) == pytest.approx(sk.recall_score(~b, q <= 0.5), abs=1e-9)


def test_errors_and_age_bias() -> None:
    for seed in DRAWS:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(5, 80))
        t = np.round(rng.uniform(8, 90, n), seed % 2)
        g = 0.7 * t + 15 + rng.normal(0, 6, n)
        assert errors.mae(t, g) == pytest.approx(sk.mean_absolute_error(t, g), abs=1e-9)
        assert errors.rmse(t, g) == pytest.approx(sk.root_mean_squared_error(t, g), abs=1e-9)
        assert errors.pearson(t, g) == pytest.approx(stats.pearsonr(t, g).statistic, abs=1e-9)
        assert errors.spearman(t, g) == pytest.approx(stats.spearmanr(t, g).statistic, abs=1e-9)
        line = stats.linregress(t, g - t)
        assert age_bias.slope(t, g) == pytest.approx(line.slope, abs=1e-9)
        new_t = rng.uniform(8, 90, 20)
        new_g = 0.7 * new_t + 15
        beheshti = np.abs(new_g - (line.intercept + line.slope * new_t) - new_t).mean()
        assert age_bias.corrected_mae(new_t, new_g, fit_truth=t, fit_guess=g, use_age=True) == pytest.approx(beheshti, abs=1e-9)
        cole = stats.linregress(t, g)
        inverted = np.abs((new_g - cole.intercept) / cole.slope - new_t).mean()
        assert age_bias.corrected_mae(new_t, new_g, fit_truth=t, fit_guess=g) == pytest.approx(inverted, rel=1e-9)


def test_a_correction_that_knows_the_age_is_no_accuracy() -> None:
    """The trap that the docstring states: a prediction that knows nothing becomes perfect."""
    ages, constant = np.linspace(20, 80, 30), np.full(30, 50.0)
    assert age_bias.slope(ages, constant) == pytest.approx(-1)
    assert age_bias.corrected_mae(ages, constant, fit_truth=ages, fit_guess=constant, use_age=True) == pytest.approx(0, abs=1e-9)
    with pytest.raises(InputError, match="do not change with age"):
        age_bias.corrected_mae(ages, constant, fit_truth=ages, fit_guess=constant)
    with pytest.raises(InputError, match="at least three validation subjects"):
        age_bias.fit(ages[:2], constant[:2])


def test_calibration() -> None:
    for seed in DRAWS:
        t, p = binary_case(seed)
        bins = 3 + seed % 12
        # by definition: the bin of each case by its value, or by how many cases lie below it
        below = np.array([(p < value).sum() for value in p])
        for scheme, place in (("width", np.minimum(np.floor(p * bins), bins - 1)), ("mass", np.floor(bins * below / p.size))):
            filled = [place == k for k in range(bins) if (place == k).any()]
            gaps = [abs(t[here].mean() - p[here].mean()) for here in filled]
            expected = np.dot(gaps, [here.mean() for here in filled])
            assert ece.ece(t, p, bins, scheme) == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]
            assert ece.mce(t, p, bins, scheme) == pytest.approx(max(gaps), abs=1e-9)  # type: ignore[arg-type]
        assert ece.ece(t, p, bins) == pytest.approx(ece.ece(t, p, bins), abs=1e-12)
        if seed % 2 == 0:  # scikit-learn puts a probability on a bin's edge into the lower bin
            inside = (p > 0) & (p < 1)
            table = ece.reliability(t[inside], p[inside], bins)
            observed, predicted = sk_calibration.calibration_curve(t[inside], p[inside], n_bins=bins)
            np.testing.assert_allclose(table.observed, observed, atol=1e-9)
            np.testing.assert_allclose(table.predicted, predicted, atol=1e-9)
        assert nll.binary(t, p) == pytest.approx(sk.log_loss(t, p), abs=1e-9)


def test_calibration_of_classes() -> None:
    for seed in DRAWS:
        t, p = classes_case(seed)
        one_by_one = np.mean([ece.ece(t == k, p[:, k], 8) for k in range(p.shape[1])])
        assert ece.class_wise(t, p, 8) == pytest.approx(one_by_one, abs=1e-9)
        assert ece.top_label(t, p, 8) == pytest.approx(ece.ece(p.argmax(1) == t, p.max(1), 8), abs=1e-9)
        labels = list(range(p.shape[1]))
        assert nll.multiclass(t, p) == pytest.approx(sk.log_loss(t, p, labels=labels), abs=1e-9)
        assert brier.multiclass(t, p) == pytest.approx(sum(sk.brier_score_loss(t == k, p[:, k]) for k in labels), abs=1e-9)


def test_the_brier_score_is_its_parts() -> None:
    for seed in DRAWS:
        t, p = binary_case(seed)
        whole = sk.brier_score_loss(t, p)
        assert brier.decompose(t, p, 10).brier == pytest.approx(whole, abs=1e-9)
        parts = brier.decompose(t, p, None)
        assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(whole, abs=1e-9)
        assert (parts.spread, parts.covariance) == pytest.approx((0, 0), abs=1e-12)
        base = t.mean()
        reliability = sum((p == v).mean() * (v - t[p == v].mean()) ** 2 for v in np.unique(p))
        resolution = sum((p == v).mean() * (base - t[p == v].mean()) ** 2 for v in np.unique(p))
        assert (parts.reliability, parts.resolution, parts.uncertainty) == pytest.approx(
            (reliability, resolution, base * (1 - base))
        )


def test_selective_prediction() -> None:
    for seed in DRAWS:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 60))
        loss = (rng.uniform(size=n) < 0.3).astype(float) if seed % 2 else rng.gamma(2, 1, n)
        sure = rng.normal(-loss)
        order = np.argsort(-sure)
        by_hand = np.mean([loss[order[:k]].mean() for k in range(1, n + 1)])
        assert selective.aurc(loss, sure) == pytest.approx(by_hand, abs=1e-9)
        best = np.mean([np.sort(loss)[:k].mean() for k in range(1, n + 1)])
        assert selective.best_aurc(loss) == pytest.approx(best, abs=1e-9)
        assert selective.excess_aurc(loss, sure) == pytest.approx(by_hand - best, abs=1e-9)
        assert selective.excess_aurc(loss, sure) >= -1e-12
        if seed % 2:
            assert selective.best_aurc_of_errors(int(loss.sum()), n) == pytest.approx(best, abs=1e-9)
    assert selective.best_aurc_of_errors(3000, 10000) == pytest.approx(selective.limit_aurc_of_errors(0.3), abs=1e-4)
    assert selective.best_aurc_of_errors(4, 4) == selective.limit_aurc_of_errors(1.0) == 1.0


def test_ties_of_confidence_depend_on_no_order() -> None:
    rng = np.random.default_rng(0)
    loss, sure = rng.gamma(2, 1, 30), rng.integers(0, 3, 30).astype(float)
    many = [selective.aurc(loss, sure + rng.uniform(0, 1e-6, 30)) for _ in range(4000)]
    assert selective.aurc(loss, sure) == pytest.approx(np.mean(many), abs=4 * np.std(many) / np.sqrt(4000))
    mixed = rng.permutation(30)
    assert selective.aurc(loss[mixed], sure[mixed]) == pytest.approx(selective.aurc(loss, sure), abs=1e-12)
    assert selective.aurc(loss, np.zeros(30)) == pytest.approx(selective.aurc_of_chance(loss), abs=1e-12)


def test_distributions() -> None:
    for seed in DRAWS:
        rng = np.random.default_rng(seed)
        y, mu, sigma = rng.normal(0, 3, 3), rng.normal(0, 3, 3), rng.uniform(0.2, 4, 3)
        got = crps.gaussian(y, mu, sigma)
        for k in range(3 if seed < 20 else 1):  # the integrals are slow
            known = stats.norm(mu[k], sigma[k])
            left, _ = integrate.quad(lambda x, known=known: known.cdf(x) ** 2, mu[k] - 12 * sigma[k] - 20, y[k], limit=200)
            right, _ = integrate.quad(lambda x, known=known: known.sf(x) ** 2, y[k], mu[k] + 12 * sigma[k] + 20, limit=200)
            assert got[k] == pytest.approx(left + right, abs=1e-6)
        members = rng.normal(size=(3, int(rng.integers(2, 12))))
        apart = np.abs(members[:, :, None] - members[:, None]).sum((1, 2))
        near, m = np.abs(members - y[:, None]).mean(1), members.shape[1]
        np.testing.assert_allclose(crps.ensemble(y, members), near - apart / (2 * m * m), atol=1e-9)
        np.testing.assert_allclose(crps.ensemble(y, members, fair=True), near - apart / (2 * m * (m - 1)), atol=1e-9)
    assert crps.gaussian(np.array([3.0]), np.array([1.0]), np.array([0.0])) == pytest.approx([2.0])
    assert crps.ensemble(np.array([3.0]), np.array([[1.0]])) == pytest.approx([2.0])
    many = np.random.default_rng(0).normal(1, 2, (1, 200_000))
    assert crps.ensemble(np.array([2.0]), many) == pytest.approx(
        crps.gaussian(np.array([2.0]), np.array([1.0]), np.array([2.0])), abs=0.01
    )


def test_intervals() -> None:
    for seed in DRAWS:
        rng = np.random.default_rng(seed)
        y, low = rng.normal(size=30), rng.normal(-1, 0.5, 30)
        high = low + rng.uniform(0, 3, 30)
        assert intervals.coverage(y, low, high) == pytest.approx(np.mean([a <= v <= b for v, a, b in zip(y, low, high)]))
        assert intervals.width(low, high) == pytest.approx(np.mean(high - low))
        # the interval score is the sum of the two quantile losses, times 2 / alpha
        alpha = 0.2
        theirs = sk.mean_pinball_loss(y, low, alpha=alpha / 2) + sk.mean_pinball_loss(y, high, alpha=1 - alpha / 2)
        assert intervals.interval_score(y, low, high, 1 - alpha) == pytest.approx(2 / alpha * theirs, abs=1e-9)


# --- what is not defined, and what is refused


def test_one_class_only_is_not_half() -> None:
    ones, scores = np.ones(4, dtype=bool), np.linspace(0, 1, 4)
    for metric in (auroc.auroc, operating.sensitivity_at_specificity, operating.specificity_at_sensitivity, classification.mcc):
        assert np.isnan(metric(ones, scores))
        assert np.isnan(metric(ones[:0], scores[:0]))
    assert np.isnan(auroc.auprc(~ones, scores))
    assert classification.mcc(np.array([0, 1, 1]), np.ones(3)) == 0
    assert np.isnan(errors.spearman(np.arange(5.0), np.ones(5)))
    assert np.isnan(ece.ece(ones[:0], scores[:0]))
    assert np.isnan(ece.debiased(ones[:0], scores[:0]))
    assert np.isnan(ece.squared_debiased(ones[:1], scores[:1]))
    assert np.isnan(brier.decompose(ones[:0], scores[:0]).brier)
    assert np.isnan(selective.aurc(scores[:0], scores[:0]))


def test_probabilities_that_are_none_are_refused() -> None:
    truth = np.array([0, 1, 1])
    halves = np.full((3, 2), 0.4)
    for metric in (ece.class_wise, ece.top_label, nll.multiclass, brier.multiclass):
        with pytest.raises(InputError, match="do not sum to one"):
            metric(truth, halves)
        with pytest.raises(InputError, match="no column"):
            metric(truth + 1, np.full((3, 2), 0.5))
        with pytest.raises(InputError, match="no probabilities"):
            metric(truth, np.array([[1.5, -0.5]] * 3))
    for value in (float("nan"), 1.2, -0.1):
        for metric in (ece.ece, nll.binary, brier.decompose, ece.debiased):
            with pytest.raises(InputError, match=r"numbers in \[0, 1\]"):
                metric(truth, np.array([0.1, value, 0.3]))
    with pytest.raises(InputError, match="not finite"):
        auroc.auroc(truth, np.array([0.1, np.nan, 0.3]))
    with pytest.raises(InputError, match="end before they begin"):
        intervals.coverage(np.zeros(2), np.ones(2), np.zeros(2))
    with pytest.raises(InputError, match="negative"):
        crps.gaussian(np.zeros(2), np.zeros(2), np.array([1.0, -1.0]))


# --- estimates tend to the truth


def test_ece_of_a_calibrated_simulator_tends_to_zero_and_of_another_to_its_value() -> None:
    """P(y | p) = p, and P(y | p) = p^2, whose error is the integral of p - p^2 over [0, 1]: 1 / 6."""
    plain, debiased, squared, wrong, wrong_debiased = {}, {}, {}, {}, {}
    for n in (100, 1000, 100_000):
        rows = []
        for seed in range(3 if n > 10_000 else 40):
            rng = np.random.default_rng(seed)
            p = rng.uniform(size=n)
            y, z = rng.uniform(size=n) < p, rng.uniform(size=n) < p**2
            rows.append((ece.ece(y, p), ece.debiased(y, p), ece.squared_debiased(y, p), ece.ece(z, p), ece.debiased(z, p)))
        plain[n], debiased[n], squared[n], wrong[n], wrong_debiased[n] = np.mean(rows, 0)
    assert plain[100] > plain[1000] > plain[100_000]
    assert plain[100_000] < 0.006
    assert all(debiased[n] < 0.75 * plain[n] for n in plain)
    assert abs(squared[100]) < 0.004  # no bias, whatever n: the plain squared error is 0.015
    assert abs(squared[1000]) < 4e-4
    assert wrong[100_000] == pytest.approx(1 / 6, abs=0.004)
    assert wrong_debiased[100_000] == pytest.approx(1 / 6, abs=0.004)
    assert abs(wrong_debiased[100] - 1 / 6) < abs(wrong[100] - 1 / 6)


def test_class_wise_and_equal_mass_tend_to_zero_too() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 60_000)
    t = (rng.uniform(size=(60_000, 1)) > np.cumsum(p, 1)).sum(1)
    assert ece.class_wise(t, p) < 0.006
    assert ece.class_wise(t, p, scheme="mass") < 0.006
    assert ece.top_label(t, p) < 0.01
    sharp = p**3 / (p**3).sum(1, keepdims=True)
    assert ece.class_wise(t, sharp) > 0.05
