"""Building a store from an index: what is to be done, on which workers, and the tables at the end.

The index is kept as a column table and a session's rows become records when its turn comes, so that 300,000 scans take no more than
their table. An interrupted run is resumed by looking which session files are there and what they were made of; several runs may build one
store at once. What is damaged is made again beside the old and replaces it where it is as good.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import artifacts
from ..core.conforming import ConformSpec
from ..core.contrasts import UNKNOWN
from ..core.errors import ArtifactError, InputError
from ..core.records import BAD
from ..engine import jobs, pools
from ..engine.memory import WORKER_MB
from ..engine.pools import Where
from . import sessions
from .preparing import PrepareConfig, lacking, memory_mb, prepare_session, unchanged
from .rows import INDEX, Rows, there
from .sessions import AGAIN, session_file
from .store import SCANS, describe_store, hash_store, read_description
from .table import TABLE, Table, write_table
from .verifying import TABLES, damages

logger = logging.getLogger(__name__)

TOLD = 20
"""Notes and reasons that are shown; all of them are in the tables."""


@dataclass(frozen=True)
class Built:
    """How a store came out.

    Attributes:
        sessions, scans: in the store.
        left_out: scans of the index that are not, each with its reason in ``scans.parquet``.
        quarantined: sessions whose worker died or that took too long, twice.
        store_hash: of everything a model can see.
        megabytes: on disk.
        failed: sessions that could not be prepared, the quarantined ones among them.
    """

    sessions: int
    scans: int
    left_out: int
    quarantined: int
    store_hash: str
    megabytes: float
    failed: int = 0


@contextlib.contextmanager
def present(out: Path) -> Iterator[Callable[[], bool]]:
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
    description = described(spec, config)
    if not artifacts.write_json_once(out / "store.json", description):
        same_settings(out, description)
        artifacts.write_json(out / "store.json", description)  # by the version that goes on with it
    with present(out) as only_one:
        todo = to_prepare(rows, out, config)
        (out / artifacts.MARKER).unlink(missing_ok=True)
        if len(todo) < len(rows.keys):
            logger.info("resuming: %d of %d sessions are there", len(rows.keys) - len(todo), len(rows.keys))
        failures, quarantined = work(rows, todo, out, (spec, config), where, progress)
        if only_one():
            _tidy(out)
        return finish(rows, out, description, failures, quarantined)


def described(spec: ConformSpec, config: PrepareConfig) -> dict[str, Any]:
    """The content of ``store.json`` for these settings."""
    return describe_store(spec, config.dtype, config.model_dump(mode="json", exclude={"dtype"}))


def same_settings(out: Path, description: Mapping[str, Any]) -> None:
    """Refuse a folder whose store was prepared otherwise.

    Raises:
        ArtifactError: it was, or another version made it.
    """
    found = read_description(out)
    if {**found, "neuroprior": ""} != {**description, "neuroprior": ""}:
        raise ArtifactError(
            "another store lies here, prepared with other settings", file=out,
            expected={k: description[k] for k in ("spec", "dtype", "steps")}, got={k: found.get(k) for k in ("spec", "dtype", "steps")},
            next_step="choose another --out",
        )  # fmt: skip


def to_prepare(rows: Rows, out: Path, config: PrepareConfig) -> list[str]:
    """Keys of the sessions that are not in the store, are to be tried again, or were made of something else than the index names now.

    Raises:
        ArtifactError: the store holds a session that the index does not have.
    """
    done, again = there(out)
    files = {session_file(out, key).name: key for key in rows.keys}
    strange = sorted(done - set(files))
    if strange:
        raise ArtifactError(
            "the store holds a session that is not in the index", file=out, got=", ".join(strange[:3]),
            next_step="choose another --out for this index",
        )  # fmt: skip
    standing = {files[name] for name in done - again}
    made_of = _made_of(out)
    other = set()
    for key, source in rows.sources(standing, config):
        told = made_of(key)
        if told is None or not unchanged(told, source):
            other.add(key)
    if other:
        logger.info(
            "%d sessions are prepared anew: their rows in the index, or their labels, are not those they were made of", len(other)
        )
    return [key for key in rows.keys if key not in standing or key in other]


def _made_of(out: Path) -> Callable[[str], str | None]:
    """Key -> what its session file was made of, None where the file cannot be read. A finished store's table says it of all; the files
    of an unfinished one may be younger than its table, and are asked one by one."""
    if artifacts.is_complete(out):
        with contextlib.suppress(ArtifactError):
            return Table(out).sources().get

    def ask(key: str) -> str | None:
        try:
            return sessions.read_all(session_file(out, key))[2]
        except ArtifactError:
            return None

    return ask


def work(
    rows: Rows,
    todo: list[str],
    out: Path,
    how: tuple[ConformSpec, PrepareConfig],
    where: Where,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, str], set[str]]:
    """Prepare sessions: why some are not in the store, by key; and which of them killed their workers."""
    failures: dict[str, str] = {}
    quarantined: set[str] = set()
    if not todo:
        return failures, quarantined
    pool, budget = pools.pool(prepare_session, where)
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


def finish(
    rows: Rows,
    out: Path,
    description: Mapping[str, Any],
    failures: Mapping[str, str],
    quarantined: set[str],
    without: Collection[str] = (),
) -> Built:
    """Write the tables of the session files that are there, and the marker last.

    Raises:
        InputError: there is none.
    """
    done, _ = there(out)
    keys = [key for key in rows.keys if session_file(out, key).name in done and key not in without]
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
        "tables": {name: artifacts.sha256_file(out / name) for name in (SCANS, INDEX)},
    }
    artifacts.mark_complete(out, {**facts, "made_by": artifacts.provenance("prepare")})
    size = sum(session_file(out, key).stat().st_size for key in keys) + (out / TABLE).stat().st_size
    return Built(told["sessions"], told["scans"], left_out, len(quarantined), store_hash, size / 1e6, len(failures))


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
    with artifacts.atomic(out / SCANS) as temporary:
        pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), temporary)
    return left_out


# ------------------------------------------------------------------------------------------------------------------- repairs

REPAIR = ".repair-"
"""Beginning of the name of the folder in a store in which damaged sessions are made again."""


@dataclass(frozen=True)
class Repaired:
    """How a repair ended.

    Attributes:
        left: session key (or table) -> what is still wrong; empty where all is well.
        sessions, scans: of the store now.
        store_hash: of the store now.
    """

    left: Mapping[str, list[str]]
    sessions: int
    scans: int
    store_hash: str


def repair(out: Path, found: Mapping[str, list[str]], where: Where, *, progress: Callable[[int, int], None]) -> Repaired:
    """Make the damaged sessions of a store again from their scans, and its tables anew.

    A session is made beside the old one and takes its place only where it has every scan and label that the old one has: what is healthy
    in a session whose scans are out of reach stays.

    Args:
        out: the store.
        found: what :func:`damages` said of it.
        where: the workers.
        progress: told how many of how many sessions are done.

    Raises:
        ArtifactError: the store cannot be written.
    """
    description = read_description(out)
    why: dict[str, str] = {}
    if INDEX not in found:  # without it nobody knows what a session was made of
        rows = Rows(out / INDEX)
        spec = ConformSpec.model_validate(description["spec"])
        config = PrepareConfig.model_validate({"dtype": description["dtype"], **description["steps"]})
        with present(out) as only_one:
            replaced, why = _made_again(rows, out, found, (spec, config), where, progress)
            if replaced or any(name in found for name in TABLES):
                _tables_again(rows, out, description, why)
            if only_one():
                _tidy(out)
    left = damages(out, wanted=found)
    for key, reason in why.items():
        left.setdefault(key, []).append(f"it was not made again: {reason}")
    facts: dict[str, Any] = {}
    with contextlib.suppress(ArtifactError):
        facts = artifacts.read_json(out / artifacts.MARKER)
    return Repaired(left, facts.get("sessions", 0), facts.get("scans", 0), str(facts.get("store_hash", "")))


def _made_again(
    rows: Rows,
    out: Path,
    found: Mapping[str, list[str]],
    how: tuple[ConformSpec, PrepareConfig],
    where: Where,
    progress: Callable[[int, int], None],
) -> tuple[list[str], dict[str, str]]:
    """Damaged sessions that were replaced, and why others were not."""
    broken = [key for key in rows.keys if key in found]
    replaced: list[str] = []
    why: dict[str, str] = {}
    listed = _listed(out)
    with tempfile.TemporaryDirectory(prefix=REPAIR, dir=out) as name:
        failures, _ = work(rows, broken, Path(name), how, where, progress)
        for key in broken:
            new, old = session_file(Path(name), key), session_file(out, key)
            reason = failures.get(key) or _lost(new, old, listed.get(key))
            if reason:
                why[key] = reason
                continue
            old.parent.mkdir(parents=True, exist_ok=True)
            if new.with_suffix(AGAIN).exists():
                artifacts.write_text(old.with_suffix(AGAIN), "")
            else:
                old.with_suffix(AGAIN).unlink(missing_ok=True)
            os.replace(new, old)
            replaced.append(key)
    return replaced, why


def _listed(out: Path) -> dict[str, dict[str, Any]]:
    """The rows of the table of sessions by key; none where it is damaged."""
    try:
        table = Table(out)
        return {key: table.row(number) for key, number in table.numbers.items()}
    except ArtifactError:
        return {}


def _lost(new: Path, old: Path, row: Mapping[str, Any] | None) -> str | None:
    """What a session made again lacks of the old one, by the old one's record, or by its row in the table; None where nothing."""
    record = json.loads(sessions.read(new)[0])
    before: Mapping[str, Any] | None = None
    try:
        before = json.loads(sessions.read(old)[0])
    except ArtifactError:
        if row is not None:
            with contextlib.suppress(ValueError):
                before = {name: json.loads(row[name]) for name in ("scans", "labels")}
    lost = [] if before is None else lacking(before, record)
    if lost:
        reasons = [*record["refused"].values(), *(note for note in record["notes"] if "left out" in note)]
        return f"{', '.join(lost)} would be lost" + (f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else "")
    if before is not None and new.with_suffix(AGAIN).exists() and not old.with_suffix(AGAIN).exists():
        return "a file that it was made from cannot be read at the moment"
    return None


def _tables_again(rows: Rows, out: Path, description: Mapping[str, Any], why: Mapping[str, str]) -> None:
    """Write the tables of a repaired store. Sessions that are lost for now keep their rows where those can be read, and the store its
    hash; else they are left out of the tables and marked as to be made again."""
    lost = [key for key in why if not _whole(session_file(out, key))]
    listed = _listed(out)
    if lost and artifacts.is_complete(out) and all(key in listed for key in lost):
        write_table(
            out, [key for key in rows.keys if key in listed or _whole(session_file(out, key))], {k: listed[k] for k in lost}
        )
        return
    for key in lost:
        artifacts.write_text(session_file(out, key).with_suffix(AGAIN), "")
    finish(rows, out, description, {**_reasons(out), **why}, set(), without=lost)


def _whole(file: Path) -> bool:
    try:
        sessions.read(file)
    except ArtifactError:
        return False
    return True


def _reasons(out: Path) -> dict[str, str]:
    """Why sessions are not in the store, as its table of scans said until now."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(out / SCANS, columns=["key", "name", "reason"])
    except (OSError, ValueError, pa.ArrowException):
        return {}
    columns = (table[name].to_pylist() for name in ("key", "name", "reason"))
    return {key: reason for key, name, reason in zip(*columns, strict=True) if name is None}


def _tidy(out: Path) -> None:
    """Remove what a killed process left behind; nobody else may be writing."""
    for folder in out.glob(f"{REPAIR}*"):
        shutil.rmtree(folder, ignore_errors=True)
    artifacts.sweep(out)
