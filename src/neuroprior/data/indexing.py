"""From datasets on disk to rows: who reads what, what has not changed, and processes that check the rest.

One walk over each dataset; a row that is there already and whose file, settings and code are the same is kept. What is done is put beside
the index now and then, so that a killed run goes on from there.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .datasets import Source

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

BATCH = {"header": 512, "voxels": 8}
"""Scans that a worker takes at a time."""
FEW = {"header": 400, "voxels": 20}
"""Fewer scans than this are read without workers: starting them takes longer."""
NO_PERSON = ("image_name", "dataset_name")
"""Columns of readers of ours that are called a name and name no person."""
TOLD_EVERY_S = 30.0
"""How often progress is told where there is no terminal."""
KEPT_EVERY_S = 20.0
"""How often what is done is put beside the index, so that a killed run goes on from there."""


@dataclass(frozen=True)
class Options:
    """What was asked for, as far as rows depend on it."""

    reader: str
    mapping: dict[str, str]
    column: dict[str, str]
    licence: dict[str, str]
    variables: dict[str, str]
    condition: Any
    checks: str
    policies: dict[str, str]
    converted: Path
    workers: int

    def checked(self) -> str:
        """How a row is checked, in words."""
        from .. import __version__

        policies = {name: policy for name, policy in self.policies.items() if name != "duplicates"}
        return f"{__version__} {self.checks} {sorted(policies.items())}"

    def key(self) -> str:
        """The hash of everything that rows depend on."""
        from ..core.artifacts import sha256_json

        return sha256_json([
            self.checked(), self.mapping, self.column, self.licence, self.variables, self.condition.text if self.condition else None,
            self.policies["duplicates"],
        ])  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """The rows of a source.

    Attributes:
        note: what the index remembers of the source: while it stays the same, its rows do.
        origins: dataset -> where it came from.
        left_out: rows that a condition left out before their files were read.
        columns: names of the participants' columns that were seen.
        used: what was asked for by name and found a use, as ``--licence ds1``.
        untouched: the rows are those of the earlier index.
    """

    source: Source
    table: Any
    note: dict[str, Any]
    origins: dict[str, list[str]]
    left_out: int = 0
    reused: int = 0
    columns: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    untouched: bool = False


class Line:
    """The progress on the error stream: a line with counts, rate and time left on a terminal, a log message now and then elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.walking = self.progress.add_task("listing files", total=None)
        self.reading = self.progress.add_task("reading scans", total=0, visible=False)
        self.total, self.files, self.scans = 0, 0, 0
        self.started = self.told = time.monotonic()

    def __enter__(self) -> Line:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def _tell(self) -> None:
        now = time.monotonic()
        if not self.progress.disable or now - self.told < TOLD_EVERY_S:
            return
        self.told = now
        rate = self.scans / max(now - self.started, 1e-9)
        logger.info("%d files listed, %d of %d known scans read (%.0f/s)", self.files, self.scans, self.total, rate)

    def listed(self, count: int) -> None:
        """So many files more were seen."""
        self.files += count
        self.progress.advance(self.walking, count)
        self._tell()

    def expect(self, count: int) -> None:
        """So many scans more will be read."""
        self.total += count
        self.progress.update(self.reading, total=self.total, visible=self.total > 0)

    def read(self, count: int) -> None:
        """So many scans more were read."""
        self.scans += count
        self.progress.advance(self.reading, count)
        self._tell()


class Pool:
    """Processes that check scans, started when there is enough to do; one that dies takes only the scan that killed it along."""

    def __init__(self, options: Options) -> None:
        self.options, self.pool = options, None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, workers: int) -> Any:
        from concurrent.futures import ProcessPoolExecutor

        from ..core import processes

        return ProcessPoolExecutor(workers, mp_context=processes.context())

    def check(self, scans: list[Any]) -> Iterator[Any]:
        """Tables of the scans, as they are done."""
        from functools import partial

        from . import index as tables

        options = self.options
        voxels = options.checks == "voxels"
        work = partial(tables.check_batch, voxels=voxels, policies=options.policies, settings=options.checked())
        size = BATCH[options.checks]
        batches = [scans[start : start + size] for start in range(0, len(scans), size)]
        if options.workers == 1 or (len(scans) < FEW[options.checks] and self.pool is None):
            yield from map(work, batches)
            return
        yield from self._parallel(work, batches)

    def _parallel(self, work: Any, batches: list[list[Any]]) -> Iterator[Any]:
        from concurrent.futures import FIRST_COMPLETED, wait
        from concurrent.futures.process import BrokenProcessPool

        waiting, under_way = deque(batches), {}
        while waiting or under_way:
            if self.pool is None:
                self.pool = self._start(self.options.workers)
            try:
                while waiting and len(under_way) < 2 * self.options.workers:  # no more than that lies in memory
                    future = self.pool.submit(work, waiting[0])
                    under_way[future] = waiting.popleft()
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    table = future.result()
                    del under_way[future]
                    yield table
            except BrokenProcessPool:
                self.pool = None
                logger.warning("a worker died; what it was reading is read again, one by one")
                for batch in list(under_way.values()):
                    yield from (self._alone(work, scan) for scan in batch)
                under_way.clear()

    def _alone(self, work: Any, scan: Any) -> Any:
        """One scan in a process of its own; one that kills it becomes a row with that reason."""
        from concurrent.futures.process import BrokenProcessPool
        from dataclasses import replace

        from ..core.records import BAD
        from .index import to_table

        pool = self._start(1)
        try:
            return pool.submit(work, [scan]).result()
        except BrokenProcessPool:
            reason = "reading it killed the process twice (out of memory?)"
            return to_table([replace(scan, status=BAD, reasons=(*scan.reasons, reason))])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Earlier:
    """The index that is there already, and the parts that a killed run left."""

    def __init__(self, out: Path, options: Options) -> None:
        from ..core.errors import ArtifactError
        from . import index as tables
        from . import mirror

        self.out, self.options = out, options
        self.folder = out.with_name(out.stem + ".parts")
        self.table: pa.Table | None = None
        self.notes: dict[str, Any] = {}
        self.known: dict[str, dict[str, tuple[str, int | None, int | None, int]]] | None = None
        self.pending: list[Any] = []
        self.last, self.parts = time.monotonic(), 0
        if out.is_file():
            try:
                self.table, self.notes = tables.read_table(out)
            except ArtifactError as error:
                logger.warning("the earlier index cannot be used and is made anew: %s", error.reason)
        if self.table is not None and set(tables.SCHEMA.names) - set(self.table.column_names):
            self.table, self.notes = None, {}
        if self.table is not None:
            self.table = self._by_their_own_names(self.table.select(tables.SCHEMA.names).cast(tables.SCHEMA))
            self.table = mirror.with_mirrors(self.table, out.with_name(out.stem + mirror.ENDING))
        self.finished = self.table
        self._gather()

    def _by_their_own_names(self, table: pa.Table) -> pa.Table:
        """The rows with their datasets called as their sources call them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from .merging import renamed

        back = {
            note["root"]: {new: old for old, new in note["renamed"].items()} for note in self._sources() if note.get("renamed")
        }
        if not back:
            return table
        roots = pc.unique(table.column("source")).to_pylist()
        return pa.concat_tables([
            renamed(table.filter(pc.equal(table.column("source"), root)), back.get(root, {})) for root in roots if root is not None
        ])  # fmt: skip

    def _sources(self) -> list[dict[str, Any]]:
        return [note for note in self.notes.get("sources", []) if isinstance(note, dict)]

    def _gather(self) -> None:
        """Take the parts of a killed run as rows that are known already."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from . import index as tables

        found = []
        for path in sorted(self.folder.glob("*.parquet")) if self.folder.is_dir() else []:
            try:
                found.append(pq.read_table(path).select(tables.SCHEMA.names).cast(tables.SCHEMA))
            except (OSError, pa.ArrowException, KeyError, ValueError):
                logger.warning("a part of a killed run is damaged and is read again: %s", path.name)
        self.parts = len(found)
        if found:
            rows = sum(part.num_rows for part in found)
            logger.info("%d scans of a run that was interrupted are taken over", rows)
            self.table = pa.concat_tables([*([self.table] if self.table is not None else []), *found])

    def note_of(self, source: Source) -> dict[str, Any]:
        """What the earlier index says of a source."""
        from .index import clean

        root = clean(str(source.root))
        return next((note for note in self._sources() if note.get("root") == root), {})

    def rows_of(self, root: str) -> pa.Table:
        """The earlier index's rows of a source."""
        import pyarrow.compute as pc

        if self.finished is None:
            raise AssertionError("there is an earlier index wherever this is asked")
        return self.finished.filter(pc.equal(self.finished.column("source"), root))

    def look_up(self, root: str) -> dict[str, tuple[str, int | None, int | None, int]]:
        """Scan -> (fingerprint, size, time, row), of a source."""
        if self.known is None:
            self.known = {}
            if self.table is not None:
                names = ("source", "scan", "fingerprint", "size_bytes", "mtime_ns")
                for row, (source, name, *facts) in enumerate(zip(*(self.table.column(name).to_pylist() for name in names))):
                    self.known.setdefault(source, {})[name] = (*facts, row)
        return self.known.get(root, {})

    def keep(self, table: pa.Table) -> None:
        """Put what is done beside the index, now and then."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from ..core import artifacts

        self.pending.append(table)
        if time.monotonic() - self.last < KEPT_EVERY_S:
            return
        with artifacts.atomic(self.folder / f"{self.parts:06d}.parquet") as temporary:
            pq.write_table(pa.concat_tables(self.pending), temporary)
        self.parts += 1
        self.pending.clear()
        self.last = time.monotonic()

    def whole(self, made: list[Piece]) -> bool:
        """Whether the earlier index is this one, row for row."""
        same = bool(made) and all(piece.untouched for piece in made) and len(made) == len(self._sources())
        return same and isinstance(self.notes.get("together"), list)

    def together(self) -> list[list[str]]:
        """The groups of subjects that share a scan, as the earlier index found them."""
        return [[str(name) for name in group] for group in self.notes["together"]]

    def done(self) -> None:
        """The index is written: the parts are not needed any more."""
        import shutil

        self.pending.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def rows_of_source(source: Source, options: Options, earlier: Earlier, pool: Pool, line: Line, *, anew: bool = False) -> Piece:
    """The rows of a source: the earlier ones where nothing changed, others from its reader and its files.

    A source that cannot be read among others is a row with the reason. A condition that asks for what the files say is left to the caller.

    Args:
        source, options, earlier, pool, line: what to read, how, what is known, who reads, and who is told.
        anew: ask the reader even where nothing changed.
    """
    import pyarrow as pa

    from ..core.contrasts import UNKNOWN
    from ..core.errors import MissingDependency, NeuropriorError
    from ..core.records import BAD, Scan
    from ..readers import _tree
    from . import index as tables
    from .merging import origins_of

    reader = source.module.__name__.rsplit(".", 1)[-1] if source.module is not None else "index"
    tree = _tree.walk(source.root, line.listed) if source.root.is_dir() else None
    digest = tree.digest if tree is not None else _stamp(source.root)
    note = {
        "root": tables.clean(str(source.root)),
        "reader": reader,
        "digest": digest,
        "options": options.key(),
        "name": source.name or "",
    }
    dicom = source.module if reader == "dicom" else None
    if dicom is not None:
        note = _covered(source, options, earlier, note)
    before = earlier.note_of(replace(source, root=Path(note["root"])))
    unchanged = not anew and all(before.get(key) == value for key, value in note.items())
    if unchanged and (rows := _kept(earlier.rows_of(note["root"]), tree)) is not None:
        return Piece(
            source, rows, note, before.get("origins", {}), int(before.get("left_out", 0)), rows.num_rows,
            used=frozenset(before.get("used", ())), untouched=True,
        )  # fmt: skip
    said: dict[str, Any] = {"contrast_map": options.mapping}
    said |= {"name": source.name} if source.name else {}
    said |= {"column_map": options.column} if reader == "table" else {}
    said |= {"variables": options.variables} if reader == "openmind" else {}
    if dicom is not None:
        gathered = dicom.gather(source.root, options.converted, name=source.name, tree=tree)
        note |= {"root": tables.clean(gathered.shown), "name": _called(source, options)}
        said = {"contrast_map": options.mapping, "into": options.converted, "name": gathered.dataset, "gathered": gathered}
    said |= {"tree": tree} if reader in ("bids", "fomo", "synthetic") else {}
    origins: dict[str, list[str]] = {}
    try:
        if source.module is None:
            inner, notes = tables.read_table(source.root)
            found, origins = [_without_duplicate(scan) for scan in tables.scans_of(inner)], origins_of(inner, notes)
            del inner
        else:
            found = list(source.module.read(source.root, **said))
    except MissingDependency:
        raise
    except NeuropriorError as error:
        if source.why == "asked for":
            raise
        logger.error("%s cannot be read and is a row with the reason: %s", note["root"], error)
        name = said.get("name") or source.root.name
        found = [Scan(
            scan=f"{name}/?", dataset=name, subject=f"{name}/?", session="", contrast=UNKNOWN, contrast_raw="", path=str(source.root) if dicom is None else note["root"],
            status=BAD, reasons=(f"the dataset cannot be read: {error.reason}",),
        )]  # fmt: skip
    logger.info("%s: %d scans (%s: %s)", note["root"], len(found), reader, source.why)
    origins = {name: origins.get(name) or [note["root"]] for name in sorted({scan.dataset for scan in found})}
    found, used = _licensed(_named_once(_nameless(found, source.root)), options.licence, origins)
    used |= {f"--contrast-map {name}" for name in _spelled(found, reader) & set(options.mapping)}
    columns = frozenset({name for scan in found for name in scan.columns})
    condition, left_out = options.condition, 0
    if condition is not None and not condition.needs_files:
        kept = [scan for scan in found if condition.test(scan)]
        left_out, found = len(found) - len(kept), kept
    todo, reused, pieces = [], [], []
    known, settings = earlier.look_up(note["root"]), options.checked()
    for scan in found:
        old = known.get(scan.scan)
        (reused if old is not None and _same(scan, old, settings) else todo).append(
            scan if old is None or not _same(scan, old, settings) else old[3]
        )
    if reused and earlier.table is not None:
        pieces.append(earlier.table.take(reused))
    line.expect(len(todo))
    del found
    for table in pool.check(todo):
        table = tables.replaced(table, source=[note["root"]] * table.num_rows)
        earlier.keep(table)
        line.read(table.num_rows)
        pieces.append(table)
    table = pa.concat_tables(pieces) if pieces else tables.SCHEMA.empty_table()
    return Piece(source, table, note, origins, left_out, len(reused), columns, frozenset(used))


def _called(source: Source, options: Options) -> str:
    """A DICOM dataset's longer name as the index notes it: a keyed hash, for it may name a patient."""
    return (source.module.cover(source.name, options.converted) or "") if source.name else ""


def _covered(source: Source, options: Options, earlier: Earlier, note: dict[str, str]) -> dict[str, str]:
    """The note of a DICOM dataset as the earlier index has it where its path names a patient: what stands for the path."""
    hidden = source.module.cover(str(source.root), options.converted)
    known = hidden is not None and earlier.note_of(replace(source, root=Path(hidden)))
    return {**note, "root": hidden if hidden and known else note["root"], "name": _called(source, options)}


def _same(scan: Any, old: tuple[str, int | None, int | None, int], settings: str) -> bool:
    """Whether a scan's earlier row still holds: the reader says the same, it is checked alike, and the files are those they were."""
    from .index import fingerprint

    said, size, mtime, _ = old
    if said is None or size is None or said != fingerprint(scan, settings):
        return False
    try:
        facts = os.stat(scan.path)
    except (OSError, ValueError):
        return False
    return (facts.st_size, facts.st_mtime_ns) == (size, mtime)


def _stamp(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _kept(rows: pa.Table, tree: Any) -> pa.Table | None:
    """The earlier rows of a source whose own folder has not changed, unless a file of theirs that lies elsewhere has, or may have.

    Which labels a row had that were left out is known to its reader only.
    """
    from ..core.formats import ITK

    inside = f"{tree.root}/" if tree is not None else "\0"
    names = ("path", "size_bytes", "mtime_ns", "labels", "brain_mask", "check_label")
    for path, size, mtime, labels, mask, check in zip(*(rows.column(name).to_pylist() for name in names)):
        if path.startswith(inside):
            if (mask and not mask.startswith(inside)) or (labels not in (None, "{}") and not _all_inside(labels, inside)):
                return None
            continue
        if mask or check or labels not in (None, "{}") or path.lower().endswith(ITK):
            return None
        if size is None:
            continue
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            return None
        if (facts.st_size, facts.st_mtime_ns) != (size, mtime):
            return None
    return rows


def _all_inside(labels: str, inside: str) -> bool:
    import json

    return all(file.startswith(inside) for file in json.loads(labels).values())


def _named_once(scans: list[Any]) -> list[Any]:
    """Scans whose names differ: one that comes again (``.nii`` beside ``.nii.gz``) gets a number and is bad; names that differ by case are told.

    So are subjects whose names differ by case: their scans may still have other names (a T1w of one, a T2w of the other).
    """
    from dataclasses import replace

    from ..core.records import BAD, OK, WARNING
    from .merging import SAME_PERSON, differ_by_case

    seen: dict[str, str] = {}
    files, people = differ_by_case(scan.scan for scan in scans), differ_by_case(scan.subject for scan in scans)
    out = []
    for scan in scans:
        said = (
            ["another scan's name differs by case only: on some file systems the two are one file"] if scan.scan in files else []
        )
        said += [SAME_PERSON] if scan.subject in people else []
        if said:
            reasons = tuple(dict.fromkeys((*scan.reasons, *said)))
            scan = replace(scan, status=WARNING if scan.status == OK else scan.status, reasons=reasons)
        if scan.scan not in seen:
            seen[scan.scan] = scan.path
            out.append(scan)
            continue
        number = 2
        while f"{scan.scan}.{number}" in seen:
            number += 1
        seen[f"{scan.scan}.{number}"] = scan.path
        reason = f"another file gives a scan of the same name ({Path(seen[scan.scan]).name}): rename one"
        out.append(replace(scan, scan=f"{scan.scan}.{number}", status=BAD, reasons=(*scan.reasons, reason)))
    return out


def _nameless(scans: list[Any], root: Path) -> list[Any]:
    """The scans without columns that say who somebody is, whatever reader they come from."""
    from dataclasses import replace

    from ..readers._people import identifying

    telling = sorted(
        name for name in {name for scan in scans for name in scan.columns} if identifying(name) and name not in NO_PERSON
    )
    if not telling:
        return scans
    logger.info("%s: the columns %s may say who somebody is; they are left out", root, ", ".join(telling))
    return [replace(scan, columns={name: cell for name, cell in scan.columns.items() if name not in telling}) for scan in scans]


def _without_duplicate(scan: Any) -> Any:
    """A row of an index that is merged, without what that index said of copies: they are looked for among all rows."""
    from dataclasses import replace

    from ..core.records import OK, WARNING

    if not str(scan.checks.get("duplicates", "")).startswith("equals "):
        return scan
    reasons = tuple(reason for reason in scan.reasons if not reason.startswith("the same image as "))
    checks = {name: text for name, text in scan.checks.items() if name != "duplicates"}
    return replace(scan, checks=checks, reasons=reasons, status=WARNING if reasons else OK)


def _licensed(scans: list[Any], licences: dict[str, str], origins: dict[str, list[str]]) -> tuple[list[Any], set[str]]:
    """The scans with the licences that were stated, and which of those were of use.

    A licence is stated for a source (the column ``source_dataset``), for a dataset, or for the name that a dataset takes beside another of its name.
    """
    from dataclasses import replace

    from .merging import longer_names

    if not licences:
        return scans, set()
    names = {
        dataset: [dataset, *(longer for root in roots for longer in longer_names(dataset, root))]
        for dataset, roots in origins.items()
    }
    out, used = [], set()
    for scan in scans:
        candidates = (str(scan.columns.get("source_dataset") or ""), *names[scan.dataset])
        name = next((name for name in candidates if name in licences), None)
        out.append(scan if name is None else replace(scan, licence=licences[name]))
        used |= {f"--licence {name}"} if name is not None else set()
    return out, used


def _spelled(scans: list[Any], reader: str) -> set[str]:
    """Every spelling by which a contrast map may name the contrast of one of the scans."""
    raw = {scan.contrast_raw for scan in scans}
    found = raw | {text.rsplit("_", 1)[-1] for text in raw}  # ce-gadolinium_T1w goes by T1w as well
    if reader == "nnunet":  # channels go by their numbers as well
        found |= {str(int(tail)) for scan in scans if (tail := scan.scan.rsplit("_", 1)[-1]).isdigit()}
    return found
