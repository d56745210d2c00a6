"""Pools of jobs on Dask: on a running cluster, on one started here, or on workers that SLURM starts.

A job is given to one worker by name, and to a worker that has none, so that what a worker does to its job (die, hang, leave) concerns no
other. Jobs wait here until a worker is free: the clock of a job starts when its worker says that it has begun.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import ConfigError, InputError, MissingDependency, suggestion
from .jobs import Budget, Job, attempt

logger = logging.getLogger(__name__)

ANSWERS_WITHIN_S = 30
"""How long a Dask scheduler may take to answer before it is said to be absent."""
ASKED_EVERY_S = 1.0
"""Seconds between two looks at the workers."""
TOLD_AFTER_S = 5.0
"""Seconds without a worker before that is told, and ..."""
TOLD_EVERY_S = 60.0
"""... between two words about it."""
SCALED_EVERY_S = 20.0
"""Seconds between two requests for the workers that are missing."""
LEAVES = 3
"""How often a job is begun anew because its worker left as planned (at the end of its lifetime) before that counts as a failure."""
TOPIC = "neuroprior-began"
NO_PAGE = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
"""For a scheduler: no dashboard. Without the address it would still listen at dask's one port, on every interface, and two runs of one
machine would meet there."""


def _work(function: Callable[..., Any], args: tuple[Any, ...], key: str) -> tuple[str, Any]:
    """Runs on a worker: say that the job has begun, and do it."""
    from distributed import get_worker

    get_worker().log_event(TOPIC, key)
    return attempt(function, args)


def _asks(function: Callable[..., Any], version: str | None) -> Callable[[], str]:
    """What those say who are to call ``function``: why they cannot, or "". It travels as code, since they may lack this package."""
    module = getattr(function, "__module__", None) or "neuroprior"

    def answer() -> str:
        import importlib.util

        try:
            if module != "__main__" and importlib.util.find_spec(module) is None:
                return f"No module named {module!r}"
            import neuroprior
        except ImportError as error:
            return str(error)
        if version in (None, neuroprior.__version__):
            return ""
        return f"it has neuroprior {neuroprior.__version__}, and this is {version}"

    return answer


def _unable(who: str, why: str) -> InputError:
    return InputError(
        f"{who} cannot do the jobs", expected=f"neuroprior {__version__} in its environment", got=why,
        next_step=f"install it there (pip install neuroprior=={__version__}); on SLURM, job_script_prologue can activate an environment",
    )  # fmt: skip


@dataclass
class _Given:
    """A job that was submitted.

    Attributes:
        job: the job.
        key: of the try that is under way; "" while no worker is free.
        worker: address of the worker that has it.
        future: of the try.
        left: workers that left with it as planned.
    """

    job: Job
    key: str = ""
    worker: str = ""
    future: Any = None
    left: int = 0


@dataclass
class OnDask:
    """A pool of the workers of a Dask cluster.

    Attributes:
        function: what a job calls.
        client: of the cluster.
        cluster: closed at the end; None for a cluster of somebody else.
        wanted: workers that the cluster was asked for.
        scale: asks for them again.
        unable: address of each worker that was asked -> why it cannot do the jobs, or "".
    """

    function: Callable[..., Any]
    client: Any
    cluster: Any = None
    wanted: int = 0
    scale: Callable[[], object] | None = None
    given: dict[str, _Given] = field(default_factory=dict)
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    unable: dict[str, str] = field(default_factory=dict)
    tries: int = 0

    def __post_init__(self) -> None:
        self._began: dict[str, float] = {}
        self._asked = self._scaled = float("-inf")
        self._tell_at: float | None = None
        self.client.subscribe_topic(TOPIC, self._note)

    def _note(self, event: tuple[float, str]) -> None:
        self._began[event[1]] = time.monotonic()

    # -- the workers

    def _ask(self, *, now: bool = False) -> None:
        """Look which workers there are; ask for those that are missing, and say when there are none."""
        from distributed.comm import CommClosedError

        clock = time.monotonic()
        if not now and clock - self._asked < ASKED_EVERY_S:
            return
        try:
            self.workers = dict(self.client.scheduler_info(n_workers=-1)["workers"])
            self._meet([worker for worker in self.workers if worker not in self.unable])
        except (OSError, TimeoutError, CommClosedError) as error:
            raise InputError(
                "the Dask scheduler is gone", got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                next_step="start it again and run the same command: it resumes",
            ) from None  # fmt: skip
        self._asked = clock
        if self.scale is not None and len(self.workers) < self.wanted and clock - self._scaled > SCALED_EVERY_S:
            self._scaled = clock
            self.scale()  # jobs that wait in the queue count as asked for: only what has ended is asked for again
        if self._usable():
            self._tell_at = None
        elif self._tell_at is None:
            self._tell_at = clock + TOLD_AFTER_S
        elif clock > self._tell_at:
            aside = f"; {len(self.stuck)} hang in a job and have no nanny that would start them again" if self.stuck else ""
            logger.warning("waiting for workers: none%s is there%s", f" of {self.wanted}" if self.wanted else "", aside)
            self._tell_at = clock + TOLD_EVERY_S

    def _meet(self, new: list[str]) -> None:
        """Ask workers whether they can do the jobs before they get one: a worker without this package closes over what it cannot read.

        Raises:
            InputError: there are workers, and none of them can.
        """
        if new:
            self.unable.update(dict.fromkeys(new, ""))
            with contextlib.suppress(TimeoutError):  # whoever does not answer gets a job, and its clock
                asked = _asks(self.function, __version__)
                told = self.client.run(asked, workers=new, on_error="return", callback_timeout=ANSWERS_WITHIN_S)
                # an OSError is of a worker that has gone meanwhile
                self.unable.update({worker: "" if isinstance(why, OSError) else str(why) for worker, why in told.items()})
        why = [self.unable[worker] for worker in self.workers if self.unable[worker]]
        if why and len(why) == len(self.workers):
            raise _unable("the only Dask worker" if len(why) == 1 else f"each of the {len(why)} Dask workers", why[0])
        for worker in new:
            if self.unable[worker]:
                logger.warning("%s gets no jobs: %s", worker, self.unable[worker])

    def _usable(self) -> list[str]:
        self.stuck &= set(self.workers)
        return [
            worker for worker, told in self.workers.items()
            if told.get("status", "running") != "closing_gracefully" and worker not in self.stuck and not self.unable[worker]
        ]  # fmt: skip

    def room(self, budget: Budget) -> Budget:
        """As many jobs as there are workers, within the workers' own limits of memory where nothing else was said."""
        self._ask()
        usable = self._usable()
        memory = budget.memory_mb
        if memory == float("inf") and usable:
            memory = sum(self._limit(worker) for worker in usable)
        return replace(budget, workers=max(1, len(usable)), memory_mb=memory)

    def _limit(self, worker: str) -> float:
        """MB that a worker may take."""
        return (self.workers.get(worker, {}).get("memory_limit") or float("inf")) / 1e6

    def _place(self, given: _Given) -> None:
        """Give a job to a free worker, the smallest that has the memory, else the largest; without one it waits."""
        self._ask(now=True)  # a job that is given to a worker that has just died would be blamed for it
        busy = {other.worker for other in self.given.values()}
        free = [w for w in self._usable() if w not in busy and self.workers[w].get("status", "running") == "running"]
        if not free:
            return
        enough = [worker for worker in free if self._limit(worker) >= given.job.memory_mb]
        given.worker = min(enough, key=self._limit) if enough else max(free, key=self._limit)
        self.tries += 1
        given.key = f"neuroprior-{self.tries}-{given.job.name}"
        given.future = self.client.submit(
            _work, self.function, given.job.args, given.key, key=given.key, pure=False, retries=0, workers=[given.worker],
            allow_other_workers=False,
        )  # fmt: skip

    def _take_back(self, given: _Given) -> None:
        if given.future is not None and given.future.done():
            given.future.release()
        elif given.future is not None:
            given.future.cancel(force=True)
        self._began.pop(given.key, None)
        given.key, given.worker, given.future = "", "", None

    # -- the pool

    def submit(self, job: Job) -> None:
        self.given[job.name] = _Given(job)
        self._place(self.given[job.name])

    def began(self, job: Job) -> float | None:
        return self._began.get(self.given[job.name].key)

    def finished(self, seconds: float) -> list[tuple[Job, str, Any]]:
        from distributed import wait

        at_work = [given.future for given in self.given.values() if given.future is not None]
        if at_work:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError, concurrent.futures.CancelledError):
                wait(at_work, timeout=seconds, return_when="FIRST_COMPLETED")
        else:
            time.sleep(seconds)
        ended: list[tuple[Job, str, Any]] = []
        for given in list(self.given.values()):
            result = self._result(given)
            if result is not None:
                ended.append((given.job, *result))
                del self.given[given.job.name]
                self._take_back(given)
        self._ask()
        for given in list(self.given.values()):
            if given.worker and given.worker not in self.workers:
                how = self._gone(given)
                if how is not None:
                    ended.append((given.job, "died", how))
                    del self.given[given.job.name]
                self._take_back(given)
        for given in self.given.values():
            if given.future is None:
                self._place(given)
        return ended

    def _result(self, given: _Given) -> tuple[str, Any] | None:
        """How a try ended, or None while it has not, or where its result was lost with its worker."""
        future = given.future
        if future is None or not future.done():
            return None
        if future.status == "finished":
            with contextlib.suppress(TimeoutError, OSError):
                return future.result(timeout=ANSWERS_WITHIN_S)
            return None
        if future.status == "error":
            error = future.exception()
            if type(error).__name__ != "KilledWorker":
                return "raised", f"{type(error).__name__}: {error}"
        self._ask(now=True)  # where the scheduler itself is gone, all that it had is lost
        return "died", self._how_it_died(given)

    def _how_it_died(self, given: _Given) -> str:
        limit = self._limit(given.worker)
        had = "" if limit == float("inf") else f", the worker may take {limit:.0f} MB"
        needed = f": it was expected to need {given.job.memory_mb:.0f} MB{had}" if given.job.memory_mb else ""
        return f"the Dask worker that had it died, most likely for want of memory{needed}"

    def _gone(self, given: _Given) -> str | None:
        """Why a job ends whose worker is no longer there; None where it left as planned and the job goes to another."""
        told = [message for _, message in self.client.get_events(given.worker) or () if isinstance(message, dict)]
        planned = any(m.get("action") == "retired" or (m.get("action") == "remove-worker" and m.get("expected")) for m in told)
        if not planned:
            return self._how_it_died(given)
        given.left += 1
        if given.left < LEAVES:
            logger.info("%s: its worker left before it was done; it begins anew on another", given.job.name)
            return None
        return f"{given.left} workers in turn came to the end of their lifetime before it was done: it needs a longer walltime"

    def stop(self, job: Job) -> None:
        given = self.given.pop(job.name)
        worker = given.worker
        self._take_back(given)
        if not worker or worker not in self.workers:
            return
        if not self.workers[worker].get("nanny"):
            # ending it would take a worker from a cluster that nobody would give back
            self.stuck.add(worker)
            logger.warning("%s hangs in %s and has no nanny: no more jobs are given to this worker", worker, job.name)
            return
        with contextlib.suppress(TimeoutError, OSError):
            self.client.restart_workers([worker], timeout=ANSWERS_WITHIN_S, raise_for_error=False)
        self._ask(now=True)

    def close(self, *, at_once: bool) -> None:
        for given in self.given.values():
            self._take_back(given)
        self.given.clear()
        with contextlib.suppress(OSError, TimeoutError):
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
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed" and logging.getLogger(name).level < logging.WARNING:
            logging.getLogger(name).setLevel(logging.WARNING)  # every worker's coming and going is told at INFO
    return distributed


def local_cluster(workers: int, **settings: Any) -> Any:
    """A Dask cluster on this machine: ``workers`` processes of one thread, no dashboard. Any number of them can run at the same time.

    Args:
        workers: how many.
        settings: further arguments of ``distributed.LocalCluster``.

    Raises:
        MissingDependency: dask is not installed.
    """
    usual = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "scheduler_kwargs": dict(NO_PAGE)}
    return _distributed().LocalCluster(**(usual | settings))


def dask_cluster(function: Callable[..., Any], address: str, workers: int) -> tuple[OnDask, int]:
    """A pool on a running Dask cluster (its address, or the file that its scheduler wrote), or on one started here (``local``).

    Returns:
        The pool, and how many jobs it takes at once.

    Raises:
        InputError: nobody answers at the address, or whoever does lacks this package.
        MissingDependency: dask is not installed.
    """
    distributed = _distributed()
    if address == "local":
        cluster = local_cluster(workers)
        return OnDask(function, distributed.Client(cluster), cluster, wanted=workers), workers
    try:
        if Path(address).is_file():
            client = distributed.Client(scheduler_file=address, timeout=ANSWERS_WITHIN_S)
        else:
            client = distributed.Client(address, timeout=ANSWERS_WITHIN_S)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            "no Dask scheduler answers", expected="an address such as tcp://10.0.0.1:8786, or a scheduler file",
            got=f"{address}: {error}", next_step="start one: dask scheduler; dask worker ADDRESS",
        ) from None  # fmt: skip
    why = client.run_on_scheduler(_asks(function, None))
    if why:
        client.close()
        raise _unable("the Dask scheduler", why)
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        client.close()
        raise InputError("the Dask cluster has no workers", got=address, next_step="start some: dask worker ADDRESS")
    return OnDask(function, client), workers


def slurm(function: Callable[..., Any], settings: Path) -> tuple[OnDask, int]:
    """A pool of Dask workers that SLURM starts, as a YAML file says; SLURM jobs that end are asked for again while there is work.

    Args:
        function: what a job calls.
        settings: ``jobs`` (how many SLURM jobs; each has one worker, or ``processes`` of them) and any argument of ``dask_jobqueue.SLURMCluster`` (``queue``,
            ``account``, ``cores``, ``memory``, ``walltime``, ``job_extra_directives``, ``job_script_prologue`` ...).

    Raises:
        ConfigError: the file cannot be read, or an argument is unknown.
        MissingDependency: dask-jobqueue is not installed.
    """
    distributed = _distributed()
    cluster, jobs, workers = slurm_cluster(settings)

    def scale() -> None:
        cluster.scale(jobs=jobs)

    scale()
    return OnDask(function, distributed.Client(cluster), cluster, wanted=workers, scale=scale), workers


def slurm_cluster(settings: Path) -> tuple[Any, int, int]:
    """The cluster of a YAML file, nothing submitted yet; how many SLURM jobs it asks for, and how many workers these have in all."""
    import yaml

    try:
        import dask.config
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
    options = given.get("scheduler_options") or dask.config.get(
        f"jobqueue.{given.get('config_name') or 'slurm'}.scheduler-options", {}
    )
    if not isinstance(options, dict):
        raise ConfigError(
            "impossible SLURM settings", file=settings, expected="scheduler_options: names and values", got=repr(options)
        )
    if not options.get("dashboard_address"):  # whoever wants the dashboard says where
        options = {**options, **NO_PAGE}
    given = {"processes": 1, **given, "scheduler_options": options}
    try:
        return SLURMCluster(**given), jobs, jobs * int(given["processes"])
    except (TypeError, ValueError) as error:
        raise ConfigError("impossible SLURM settings", file=settings, got=str(error).splitlines()[0]) from None
