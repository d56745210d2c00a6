"""Which of several training processes this one is: started by Lightning, by torchrun, or by srun.

Lightning's own reading of SLURM asks for ``--ntasks-per-node``, takes the tasks of a job for those of a step, and would send a job back to the queue by
itself. Here a step of several tasks is told to torch in torchrun's words, and all else follows from these.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from dataclasses import dataclass

from .errors import ConfigError

logger = logging.getLogger(__name__)

FIRST_PORT = 15000
"""Ports at which processes of a step meet: this one, and 10,000 above it, by the job's number."""


@dataclass(frozen=True)
class Group:
    """Attributes:
    per_node: processes on each machine.
    nodes: machines.
    """

    per_node: int
    nodes: int = 1


def is_first() -> bool:
    """Whether this process is the one that writes: the first of its machine, on the first machine."""
    return _number("LOCAL_RANK") == 0 and _number("NODE_RANK", _number("GROUP_RANK")) == 0


def join(devices: int) -> Group:
    """The processes that train together; the first time in a task of srun, its place among them is put into the environment. All but the first are quiet.

    A run of one device in a task of srun is by itself, as in a sweep; that is told, since the tasks may have been meant to train together.

    Args:
        devices: processes that the run is for, on all machines together.

    Raises:
        ConfigError: srun or torchrun started another number of processes.
    """
    started, nodes = _started()
    if devices == 1 and started > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        _tell(started)
        return Group(1)
    if started not in (0, devices):
        raise ConfigError(
            f"{started} processes were started for a run with training.devices={devices}", expected="as many processes as devices",
            next_step=f"--set training.devices={started}, or start {devices}",
        )  # fmt: skip
    if started > 1 and "LOCAL_RANK" not in os.environ:
        host = _first_host(os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1")
        names = {
            "LOCAL_RANK": str(_number("SLURM_LOCALID")), "NODE_RANK": str(_number("SLURM_NODEID")),
            "MASTER_ADDR": os.environ.get("MASTER_ADDR") or host,
            "MASTER_PORT": os.environ.get("MASTER_PORT") or str(FIRST_PORT + (_number("SLURM_JOB_ID") + _number("SLURM_STEP_ID")) % 10_000),
        }  # fmt: skip
        os.environ.update(names)
    if not is_first():
        logging.getLogger("neuroprior").setLevel(logging.WARNING)
    return Group(devices // nodes, nodes)


@functools.cache
def _tell(tasks: int) -> None:
    logger.info("one of %d tasks of srun, training by itself (training.devices=%d would train them together)", tasks, tasks)


def _started() -> tuple[int, int]:
    """How many processes something else has started for this run, on how many machines; 0 where they are ours to start."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        world = _number("WORLD_SIZE", 1)
        return world, max(1, world // _number("LOCAL_WORLD_SIZE", world))
    if "SLURM_STEP_ID" not in os.environ:  # a job's script itself has the numbers of the job, and is alone
        return 0, 1
    tasks = _number("SLURM_STEP_NUM_TASKS", _number("SLURM_NTASKS", 1))
    return (tasks, max(1, _number("SLURM_STEP_NUM_NODES", _number("SLURM_NNODES", 1)))) if tasks > 1 else (0, 1)


def _number(name: str, otherwise: int = 0) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        return otherwise


def _first_host(nodes: str) -> str:
    """The first of a list as SLURM writes them: ``node[03-05,9],other`` -> ``node03``."""
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", nodes).split(",")[0].split(" ")[0]
