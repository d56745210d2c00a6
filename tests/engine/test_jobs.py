"""Jobs on pools: every one ends with a value or a reason, whatever happens to its worker."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from neuroprior.core.errors import ArtifactError, ConfigError, InputError
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
    names = [f"ok:{n}" for n in range(20)] + ["kill:a", "kill_once:b", "hang:c", "raise:d", "memory:e"]
    found = outcomes(jobs.Processes(work), names, tmp_path, jobs.Budget(2, timeout_s=3))
    assert set(found) == set(names)
    assert all(found[name].value == name.upper() for name in [*names[:20], "kill_once:b"])
    assert found["kill:a"].quarantined and "SIGKILL" in str(found["kill:a"].error) and "memory" in str(found["kill:a"].error)
    assert found["hang:c"].quarantined and "3 s" in str(found["hang:c"].error)
    assert (
        not found["raise:d"].quarantined and "not there" in str(found["raise:d"].error) and "line" in str(found["raise:d"].error)
    )
    assert "out of memory" in str(found["memory:e"].error)


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


def test_a_dask_worker_that_dies_is_named(tmp_path: Path) -> None:
    pool, workers = jobs.dask_cluster(work, "local", 2)
    found = outcomes(pool, ["ok:1", "kill:a", "kill_once:b", "ok:2", "raise:c"], tmp_path, jobs.Budget(workers))
    assert found["ok:1"].value == "OK:1" and found["ok:2"].value == "OK:2" and found["kill_once:b"].value == "KILL_ONCE:B"
    assert found["kill:a"].quarantined and "died" in str(found["kill:a"].error)
    assert "not there" in str(found["raise:c"].error)


def test_nobody_at_the_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ANSWERS_WITHIN_S", 2)
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        jobs.dask_cluster(work, "tcp://127.0.0.1:1", 1)


SBATCH = """#!{python}
import pathlib, subprocess, sys
script = sys.argv[-1]
folder = pathlib.Path("{folder}")
number = len(list(folder.glob("script-*"))) + 1
(folder / f"script-{{number}}").write_text(open(script).read())
subprocess.Popen(["bash", str(folder / f"script-{{number}}")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
print(f"Submitted batch job {{number}}")
"""


def test_slurm_submits_the_script_that_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub ``sbatch`` keeps the script and runs it, so that real workers come."""
    for name, text in (("sbatch", SBATCH.format(python=sys.executable, folder=tmp_path)), ("scancel", "#!/bin/sh\nexit 0\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    settings = tmp_path / "slurm.yml"
    settings.write_text(
        "jobs: 1\nqueue: long\naccount: brains\ncores: 1\nmemory: 2 GB\nwalltime: '00:20:00'\njob_extra_directives: ['--gres=none']\n"
        f"log_directory: {tmp_path}\nlocal_directory: {tmp_path}\nworker_extra_args: ['--no-dashboard', '--lifetime', '60s']\n"
        f"scheduler_options: {{dashboard_address: null}}\ninterface: lo\njob_script_prologue: ['export PYTHONPATH={os.pathsep.join(sys.path[1:])}:{Path(__file__).parent}']\n"
    )
    pool, workers = jobs.slurm(str.upper, settings)
    found = {
        outcome.name: outcome.value
        for outcome in jobs.run(pool, [jobs.Job("a", ("x",)), jobs.Job("b", ("y",))], jobs.Budget(workers))
    }
    assert found == {"a": "X", "b": "Y"}
    script = (tmp_path / "script-1").read_text()
    for line in ("#SBATCH -p long", "#SBATCH -A brains", "#SBATCH -t 00:20:00", "#SBATCH --gres=none", "#SBATCH --mem=2G"):
        assert line in script, script
    assert "distributed.cli.dask_worker" in script or "dask worker" in script


@pytest.mark.parametrize(
    "text", ["cores: 1", "- 1", "cores: 1\nmemory: 1 GB\njobs: none", "cores: 1\nmemory: 1 GB\ncolour: red", "a: ["]
)
def test_slurm_settings_that_cannot_be_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "slurm.yml").write_text(text)
    with pytest.raises(ConfigError, match="SLURM"):
        jobs.slurm_cluster(tmp_path / "slurm.yml")


def test_a_running_dask_cluster_is_used_by_its_address(tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        pool, workers = jobs.dask_cluster(work, cluster.scheduler_address, 1)
        assert workers == 2
        found = outcomes(pool, [f"ok:{n}" for n in range(5)], tmp_path, jobs.Budget(workers))
        assert {outcome.value for outcome in found.values()} == {f"OK:{n}" for n in range(5)}
