"""The ranking part of a report: a protocol's rule, what is left out, floors, and the sentence on doubt."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroprior.assessments._tables import write_scores
from neuroprior.assessments.accuracy import Context, classify, regress
from neuroprior.assessments.ranking import rank_teams
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.records import Score
from neuroprior.protocols import read
from neuroprior.reporting import ranking
from neuroprior.stages.report import report

N = 24
NAMES = [f"s{k:02}" for k in range(N)]


def rows_of(model: str, gain: float, seed: int, tasks: str = "sca") -> list[Score]:
    """Three tasks of one model: s(egmentation), c(lassification), a(ge)."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(0, 1, N)
    yes = np.arange(N) % 2 == 0
    rows: list[Score] = []
    if "s" in tasks:
        context = Context(model, "segmentation", "meningioma")
        for metric, shift in (("dice", 0.0), ("nsd", 0.1)):
            values = np.clip(0.5 + 0.1 * hard + gain + rng.normal(0, 0.02, N) - shift, 0, 1)
            rows += [context.row(name, name, metric, "meningioma", float(v)) for name, v in zip(NAMES, values, strict=True)]
            floor = Context("floor: empty mask", "segmentation", "meningioma")
            rows += [floor.row(name, name, metric, "meningioma", 0.0) for name in NAMES]
    if "c" in tasks:
        p = 1 / (1 + np.exp(-(3 * gain * (2 * yes - 1) + rng.normal(0, 1, N))))
        context = Context(model, "classification", "infarct", resamples=50)
        rows += classify(
            context,
            NAMES,
            NAMES,
            np.where(yes, "ill", "well").tolist(),
            np.where(p > 0.5, "ill", "well").tolist(),
            p.tolist(),
            "ill",
        )
        floor = Context("floor: prior", "classification", "infarct", resamples=10)
        rows += classify(floor, NAMES, NAMES, np.where(yes, "ill", "well").tolist(), ["ill"] * N, [0.5] * N, "ill")
    if "a" in tasks:
        age = np.linspace(20, 80, N)
        context = Context(model, "regression", "brain-age", resamples=50)
        rows += regress(
            context, NAMES, NAMES, age.tolist(), (50 + (age - 50) * min(1.0, 2 * gain) + rng.normal(0, 5, N)).tolist()
        )
        rows += regress(
            Context("floor: training mean", "regression", "brain-age", resamples=10), NAMES, NAMES, age.tolist(), [50.0] * N
        )
    return rows


def frame(*parts: list[Score]) -> pd.DataFrame:
    made = pd.DataFrame([asdict(row) for part in parts for row in part])
    return made.drop_duplicates(["model", "task", "case", "metric", "region"])


def test_models_are_ranked_over_tasks() -> None:
    found = ranking.ranking(frame(rows_of("weak", 0.0, 1), rows_of("strong", 0.4, 2), rows_of("middle", 0.2, 3)))
    assert found is not None
    assert found["models"] == ["strong", "middle", "weak"]
    assert [row["rank"] for row in found["rows"]] == [1, 2, 3]
    assert found["sentence"].startswith("The order strong > middle > weak is")
    assert {task["name"]: round(task["weight"], 3) for task in found["tasks"]} == {
        "segmentation of meningioma": 0.333, "classification of infarct": 0.333, "regression of brain-age": 0.333,
    }  # fmt: skip
    assert found["ahead"]["strong"]["weak"] > 0.95
    seg = found["tasks"][0]
    assert [m["metric"] for m in seg["maps"]] == ["dice", "nsd"]
    assert seg["maps"][0]["pairs"][0]["p_holm"] < 0.05
    assert seg["floor"] == "Every model is better than the trivial floor (empty mask, by dice)."
    assert seg["left_out"] == ""
    age = next(task for task in found["tasks"] if "age" in task["name"])
    assert age["floor"].endswith("Not told from it: weak.")
    assert len(found["figures"]) == 2 + 5
    assert all(figure["alt"] and figure["src"].startswith("data:image/png;base64,") for figure in found["figures"])


def test_a_protocol_gives_metrics_and_weights() -> None:
    table = frame(rows_of("a", 0.0, 1), rows_of("b", 0.4, 2), rows_of("c", 0.2, 3))
    rules = read("fomo26")
    found = ranking.ranking(table, rules)
    assert found is not None
    weights = {task["name"]: task["weight"] for task in found["tasks"]}
    assert weights["segmentation of meningioma"] == pytest.approx(0.25 / 0.45)
    # the same places as the challenge's own arithmetic on the same numbers
    names = {
        "segmentation of meningioma": "meningioma",
        "classification of infarct": "infarct",
        "regression of brain-age": "brain-age",
    }
    metrics = {"dice": "dsc", "absolute_error": "mae"}
    scores = [
        {"team": row["model"], "task": names[task["name"]], "metric": metrics.get(m, m), "value": value}
        for task in found["tasks"]
        for row in task["rows"]
        for m, value in row["values"].items()
    ]
    places = rank_teams(rules, scores)
    assert [place.team for place in places] == found["models"]
    np.testing.assert_allclose([place.mean_rank for place in places], [row["mean_rank"] for row in found["rows"]])


def test_a_task_that_fits_no_rule_is_refused() -> None:
    table = frame(rows_of("a", 0.0, 1, "s"), rows_of("b", 0.4, 2, "s"))
    with pytest.raises(ConfigError, match="not known"):
        ranking.ranking(table, read("ssl3d"))
    table["task"] = "tracking"
    with pytest.raises(ConfigError, match="no task of FOMO26"):
        ranking.ranking(table, read("fomo26"))


def test_equal_models_are_not_put_in_an_order() -> None:
    found = ranking.ranking(frame(rows_of("a", 0.2, 1), rows_of("b", 0.2, 2)))
    assert found is not None
    assert not found["supported"]
    assert "is not supported by the data" in found["sentence"]


def test_cases_without_a_value_of_every_run_are_told() -> None:
    table = frame(rows_of("a", 0.1, 1, "s"), rows_of("b", 0.3, 2, "s"))
    table.loc[(table["model"] == "b") & (table["case"] == "s03"), "value"] = None
    found = ranking.ranking(table)
    assert found is not None
    assert found["tasks"][0]["left_out"].startswith(
        "Left out here, because the metric is not defined for every run: 1 of the cases"
    )
    assert found["subjects"]["segmentation of meningioma"] == N - 1


def test_one_model_alone_is_not_ranked() -> None:
    assert ranking.ranking(frame(rows_of("a", 0.2, 1))) is None


def test_a_model_of_fewer_tasks_is_left_out_and_told() -> None:
    found = ranking.ranking(frame(rows_of("a", 0.0, 1), rows_of("b", 0.4, 2), rows_of("c", 0.4, 3, "s")))
    assert found is not None
    assert set(found["models"]) == {"a", "b"}
    assert any(line.startswith("c is not ranked: it was not tried on ") for line in found["told"])
    found = ranking.ranking(frame(rows_of("a", 0.0, 1, "sc"), rows_of("c", 0.4, 3, "s")))
    assert found is not None
    assert found["told"] == ["Not ranked, because not every model was tried on it: classification of infarct."]


def tables(folder: Path, names: dict[str, float], tasks: str = "sca") -> list[Path]:
    made = []
    for number, (name, gain) in enumerate(names.items()):
        path = folder / f"table-{number}" / "scores.parquet"
        path.parent.mkdir(parents=True)
        write_scores(rows_of(name, gain, number, tasks), path, {"rule": "honest", "predictions": "p"})
        made.append(path.parent)
    return made


def test_the_report_takes_folders_and_says_the_same_everywhere(tmp_path: Path) -> None:
    folders = tables(tmp_path, {"a seed 0": 0.2, "a seed 1": 0.21, "b seed 0": 0.2, "b seed 1": 0.22}, "sa")
    page = report(folders, tmp_path / "report").read_text()
    data = json.loads(report(folders, tmp_path / "report", format="json").read_text())["ranking"]
    text = report(folders, tmp_path / "report", format="md").read_text()
    assert data["runs"] == {"a": 2, "b": 2}
    assert data["seeds"] == 2
    for written in (page.replace("&gt;", ">").replace("&#39;", "'"), text):
        assert data["sentence"] in written
        for row in data["rows"]:
            assert row["model"] in written
        pair = data["tasks"][0]["maps"][0]["pairs"][0]
        assert pair["interval"] in written
        assert pair["p_text"] in written
    assert "2 seeds say little of a further one" in page
    assert "figures" not in data or all("src" not in figure for figure in data["figures"])


def test_two_tables_of_one_name_are_an_error(tmp_path: Path) -> None:
    folders = tables(tmp_path, {"a": 0.2}, "s")
    other = tmp_path / "other.parquet"
    write_scores(rows_of("a", 0.4, 7, "s"), other, {"rule": "honest"})
    with pytest.raises(InputError, match="two tables score a model named 'a'"):
        report([*folders, other], tmp_path / "report")
    report([*folders, folders[0] / "scores.parquet"], tmp_path / "report")  # the same file twice is one
