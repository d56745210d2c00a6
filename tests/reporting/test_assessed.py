"""What a table says beyond accuracy, against rows made by hand."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from neuroprior.core.records import Score
from neuroprior.reporting import _rows, assessed, groups, scores


def row(
    model: str, metric: str, value: float | None, region: str = "all", condition: str = "clean", case: str = "all", **more: object
) -> dict[str, object]:
    return asdict(Score(model, "segmentation", "lesion", case, case, metric, region, condition, value, **more))  # type: ignore[arg-type]


@pytest.fixture
def table() -> pd.DataFrame:
    made = []
    for model, dice, hours, seconds in (("small", 0.6, 1.0, 2.0), ("large", 0.8, 10.0, 9.0), ("poor", 0.5, 20.0, 2.5)):
        made += [
            row(model, "dice", dice, "lesion", low=dice - 0.1, high=dice + 0.1, n=20),
            row(model, "device_hours", hours, note="on cpu"), row(model, "seconds_per_case", seconds), row(model, "parameters", 1e6),
            row(model, "dice", dice - 0.1, "sex=F", n=9, low=dice - 0.3, high=dice), row(model, "dice", dice + 0.1, "sex=M", n=11),
            row(model, "dice_gap", 0.2, "sex", n=20), row(model, "aurc", 0.2), row(model, "risk_at_coverage", 0.1, "coverage=0.8"),
            row(model, "lesion_recall_pooled", 0.3, "lesion, small"), row(model, "ece", 0.1, "voxels, after temperature"),
            row(model, "not_assessed", None, "domain_shift", note="no variable has two groups"),
            row(model, "dice", 0.3, "shots=2", "few-shot", low=0.2, high=0.4), row(model, "dice", 0.5, "shots=10", "few-shot"),
            row(model, "dice", dice, "shots=all", "few-shot"),
        ]  # fmt: skip
        for k in range(6):
            made += [row(model, "dice", 0.1 * k, "lesion", case=f"c{k}"), row(model, "confidence", float(k), case=f"c{k}")]
    return pd.DataFrame(made)


def test_every_row_has_its_part(table: pd.DataFrame) -> None:
    (task,) = scores.tasks(table)
    assert [line["metric"] for line in task["rows"]] == ["dice", "aurc"]
    titles = {section["title"]: section for section in task["sections"]}
    assert list(titles) == list(assessed.SECTIONS.values())
    assert titles["Cost"]["rows"][0] == ["device hours", "1", "10", "20", "on cpu"]
    assert titles["Gaps between groups"]["rows"][0][:2] == ["dice gap (sex)", "0.200 n=20"]
    assert task["reasons"] == ["domain shift: no variable has two groups (small, large, poor)"]
    assert [block["metric"] for block in task["card"]] == ["dice", "dice gap", "aurc"]
    assert [block["better"] for block in task["card"]] == ["more is better", "less is better", "less is better"]
    assert scores.conditions(table) == [], "a k-shot curve is no condition of the inputs"
    names = {_rows.part_of(metric, region) for metric, region in zip(table["metric"], table["region"], strict=True)}
    assert names == {"", "cost", "group", "groups", "selective", "rare", "calibration", "not assessed", "shots"}


def test_the_front_holds_what_is_not_beaten_in_both() -> None:
    points = {"cheap": (1.0, 0.5), "good": (10.0, 0.9), "worse": (10.0, 0.8), "dear": (20.0, 0.4), "same": (1.0, 0.5)}
    assert assessed.front(points, less_is_better=False) == ["cheap", "good", "same"]
    assert assessed.front({name: (c, -v) for name, (c, v) in points.items()}, less_is_better=True) == ["cheap", "good", "same"]


def test_costs_are_drawn_where_models_differ(table: pd.DataFrame) -> None:
    pictures = assessed.pareto(table[(table["case"] == "all") & (table["condition"] == "clean")], "segmentation")
    assert [picture["title"].split(";")[0] for picture in pictures] == [
        "dice against device-hours of training",
        "dice against seconds a case",
    ]
    assert pictures[0]["alt"].endswith("Not beaten in both: small, large")


def test_the_curve_of_few_shots_is_in_order(table: pd.DataFrame) -> None:
    (picture,) = assessed.shots(table)
    assert "small: 2 0.300, 10 0.500, all 0.600" in picture["alt"]


def test_risk_is_the_mean_loss_of_the_surest(table: pd.DataFrame) -> None:
    (picture,) = assessed.risk_coverage(table[table["case"] != "all"], "segmentation")
    loss = 1 - 0.1 * np.arange(6)[::-1]
    assert f"small {_rows.number(loss[:3].mean())} at half, {_rows.number(loss.mean())} at all" in picture["alt"]
    assert assessed.risk_coverage(table[table["metric"] == "dice"], "segmentation") == []


def test_groups_of_the_table_make_a_forest(table: pd.DataFrame) -> None:
    (block,) = groups.forests(table, {})
    assert [line[0] for line in block["rows"]] == ["all cases", "sex F", "sex M"]
    assert block["rows"][1][1:] == ["0.500 [0.300, 0.600] n=9", "0.700 [0.500, 0.800] n=9", "0.400 [0.200, 0.500] n=9"]
    assert "small by sex: worst in sex F (0.500), best in sex M (0.700), gap 0.200" in block["gaps"]
    assert groups.forests(table[~table["region"].str.contains("=")], {}) == []


def test_columns_become_groups() -> None:
    values = {f"c{k}": {"age": 20.0 + 5 * k, "sex": "FM"[k % 2], "name": f"n{k}", "site": "one"} for k in range(14)}
    found = groups.of_cases(values, ["age", "sex", "name", "site", "scanner"])
    assert list(found) == ["age", "sex"], "a value for each subject, or one for all, makes no groups"
    assert found["age"]["c0"] == "< 40"
    assert found["age"]["c13"] == ">= 60"
