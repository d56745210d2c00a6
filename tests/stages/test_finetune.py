"""The command: signals, the twin from scratch, covariates, every kind of head, deep supervision; all of them predict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroprior.core import artifacts
from neuroprior.core.config import read_yaml
from neuroprior.core.errors import ConfigError
from neuroprior.data.store import Store
from neuroprior.engine import events, vram
from neuroprior.inference import model as models
from neuroprior.inference import windows
from neuroprior.stages.finetune import finetune

SMALL = ["training.batch=2", "training.accelerator=cpu", "training.log_every=1", "data.patch=16"]


def first_case(run: Path, store_path: Path) -> tuple[models.Model, torch.Tensor]:
    store, model = Store.open(store_path), models.load(run)
    session = store.sessions[0]
    image = torch.from_numpy(store.read(session.key, "T1w"))[None].float()
    if model.task["name"] == "segmentation":
        return model, windows.segment(model, image, ["T1w"], window=model.task["window"])
    return model, windows.pool(model, image, ["T1w"], window=model.task["window"])


def test_sigterm_leaves_a_model_that_predicts_and_code_75(store_path: Path, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "neuroprior", "finetune", str(store_path), "--from", str(pretrained), "--task", "segmentation", "--target",
        "lesion", "--out", str(out), "--steps", "5000", *(part for s in SMALL for part in ("--set", s)),
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    until = time.time() + 200
    while time.time() < until and process.poll() is None and len(events.read(out / "events.jsonl")) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 75, text
    assert "the same command resumes" in text
    assert first_case(out, store_path)[1].shape[0] == 2
    assert not artifacts.is_complete(out)


def test_the_twin_from_scratch_has_the_same_protocol(store_path: Path, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = finetune(
        store_path,
        str(pretrained),
        "regression",
        "age",
        "T1w",
        out,
        steps=2,
        compare="scratch",
        seeds=2,
        set=[*SMALL, "task.hidden=4"],
    )
    assert (str(result), os.fspath(result), result.exit_code, result.twin) == (str(out), str(out), 0, tmp_path / "run-scratch")
    compared = artifacts.read_json(out / "comparison.json")
    assert [row["run"] for row in compared["runs"]] == ["seed-0", "seed-1"]
    for row in compared["runs"]:
        assert set(row["pretrained"]) == set(row["scratch"]) == {"loss", "mae"}
        one, twin = (models.read_info(tmp_path / name / row["run"]) for name in ("run", "run-scratch"))
        assert (one["method"]["initialised_from"], twin["method"]["initialised_from"]) == ("pretrained", "scratch")
        assert one["net"] == twin["net"]
        assert one["lineage"]
        assert not twin["lineage"]
        same = {k: v for k, v in one["method"]["settings"]["training"].items() if k != "phases"}
        assert same == {k: v for k, v in twin["method"]["settings"]["training"].items() if k != "phases"}
    assert {row["scratch"]["mae"] for row in compared["runs"]} != {compared["runs"][0]["scratch"]["mae"]}


@pytest.mark.parametrize(
    ("task", "target", "settings", "outputs"),
    [
        ("regression", "age", ["task.loss=heteroscedastic", "data.covariates=[sex]"], 2),
        ("regression", "age", ["task.loss=ordinal", "task.bins=5"], 5),
        ("classification", "sex", ["task.order=[M, F]", "data.covariates=[age, health]"], 2),
        ("segmentation", "lesion", ["task.deep_supervision=1", "task.region=tversky", "task.voxel=focal", "data.augment=mri"], 2),
    ],
)
def test_every_kind_of_head_trains_saves_and_predicts(
    task: str, target: str, settings: list[str], outputs: int, store_path: Path, pretrained: Path, tmp_path: Path
) -> None:
    finetune(store_path, str(pretrained), task, target, out=tmp_path / "run", steps=2, set=[*SMALL, *settings])
    model, answer = first_case(tmp_path / "run", store_path)
    assert answer.shape[0] == outputs
    assert torch.isfinite(answer).all()
    if task == "classification":
        assert model.task["classes"] == ["M", "F"]
        assert model.task["covariates"] == ["age", "health"]
        np.testing.assert_allclose(answer.exp().sum(), 1, rtol=1e-4)
    if task == "segmentation":
        assert any(key.startswith("coarser") for key in model.head.state_dict())  # type: ignore[union-attr]


def test_impossible_requests_are_told(store_path: Path, pretrained: Path, tmp_path: Path) -> None:
    def fails(message: str, **kw: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            finetune(store_path, str(pretrained), "segmentation", "lesion", out=tmp_path / "x", **kw)

    fails("did you mean 'sawtooth'", strategy="sawtoth")
    fails("either --steps or --epochs", steps=3, epochs=1.0)
    fails("needs a pretrained model", strategy="scratch", compare="scratch")
    fails("FROM:TO", label_map="255=1")
    fails("counts runs", seeds=0)
    assert finetune(store_path, str(pretrained), "segmentation", "lesion", out=tmp_path / "x", dry_run=True).status == "planned"
    assert not (tmp_path / "x").exists()


def test_rows_without_a_value_are_told_and_left_out(
    index_file: Path, tmp_path: Path, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    from neuroprior.data.index import read_index, write_index
    from neuroprior.stages.prepare import prepare

    scans = read_index(index_file)
    gone = sorted({scan.subject for scan in scans if scan.split == "train"})[:2]
    write_index([replace(s, age=None) if s.subject in gone else s for s in scans], tmp_path / "index.parquet")
    prepare(tmp_path / "index.parquet", tmp_path / "store", spacing="4", workers=1)
    finetune(tmp_path / "store", str(pretrained), "regression", "age", out=tmp_path / "run", dry_run=True, set=SMALL)
    assert "2 of 6 training sessions left out, they have no value in column 'age'" in caplog.text
    assert gone[0] in caplog.text


def test_a_task_in_less_memory_computes_maps_again(store_path: Path, pretrained: Path, tmp_path: Path) -> None:
    """The same steps, in the memory that is asked for; less than anything needs is an error that says so."""
    asked: dict[str, Any] = {"steps": 2, "set": SMALL}
    finetune(store_path, str(pretrained), "segmentation", "lesion", out=tmp_path / "plain", **asked)
    with pytest.raises(ConfigError, match=r"at least \d+ MiB") as refused:
        finetune(store_path, str(pretrained), "segmentation", "lesion", out=tmp_path / "less", vram="0.586", **asked)
    least = float(str(refused.value).split("at least ")[1].split(" MiB")[0]) + 1
    gb = str((least / vram.ROOM + vram.CONTEXT_MB) / 1024)
    finetune(store_path, str(pretrained), "segmentation", "lesion", out=tmp_path / "less", vram=gb, **asked)
    training = read_yaml(tmp_path / "less" / "recipe.yaml")["training"]
    assert (training["batch"], training["accumulate"]) == (2, 1)
    plain, less = (
        [e["loss"] for e in events.read(tmp_path / run / "events.jsonl") if e["event"] == "step"] for run in ("plain", "less")
    )
    assert less == pytest.approx(plain, rel=1e-5)
    again = finetune(store_path, str(pretrained), "segmentation", "lesion", out=tmp_path / "less", vram=gb, **asked)
    assert again.exit_code == 0
