"""Killed at any moment, the store and the trace are those of a run that was never killed; two processes equal one."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.commands import Commands

from neuroprior.core import artifacts
from neuroprior.data.index import read_index, write_index
from neuroprior.data.store import Store
from neuroprior.engine import events
from neuroprior.stages.prepare import prepare

Run = Callable[..., subprocess.CompletedProcess[str]]
KILLS = 10
SMALL = [
    "--set", "net.features=[4,8]", "--set", "net.latent=4", "--set", "data.patch=16", "--set", "training.steps=30", "--set", "training.batch=2",
    "--set", "training.checkpoint_steps=2", "--set", "training.log_every=3", "--set", "training.validate_every=15",
    "--set", "training.panels_every=30", "--set", "training.accelerator=cpu",
]  # fmt: skip


def killed_until_done(commands: Commands, arguments: list[object], alive: Path, rng: random.Random, said: Path) -> int:
    """Start the command again and again and kill it a random moment after it began to write; returns the kills."""
    for kill in range(KILLS):
        before = alive.stat().st_mtime_ns if alive.exists() else 0
        process = commands.start(*arguments)
        until = time.time() + 60
        while process.poll() is None and time.time() < until and (not alive.exists() or alive.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            assert process.returncode == 0
            return kill
        process.kill()
        process.wait()
    done = commands.run(*arguments, folder=said)
    assert done.returncode == 0, done.stderr
    return KILLS


@pytest.mark.slow
def test_prepare_killed_anywhere_gives_the_same_store(index_file: Path, tmp_path: Path, commands: Commands) -> None:
    """A hundred and twenty sessions: the ten heads under twelve names each."""
    scans = [
        replace(scan, scan=f"{copy}/{scan.scan}", subject=f"{scan.subject}x{copy}")
        for scan in read_index(index_file)
        for copy in range(12)
    ]
    many = tmp_path / "many.parquet"
    write_index(scans, many)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "store"
    prepare(many, undisturbed, spacing="4", workers=1)
    arguments = ["prepare", many, "--out", out, "--spacing", "4", "--workers", "1"]
    assert killed_until_done(commands, arguments, out / "store.json", random.Random(0), tmp_path) == KILLS
    assert Store.open(out).store_hash == Store.open(undisturbed).store_hash
    assert Store.open(out).verify() == []
    assert not list(out.rglob(".*-*")), "a temporary file was left behind in a finished store"


def test_prepare_gives_the_same_store_with_two_processes_and_with_dask(
    index_file: Path, store_path: Path, tmp_path: Path, run_cli: Run
) -> None:
    expected = Store.open(store_path).store_hash
    for name, options in (("two", ["--workers", "2"]), ("dask", ["--workers", "1", "--scheduler", "local"])):
        done = run_cli("prepare", index_file, "--out", tmp_path / name, "--spacing", "4", *options)
        assert done.returncode == 0, done.stderr
        assert Store.open(tmp_path / name).store_hash == expected


def test_pretrain_killed_anywhere_gives_the_same_trace(
    store_path: Path, tmp_path: Path, run_cli: Run, commands: Commands
) -> None:
    long = [*SMALL, "--set", "training.steps=90", "--set", "training.validate_every=45", "--set", "training.panels_every=90"]
    whole = run_cli("pretrain", store_path, "--out", tmp_path / "whole", *long)
    assert whole.returncode == 0, whole.stderr
    arguments = ["pretrain", store_path, "--out", tmp_path / "killed", *long]
    kills = killed_until_done(commands, arguments, tmp_path / "killed/state", random.Random(1), tmp_path)
    assert kills == KILLS
    assert events.read(tmp_path / "killed/events.jsonl") == events.read(tmp_path / "whole/events.jsonl")
    weights = [artifacts.read_json(tmp_path / name / "model/model.json")["weights_sha256"] for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_two_gloo_processes_equal_one_with_twice_the_batch(store_path: Path, tmp_path: Path, run_cli: Run) -> None:
    for name, devices, batch in (("one", 1, 2), ("two", 2, 1)):
        done = run_cli(
            "pretrain", store_path, "--out", tmp_path / name, *SMALL, "--set", "training.steps=6", "--set", f"training.devices={devices}",
            "--set", f"training.batch={batch}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (
        [event for event in events.read(tmp_path / name / "events.jsonl") if event["event"] == "step"] for name in ("one", "two")
    )
    assert [e["step"] for e in one] == [e["step"] for e in two] == list(range(1, 7))
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    assert json.loads((tmp_path / "two/ledger.json").read_text())["processes"] == 2
