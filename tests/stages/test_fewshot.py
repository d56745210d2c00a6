"""Few-shot curves and cross-validation, from the function call to what lies on disk."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neuroprior.core import artifacts
from neuroprior.core.errors import InputError, LeakageError
from neuroprior.data.store import Store
from neuroprior.stages.crossvalidate import crossvalidate
from neuroprior.stages.fewshot import fewshot

SMALL = ["training.steps=4", "training.batch=2", "training.accelerator=cpu", "training.log_every=2", "training.validate_every=2",
         "training.schedule.warmup_steps=1"]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A recipe whose net has a few hundred weights."""
    import yaml

    from neuroprior.core import shelf
    from neuroprior.core.config import read_yaml

    values = read_yaml(shelf.path_of("recipes", "tiny"))
    values["net"] |= {"features": [4, 8], "latent": 4}
    values["data"] |= {"patch": 16}
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_curve_with_its_table_picture_and_paired_differences(store_path: Path, tiny: str, tmp_path: Path) -> None:
    def make() -> Any:
        return fewshot(
            store_path, "scratch", "regression", "age", out=tmp_path / "few", shots="1,2,5,20,all", seeds=2, recipe=tiny,
            set=SMALL, contrasts="T1w",
        )  # fmt: skip

    plan = fewshot(
        store_path,
        "scratch",
        "regression",
        "age",
        out=tmp_path / "few",
        shots="2,all",
        seeds=2,
        recipe=tiny,
        set=SMALL,
        dry_run=True,
    )
    assert "dry run" in str(plan)
    assert not (tmp_path / "few").exists()
    made = make()
    table = pd.read_parquet(tmp_path / "few/curve.parquet")
    errors = table[(table["metric"] == "absolute_error") & (table["case"] != "all")]
    runs = errors[errors["condition"] == "scratch"].groupby(["shots", "seed"])["subject"].agg(frozenset)
    assert len(runs) == 3 * 2  # 1 cannot set a scale, 20 are more than there are
    assert len(set(runs)) == 1, "every run is tested on the same subjects"
    store = Store.open(store_path)
    assert runs.iloc[0] == frozenset(s.subject for s in store.sessions if s.split == "test")
    assert "floor" in set(errors["condition"])
    assert (tmp_path / "few/curve.png").stat().st_size > 5000
    assert [p.shots for p in made.points] == ["2", "5", "all"]
    for point in made.points:
        here = errors[(errors["shots"] == point.shots) & (errors["condition"] == "scratch")]
        assert point.value == pytest.approx(here.groupby("case")["value"].mean().mean())
        assert point.seeds == 2
    learned = [
        artifacts.read_json(tmp_path / f"few/runs/scratch-shots-{k}-seed-0/model/model.json")["method"]["training_subjects"]
        for k in ("2", "5", "all")
    ]
    assert learned == [2, 5, 8]
    stamp = (tmp_path / "few/runs/scratch-shots-2-seed-0/complete.json").stat().st_mtime_ns
    assert str(make()) == str(made)
    assert (tmp_path / "few/runs/scratch-shots-2-seed-0/complete.json").stat().st_mtime_ns == stamp, "finished runs are kept"


def test_scratch_beside_a_model_is_paired(store_path: Path, tiny: str, tmp_path: Path) -> None:
    from neuroprior.stages.finetune import finetune

    first = finetune(store_path, "scratch", "classification", "sex", out=tmp_path / "first", recipe=tiny, set=SMALL)
    made = fewshot(
        store_path, str(first), "classification", "sex", out=tmp_path / "few", shots="1,all", seeds=1, compare="scratch", set=SMALL,
        recipe=tiny,
    )  # fmt: skip
    names = {(name, d.shots) for name, d in made.differences}
    assert names == {("pretrained - scratch", "1"), ("pretrained - scratch", "all")}
    assert {p.condition for p in made.points} == {"pretrained", "scratch"}
    assert (tmp_path / "few/summary.txt").read_text().strip() == str(made)


def test_segmentation_is_scored_on_the_stores_grid(store_path: Path, tiny: str, tmp_path: Path) -> None:
    made = fewshot(
        store_path, "scratch", "segmentation", "lesion", out=tmp_path / "few", shots="1", seeds=2, recipe=tiny, contrasts="FLAIR",
        set=[*SMALL, "data.patch=16"],
    )  # fmt: skip
    assert [p.metric for p in made.points] == ["dice"]
    assert made.points[0].subjects == 1


def test_cross_validation_scores_every_case_once_and_calibrates(
    store_path: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("neuroprior.inference.ensemble")
    made = crossvalidate(
        store_path,
        "scratch",
        "regression",
        "age",
        out=tmp_path / "cv",
        folds=2,
        recipe=tiny,
        set=SMALL,
        contrasts="T1w",
        level=0.8,
    )
    store = Store.open(store_path)
    with open(tmp_path / "cv/out_of_fold.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert sorted(row["case"] for row in rows) == sorted(session.key for session in store.sessions)
    for row in rows:
        assert float(row["truth"]) == store[row["case"]].value("age")
        if row["value_low"] != "n/a":
            assert float(row["value_low"]) < float(row["value"]) < float(row["value_high"])
    table = pd.read_parquet(tmp_path / "cv/scores.parquet")
    mine = table[(table["model"] == "out of fold") & (table["metric"] == "mae")]
    errors = [abs(float(row["value"]) - float(row["truth"])) for row in rows]
    assert mine["value"].item() == pytest.approx(np.mean(errors), abs=1e-3)
    assert "choosing per fold looks better by" in str(made)
    info = artifacts.read_json(tmp_path / "cv/ensemble/ensemble.json")
    assert info["calibration"]["n"] == len(rows)
    assert info["calibration"]["quantiles"]["value"] == pytest.approx(sorted(errors)[int(np.ceil(11 * 0.8)) - 1], abs=1e-3)
    assert set(table[table["metric"] == "coverage"]["region"]) >= {"all", "sex=F", "sex=M"}


def test_what_is_chosen_does_not_depend_on_test_labels(store_path: Path, tiny: str, tmp_path: Path) -> None:
    """The labels of a fold's test subjects are altered: weights, kept step and calibration stay the same."""
    from dataclasses import replace

    from neuroprior.data import splits
    from neuroprior.tasks import _folds as many

    store = Store.open(store_path)
    fold = splits.kfold(splits.strata(many.targets(store, "regression", "age", "T1w")), 2, validation=0.4)[0]
    test = fold.part("test")

    def run(name: str, altered: bool) -> tuple[Any, Any, list[dict[str, Any]]]:
        opened = Store.open(store_path)
        if altered:
            opened = opened.with_sessions(
                [replace(s, columns={**s.columns, "age": 200.0}) if s.subject in test else s for s in opened.sessions]
            )
        found = many.make(
            opened, many.Run(name, "scratch", fold, 0, {}), "regression", "age", out=tmp_path, assignments=SMALL, contrasts="T1w",
            recipe=tiny,
        )  # fmt: skip
        assert found is not None
        assert {a.truth for a in found} == ({200.0} if altered else {store[a.case].value("age") for a in found})
        info = artifacts.read_json(tmp_path / name / "model/model.json")
        return info["weights_sha256"], (info.get("calibration"), info["method"]), [
            e for e in many.events.read(tmp_path / name / "events.jsonl") if e["event"] == "validation"
        ]  # fmt: skip

    assert run("plain", False) == run("altered", True)


@pytest.mark.parametrize(
    ("folds", "column", "match"), [(11, "sex", "fewer subjects with the target than folds"), (2, "one", "one class only")]
)
def test_what_cannot_be_divided_is_told(
    store_path: Path, tmp_path: Path, folds: int, column: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if column == "one":
        from dataclasses import replace

        real: Callable[..., Store] = Store.open

        def opened(path: Any) -> Store:
            store = real(path)
            return store.with_sessions([replace(s, columns={**s.columns, "one": "x"}) for s in store.sessions])

        monkeypatch.setattr(Store, "open", opened)
    with pytest.raises(InputError, match=match):
        crossvalidate(store_path, "scratch", "classification", column, out=tmp_path / "cv", folds=folds)


def test_a_subject_in_two_folds_is_named(store_path: Path, tmp_path: Path) -> None:
    name = Store.open(store_path).sessions[0].subject
    (tmp_path / "folds.tsv").write_text(f"participant_id\tfold\n{name}\t0\n{name}\t1\n")
    with pytest.raises(LeakageError, match=name):
        crossvalidate(
            store_path, "scratch", "classification", "sex", out=tmp_path / "cv", scheme="file", split_file=tmp_path / "folds.tsv"
        )
