"""Jobs on pools: every one ends with a value or a reason, whatever happens to its worker."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from neuroprior.core import processes
from neuroprior.core.errors import ArtifactError
from neuroprior.engine import jobs


def work(what: str, folder: str) -> str:
    """A job that behaves, or not."""
    name = what.split(":")[0]
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "kill_once":
        mark = Path(folder) / what.replace(":", "_")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        time.sleep(600)
    if name == "raise":
        raise KeyError("not there")
    if name == "memory":
        raise MemoryError
    if name == "memory_once":
        mark = Path(folder) / what.replace(":", "_")
        if not mark.exists():
            mark.touch()
            raise MemoryError
    if name == "disk":
        raise ArtifactError("the disk is full", file=folder)
    if name == "beside":
        mark = Path(folder) / f"running-{os.getpid()}"
        mark.touch()
        time.sleep(0.1)
        together = len(list(Path(folder).glob("running-*")))
        mark.unlink()
        return str(together)
    return what.upper()


def outcomes(
    pool: jobs.Pool, names: list[str], folder: Path, budget: jobs.Budget, memory: float = 0.0
) -> dict[str, jobs.Outcome]:
    given = (jobs.Job(name, (name, str(folder)), memory) for name in names)
    return {outcome.name: outcome for outcome in jobs.run(pool, given, budget)}


def test_every_job_ends_with_a_value_or_a_reason(tmp_path: Path) -> None:
    names = [f"ok:{n}" for n in range(20)] + ["kill:a", "kill_once:b", "hang:c", "raise:d", "memory:e", "memory_once:f"]
    found = outcomes(jobs.Processes(work), names, tmp_path, jobs.Budget(2, timeout_s=3))
    assert set(found) == set(names)
    assert all(found[name].value == name.upper() for name in [*names[:20], "kill_once:b", "memory_once:f"])
    assert found["kill:a"].quarantined and "SIGKILL" in str(found["kill:a"].error) and "memory" in str(found["kill:a"].error)
    assert found["hang:c"].quarantined and "3 s" in str(found["hang:c"].error)
    assert (
        not found["raise:d"].quarantined and "not there" in str(found["raise:d"].error) and "line" in str(found["raise:d"].error)
    )
    assert found["memory:e"].quarantined and str(found["memory:e"].error).count("out of memory") == 2


@pytest.mark.parametrize("pool", [jobs.Here, jobs.Processes])
def test_what_concerns_all_jobs_ends_them(pool: type, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="disk is full"):
        outcomes(pool(work), ["ok:1", "disk:2", "ok:3"], tmp_path, jobs.Budget(1))


def test_memory_bounds_what_runs_together(tmp_path: Path) -> None:
    names = [f"beside:{n}" for n in range(6)]
    budget = jobs.Budget(3, memory_mb=100)
    alone = outcomes(jobs.Processes(work), names, tmp_path, budget, memory=500)
    assert {outcome.value for outcome in alone.values()} == {"1"}
    together = outcomes(jobs.Processes(work), names, tmp_path, budget, memory=40)
    assert {outcome.value for outcome in together.values()} <= {"1", "2"}


def test_a_large_job_is_overtaken_but_not_for_ever(tmp_path: Path) -> None:
    given = [
        jobs.Job("large", ("ok:large", str(tmp_path)), 90),
        *(jobs.Job(f"s{n}", (f"ok:{n}", str(tmp_path)), 20) for n in range(300)),
    ]
    given = [jobs.Job("first", ("ok:0", str(tmp_path)), 20), *given]
    order = [outcome.name for outcome in jobs.run(jobs.Processes(work), given, jobs.Budget(2, memory_mb=100))]
    assert sorted(order) == sorted(job.name for job in given)
    assert order.index("large") < 150


def test_a_process_that_cannot_be_killed_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that waits for a disk that does not answer: no signal reaches it, so nothing may wait for its end, exit included."""
    spared: list[int] = []
    monkeypatch.setattr(processes.Process, "kill", lambda self: spared.append(self.pid))
    monkeypatch.setattr(jobs, "DIES_WITHIN_S", 0.5)
    try:
        began = time.monotonic()
        found = outcomes(jobs.Processes(work), ["hang:a", "ok:1", "ok:2"], tmp_path, jobs.Budget(2, timeout_s=2))
        assert time.monotonic() - began < 25
        assert found["hang:a"].quarantined and found["ok:1"].value == "OK:1" and found["ok:2"].value == "OK:2"
        assert len(spared) == 2 and caplog.text.count("it is left behind") == 2
        assert not {process.pid for process in multiprocessing.active_children()} & set(spared)
    finally:
        for pid in spared:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
