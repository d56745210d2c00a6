"""Killed at any moment, the store and the trace are those of a run that was never killed; two processes equal one."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
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


def killed_until_done(
    commands: Commands, arguments: list[object], alive: Path, rng: random.Random, said: Path, now_and_then: tuple[str, ...] = ()
) -> int:
    """Start the command again and again and kill it a random moment after it began to write; returns the kills.

    Every other time ``now_and_then`` is added to it.
    """
    for kill in range(KILLS):
        before = alive.stat().st_mtime_ns if alive.exists() else 0
        process = commands.start(*arguments, *(now_and_then if kill % 2 else ()))
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
    prepare(many, undisturbed, spacing="4", workers=1, timeout=0)
    arguments = ["prepare", many, "--out", out, "--spacing", "4", "--workers", "1"]
    here = ("--timeout", "0")  # no worker: what is killed is the process that writes
    assert killed_until_done(commands, arguments, out / "store.json", random.Random(0), tmp_path, here) == KILLS
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


def started(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a session of its own, so that a signal can be sent to all of its processes, as SLURM does."""
    return subprocess.Popen(
        [sys.executable, "-m", "neuroprior", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | environment,
    )  # fmt: skip


def until_it_steps(process: subprocess.Popen[str], run: Path, steps: int = 3) -> None:
    end = time.monotonic() + 120
    while not (run / "events.jsonl").exists() or (run / "events.jsonl").read_text().count('"step"') < steps:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.05)


def traced(run: Path) -> list[dict[str, Any]]:
    return [event for event in events.read(run / "events.jsonl") if event["event"] == "step"]


@pytest.mark.slow
def test_processes_of_lightning_and_of_srun_equal_one_with_twice_the_batch(
    store_path: Path, tmp_path: Path, run_cli: Run
) -> None:
    six = [*SMALL, "--set", "training.steps=6"]
    two = [*six, "--set", "training.devices=2", "--set", "training.batch=1"]
    for name, options in (("one", six), ("two", two)):
        done = run_cli("pretrain", store_path, "--out", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("complete after 6 steps") == 1, "the second process is quiet"
        assert done.stderr.count("6 steps of") == 1
    step = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NODEID": "0"}
    place = {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_NAME": "brains", "MASTER_PORT": str(free_port())}
    tasks = [
        started("pretrain", store_path, "--out", tmp_path / "srun", *two, **step, **place, SLURM_PROCID=n, SLURM_LOCALID=n)
        for n in "01"
    ]
    said = [task.communicate(timeout=180) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert [out.count("complete after 6 steps") for out, _ in said] == [1, 0]
    one = traced(tmp_path / "one")
    for name in ("two", "srun"):
        found = traced(tmp_path / name)
        assert [e["step"] for e in one] == [e["step"] for e in found] == list(range(1, 7))
        for a, b in zip(one, found, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert json.loads((tmp_path / name / "ledger.json").read_text())["processes"] == 2


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_every_process_of_a_job_ends_a_run_that_can_go_on(name: str, store_path: Path, tmp_path: Path) -> None:
    """SLURM sends SIGTERM at the end of a job's time, and what ``--signal`` asks for before, to the loader's workers too."""
    arguments = [
        "pretrain",
        store_path,
        "--out",
        tmp_path / "run",
        *SMALL,
        "--set",
        "training.steps=5000",
        "--set",
        "training.workers=2",
    ]
    process = started(*arguments)
    until_it_steps(process, tmp_path / "run")
    os.killpg(process.pid, getattr(signal, name))
    out, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert f"{name}: stopped after step" in said and "Traceback" not in said
    steps = [event["step"] for event in traced(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1)) and f"stopped after {len(steps)} steps" in out
    assert (tmp_path / f"run/state/step-{len(steps):08d}.pt").exists()
    end = time.monotonic() + 20
    while left := [p for p in psutil.process_iter(["status"]) if _group(p.pid) == process.pid and p.info["status"] != "zombie"]:
        assert time.monotonic() < end, f"left behind: {left}"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_every_process_ends_prepare_in_order(name: str, index_file: Path, store_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    arguments = ["prepare", index_file, "--out", out, "--spacing", "4", "--workers", "2"]
    process = started(*arguments)
    end = time.monotonic() + 120
    while not list(out.glob("sessions/*/*.nps")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.02)
    os.killpg(process.pid, getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert f"{name}: stopped; the same command goes on" in said and "Traceback" not in said
    again = started(*arguments)
    assert again.communicate(timeout=120) and again.returncode == 0
    assert Store.open(out).store_hash == Store.open(store_path).store_hash


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1
