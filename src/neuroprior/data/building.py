"""Building a store from an index: what is to be done, on which workers, and the tables at the end.

The index is kept as a column table and a session's rows become records when its turn comes, so that 300,000 scans take no more than
their table. An interrupted run is resumed by looking which session files are there; several runs may build one store at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts
from ..core.conforming import ConformSpec
from ..core.contrasts import UNKNOWN
from ..core.errors import ArtifactError, InputError, LeakageError
from ..core.records import BAD, Scan
from ..engine import clusters, jobs
from ..engine.memory import WORKER_MB, granted_memory_mb
from . import sessions
from .index import VERSION as INDEX_VERSION
from .index import read_index
from .preparing import PrepareConfig, conformed_voxels, memory_mb, prepare_session
from .sessions import AGAIN, SUFFIX, session_file
from .store import Store, describe_store, hash_store, read_description
from .table import TABLE, write_table

logger = logging.getLogger(__name__)

INDEX = "index.parquet"
TIMED = 6
"""Sessions that a dry run prepares to see how long they take."""
TOLD = 20
"""Notes and reasons that are shown; all of them are in the tables."""


class Rows:
    """The rows of an index by session, made into records one session at a time.

    Attributes:
        keys: of the sessions with usable scans, sorted.
        count: rows of the index.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.table = path, _index_table(path)
        self.count = self.table.num_rows
        plain = {name: self.table[name].to_pylist() for name in ("scan", "subject", "session", "contrast", "status", "split")}
        splits: dict[str, str] = {}
        both = sorted(
            {s for s, split in zip(plain["subject"], plain["split"], strict=True) if splits.setdefault(s, split) != split}
        )
        if both:
            raise LeakageError(
                f"{len(both)} subjects stand in more than one split", file=path, got=", ".join(both[:5]),
                expected="each subject in one split", next_step="let neuroprior index make the splits, or mend the split file",
            )  # fmt: skip
        names = [f"{a}/{b}" if b else a for a, b in zip(plain["subject"], plain["session"], strict=True)]
        self._groups: dict[str, list[int]] = {}
        for number in sorted(range(self.count), key=lambda n: (names[n], plain["scan"][n])):
            if plain["status"][number] != BAD and plain["contrast"][number] != UNKNOWN:
                self._groups.setdefault(names[number], []).append(number)
        self.keys = list(self._groups)

    def scans(self, key: str) -> list[Scan]:
        """A session's usable scans, sorted by name."""
        return [Scan.from_row(self.table.slice(number, 1).to_pylist()[0]) for number in self._groups[key]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """What the store's table of scans says of every row."""
        wanted = self.table.select(
            ["scan", "subject", "session", "contrast", "contrast_raw", "status", "reasons", "split", "path"]
        )
        for batch in wanted.to_batches(max_chunksize=10_000):
            yield from batch.to_pylist()


def _index_table(path: Path) -> Any:
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    note: dict[str, Any] = {}
    table: Any = None
    with contextlib.suppress(OSError, pa.ArrowException, ValueError):
        table = pq.read_table(path)
        note = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
    if note.get("artifact") != "index" or note.get("version") != INDEX_VERSION:
        read_index(path)  # says what is wrong with it
        raise ArtifactError("the index cannot be read", file=path)
    return table


@dataclass(frozen=True)
class Where:
    """Where sessions are prepared.

    Attributes:
        workers: processes; None for as many as cores are granted, 1 without a time limit for this process alone.
        memory_mb: for all together; None for nine tenths of what is free, or on a cluster for all that its workers may take.
        timeout_s: for one session; None for none.
        scheduler: address or scheduler file of a running Dask cluster, ``local`` for one started here, or None.
        slurm: YAML file of a cluster that SLURM starts, or None.
    """

    workers: int | None = None
    memory_mb: float | None = None
    timeout_s: float | None = None
    scheduler: str | None = None
    slurm: Path | None = None


@dataclass(frozen=True)
class Built:
    """How a store came out.

    Attributes:
        sessions, scans: in the store.
        left_out: scans of the index that are not, each with its reason in ``scans.parquet``.
        quarantined: sessions whose worker died or that took too long, twice.
        store_hash: of everything a model can see.
        megabytes: on disk.
    """

    sessions: int
    scans: int
    left_out: int
    quarantined: int
    store_hash: str
    megabytes: float


def there(out: Path) -> tuple[set[str], set[str]]:
    """Names of the session files of a store, and of those that are to be made again."""
    done, again = set(), set()
    with contextlib.suppress(FileNotFoundError):
        for folder in os.scandir(out / "sessions"):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                if entry.name.endswith(SUFFIX):
                    done.add(entry.name)
                elif entry.name.endswith(AGAIN):
                    again.add(entry.name.removesuffix(AGAIN) + SUFFIX)
    return done, again


@contextlib.contextmanager
def _present(out: Path) -> Iterator[Callable[[], bool]]:
    """Marks this process as one that builds the store; the function given says whether it is the only one (and then keeps others out)."""
    import fcntl

    with open(out / ".building", "w") as file:

        def only_one() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                # a lock that could not be made exclusive is lost: without it another run would sweep what this one is about to write
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_SH)
                return False
            return True

        with contextlib.suppress(OSError):  # a file system without locks: two runs then leave their temporary files
            fcntl.flock(file, fcntl.LOCK_SH)
        yield only_one


def build(
    index: Path,
    out: Path,
    spec: ConformSpec,
    config: PrepareConfig,
    where: Where,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Built:
    """Prepare every session of an index that is not in the store yet, and finish the store.

    Args:
        index: made by ``neuroprior index``.
        out: the store's folder.
        spec: how scans are conformed.
        config: what else is done.
        where: the workers.
        progress: told how many of how many sessions are done.

    Raises:
        InputError: no usable scan, or no session could be prepared.
        ArtifactError: another store lies there, or the disk is full or not writable.
        LeakageError: a subject stands in two splits.
    """
    rows = Rows(index)
    if not rows.keys:
        raise InputError(
            "the index holds no usable scan", file=index, got=f"{rows.count} rows",
            next_step="read the reasons in the index's issues table",
        )  # fmt: skip
    description = describe_store(spec, config.dtype, config.model_dump(mode="json", exclude={"dtype"}))
    if (out / "store.json").exists():
        found = read_description(out)
        if {**found, "neuroprior": ""} != {**description, "neuroprior": ""}:
            raise ArtifactError(
                "another store lies here, prepared with other settings", file=out,
                expected={k: description[k] for k in ("spec", "dtype", "steps")}, got={k: found.get(k) for k in ("spec", "dtype", "steps")},
                next_step="choose another --out",
            )  # fmt: skip
    artifacts.write_json(out / "store.json", description)
    with _present(out) as only_one:
        (out / artifacts.MARKER).unlink(missing_ok=True)
        done, again = there(out)
        files = {session_file(out, key).name: key for key in rows.keys}
        strange = sorted(done - set(files))
        if strange:
            raise ArtifactError(
                "the store holds a session that is not in the index", file=out, got=", ".join(strange[:3]),
                next_step="choose another --out for this index",
            )  # fmt: skip
        todo = [key for name, key in files.items() if name not in done or name in again]
        if len(todo) < len(rows.keys):
            logger.info("resuming: %d of %d sessions are there", len(rows.keys) - len(todo), len(rows.keys))
        failures, quarantined = _work(rows, todo, out, (spec, config), where, progress)
        if only_one():
            artifacts.sweep(out)
        return _finish(rows, out, description, failures, quarantined)


def _work(
    rows: Rows,
    todo: list[str],
    out: Path,
    how: tuple[ConformSpec, PrepareConfig],
    where: Where,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, str], set[str]]:
    """Why sessions are not in the store, by key; and which of them killed their workers."""
    failures: dict[str, str] = {}
    quarantined: set[str] = set()
    if not todo:
        return failures, quarantined
    pool, budget = _pool(where, len(todo))
    spec, config = how

    def one(key: str) -> jobs.Job:
        scans = rows.scans(key)
        return jobs.Job(key, (out.absolute(), key, scans, spec, config), memory_mb(scans, spec) + WORKER_MB)

    work = (one(key) for key in todo)
    for number, outcome in enumerate(jobs.run(pool, work, budget), start=1):
        reason = outcome.error if outcome.error is not None else outcome.value
        if outcome.quarantined:
            quarantined.add(outcome.name)
        if reason is not None:
            failures[outcome.name] = reason
            if len(failures) <= TOLD:
                logger.error("%s: %s", outcome.name, reason)
        progress(number, len(todo))
    if len(failures) > TOLD:
        logger.error("... and %d more sessions, with their reasons in scans.parquet", len(failures) - TOLD)
    return failures, quarantined


def _pool(where: Where, n: int) -> tuple[jobs.Pool, jobs.Budget]:
    memory = where.memory_mb
    if where.slurm is not None:
        pool, workers = clusters.slurm(prepare_session, where.slurm)
        return pool, jobs.Budget(workers, memory or float("inf"), where.timeout_s)
    workers = where.workers or len(os.sched_getaffinity(0))
    if where.scheduler is not None:
        pool, workers = clusters.dask_cluster(prepare_session, where.scheduler, workers)
        return pool, jobs.Budget(workers, memory or float("inf"), where.timeout_s)
    budget = jobs.Budget(workers, memory or 0.9 * granted_memory_mb(), where.timeout_s)
    here = where.workers == 1 and where.timeout_s is None  # what hangs in this process cannot be stopped
    return (jobs.Here(prepare_session) if here else jobs.Processes(prepare_session)), budget


def _finish(rows: Rows, out: Path, description: Mapping[str, Any], failures: dict[str, str], quarantined: set[str]) -> Built:
    done, _ = there(out)
    keys = [key for key in rows.keys if session_file(out, key).name in done]
    if not keys:
        raise InputError("no session could be prepared", file=rows.path, got="; ".join(sorted(set(failures.values()))[:3]))
    if (out / INDEX).resolve() != rows.path.resolve():
        with artifacts.atomic(out / INDEX) as temporary:
            shutil.copyfile(rows.path, temporary)
    told = write_table(out, keys)
    for text in told["notes"][:TOLD]:
        logger.warning(text)
    if len(told["notes"]) > TOLD:
        logger.warning("... and %d more notes: neuroprior store stats shows them", len(told["notes"]) - TOLD)
    left_out = _write_scans(rows, out, told, failures)
    store_hash = hash_store(description, told["digest"])
    facts = {
        "store_hash": store_hash,
        "sessions": told["sessions"],
        "scans": told["scans"],
        "largest_rounding_error": told["error"],
    }
    artifacts.mark_complete(out, {**facts, "made_by": artifacts.provenance("prepare")})
    size = sum(session_file(out, key).stat().st_size for key in keys) + (out / TABLE).stat().st_size
    return Built(told["sessions"], told["scans"], left_out, len(quarantined), store_hash, size / 1e6)


def _write_scans(rows: Rows, out: Path, told: Mapping[str, Any], failures: Mapping[str, str]) -> int:
    """``scans.parquet``: a row a scan of the index, where it went or why it did not. Returns how many did not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("scan", "subject", "contrast", "key", "name", "split", "status", "reason", "path")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    left_out = 0
    for scan in rows:
        own = f"{scan['subject']}/{scan['session']}" if scan["session"] else scan["subject"]
        key, name = told["placed"].get(scan["scan"], (own, None))
        status, reason = scan["status"], "; ".join(scan["reasons"] or ())
        if name is None:
            left_out += 1
            status = BAD
            reason = told["refused"].get(scan["scan"]) or failures.get(key) or reason
            if scan["contrast"] == UNKNOWN and not reason:
                reason = f"unknown contrast {scan['contrast_raw']!r}"
            reason = reason or "left out"
        values = (scan["scan"], scan["subject"], scan["contrast"], key, name, scan["split"] or "", status, reason, scan["path"])
        for column, value in zip(names, values, strict=True):
            columns[column].append(value)
    with artifacts.atomic(out / "scans.parquet") as temporary:
        pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), temporary)
    return left_out


# ------------------------------------------------------------------------------------------------------------------ estimates


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


def estimate(index: Path, spec: ConformSpec, config: PrepareConfig, where: Where) -> Estimate:
    """Prepare a few sessions of all sizes in a temporary folder and scale time and size up by the headers of the others.

    Raises:
        InputError: no usable scan, or none of the sessions tried can be prepared.
    """
    rows = Rows(index)
    if not rows.keys:
        raise InputError("the index holds no usable scan", file=index, got=f"{rows.count} rows")
    sizes, needs = np.empty((len(rows.keys), 3)), 0.0
    for number, key in enumerate(rows.keys):
        scans = rows.scans(key)
        sizes[number], needs = _size(scans, spec), max(needs, memory_mb(scans, spec))
    weight = sizes @ np.array([0.05, 0.02, 0.03])
    order = np.argsort(weight, kind="stable")
    # a session in the middle of each part of equal work, so that the many small and the few large ones both count
    share = np.cumsum(weight[order]) / weight.sum()
    places = np.searchsorted(share, (np.arange(TIMED) + 0.5) / TIMED)
    chosen = sorted({int(order[min(place, len(order) - 1)]) for place in places})
    seconds, stored, used = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        warm = rows.keys[chosen[0]]
        prepare_session(
            Path(folder) / "warm", warm, rows.scans(warm), spec, config
        )  # imports and caches are no work of a session
        for number in chosen:
            key = rows.keys[number]
            began = time.process_time()
            reason = prepare_session(Path(folder), key, rows.scans(key), spec, config)
            if reason is not None:
                logger.warning("%s: %s", key, reason)
                continue
            seconds.append(time.process_time() - began)
            stored.append(session_file(Path(folder), key).stat().st_size)
            used.append(number)
    if not used:
        raise InputError("none of the sessions tried can be prepared", file=index)
    cpu = _scaled(np.array(seconds), weight, used)
    voxels = sizes[:, 2] + 0.01 * sizes[:, 0]
    disk = _scaled(np.array(stored, dtype=float), voxels, used)
    workers = where.workers or len(os.sched_getaffinity(0))
    return Estimate(len(rows.keys), int(sizes[:, 0].sum()), cpu, disk / 1e6, cpu / workers, needs, len(used))


def _scaled(measured: np.ndarray, weight: np.ndarray, used: list[int]) -> float:
    """The whole, from measured parts: the mean ratio to the weight, each part standing for an equal share of the weight."""
    return float(np.mean(measured / weight[used]) * weight.sum())


# ------------------------------------------------------------------------------------------------------------------- repairs


def damages(out: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, list[str]]:
    """What is wrong with a store: session key (or table) -> problems. Files are read whole and compared with their checksums.

    Raises:
        ArtifactError: there is no store, or another version made it.
    """
    description = read_description(out)
    problems: dict[str, list[str]] = {}
    if not (out / INDEX).is_file():
        raise ArtifactError(
            "the store is not finished", file=out, next_step="run the same neuroprior prepare command again: it resumes"
        )
    keys = Rows(out / INDEX).keys
    done, again = there(out)
    import json

    expected: set[str] | None = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        import pyarrow.parquet as pq

        expected = set(pq.read_table(out / TABLE, columns=["key"])["key"].to_pylist())
    if expected is None:
        problems[TABLE] = ["the table is missing or damaged"]
    for number, key in enumerate(keys, start=1):
        file = session_file(out, key)
        if file.name not in done:
            if expected is None or key in expected:
                problems[key] = ["the session file is missing"]
        else:
            found = sessions.check(file)
            if found:
                problems[key] = found
        if file.name in again:
            problems.setdefault(key, []).append("a scan could not be read when it was prepared")
        progress(number, len(keys))
    if not problems and expected is not None:
        import hashlib

        digest = hashlib.sha256()
        for key in keys:
            if session_file(out, key).name in done:
                digest.update(sessions.read(session_file(out, key))[0])
        stated: Any = None
        with contextlib.suppress(ArtifactError, KeyError, TypeError, json.JSONDecodeError):
            stated = artifacts.read_json(out / artifacts.MARKER)["store_hash"]
        if stated != hash_store(description, digest.hexdigest()):
            problems[artifacts.MARKER] = ["the store's hash is not that of its sessions"]
        try:
            Store.open(out).check_table()
        except ArtifactError as error:
            problems[TABLE] = [error.what]
    return problems


def repair(out: Path, found: Mapping[str, list[str]], where: Where, *, progress: Callable[[int, int], None]) -> Built:
    """Make the damaged sessions of a store again from their scans, and its tables anew.

    Raises:
        ArtifactError: the store cannot be written.
    """
    description = read_description(out)
    for key in found:
        session_file(out, key).unlink(missing_ok=True)
    (out / TABLE).unlink(missing_ok=True)
    spec = ConformSpec.model_validate(description["spec"])
    config = PrepareConfig.model_validate({"dtype": description["dtype"], **description["steps"]})
    return build(out / INDEX, out, spec, config, where, progress=progress)
