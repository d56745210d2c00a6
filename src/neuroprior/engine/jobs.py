"""Many independent jobs on processes, on a running Dask cluster or on SLURM: one code path, the same results.

A job names itself and says how much memory it may need. What is running together stays within the budget; a job that needs more than
all of it runs alone. A worker that dies or a job that takes too long is named, tried once more with nothing beside it, and then given
back as an :class:`Outcome` with the reason: one bad job never ends the others, and nothing waits for ever.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ConfigError, InputError, MissingDependency, NeuropriorError, suggestion
from ..core.processes import context as spawned

logger = logging.getLogger(__name__)

ANSWERS_WITHIN_S = 30
"""How long a Dask scheduler may take to answer before it is said to be absent."""

WINDOW = 64
"""How far ahead a smaller job is looked for while the next one waits for memory."""
PATIENCE = 100
"""Jobs that may overtake one that waits for memory."""
BEAT = 0.5
"""Seconds between looks at the clock."""


@dataclass(frozen=True)
class Job:
    """Attributes:
    name: shown in messages, unique.
    args: of the function, picklable.
    memory_mb: the most it may need.
    """

    name: str
    args: tuple[Any, ...]
    memory_mb: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    name: of the job.
    value: what the function returned, or None.
    error: why there is no value: the job's own error with its trace, or how its worker ended.
    quarantined: the job was tried twice, the second time alone, and both times its worker died or it took too long.
    """

    name: str
    value: Any = None
    error: str | None = None
    quarantined: bool = False


@dataclass(frozen=True)
class Budget:
    """Attributes:
    workers: jobs at once.
    memory_mb: for all of them together.
    timeout_s: for one; None for none.
    """

    workers: int
    memory_mb: float = float("inf")
    timeout_s: float | None = None


class Pool(Protocol):
    """Where jobs run. At most ``workers`` are given at a time, so a job begins when it is submitted."""

    def submit(self, job: Job) -> None:
        """Begin a job."""
        ...

    def finished(self, seconds: float) -> list[tuple[Job, str, Any]]:
        """What has ended, waiting at most so long: (job, ``done`` | ``raised`` | ``died``, value or error or how it died)."""
        ...

    def stop(self, job: Job) -> None:
        """Kill a job's worker and put a fresh one in its place; the job does not come back."""
        ...

    def close(self, *, at_once: bool) -> None:
        """End the workers."""
        ...


def run(pool: Pool, jobs: Iterable[Job], budget: Budget) -> Iterator[Outcome]:
    """Every job's outcome, in the order in which they end.

    Args:
        pool: made by :func:`processes`, :func:`dask_cluster` or :func:`slurm`; closed at the end.
        jobs: drawn as they are needed, so that a million of them take no memory.
        budget: what may run at once.

    Raises:
        NeuropriorError: raised by a job: its function gives back what concerns the job alone, so this concerns all.
    """
    source = iter(jobs)
    waiting: deque[Job] = deque()
    alone: deque[tuple[Job, str]] = deque()
    running: dict[str, tuple[Job, float]] = {}
    first: dict[str, str] = {}  # of jobs on their second try: how the first ended
    overtaken = 0
    at_once = True

    def fits(job: Job) -> bool:
        return not running or sum(other.memory_mb for other, _ in running.values()) + job.memory_mb <= budget.memory_mb

    def begin(job: Job) -> None:
        running[job.name] = (job, time.monotonic())
        pool.submit(job)

    def ended_badly(job: Job, how: str) -> Outcome | None:
        if job.name in first:
            return Outcome(
                job.name, error=f"quarantined: {how}; before that, beside other jobs: {first.pop(job.name)}", quarantined=True
            )
        logger.warning("%s: %s; it is tried once more, alone", job.name, how)
        alone.append((job, how))
        return None

    try:
        while True:
            while len(waiting) < WINDOW and (job := next(source, None)) is not None:
                waiting.append(job)
            while waiting and len(running) < budget.workers and not any(name in first for name in running):
                place = 0
                if not fits(waiting[0]):
                    fitting = (n for n, job in enumerate(waiting) if n and fits(job))
                    place = next(fitting, 0) if overtaken < PATIENCE else 0
                    if place == 0:
                        break
                    overtaken += 1
                else:
                    overtaken = 0
                job = waiting[place]
                del waiting[place]
                begin(job)
            if not running:
                if not alone:
                    break
                job, how = alone.popleft()
                first[job.name] = how
                begin(job)
            for job, how, value in pool.finished(BEAT):
                del running[job.name]
                if how == "died":
                    outcome = ended_badly(job, value)
                    if outcome is not None:
                        yield outcome
                elif how == "done":
                    first.pop(job.name, None)
                    yield Outcome(job.name, value)
                elif isinstance(value, NeuropriorError):
                    raise value
                else:
                    first.pop(job.name, None)
                    yield Outcome(job.name, error=str(value))
            now = time.monotonic()
            for job, since in list(running.values()):
                if budget.timeout_s is not None and now - since > budget.timeout_s:
                    pool.stop(job)
                    del running[job.name]
                    outcome = ended_badly(job, f"it was not done after {budget.timeout_s:g} s")
                    if outcome is not None:
                        yield outcome
        at_once = False
    finally:
        pool.close(at_once=at_once)


# ------------------------------------------------------------------------------------------------- processes of this machine


def _how_it_died(code: int | None, memory_mb: float) -> str:
    if code == -signal.SIGKILL:
        return f"its process was killed (SIGKILL), most likely for want of memory: it was expected to need {memory_mb:.0f} MB"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"its process died of {signal.Signals(-code).name}"
    return f"its process ended with code {code}"


def _attempt(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "done", function(*args)
    except NeuropriorError as error:
        return "raised", error
    except MemoryError:
        return "raised", "out of memory: give it fewer workers, or a larger --memory"
    except Exception as error:  # noqa: BLE001  # a bug in one job must not end the others; it is told with its trace
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "raised", f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def _serve(function: Callable[..., Any], pipe: Any, parent: int) -> None:
    """A worker: jobs in, results out, until the parent closes the pipe or is gone."""
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    while True:
        try:
            args = pipe.recv()
        except (EOFError, OSError):
            return
        result = _attempt(function, args)
        try:
            pipe.send(result)
        except (BrokenPipeError, OSError):
            return


@dataclass
class _Worker:
    process: Any
    pipe: Any
    job: Job | None = None


@dataclass
class Processes:
    """A pool of processes of this machine, each with a pipe of its own: when one dies it is known which job it had."""

    function: Callable[..., Any]
    workers: list[_Worker] = field(default_factory=list)

    def _fresh(self) -> _Worker:
        context = spawned()
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.function, theirs, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def submit(self, job: Job) -> None:
        free = next((w for w in self.workers if w.job is None), None)
        if free is None:
            free = self._fresh()
            self.workers.append(free)
        free.job = job
        # a worker that died in between is found by its sentinel, as one that dies at work
        with contextlib.suppress(BrokenPipeError, OSError):
            free.pipe.send(job.args)

    def finished(self, seconds: float) -> list[tuple[Job, str, Any]]:
        busy = [w for w in self.workers if w.job is not None]
        ready = set(connection.wait([w.pipe for w in busy] + [w.process.sentinel for w in busy], timeout=seconds))
        ended: list[tuple[Job, str, Any]] = []
        for worker in busy:
            job = worker.job
            assert job is not None
            if worker.pipe in ready:
                with contextlib.suppress(EOFError, OSError):
                    how, value = worker.pipe.recv()
                    ended.append((job, how, value))
                    worker.job = None
                    continue
            if worker.pipe in ready or worker.process.sentinel in ready:
                worker.process.join(5)
                ended.append((job, "died", _how_it_died(worker.process.exitcode, job.memory_mb)))
                self._bury(worker)
        return ended

    def _bury(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)

    def stop(self, job: Job) -> None:
        self._bury(next(w for w in self.workers if w.job is job))

    def close(self, *, at_once: bool) -> None:
        for worker in self.workers:
            if at_once:
                worker.process.kill()
            worker.pipe.close()
        for worker in self.workers:
            worker.process.join(30)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self.workers.clear()


@dataclass
class Here:
    """No pool: each job runs in this process when it is submitted. No time limit, and a killed job kills everything."""

    function: Callable[..., Any]
    ended: list[tuple[Job, str, Any]] = field(default_factory=list)

    def submit(self, job: Job) -> None:
        self.ended.append((job, *_attempt(self.function, job.args)))

    def finished(self, seconds: float) -> list[tuple[Job, str, Any]]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self, job: Job) -> None:
        raise AssertionError("a job in this process has ended before its time is looked at")

    def close(self, *, at_once: bool) -> None:
        self.ended = []


# --------------------------------------------------------------------------------------------------------------------- Dask


@dataclass
class OnDask:
    """A pool of the workers of a Dask cluster."""

    function: Callable[..., Any]
    client: Any
    cluster: Any = None
    futures: dict[str, tuple[Job, Any]] = field(default_factory=dict)
    tries: int = 0

    def submit(self, job: Job) -> None:
        self.tries += 1
        key = f"neuroprior-{self.tries}-{job.name}"
        self.futures[job.name] = (job, self.client.submit(_attempt, self.function, job.args, key=key, pure=False, retries=0))

    def finished(self, seconds: float) -> list[tuple[Job, str, Any]]:
        from distributed import wait

        with contextlib.suppress(TimeoutError):
            wait([future for _, future in self.futures.values()], timeout=seconds, return_when="FIRST_COMPLETED")
        ended: list[tuple[Job, str, Any]] = []
        for job, future in list(self.futures.values()):
            if not future.done():
                continue
            if future.status == "finished":
                ended.append((job, *future.result()))
            elif future.status == "error" and type(future.exception()).__name__ != "KilledWorker":
                ended.append((job, "raised", f"{type(future.exception()).__name__}: {future.exception()}"))
            else:
                ended.append((job, "died", "the Dask worker that had it died, most likely for want of memory"))
            del self.futures[job.name]
            future.release()
        return ended

    def stop(self, job: Job) -> None:
        _, future = self.futures.pop(job.name)
        having = [worker for worker, keys in self.client.processing().items() if future.key in keys]
        future.cancel(force=True)
        if having:
            with contextlib.suppress(TimeoutError):
                self.client.restart_workers(having, timeout=30, raise_for_error=False)

    def close(self, *, at_once: bool) -> None:
        for _, future in self.futures.values():
            future.cancel(force=True)
        self.client.close()
        if self.cluster is not None:
            self.cluster.close()


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise MissingDependency(
            "a cluster needs dask", next_step="pip install 'neuroprior[cluster]', or leave --scheduler and --slurm out"
        ) from None
    return distributed


def dask_cluster(function: Callable[..., Any], address: str, workers: int) -> tuple[OnDask, int]:
    """A pool on a running Dask cluster (its address, or the file that its scheduler wrote), or on one started here (``local``).

    Returns:
        The pool, and how many jobs it takes at once.

    Raises:
        InputError: nobody answers at the address.
        MissingDependency: dask is not installed.
    """
    distributed = _distributed()
    import dask

    cluster = None
    # a job whose worker died is given back at once: it is retried here, alone
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        try:
            if address == "local":
                cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
                client = distributed.Client(cluster)
            elif Path(address).is_file():
                client = distributed.Client(scheduler_file=address, timeout=ANSWERS_WITHIN_S)
            else:
                client = distributed.Client(address, timeout=ANSWERS_WITHIN_S)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                "no Dask scheduler answers", expected="an address such as tcp://10.0.0.1:8786, or a scheduler file",
                got=f"{address}: {error}", next_step="start one: dask scheduler; dask worker ADDRESS",
            ) from None  # fmt: skip
    if cluster is None:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            client.close()
            raise InputError("the Dask cluster has no workers", got=address, next_step="start some: dask worker ADDRESS")
    return OnDask(function, client, cluster), workers


def slurm(function: Callable[..., Any], settings: Path) -> tuple[OnDask, int]:
    """A pool of Dask workers that SLURM starts, as a YAML file says.

    Args:
        function: what a job calls.
        settings: ``jobs`` (how many SLURM jobs; each has one worker) and any argument of ``dask_jobqueue.SLURMCluster`` (``queue``,
            ``account``, ``cores``, ``memory``, ``walltime``, ``job_extra_directives``, ``job_script_prologue`` ...).

    Raises:
        ConfigError: the file cannot be read, or an argument is unknown.
        MissingDependency: dask-jobqueue is not installed.
    """
    distributed = _distributed()
    cluster, jobs = slurm_cluster(settings)
    cluster.scale(jobs=jobs)
    return OnDask(function, distributed.Client(cluster), cluster), jobs


def slurm_cluster(settings: Path) -> tuple[Any, int]:
    """The cluster of a YAML file, nothing submitted yet, and how many SLURM jobs it asks for."""
    import dask
    import yaml

    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise MissingDependency("SLURM needs dask-jobqueue", next_step="pip install 'neuroprior[cluster]'") from None
    try:
        given = yaml.safe_load(settings.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("cannot read the SLURM settings", file=settings, got=str(error).splitlines()[0]) from None
    if not isinstance(given, dict) or not {"cores", "memory"} <= set(given):
        raise ConfigError(
            "the SLURM settings lack something", file=settings, expected="at least cores and memory, and jobs for more than one",
            got=", ".join(given) if isinstance(given, dict) else type(given).__name__,
        )  # fmt: skip
    jobs = given.pop("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        raise ConfigError("impossible SLURM settings", file=settings, expected="jobs: a positive whole number", got=repr(jobs))
    parts = (SLURMCluster.job_cls, *SLURMCluster.job_cls.__mro__, *SLURMCluster.__mro__)
    known = {name for part in parts for name in inspect.signature(part.__init__).parameters} - {"self", "args", "kwargs"}
    strange = sorted(set(given) - known)
    if strange:
        raise ConfigError(
            "unknown SLURM settings", file=settings, expected=suggestion(strange[0], sorted(known)), got=", ".join(strange)
        )
    given = {"processes": 1, **given}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        try:
            return SLURMCluster(**given), jobs
        except (TypeError, ValueError) as error:
            raise ConfigError("impossible SLURM settings", file=settings, got=str(error).splitlines()[0]) from None


def granted_memory_mb() -> float:
    """Memory that this process may use, in MB: the machine's available memory, or the control group's limit where that is less."""
    import psutil

    available = psutil.virtual_memory().available / 1e6
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            available = min(available, int(Path(file).read_text()) / 1e6)
    return available
