"""A process's place among those that train together, by what Lightning, torchrun and srun say."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from neuroprior.core import ranks
from neuroprior.core.errors import ConfigError

NAMES = (
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_RUN_ID",
)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No scheduler, and what a process writes into its environment is taken back."""
    for name in (*NAMES, *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    level = logging.getLogger("neuroprior").level
    logging.getLogger("neuroprior").setLevel(logging.INFO)
    yield
    logging.getLogger("neuroprior").setLevel(level)


def task(monkeypatch: pytest.MonkeyPatch, number: int, tasks: int = 8, nodes: int = 2, **more: str) -> None:
    """The environment of a task of srun, as SLURM documents it."""
    told = {
        "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_NTASKS": "16",
        "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_NNODES": "4", "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number % (tasks // nodes)),
        "SLURM_NODEID": str(number // (tasks // nodes)), "SLURM_STEP_NODELIST": "gpu[07-08,12],big3", **more,
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)


def test_alone_nothing_is_written() -> None:
    before = dict(os.environ)
    assert ranks.join(4) == ranks.Group(4, 1)
    assert ranks.is_first()
    assert dict(os.environ) == before


@pytest.mark.parametrize("number", range(8))
def test_tasks_of_srun_are_told_their_places(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task(monkeypatch, number)
    assert ranks.join(8) == ranks.Group(4, 2)
    found = [os.environ[name] for name in ("NODE_RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
    assert found == [str(number // 4), str(number % 4), "gpu07", str(15000 + 4569)]
    assert ranks.is_first() == (number == 0)
    assert (logging.getLogger("neuroprior").level == logging.WARNING) == (number > 0)
    assert ranks.join(8) == ranks.Group(4, 2), "a second time nothing changes"


def test_where_the_processes_meet_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    task(monkeypatch, 3, MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    ranks.join(8)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[3-5]", "n3"), ("n[03,7],m[1-2]", "n03"), ("rack[1-2]n[8-9]", "rack1n8"), ("a b", "a")],
)
def test_the_first_of_slurms_nodes(nodes: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task(monkeypatch, 0, SLURM_STEP_NODELIST=nodes)
    ranks.join(8)
    assert os.environ["MASTER_ADDR"] == first


@pytest.mark.parametrize("devices", [2, 4, 16])
def test_another_number_of_tasks_is_an_error_that_says_what_to_do(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task(monkeypatch, 0)
    with pytest.raises(ConfigError, match=f"8 processes were started for a run with training.devices={devices}") as refused:
        ranks.join(devices)
    assert "--set training.devices=8" in str(refused.value)
    assert "LOCAL_RANK" not in os.environ


def test_tasks_of_a_sweep_train_by_themselves(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    task(monkeypatch, 3)
    with caplog.at_level(logging.INFO, logger="neuroprior"):
        assert ranks.join(1) == ranks.join(1) == ranks.Group(1, 1)
    assert caplog.text.count("by itself") == 1
    assert "training.devices=8 would train them together" in caplog.text
    assert ranks.is_first() and "LOCAL_RANK" not in os.environ


def test_a_jobs_script_is_one_process_whatever_the_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    task(monkeypatch, 0)
    monkeypatch.delenv("SLURM_STEP_ID")
    assert ranks.join(2) == ranks.Group(2, 1)
    assert "LOCAL_RANK" not in os.environ, "Lightning starts the others"


def test_one_task_starts_the_others_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    task(monkeypatch, 0, tasks=1, nodes=1)
    assert ranks.join(2) == ranks.Group(2, 1)
    assert "LOCAL_RANK" not in os.environ
    monkeypatch.setenv("LOCAL_RANK", "1")  # as Lightning starts the second
    assert ranks.join(2) == ranks.Group(2, 1)
    assert not ranks.is_first()


def test_torchruns_processes_keep_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "1",
        "RANK": "3",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert ranks.join(6) == ranks.Group(3, 2)
    assert not ranks.is_first()
    with pytest.raises(ConfigError, match="6 processes"):
        ranks.join(2)
