"""Scores of cases and of sets: the rule for empty masks, failures, groups that are too small, and what is not defined."""

from __future__ import annotations

import numpy as np
import pytest

from neuroprior.assessments.accuracy import (
    EMPTY_RULES,
    Context,
    classify,
    outside_map,
    paired_difference,
    printed_rule,
    regress,
    segmentation_case,
    summarise,
)  # fmt: skip
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.records import Score

SHAPE, SPACING = (6, 5, 4), (1.0, 2.0, 3.0)
DIAGONAL = float(np.linalg.norm(np.multiply(SHAPE, SPACING)))


def mask(full: bool) -> np.ndarray:
    made = np.zeros(SHAPE, dtype=np.int16)
    if full:
        made[2:4, 2:4, 1:3] = 1
    return made


def values(rows: list[Score], region: str | None = None) -> dict[str, float | None]:
    return {row.metric: row.value for row in rows if region is None or row.region == region}


TABLE = [
    # rule, prediction has the structure, reference has it, dice, nsd, hd95 (hd and assd alike), empty_specificity
    ("honest", False, False, None, None, None, 1.0),
    ("honest", True, False, 0.0, 0.0, DIAGONAL, 0.0),
    ("honest", False, True, 0.0, 0.0, DIAGONAL, None),
    ("honest", True, True, 1.0, 1.0, 0.0, None),
    ("fomo26", False, False, 1.0, 0.0, None, 1.0),
    ("fomo26", True, False, 0.0, 0.0, DIAGONAL, 0.0),
    ("fomo26", False, True, 0.0, 0.0, DIAGONAL, None),
    ("fomo26", True, True, 1.0, 1.0, 0.0, None),
]


@pytest.mark.parametrize(("rule", "predicted", "present", "dice", "nsd", "distance", "specificity"), TABLE)
def test_empty_masks(
    rule: str,
    predicted: bool,
    present: bool,
    dice: float | None,
    nsd: float | None,
    distance: float | None,
    specificity: float | None,
) -> None:
    context = Context("m", "segmentation", "lesion", rule=rule)
    rows = segmentation_case(context, "c", "s", mask(predicted), mask(present), SPACING, {"lesion": 1})
    got = values(rows, "lesion")
    assert (got["dice"], got["iou"], got["nsd"]) == (dice, dice, nsd)
    for name in ("hd95_mm", "hd_mm", "assd_mm"):
        assert got[name] == (None if distance is None else pytest.approx(distance))
    assert got.get("empty_specificity") == specificity
    state = {(0, 0): "both empty", (1, 0): "reference empty", (0, 1): "prediction empty", (1, 1): ""}[predicted, present]
    assert all(row.note == state for row in rows)


def test_the_rule_is_printed() -> None:
    for rule in EMPTY_RULES:
        text = printed_rule(rule)
        assert rule in text
        assert "reference empty: dice, iou, nsd 0; hd95_mm, hd_mm, assd_mm the image's diagonal" in text
    assert "both empty: dice, iou, nsd, hd95_mm, hd_mm, assd_mm not counted" in printed_rule("honest")
    assert "both empty: dice, iou 1; nsd 0; hd95_mm, hd_mm, assd_mm not counted" in printed_rule("fomo26")
    with pytest.raises(ConfigError, match="honest or fomo26"):
        segmentation_case(Context("m", "t", "x", rule="fomo"), "c", "s", mask(True), mask(True), SPACING, {"x": 1})


def test_counts_stand_beside_every_mean() -> None:
    context = Context("m", "segmentation", "lesion", resamples=200)
    rows = []
    for k, (predicted, present) in enumerate([(True, True), (False, True), (True, True), (False, False), (True, False)]):
        rows += segmentation_case(context, f"c{k}", f"s{k}", mask(predicted), mask(present), SPACING, {"lesion": 1})
    over = {(row.metric, row.region): row for row in summarise(context, rows)}
    dice = over["dice", "lesion"]
    assert (dice.value, dice.n, dice.note) == (
        pytest.approx(2 / 4),
        4,
        "1 of 5 cases not defined; few subjects: failures in up to 53% of cases may be unseen",
    )
    assert dice.low is not None and dice.high is not None and dice.low < 0.5 < dice.high
    specificity = over["empty_specificity", "lesion"]
    assert (specificity.value, specificity.n) == (0.5, 2)
    assert (specificity.low, specificity.note) == (None, "no interval: 2 subjects, at least 3 are needed")


def test_missing_a_structure_never_helps_the_mean() -> None:
    """The trap: a missed structure that is dropped from the mean lifts it."""
    context = Context("m", "segmentation", "lesion", resamples=50)
    rng = np.random.default_rng(0)

    def mean(missed: set[int]) -> dict[str, float | None]:
        rows = []
        for k in range(5):
            reference = np.zeros((12, 10, 8), dtype=int)
            reference[2:9, 2:8, 2:6] = 1
            guess = np.roll(reference, 1 + k % 3, 0) * (k not in missed)
            rows += segmentation_case(context, f"c{k}", f"s{k}", guess, reference, SPACING, {"lesion": 1})
        return {row.metric: row.value for row in summarise(context, rows) if row.region == "lesion"}

    base = mean(set())
    for _ in range(5):
        worse = mean({int(k) for k in rng.choice(5, int(rng.integers(1, 5)), replace=False)})
        assert worse["dice"] < base["dice"] and worse["nsd"] < base["nsd"] and worse["lesion_recall"] < base["lesion_recall"]  # type: ignore[operator]
        assert worse["hd95_mm"] > base["hd95_mm"] and worse["assd_mm"] > base["assd_mm"]  # type: ignore[operator]


def test_labels_outside_the_map_are_a_row() -> None:
    guess, reference = mask(True), mask(True)
    guess[0, 0, :3] = 7
    context = Context("m", "segmentation", "tissue")
    rows = segmentation_case(context, "c", "s", guess, reference, SPACING, {"gm": 1, "wm": 2})
    strange = [row for row in rows if row.metric == "voxels_outside_map"]
    assert [(row.region, row.value, row.note) for row in strange] == [
        ("prediction", 3, "prediction has labels outside the map: 7 (3 voxels)")
    ]
    assert values(rows, "gm")["dice"] == 1
    assert outside_map(reference, {"gm": 1}) == {}


def test_grids_and_spacing_are_checked() -> None:
    context = Context("m", "segmentation", "x")
    with pytest.raises(InputError, match="different grids"):
        segmentation_case(context, "c", "s", mask(True)[1:], mask(True), SPACING, {"x": 1})
    with pytest.raises(InputError, match="spacing"):
        segmentation_case(context, "c", "s", mask(True), mask(True), (1.0, 0.0, 1.0), {"x": 1})


def test_a_probability_that_is_nan_is_a_failure() -> None:
    context = Context("m", "classification", "ms", resamples=50)
    names, cases = ["yes", "no", "yes", "no"], list("abcd")
    rows = classify(context, cases, cases, names, ["yes", "no", "yes", "no"], [0.9, 0.1, float("nan"), float("nan")], "yes")
    got = values(rows, "all")
    assert got["auroc"] == pytest.approx(0.25)  # of four pairs only that of the two good cases is in order
    assert got["balanced_accuracy"] == 0.5
    notes = {row.case: row.note for row in rows if row.metric == "correct"}
    assert notes["c"] == "truth yes, predicted failed; failed: the probability is not a number"
    probabilities = {row.case: (row.value, row.note) for row in rows if row.metric == "probability"}
    assert probabilities["c"] == (0.0, "truth yes")
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        classify(context, cases, cases, names, names, [0.9, 0.1, 3.0, 0.2], "yes")


def test_one_class_only_is_not_defined_and_says_so() -> None:
    context = Context("m", "classification", "ms", resamples=50)
    cases = list("abcd")
    rows = classify(context, cases, cases, ["yes"] * 4, ["yes", "yes", "no", "yes"], [0.9, 0.8, 0.4, 0.7], "yes")
    by_name = {row.metric: row for row in rows if row.case == "all"}
    for metric in ("auroc", "specificity", "mcc", "sensitivity_at_specificity_90"):
        assert by_name[metric].value is None
        assert by_name[metric].note == "positive class yes, 4 of 4; not defined: one class only"
    assert by_name["sensitivity"].value == 0.75
    two = classify(context, cases[:2], cases[:2], ["yes", "no"], ["yes", "no"], [0.9, 0.1], "yes")
    row = next(row for row in two if row.metric == "auroc")
    assert (row.value, row.low, row.note) == (
        1,
        None,
        "positive class yes, 1 of 2; no interval: 2 subjects, at least 3 are needed",
    )


def test_a_number_that_is_nan_counts_as_twice_the_floor() -> None:
    context = Context("m", "regression", "age", resamples=50)
    cases = list("abcd")
    rows = regress(context, cases, cases, [20, 30, 40, 50], [21, float("nan"), 41, float("inf")], floor=35)
    errors = {row.case: row.value for row in rows if row.metric == "absolute_error"}
    assert errors == {"a": 1, "b": 10, "c": 1, "d": 30}
    got = next(row for row in rows if row.metric == "mae")
    assert (got.value, got.note) == (
        pytest.approx(10.5),
        "2 failed cases counted as twice the floor's error; few subjects: failures in up to 53% of cases may be unseen",
    )
    constant = regress(context, cases, cases, [20, 30, 40, 50], [35] * 4)
    by_name = {row.metric: row for row in constant if row.case == "all"}
    assert by_name["pearson_r"].value is None
    assert by_name["pearson_r"].note == "not defined: fewer than three cases, or values that do not vary"
    assert by_name["error_slope"].value == pytest.approx(-1)


def test_scores_are_recomputable_from_the_rows() -> None:
    """Every number of the set follows from the rows of the cases."""
    from sklearn import metrics as sk

    rng = np.random.default_rng(0)
    cases = [f"c{k}" for k in range(30)]
    truth = ["yes" if k % 3 == 0 else "no" for k in range(30)]
    p = np.clip(rng.normal([0.6 if name == "yes" else 0.4 for name in truth], 0.2), 0, 1)
    rows = classify(
        Context("m", "classification", "ms", resamples=50),
        cases,
        cases,
        truth,
        ["yes" if q > 0.5 else "no" for q in p],
        list(p),
        "yes",
    )
    saved = [(row.note == "truth yes", row.value) for row in rows if row.metric == "probability"]
    got = {row.metric: row.value for row in rows if row.case == "all"}
    t, q = np.array([a for a, _ in saved]), np.array([b for _, b in saved], dtype=float)
    assert got["auroc"] == pytest.approx(sk.roc_auc_score(t, q))
    assert got["nll"] == pytest.approx(sk.log_loss(t, q))
    assert got["mcc"] == pytest.approx(sk.matthews_corrcoef(t, q > 0.5))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(t, q > 0.5, average="macro"))


def test_paired_difference_rests_on_shared_cases() -> None:
    def rows(model: str, numbers: dict[str, float]) -> list[Score]:
        return [Context(model, "segmentation", "x").row(case, case, "dice", "x", value) for case, value in numbers.items()]

    found = paired_difference(
        rows("a", {"1": 0.9, "2": 0.8, "3": 0.7, "4": float("nan")}),
        rows("b", {"1": 0.7, "2": 0.7, "3": 0.7, "4": 0.1}),
        "dice",
        "x",
    )
    assert found is not None
    assert (found["difference"], found["n"]) == (pytest.approx(0.1), 3)
    assert paired_difference([], rows("b", {"1": 0.7}), "dice", "x") is None


def test_sensitivity_and_specificity_have_binomial_intervals() -> None:
    from scipy import stats

    cases = [f"c{k}" for k in range(12)]
    truth = ["yes"] * 5 + ["no"] * 7
    guess = ["yes"] * 5 + ["no"] * 6 + ["yes"]
    rows = classify(Context("m", "classification", "ms", resamples=50), cases, cases, truth, guess, [0.9] * 5 + [0.1] * 7, "yes")
    found = {row.metric: row for row in rows if row.case == "all"}
    for metric, hits, n in (("sensitivity", 5, 5), ("specificity", 6, 7)):
        wanted = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert found[metric].value == pytest.approx(hits / n)
        assert (found[metric].low, found[metric].high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))
