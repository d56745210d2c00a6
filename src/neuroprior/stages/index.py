"""Index: datasets where they lie in, one table of scans out."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
class IndexSummary:
    """What an index holds.

    Attributes:
        out: the table.
        ok, warning, bad: scans by status.
        reused: rows taken from an earlier index because nothing had changed.
        datasets, subjects, contrasts: counts by name.
        unknown: contrast spellings that nobody knows, with counts.
        issues: the table of reasons, or None where every row is ok.
        licences: dataset -> licence, or "not stated".
        left_out: rows that ``where`` left out.
        faces: scans that show a face.
        readers: root of a dataset -> reader, and why it was chosen.
        seconds: how long it took.
    """

    out: Path
    ok: int
    warning: int
    bad: int
    reused: int
    datasets: dict[str, int]
    subjects: int
    contrasts: dict[str, int]
    unknown: dict[str, int]
    issues: Path | None
    licences: dict[str, str] = field(default_factory=dict)
    left_out: int = 0
    faces: int = 0
    readers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        total = self.ok + self.warning + self.bad
        lines = [
            f"{total} scans of {self.subjects} subjects in {len(self.datasets)} datasets: {self.out}",
            "  contrasts: " + ", ".join(f"{name} {n}" for name, n in sorted(self.contrasts.items())),
        ]
        if self.reused:
            lines.append(f"  {self.reused} rows kept from the earlier index")
        if self.left_out:
            lines.append(f"  {self.left_out} left out by --where")
        if self.unknown:
            most = sorted(self.unknown.items(), key=lambda item: -item[1])
            lines.append(
                "  unknown contrasts: " + ", ".join(f"{name} ({n})" for name, n in most[:12]) + " ..." * (len(most) > 12)
            )
            lines.append(f"    name those you want in a YAML such as '{most[0][0]}: T1w', and give it: --contrast-map FILE")
        silent = [name for name, licence in self.licences.items() if licence == "not stated"]
        if silent:
            lines.append(
                f"  {len(silent)} datasets state no licence, for example {silent[0]}: --licence {silent[0]}=CC-BY-4.0 if you know it"
            )
        if self.faces:
            lines.append(
                f"  {self.faces} scans show a face: deface them before sharing, or leave them out with --policy faces=skip"
            )
        if self.warning or self.bad:
            lines.append(f"  {self.warning} with a warning, {self.bad} not usable: reasons in {self.issues}")
        return "\n".join(lines)


def index(
    roots: list[Path],
    out: Path = Path("index.parquet"),
    reader: str = "auto",
    checks: str = "voxels",
    split: str = "train=0.8,val=0.1,test=0.1",
    split_file: Path | None = None,
    contrast_map: Path | None = None,
    column: list[str] | None = None,
    where: str | None = None,
    policy: list[str] | None = None,
    licence: list[str] | None = None,
    variable: list[str] | None = None,
    stratify: str = "dataset,health",
    together: Path | None = None,
    pretrain_json: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> IndexSummary:
    """Index datasets where they lie: nothing is copied or renamed (DICOM is converted, beside the index).

    Args:
        roots: datasets, folders of datasets, or indexes to merge.
        out: the table; what has not changed keeps its row when it is there already.
        reader: name on the readers shelf, or "auto" to let the readers recognise each folder.
        checks: "voxels" reads every scan once, "header" only headers.
        split: shares of subjects.
        split_file: TSV with the columns participant_id and split, taken as it is; other subjects are split by shares.
        contrast_map: YAML from a dataset's spelling of a contrast to a canonical name.
        column: of a table with other names, as in path=filename or subject=ID; may be given several times.
        where: rows to keep, as in "contrast == 'FLAIR' and age > 60"; others are left out.
        policy: what to do about what a check finds, as in intensity=fix or faces=skip; may be given several times.
        licence: of a dataset that states none or a wrong one, as in ds000001=CC0; may be given several times.
        variable: folder that $NAME stands for in a pretrain_data.json, as in openmind=/data/OpenMind; may be given several times.
        stratify: columns whose values every split shall hold in equal shares.
        together: table of pairs of subjects that must not be parted, such as the audit's OUT.pairs.parquet.
        pretrain_json: also write the usable scans as a pretrain_data.json for nnssl.
        seed: of the splits.
        workers: processes; by default as many as cores are granted.

    Returns:
        The counts. Scans that cannot be used are rows with a reason, also listed in OUT.issues.tsv.

    Raises:
        InputError: a root is not there, holds no dataset or no scan, or a check with the policy "fail" found something.
        LeakageError: a subject stands in two splits.
    """
    from ..core.config import read_yaml
    from ..core.contrasts import canonical
    from ..core.errors import ConfigError, InputError
    from ..data import index as tables
    from ..data import where as conditions

    started = time.monotonic()
    if checks not in BATCH:
        raise ConfigError(f"unknown --checks {checks!r}", expected="voxels or header")
    fractions = tables.parse_split(split)
    policies = tables.parse_policies(policy or [])
    if policies["faces"] != "keep" and checks != "voxels":
        raise ConfigError(
            "faces are seen in the voxels only", expected="--checks voxels with --policy faces=skip", got=f"--checks {checks}"
        )
    condition = conditions.parse(where) if where else None
    mapping = {str(k): canonical(str(v)) for k, v in read_yaml(contrast_map).items()} if contrast_map else {}
    given = _given(split_file) if split_file else {}
    pairs = _pairs(together) if together else []
    options = _Options(
        reader, mapping, _assigned(column, "--column", "path=filename"), _assigned(licence, "--licence", "ds000001=CC0"),
        _assigned(variable, "--variable", "openmind=/data/OpenMind"), condition, checks, policies, out.with_name(out.stem + ".converted"),
        workers or len(os.sched_getaffinity(0)),
    )  # fmt: skip
    earlier = _Earlier(out, options)
    with _Line() as line, _Pool(options) as pool:
        sources = _sources([Path(root) for root in roots], reader)
        made = [_one(source, options, earlier, pool, line) for source in sources]
    import pyarrow as pa

    table = pa.concat_tables([piece.table for piece in made])
    left_out = sum(piece.left_out for piece in made)
    if condition is not None and not any(piece.untouched for piece in made):
        condition.known(set().union(*(piece.columns for piece in made)))
    if not table.num_rows:
        raise InputError(
            "no scan was found" if not left_out else f"--where leaves none of {left_out} scans", file=roots[0],
            expected="sub-*/**/*.nii.gz" if not left_out else None, got=where if left_out else None,
            next_step="check the path, or use --reader table" if not left_out else "ask for less",
        )  # fmt: skip
    table = table.take(_order(table))
    if not earlier.whole(made):
        table = _replace(table, check_geometry=tables.session_grids(table))
    table, groups = _duplicates(table, policies["duplicates"], unchanged=earlier.whole(made))
    _fail(table, policies, out)
    for piece in made:  # a merged index keeps its splits
        if piece.source.module is None:
            given = {**dict(zip(*(piece.table.column(name).to_pylist() for name in ("subject", "split")))), **given}
    table = _split(
        table, fractions, seed, given, [part.strip() for part in stratify.split(",") if part.strip()], [*groups, *pairs]
    )
    tables.write_table(table, out, settings=options.key(), sources=[{**piece.note, "left_out": piece.left_out} for piece in made])
    earlier.done()
    issues = _write_issues(table, out)
    if pretrain_json is not None:
        from ..readers import openmind

        usable = (
            scan for batch in table.to_batches(max_chunksize=10_000) for scan in tables.scans_of(pa.Table.from_batches([batch]))
        )
        count = openmind.write(usable, pretrain_json, collection=out.stem, variables=options.variables)
        logger.info("%d images written to %s", count, pretrain_json)
    return _summary(table, out, made, issues, left_out, time.monotonic() - started)


def _assigned(texts: list[str] | None, option: str, example: str) -> dict[str, str]:
    from ..core.errors import ConfigError

    found = dict(part.split("=", 1) for part in texts or [] if "=" in part)
    if len(found) != len(texts or []):
        raise ConfigError(
            f"{option} needs NAME=VALUE, each name once", expected=f"{option} {example}", got=", ".join(texts or [])
        )
    return found


@dataclass(frozen=True)
class _Options:
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
class _Source:
    """A dataset: where it lies, the name of its rows, and who reads it, and why."""

    root: Path
    name: str | None
    module: Any
    why: str


@dataclass(frozen=True)
class _Piece:
    """The rows of a source."""

    source: _Source
    table: Any
    note: dict[str, str]
    left_out: int = 0
    reused: int = 0
    columns: frozenset[str] = frozenset()
    untouched: bool = False


class _Line:
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

    def __enter__(self) -> _Line:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def _tell(self) -> None:
        now = time.monotonic()
        if not self.progress.disable or now - self.told < TOLD_EVERY_S:
            return
        self.told = now
        rate = self.scans / (now - self.started)
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


class _Pool:
    """Processes that check scans, started when there is enough to do; one that dies takes only the scan that killed it along."""

    def __init__(self, options: _Options) -> None:
        self.options, self.pool = options, None

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, workers: int) -> Any:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))

    def check(self, scans: list[Any]) -> Iterator[Any]:
        """Tables of the scans, as they are done."""
        from functools import partial

        from ..data import index as tables

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
        from ..data.index import to_table

        pool = self._start(1)
        try:
            return pool.submit(work, [scan]).result()
        except BrokenProcessPool:
            reason = "reading it killed the process twice (out of memory?)"
            return to_table([replace(scan, status=BAD, reasons=(*scan.reasons, reason))])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Earlier:
    """The index that is there already, and the parts that a killed run left."""

    def __init__(self, out: Path, options: _Options) -> None:
        from ..core.errors import ArtifactError
        from ..data import index as tables

        self.out, self.options = out, options
        self.folder = out.with_name(out.stem + ".parts")
        self.table: pa.Table | None = None
        self.notes: dict[str, Any] = {}
        self.known: dict[str, tuple[str, int | None, int | None, int]] | None = None
        self.pending: list[Any] = []
        self.last, self.parts = time.monotonic(), 0
        if out.is_file():
            try:
                self.table, self.notes = tables.read_table(out)
            except ArtifactError as error:
                logger.warning("the earlier index cannot be used and is made anew: %s", error.reason)
        if self.table is not None and "fingerprint" not in self.table.column_names:
            self.table, self.notes = None, {}
        if self.table is not None:
            self.table = self.table.select(tables.SCHEMA.names).cast(tables.SCHEMA)
        self._gather()

    def _gather(self) -> None:
        """Take the parts of a killed run as rows that are known already."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from ..data import index as tables

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

    def note_of(self, source: _Source) -> dict[str, Any]:
        """What the earlier index says of a source."""
        from ..data.index import clean

        root = clean(str(source.root))
        return next((note for note in self.notes.get("sources", []) if isinstance(note, dict) and note.get("root") == root), {})

    def rows_of(self, root: str) -> pa.Table:
        """The earlier rows of a source."""
        import pyarrow.compute as pc

        if self.table is None:
            raise AssertionError("there is an earlier index wherever this is asked")
        return self.table.filter(pc.equal(self.table.column("source"), root))

    def look_up(self) -> dict[str, tuple[str, int | None, int | None, int]]:
        """Scan -> (fingerprint, size, time, row)."""
        if self.known is None:
            self.known = {}
            if self.table is not None:
                columns = [self.table.column(name).to_pylist() for name in ("scan", "fingerprint", "size_bytes", "mtime_ns")]
                for row, (name, *facts) in enumerate(zip(*columns)):
                    self.known[name] = (*facts, row)
        return self.known

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

    def whole(self, made: list[_Piece]) -> bool:
        """Whether the earlier index is this one, row for row."""
        return bool(made) and all(piece.untouched for piece in made) and len(made) == len(self.notes.get("sources", []))

    def done(self) -> None:
        """The index is written: the parts are not needed any more."""
        import shutil

        self.pending.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _one(source: _Source, options: _Options, earlier: _Earlier, pool: _Pool, line: _Line) -> _Piece:
    """The rows of a source: the earlier ones where nothing changed, others from its reader and its files.

    A source that cannot be read among others is a row with the reason.
    """
    import pyarrow as pa

    from ..core.contrasts import UNKNOWN
    from ..core.errors import MissingDependency, NeuropriorError
    from ..core.records import BAD, Scan
    from ..data import index as tables
    from ..readers import _tree

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
    before = earlier.note_of(source)
    if {**before, "left_out": 0} == {**note, "left_out": 0} and (rows := _kept(earlier.rows_of(note["root"]), tree)) is not None:
        return _Piece(source, rows, note, int(before.get("left_out", 0)), rows.num_rows, untouched=True)
    said: dict[str, Any] = {"contrast_map": options.mapping}
    said |= {"name": source.name} if source.name else {}
    said |= {"column_map": options.column} if reader == "table" else {}
    said |= {"variables": options.variables} if reader == "openmind" else {}
    said |= {"into": options.converted / (source.name or source.root.name)} if reader == "dicom" else {}
    said |= {"tree": tree} if reader in ("bids", "synthetic") else {}
    try:
        found = tables.read_index(source.root) if source.module is None else list(source.module.read(source.root, **said))
    except MissingDependency:
        raise
    except NeuropriorError as error:
        if source.why == "asked for":
            raise
        logger.error("%s cannot be read and is a row with the reason: %s", source.root, error)
        name = source.name or source.root.name
        found = [Scan(
            scan=f"{name}/?", dataset=name, subject=f"{name}/?", session="", contrast=UNKNOWN, contrast_raw="", path=str(source.root),
            status=BAD, reasons=(f"the dataset cannot be read: {error.reason}",),
        )]  # fmt: skip
    logger.info("%s: %d scans (%s: %s)", source.root, len(found), reader, source.why)
    found = _licensed(_named_once(_nameless(found, source.root)), options.licence)
    columns = frozenset({name for scan in found for name in scan.columns})
    condition, left_out = options.condition, 0
    if condition is not None and not condition.needs_files:
        kept = [scan for scan in found if condition.test(scan)]
        left_out, found = len(found) - len(kept), kept
    todo, reused, pieces = [], [], []
    known, settings = earlier.look_up(), options.checked()
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
        earlier.keep(table)
        line.read(table.num_rows)
        pieces.append(table)
    table = pa.concat_tables(pieces) if pieces else tables.SCHEMA.empty_table()
    if condition is not None and condition.needs_files:
        fulfilled = [condition.test(scan) for scan in tables.scans_of(table)]
        left_out, table = left_out + len(fulfilled) - sum(fulfilled), table.filter(pa.array(fulfilled, pa.bool_()))
    where = tables.SCHEMA.get_field_index("source")
    table = table.set_column(where, "source", pa.array([note["root"]] * table.num_rows, pa.string()))
    return _Piece(source, table, note, left_out, len(reused), columns)


def _same(scan: Any, old: tuple[str, int | None, int | None, int], settings: str) -> bool:
    """Whether a scan's earlier row still holds: the reader says the same, it is checked alike, and the file is the one it was."""
    from ..data.index import fingerprint

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
    """The earlier rows of a source whose own folder has not changed, unless a file of theirs that lies elsewhere has."""
    inside = f"{tree.root}/" if tree is not None else "\0"
    for path, size, mtime in zip(*(rows.column(name).to_pylist() for name in ("path", "size_bytes", "mtime_ns"))):
        if path.startswith(inside) or size is None:
            continue
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            return None
        if (facts.st_size, facts.st_mtime_ns) != (size, mtime):
            return None
    return rows


def _named_once(scans: list[Any]) -> list[Any]:
    """Scans whose names differ: one that comes again (``.nii`` beside ``.nii.gz``) gets a number and is bad; names that differ by case are told."""
    from dataclasses import replace

    from ..core.records import BAD, OK, WARNING

    seen: dict[str, str] = {}
    folded: Counter[str] = Counter(name.casefold() for name in {scan.scan for scan in scans})
    out = []
    for scan in scans:
        if folded[scan.scan.casefold()] > 1:
            reason = "another scan's name differs by case only: on some file systems the two are one file"
            scan = replace(scan, status=WARNING if scan.status == OK else scan.status, reasons=(*scan.reasons, reason))
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


def _licensed(scans: list[Any], licences: dict[str, str]) -> list[Any]:
    from dataclasses import replace

    if not licences:
        return scans
    return [replace(scan, licence=licences[scan.dataset]) if scan.dataset in licences else scan for scan in scans]


def _sources(roots: list[Path], reader: str) -> list[_Source]:
    """Every dataset under the roots, each with a name of its own."""
    from ..core.errors import InputError
    from ..data.index import is_index
    from ..readers import bids

    found: list[_Source] = []
    for root in roots:
        root = Path(os.path.abspath(root))
        if root.suffix == ".parquet" and is_index(root):
            found.append(_Source(root, None, None, "it is an index"))
        else:
            found += [_Source(folder, None, module, why) for folder, module, why in _datasets(root, reader)]
    twice = [str(root) for root, n in Counter(source.root for source in found).items() if n > 1]
    if twice:
        raise InputError("a dataset is given twice", file=twice[0], next_step="give it once")
    names = Counter(bids.dataset_name(source.root).casefold() for source in found if source.module is not None)
    out, used = [], set(names)
    for source in found:
        name = bids.dataset_name(source.root)
        if source.module is None or names[name.casefold()] == 1:
            out.append(source)
            continue
        longer = f"{source.root.resolve().parent.name}-{name}"
        number = 1
        while (longer if number == 1 else f"{longer}-{number}").casefold() in used:
            number += 1
        longer = longer if number == 1 else f"{longer}-{number}"
        used.add(longer.casefold())
        logger.warning("several datasets are called %r; that of %s is called %r", name, source.root, longer)
        out.append(_Source(source.root, longer, source.module, source.why))
    return out


def _datasets(root: Path, reader: str) -> list[tuple[Path, Any, str]]:
    """The datasets in a folder: itself, or those among its children, each with the reader that recognises it, and why."""
    from ..core import shelf
    from ..core.errors import InputError

    if not root.exists():
        raise InputError("there is no such folder", file=root)
    if reader != "auto":
        return [(root, shelf.load("readers", reader), "asked for")]
    # the most particular reader first: bids recognises nearly everything
    order = sorted(shelf.names("readers"), key=lambda name: (name == "bids", name == "dicom", name))
    modules = [shelf.load("readers", name) for name in order]

    def recognised(folder: Path) -> tuple[Any, str] | None:
        for module in modules:
            try:
                why = module.recognises(folder)
            except OSError as error:
                logger.warning("%s cannot be looked into: %s", folder, error.strerror)
                return None
            if why:
                return module, why
        return None

    found = recognised(root)
    if found is not None:
        return [(root, found[0], "asked for" if root.is_file() else found[1])]
    children = (
        [child for child in sorted(root.iterdir()) if child.is_dir() and not child.name.startswith(".")] if root.is_dir() else []
    )
    told = [(child, *one) for child in children if (one := recognised(child)) is not None]
    if not told:
        raise InputError(
            "no dataset was recognised here", file=root, expected="a BIDS dataset, a folder of them, DICOM files, or a table of scans",
            got="an empty folder" if root.is_dir() and not any(root.iterdir()) else None,
            next_step="give the folder that holds sub-*, or a table: neuroprior index scans.csv --reader table",
        )  # fmt: skip
    others = [child.name for child in children if child not in {folder for folder, _, _ in told}]
    logger.info(
        "%s holds %d datasets: %s%s",
        root,
        len(told),
        ", ".join(child.name for child, _, _ in told[:10]),
        " ..." * (len(told) > 10),
    )
    if others:
        logger.info(
            "no reader recognises %d other folders: %s%s", len(others), ", ".join(others[:10]), " ..." * (len(others) > 10)
        )
    return told


def _given(path: Path) -> dict[str, str]:
    """Subject -> split from a TSV.

    Raises:
        InputError: a column is missing or a split is none of train, val, test.
        LeakageError: a subject is listed with two splits.
    """
    import pandas as pd

    from ..core.errors import InputError, LeakageError

    table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str)
    if not {"participant_id", "split"} <= set(table.columns):
        raise InputError(
            "the split file lacks a column", file=path, expected="participant_id, split", got=", ".join(table.columns)
        )
    wrong = sorted(set(table["split"].dropna()) - {"train", "val", "test"})
    if wrong:
        raise InputError("the split file names unknown splits", file=path, expected="train, val, test", got=", ".join(wrong))
    counts = table.drop_duplicates().groupby("participant_id")["split"].nunique()
    both = sorted(counts[counts > 1].index)
    if both:
        raise LeakageError("a subject is listed in two splits", file=path, got=", ".join(both[:5]))
    return dict(zip(table["participant_id"], table["split"], strict=True))


def _pairs(path: Path) -> list[tuple[str, str]]:
    """Subjects that belong together, from the audit's pairs or any table with two columns of subjects.

    Raises:
        InputError: the table cannot be read or lacks the columns.
    """
    import pandas as pd

    from ..core.errors import InputError

    try:
        table = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str)
        )
    except (OSError, ValueError) as error:
        raise InputError("the table of pairs cannot be read", file=path, got=(str(error).splitlines() or [""])[0]) from None
    if not {"left_subject", "right_subject"} <= set(table.columns):
        raise InputError("the table of pairs lacks a column", file=path, expected="left_subject, right_subject",
                         got=", ".join(map(str, table.columns)))  # fmt: skip
    return [
        (str(a), str(b))
        for a, b in zip(table["left_subject"], table["right_subject"])
        if isinstance(a, str) and isinstance(b, str)
    ]


def _order(table: pa.Table) -> Any:
    import pyarrow.compute as pc

    return pc.sort_indices(table, sort_keys=[("scan", "ascending"), ("path", "ascending")])


def _replace(table: pa.Table, **columns: list[Any]) -> pa.Table:
    import pyarrow as pa

    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    return table


def _duplicates(table: pa.Table, policy: str, unchanged: bool) -> tuple[pa.Table, list[list[str]]]:
    """The table with its duplicates told, and the groups of subjects that share a scan."""
    from ..core.records import BAD, OK, WARNING
    from ..data.index import duplicates

    if unchanged:  # the rows say it already
        found = table.column("check_duplicates").to_pylist()
        subjects, scans = table.column("subject").to_pylist(), table.column("scan").to_pylist()
        where = dict(zip(scans, subjects))
        told = ((text, subject) for text, subject in zip(found, subjects) if text and text.startswith("equals "))
        return table, [
            [subject, where[text.removeprefix("equals ")]] for text, subject in told if text.removeprefix("equals ") in where
        ]
    groups = duplicates(table)
    checks = ["ok" if key is not None else None for key in table.column("content").to_pylist()]
    reasons, status = table.column("reasons").to_pylist(), table.column("status").to_pylist()
    for row, text in enumerate(table.column("check_duplicates").to_pylist()):
        if text and text.startswith("equals "):  # what an earlier index said; only rows that were usable had a key
            reasons[row] = [reason for reason in reasons[row] or () if not reason.startswith("the same image as ")]
            status[row] = WARNING if reasons[row] else OK
    if not groups:
        return _replace(table, check_duplicates=checks, reasons=reasons, status=status), []
    subjects, scans = table.column("subject").to_pylist(), table.column("scan").to_pylist()
    for group in groups:
        for row in group[1:]:
            checks[row] = f"equals {scans[group[0]]}"
            reasons[row] = [*reasons[row], f"the same image as {scans[group[0]]}"]
            status[row] = BAD if policy == "skip" else WARNING if status[row] == OK else status[row]
    return _replace(table, check_duplicates=checks, reasons=reasons, status=status), [
        [subjects[row] for row in group] for group in groups
    ]


def _fail(table: pa.Table, policies: dict[str, str], out: Path) -> None:
    """Stop where a check with the policy ``fail`` found something.

    Raises:
        InputError: naming the first scans.
    """
    from ..core.errors import InputError

    for name, policy in policies.items():
        if policy != "fail":
            continue
        found = zip(table.column("scan").to_pylist(), table.column(f"check_{name}").to_pylist())
        wrong = [
            (scan, text)
            for scan, text in found
            if text not in (None, "ok") and not (name == "faces" and not text.startswith("face"))
        ]
        if wrong:
            raise InputError(
                f"{len(wrong)} scans fail the check {name!r}", file=out, expected="none (--policy was fail); the index is not written",
                got="; ".join(f"{scan}: {text}" for scan, text in wrong[:3]), next_step=f"mend them, or use --policy {name}=skip",
            )  # fmt: skip


def _split(
    table: pa.Table, fractions: dict[str, float], seed: int, given: dict[str, str], by: list[str], together: list[Any]
) -> pa.Table:
    """The table with every row's split."""
    from ..data.index import plan_splits, scans_of
    from ..data.splits import strata

    subjects = table.column("subject").to_pylist()
    named = [name for name in by if name in table.column_names]
    values: list[list[Any]] = [table.column(name).to_pylist() for name in named]
    if len(named) < len(by):  # other columns of the participants' tables
        rows = scans_of(table.select(["scan", "dataset", "subject", "session", "contrast", "contrast_raw", "path", "columns"]))
        values += [[scan.columns.get(name) for scan in rows] for name in by if name not in named]
    per_column: list[dict[str, str]] = []
    for column in values:
        first: dict[str, Any] = {}
        for subject, value in zip(subjects, column):
            first.setdefault(subject, value)
        per_column.append(
            strata(first)
            if any(isinstance(value, float) for value in first.values())
            else {s: str(v or "") for s, v in first.items()}
        )
    of = {subject: tuple(column.get(subject, "") for column in per_column) for subject in dict.fromkeys(subjects)}
    chosen = plan_splits(of, fractions, seed=seed, given=given, together=together)
    return _replace(table, split=[chosen[subject] for subject in subjects])


def _write_issues(table: pa.Table, out: Path) -> Path | None:
    """The rows that are not ok, with their reasons, as a table people can read; None where there is none."""
    import pyarrow.compute as pc

    from ..core import artifacts
    from ..core.records import OK

    path = out.with_name(out.stem + ".issues.tsv")
    rows = table.select(["status", "scan", "reasons", "path"]).filter(pc.not_equal(table.column("status"), OK)).to_pylist()
    if not rows:
        path.unlink(missing_ok=True)
        return None
    lines = ["status\tscan\treason\tpath"] + [
        f"{row['status']}\t{row['scan']}\t{'; '.join(row['reasons'])}\t{row['path']}" for row in rows
    ]
    artifacts.write_text(path, "\n".join(" ".join(line.split("\n")) for line in lines) + "\n")
    return path


def _summary(table: pa.Table, out: Path, made: list[_Piece], issues: Path | None, left_out: int, seconds: float) -> IndexSummary:
    import pyarrow.compute as pc

    from ..core.contrasts import UNKNOWN
    from ..core.records import BAD, OK, WARNING

    def counts(column: Any) -> dict[str, int]:
        return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}

    status = counts(table.column("status"))
    unknown = table.filter(pc.equal(table.column("contrast"), UNKNOWN)).column("contrast_raw")
    licences = {
        row["dataset"]: row["licence"] or "not stated"
        for row in table.select(["dataset", "licence"]).group_by(["dataset", "licence"]).aggregate([]).to_pylist()
    }
    faces = [text for text in pc.unique(table.column("check_faces")).to_pylist() if text and text.startswith("face")]
    return IndexSummary(
        out, status.get(OK, 0), status.get(WARNING, 0), status.get(BAD, 0), sum(piece.reused for piece in made), counts(table.column("dataset")),
        len(pc.unique(table.column("subject"))), counts(table.column("contrast")), {k: n for k, n in counts(unknown).items() if k}, issues,
        dict(sorted(licences.items())), left_out, sum(counts(table.column("check_faces")).get(text, 0) for text in faces),
        {str(piece.source.root): f"{piece.note['reader']}: {piece.source.why}" for piece in made}, seconds,
    )  # fmt: skip
