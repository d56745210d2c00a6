"""Many independent jobs on processes of this machine, or on a cluster (:mod:`.clusters`): one code path, the same results.

A job names itself and says how much memory it may need. What is running together stays within the budget; a job that needs more than
all of it runs alone. A worker that dies, a job that takes too long and one that lacks memory are named, tried once more with nothing beside them, and then given
back as an :class:`Outcome` with the reason: one bad job never ends the others, and nothing waits for ever.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.process
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

from ..core.errors import NeuropriorError
from ..core.processes import context as spawned

logger = logging.getLogger(__name__)

WINDOW = 64
"""How far ahead a smaller job is looked for while the next one waits for memory."""
PATIENCE = 100
"""Jobs that may overtake one that waits for memory."""
BEAT = 0.5
"""Seconds between looks at the clock."""
DIES_WITHIN_S = 5.0
"""Seconds that a killed process has to end."""


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
    """Where jobs run. At most ``workers`` are given at a time."""

    def room(self, budget: Budget) -> Budget:
        """What may run at once now: the budget, or what a cluster has of it."""
        ...

    def submit(self, job: Job) -> None:
        """Begin a job, as soon as there is a worker for it."""
        ...

    def began(self, job: Job) -> float | None:
        """When a worker took a job that was submitted (``time.monotonic()``), or None while it waits for one: its time has not begun."""
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
        pool: :class:`Processes`, :class:`Here`, or made by :func:`.clusters.dask_cluster` or :func:`.clusters.slurm`; closed at the end.
        jobs: drawn as they are needed, so that a million of them take no memory.
        budget: what may run at once.

    Raises:
        NeuropriorError: raised by a job: its function gives back what concerns the job alone, so this concerns all.
    """
    source = iter(jobs)
    waiting: deque[Job] = deque()
    alone: deque[tuple[Job, str]] = deque()
    running: dict[str, Job] = {}
    first: dict[str, str] = {}  # of jobs on their second try: how the first ended
    room = budget
    overtaken = 0
    at_once = True

    def fits(job: Job) -> bool:
        return not running or sum(other.memory_mb for other in running.values()) + job.memory_mb <= room.memory_mb

    def begin(job: Job) -> None:
        running[job.name] = job
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
            room = pool.room(budget)
            while len(waiting) < WINDOW and (job := next(source, None)) is not None:
                waiting.append(job)
            while waiting and len(running) < room.workers and not any(name in first for name in running):
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
            for job in list(running.values()):
                began = pool.began(job) if budget.timeout_s is not None else None
                if budget.timeout_s is not None and began is not None and now - began > budget.timeout_s:
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


def attempt(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, Any]:
    """Run a job: how it ended, and its value or what is to be said of it."""
    try:
        return "done", function(*args)
    except NeuropriorError as error:
        return "raised", error
    except MemoryError:
        return "died", "out of memory"
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
        result = attempt(function, args)
        try:
            pipe.send(result)
        except (BrokenPipeError, OSError):
            return


@dataclass
class _Worker:
    process: Any
    pipe: Any
    job: Job | None = None
    since: float = 0.0


@dataclass
class Processes:
    """A pool of processes of this machine, each with a pipe of its own: when one dies it is known which job it had."""

    function: Callable[..., Any]
    workers: list[_Worker] = field(default_factory=list)

    def room(self, budget: Budget) -> Budget:
        return budget

    def began(self, job: Job) -> float | None:
        return next((w.since for w in self.workers if w.job is job), None)

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
        free.job, free.since = job, time.monotonic()
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
        worker.pipe.close()
        _wait_for(worker.process)
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
                _wait_for(worker.process)
        self.workers.clear()


def _wait_for(process: Any) -> None:
    """Wait for a killed process to end; one that waits for a disk that does not answer ends only when it does, so it is left behind."""
    process.join(DIES_WITHIN_S)
    if process.is_alive():
        logger.warning(
            "process %d was killed and does not end: it waits for a disk that does not answer; it is left behind", process.pid
        )
        multiprocessing.process._children.discard(process)  # pyright: ignore[reportAttributeAccessIssue]  # else exit would wait for it


@dataclass
class Here:
    """No pool: each job runs in this process when it is submitted. No time limit, and a killed job kills everything."""

    function: Callable[..., Any]
    ended: list[tuple[Job, str, Any]] = field(default_factory=list)

    def room(self, budget: Budget) -> Budget:
        return budget

    def began(self, job: Job) -> float | None:
        return None

    def submit(self, job: Job) -> None:
        self.ended.append((job, *attempt(self.function, job.args)))

    def finished(self, seconds: float) -> list[tuple[Job, str, Any]]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self, job: Job) -> None:
        raise AssertionError("a job in this process has ended before its time is looked at")

    def close(self, *, at_once: bool) -> None:
        self.ended = []
