"""What preparing will take: a few sessions of all sizes are prepared in a folder of their own, timed, and scaled up by the headers of the
others."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.conforming import ConformSpec
from ..core.errors import InputError
from ..core.records import Scan
from ..engine import jobs
from ..engine.memory import WORKER_MB, granted_memory_mb
from ..engine.pools import Where
from .building import described, same_settings, to_prepare
from .preparing import PrepareConfig, conformed_voxels, memory_mb, prepare_session
from .rows import Rows
from .sessions import session_file

logger = logging.getLogger(__name__)

TIMED = 6
"""Sessions that are prepared to see how long they take."""

_WARM: list[bool] = []
"""Not empty in a process that has prepared a session before: imports and caches are no work of a session."""


@dataclass(frozen=True)
class Estimate:
    """What preparing will take, as a dry run sees it.

    Attributes:
        sessions, scans: to prepare.
        cpu_seconds, megabytes: in all.
        wall_seconds: with the workers asked for, if nothing else runs.
        memory_mb: of the largest session.
        timed: sessions that were prepared to learn this.
    """

    sessions: int
    scans: int
    cpu_seconds: float
    megabytes: float
    wall_seconds: float
    memory_mb: float
    timed: int


def _size(scans: list[Scan], spec: ConformSpec) -> np.ndarray:
    """(3,) a session's scans, million native voxels and million conformed voxels: what its time and size are proportional to."""
    native = sum(float(np.prod(scan.shape or (1, 1, 1))) for scan in scans)
    return np.array([len(scans), native / 1e6, sum(conformed_voxels(scan, spec) for scan in scans) / 1e6])


def timed(folder: Path, key: str, scans: list[Scan], spec: ConformSpec, config: PrepareConfig) -> tuple[float, int] | str:
    """Prepare a session in a folder: its processor seconds and bytes, or why it cannot be prepared."""
    if not _WARM:
        prepare_session(folder / "warm", key, scans, spec, config)
        _WARM.append(True)
    began = time.process_time()
    reason = prepare_session(folder, key, scans, spec, config)
    spent = time.process_time() - began
    return reason if reason is not None else (spent, session_file(folder, key).stat().st_size)


def estimate(index: Path, spec: ConformSpec, config: PrepareConfig, where: Where, out: Path | None = None) -> Estimate:
    """Prepare a few sessions of all sizes in a temporary folder and scale time and size up by the headers of the others.

    They are prepared one after the other in a process of their own, within the memory and the time that are given: a session that hangs
    or kills its process is told and left out.

    Args:
        index: made by ``neuroprior index``.
        spec: how scans are conformed.
        config: what else is done.
        where: the workers.
        out: the store's folder; sessions that are there already are not counted. Nothing is written there.

    Raises:
        InputError: no usable scan, or none of the sessions tried can be prepared.
        ArtifactError: another store lies there.
    """
    rows = Rows(index)
    if not rows.keys:
        raise InputError("the index holds no usable scan", file=index, got=f"{rows.count} rows")
    keys = rows.keys
    if out is not None and (out / "store.json").exists():
        same_settings(out, described(spec, config))
        keys = to_prepare(rows, out, config)
    if not keys:
        return Estimate(0, 0, 0.0, 0.0, 0.0, 0.0, 0)
    sizes, needs = np.empty((len(keys), 3)), 0.0
    for number, key in enumerate(keys):
        scans = rows.scans(key)
        sizes[number], needs = _size(scans, spec), max(needs, memory_mb(scans, spec))
    weight = sizes @ np.array([0.05, 0.02, 0.03])
    order = np.argsort(weight, kind="stable")
    # a session in the middle of each part of equal work, so that the many small and the few large ones both count
    share = np.cumsum(weight[order]) / weight.sum()
    places = np.searchsorted(share, (np.arange(TIMED) + 0.5) / TIMED)
    chosen = list(
        dict.fromkeys(int(order[min(place, len(order) - 1)]) for place in places)
    )  # the smallest first: it is prepared twice
    measured: dict[int, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = (
            jobs.Job(keys[number], (Path(folder), keys[number], scans, spec, config), memory_mb(scans, spec) + WORKER_MB)
            for number, scans in ((number, rows.scans(keys[number])) for number in chosen)
        )
        numbers = {keys[number]: number for number in chosen}
        memory = where.memory_mb or 0.9 * granted_memory_mb()
        budget = jobs.Budget(1, memory, None if where.timeout_s is None else 2 * where.timeout_s)
        for outcome in jobs.run(jobs.Processes(timed), work, budget):
            if isinstance(outcome.value, tuple):
                measured[numbers[outcome.name]] = outcome.value
            else:
                logger.warning("%s: %s", outcome.name, outcome.error or outcome.value)
    if not measured:
        raise InputError("none of the sessions tried can be prepared", file=index)
    used = sorted(measured)
    cpu = _scaled(np.array([measured[number][0] for number in used]), weight, used)
    voxels = sizes[:, 2] + 0.01 * sizes[:, 0]
    disk = _scaled(np.array([measured[number][1] for number in used], dtype=float), voxels, used)
    workers = where.workers or len(os.sched_getaffinity(0))
    return Estimate(len(keys), int(sizes[:, 0].sum()), cpu, disk / 1e6, cpu / workers, needs, len(used))


def _scaled(measured: np.ndarray, weight: np.ndarray, used: list[int]) -> float:
    """The whole, from measured parts: the mean ratio to the weight, each part standing for an equal share of the weight."""
    return float(np.mean(measured / weight[used]) * weight.sum())
