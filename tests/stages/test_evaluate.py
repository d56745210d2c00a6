"""Scores of predictions on disk: subsets of contrasts, calibration, intervals, abstaining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neuroprior.core import artifacts
from neuroprior.core.errors import ArtifactError, InputError
from neuroprior.data.index import read_index
from neuroprior.inference import derivative
from neuroprior.inference.calibration import Calibration, temper
from neuroprior.stages.evaluate import evaluate


def people(index_file: Path) -> dict[str, Any]:
    """Case -> one of its scans; every subject has one session."""
    return {f"{scan.subject}/{scan.session}" if scan.session else scan.subject: scan for scan in read_index(index_file)}


def write(folder: Path, task: str, target: str, rows: list[dict[str, Any]], **info: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(
        folder / "predictions.json",
        {
            "artifact": "predictions",
            "version": 1,
            "task": task,
            "target": target,
            "label_values": None,
            "calibration": None,
            **info,
        },
    )
    derivative.write_table(folder, rows)
    return folder


def row(case: str, **more: Any) -> dict[str, Any]:
    return {"case": case, "subject": case, "status": "ok", **more}


def test_intervals_are_scored_over_all_and_by_group(index_file: Path, tmp_path: Path) -> None:
    known = people(index_file)
    calibration = Calibration(40, level=0.8, quantiles={"value": 5.0})
    rows = []
    for n, (subject, scan) in enumerate(sorted(known.items())):
        value = scan.age + n  # the first six lie within 5 years
        rows.append(row(subject, value=value, value_low=value - 5.0, value_high=value + 5.0))
    folder = write(tmp_path / "p", "regression", "age", rows, floor={"mean": 50.0}, calibration=calibration.to_json())
    evaluate(folder, index_file, out=tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet")
    covered = table[table["metric"] == "coverage"].set_index("region")
    assert covered.loc["all", "value"] == 0.6
    assert covered.loc["all", "note"] == "promised 0.8"
    assert covered.loc["all", "low"] == pytest.approx(0.3127, abs=1e-3)  # Wilson, 6 of 10
    ordered = sorted(known)
    for sex in ("F", "M"):
        mine = [n for n, subject in enumerate(ordered) if known[subject].sex == sex]
        assert covered.loc[f"sex={sex}", "value"] == pytest.approx(np.mean([n <= 5 for n in mine]))
        assert covered.loc[f"sex={sex}", "n"] == len(mine)
    assert covered["n"].loc[[r for r in covered.index if r.startswith("age")]].sum() == 10
    widths = table[table["metric"] == "interval_width"].set_index("region")
    assert widths.loc["all", "value"] == pytest.approx(10.0)


def test_calibration_before_and_after_follows_from_the_table_and_the_temperature(index_file: Path, tmp_path: Path) -> None:
    known = people(index_file)
    draw = np.random.default_rng(0)
    before = draw.dirichlet([1, 1], len(known))
    calibration = Calibration(40, temperature=2.0)
    after = temper(before, 2.0)
    rows, truth = [], []
    for (subject, scan), p in zip(sorted(known.items()), after, strict=True):
        truth.append(scan.sex == "M")
        rows.append(row(subject, value="FM"[int(p.argmax())], probability=p[1], p_F=p[0], p_M=p[1]))
    folder = write(
        tmp_path / "p", "classification", "sex", rows, classes=["F", "M"], positive="M", floor={"prior": {"F": 0.5, "M": 0.5}},
        calibration=calibration.to_json(),
    )  # fmt: skip
    evaluate(folder, index_file, out=tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet").set_index(["metric", "region"])
    yes = np.array(truth)
    for text, p in (("before", before[:, 1]), ("after", after[:, 1])):
        brier = np.mean((p - yes) ** 2)
        nll = -np.mean(np.where(yes, np.log(p), np.log(1 - p)))
        assert table.loc[("brier", f"{text} temperature"), "value"] == pytest.approx(brier, abs=1e-4)
        assert table.loc[("nll", f"{text} temperature"), "value"] == pytest.approx(nll, abs=1e-4)
    difference = table.loc[("nll", "after - before temperature")]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert {"ece", "ece_mass"} <= {metric for metric, _ in table.index}


def test_an_abstained_case_is_not_a_failed_one(index_file: Path, tmp_path: Path) -> None:
    known = people(index_file)
    rows = [row(subject, value=scan.age) for subject, scan in sorted(known.items())]
    rows[0] |= {"status": "abstained", "value": None}
    rows[1] |= {"status": "failed", "value": None, "reason": "broken"}
    folder = write(tmp_path / "p", "regression", "age", rows, floor={"mean": 50.0})
    made = evaluate(folder, index_file, out=tmp_path / "s.parquet")
    assert (made.failed, made.abstained) == (1, 1)
    assert "left to a person" in str(made)
    table = pd.read_parquet(tmp_path / "s.parquet").query("region == 'all'").set_index("metric")
    assert table.loc["answered", "value"] == 0.9
    assert set(table.loc["mae", "n"]) == {9}
    everyone = [{**one, "status": "abstained", "value": None} for one in rows]
    with pytest.raises(InputError, match="abstained from every case"):
        evaluate(
            write(tmp_path / "q", "regression", "age", everyone, floor={"mean": 50.0}), index_file, out=tmp_path / "s.parquet"
        )


def test_every_subset_is_scored_and_named(index_file: Path, tmp_path: Path) -> None:
    known = people(index_file)
    names = ["T1w", "T2w", "FLAIR", "T1w+T2w", "FLAIR+T1w", "FLAIR+T2w", "FLAIR+T1w+T2w"]
    folder = write(tmp_path / "p", "regression", "age", [row(s, value=x.age) for s, x in known.items()], floor={"mean": 50.0})
    for n, name in enumerate(names, start=1):
        rows = [row(s, value=x.age + n) for s, x in known.items()]
        write(folder / "subsets" / name, "regression", "age", rows, floor={"mean": 50.0})
    made = evaluate(folder, index_file, out=tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet")
    mae: Any = table[(table["metric"] == "mae") & (table["model"] == "p") & (table["region"] == "all")].set_index("condition")[
        "value"
    ]
    assert set(mae.index) == {"clean", *names}
    for n, name in enumerate(names, start=1):
        assert float(mae.loc[name]) == pytest.approx(n)
    assert made.subsets is not None
    summary = pd.read_csv(made.subsets, sep="\t")
    assert set(summary["contrasts"]) == set(names)
    assert list(summary["n_contrasts"]) == sorted(summary["n_contrasts"])
    assert "FLAIR+T1w+T2w" in str(made)
    write(folder / "subsets" / "T1w", "classification", "sex", [])
    with pytest.raises(ArtifactError, match="of another task"):
        evaluate(folder, index_file, out=tmp_path / "s.parquet")


def test_predicted_subsets_of_three_contrasts_are_seven_conditions(index_file: Path, store_path: Path, tmp_path: Path) -> None:
    """The whole way: fine-tune, predict from every subset, score; native masks against the index's labels."""
    from neuroprior.stages.finetune import finetune
    from neuroprior.stages.predict import predict

    settings = ["training.steps=2", "training.accelerator=cpu", "training.schedule.warmup_steps=1", "data.patch=16"]
    run = finetune(store_path, "scratch", "segmentation", "lesion", out=tmp_path / "run", set=settings)
    predict(run, [str(index_file)], out=tmp_path / "p", split="test", subsets=True, preset="fast", device="cpu")
    refused = evaluate(tmp_path / "p", index_file, out=tmp_path / "s.parquet", assess="none")
    assert (
        len(refused.subset_headlines) == 4
    )  # the label is on the T1w's grid; the others lie elsewhere and nobody asked to resample
    table = pd.read_parquet(tmp_path / "s.parquet").query("metric == 'not_scored'")
    assert set(table["condition"]) == {"T2w", "FLAIR", "FLAIR+T2w"}
    assert table["note"].str.contains("--resample").all()
    made = evaluate(tmp_path / "p", index_file, out=tmp_path / "s.parquet", resample=True)
    table = pd.read_parquet(tmp_path / "s.parquet")
    mine = table[
        (table["model"] == "p") & (table["metric"] == "dice") & (table["case"] == "all") & ~table["region"].str.contains("=")
    ]
    conditions = set(mine["condition"]) - {"clean"}
    assert len(conditions) == 7
    assert {frozenset(name.split("+")) for name in conditions} == {
        frozenset(part)
        for part in ({"T1w"}, {"T2w"}, {"FLAIR"}, {"T1w", "T2w"}, {"T1w", "FLAIR"}, {"T2w", "FLAIR"}, {"T1w", "T2w", "FLAIR"})
    }
    assert made.subsets is not None
    assert len(made.subset_headlines) == 7
