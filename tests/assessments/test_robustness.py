"""Stress tests: severities that are severer, summaries against plain numpy, and the stage on a small model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroprior.assessments import robustness
from neuroprior.assessments._corruptions import LEVELS, SEVERITIES, corrupt
from neuroprior.assessments.accuracy import Context
from neuroprior.core import nifti, seeds
from neuroprior.core.conforming import ConformSpec, conform
from neuroprior.core.headmask import head_mask
from neuroprior.core.records import Score
from neuroprior.core.volume import Volume

Run = Callable[..., subprocess.CompletedProcess[str]]
REAL = (
    "ixi-2mm/**/*_T1w.nii.gz", "openms-cross/**/*C19*_FLAIR.nii.gz", "openms-long/**/*_T1w.nii.gz", "ds002748/**/*_T1w.nii.gz",
    "torchio-fernando/**/*_FLAIR.nii.gz",
)  # fmt: skip


@pytest.fixture(scope="module")
def real_scans(real_data: Path) -> list[Volume]:
    """Five real scans of five datasets, brought to 3 mm so that the test is quick."""
    scans = []
    for pattern in REAL:
        volume, _ = nifti.read_scan(sorted(real_data.glob(pattern))[0])
        small, _ = conform(volume, ConformSpec.model_validate({"spacing_mm": 3.0, "crop": "none", "normalise": "none"}))
        scans.append(small)
    return scans


@pytest.mark.parametrize("name", LEVELS)
def test_likeness_falls_with_every_severity_on_real_scans(real_scans: list[Volume], name: str) -> None:
    for number, scan in enumerate(real_scans):
        head = head_mask(scan.voxels, scan.spacing_mm)
        likeness = [1.0]
        for severity in SEVERITIES:
            worse, drawn = corrupt(scan, name, severity, seeds.generator(0, "test", number, name))
            assert np.isfinite(worse.voxels).all()
            assert json.loads(json.dumps(drawn)), "draws are plain data"
            likeness.append(float(np.corrcoef(scan.voxels[head], worse.voxels[head])[0, 1]))
        assert all(a > b for a, b in pairwise(likeness)), (REAL[number], likeness)


def test_a_draw_is_the_same_at_every_severity_but_for_its_strength() -> None:
    rng = np.random.default_rng(0)
    scan = Volume(rng.random((20, 22, 18)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    for name, fixed in (("ghosting", "axis"), ("spike", "place"), ("lowres", "axis"), ("motion", "axis")):
        draws = [corrupt(scan, name, severity, seeds.generator(3, name))[1] for severity in SEVERITIES]
        assert len({str(draw[fixed]) for draw in draws}) == 1
        assert len({str(draw) for draw in draws}) == 5
    with pytest.raises(ValueError, match="severities 1 to 5"):
        corrupt(scan, "blur", 6, rng)


def test_units_come_back() -> None:
    """A corruption of a scan in other units is the corruption of the scan in those units."""
    rng = np.random.default_rng(1)
    voxels = np.zeros((24, 24, 24), dtype=np.float32)
    voxels[4:20, 4:20, 4:20] = 50 + 10 * rng.random((16, 16, 16))
    for name in LEVELS:
        plain, _ = corrupt(Volume(voxels, np.eye(4)), name, 3, seeds.generator(0, name))
        scaled, _ = corrupt(Volume(voxels * 7 + 100, np.eye(4)), name, 3, seeds.generator(0, name))
        np.testing.assert_allclose(scaled.voxels, plain.voxels * 7 + 100, rtol=1e-3, atol=0.5)


def rows_of(values: dict[str, dict[int, list[float]]], clean: list[float], metric: str) -> list[Score]:
    rows = []
    for name, levels in {"": {0: clean}, **values}.items():
        for level, numbers in levels.items():
            condition = robustness.condition_name(name, level)
            for case, number in enumerate(numbers):
                rows.append(Score("m", "segmentation", "lesion", f"c{case}", f"s{case}", metric, "lesion", condition, number))
            mean = float(np.mean(numbers))
            rows.append(Score("m", "segmentation", "lesion", "all", "all", metric, "lesion", condition, mean, n=len(numbers)))
    return rows


def test_summaries_equal_plain_numpy() -> None:
    rng = np.random.default_rng(2)
    clean = list(rng.uniform(0.6, 0.9, 6))
    values = {name: {s: list(rng.uniform(0.1, 0.6, 6)) for s in SEVERITIES} for name in ("blur", "noise")}
    found = {
        (row.condition, row.metric): row
        for row in robustness.summary(rows_of(values, clean, "dice"), Context("m", "segmentation", "lesion", resamples=500))
    }
    w = (2 / 3) ** np.arange(1, 6)
    degradations, overalls = [], []
    for name in ("blur", "noise"):
        means = np.array([np.mean(values[name][s]) for s in SEVERITIES])
        degradations.append((w * (np.mean(clean) - means)).sum() / w.sum())
        overalls.append((np.mean(clean) + (w * means).sum()) / (1 + w.sum()))
        assert found[name, "dice_degradation"].value == pytest.approx(degradations[-1], abs=1e-12)
        assert found[name, "dice_overall"].value == pytest.approx(overalls[-1], abs=1e-12)
    row = found["every corruption", "dice_degradation"]
    assert row.value == pytest.approx(np.mean(degradations), abs=1e-12)
    low, value, high = (float(number) for number in (row.low or 0, row.value or 0, row.high or 0))
    assert 0 < low < value < high
    assert row.n == 6


def test_the_interval_is_of_the_number_beside_it() -> None:
    """A healthy case has no DSC until an artefact makes a false lesion: it counts there, and the interval knows."""
    rng = np.random.default_rng(4)
    clean = [*rng.uniform(0.6, 0.9, 8), float("nan"), float("nan")]
    values = {"noise": {s: [*rng.uniform(0.5, 0.8, 8), 0.0, 0.0] for s in SEVERITIES}}
    rows = []
    for row in rows_of(values, clean, "dice"):
        number = row.value
        if row.case == "all":
            numbers = clean if row.condition == "clean" else values["noise"][int(row.condition[-1])]
            number = float(np.nanmean(numbers))
        rows.append(replace(row, value=None if number is None or np.isnan(number) else number))
    (found,) = [
        row
        for row in robustness.summary(rows, Context("m", "segmentation", "lesion", resamples=500))
        if (row.condition, row.metric) == ("noise", "dice_degradation")
    ]
    w = (2 / 3) ** np.arange(1, 6)
    assert found.value == pytest.approx(
        (w * (np.nanmean(clean) - np.array([np.mean(values["noise"][s]) for s in SEVERITIES]))).sum() / w.sum()
    )
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    assert found.n == 10


def test_positive_is_worse_also_where_less_is_better() -> None:
    assert robustness.degradation(5.0, {1: 8.0, 2: 8.0}, less_is_better=True) == pytest.approx(3.0)
    assert robustness.degradation(0.8, {1: 0.5, 2: 0.5}) == pytest.approx(0.3)
    assert robustness.overall(0.8, {1: 0.8, 5: 0.8}) == pytest.approx(0.8)


@pytest.mark.parametrize(("task", "target"), [("segmentation", "lesion"), ("classification", "sex")])
def test_the_stage_scores_resumes_and_reports(
    task: str, target: str, store_path: Path, index_file: Path, tmp_path: Path, run_cli: Run
) -> None:
    small = ["--set", "training.steps=2", "--set", "training.batch=1", "--set", "training.accelerator=cpu"]
    net = tmp_path / "net.yaml"
    net.write_text(
        "net: {name: unet, features: [4, 8], latent: 4}\nobjective: {name: mae}\ndata: {patch: 16}\ntraining: {steps: 2}\n"
    )
    done = run_cli(
        "finetune",
        store_path,
        "--from",
        "scratch",
        "--task",
        task,
        "--target",
        target,
        "--recipe",
        net,
        "--out",
        tmp_path / "run",
        *small,
    )
    assert done.returncode == 0, done.stderr
    command = (
        "stress", tmp_path / "run", index_file, "--out", tmp_path / "stress", "--corruptions", "noise,blur", "--severities", "1,4",
        "--name", "ours",
    )  # fmt: skip
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "stress/scores.parquet")
    assert {"clean", "noise 1", "noise 4", "blur 1", "blur 4", "noise", "blur", "every corruption"} == set(table["condition"])
    draws = json.loads((tmp_path / "stress/draws.json").read_text())
    assert all(set(draws[condition]) == set(draws["noise 1"]) for condition in ("noise 4", "blur 1", "blur 4"))
    assert len(list((tmp_path / "stress/pictures").glob("*.png"))) == 2
    part = tmp_path / "stress/parts/noise-4.json"
    part.unlink()
    kept = tmp_path / "stress/parts/blur-1.json"
    before = kept.stat().st_mtime_ns
    assert run_cli(*command).returncode == 0
    assert part.is_file()
    assert kept.stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "stress/scores.parquet"), table)
    page = Path(run_cli("report", tmp_path / "stress/scores.parquet", "--out", tmp_path / "report").stdout.strip()).read_text()
    assert "Under stress" in page
    assert "every corruption" in page
    refused = run_cli(*command[:-2], "--seed", "1")
    assert refused.returncode == 2
    assert "another stress test" in refused.stderr
    wrong = run_cli("stress", tmp_path / "run", index_file, "--corruptions", "nois", "--out", tmp_path / "x")
    assert wrong.returncode == 2
    assert "noise" in wrong.stderr
