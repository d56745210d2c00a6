"""The rows of an index by session, and the session files of a store: what there is to prepare, and what is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..core.contrasts import UNKNOWN
from ..core.errors import ArtifactError, LeakageError
from ..core.records import BAD, Scan
from .index import VERSION as INDEX_VERSION
from .index import read_index
from .preparing import PrepareConfig, source_of
from .sessions import AGAIN, SUFFIX, WHOLE

INDEX = "index.parquet"
"""The index that a store was made from, in its folder."""
BATCH = 5000
"""Sessions whose rows are looked at together."""
SOURCES = (
    "scan", "dataset", "subject", "session", "contrast", "contrast_raw", "path", "brain_mask", "labels", "age", "sex", "health", "site", "scanner",
    "licence", "columns", "size_bytes", "mtime_ns", "split", "check_intensity",
)  # fmt: skip
"""Columns of the index that say what a session is made of."""


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

    def sources(self, keys: Collection[str], config: PrepareConfig) -> Iterator[tuple[str, str]]:
        """Key and what the session would be made of (:func:`source_of`), for some keys; read in batches, so that all of 300,000 take
        seconds and little memory."""
        wanted = self.table.select([name for name in SOURCES if name in self.table.column_names])
        some = [key for key in self.keys if key in keys]
        for start in range(0, len(some), BATCH):
            part = some[start : start + BATCH]
            numbers = [number for key in part for number in self._groups[key]]
            scans = iter([Scan.from_row(row) for row in wanted.take(numbers).to_pylist()])
            for key in part:
                yield key, source_of([next(scans) for _ in self._groups[key]], config)

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


def there(out: Path) -> tuple[set[str], set[str]]:
    """Names of the session files of a store, and of those that are to be made again."""
    done, again = set(), set()
    with contextlib.suppress(FileNotFoundError):
        for folder in os.scandir(out / "sessions"):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                if not WHOLE.fullmatch(entry.name):
                    continue
                if entry.name.endswith(SUFFIX):
                    done.add(entry.name)
                else:
                    again.add(entry.name.removesuffix(AGAIN) + SUFFIX)
    return done, again
