"""Calibration, selective prediction, conformal intervals, fairness, domain shift, rare things, cost: numbers against their definitions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from neuroprior.assessments import _panel, calibration, conformal, cost, domain_shift, fairness, rare, selective
from neuroprior.assessments._answers import NOT_ASSESSED, answers
from neuroprior.assessments.significance import read_scores
from neuroprior.core import shelf
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.records import Score
from neuroprior.inference.calibration import temper

from .made import classified, context, masks, numbers, several_classes, table


def people(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = ["yes" if rng.random() < 0.4 else "no" for _ in range(n)]
    p = np.clip(rng.beta(2, 4, n) + 0.3 * (np.array(truth) == "yes"), 0.01, 0.99)
    return truth, p


def groups_by(labels: list[str], variable: str = "sex") -> dict[str, dict[str, str]]:
    return {f"c{k:04}": ({variable: label} if label else {}) for k, label in enumerate(labels)}


# --------------------------------------------------------------------------------------------------------------- panel


@pytest.mark.parametrize("name", _panel.NAMES)
def test_every_assessment_is_on_the_shelf_with_one_shape(name: str) -> None:
    module = shelf.load("assessments", name)
    assert module.Config() == module.Config.model_validate({})
    assert shelf.about("assessments", name)
    truth, p = people(30)
    for found in (classified(truth, p), numbers(np.arange(30.0), np.arange(30.0) + 1)):
        rows = module.assess(found, {}, {})
        assert rows and all(isinstance(row, Score) and row.case == "all" for row in rows)
        for row in rows:
            assert row.value is not None or row.note, f"{row.metric} {row.region} has neither a value nor a reason"


def test_unknown_assessments_are_named() -> None:
    assert _panel.chosen("all") == _panel.NAMES
    assert _panel.chosen("none") == ()
    assert _panel.chosen("cost, calibration") == ("calibration", "cost")
    with pytest.raises(ConfigError, match="fairness"):
        _panel.chosen("fairnes")


def test_everything_can_be_computed_again_from_the_table(tmp_path: Path) -> None:
    from neuroprior.assessments._tables import write_scores

    truth, p = people(60)
    found = classified(truth, p)
    groups = groups_by(["F" if k % 2 else "M" for k in range(60)])
    rows = _panel.run(_panel.NAMES, found, groups, {})
    whole = [*found.rows, context("classification").row("all", "all", "auroc", "all", 0.5, "positive class yes, 24 of 60")]
    write_scores([*whole, *rows], tmp_path / "s.parquet", {})
    again = answers(context("classification"), read_scores(tmp_path / "s.parquet"))
    assert _panel.run(_panel.NAMES, again, groups, {}) == rows


def test_impossible_input_of_one_assessment_is_a_row() -> None:
    classes = ["a", "b", "c"]
    p = np.full((12, 3), 0.5)
    rows = _panel.run(("calibration",), several_classes(["a", "b", "c"] * 4, p, classes), {}, {})
    assert [(row.metric, row.region) for row in rows] == [(NOT_ASSESSED, "calibration")]
    assert "do not sum to one" in rows[0].note


# --------------------------------------------------------------------------------------------------------- calibration


def test_calibration_by_definition() -> None:
    truth, p = people(80)
    yes = np.array(truth) == "yes"
    rows = table(calibration.assess(classified(truth, p), {}, {}))
    place = np.minimum((p * 10).astype(int), 9)
    gap = [abs(yes[place == b].mean() - p[place == b].mean()) * (place == b).mean() for b in np.unique(place)]
    assert rows["ece_class_wise", "all"].value == pytest.approx(np.sum(gap), abs=0.02)  # the other class has other bins
    share = np.array([yes[place == b].mean() for b in place])
    mean = np.array([p[place == b].mean() for b in place])
    assert rows["brier_reliability", "all"].value == pytest.approx(np.mean((mean - share) ** 2))
    assert rows["brier_resolution", "all"].value == pytest.approx(np.mean((share - yes.mean()) ** 2))
    assert rows["brier_uncertainty", "all"].value == pytest.approx(yes.mean() * (1 - yes.mean()))
    assert not [region for _, region in rows if "temperature" in region]


def test_before_and_after_are_paired() -> None:
    truth, before = people(80)
    yes = np.array(truth) == "yes"
    after = temper(np.stack([1 - before, before], 1), 1.7)[:, 1]
    rows = table(calibration.assess(classified(truth, after), {}, {"calibration": {"n": 20, "temperature": 1.7}}))
    for name, score in (("nll", sk.log_loss), ("brier", sk.brier_score_loss)):
        b, a = score(yes, before), score(yes, after)
        assert rows[name, "before temperature"].value == pytest.approx(b, abs=1e-9)
        assert rows[name, "after temperature"].value == pytest.approx(a, abs=1e-9)
        row = rows[name, "after - before temperature"]
        assert row.value == pytest.approx(a - b, abs=1e-9)
        alone = rows[name, "after temperature"]
        assert row.high - row.low < alone.high - alone.low  # type: ignore[operator]  # what both share is taken out


def test_ece_of_a_calibrated_simulator_goes_to_zero_and_of_a_miscalibrated_one_to_its_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 20_000)
    for shift, wanted in ((0.0, 0.0), (0.2, None)):
        sure = np.clip(p + shift * np.sign(p - 0.5) * (1 - np.abs(2 * p - 1)), 0, 1)
        truth = ["yes" if rng.random() < q else "no" for q in p]
        value = table(calibration.assess(classified(truth, sure, resamples=0), {}, {}))["ece_top_label", "all"].value
        assert value == pytest.approx(float(np.mean(np.abs(sure - p))) if wanted is None else wanted, abs=0.01)


def test_each_of_several_classes() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet([1, 1, 1], 90)
    classes = ["a", "b", "c"]
    truth = [classes[rng.choice(3, p=row)] for row in p]
    rows = table(calibration.assess(several_classes(truth, p, classes), {}, {}))
    onehot = np.array([[name == c for c in classes] for name in truth])
    assert rows["nll_multiclass", "all"].value == pytest.approx(sk.log_loss(truth, p, labels=classes))
    assert rows["brier_multiclass", "all"].value == pytest.approx(((p - onehot) ** 2).sum(1).mean())
    for k, name in enumerate(classes):
        assert rows["brier", f"class={name}"].value == pytest.approx(sk.brier_score_loss(onehot[:, k], p[:, k]))


# ----------------------------------------------------------------------------------------------------------- selective


def test_aurc_and_risks_by_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    truth, guess, spread = rng.normal(50, 10, 25), rng.normal(50, 10, 25), rng.gamma(2, 1, 25)
    rows = table(selective.assess(numbers(truth, guess, spread=spread), {}, {}))
    loss = np.abs(truth - guess)
    order = np.argsort(spread)
    risk = [loss[order[:k]].mean() for k in range(1, 26)]
    best = [np.sort(loss)[:k].mean() for k in range(1, 26)]
    assert rows["aurc", "all"].value == pytest.approx(np.mean(risk))
    assert rows["excess_aurc", "all"].value == pytest.approx(np.mean(risk) - np.mean(best))
    assert rows["risk", "all"].value == pytest.approx(loss.mean())
    assert rows["risk_at_coverage", "coverage=0.8"].value == pytest.approx(risk[19])
    assert rows["risk_at_coverage", "coverage=0.5"].value == pytest.approx(risk[12])
    for row in rows.values():
        assert row.low <= row.value <= row.high  # type: ignore[operator]
        assert "loss: absolute error" in row.note


def test_failed_cases_are_the_least_sure() -> None:
    truth, p = ["yes", "yes", "no", "no", "yes", "no"], np.array([0.9, 0.8, 0.1, 0.2, np.nan, 0.4])
    found = classified(truth, p, notes=["", "", "", "", "failed: broken", ""])
    assert found.failed.tolist() == [False] * 4 + [True, False]
    rows = table(selective.assess(found, {}, {}))
    assert rows["risk_at_coverage", "coverage=0.8"].value == 0
    assert rows["risk", "all"].value == pytest.approx(1 / 6)
    assert "1 failed cases are the least sure" in rows["aurc", "all"].note


def test_selective_says_why_not() -> None:
    flat = selective.assess(numbers(np.arange(8.0), np.arange(8.0), half=2.0), {}, {})
    assert (flat[0].metric, flat[0].note) == (NOT_ASSESSED, "all cases are equally sure")
    none = selective.assess(numbers(np.arange(8.0), np.arange(8.0)), {}, {})
    assert none[0].note == "the predictions do not say how sure they are"


# ----------------------------------------------------------------------------------------------------------- conformal


def test_coverage_has_a_binomial_interval_and_groups_of_two_say_so() -> None:
    truth = np.arange(20.0)
    guess = truth + np.where(np.arange(20) < 15, 1.0, 9.0)
    labels = ["F"] * 2 + ["M"] * 17 + [""]
    rows = table(conformal.assess(numbers(truth, guess, half=5.0), groups_by(labels), {"calibration": {"n": 30, "level": 0.9}}))
    wanted = stats.binomtest(15, 20).proportion_ci(method="wilson")
    row = rows["coverage", "all"]
    assert (row.value, row.low, row.high) == (0.75, pytest.approx(wanted.low), pytest.approx(wanted.high))
    assert row.note == "promised 0.9; the promise is not kept"  # 0.89 at most
    two = rows["coverage", "sex=F"]
    assert (two.value, two.n) == (1.0, 2)
    assert two.note == "promised 0.9; 2 cases: the interval says how little that tells"
    assert two.low == pytest.approx(stats.binomtest(2, 2).proportion_ci(method="wilson").low)
    assert rows["interval_width", "all"].value == pytest.approx(10)
    assert rows["interval_score", "all"].value == pytest.approx(10 + 2 / 0.1 * 5 * (9 - 5) / 20)
    exact = table(conformal.assess(numbers(truth, guess, half=5.0), {}, {}, conformal.Config(binomial="exact")))[
        "coverage", "all"
    ]
    wanted = stats.binomtest(15, 20).proportion_ci(method="exact")
    assert (exact.low, exact.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))


def test_split_conformal_intervals_are_covered_at_their_level() -> None:
    """95 % +- 2 on 500 draws is asked: here 90 % promised, 500 draws of calibration and test."""
    from neuroprior.inference.calibration import conformal as half_width

    rng = np.random.default_rng(0)
    inside = []
    for _ in range(500):
        width = half_width(rng.standard_t(3, 39), 0.9).value
        inside.append(np.mean(np.abs(rng.standard_t(3, 50)) <= width))
    assert abs(np.mean(inside) - 0.9) < 0.02


def test_volumes_of_masks_have_intervals_too() -> None:
    block = np.zeros((12, 12, 12), dtype=int)
    block[2:8, 2:8, 2:8] = 1
    _, rows = masks([(block, block)] * 6)
    where = context("segmentation", "lesion")
    for k in range(6):
        rows.append(where.row(f"c{k:04}", f"s{k:04}", "interval_low", "lesion", 0.1))
        rows.append(where.row(f"c{k:04}", f"s{k:04}", "interval_high", "lesion", 0.2 + 0.01 * k))
    found = table(conformal.assess(answers(where, rows), {}, {}))
    assert found["coverage", "lesion, all"].value == pytest.approx(4 / 6)  # 0.216 ml lies below 0.22 and more
    assert found["interval_width", "lesion, all"].value == pytest.approx(0.125)


# ------------------------------------------------------------------------------------------------------------ fairness


def test_the_gap_the_worst_group_and_chance() -> None:
    rng = np.random.default_rng(3)
    n = 60
    labels = ["F" if k % 2 else "M" for k in range(n)]
    error = np.where(np.arange(n) % 2, rng.uniform(0, 2, n), rng.uniform(4, 8, n))
    truth = rng.normal(50, 10, n)
    found = numbers(truth, truth + error, half=3.0)
    rows = table(fairness.assess(found, groups_by(labels), {}))
    women, men = error[1::2].mean(), error[::2].mean()
    assert rows["mae", "sex=F"].value == pytest.approx(women)
    gap = rows["mae_gap", "sex"]
    assert gap.value == pytest.approx(men - women)
    assert gap.low < gap.value < gap.high  # type: ignore[operator]
    assert re.search(r"p = 0\.00\d+ when groups are dealt at random", gap.note)
    worst = rows["mae_worst_group", "sex"]
    assert (worst.value, worst.note) == (pytest.approx(men), "worst group: M")
    assert rows["coverage_gap", "sex"].value == pytest.approx(1)
    assert rows["coverage_worst_group", "sex"].note.startswith("worst group: M")


def test_honest_groups_have_a_gap_but_no_evidence() -> None:
    rng = np.random.default_rng(4)
    small = 0
    for trial in range(40):
        truth = np.zeros(30)
        found = numbers(truth, rng.normal(0, 1, 30), resamples=0)
        labels = ["abc"[k % 3] for k in range(30)]
        row = fairness.assess(found, groups_by(labels), {}, fairness.Config(metrics={"regression": ("mae",)}))[-2]
        assert row.metric == "mae_gap" and row.value > 0, trial  # type: ignore[operator]
        p = re.search(r"p = ([\d.e-]+)", row.note)
        assert p
        small += float(p[1]) < 0.05
    assert small <= 5  # 2 expected


def test_a_group_of_two_is_shown_and_not_compared() -> None:
    truth, p = people(30)
    labels = ["F"] * 2 + ["M"] * 14 + ["X"] * 14
    rows = table(fairness.assess(classified(truth, p), groups_by(labels), {}))
    row = rows["balanced_accuracy", "sex=F"]
    assert (row.n, row.low) == (2, None)
    assert "2 subjects, 5 are needed to be compared" in row.note
    assert "sex=F left out: 2 subjects" in rows["brier_gap", "sex"].note
    assert rows["brier_gap", "sex"].n == 28
    gaps = rows["auroc_gap", "sex"].value
    assert gaps is not None
    yes, place = np.array(truth) == "yes", np.arange(30)
    by_hand = [sk.roc_auc_score(yes[part], p[part]) for part in (place[2:16], place[16:])]
    assert gaps == pytest.approx(abs(by_hand[0] - by_hand[1]))
    assert rows["fairness", "sex"].value == pytest.approx(1 - gaps)
    assert rows["ece", "sex=M"].value is not None
    only = fairness.assess(classified(truth, p), groups_by(["F"] * 2 + ["M"] * 28), {})
    assert next(row for row in only if row.metric == "auroc_gap").note.startswith("no two groups to compare")
    assert fairness.assess(classified(truth, p), {}, {})[0].note == "none of sex, age is known of the cases"


def test_a_group_of_one_class_has_no_auroc() -> None:
    truth = ["yes", "no"] * 10 + ["yes"] * 10
    labels = ["a"] * 20 + ["b"] * 10
    rows = table(fairness.assess(classified(truth, np.linspace(0.1, 0.9, 30)), groups_by(labels), {}))
    row = rows["auroc", "sex=b"]
    assert row.value is None
    assert "one class only" in row.note


# -------------------------------------------------------------------------------------------------------- domain shift


def test_in_domain_against_out_of_domain_where_the_model_tells() -> None:
    rng = np.random.default_rng(5)
    n = 60
    labels = ["abc"[k % 3] for k in range(n)]
    error = np.where(np.arange(n) % 3 == 2, rng.uniform(4, 6, n), rng.uniform(0, 2, n))
    found = numbers(np.zeros(n), error)
    info = {"model": {"data": {"sites": ["a", "b", "z"]}}}
    rows = table(domain_shift.assess(found, groups_by(labels, "site"), info))
    inside = error[np.arange(n) % 3 != 2].mean()
    outside = error[np.arange(n) % 3 == 2].mean()
    shift = rows["mae_shift", "site"]
    assert shift.value == pytest.approx(outside - inside)  # positive is worse outside, also for errors
    assert shift.low > 0  # type: ignore[operator]
    assert "in-domain" in shift.note
    assert "chosen after looking" not in shift.note
    assert rows["mae", "site=a"].note.startswith("seen in training")
    assert rows["mae", "site=c"].note.startswith("not seen in training")

    blind = table(domain_shift.assess(found, groups_by(labels, "site"), {}))["mae_shift", "site"]
    assert blind.value == pytest.approx(outside - inside)
    assert "worst group c" in blind.note
    assert re.search(r"chosen after looking: p = 0\.00\d+", blind.note)


def test_few_subjects_and_one_group_are_told() -> None:
    truth, p = people(20)
    labels = ["a"] * 18 + ["b"] * 2
    rows = table(domain_shift.assess(classified(truth, p), groups_by(labels, "scanner"), {}))
    assert "2 subjects, 5 are needed" in rows["auroc", "scanner=b"].note
    assert rows["auroc_shift", "scanner"].value is None
    known = {"model": {"data": {"scanners": ["a"]}}}
    told = table(domain_shift.assess(classified(truth, p), groups_by(labels, "scanner"), known))[
        "balanced_accuracy_shift", "scanner"
    ]
    assert "fewer than 5 subjects on a side" in told.note
    assert told.low is None
    alone = domain_shift.assess(classified(truth, p), groups_by(["a"] * 20, "site"), {"model": {"data": {"sites": ["q"]}}})
    assert alone[0].note == "no variable has two groups (site: a only, not seen in training)"


def test_resolution_bins() -> None:
    assert [domain_shift.spacing_group(mm) for mm in ((1, 1, 1), (0.8, 0.8, 2), (1, 1, 5))] == [
        "<=1.25 mm",
        "1.25-2.5 mm",
        ">2.5 mm",
    ]


# ---------------------------------------------------------------------------------------------------------------- rare


def test_the_rarest_classes_and_their_floor() -> None:
    rng = np.random.default_rng(6)
    classes = ["common", "rare", "rarer"]
    truth = ["common"] * 40 + ["rare"] * 12 + ["rarer"] * 4
    p = rng.dirichlet([4, 2, 1], 56)
    rows = table(rare.assess(several_classes(truth, p, classes), {}, {"classes": [*classes, "never"]}))
    assert {region for _, region in rows} == {"class=rare", "class=rarer", "class=never"}
    for k, name in ((1, "rare"), (2, "rarer")):
        yes = np.array(truth) == name
        assert rows["auprc", f"class={name}"].value == pytest.approx(sk.average_precision_score(yes, p[:, k]))
        assert rows["sensitivity", f"class={name}"].value == pytest.approx((p[yes].argmax(1) == k).mean())
        assert f"floor: the prevalence, {yes.mean():.3g}" in rows["auprc", f"class={name}"].note
    hit = int((p[52:].argmax(1) == 2).sum())
    wanted = stats.binomtest(hit, 4).proportion_ci(method="wilson")
    assert rows["sensitivity", "class=rarer"].high == pytest.approx(wanted.high)
    assert (rows["sensitivity", "class=never"].value, rows["sensitivity", "class=never"].note) == (
        None,
        "not defined: no case of the class",
    )
    assert rows["prevalence", "class=never"].value == 0


def test_lesions_are_pooled_over_cases() -> None:
    def scene(small: int, found: int) -> tuple[np.ndarray, np.ndarray]:
        reference, prediction = np.zeros((40, 12, 12), dtype=int), np.zeros((40, 12, 12), dtype=int)
        for k in range(small):
            reference[1 + 4 * k : 3 + 4 * k, 1:3, 1:3] = 1
            if k < found:
                prediction[1 + 4 * k : 3 + 4 * k, 1:3, 1:3] = 1
        reference[2:8, 5:11, 5:11] = prediction[2:8, 5:11, 5:11] = 1  # 0.216 ml
        return prediction, reference

    answered, _ = masks([scene(8, 2), scene(1, 1), scene(1, 1), scene(2, 0)])
    rows = table(rare.assess(answered, {}, {}))
    small = rows["lesion_recall_pooled", "lesion, small"]
    assert (small.value, small.n) == (pytest.approx(4 / 12), 12)
    assert "12 lesions of 0 to 0.1 ml in 4 cases" in small.note
    assert rows["lesion_recall_pooled", "lesion, medium"].value == 1
    assert rows["lesion_recall_pooled", "lesion, large"].note == "no lesion of 1 ml and more"
    assert rows["sensitivity", "lesion"].value == 1


def test_a_structure_that_no_case_has() -> None:
    empty = np.zeros((6, 6, 6), dtype=int)
    answered, _ = masks([(empty, empty)] * 4)
    rows = table(rare.assess(answered, {}, {}))
    assert rows["sensitivity", "lesion"].note == "not defined: no case has it"


def test_the_k_shot_curve_is_read(tmp_path: Path) -> None:
    from neuroprior.assessments._tables import write_scores

    where = context("regression", "age")
    rows, extra = [], []
    for shots in (2, 10):
        for seed in range(2):
            for k in range(6):
                rows.append(
                    Score(
                        "pretrained",
                        "regression",
                        "age",
                        f"c{k}",
                        f"s{k}",
                        "absolute_error",
                        "all",
                        "pretrained",
                        20.0 / shots + k + seed,
                    )
                )
                extra.append({"shots": str(shots), "seed": seed, "subjects_learned": shots})
    write_scores(rows, tmp_path / "curve.parquet", {"stage": "fewshot"}, extra=extra)
    found = rare.shot_curve(tmp_path)
    assert [(row.region, row.condition, row.value) for row in found] == [
        ("shots=2", "few-shot", pytest.approx(13.0)), ("shots=10", "few-shot", pytest.approx(5.0)),
    ]  # fmt: skip
    assert found[0].low < 13 < found[0].high  # type: ignore[operator]
    assert found[0].note == "2 labelled subjects, 2 seeds, spread over seeds 0.707"
    with pytest.raises(InputError, match="no k-shot curve"):
        rare.shot_curve(tmp_path / "absent")
    write_scores([where.row("c", "s", "mae", "all", 1.0)], tmp_path / "other.parquet", {})
    with pytest.raises(InputError, match="no k-shot curve"):
        rare.shot_curve(tmp_path / "other.parquet")


# ---------------------------------------------------------------------------------------------------------------- cost


def with_costs(task: str = "classification") -> Any:
    truth, p = people(20)
    found = classified(truth, p)
    rows = [*found.rows]
    for k, case in enumerate(found.cases):
        rows += [
            found.context.row(case, case, "seconds", "all", 1.0 + k),
            found.context.row(case, case, "peak_memory_mb", "all", 100.0 + k),
        ]
    head = found.context.row("all", "all", "auroc", "all", 0.7, "positive class yes, 8 of 20")
    return answers(found.context, [*rows, head]), sk.roc_auc_score(np.array(truth) == "yes", p)


def test_costs_are_what_the_files_say() -> None:
    found, auroc = with_costs()
    ledger = {"device": "cuda", "device_hours": 2.0, "flops_total": 1e15, "energy_kwh": None, "energy_note": "no counter"}
    known = {
        "parameters": 1234, "members": 1, "ledger": ledger, "net": {"name": "unet", "config": {}}, "window": None,
        "lineage": [{"device": "cuda", "device_hours": 36.0, "flops_total": 2e15, "energy_kwh": 1.0}, None],
    }  # fmt: skip
    rows = table(cost.assess(found, {}, {"cost": known}))
    assert rows["seconds_per_case", "all"].value == pytest.approx(10.5)
    assert rows["peak_memory_mb", "all"].value == 119
    assert rows["parameters", "all"].value == 1234
    hours = rows["device_hours", "all"]
    assert (hours.value, hours.note) == (38.0, "on cuda; with 1 earlier models; 1 earlier models not recorded")
    assert rows["training_flops", "all"].value == 3e15
    assert (rows["energy_kwh", "all"].value, "no counter" in rows["energy_kwh", "all"].note) == (1.0, True)
    assert rows["auroc_per_device_hour", "all"].value == pytest.approx(auroc / 38)
    bare = table(cost.assess(found, {}, {}))
    assert bare[NOT_ASSESSED, "cost of training"].note == "the model folder is not given: --model"
    none = table(cost.assess(found, {}, {"cost": {**known, "ledger": None}}))
    assert none["device_hours", "all"].note == "not recorded: there is no ledger.json beside the model"
    assert none["auroc_per_device_hour", "all"].note == "no device-hours were recorded"


def test_operations_are_counted_without_values() -> None:
    """Against a count by hand: a net's convolutions on real tensors."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from neuroprior.inference.model import build_net

    net = {"name": "unet", "config": {"features": [4, 8], "latent": 4}}
    built = build_net(str(net["name"]), net["config"])  # type: ignore[arg-type]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        made = built.encode(torch.zeros(1, 1, 16, 16, 16))
        built.decode(made.anatomy, made.contrast)
    assert cost.flops_per_window(net, (16, 16, 16)) == counter.get_total_flops() > 0


def test_the_front_is_what_nobody_beats() -> None:
    def model(name: str, auroc: float, hours: float | None) -> list[Score]:
        made = [Score(name, "classification", "x", "all", "all", "auroc", "all", "clean", auroc)]
        if hours is not None:
            made.append(Score(name, "classification", "x", "all", "all", "device_hours", "all", "clean", hours))
        return made

    rows = [
        *model("a", 0.9, 10),
        *model("b", 0.8, 1),
        *model("c", 0.8, 5),
        *model("d", 0.7, None),
        *model("floor: prior", 0.5, 0),
    ]
    rows.append(Score("a", "classification", "x", "all", "all", "auroc", "sex=F", "clean", 0.1))  # a group is not the headline
    found = {row.model: row for row in cost.pareto(rows)}
    assert {name: row.value for name, row in found.items()} == {"a": 1, "b": 1, "c": 0, "d": None}
    assert "b is as good or better" in found["c"].note
    assert found["d"].note == "no device_hours was recorded"
    errors = [Score(m, "regression", "x", "all", "all", k, "all", "clean", v) for m, k, v in (
        ("a", "mae", 3.0), ("a", "parameters", 10.0), ("b", "mae", 4.0), ("b", "parameters", 20.0),
    )]  # fmt: skip
    assert {row.model: row.value for row in cost.pareto(errors, cost="parameters")} == {"a": 1, "b": 0}


def test_rows_are_a_table_of_plain_numbers() -> None:
    truth, p = people(20)
    rows = _panel.run(_panel.NAMES, classified(truth, p), {}, {})
    frame = pd.DataFrame([vars(row) for row in rows])
    assert frame["value"].isna().equals(frame["value"].map(lambda v: v is None or v != v))
    assert not frame.duplicated(["model", "metric", "region", "condition", "case"]).any()
