"""The scores part of the report against tables made by hand."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd
import pytest

from neuroprior.core.records import Score
from neuroprior.reporting import scores


def made(model: str, case: str, metric: str, value: float | None, condition: str = "clean", **more: object) -> dict[str, object]:
    return asdict(Score(model, "segmentation", "lesion", case, case, metric, "lesion", condition, value, **more))  # type: ignore[arg-type]


@pytest.fixture
def table() -> pd.DataFrame:
    rows = []
    for model, values in {"ours": (0.9, 0.8, 0.7, 0.6, 0.5), "scratch": (0.4, 0.3, 0.2, 0.1, 0.0)}.items():
        rows += [made(model, f"c{k}", "dice", value) for k, value in enumerate(values)]
        mean = sum(values) / 5
        rows.append(made(model, "all", "dice", mean, low=mean - 0.1, high=mean + 0.1, n=5))
        rows.append(made(model, "all", "hd95_mm", 10 * (1 - mean), n=5))
        rows.append(made(model, "all", "dice", mean / 2, "T1w+FLAIR", n=5))
    rows.append(made("floor: empty mask", "all", "dice", 0.0, n=5))
    return pd.DataFrame(rows)


def test_tables_have_a_row_a_metric_and_a_column_a_model(table: pd.DataFrame) -> None:
    (task,) = scores.tasks(table)
    assert task["name"] == "segmentation of lesion"
    assert [head["model"] for head in task["models"]] == ["ours", "scratch", "floor: empty mask"]
    rows = {row["metric"]: row["cells"] for row in task["rows"]}
    assert list(rows) == ["dice", "hd95 mm"]
    assert rows["dice"] == ["0.700 [0.600, 0.800] n=5", "0.200 [0.100, 0.300] n=5", "0.000 n=5"]
    assert rows["hd95 mm"][2] == "", "nothing is shown where nothing was measured"


def test_the_card_places_numbers_on_one_scale(table: pd.DataFrame) -> None:
    (task,) = scores.tasks(table)
    block = task["card"][0]
    assert (block["metric"], block["from"], block["to"]) == ("dice", "0.000", "1.000")
    at = {row["model"]: row for row in block["rows"]}
    usable = scores.WIDTH - 16
    assert at["ours"]["at"] == pytest.approx(8 + 0.7 * usable, abs=0.06)
    assert at["ours"]["low"] == pytest.approx(8 + 0.6 * usable, abs=0.06)
    assert at["floor: empty mask"]["at"] == 8
    assert at["floor: empty mask"]["low"] is None


def test_differences_are_paired_and_named_only_when_clear(table: pd.DataFrame) -> None:
    (task,) = scores.tasks(table)
    (row,) = task["differences"]
    assert row["value"] == "+0.500"
    assert row["verdict"] == "ours better"
    same = table.copy()
    same.loc[same["model"] == "scratch", "value"] = list(same[same["model"] == "ours"]["value"])
    (task,) = scores.tasks(same)
    assert task["differences"][0]["verdict"] == "no clear difference"


def test_worst_cases_come_from_the_worst_end(table: pd.DataFrame) -> None:
    (task,) = scores.tasks(table)
    ours = [row for row in task["extremes"] if row["model"] == "ours"]
    assert [row["case"] for row in ours if row["kind"] == "worst"] == ["c4", "c3"]
    assert [row["case"] for row in ours if row["kind"] == "best"] == ["c0", "c1"]


def test_other_conditions_have_a_table_of_their_own(table: pd.DataFrame) -> None:
    assert "0.350 n=5" not in str(scores.tasks(table))
    (block,) = scores.conditions(table)
    assert block["heads"] == ["condition", "ours: dice", "scratch: dice"]
    assert block["rows"][0][:2] == ["clean", "0.700 [0.600, 0.800] n=5"]
    assert block["rows"][1] == ["T1w+FLAIR", "0.350 n=5", "0.100 n=5"]
    assert scores.conditions(table[table["condition"] == "clean"]) == []


def test_undefined_is_said() -> None:
    frame = pd.DataFrame([made("ours", "all", "dice", None, n=0)])
    (task,) = scores.tasks(frame)
    assert task["rows"][0]["cells"] == ["not defined"]
    assert task["card"] == []
