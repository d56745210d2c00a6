"""The disentanglement table on features whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from neuroprior.assessments import _identity as identity
from neuroprior.assessments import _probes as probes
from neuroprior.assessments import disentanglement as d
from neuroprior.core.errors import InputError, LeakageError

QUICK = d.Config(resamples=200, permutations=50, probes=d.ProbeConfig(epochs=15))
CONTRASTS, SCANNERS = ("T1w", "T2w", "FLAIR"), ("A", "B")


def family(n_fit: int = 20, n: int = 20, seed: int = 0) -> tuple[d.Scans, dict[str, np.ndarray]]:
    """Every subject in every contrast on two scanners, and codes of subject, contrast and scanner for each scan."""
    draw = np.random.default_rng(seed)
    rows = [(s, c, m) for s in range(n_fit + n) for m in range(2) for c in range(3)]
    s, c, m = (np.array(column) for column in zip(*rows, strict=True))
    own = draw.normal(size=(n_fit + n, 12))
    age = 50 + 10 * own[:, 0] + 2 * draw.normal(size=n_fit + n)
    scans = d.Scans.of(
        [f"sub-{k:02d}" for k in s], [CONTRASTS[k] for k in c], (s < n_fit).tolist(), scanners=[SCANNERS[k] for k in m],
        classes={"sex": [("F", "M")[int(own[k, 1] > 0)] for k in s]},
        numbers={"age": age[s], "volumes": np.stack([own[s, 2], own[s, 3]], -1), "fixed": np.ones(len(s))},
    )  # fmt: skip
    noise = 0.05 * draw.normal(size=(len(s), 12))
    code = draw.normal(size=(3, 12))
    return scans, {"subject": own[s] + noise, "contrast": code[c] + noise, "noise": draw.normal(size=(len(s), 12)), "who": s}


def halves(anatomy: np.ndarray, contrast: np.ndarray, model: str = "net") -> list[d.Features]:
    return [
        d.Features(model, "anatomy", anatomy, anatomy, sampled=anatomy),
        d.Features(model, "contrast", contrast, contrast, sampled=contrast),
    ]


@pytest.fixture(scope="module")
def known() -> tuple[d.Assessment, d.Scans, dict[str, np.ndarray]]:
    scans, codes = family()
    features = halves(codes["subject"], codes["contrast"]) + halves(codes["noise"], np.ones((len(scans.cases), 4)), "other")
    return d.assess(features, scans, QUICK), scans, codes


def value(made: d.Assessment, half: str, target: str, metric: str, model: str = "net") -> float:
    row = made.score(model, target, metric, half)
    assert row.value is not None and row.low is not None and row.high is not None, row
    assert row.low <= row.high
    assert row.n > 0
    return row.value


def test_a_perfect_split_is_told_as_one(known: Any) -> None:
    made = known[0]
    for kind in ("contrasts", "scanners", "scanners and contrasts"):
        assert value(made, "anatomy", f"subject across {kind}", "retrieval_top1") == 1
        assert value(made, "anatomy", f"subject across {kind}", "retrieval_mean_rank") == 1
        assert value(made, "contrast", f"subject across {kind}", "retrieval_top1") < 0.25
    assert "chance 0.05" in made.score("net", "subject across contrasts", "retrieval_top1", "anatomy").note
    for probe in ("linear", "knn", "mlp"):
        assert value(made, "contrast", "contrast", f"{probe}_balanced_accuracy") == 1
        assert value(made, "anatomy", "contrast", f"{probe}_balanced_accuracy") < 0.45
    for probe in ("linear", "knn"):
        assert value(made, "anatomy", "sex", f"{probe}_balanced_accuracy") > 0.7
        assert value(made, "contrast", "sex", f"{probe}_balanced_accuracy") < 0.7
    assert value(made, "anatomy", "age", "linear_r2") > 0.85
    assert value(made, "contrast", "age", "linear_r2") < 0.1
    assert value(made, "anatomy", "volumes", "linear_r2") > 0.95
    assert value(made, "anatomy", "scanners", "icc_median") > 0.95
    assert value(made, "anatomy", "scanners", "icc_pc1") > 0.95
    assert abs(value(made, "contrast", "scanners", "icc_pc1")) < 0.3
    assert len(made.subjects) == 20
    ratio = made.score("net", "subject", "variance_ratio_contrasts", "anatomy", "sampled")
    assert ratio.value is not None and ratio.value > 100
    ratio = made.score("net", "subject", "variance_ratio_contrasts", "contrast", "sampled")
    assert ratio.value is not None and ratio.value < 0.01


def test_noise_is_at_chance_and_its_interval_says_so(known: Any) -> None:
    made = known[0]
    for target, metric, chance in (
        ("subject across contrasts", "retrieval_top1", 1 / 20), ("subject across scanners", "retrieval_mean_rank", 10.5),
        ("contrast", "linear_balanced_accuracy", 1 / 3), ("scanner", "knn_balanced_accuracy", 1 / 2),
    ):  # fmt: skip
        row = made.score("other", target, metric, "anatomy")
        assert row.low is not None and row.high is not None
        margin = 0.5 * (row.high - row.low)
        assert row.low - margin <= chance <= row.high + margin, row


def test_constant_features_and_constant_targets_give_reasons(known: Any) -> None:
    made = known[0]
    rows = [
        row for row in made.scores if row.model == "other" and row.region == "contrast" and row.condition in ("pooled", "spatial")
    ]
    assert rows
    for row in rows:
        assert row.value is None or not np.isnan(row.value)
        assert row.note, row
        assert row.value is None
    assert "same in all fitting scans" in made.score("net", "fixed", "linear_r2", "anatomy").note
    assert "same for every scan" in made.score("other", "halves", "cross_covariance", "anatomy and contrast").note


def test_the_halves_cross_covariance_is_one_for_copies_and_its_floor_for_strangers(known: Any) -> None:
    _, scans, codes = known
    made = d.assess(
        halves(codes["subject"], 3 - 2 * codes["subject"]) + halves(codes["noise"], codes["contrast"], "apart"), scans, QUICK
    )
    region = "anatomy and contrast"
    assert made.score("net", "halves", "cross_covariance", region).value == pytest.approx(1)
    apart = made.score("apart", "halves", "cross_covariance", region)
    floor = float(apart.note.split("shuffled scans give ")[1].split()[0])
    assert apart.value == pytest.approx(floor, abs=0.05)
    a, b = (x[~scans.fit] - x[~scans.fit].mean(0) for x in (codes["noise"], codes["contrast"]))
    a, b = a / a.std(0), b / b.std(0)
    direct = np.sum((a.T @ b) ** 2) / np.sqrt(np.sum((a.T @ a) ** 2) * np.sum((b.T @ b) ** 2))
    assert apart.value == pytest.approx(direct)


def test_retrieval_equals_a_plain_search() -> None:
    scans, codes = family(0, 7, seed=3)
    rows = np.arange(len(scans.cases))
    x = codes["noise"] - codes["noise"].mean(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    hits = []
    for q in rows:
        for p in rows:
            if scans.sessions[q] == scans.sessions[p] and q != p:
                alike = [r for r in rows if scans.contrasts[r] == scans.contrasts[p] and scans.scanners[r] == scans.scanners[p]]
                hits.append(max(alike, key=lambda r: x[q] @ x[r]) == p)
    found = identity.retrieve(identity.cosine(codes["noise"]), scans, rows, "contrasts")
    assert found.top1.mean() == pytest.approx(np.mean(hits))
    assert set(found.gallery) == {7}


def test_time_points_are_found_and_ties_are_chance() -> None:
    scans = d.Scans.of(
        [f"s{k}" for k in range(5) for _ in range(2)], ["T1w"] * 10, [False] * 10, times=[30.0, 32.5] * 5, scanners=["A"] * 10
    )
    rows = np.arange(10)
    own = np.repeat(np.eye(5), 2, axis=0)
    assert identity.retrieve(identity.cosine(own), scans, rows, "time").top1.mean() == 1
    flat = identity.retrieve(np.ones((10, 10)), scans, rows, "time")
    assert flat.top1.mean() == pytest.approx(1 / 5)
    assert flat.rank.mean() == pytest.approx(3)
    assert identity.retrieve(identity.cosine(own), scans, rows, "contrasts").rows.size == 0


def test_a_subject_on_both_sides_is_a_leak() -> None:
    with pytest.raises(LeakageError, match="both fitted on and evaluated"):
        d.Scans.of(["a", "a", "b"], ["T1w", "T2w", "T1w"], [True, False, False])
    with pytest.raises(InputError, match="no scan to evaluate"):
        d.Scans.of(["a", "b"], ["T1w", "T2w"], [True, True])


def test_arrays_that_do_not_fit_are_refused() -> None:
    scans, codes = family(4, 4)
    with pytest.raises(InputError, match="does not fit"):
        d.assess([d.Features("net", "anatomy", codes["noise"][:3])], scans, QUICK)
    with pytest.raises(InputError, match="not finite"):
        d.assess([d.Features("net", "anatomy", np.full_like(codes["noise"], np.nan))], scans, QUICK)
    with pytest.raises(InputError, match="given twice"):
        d.assess([d.Features("net", "anatomy", codes["noise"])] * 2, scans, QUICK)


def test_without_fitting_scans_probes_give_a_reason_and_retrieval_a_number() -> None:
    scans, codes = family(0, 6)
    made = d.assess(halves(codes["subject"], codes["contrast"]), scans, QUICK)
    assert made.score("net", "subject across contrasts", "retrieval_top1", "anatomy").value == 1
    assert "no scans to fit on" in made.score("net", "age", "linear_r2", "anatomy").note


def test_intervals_hold_the_truth() -> None:
    """Of twenty families, the interval of an accuracy holds the accuracy of the whole population in nearly all."""
    inside = 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        subjects = np.repeat([f"s{k}" for k in range(40)], 2)
        right = (draw.random(80) < np.repeat(draw.choice([0.5, 0.9], 40), 2)).astype(float)  # 0.7 on average, alike in a subject
        scans = d.Scans.of(subjects.tolist(), ["T1w", "T2w"] * 40, [False] * 80)
        table = d._Table(d.Config(resamples=400, seed=seed), scans, np.arange(80))
        table.add("m", "t", "accuracy", "r", "pooled", table.mean(np.arange(80), right))
        low, high = table.scores[0].low, table.scores[0].high
        assert low is not None and high is not None
        inside += low <= 0.7 <= high
    assert inside >= 17


def test_weighted_statistics_equal_their_plain_forms_on_repeated_subjects() -> None:
    scans, _ = family(6, 9)
    table = d._Table(d.Config(resamples=5), scans, np.flatnonzero(~scans.fit))
    draw = np.random.default_rng(0)
    rows = np.repeat(table.rows, 3)
    y = draw.normal(size=(len(rows), 1))
    guess = probes.Guess(rows, y, y + draw.normal(size=y.shape), constant=np.array([0.3]))
    cells = probes.Guess(rows, (draw.random(len(rows)) < 0.3).astype(float), np.round(draw.normal(size=len(rows)), 1))
    strata = draw.integers(0, 3, len(rows))
    labels = probes.Guess(rows, draw.integers(0, 3, len(rows)), draw.integers(0, 3, len(rows)), classes=3)
    r2, auroc = d._r2(table, guess)(table.weights), d._auroc(table, cells, np.zeros_like(strata))(table.weights)
    apart, balanced = d._auroc(table, cells, strata)(table.weights), d._balanced_accuracy(table, labels)(table.weights)
    for n, weights in enumerate(table.weights):
        repeat = np.repeat(np.arange(len(rows)), weights[table.place[rows]].astype(int))
        error, floor = ((guess.guess - y)[repeat] ** 2).sum(), ((y - 0.3)[repeat] ** 2).sum()
        assert r2[n] == pytest.approx(1 - error / floor)
        assert auroc[n] == pytest.approx(roc_auc_score(cells.truth[repeat], cells.guess[repeat]))
        wins = pairs = 0.0
        for k in range(3):
            inner = repeat[strata[repeat] == k]
            yes, no = cells.guess[inner][cells.truth[inner] == 1], cells.guess[inner][cells.truth[inner] == 0]
            wins += (yes[:, None] > no).sum() + 0.5 * (yes[:, None] == no).sum()
            pairs += len(yes) * len(no)
        assert apart[n] == pytest.approx(wins / pairs)
        recalls = [np.mean(labels.guess[repeat][labels.truth[repeat] == k] == k) for k in range(3)]
        assert balanced[n] == pytest.approx(np.mean(recalls))


def test_both_forms_of_the_linear_probe_agree_with_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    draw = np.random.default_rng(0)
    y = draw.normal(size=(40, 2))
    for width in (10, 200):
        x = draw.normal(size=(60, width)) / np.sqrt(width)
        x[:40] -= x[:40].mean(0)
        found = probes.Linear(x).guess(np.arange(40), np.arange(40, 60), y, None, 0.5)
        np.testing.assert_allclose(found, Ridge(alpha=0.5).fit(x[:40], y).predict(x[40:]), atol=2e-3)


def test_a_probe_learns_what_one_scan_cannot_hide() -> None:
    scans, codes = family(30, 20, seed=2)
    standard = probes.standardise(codes["subject"], scans.fit)
    assert standard is not None
    made = probes.regress(standard, {"age": scans.numbers["age"]}, scans.fit, scans.subjects.astype(str), QUICK.probes)
    guess = made["age", "linear"]
    assert r2_score(guess.truth, guess.guess) > 0.85
    assert not set(scans.subjects[guess.rows]) & set(scans.subjects[scans.fit])


def lesions_in_cells(scans: d.Scans, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lesions that prefer one cell, and features in which only the first shows them."""
    draw = np.random.default_rng(seed)
    n = len(scans.cases)
    likely = np.array([0.5, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02])
    lesions = (draw.random((n, 8)) < likely).astype(float)
    lesions[:, 7][:4] = np.nan
    return lesions, np.stack([np.nan_to_num(lesions) * 3 + draw.normal(size=(n, 8)), draw.normal(size=(n, 8))], -1)


def test_lesions_are_found_in_cells_and_their_place_alone_is_worth_nothing() -> None:
    from dataclasses import replace

    scans, _ = family(30, 30)
    lesions, cells = lesions_in_cells(scans)
    scans = replace(scans, lesions=lesions)
    place = np.broadcast_to(np.eye(8), (len(lesions), 8, 8))
    made = d.assess(
        [d.Features("net", "contrast", cells=cells), d.Features("blind", "contrast", cells=cells[..., 1:]), d.Features("place", "contrast", cells=place)],
        scans, QUICK,
    )  # fmt: skip
    found = {
        m: made.score(m, "lesion", "linear_auroc_same_place", "contrast", "cells, T1w").value for m in ("net", "blind", "place")
    }
    assert found["net"] is not None and found["net"] > 0.95
    assert found["blind"] is not None and abs(found["blind"] - 0.5) < 0.15
    assert found["place"] == 0.5
    anywhere = made.score("place", "lesion", "linear_auroc", "contrast", "cells, T1w").value
    assert anywhere is not None and anywhere > 0.75
    with pytest.raises(InputError, match="not those of the lesions"):
        d.assess([d.Features("net", "contrast", cells=cells[:, :5])], scans, QUICK)


def test_rows_are_compared_draw_by_draw_and_tables_survive_the_disk(known: Any, tmp_path: Path) -> None:
    made, scans, codes = known
    key = ("subject across contrasts", "retrieval_top1", "anatomy", "pooled")
    found = d.difference(made, ("net", *key), ("other", *key))
    assert found["clear"] and found["difference"] > 0.8
    same = d.difference(made, ("net", *key), ("net", *key))
    assert (same["difference"], same["low"], same["high"], same["clear"]) == (0, 0, 0, False)
    d.write(made, tmp_path / "probes.parquet")
    again = d.read(tmp_path / "probes.parquet")
    assert again.scores == made.scores and again.subjects == made.subjects
    assert d.difference(again, ("net", *key), ("other", *key)) == found
    third = d.assess(halves(codes["noise"], codes["noise"], "third"), scans, QUICK)
    assert d.difference(d.merge([again, third]), ("net", *key), ("third", *key))["clear"]
    with pytest.raises(InputError, match="in two of the tables"):
        d.merge([made, again])
    fewer, _ = family(20, 19)
    with pytest.raises(InputError, match="same draws"):
        d.merge([made, d.assess([d.Features("x", "anatomy", codes["noise"][: len(fewer.cases)])], fewer, QUICK)])
    with pytest.raises(InputError, match="no value to compare"):
        d.difference(made, ("net", *key), ("other", "age", "linear_r2", "contrast", "pooled"))
