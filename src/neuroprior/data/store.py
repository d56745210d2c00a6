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

import gc
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..core import artifacts
from ..core.config import parse
from ..core.errors import ArtifactError, InputError, LeakageError
from ..core.geometry import Conformed, ConformSpec, LabelShares
from . import sessions as files
from .sessions import Box, Frame, Packed

if TYPE_CHECKING:
    import pandas as pd

VERSION = 3
"""Version of the store's layout."""

SHARE_STEPS = 510
"""A voxel's share of its second label, in [0, 0.5], is stored as this many times it, in one byte."""

TABLE = "sessions.parquet"
SUFFIX, AGAIN = ".nps", ".again"
"""Of a session file, and of the empty file beside one that is to be made again."""

TEXT = ("key", "dataset", "subject", "session", "split", "reference", "scans", "labels", "columns", "layout")
"""Text columns of ``sessions.parquet``; the last four are JSON."""

ROWS = 2000
"""Rows of ``sessions.parquet`` written at once."""


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

    def with_sessions(self, sessions: Sequence[SessionView]) -> Store:
        """The same store seen with altered sessions (other columns or splits), each in its place. It does not survive pickling."""
        return Store(self.path, self.info, tuple(sessions), self._layouts)

    def __reduce__(self) -> tuple[Any, ...]:
        """A session of a store travels to another process as its name: the store is opened there once."""
        if isinstance(self.scans, Later):
            return _session_of, (self.root, self.key)
        return SessionView, tuple(getattr(self, name) for name in self.__dataclass_fields__)


def session_file(root: Path, key: str) -> Path:
    """Where a session lies: 256 folders by hash, so that none holds too many; the name is safe on every file system."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "__", key)[-80:]
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    return root / "sessions" / digest[:2] / f"{safe}-{digest}{SUFFIX}"


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


class Store:
    """A finished store, opened for reading; safe to open in many processes and to pickle to workers.

    Use :meth:`open`.
    """

    def __init__(self, path: Path, info: Mapping[str, Any], sessions: tuple[SessionView, ...], layouts: Sequence[str]) -> None:
        self.path, self.info, self.sessions = path, info, sessions
        self.spec: ConformSpec = parse(ConformSpec, info["spec"], where=path / "store.json")
        self._by_key = {session.key: number for number, session in enumerate(sessions)}
        self._layouts = layouts

    def with_sessions(self, sessions: Sequence[SessionView]) -> Store:
        """The same store seen with altered sessions (other columns or splits), each in its place. It does not survive pickling."""
        return Store(self.path, self.info, tuple(sessions), self._layouts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _store_of, (self.path,)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """The store in a folder.

        Raises:
            ArtifactError: there is none, it is unfinished, damaged, or another version made it.
            LeakageError: a subject stands in two splits.
        """
        path = Path(path)
        info = read_description(path)
        if not artifacts.is_complete(path):
            raise ArtifactError(
                "the store is not finished", file=path, next_step="run the same neuroprior prepare command again: it resumes"
            )
        sessions, layouts = _read_table(path)
        splits: dict[str, str] = {}
        both = sorted({s.subject for s in sessions if splits.setdefault(s.subject, s.split) != s.split})
        if both:
            raise LeakageError(
                f"{len(both)} subjects stand in more than one split", file=path, got=", ".join(both[:5]),
                next_step="index again with splits by subject, then prepare again",
            )  # fmt: skip
        return cls(path, info, sessions, layouts)

    def __getitem__(self, key: str) -> SessionView:
        """The session of a key."""
        try:
            return self.sessions[self._by_key[key]]
        except KeyError:
            raise InputError(f"the store has no session {key!r}", file=self.path) from None

    @cached_property
    def table(self) -> pd.DataFrame:
        """``scans.parquet``: a row a scan of the index, with ``status`` and ``reason``."""
        import pandas as pd

        return pd.read_parquet(self.path / "scans.parquet")

    @property
    def store_hash(self) -> str:
        """The hash of everything that a model can see of the store."""
        return artifacts.read_json(self.path / artifacts.MARKER)["store_hash"]

    def frame(self, key: str, array: str) -> tuple[Path, Frame]:
        """Where an array of a session lies: its file, and where in it."""
        session = self[key]
        try:
            layout = json.loads(self._layouts[self._by_key[key]])
            if array in layout:
                return session.file, Frame.of(layout[array])
            raise ArtifactError(f"session {key} has no array {array}", file=session.file, next_step="run neuroprior store repair")
        except (ValueError, TypeError) as error:
            raise ArtifactError("a table of the store is damaged", file=self.path / TABLE, got=str(error)) from None

    def read(self, key: str, contrast: str, box: Box | None = None) -> np.ndarray:
        """(x, y, z) float32 conformed intensities of one scan, or of a box of it."""
        session = self[key]
        if contrast not in session.scans:
            raise InputError(f"session {key} has no {contrast}", expected=", ".join(session.scans))
        file, frame = self.frame(key, contrast)
        return files.scaled(files.read_array(file, frame, box), frame)

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
        training = [s for s in self.sessions if (s.split in ("train", "") if subjects is None else s.subject in subjects)]
        return {
            "subjects": len({session.subject for session in training}),
            "sessions": len(training),
            "scans": sum(len(session.scans) for session in training),
            "contrasts": sorted({name.split(".")[0] for session in training for name in session.scans}),
            "datasets": sorted({session.dataset for session in training}),
            "sites": sorted({str(session.value("site")) for session in training if session.value("site")}),
            "scanners": sorted({str(session.value("scanner")) for session in training if session.value("scanner")}),
            "licences": sorted({str(session.value("licence")) for session in training if session.value("licence")}),
            "store_hash": self.store_hash,
            "subject_hashes": sorted({artifacts.sha256_json(session.subject)[:12] for session in training}),
        }


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


def _schema() -> Any:
    import pyarrow as pa

    fields = [(name, pa.string()) for name in (*TEXT, "record_sha256")]
    fields += [("shape", pa.list_(pa.int32(), 3)), ("affine", pa.list_(pa.float64(), 16))]
    return pa.schema(fields, metadata={b"neuroprior": b"store sessions"})


def write_table(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """``sessions.parquet`` of the session files there are; one file at a time, so that memory does not grow with their number.

    Args:
        path: the store.
        keys: of the sessions, sorted.

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
            content, frames = files.read(session_file(path, key))
            record = json.loads(content)
            digest.update(content)
            for name, entry in record["scans"].items():
                told["placed"][entry["scan"]] = (key, name)
                told["error"] = max(told["error"], entry["rounding_error"])
            told["refused"] |= record["refused"]
            told["notes"] += [f"{key}: {note}" for note in record["notes"]]
            told["scans"] += len(record["scans"])
            told["sessions"] += 1
            layout = {name: frame.plain() for name, frame in frames.items()}
            rows.append(
                {
                    **{name: record[name] for name in ("key", "dataset", "subject", "session", "split", "reference", "shape")},
                    "columns": json.dumps(record["columns"], sort_keys=True, ensure_ascii=False),
                    "layout": json.dumps(layout, sort_keys=True), "record_sha256": hashlib.sha256(content).hexdigest(),
                    "scans": json.dumps(list(record["scans"])), "labels": json.dumps(list(record["labels"])), "affine": np.ravel(record["affine"]).tolist(),
                }
            )  # fmt: skip
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return {**told, "digest": digest.hexdigest()}


def _read_table(path: Path) -> tuple[tuple[SessionView, ...], list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    damaged = ArtifactError("a table of the store is damaged", file=path / TABLE, next_step="run neuroprior store repair")
    collecting = gc.isenabled()
    gc.disable()  # it would look through all sessions again and again, and none of them is garbage
    try:
        table = pq.read_table(path / TABLE)
        if not table.schema.remove_metadata().equals(_schema().remove_metadata()):
            raise damaged
        columns = {name: table[name].to_numpy().tolist() for name in TEXT}
        shapes = table["shape"].combine_chunks().flatten().to_numpy().reshape(-1, 3).tolist()
        affines = table["affine"].combine_chunks().flatten().to_numpy().reshape(-1, 4, 4)
        parsed = {text: json.loads(text) for name in ("scans", "labels", "columns") for text in set(columns[name])}
        names = {text: tuple(map(str, value)) for text, value in parsed.items() if isinstance(value, list)}
        if not len(affines) == len(shapes) == table.num_rows:
            raise damaged
        return tuple(_views(path, columns, names, parsed, (shapes, affines))), columns["layout"]
    except FileNotFoundError:
        raise ArtifactError(
            "a table of the store is missing", file=path / TABLE, next_step="run neuroprior store repair"
        ) from None
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ArtifactError):
            raise
        damaged.got = (str(error) or type(error).__name__).splitlines()[0]
        raise damaged from None
    finally:
        if collecting:
            gc.enable()


def _views(
    path: Path,
    columns: Mapping[str, list[str]],
    names: Mapping[str, tuple[str, ...]],
    parsed: Mapping[str, Any],
    grids: tuple[list[list[int]], np.ndarray],
) -> Iterator[SessionView]:
    put = object.__setattr__
    rows = zip(*(columns[name] for name in TEXT), *grids, strict=True)
    for key, dataset, subject, session, split, reference, scans, labels, more, layout, shape, affine in rows:
        if not (isinstance(layout, str) and isinstance(subject, str)):
            raise ValueError("a value is missing")
        view = object.__new__(SessionView)
        values = {
            "key": key, "dataset": dataset, "subject": subject, "session": session, "split": split, "shape": tuple(shape),
            "affine": affine, "reference": reference, "scans": Later(names[scans], path, key, "scans"),
            "labels": Later(names[labels], path, key, "labels"), "columns": parsed[more], "root": path,
        }  # fmt: skip
        put(view, "__dict__", values)  # a frozen dataclass's own way takes three times as long
        yield view


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
