"""The store: prepared sessions, a file each, read box by box by many processes at once.

::

    STORE/
      store.json                   version, spec, voxel dtype
      sessions/3f/<key>.nps        one session: its scans and label maps as Blosc2 frames, and its record (data/sessions.py)
      sessions/3f/<key>.again      empty: a scan could not be read at the time; the next prepare tries the session again
      index.parquet                the index it was made from, for repairs
      scans.parquet                a row a scan of the index, with status and reason
      sessions.parquet             a row a session: what is asked of all sessions at once, and where their arrays lie
      complete.json                store_hash; written last

Arrays of a session: ``<contrast>`` (x, y, z) int16 with a scale, float16 or float32; ``label.<name>`` integer, the label that fills
most of each voxel; and where the store is coarser than the label ``second.<name>``, the label that fills the next most, and
``share.<name>``, uint8, 510 times its share (0..0.5).

The ``store_hash`` depends on the spec, the voxels and the metadata alone: not on time, paths, worker count or interruptions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from .. import __version__
from ..core import artifacts
from ..core.config import parse
from ..core.conforming import Conformed, ConformSpec
from ..core.errors import ArtifactError, InputError, LeakageError
from ..core.places import Place, is_address
from ..core.resampling import LabelShares
from . import sessions as files
from . import shards
from .sessions import Box, Frame, Packed, session_file
from .table import Table

if TYPE_CHECKING:
    import pandas as pd

VERSION = 3
"""Version of the store's layout."""

SCANS = "scans.parquet"
"""The table of the scans of the index: where each went, or why it did not."""

SHARE_STEPS = 510
"""A voxel's share of its second label, in [0, 0.5], is stored as this many times it, in one byte."""

AT_ONCE = 4096
"""Sessions that are made at once where all are walked through."""


KEPT = 1024
"""Sessions that stay made: a sample asks for the same few again."""


class Later(Mapping[str, Any]):
    """A part of a session's record whose keys are known and whose values are read from its file when one is first asked for."""

    __slots__ = ("_key", "_names", "_part", "_root")

    def __init__(self, names: tuple[str, ...], root: Path, key: str, part: str) -> None:
        self._names, self._root, self._key, self._part = names, root, key, part

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return _record(session_file(self._root, self._key))[self._part][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


@dataclass(frozen=True)
class SessionView:
    """One prepared session, its voxels still on disk.

    Attributes:
        key: unique name, ``dataset/sub-01/ses-1``.
        dataset, subject, session: as in the index.
        split: ``train``, ``val``, ``test`` or an empty string.
        shape: voxels of every volume of the session.
        affine: (4, 4) of the session's grid.
        reference: the contrast that gave the grid.
        scans: contrast -> the store's entry (checksum, conform record, source scan name). A second scan of a contrast is
            ``T1w.2``.
        labels: label name -> the store's entry.
        columns: participants columns, the named ones (age, sex, health, site, scanner, licence) included.
        root: the store's folder.
    """

    key: str
    dataset: str
    subject: str
    session: str
    split: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    reference: str
    scans: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Any]
    root: Path

    def value(self, column: str) -> Any:
        """The session's value in a participants column, or None."""
        return self.columns.get(column)

    @property
    def file(self) -> Path:
        """The session file."""
        return session_file(self.root, self.key)

    @property
    def notes(self) -> tuple[str, ...]:
        """What preparing told of the session."""
        return tuple(_record(self.file)["notes"])

    def __reduce__(self) -> tuple[Any, ...]:
        """A session of a store travels to another process as its name: the store is opened there once."""
        if isinstance(self.scans, Later):
            return _session_of, (self.root, self.key)
        return SessionView, tuple(getattr(self, name) for name in self.__dataclass_fields__)


def pack_label(name: str, shares: LabelShares) -> tuple[dict[str, Any], dict[str, Packed]]:
    """A label map, with its partial volumes where it has any: the record's entry (checksums, values) and the arrays."""
    arrays = {f"label.{name}": files.pack(shares.first)}
    entry: dict[str, Any] = {
        "sha256": arrays[f"label.{name}"].sha256,
        "values": sorted({int(v) for v in np.unique(shares.first)} | {int(v) for v in np.unique(shares.second)}),
    }
    if shares.share.any():
        arrays[f"second.{name}"] = files.pack(shares.second)
        arrays[f"share.{name}"] = files.pack(np.round(shares.share * SHARE_STEPS).astype(np.uint8))
        entry |= {"second_sha256": arrays[f"second.{name}"].sha256, "share_sha256": arrays[f"share.{name}"].sha256}
    return entry, arrays


@lru_cache(maxsize=256)
def _record(path: Path) -> dict[str, Any]:
    return json.loads(files.read(path)[0])


@lru_cache(maxsize=2)
def _store_of(path: Path) -> Store:
    return Store.open(path)


def _session_of(path: Path, key: str) -> SessionView:
    return _store_of(path)[key]


def coded(sessions: Sequence[SessionView], name: str) -> tuple[np.ndarray, list[Any]]:
    """:meth:`Store.coded` of sessions that are there: numbers into the list of their different values."""
    values = [getattr(s, name) if name not in ("scans", "labels") else tuple(getattr(s, name)) for s in sessions]
    known = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([known[value] for value in values], dtype=np.int32), list(known)


class Sessions(Sequence[SessionView]):
    """The sessions of a table, each made when it is asked for."""

    def __init__(self, root: Path, table: Table) -> None:
        self._root, self._table = root, table
        self._one = lru_cache(maxsize=KEPT)(lambda row: next(self._made(row, row + 1)))

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, place: int) -> SessionView: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[SessionView]: ...
    def __getitem__(self, place: int | slice) -> SessionView | Sequence[SessionView]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(*place.indices(len(self))))
        return self._one(range(len(self))[place])

    def __iter__(self) -> Iterator[SessionView]:
        for start in range(0, len(self), AT_ONCE):
            yield from self._made(start, min(start + AT_ONCE, len(self)))

    def _made(self, start: int, stop: int) -> Iterator[SessionView]:
        for row in self._table.rows(start, stop):
            later = {part: Later(row.pop(part), self._root, row["key"], part) for part in ("scans", "labels")}
            yield SessionView(**row, **later, root=self._root)


class Store:
    """A finished store, opened for reading; safe to open in many processes and to pickle to workers.

    Use :meth:`open`.
    """

    def __init__(self, path: Path, info: Mapping[str, Any], table: Table, altered: tuple[SessionView, ...] | None = None) -> None:
        self.path, self.info, self._rows, self._altered = path, info, table, altered
        self.spec: ConformSpec = parse(ConformSpec, info["spec"], where=path / "store.json")
        self.sessions: Sequence[SessionView] = Sessions(path, table) if altered is None else altered
        self._by_key = {session.key: session for session in altered or ()}

    def with_sessions(self, sessions: Sequence[SessionView]) -> Store:
        """The same store seen with altered sessions (other columns or splits). It does not survive pickling."""
        return Store(self.path, self.info, self._rows, tuple(sessions))

    def __reduce__(self) -> tuple[Any, ...]:
        return _store_of, (self.path,)

    @classmethod
    def open(cls, path: Place) -> Store:
        """The store in a folder, or at an address: then its tables are brought to this machine, and each session when it is first drawn.

        Raises:
            ArtifactError: there is none, it is unfinished, damaged, or another version made it.
            LeakageError: a subject stands in two splits.
        """
        path = shards.opened(path) if is_address(path) else Path(path)
        info = read_description(path)
        if not artifacts.is_complete(path):
            raise ArtifactError(
                "the store is not finished", file=path, next_step="run the same neuroprior prepare command again: it resumes"
            )
        store = cls(path, info, Table(path))
        subject, names = store.coded("subject")
        split, _ = store.coded("split")
        first = np.full(len(names), -1, split.dtype)
        first[subject[::-1]] = split[::-1]
        both = sorted({names[number] for number in subject[first[subject] != split]})
        if both:
            raise LeakageError(
                f"{len(both)} subjects stand in more than one split", file=path, got=", ".join(both[:5]),
                next_step="index again with splits by subject, then prepare again",
            )  # fmt: skip
        return store

    def coded(self, name: Literal["dataset", "subject", "split", "scans", "labels"]) -> tuple[np.ndarray, list[Any]]:
        """What all sessions are in one respect, without making them: (sessions,) numbers into the list of the different values; ``scans`` and
        ``labels`` are tuples of names."""
        if self._altered is not None:
            return coded(self._altered, name)
        return self._rows.coded(name) if name not in ("scans", "labels") else self._rows.coded_names(name)

    def largest(self) -> tuple[int, int, int]:
        """The largest extent of any session's volumes along each axis, in voxels."""
        if self._altered is not None:
            shapes = np.array([session.shape for session in self._altered])
        else:
            shapes = self._rows.column("shape").flatten().to_numpy().reshape(-1, 3)
        x, y, z = shapes.max(0).tolist()
        return x, y, z

    def __getitem__(self, key: str) -> SessionView:
        """The session of a key."""
        try:
            return self._by_key[key] if self._altered is not None else self.sessions[self._rows.numbers[key]]
        except KeyError:
            raise InputError(f"the store has no session {key!r}", file=self.path) from None

    def keys(self) -> list[str]:
        """Of all sessions, without making them."""
        return [s.key for s in self._altered] if self._altered is not None else list(self._rows.numbers)

    def check_table(self) -> None:
        """Read every row of the table of sessions.

        Raises:
            ArtifactError: it is damaged.
        """
        for row, _ in enumerate(Sessions(self.path, self._rows)):
            self._rows.layout(row)

    @cached_property
    def table(self) -> pd.DataFrame:
        """``scans.parquet``: a row a scan of the index, with ``status`` and ``reason``.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        import pandas as pd
        import pyarrow as pa

        file = self.path / SCANS
        try:
            return pd.read_parquet(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            missing = isinstance(error, FileNotFoundError)
            raise ArtifactError(
                f"a table of the store is {'missing' if missing else 'damaged'}", file=file,
                got=None if missing else (str(error) or type(error).__name__).splitlines()[0], next_step="run neuroprior store repair",
            ) from None  # fmt: skip

    def inseparable(self) -> list[list[str]]:
        """Groups of subjects that must not be parted by any division, as the index knew them: they share a scan, are one patient, or were named together."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            notes = json.loads((pq.read_schema(self.path / "index.parquet").metadata or {}).get(b"neuroprior", b"{}"))
        except (OSError, pa.ArrowException, ValueError) as error:
            raise ArtifactError(
                "the store's index is damaged", file=self.path / "index.parquet", got=(str(error) or type(error).__name__).splitlines()[0],
                next_step="run the same neuroprior prepare command again",
            ) from None  # fmt: skip
        return [[str(name) for name in group] for group in notes.get("inseparable", [])]

    @property
    def store_hash(self) -> str:
        """The hash of everything that a model can see of the store."""
        return artifacts.read_json(self.path / artifacts.MARKER)["store_hash"]

    def frame(self, key: str, array: str) -> tuple[Path, Frame]:
        """Where an array of a session lies: its file, and where in it."""
        file, layout = session_file(self.path, key), self._layout(key)
        if array in layout:
            return file, layout[array]
        raise ArtifactError(f"session {key} has no array {array}", file=file, next_step="run neuroprior store repair")

    def _layout(self, key: str) -> Mapping[str, Frame]:
        try:
            return self._rows.layout(self._rows.numbers[key])
        except KeyError:
            raise InputError(f"the store has no session {key!r}", file=self.path) from None

    def read(self, key: str, contrast: str, box: Box | None = None) -> np.ndarray:
        """(x, y, z) float32 conformed intensities of one scan, or of a box of it."""
        return files.scaled(*self.read_stored(key, contrast, box))

    def read_stored(self, key: str, contrast: str, box: Box | None = None) -> tuple[np.ndarray, float]:
        """What :meth:`read` gives, as it is stored: the voxels, and what they are to be multiplied with; 0 is 0 in both."""
        session = self[key]
        if contrast not in session.scans:
            raise InputError(f"session {key} has no {contrast}", expected=", ".join(session.scans))
        file, frame = self.frame(key, contrast)
        return files.read_array(file, frame, box), frame.scale

    def read_label(self, key: str, name: str, box: Box | None = None) -> np.ndarray:
        """(x, y, z) integer label map on the session's grid, or a box of it."""
        session = self[key]
        if name not in session.labels:
            raise InputError(f"session {key} has no label {name!r}", expected=", ".join(session.labels) or "none")
        return files.read_array(*self.frame(key, f"label.{name}"), box)

    def read_shares(self, key: str, name: str, values: Sequence[int], box: Box | None = None) -> np.ndarray:
        """(len(values), x, y, z) float32 in [0, 1]: the share of each voxel that each label value fills."""
        shares = self.read_partial(key, name, box)
        return np.stack([shares.of(value) for value in values])

    def read_partial(self, key: str, name: str, box: Box | None = None) -> LabelShares:
        """The label map of a session, or of a box of it, with its partial volumes (none where the store is no coarser)."""
        first = self.read_label(key, name, box)
        session = self[key]
        if "share_sha256" not in session.labels[name]:
            return LabelShares(first, np.zeros_like(first), np.zeros(first.shape, dtype=np.float32))
        second = files.read_array(*self.frame(key, f"second.{name}"), box)
        share = files.read_array(*self.frame(key, f"share.{name}"), box).astype(np.float32) / SHARE_STEPS
        return LabelShares(first, second, share)

    def conformed(self, key: str, contrast: str) -> Conformed:
        """How a scan was conformed, with everything needed to go back."""
        return Conformed.from_json(self[key].scans[contrast]["conformed"])

    def verify(self) -> list[str]:
        """Every array that is missing, damaged or differs from its checksum, as ``key: what``; empty when all is well."""
        return [f"{session.key}: {what}" for session in self.sessions for what in files.check(session.file)]

    def data_summary(self, subjects: Collection[str] | None = None) -> dict[str, Any]:
        """What a model card says of its data: counts, contrasts, datasets, licences, hashes. No subject's name.

        ``subjects`` are those that were trained on, by default the training split's.
        """
        subject, names = self.coded("subject")
        split, splits = self.coded("split")
        told = splits if subjects is None else names
        wanted = np.array([name in ("train", "") if subjects is None else name in subjects for name in told], dtype=bool)
        rows = np.flatnonzero(wanted[split if subjects is None else subject])
        who = [names[number] for number in np.unique(subject[rows]).tolist()]
        scans, scan_names = self.coded("scans")
        times = np.bincount(scans[rows], minlength=len(scan_names)).tolist()
        dataset, datasets = self.coded("dataset")
        people = self._different_columns(rows)

        def different(column: str) -> list[str]:
            return sorted({str(columns[column]) for columns in people if columns.get(column)})

        return {
            "subjects": len(who),
            "sessions": len(rows),
            "scans": sum(len(names) * count for names, count in zip(scan_names, times, strict=True)),
            "contrasts": sorted({name.split(".")[0] for names, n in zip(scan_names, times, strict=True) if n for name in names}),
            "datasets": sorted(datasets[number] for number in np.unique(dataset[rows]).tolist()),
            "sites": different("site"),
            "scanners": different("scanner"),
            "licences": different("licence"),
            "steps": dict(self.info["steps"]),
            "store_hash": self.store_hash,
            "subject_hashes": sorted({artifacts.sha256_json(name)[:12] for name in who}),
        }

    def _different_columns(self, rows: np.ndarray) -> list[Mapping[str, Any]]:
        """The participants columns of some sessions, each different set once."""
        if self._altered is not None:
            return [self._altered[row].columns for row in rows.tolist()]
        numbers, texts = self._rows.coded("columns")
        return [self._rows.parsed(texts[number]) for number in np.unique(numbers[rows]).tolist()]


def read_description(path: Path) -> dict[str, Any]:
    """The content of ``store.json``.

    Raises:
        ArtifactError: there is none, or another version made the store.
    """
    if not (path / "store.json").is_file():
        raise ArtifactError("there is no store here", file=path, expected="a folder made by neuroprior prepare")
    info = artifacts.read_json(path / "store.json")
    if info.get("artifact") != "store" or info.get("version") != VERSION:
        raise ArtifactError(
            "this store was made by another version", file=path / "store.json", expected=f"store version {VERSION}",
            got=f"{info.get('artifact')} version {info.get('version')} (neuroprior {info.get('neuroprior')})",
            next_step="prepare the index again into a new folder",
        )  # fmt: skip
    return info


def describe_store(spec: ConformSpec, dtype: str, steps: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``store.json``: how scans were conformed, what voxels are stored as, and what else was done."""
    return {
        "artifact": "store",
        "version": VERSION,
        "neuroprior": __version__,
        "spec": spec.model_dump(mode="json"),
        "dtype": dtype,
        "steps": dict(steps),
    }


def hash_store(description: Mapping[str, Any], digest: str) -> str:
    """The store's hash from its description and the digest of its sessions' records."""
    told = [description[name] for name in ("version", "spec", "dtype", "steps")]
    return hashlib.sha256(json.dumps([*told, digest], sort_keys=True).encode()).hexdigest()
