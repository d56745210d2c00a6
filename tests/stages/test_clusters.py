"""Prepare on Dask and SLURM: the same store as on one machine, whatever happens to a worker."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from neuroprior.data.index import read_index, write_index
from neuroprior.data.store import Store
from neuroprior.engine.clusters import local_cluster
from neuroprior.stages.prepare import prepare

Run = Callable[..., subprocess.CompletedProcess[str]]


def hash_of(path: Path) -> str:
    return Store.open(path).store_hash


def workers() -> list[int]:
    """Processes of Dask workers below this one."""
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:  # it ended while it was looked at
            continue
    return found


@pytest.fixture(scope="module")
def many(index_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The ten heads under four names each, and the hash of their store."""
    folder = tmp_path_factory.mktemp("many")
    scans = [
        replace(scan, scan=f"{n}/{scan.scan}", subject=f"{scan.subject}x{n}") for scan in read_index(index_file) for n in range(4)
    ]
    write_index(scans, folder / "index.parquet")
    prepare(folder / "index.parquet", folder / "store", spacing="4", workers=1, timeout=0)
    return folder / "index.parquet", hash_of(folder / "store")


def test_a_dask_worker_killed_half_way_changes_nothing(many: tuple[Path, str], tmp_path: Path) -> None:
    index, expected = many
    done = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not done.is_set() and not killed:
            there = len(list((tmp_path / "store").glob("sessions/*/*.nps")))
            if there >= 2:
                os.kill(workers()[0], 9)
                killed.append(there)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        summary = prepare(index, tmp_path / "store", spacing="4", workers=2, scheduler="local")
    finally:
        done.set()
        thread.join()
    assert len(killed) == 1 and killed[0] < 30, "a worker was killed while there was work left"
    assert (summary.sessions, summary.left_out, summary.quarantined) == (40, 0, 0)
    assert hash_of(tmp_path / "store") == expected


def test_a_running_dask_cluster_gives_the_same_store(index_file: Path, store_path: Path, tmp_path: Path) -> None:
    with local_cluster(2) as cluster:
        summary = prepare(index_file, tmp_path / "store", spacing="4", scheduler=cluster.scheduler_address)
        assert len(cluster.scheduler.workers) == 2, "the workers are somebody else's, and stay"
    assert summary.left_out == 0
    assert hash_of(tmp_path / "store") == hash_of(store_path)


def test_slurm_gives_the_same_store_and_says_no_more_than_it_must(
    index_file: Path, store_path: Path, tmp_path: Path, stub_slurm: Callable[[str], Path], run_cli: Run
) -> None:
    """By a stub ``sbatch`` that runs what it is given."""
    done = run_cli("prepare", index_file, "--out", tmp_path / "store", "--spacing", "4", "--slurm", stub_slurm("300s"))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("script-*")), "nothing was submitted"
    assert hash_of(tmp_path / "store") == hash_of(store_path)
    assert "distributed." not in done.stdout + done.stderr
