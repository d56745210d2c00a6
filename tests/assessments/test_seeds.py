"""Ranks and comparisons over seeds: one seed is the plain ranking, and a spread between seeds widens what is said."""

from __future__ import annotations

import numpy as np
import pytest

from neuroprior.assessments import _seeds, comparison, significance
from neuroprior.assessments.accuracy import Context, classify
from neuroprior.core.errors import InputError
from neuroprior.core.records import Score
from neuroprior.metrics import auroc


def dice(model: str, values: np.ndarray) -> list[Score]:
    context = Context(model, "segmentation", "lesion")
    return [
        context.row(f"c{k:02}", f"s{k:02}", metric, "lesion", float(value - shift))
        for k, value in enumerate(values)
        for metric, shift in (("dice", 0.0), ("nsd", 0.1))
    ]


def health(model: str, logits: np.ndarray, yes: np.ndarray) -> list[Score]:
    p = 1 / (1 + np.exp(-logits))
    names = [f"c{k:02}" for k in range(len(p))]
    truth = np.where(yes, "ill", "well").tolist()
    context = Context(model, "classification", "health", resamples=10)
    return classify(context, names, names, truth, np.where(p > 0.5, "ill", "well").tolist(), p.tolist(), "ill")


def runs(spread: float, gain: float = 0.02, n: int = 24, seeds: int = 3) -> list[Score]:
    """Two models whose seeds lie ``spread`` apart, on the same subjects."""
    rng = np.random.default_rng(1)
    hard = rng.beta(6, 3, n) * 0.6
    rows = []
    for model, more in (("a", 0.0), ("b", gain)):
        for k in range(seeds):
            rows += dice(f"{model} seed {k}", hard + more + spread * (k - 1) + rng.normal(0, 0.01, n))
    return rows


def test_names_say_the_seed() -> None:
    assert _seeds.name_and_seed("mae seed 2") == ("mae", 2)
    assert _seeds.name_and_seed("mae/seed-10") == ("mae", 10)
    assert _seeds.name_and_seed("mae_seed_0") == ("mae_seed_0", None) or _seeds.name_and_seed("mae_seed_0") == ("mae", 0)
    assert _seeds.name_and_seed("linseed") == ("linseed", None)
    assert _seeds.name_and_seed("seedling 3") == ("seedling 3", None)
    assert _seeds.runs_of(["b seed 1", "a", "b seed 0"]) == {"b": [2, 0], "a": [1]}


def test_with_one_run_it_is_the_plain_ranking() -> None:
    rng = np.random.default_rng(0)
    yes = np.arange(20) % 2 == 0
    rows = [*dice("a", rng.random(20)), *dice("b", rng.random(20)), *dice("c", rng.random(20))]
    for model in "abc":
        rows += health(model, rng.normal(0, 1, 20) + yes, yes)
    found = comparison.measures(rows)
    weights = {"segmentation of lesion": 3.0, "classification of health": 1.0}
    plain = comparison.rank(found, weights=weights, resamples=200)
    mine = _seeds.rank(found, weights=weights, resamples=200)
    over = mine.over_all
    assert over.models == plain.models
    for name in ("rank", "mean_rank", "low", "high", "ahead", "tau"):
        np.testing.assert_allclose(getattr(over, name), getattr(plain, name), err_msg=name)
    assert over.sentence == plain.sentence
    alone = comparison.rank([one for one in found if one.task == "segmentation of lesion"], resamples=200)
    np.testing.assert_allclose(mine.by_task["segmentation of lesion"].ahead, alone.ahead)
    assert mine.drawn.shape == (200, 3)
    np.testing.assert_allclose(
        np.mean(mine.drawn[:, 0] < mine.drawn[:, 1]) + np.mean(mine.drawn[:, 0] == mine.drawn[:, 1]) / 2, over.ahead[0, 1]
    )
    for one in found:
        a, b = _seeds.compare(one, resamples=100, permutations=100), significance.compare(one, resamples=100, permutations=100)
        np.testing.assert_allclose(a.p, b.p)
        assert a.sentence == b.sentence


def test_a_spread_between_seeds_makes_an_order_doubtful() -> None:
    close, wide = (comparison.measures(runs(spread)) for spread in (0.0, 0.1))
    assert _seeds.rank(close, resamples=300).over_all.supported
    doubtful = _seeds.rank(wide, resamples=300).over_all
    assert doubtful.models == ("b", "a")
    assert not doubtful.supported
    assert doubtful.ahead[0, 1] < 0.9


def test_the_value_of_a_model_is_the_mean_over_its_runs() -> None:
    rng = np.random.default_rng(3)
    yes = np.arange(30) % 3 == 0
    logits = {
        f"{model} seed {k}": rng.normal(0, 1, 30) + (1 + gain) * yes for model, gain in (("a", 0.0), ("b", 1.5)) for k in range(3)
    }
    rows = [row for name, values in logits.items() for row in health(name, values, yes)]
    (found,) = comparison.measures(rows)
    by_hand = {
        m: np.mean([auroc.auroc(yes, 1 / (1 + np.exp(-v))) for name, v in logits.items() if name.startswith(m)]) for m in "ab"
    }
    over = _seeds.rank([found], resamples=50).over_all
    key = ("classification of health", "auroc")
    np.testing.assert_allclose(over.values[key], [by_hand[m] for m in over.models])
    compared = _seeds.compare(found, resamples=100, permutations=200)
    assert compared.models == over.models
    assert compared.pairs[0].difference == pytest.approx(by_hand[over.models[0]] - by_hand[over.models[1]])
    assert compared.p[0, 1] == compared.p[1, 0] < 0.05


def test_equal_models_are_not_told_apart_by_their_seeds() -> None:
    yes = np.arange(24) % 2 == 0
    rng = np.random.default_rng(5)
    few = 0
    for _ in range(20):
        rows = []
        for model in "ab":
            for k in range(2):
                rows += health(f"{model} seed {k}", rng.normal(0, 1, 24) + yes, yes)
        (found,) = comparison.measures(rows)
        few += _seeds.compare(found, resamples=20, permutations=99).p[0, 1] < 0.05
    assert few <= 4


def test_seeds_are_evened_and_told() -> None:
    rows = [row for row in runs(0.0) if row.model != "b seed 2"]
    kept, told = _seeds.evened(rows)
    assert {row.model for row in kept} == {"a seed 0", "a seed 1", "b seed 0", "b seed 1"}
    assert told == "Left out, so that every model has 2 runs: a seed 2."
    with pytest.raises(InputError, match="different numbers of runs"):
        (dices, _) = comparison.measures(rows)
        _seeds.compare(dices)


def test_the_interval_of_a_mean_over_runs() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, (4, 30))
    tables = [[row for row in dice(f"m seed {k}", values[k]) if row.metric == "dice"] for k in range(4)]
    low, high = _seeds.mean_interval(tables)
    assert low is not None and high is not None
    assert low < values.mean() < high
    # of one seed's cases some are not defined: they are left out of that run's mean only
    gone = [[Score(**{**vars(row), "value": None}) if row.case in {"c00", "c01"} else row for row in tables[0]], *tables[1:]]
    assert _seeds.mean_interval(gone) != (low, high)
    assert _seeds.mean_interval(tables[:1]) == (None, None)


def test_weights_must_name_the_tasks() -> None:
    found = comparison.measures(runs(0.0))
    with pytest.raises(InputError, match="do not name the tasks"):
        _seeds.rank(found, weights={"other": 1.0})
    with pytest.raises(InputError, match="nothing to rank"):
        _seeds.rank([])
