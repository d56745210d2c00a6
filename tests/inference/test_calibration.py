"""Temperature, split-conformal half-widths and abstaining, against scipy, simulation and definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import binom

from neuroprior.core.errors import ArtifactError, InputError
from neuroprior.inference import calibration as cal


def simulated(n: int, sharp: float, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right at temperature ``sharp``: the logits' own softmax draws the truth."""
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((n, classes)) * 1.5
    truth = np.array([draw.choice(classes, p=p) for p in softmax(logits, 1)])
    return softmax(logits * sharp, 1), truth


def test_temper_is_the_softmax_of_divided_logits_along_any_axis() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 3, 5)) * 3
    got = cal.temper(softmax(logits, 1), 2.5, axis=1)
    np.testing.assert_allclose(got, softmax(logits / 2.5, 1), rtol=1e-10)
    p = np.array([[0.0, 1.0], [1e-30, 1 - 1e-30]], dtype=np.float32)
    assert cal.temper(p, 1.0) is p
    sharp = cal.temper(p, 0.05)
    assert sharp.dtype == np.float32
    np.testing.assert_allclose(sharp, [[0, 1], [0, 1]], atol=1e-6)
    assert cal.temper(p, 20.0)[0, 0] == 0


def test_the_temperature_is_scipys_minimum_and_undoes_a_known_one() -> None:
    p, truth = simulated(4000, sharp=2.5)
    found = cal.fit_temperature(p, truth, prior=None)
    logs = np.log(p)
    other = minimize(
        lambda t: -log_softmax(logs / np.exp(t[0]), 1)[np.arange(len(truth)), truth].mean(), [0.0], method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-12},
    )  # fmt: skip
    assert found == pytest.approx(float(np.exp(other.x[0])), rel=1e-4)
    assert found == pytest.approx(2.5, rel=0.1)
    assert cal.nll(cal.temper(p, found), truth) < cal.nll(p, truth)


def test_a_handful_of_right_answers_does_not_run_to_a_bound() -> None:
    truth = np.array([0, 1] * 5)
    p = np.where(np.eye(2)[truth] > 0, 0.9, 0.1)
    assert cal.fit_temperature(p, truth, prior=None) < 0.06
    assert 0.2 < cal.fit_temperature(p, truth) < 1


def test_one_class_or_too_few_is_told() -> None:
    p, _ = simulated(10, 1.0)
    with pytest.raises(InputError, match="one class only"):
        cal.fit_temperature(p, np.zeros(10, dtype=int))
    with pytest.raises(InputError, match="too few cases"):
        cal.fit_temperature(p[:3], np.array([0, 1, 0]))


def test_the_half_width_has_the_finite_sample_rank() -> None:
    errors = np.random.default_rng(1).permutation(np.arange(1.0, 100.0))  # 99 of them: rank 90 of 100
    assert cal.conformal(errors, 0.9) == cal.HalfWidth(90.0, 0.9, 99)
    assert cal.conformal(np.arange(1.0, 20.0), 0.9).value == 18.0  # n = 19: rank ceil(18.0) = 18
    few = cal.conformal([3.0, 1.0, 2.0], 0.9)  # rank 4 of 3: the level reached is told, nothing is infinite
    assert (few.value, few.level) == (3.0, 0.75)
    with pytest.raises(InputError):
        cal.conformal([1.0, np.nan])
    with pytest.raises(InputError):
        cal.conformal([])


@pytest.mark.parametrize("n", [9, 30, 99])
def test_intervals_cover_at_the_level_on_simulated_cases(n: int) -> None:
    """4000 repetitions of: calibrate on n skewed errors, look at one new case. The share covered is binomial(rank/(n+1))."""
    draw = np.random.default_rng(n)
    hits, repetitions = 0, 4000
    for _ in range(repetitions):
        errors = draw.lognormal(0, 1, n + 1)
        hits += errors[-1] <= cal.conformal(errors[:-1], 0.9).value
    expected = np.ceil((n + 1) * 0.9 - 1e-9) / (n + 1)
    low, high = binom.interval(0.999, repetitions, expected)
    assert low <= hits <= high


def test_groups_are_each_covered_where_the_common_width_fails_one() -> None:
    draw = np.random.default_rng(3)
    groups = np.where(draw.random(4000) < 0.2, "old", "young")
    errors = np.abs(draw.standard_normal(4000)) * np.where(groups == "old", 3.0, 1.0)
    fit, new = slice(0, 1000), slice(1000, None)
    common = cal.conformal(errors[fit], 0.9).value
    by = cal.conformal_by_group(errors[fit], list(groups[fit]), 0.9)
    old = groups[new] == "old"
    assert (errors[new][old] <= common).mean() < 0.8
    assert (errors[new][old] <= by["old"].value).mean() == pytest.approx(0.9, abs=0.05)
    assert (errors[new][~old] <= by["young"].value).mean() == pytest.approx(0.9, abs=0.04)
    assert "rare" not in cal.conformal_by_group([1.0, 2.0, 3.0], ["rare"] * 3, 0.9)


@pytest.mark.parametrize("knows", [0.0, 0.5, 0.9])
def test_every_range_of_the_truth_is_covered_however_little_the_model_knows(knows: float) -> None:
    """3000 repetitions: calibrate on 90 people, look at a new one of each age group. A common width fails the young and the old."""
    draw = np.random.default_rng(5)
    repetitions, by_range, common = 3000, np.zeros(3), np.zeros(3)
    for _ in range(repetitions):
        truth = np.concatenate([draw.uniform(20, 80, 90), [30.0, 50.0, 70.0]])
        value = 50 + knows * (truth - 50) + draw.normal(0, 2, 93)
        errors = np.abs(value - truth)
        ranges = [(part.low, part.high, part.half_width) for part in cal.conformal_by_range(errors[:90], truth[:90], (40, 60))]
        assert [low for low, _, _ in ranges] == [-np.inf, 40, 60]
        width = cal.conformal(errors[:90]).value
        for k in range(3):
            low, high = cal.interval_over(value[90 + k], ranges)
            assert low <= value[90 + k] <= high
            by_range[k] += low <= truth[90 + k] <= high
            common[k] += errors[90 + k] <= width
    # 30, 50 and 70 are the middles of their ranges, an easier place than the range as a whole
    assert (by_range / repetitions > 0.9).all()


def test_a_range_is_covered_at_the_level_not_only_above_it() -> None:
    """The exact rank, on the union of answers: cases of a range are missed where their error exceeds its half-width."""
    draw = np.random.default_rng(6)
    truth = draw.uniform(20, 80, 20000)
    value = np.full(20000, 50.0)  # a model that says the middle to everybody
    errors = np.abs(value - truth)
    ranges = cal.conformal_by_range(errors[:10000], truth[:10000], (40, 60))
    common = cal.conformal(errors[:10000]).value
    new, young = truth[10000:], truth[10000:] < 40
    low, high = cal.interval_over(50.0, [(part.low, part.high, part.half_width) for part in ranges])
    assert ((new >= low) & (new <= high))[young].mean() == pytest.approx(0.9, abs=0.02)
    assert (np.abs(new - 50) <= common)[young].mean() < 0.88
    assert (low, high) == (pytest.approx(22, abs=0.5), pytest.approx(78, abs=0.5))


def test_ranges_with_too_few_cases_join_a_neighbour() -> None:
    errors, truth = np.ones(30), np.concatenate([np.full(4, 30.0), np.full(12, 50.0), np.full(14, 70.0)])
    made = cal.conformal_by_range(errors, truth, (40, 60), 0.9, {"sex": ["F", "M"] * 15})
    assert [(part.low, part.high) for part in made] == [(-np.inf, 60), (60, np.inf)]
    assert all(not part.groups for part in made)  # 7 or 8 of each sex are not enough
    assert cal.conformal_by_range(errors[:12], truth[:12], (40, 60)) == ()
    both = cal.conformal_by_range(np.arange(40.0), [30.0] * 20 + [70.0] * 20, (40,), 0.9, {"sex": ["F", "M"] * 20})
    assert both[0].groups == {"sex": {"F": 18.0, "M": 19.0}}
    calibration = cal.Calibration(40, quantiles={"value": 39.0}, ranges=both)
    assert cal.Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
    assert calibration.interval(35.0, {"sex": "F"}) == (17.0, 73.0)
    assert calibration.interval(35.0) == (17.0, 73.0)


def test_abstaining_keeps_the_coverage_or_the_risk() -> None:
    confidence = np.arange(1, 11) / 10
    correct = np.array([0, 0, 1, 0, 1, 1, 1, 1, 1, 1], dtype=bool)
    assert cal.abstain_threshold(confidence, coverage=0.8) == pytest.approx(0.3)
    assert cal.abstain_threshold(confidence, correct, risk=0.0) == pytest.approx(0.5)
    assert cal.abstain_threshold(confidence, correct, risk=0.15) == pytest.approx(0.3)
    assert cal.abstain_threshold(confidence, np.zeros(10, dtype=bool), risk=0.1) is None
    with pytest.raises(InputError, match="coverage or for a risk"):
        cal.abstain_threshold(confidence)


def test_it_survives_json_and_damage_is_told(tmp_path: Path) -> None:
    made = cal.Calibration(
        20, 1.7, 0.9, {"value": 4.5, "volume_ml": {"1": 0.3}}, 0.6, groups={"sex": {"F": 4.0, "M": 6.0}}, facts={"source": "val"}
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps({"weights_sha256": "abc"}))
    cal.attach(tmp_path, made)
    assert cal.read(tmp_path) == made
    assert json.loads((tmp_path / "model" / "model.json").read_text())["weights_sha256"] == "abc"
    cal.attach(tmp_path / "model", None)
    assert cal.read(tmp_path) is None
    assert made.interval(10.0) == (5.5, 14.5)
    assert made.interval(10.0, {"sex": "F"}) == (6.0, 14.0)
    assert made.interval(10.0, {"sex": None}) == (5.5, 14.5)
    assert cal.interval(1.0, 1.5, lowest=0.0) == (0.0, 2.5)
    with pytest.raises(ArtifactError, match="impossible"):
        cal.Calibration.from_json({"n": 3, "temperature": 0.0})
    with pytest.raises(ArtifactError, match="damaged"):
        cal.Calibration.from_json({"temperature": 1.0})
    with pytest.raises(ArtifactError, match="no model here"):
        cal.attach(tmp_path / "nothing", made)
