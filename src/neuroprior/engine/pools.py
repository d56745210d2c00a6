"""Which pool does the jobs of a command: this process, processes of this machine, a Dask cluster, or workers that SLURM starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.processes import require_workers
from . import clusters, jobs
from .memory import granted_memory_mb


@dataclass(frozen=True)
class Where:
    """Where jobs run, as the options of a command say it.

    Attributes:
        workers: processes; None for as many as cores are granted, 1 without a time limit for this process alone.
        memory_mb: for all together; None for nine tenths of what is free, or on a cluster for all that its workers may take.
        timeout_s: for one job; None for none.
        scheduler: address or scheduler file of a running Dask cluster, ``local`` for one started here, or None.
        slurm: YAML file of a cluster that SLURM starts, or None.

    Raises:
        ConfigError: a scheduler and SLURM, or fewer than one worker.
    """

    workers: int | None = None
    memory_mb: float | None = None
    timeout_s: float | None = None
    scheduler: str | None = None
    slurm: Path | None = None

    def __post_init__(self) -> None:
        if self.scheduler is not None and self.slurm is not None:
            raise ConfigError("both --scheduler and --slurm are given", expected="one of them")
        require_workers(self.workers)

    @property
    def on_a_cluster(self) -> bool:
        """Whether other machines may take part."""
        return self.slurm is not None or self.scheduler not in (None, "local")


def pool(function: Callable[..., Any], where: Where) -> tuple[jobs.Pool, jobs.Budget]:
    """The pool, and what may run at once on it.

    Args:
        function: what a job calls; workers import it by name.
        where: as above.

    Raises:
        InputError: nobody answers at the scheduler's address.
        ConfigError: the SLURM settings cannot be.
        MissingDependency: dask or dask-jobqueue is not installed.
    """
    memory = where.memory_mb
    if where.slurm is not None:
        made, workers = clusters.slurm(function, where.slurm)
        return made, jobs.Budget(workers, memory or float("inf"), where.timeout_s)
    workers = where.workers or len(os.sched_getaffinity(0))
    if where.scheduler is not None:
        made, workers = clusters.dask_cluster(function, where.scheduler, workers)
        return made, jobs.Budget(workers, memory or float("inf"), where.timeout_s)
    budget = jobs.Budget(workers, memory or 0.9 * granted_memory_mb(), where.timeout_s)
    here = where.workers == 1 and where.timeout_s is None  # what hangs in this process cannot be stopped
    return (jobs.Here(function) if here else jobs.Processes(function)), budget
