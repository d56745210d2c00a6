"""Ranks, their intervals and the significance map, on models whose true order is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from neuroprior.assessments.accuracy import Context, classify, regress
from neuroprior.assessments.comparison import measures, over_seeds, rank, ranks
from neuroprior.assessments.significance import compare, measure, table
from neuroprior.core.errors import InputError
from neuroprior.core.records import Score


def dice_rows(model: str, values: np.ndarray, target: str = "lesion", metric: str = "dice") -> list[Score]:
    context = Context(model, "segmentation", target)
    return [context.row(f"c{k:02}", f"s{k:02}", metric, "lesion", float(value)) for k, value in enumerate(values)]


def dice_table(gaps: dict[str, float], n: int = 20, seed: int = 0, noise: float = 0.03, target: str = "lesion") -> list[Score]:
    """Models that differ by stated gaps on the same subjects, as DSC and NSD."""
    rng = np.random.default_rng(seed)
    hard = rng.beta(6, 3, n) * 0.6
    rows = []
    for model, gap in gaps.items():
        values = hard + gap + rng.normal(0, noise, n)
        rows += dice_rows(model, values, target) + dice_rows(model, values - 0.1, target, "nsd")
    return rows


def test_ranks_average_ties_and_put_undefined_last() -> None:
    assert list(ranks(np.array([0.5, 0.9, 0.9, np.nan]))) == [3, 1.5, 1.5, 4]
    assert list(ranks(np.array([5.0, 2.0, 2.0 + 1e-14]), higher_is_better=False)) == [3, 1.5, 1.5]
    for seed in range(200):
        values = np.random.default_rng(seed).integers(0, 4, 6).astype(float)
        by_hand = [1 + (values > v).sum() + ((values == v).sum() - 1) / 2 for v in values]
        assert list(ranks(values)) == by_hand


def test_an_order_that_the_data_support() -> None:
    scores = dice_table({"scratch": 0.0, "mae": 0.1, "split": 0.2})
    found = rank(measures(scores), resamples=300)
    assert found.models == ("split", "mae", "scratch")
    assert list(found.rank) == [1, 2, 3]
    assert list(found.low) == list(found.high) == [1, 2, 3]
    assert found.supported
    assert found.mean_tau == 1
    assert found.sentence.startswith("The order split > mae > scratch is supported by the data")
    assert found.ahead[0, 1] == 1 and found.ahead[1, 0] == 0
    map_ = compare(measure(scores, "dice"), resamples=200)
    assert map_.models == found.models
    assert map_.supported
    assert "is supported by the data by dice on 20 subjects" in map_.sentence


def test_an_order_that_they_do_not() -> None:
    scores = dice_table({"scratch": 0.0, "mae": 0.1, "split": 0.101}, noise=0.05)
    found = rank(measures(scores), resamples=300)
    assert not found.supported
    assert "is not supported by the data" in found.sentence
    assert "scratch is ahead" not in found.sentence
    assert found.mean_tau < 1
    assert (found.low[0], found.high[0]) == (1, 2)
    map_ = compare(measure(scores, "dice"), resamples=200)
    assert not map_.supported
    assert "is not told from" in map_.sentence
    assert map_.sentence.endswith("What the data do support: split > scratch, mae > scratch.") or map_.sentence.endswith(
        "What the data do support: mae > scratch, split > scratch."
    )


def test_identical_models_tie() -> None:
    values = np.linspace(0.3, 0.9, 12)
    scores = dice_rows("a", values) + dice_rows("b", values)
    found = rank(measures(scores, {"segmentation": ("dice",)}), resamples=50)
    assert list(found.rank) == [1.5, 1.5]
    assert "The order a = b is not supported" in found.sentence
    assert found.ahead[0, 1] == 0.5
    assert np.isnan(found.mean_tau)
    assert "all models tie" in found.sentence
    map_ = compare(measure(scores, "dice"), resamples=50)
    assert map_.p[0, 1] == 1
    assert map_.pairs[0].superiority == 0.5


def test_false_order_is_seldom_supported() -> None:
    """Three equal models: the order is called supported in few of 60 tables, and a significant pair is found in about 5 %."""
    supported = any_pair = 0
    for seed in range(60):
        scores = dice_table({"a": 0, "b": 0, "c": 0}, seed=seed, n=15)
        supported += rank(measures(scores, {"segmentation": ("dice",)}), resamples=150, seed=seed).supported
        any_pair += any(pair.adjusted < 0.05 for pair in compare(measure(scores, "dice"), resamples=20).pairs)
    assert supported <= 2
    assert any_pair <= 8


def test_the_map_is_wilcoxon_with_holm() -> None:
    scores = dice_table({"a": 0.0, "b": 0.015, "c": 0.02, "d": 0.06}, seed=3)
    map_ = compare(measure(scores, "dice"), resamples=100)
    by_model = {m: np.array([row.value for row in scores if row.model == m and row.metric == "dice"], float) for m in "abcd"}
    raw = [stats.wilcoxon(by_model[pair.first], by_model[pair.second], method="exact").pvalue for pair in map_.pairs]
    assert [pair.p for pair in map_.pairs] == pytest.approx(raw)
    order = np.argsort(raw)
    adjusted = np.empty(6)
    adjusted[order] = np.minimum(1, np.maximum.accumulate([(6 - k) * raw[j] for k, j in enumerate(order)]))
    assert [pair.adjusted for pair in map_.pairs] == pytest.approx(list(adjusted))
    for pair in map_.pairs:
        a, b = map_.models.index(pair.first), map_.models.index(pair.second)
        assert map_.p[a, b] == map_.p[b, a] == pair.adjusted
        assert pair.difference == pytest.approx(by_model[pair.first].mean() - by_model[pair.second].mean())
        assert pair.low is not None and pair.high is not None and pair.low < pair.difference < pair.high
        assert pair.cohen_dz * np.sqrt(20) == pytest.approx(
            stats.ttest_rel(by_model[pair.first], by_model[pair.second]).statistic
        )
    assert list(np.diag(map_.p)) == [1] * 4
    assert {"first", "second", "p_holm", "n"} <= set(table(map_)[0])


def test_sessions_of_a_subject_are_one_observation() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, 4)
    rows: list[Score] = []
    for model, gap in (("a", 0.0), ("b", 0.05)):
        for subject in range(4):
            for session in range(10):
                value = base[subject] + gap * (1 + subject) + 0.001 * session
                rows.append(Context(model, "segmentation", "x").row(f"s{subject}/{session}", f"s{subject}", "dice", "x", value))
    map_ = compare(measure(rows, "dice"), resamples=50)
    assert map_.n == 4
    assert map_.pairs[0].p == pytest.approx(2 / 16), "four subjects, not forty scans"


def both_tables() -> list[Score]:
    rng = np.random.default_rng(1)
    n = 40
    cases = [f"c{k:02}" for k in range(n)]
    truth = ["ms, early" if k % 2 else "healthy" for k in range(n)]
    ages = rng.uniform(20, 80, n)
    rows: list[Score] = []
    for model, noise in (("weak", 3.0), ("good", 0.3)):
        logit = np.array([1.0 if name == "ms, early" else -1.0 for name in truth]) + rng.normal(0, noise, n)
        p = 1 / (1 + np.exp(-logit))
        guess = ["ms, early" if q > 0.5 else "healthy" for q in p]
        rows += classify(Context(model, "classification", "dx", resamples=20), cases, cases, truth, guess, list(p), "ms, early")
        rows += regress(
            Context(model, "regression", "age", resamples=20),
            cases,
            cases,
            list(ages),
            list(ages + rng.normal(0, 3 + 3 * noise, n)),
        )
    rows += classify(
        Context("floor: prior", "classification", "dx", resamples=20),
        cases,
        cases,
        truth,
        ["healthy"] * n,
        [0.5] * n,
        "ms, early",
    )
    return rows


def test_metrics_of_a_set_are_computed_again_from_the_rows() -> None:
    rows = both_tables()
    dx = [row for row in rows if row.task == "classification" and not row.model.startswith("floor")]
    found = measure(dx, "auroc")
    assert found.truth is not None
    printed = {row.model: row.value for row in dx if row.metric == "auroc"}
    assert dict(zip(found.models, found.of(np.arange(40)))) == pytest.approx(printed)
    for model, p in zip(found.models, found.values):
        assert sk.roc_auc_score(found.truth, p) == pytest.approx(printed[model])
    map_ = compare(found, resamples=100, permutations=300)
    assert map_.models == ("good", "weak")
    assert map_.p[0, 1] < 0.05
    assert map_.pairs[0].low is not None and map_.pairs[0].low > 0
    ages = [row for row in rows if row.task == "regression"]
    correlation = measure(ages, "pearson_r")
    assert dict(zip(correlation.models, correlation.of(np.arange(40)))) == pytest.approx(
        {row.model: row.value for row in ages if row.metric == "pearson_r"}
    )


def test_tasks_are_weighted() -> None:
    scores = dice_table({"a": 0.0, "b": 0.1}) + dice_table({"a": 0.2, "b": 0.1}, target="vessel", seed=5)
    equal = rank(measures(scores), resamples=50)
    assert list(equal.mean_rank) == [1.5, 1.5]
    for favoured, first in (("segmentation of lesion", "b"), ("segmentation of vessel", "a")):
        weights = {"segmentation of lesion": 0.1, "segmentation of vessel": 0.1} | {favoured: 0.3}
        found = rank(measures(scores), weights=weights, resamples=50)
        assert found.models[0] == first
        assert list(found.mean_rank) == pytest.approx([1.25, 1.75])
        assert found.by_task[favoured][0] == 1
    with pytest.raises(InputError, match="weights do not name the tasks"):
        rank(measures(scores), weights={"x": 1.0})


def test_mixed_tasks_and_floors() -> None:
    found = rank(measures(both_tables()), resamples=60)
    assert found.models == ("good", "weak")
    assert set(found.by_measure) == {
        ("classification of dx", "auroc"), ("regression of age", "absolute_error"), ("regression of age", "pearson_r"),
    }  # fmt: skip
    assert found.subjects == {"classification of dx": 40, "regression of age": 40}
    again = rank(measures(both_tables()), resamples=60)
    assert np.array_equal(found.ahead, again.ahead)


def test_undefined_cases_are_left_out_for_all_and_counted() -> None:
    a, b = np.array([0.5, 0.6, np.nan, 0.7, 0.8]), np.array([0.4, 0.5, 0.0, 0.6, np.nan])
    found = measure(dice_rows("a", a) + dice_rows("b", b), "dice")
    assert found.values.shape == (2, 3)
    assert found.left_out == 2
    assert "2 cases not defined for all left out" in compare(found, resamples=20).sentence


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="needs two models"):
        measure(dice_rows("a", np.ones(3)), "dice")
    with pytest.raises(InputError, match="several tasks"):
        measure(dice_table({"a": 0, "b": 0}) + dice_table({"a": 0, "b": 0}, target="y"), "dice")
    with pytest.raises(InputError, match="no case has a defined dice"):
        measure(dice_rows("a", np.full(3, np.nan)) + dice_rows("b", np.ones(3)), "dice")
    with pytest.raises(InputError, match="b has no scores of segmentation of y"):
        measures(dice_table({"a": 0, "b": 0}) + dice_table({"a": 0}, target="y"))
    with pytest.raises(InputError, match="nothing to rank"):
        rank([])
    two = dice_rows("a", np.array([0.5, 0.6])) + dice_rows("b", np.array([0.4, 0.5]))
    found = rank(measures(two, {"segmentation": ("dice",)}), resamples=20)
    assert not found.supported
    assert found.sentence == "Nothing can be said of the order: segmentation of lesion has fewer than 3 subjects."
    map_ = compare(measure(two, "dice"), resamples=20)
    assert map_.pairs[0].low is None
    assert "at least 3 subjects" in map_.sentence


def test_seeds_are_a_second_level() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.05, 20)

    def runs(level: float, spread: float, count: int) -> list[list[Score]]:
        return [dice_rows("m", level + offset + hard) for offset in rng.normal(0, spread, count)]

    still, moving = runs(0.6, 1e-6, 6), runs(0.6, 0.05, 6)
    one, other = over_seeds(still, "dice", resamples=400), over_seeds(moving, "dice", resamples=400)
    assert one.low is not None and one.high is not None and other.low is not None and other.high is not None
    assert other.high - other.low > 1.2 * (one.high - one.low)
    assert (other.by_seed.size, other.subjects, other.note) == (6, 20, "")
    assert other.value == pytest.approx(other.by_seed.mean())
    # subjects are shared, so they cancel from a difference; seeds do not
    sure = over_seeds(runs(0.7, 0.002, 5), "dice", against=still, resamples=400)
    doubt = over_seeds(runs(0.7, 0.05, 5), "dice", against=moving, resamples=400)
    assert sure.low is not None and sure.high is not None and doubt.low is not None and doubt.high is not None
    assert doubt.high - doubt.low > 5 * (sure.high - sure.low)
    assert over_seeds(still[:1], "dice", against=moving[:1], resamples=20).low is None
    assert "3 seeds say little" in over_seeds(still[:3], "dice", resamples=20).note
