"""Index: datasets where they lie in, one table of scans out."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexSummary:
    """What an index holds.

    Attributes:
        out: the table.
        ok, warning, bad: scans by status.
        reused: rows taken from an earlier index because the file had not changed.
        datasets, subjects, contrasts: counts by name.
        unknown: contrast spellings that nobody knows, with counts.
        issues: the table of reasons, or None where every row is ok.
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

    def __str__(self) -> str:
        lines = [
            f"{self.ok + self.warning + self.bad} scans of {self.subjects} subjects in {len(self.datasets)} datasets: {self.out}",
            "  contrasts: " + ", ".join(f"{name} {n}" for name, n in sorted(self.contrasts.items())),
        ]
        if self.reused:
            lines.append(f"  {self.reused} rows kept from the earlier index")
        if self.unknown:
            lines.append("  unknown contrasts: " + ", ".join(f"{name} ({n})" for name, n in self.unknown.items()))
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
    seed: int = 0,
    workers: int | None = None,
) -> IndexSummary:
    """Index datasets where they lie: nothing is copied or renamed.

    Args:
        roots: datasets, or folders of datasets.
        out: the table; unchanged files keep their row when it is there already.
        reader: name on the readers shelf, or "auto" to let the readers recognise each folder.
        checks: "voxels" reads every scan once, "header" only headers.
        split: shares of subjects.
        split_file: TSV with the columns participant_id and split, taken as it is; other subjects are split by shares.
        contrast_map: YAML from a dataset's spelling of a contrast to a canonical name.
        column: of a table with other names, as in path=filename or subject=ID; may be given several times.
        seed: of the splits.
        workers: processes; by default as many as cores are granted.

    Returns:
        The counts. Scans that cannot be used are rows with a reason, also listed in OUT.issues.tsv.

    Raises:
        InputError: a root is not there, holds no dataset or no scan.
        LeakageError: a subject stands in two splits.
    """
    from collections import Counter

    from rich.progress import Progress

    from ..core.config import read_yaml
    from ..core.contrasts import canonical
    from ..core.errors import ConfigError, InputError
    from ..core.records import BAD, WARNING
    from ..data import index as tables

    if checks not in ("voxels", "header"):
        raise ConfigError(f"unknown --checks {checks!r}", expected="voxels or header")
    fractions = tables.parse_split(split)
    mapping = {str(k): canonical(str(v)) for k, v in read_yaml(contrast_map).items()} if contrast_map else {}
    given = _given(split_file) if split_file else {}
    columns = dict(part.split("=", 1) for part in column or [] if "=" in part)
    if len(columns) != len(column or []):
        raise ConfigError("--column needs OURS=THEIRS", expected="--column path=filename", got=", ".join(column or []))
    found: list[Any] = []
    for root in roots:
        for folder, module in _datasets(Path(root), reader):
            options = {"column_map": columns} if module.__name__.endswith(".table") else {}
            rows = list(module.read(folder, contrast_map=mapping, **options))
            logger.info("%s: %d scans (%s)", folder, len(rows), module.__name__.rsplit(".", 1)[-1])
            found += rows
    if not found:
        raise InputError(
            "no scan was found", file=roots[0], expected="sub-*/**/*.nii.gz", next_step="check the path, or use --reader table"
        )
    doubles = [name for name, n in Counter(row.scan for row in found).items() if n > 1]
    if doubles:
        raise InputError(
            f"{len(doubles)} scans bear the same name",
            got=doubles[0],
            next_step="two roots with the same folder name? rename one",
        )
    before = {row.scan: row for row in tables.read_index(out)} if out.is_file() else {}
    todo, done = [], []
    for row in found:
        old = before.get(row.scan)
        (done if old is not None and _unchanged(row, old) else todo).append(
            row if old is None or not _unchanged(row, old) else old
        )
    reused = len(done)
    with Progress(disable=len(todo) < 20) as progress:
        bar = progress.add_task("reading scans", total=len(todo))
        for row in _checked(todo, checks == "voxels", workers or len(os.sched_getaffinity(0))):
            done.append(row)
            progress.advance(bar)
    scans = tables.assign_splits(sorted(done, key=lambda row: row.scan), fractions, seed=seed, given=given)
    tables.check_leakage(scans)
    tables.write_index(scans, out)
    issues = _write_issues(scans, out)
    counts = Counter(scan.status for scan in scans)
    return IndexSummary(
        out, len(scans) - counts[WARNING] - counts[BAD], counts[WARNING], counts[BAD], reused, dict(Counter(s.dataset for s in scans)),
        len({s.subject for s in scans}), dict(Counter(s.contrast for s in scans)), tables.unknown_contrasts(scans), issues,
    )  # fmt: skip


def _datasets(root: Path, reader: str) -> list[tuple[Path, Any]]:
    """The datasets in a folder: itself, or those among its children, each with the reader that recognises it."""
    from ..core import shelf
    from ..core.errors import InputError

    if not root.exists():
        raise InputError("there is no such folder", file=root)
    if reader != "auto":
        return [(root, shelf.load("readers", reader))]
    # the most particular reader first: bids recognises nearly everything
    modules = [shelf.load("readers", name) for name in sorted(shelf.names("readers"), key=lambda name: (name == "bids", name))]

    def recognised(folder: Path) -> Any:
        return next((module for module in modules if module.recognises(folder)), None)

    module = recognised(root)
    if module is not None:
        return [(root, module)]
    children = [(child, recognised(child)) for child in sorted(root.iterdir()) if child.is_dir()] if root.is_dir() else []
    found = [(child, module) for child, module in children if module is not None]
    if not found:
        raise InputError(
            "no dataset was recognised here", file=root, expected="a BIDS dataset, a folder of them, or a table of scans",
            got="an empty folder" if root.is_dir() and not any(root.iterdir()) else None,
            next_step="give the folder that holds sub-*, or a table: neuroprior index scans.csv --reader table",
        )  # fmt: skip
    logger.info("%s holds %d datasets: %s", root, len(found), ", ".join(child.name for child, _ in found))
    return found


def _unchanged(row: Any, old: Any) -> bool:
    """Whether file and metadata are the ones of the earlier index."""
    from dataclasses import replace

    try:
        stat = Path(row.path).stat()
    except OSError:
        return False
    same_file = (old.size_bytes, old.mtime_ns, old.path) == (stat.st_size, stat.st_mtime_ns, row.path)
    if not same_file or old.shape is None:
        return False
    labels_kept = set(old.labels.items()) <= set(row.labels.items())
    bare = {"labels": {}, "columns": {}, "split": "", "reasons": (), "status": "", "shape": None, "spacing_mm": None, "affine": None,
            "orientation": None, "dtype": None, "size_bytes": None, "mtime_ns": None}  # fmt: skip
    return (
        labels_kept
        and len(old.labels) == len(row.labels)
        and dict(old.columns) == dict(row.columns)
        and replace(old, **bare) == replace(row, **bare)
    )


def _checked(rows: list[Any], voxels: bool, workers: int) -> Any:
    """The rows with what their files say, as they are done."""
    from ..data.index import check_scan

    if workers == 1 or len(rows) < 20:
        for row in rows:
            yield check_scan(row, voxels=voxels)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(check_scan, row, voxels=voxels) for row in rows]):
            yield future.result()


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


def _write_issues(scans: list[Any], out: Path) -> Path | None:
    """The rows that are not ok, with their reasons, as a table people can read; None where there is none."""
    from ..core import artifacts
    from ..core.records import OK

    path = out.with_name(out.stem + ".issues.tsv")
    rows = [scan for scan in scans if scan.status != OK]
    if not rows:
        path.unlink(missing_ok=True)
        return None
    lines = ["status\tscan\treason\tpath"] + [f"{s.status}\t{s.scan}\t{'; '.join(s.reasons)}\t{s.path}" for s in rows]
    artifacts.write_text(path, "\n".join(lines) + "\n")
    return path
