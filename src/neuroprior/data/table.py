"""``sessions.parquet``, the store's table of its sessions: written one session at a time, read one column at a time.

A column is read when it is first asked for and stays an Arrow array; nothing is done row by row when a store is opened, so that a store of
300,000 sessions opens in a moment.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts
from ..core.errors import ArtifactError
from . import sessions as files
from .sessions import Frame, session_file

TABLE = "sessions.parquet"

TEXT = ("key", "dataset", "subject", "session", "split", "reference", "scans", "labels", "columns", "layout")
"""Text columns; the last four are JSON."""

SOURCE = "source"
"""Column of what each session was made of (a digest of its rows in the index); stores made before it lack it."""

ROWS = 2000
"""Rows that are written at once."""


def _schema() -> Any:
    import pyarrow as pa

    fields = [(name, pa.string()) for name in (*TEXT, "record_sha256")]
    fields += [("shape", pa.list_(pa.int32(), 3)), ("affine", pa.list_(pa.float64(), 16)), (SOURCE, pa.string())]
    return pa.schema(fields, metadata={b"neuroprior": b"store sessions"})


def row_of(content: bytes, record: Mapping[str, Any], frames: Mapping[str, Frame], source: str) -> dict[str, Any]:
    """The row of a session: its record, as bytes and read, where its arrays lie, and what it was made of."""
    layout = {name: frame.plain() for name, frame in frames.items()}
    return {
        **{name: record[name] for name in ("key", "dataset", "subject", "session", "split", "reference", "shape")},
        "columns": json.dumps(record["columns"], sort_keys=True, ensure_ascii=False),
        "layout": json.dumps(layout, sort_keys=True), "record_sha256": hashlib.sha256(content).hexdigest(), SOURCE: source,
        "scans": json.dumps(list(record["scans"])), "labels": json.dumps(list(record["labels"])), "affine": np.ravel(record["affine"]).tolist(),
    }  # fmt: skip


def write_table(path: Path, keys: Iterable[str], kept: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """``sessions.parquet`` of the session files there are; one file at a time, so that memory does not grow with their number.

    Args:
        path: the store.
        keys: of the sessions, sorted.
        kept: rows (:meth:`Table.row`) of sessions whose file cannot be read; nothing else is told of them.

    Returns:
        ``placed`` (scan -> (key, name)), ``refused`` (scan -> reason), ``notes``, ``digest`` (over all records, in order), ``scans``
        (how many), ``error`` (largest difference between stored and conformed voxels).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, digest = _schema(), hashlib.sha256()
    told: dict[str, Any] = {"placed": {}, "refused": {}, "notes": [], "scans": 0, "sessions": 0, "error": 0.0}
    with artifacts.atomic(path / TABLE) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for key in keys:
            if kept and key in kept:
                rows.append(dict(kept[key]))
                continue
            content, frames, source = files.read_all(session_file(path, key))
            record = json.loads(content)
            digest.update(content)
            for name, entry in record["scans"].items():
                told["placed"][entry["scan"]] = (key, name)
                told["error"] = max(told["error"], entry["rounding_error"])
            told["refused"] |= record["refused"]
            told["notes"] += [f"{key}: {note}" for note in record["notes"]]
            told["scans"] += len(record["scans"])
            told["sessions"] += 1
            rows.append(row_of(content, record, frames, source))
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return {**told, "digest": digest.hexdigest()}


class Table:
    """The table of a store, its bytes in memory, so that all columns are of the same one even where the file is replaced.

    Args:
        path: the store.

    Raises:
        ArtifactError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path / TABLE
        try:
            self._file = pq.ParquetFile(pa.BufferReader(self.path.read_bytes()))
            self._columns: dict[str, Any] = {}
            self.layout = functools.lru_cache(maxsize=1024)(self._layout)
            self._one_at_a_time = threading.RLock()  # a loader's thread reads beside the training loop
            known, found = _schema().remove_metadata(), self._file.schema_arrow.remove_metadata()
            self.has_sources = found.equals(known)
            if not self.has_sources and not found.equals(known.remove(known.get_field_index(SOURCE))):
                raise self.damaged("other columns than a store's")
            self.count: int = self._file.metadata.num_rows
        except FileNotFoundError:
            raise ArtifactError(
                "a table of the store is missing", file=self.path, next_step="run neuroprior store repair"
            ) from None
        except (OSError, pa.ArrowException, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise self.damaged(error) from None

    def damaged(self, why: object) -> ArtifactError:
        """The error that says so."""
        told = (str(why) or type(why).__name__).splitlines()[0]
        return ArtifactError("a table of the store is damaged", file=self.path, got=told, next_step="run neuroprior store repair")

    def __len__(self) -> int:
        return self.count

    def column(self, name: str) -> Any:
        """A column as an Arrow array; read when first asked for."""
        import pyarrow as pa

        with self._one_at_a_time:
            if name not in self._columns:
                try:
                    found = self._file.read(columns=[name])[name].combine_chunks()
                    found.validate(full=True)
                except (OSError, pa.ArrowException, ValueError) as error:
                    raise self.damaged(error) from None
                if len(found) != self.count or found.null_count:
                    raise self.damaged(f"column {name} has {len(found) - found.null_count} values in {self.count} rows")
                self._columns[name] = found
            return self._columns[name]

    def coded(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A text column as (rows,) numbers into the list of its different values."""
        found = self.column(name).dictionary_encode()
        return found.indices.to_numpy(), found.dictionary.to_pylist()

    def coded_names(self, name: str) -> tuple[np.ndarray, list[tuple[str, ...]]]:
        """A column of lists of names, likewise."""
        numbers, values = self.coded(name)
        try:
            return numbers, [_names(value) for value in values]
        except (ValueError, RecursionError) as error:
            raise self.damaged(error) from None

    def parsed(self, text: str) -> dict[str, Any]:
        """A cell that is a JSON object."""
        try:
            return _object(text)
        except ValueError as error:
            raise self.damaged(error) from None

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Key -> row."""
        return dict(zip(self.column("key").to_pylist(), range(self.count), strict=True))

    def sources(self) -> dict[str, str]:
        """Key -> what the session was made of; empty where nobody says."""
        told = self.column(SOURCE).to_pylist() if self.has_sources else [""] * self.count
        return dict(zip(self.column("key").to_pylist(), told, strict=True))

    def row(self, row: int) -> dict[str, Any]:
        """A row as :func:`row_of` makes it."""
        names = [name for name in _schema().names if name != SOURCE or self.has_sources]
        return {SOURCE: "", **{name: self.column(name)[row].as_py() for name in names}}

    def differs(self, row: int, wanted: Mapping[str, Any]) -> list[str]:
        """Names of the columns in which a row is not the one that :func:`row_of` made of its session file."""
        found = self.row(row)
        if not self.has_sources:
            found[SOURCE] = wanted[SOURCE]
        return [name for name, value in wanted.items() if not _same(name, found[name], value)]

    def _layout(self, row: int) -> dict[str, Frame]:
        """Where a session's arrays lie in its file."""
        try:
            return {name: Frame.of(values) for name, values in json.loads(self.column("layout")[row].as_py()).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self.damaged(error) from None

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Some rows without their layouts: text; ``shape``, a tuple; ``affine``, (4, 4); ``scans``, ``labels`` and ``columns`` as they were."""
        names = [name for name in TEXT if name != "layout"]
        plain = [self.column(name).slice(start, stop - start).to_pylist() for name in names]
        shapes = self.column("shape").slice(start, stop - start).flatten().to_numpy().reshape(-1, 3).tolist()
        affines = self.column("affine").slice(start, stop - start).flatten().to_numpy().reshape(-1, 4, 4)
        found = []
        try:
            for shape, affine, *values in zip(shapes, affines, *plain, strict=True):
                row: dict[str, Any] = dict(zip(names, values, strict=True), shape=tuple(shape), affine=affine)
                row |= {"scans": _names(row["scans"]), "labels": _names(row["labels"]), "columns": _object(row["columns"])}
                found.append(row)
        except (ValueError, TypeError, RecursionError) as error:
            raise self.damaged(error) from None
        return found


def _same(name: str, found: Any, wanted: Any) -> bool:
    if found == wanted:
        return True
    if name not in ("scans", "labels", "columns", "layout"):
        return False
    try:
        return json.loads(found) == json.loads(wanted)  # written with other blanks
    except (ValueError, RecursionError):
        return False


@functools.lru_cache(maxsize=4096)
def _names(text: str) -> tuple[str, ...]:
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError(f"a list of names was expected, got {text[:80]}")
    return tuple(map(str, found))


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object was expected, got {text[:80]}")
    return found
