"""The linear probe and its fairness, against scikit-learn and by definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from neuroprior.assessments import fairness, linear_probe
from neuroprior.assessments.linear_probe import Config, descend, fit, softmax, split
from neuroprior.core.errors import InputError
from neuroprior.metrics.one_vs_rest import auroc_one_vs_rest
from neuroprior.protocols import read


def people(n: int = 120, classes: int = 3, d: int = 12, signal: float = 1.2, scans: int = 1, seed: int = 0):
    draw = np.random.default_rng(seed)
    who = np.repeat([f"s{k:03d}" for k in range(n)], scans)
    truth = np.repeat(draw.integers(0, classes, n), scans)
    features = draw.normal(size=(n * scans, d)) + signal * np.eye(classes, d)[truth] * 2
    return features, [f"class {k}" for k in truth], who.tolist()


def test_the_split_is_per_class_by_subject_and_always_the_same() -> None:
    _, labels, who = people(scans=3)
    parts = split(labels, who, Config())
    rows = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(rows) == list(range(len(who)))
    sides = [{who[k] for k in part} for part in (parts.train, parts.validation, parts.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    for name in set(labels):
        n = len({s for s, x in zip(who, labels, strict=True) if x == name})
        counts = [len({who[k] for k in part if labels[k] == name}) for part in (parts.train, parts.validation, parts.test)]
        assert counts == [round(0.4 * n), round(0.1 * n), n - round(0.4 * n) - round(0.1 * n)]
    again = split(labels, who, Config())
    np.testing.assert_array_equal(parts.test, again.test)
    assert not np.array_equal(parts.test, split(labels, who, Config(seed=43)).test)
    order = np.random.default_rng(1).permutation(len(who))  # the order of the table changes nothing
    mixed = split([labels[k] for k in order], [who[k] for k in order], Config())
    assert {who[order[k]] for k in mixed.train} == sides[0]


def test_the_settings_are_the_protocols() -> None:
    probe = read("fomo26").probe
    assert probe is not None
    assert Config.of(probe) == Config()
    assert probe.test == pytest.approx(1 - Config().train - Config().validation)


def test_a_small_or_single_class_is_told() -> None:
    with pytest.raises(InputError, match=r"rare \(2\)"):
        split(["a"] * 9 + ["rare"] * 2, [str(k) for k in range(11)], Config())
    with pytest.raises(InputError, match="two classes"):
        split(["a"] * 9, [str(k) for k in range(9)], Config())
    parts = split(["a"] * 3 + ["b"] * 3, [str(k) for k in range(6)], Config())
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [2, 2, 2]


def test_descent_finds_the_logistic_regression_of_scikit_learn() -> None:
    features, labels, _ = people(90, 3, 5)
    truth = np.unique(labels, return_inverse=True)[1]
    decay = 0.05
    weights = descend(features, truth, 3, rate=0.1, steps=4000, decay=decay)
    reference = LogisticRegression(C=1 / (decay * len(features)), tol=1e-10, max_iter=10_000).fit(features, truth)
    ours = softmax(np.column_stack([features, np.ones(len(features))]) @ weights)
    np.testing.assert_allclose(ours, reference.predict_proba(features), atol=1e-5)


def test_the_scores_are_scikit_learns() -> None:
    features, labels, who = people()
    rows, probed = linear_probe.assess(features, labels, who, model="m", target="health", config=Config(resamples=200))
    test = probed.parts.test
    truth, probability = probed.truth[test], probed.probability[test]
    by = {(row.metric, row.region): row for row in rows}
    assert by["auroc", "all"].value == pytest.approx(roc_auc_score(truth, probability, multi_class="ovr", average="macro"))
    assert by["macro_f1", "all"].value == pytest.approx(f1_score(truth, probability.argmax(1), average="macro"))
    assert by["auroc", "class 1"].value == pytest.approx(roc_auc_score(truth == 1, probability[:, 1]))
    for row in rows:
        assert row.low is not None
        assert row.high is not None
        assert row.value is not None
        assert row.low <= row.value <= row.high
        assert row.n == len(test)
    assert (by["auroc", "all"].value or 0) > 0.8
    best = max(probed.validation.values())
    assert probed.validation[probed.learning_rate] == best
    assert probed.learning_rate == min(rate for rate, value in probed.validation.items() if value == best)
    assert fit(features, labels, who).learning_rate == probed.learning_rate


def test_two_classes_give_the_ordinary_auroc() -> None:
    draw = np.random.default_rng(2)
    truth = draw.integers(0, 2, 60)
    p = draw.random(60) * 0.5 + truth * 0.2
    assert auroc_one_vs_rest(truth, np.column_stack([1 - p, p])) == pytest.approx(roc_auc_score(truth, p))
    assert np.isnan(auroc_one_vs_rest(np.zeros(4, dtype=int), np.ones((4, 2))))


def test_noise_knows_nothing() -> None:
    features, labels, who = people(400, signal=0)
    rows, _ = linear_probe.assess(features, labels, who, model="m", target="x", config=Config(resamples=200))
    row = rows[0]
    assert row.low is not None
    assert row.high is not None
    assert row.low < 0.5 < row.high


def test_bad_embeddings_are_told() -> None:
    features, labels, who = people(30)
    with pytest.raises(InputError, match="differ in length"):
        fit(features, labels[:-1], who)
    with pytest.raises(InputError, match="1 of 30 rows"):
        fit(np.where(np.arange(30)[:, None] == 3, np.nan, features), labels, who)
    with pytest.raises(InputError, match="are the same"):
        fit(np.ones_like(features), labels, who)


def test_embeddings_meet_the_participants_table(tmp_path: Path) -> None:
    scans = pd.DataFrame({
        "scan": list("abcde"), "subject": ["x/sub-1", "x/sub-1", "x/sub-2", "x/sub-3", "x/sub-4"], "session": [""] * 5,
        "contrast": ["T1w", "FLAIR", "T1w", "T1w", "T1w"], "status": ["ok", "ok", "ok", "failed", "ok"],
        "whole_vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], None, [7.0, 8.0]],
    })  # fmt: skip
    scans.to_parquet(tmp_path / "embeddings.parquet")
    people = tmp_path / "participants.tsv"
    people.write_text("participant_id\tage\thealth\nsub-1\t40\tms\nx/sub-2\tn/a\thealthy\nsub-3\t50\tms\nsub-4\t60\tn/a\n")
    table = linear_probe.read_table(tmp_path, people, "health")
    np.testing.assert_array_equal(table.embeddings, [[1, 2], [3, 4], [5, 6]])
    assert table.labels == ("ms", "ms", "healthy")
    assert table.subjects == ("x/sub-1", "x/sub-1", "x/sub-2")
    assert table.columns == {"age": ("40", "40", None)}
    assert table.left_out == {"not embedded": 1, "no value in health": 1}
    assert linear_probe.read_table(tmp_path, people, "health", contrasts=["T1w"]).labels == ("ms", "healthy")
    with pytest.raises(InputError, match="did you mean 'health'"):
        linear_probe.read_table(tmp_path, people, "helth")
    with pytest.raises(InputError, match="5 another contrast"):
        linear_probe.read_table(tmp_path, people, "health", contrasts=["ADC"])
    people.write_text("participant_id\thealth\nsub-1\tms\nsub-1\tms\n")
    with pytest.raises(InputError, match="twice"):
        linear_probe.read_table(tmp_path, people, "health")
    with pytest.raises(InputError, match="neuroprior embed"):
        linear_probe.read_table(tmp_path / "nowhere", people, "health")


# ------------------------------------------------------------------------------------------------------------------ fairness


def test_the_fairness_score_by_hand() -> None:
    groups = {"sex": {"F": 0.9, "M": 0.8}, "age": {"young": 0.7, "middle": 0.95, "old": 0.6}, "site": {"only": 0.9}}
    assert fairness.score(groups) == pytest.approx(((1 - 0.1) + (1 - 0.35)) / 2)
    assert fairness.score({"sex": {"F": 0.8, "M": 0.8, "n": float("nan")}}) == 1
    assert np.isnan(fairness.score({"sex": {"F": 0.8}}))


def test_numbers_become_groups() -> None:
    config = fairness.Config()
    names = fairness.group_names("age", [20, 30, 40, 50, 60, 70, None, float("nan")], config)
    assert names == ["< 36.6667"] * 2 + ["36.6667 to 53.3333"] * 2 + [">= 53.3333"] * 2 + [None] * 2
    fixed = fairness.group_names("age", [39, 40, "59.9", 60, "n/a"], fairness.Config(edges={"age": (40, 60)}))
    assert fixed == ["< 40", "40 to 60", "40 to 60", ">= 60", None]
    assert fairness.group_names("sex", ["F", "M", "", None], config) == ["F", "M", None, None]
    assert fairness.group_names("field", [1.5, 3.0], config) == ["1.5", "3.0"]
    with pytest.raises(InputError, match="edges of 'age'"):
        fairness.group_names("age", [1, 2], fairness.Config(edges={"age": (60, 40)}))


def test_a_probe_that_fails_one_sex_is_unfair() -> None:
    draw = np.random.default_rng(5)
    n = 400
    truth, sex = draw.integers(0, 2, n), draw.integers(0, 2, n)
    features = draw.normal(size=(n, 6))
    features[:, 0] += 3 * truth * (sex == 0)  # the class shows in one sex only
    who = [f"s{k}" for k in range(n)]
    config = fairness.Config(resamples=200)
    variables = {
        "sex": ["FM"[k] for k in sex],
        "site": [["a", "b"][k % 2] for k in range(n)],
        "rare": ["x"] * (n - 2) + ["y"] * 2,
    }
    probed = fit(features, ["no" if t == 0 else "yes" for t in truth], who)
    rows = {
        (row.metric, row.region): row
        for row in fairness.assess_probe(probed, variables, model="m", target="health", config=config)
    }
    test = probed.parts.test
    by_sex = [roc_auc_score(truth[test][sex[test] == k], probed.probability[test][sex[test] == k, 1]) for k in (0, 1)]
    assert rows["auroc", "sex=F"].value == pytest.approx(by_sex[0])
    assert rows["fairness", "sex"].value == pytest.approx(1 - abs(by_sex[0] - by_sex[1]))
    assert rows["fairness", "site"].value is not None
    assert rows["fairness", "all"].value == pytest.approx(np.mean([rows["fairness", name].value for name in ("sex", "site")]))
    assert rows["fairness", "rare"].value is None
    assert rows["auroc", "rare=x"].value is not None
    low, high = rows["fairness", "all"].low, rows["fairness", "all"].high
    assert low is not None
    assert high is not None
    assert 0 <= low <= high <= 1
    assert (rows["fairness", "sex"].value or 1) < 0.8
    left_out = [row for row in rows.values() if row.value is None and "are needed" in row.note]
    assert all(row.region == "rare=y" for row in left_out)
    with pytest.raises(InputError, match="another length"):
        fairness.assess_probe(probed, {"sex": ["F"]}, model="m", target="x")
