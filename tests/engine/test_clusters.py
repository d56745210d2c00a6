"""Jobs on Dask and SLURM: a worker that dies, hangs or leaves concerns its own job, and waiting for one costs no job its time."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neuroprior.core.errors import ConfigError, InputError
from neuroprior.engine import clusters, jobs


def work(what: str, folder: str) -> str:
    """A job that behaves, or not; each try leaves a mark."""
    name = what.split(":")[0]
    place = Path(folder)
    tries = len(list(place.glob(f"{what}-try-*")))
    (place / f"{what}-try-{tries}").touch()
    if name == "kill" or (name == "kill_once" and not tries):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang" or (name == "hang_once" and not tries):
        time.sleep(600)
    if name == "stall":
        time.sleep(6)
    if name == "slow":
        time.sleep(1.5)
    if name == "raise":
        raise KeyError("not there")
    if name == "beside":
        mark = place / f"running-{os.getpid()}-{what}"
        mark.touch()
        time.sleep(0.3)
        together = len(list(place.glob(f"running-{os.getpid()}-*")))
        mark.unlink()
        return str(together)
    return what.upper()


def tries(folder: Path, what: str) -> int:
    return len(list(folder.glob(f"{what}-try-*")))


def outcomes(pool: jobs.Pool, names: list[str], folder: Path, budget: jobs.Budget) -> dict[str, jobs.Outcome]:
    given = (jobs.Job(name, (name, str(folder))) for name in names)
    return {outcome.name: outcome for outcome in jobs.run(pool, given, budget)}


def meanwhile(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def until(found: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_a_dask_worker_that_dies_is_named(tmp_path: Path) -> None:
    pool, workers = clusters.dask_cluster(work, "local", 2)
    found = outcomes(pool, ["ok:1", "kill:a", "kill_once:b", "ok:2", "raise:c"], tmp_path, jobs.Budget(workers))
    assert found["ok:1"].value == "OK:1" and found["ok:2"].value == "OK:2" and found["kill_once:b"].value == "KILL_ONCE:B"
    assert found["kill:a"].quarantined and "died" in str(found["kill:a"].error)
    assert "not there" in str(found["raise:c"].error)


def test_a_dask_worker_that_hangs_is_started_anew(tmp_path: Path) -> None:
    pool, workers = clusters.dask_cluster(work, "local", 1)
    found = outcomes(pool, ["hang:a", "ok:1", "hang_once:b", "ok:2"], tmp_path, jobs.Budget(workers, timeout_s=3))
    assert found["hang:a"].quarantined and "3 s" in str(found["hang:a"].error)
    assert tries(tmp_path, "hang:a") == 2
    assert [found[name].value for name in ("ok:1", "hang_once:b", "ok:2")] == ["OK:1", "HANG_ONCE:B", "OK:2"]


def test_nobody_at_the_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "ANSWERS_WITHIN_S", 2)
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        clusters.dask_cluster(work, "tcp://127.0.0.1:1", 1)


def test_waiting_for_a_worker_is_told_and_costs_no_job_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first worker comes after three times the time limit."""
    from distributed import Client

    monkeypatch.setattr(clusters, "TOLD_AFTER_S", 0.5)
    with clusters.local_cluster(0) as cluster:
        late = meanwhile(lambda: (time.sleep(4.5), cluster.scale(1)))
        with caplog.at_level(logging.WARNING):
            pool = clusters.OnDask(work, Client(cluster), wanted=1)
            found = outcomes(pool, ["ok:1", "ok:2", "ok:3"], tmp_path, jobs.Budget(2, timeout_s=1.5))
        late.join()
    assert {outcome.value for outcome in found.values()} == {"OK:1", "OK:2", "OK:3"}
    assert [tries(tmp_path, name) for name in found] == [1, 1, 1]
    assert "waiting for workers: none of 1 is there" in caplog.text and "once more" not in caplog.text


@pytest.mark.slow
def test_workers_of_somebody_else_are_not_killed_twice(tmp_path: Path) -> None:
    """Their scheduler gives a job that kills its worker to the next one, three times over, unless it is told which worker may have it."""
    with clusters.local_cluster(2) as cluster:
        pool, workers = clusters.dask_cluster(work, cluster.scheduler_address, 1)
        assert workers == 2
        names = ["kill:a", *(f"ok:{n}" for n in range(5)), "hang:b", "ok:9"]
        found = outcomes(pool, names, tmp_path, jobs.Budget(workers, timeout_s=4))
    assert found["kill:a"].quarantined and found["hang:b"].quarantined
    assert tries(tmp_path, "kill:a") == 2, "beside other jobs, and alone"
    assert tries(tmp_path, "hang:b") == 2
    assert all(found[name].value == name.upper() for name in names if name.startswith("ok"))


def test_two_jobs_never_share_a_worker_with_many_threads(tmp_path: Path) -> None:
    with clusters.local_cluster(2, threads_per_worker=4) as cluster:
        pool, workers = clusters.dask_cluster(work, cluster.scheduler_address, 1)
        found = outcomes(pool, [f"beside:{n}" for n in range(8)], tmp_path, jobs.Budget(workers))
    assert {outcome.value for outcome in found.values()} == {"1"}


def test_a_hanging_worker_without_a_nanny_is_let_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody would start it again: the cluster keeps its workers, and no more jobs come to these."""
    with clusters.local_cluster(2, processes=False) as cluster:
        pool, workers = clusters.dask_cluster(work, cluster.scheduler_address, 1)
        found = outcomes(pool, ["ok:1", "ok:2", "stall:a"], tmp_path, jobs.Budget(workers, timeout_s=1))
        assert len(cluster.scheduler.workers) == 2
        assert found["stall:a"].quarantined and tries(tmp_path, "stall:a") == 2
        assert "has no nanny" in caplog.text
        until(lambda: not any(ws.processing for ws in cluster.scheduler.workers.values()))


def test_a_job_whose_worker_leaves_as_planned_goes_to_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As at the end of a SLURM job with --lifetime: this is nobody's failure."""
    from distributed import Client

    with clusters.local_cluster(1) as cluster, Client(cluster) as other:
        pool, workers = clusters.dask_cluster(work, cluster.scheduler_address, 1)

        def leave() -> None:
            until(lambda: tries(tmp_path, "hang_once:a"))
            old = list(other.scheduler_info(n_workers=-1)["workers"])
            cluster.scale(2)
            until(lambda: len(other.scheduler_info(n_workers=-1)["workers"]) == 2)
            other.retire_workers(old, close_workers=True)

        thread = meanwhile(leave)
        with caplog.at_level(logging.WARNING):
            found = outcomes(pool, ["hang_once:a"], tmp_path, jobs.Budget(workers, timeout_s=60))
        thread.join()
    assert found["hang_once:a"].value == "HANG_ONCE:A" and tries(tmp_path, "hang_once:a") == 2
    assert "once more" not in caplog.text


def test_what_runs_at_once_follows_the_workers_and_their_memory(tmp_path: Path) -> None:
    with clusters.local_cluster(2, processes=False, memory_limit="2 GB") as cluster:
        pool, _ = clusters.dask_cluster(work, cluster.scheduler_address, 1)
        pool._ask(now=True)
        assert pool.room(jobs.Budget(7)) == jobs.Budget(2, 4000.0)
        assert pool.room(jobs.Budget(7, 500.0, 3)) == jobs.Budget(2, 500.0, 3)
        cluster.scale(1)
        until(lambda: len(cluster.scheduler.workers) == 1)
        pool._ask(now=True)
        assert pool.room(jobs.Budget(7)) == jobs.Budget(1, 2000.0)
        pool.close(at_once=True)


def test_a_running_dask_cluster_is_used_by_its_address(tmp_path: Path) -> None:
    with clusters.local_cluster(2, processes=False) as cluster:
        pool, workers = clusters.dask_cluster(work, cluster.scheduler_address, 1)
        assert workers == 2
        found = outcomes(pool, [f"ok:{n}" for n in range(5)], tmp_path, jobs.Budget(workers))
        assert {outcome.value for outcome in found.values()} == {f"OK:{n}" for n in range(5)}


def test_slurm_submits_the_script_that_the_settings_say(tmp_path: Path, stub_slurm: Callable[[str], Path]) -> None:
    pool, workers = clusters.slurm(str.upper, stub_slurm("60s"))
    found = {
        outcome.name: outcome.value
        for outcome in jobs.run(pool, [jobs.Job("a", ("x",)), jobs.Job("b", ("y",))], jobs.Budget(workers))
    }
    assert found == {"a": "X", "b": "Y"}
    script = (tmp_path / "script-1").read_text()
    for line in ("#SBATCH -p long", "#SBATCH -A brains", "#SBATCH -t 00:20:00", "#SBATCH --gres=none", "#SBATCH --mem=2G"):
        assert line in script, script
    assert "distributed.cli.dask_worker" in script or "dask worker" in script


def test_slurm_jobs_that_end_are_asked_for_again(
    tmp_path: Path, stub_slurm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers live for five seconds, and there are nine seconds of work; no job is blamed for it."""
    import dask

    monkeypatch.setattr(clusters, "SCALED_EVERY_S", 1.0)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "500ms"}), caplog.at_level(logging.WARNING):
        pool, workers = clusters.slurm(time.sleep, stub_slurm("5s"))
        given = [jobs.Job(f"{n}", (1.5,)) for n in range(6)]
        found = list(jobs.run(pool, given, jobs.Budget(workers, timeout_s=30)))
    assert sorted(outcome.name for outcome in found) == list("012345")
    assert not [outcome for outcome in found if outcome.error]
    assert len(list(tmp_path.glob("script-*"))) >= 2
    assert "once more" not in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "cores: 1",
        "- 1",
        "cores: 1\nmemory: 1 GB\njobs: none",
        "cores: 1\nmemory: 1 GB\ncolour: red",
        "a: [",
        "cores: 1\nmemory: 1 GB\nscheduler_options: ho",
    ],
)
def test_slurm_settings_that_cannot_be_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "slurm.yml").write_text(text)
    with pytest.raises(ConfigError, match="SLURM"):
        clusters.slurm_cluster(tmp_path / "slurm.yml")


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Starts a worker of a scheduler in an environment that has nothing of these tests."""
    started: list[subprocess.Popen[bytes]] = []

    def start(scheduler: str) -> None:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-dashboard", "--nthreads", "1"]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
        )

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def test_workers_of_another_environment_get_no_jobs(
    stranger: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a worker closes over a job that it cannot read, which would look as if it had died of it."""
    with clusters.local_cluster(0) as cluster:
        stranger(cluster.scheduler_address)
        until(lambda: cluster.scheduler.workers)
        pool, workers = clusters.dask_cluster(work, cluster.scheduler_address, 1)
        with pytest.raises(InputError, match="the only Dask worker cannot do the jobs") as refused:
            outcomes(pool, ["ok:1"], tmp_path, jobs.Budget(workers))
        assert "No module named 'tests'" in str(refused.value) and "pip install neuroprior==" in str(refused.value)
        cluster.scale(1)
        until(lambda: len(cluster.scheduler.workers) == 2)
        pool, workers = clusters.dask_cluster(work, cluster.scheduler_address, 1)
        found = outcomes(pool, [f"ok:{n}" for n in range(4)], tmp_path, jobs.Budget(workers))
    assert {outcome.value for outcome in found.values()} == {f"OK:{n}" for n in range(4)}
    assert caplog.text.count("gets no jobs: No module named 'tests'") == 1


def test_workers_and_schedulers_of_another_version_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None: ...

    lost.__module__ = "somewhere.neuroprior"
    with clusters.local_cluster(2, processes=False) as cluster:
        with pytest.raises(InputError, match="the Dask scheduler cannot do the jobs") as refused:
            clusters.dask_cluster(lost, cluster.scheduler_address, 1)
        assert "No module named 'somewhere'" in str(refused.value)
        monkeypatch.setattr(clusters, "__version__", "99.1")
        pool, workers = clusters.dask_cluster(work, cluster.scheduler_address, 1)
        with pytest.raises(InputError, match="each of the 2 Dask workers") as refused:
            outcomes(pool, ["ok:1"], tmp_path, jobs.Budget(workers))
        assert "it has neuroprior 0." in str(refused.value) and "and this is 99.1" in str(refused.value)


@pytest.fixture
def dasks_port() -> Iterator[None]:
    """Somebody else's scheduler has the port at which dask's dashboard listens."""
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # somebody else has it in earnest
            other.bind(("0.0.0.0", 8787))
            other.listen()
        yield


def listens(scheduler: Any) -> tuple[str, int]:
    return scheduler.http_server.address, scheduler.http_server.port


@pytest.mark.usefixtures("dasks_port")
def test_clusters_of_one_machine_do_not_meet_at_one_port() -> None:
    """A warning would end this test, as it would be the first thing that a user reads."""
    with clusters.local_cluster(0) as one, clusters.local_cluster(0) as two:
        found = {listens(one.scheduler), listens(two.scheduler)}
        assert len(found) == 2 and {address for address, _ in found} == {"127.0.0.1"}


@pytest.mark.usefixtures("dasks_port")
@pytest.mark.parametrize(
    ("options", "address"),
    [("{}", "127.0.0.1"), ("{host: 127.0.0.1}", "127.0.0.1"), ("{dashboard_address: '0.0.0.0:0'}", "0.0.0.0")],
)
def test_slurms_scheduler_listens_where_it_is_told_and_nowhere_else(options: str, address: str, tmp_path: Path) -> None:
    (tmp_path / "slurm.yml").write_text(f"cores: 1\nmemory: 1 GB\ninterface: lo\nscheduler_options: {options}\n")
    cluster, jobs_wanted, workers = clusters.slurm_cluster(tmp_path / "slurm.yml")
    with cluster:
        assert (jobs_wanted, workers) == (1, 1)
        assert listens(cluster.scheduler)[0] == address and listens(cluster.scheduler)[1] != 8787
