"""The store: prepared sessions as chunked Blosc2 arrays, read box by box by many processes at once.

::

    STORE/
      store.json                       version, spec, voxel dtype
      sessions/3f/<key>/<contrast>.b2nd      (x, y, z) float16 or float32, conformed
      sessions/3f/<key>/label.<name>.b2nd    (x, y, z) integer label map: the label that fills most of each voxel
      sessions/3f/<key>/second.<name>.b2nd   (x, y, z) the label that fills the next most, and ...
      sessions/3f/<key>/share.<name>.b2nd    (x, y, z) uint8, ... 510 times its share, 0..0.5; both only where the store is coarser
      sessions/3f/<key>/session.json         geometry, intensity, checksums; written last: the session's completeness marker
      scans.parquet                    a row a scan of the index, with status and reason
      complete.json                    store_hash; written last

The ``store_hash`` depends on the spec, the voxels and the metadata alone: not on time, paths, worker count or
interruptions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..core import artifacts
from ..core.config import parse
from ..core.errors import ArtifactError, InputError, LeakageError
from ..core.geometry import Conformed, ConformSpec, LabelShares

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2
"""Version of the store's layout."""
CHUNK = 32
"""Edge of a chunk in voxels: a box of 64^3 touches at most 27 of them."""

SHARE_STEPS = 510
"""A voxel's share of its second label, in [0, 0.5], is stored as this many times it, in one byte."""

Box = tuple[slice, slice, slice]


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
        folder: where the arrays lie.
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
    folder: Path

    def value(self, column: str) -> Any:
        """The session's value in a participants column, or None."""
        return self.columns.get(column)


def key_folder(root: Path, key: str) -> Path:
    """Where a session lies: 256 folders by hash, so that none holds too many."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "__", key)
    digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
    return root / "sessions" / digest[:2] / f"{safe}-{digest}"


def write_array(path: Path, array: np.ndarray) -> str:
    """Write a chunked, compressed array atomically; returns the SHA-256 of its dtype, shape and values.

    Raises:
        ArtifactError: the disk is full or not writable.
    """
    import blosc2

    chunks = tuple(min(CHUNK, n) for n in array.shape)
    parameters = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "filters": [blosc2.Filter.BITSHUFFLE], "nthreads": 1}
    stored = blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=chunks, cparams=parameters)
    with artifacts.atomic(path) as temporary:
        temporary.write_bytes(stored.to_cframe())
    return artifacts.sha256_array(array)


def write_label(folder: Path, name: str, shares: LabelShares) -> dict[str, Any]:
    """Write a label map, with its partial volumes where it has any; returns the store's entry: checksums and values."""
    entry: dict[str, Any] = {
        "sha256": write_array(folder / f"label.{name}.b2nd", shares.first),
        "values": sorted({int(v) for v in np.unique(shares.first)} | {int(v) for v in np.unique(shares.second)}),
    }
    if shares.share.any():
        entry["second_sha256"] = write_array(folder / f"second.{name}.b2nd", shares.second)
        entry["share_sha256"] = write_array(folder / f"share.{name}.b2nd", np.round(shares.share * SHARE_STEPS).astype(np.uint8))
    return entry


def read_array(path: Path, box: Box | None = None) -> np.ndarray:
    """A box of an array on disk, or all of it; only the chunks that the box touches are read.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    import blosc2

    try:
        stored = blosc2.open(str(path), mode="r", mmap_mode="r")
        return np.asarray(stored[box if box is not None else (slice(None),) * 3])
    except FileNotFoundError:
        raise ArtifactError("an array of the store is missing", file=path, next_step="run neuroprior prepare again") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtifactError(
            "an array of the store is damaged", file=path, got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_step="delete the session's folder and run neuroprior prepare again",
        ) from None  # fmt: skip


class Store:
    """A finished store, opened for reading; safe to open in many processes and to pickle to workers.

    Use :meth:`open`.
    """

    def __init__(self, path: Path, info: Mapping[str, Any], sessions: tuple[SessionView, ...]) -> None:
        self.path, self.info, self.sessions = path, info, sessions
        self.spec: ConformSpec = parse(ConformSpec, info["spec"], where=path / "store.json")
        self._by_key = {session.key: session for session in sessions}

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """The store in a folder.

        Raises:
            ArtifactError: there is none, it is unfinished, or another version made it.
            LeakageError: a subject stands in two splits.
        """
        path = Path(path)
        info = read_description(path)
        if not artifacts.is_complete(path):
            raise ArtifactError(
                "the store is not finished", file=path, next_step="run the same neuroprior prepare command again: it resumes"
            )
        sessions = []
        for folder in sorted((path / "sessions").glob("*/*/session.json")):
            sessions.append(_view(folder))
        sessions.sort(key=lambda session: session.key)
        splits: dict[str, set[str]] = {}
        for session in sessions:
            splits.setdefault(session.subject, set()).add(session.split)
        both = sorted(subject for subject, names in splits.items() if len(names) > 1)
        if both:
            raise LeakageError(
                f"{len(both)} subjects stand in more than one split", file=path, got=", ".join(both[:5]),
                next_step="index again with splits by subject, then prepare again",
            )  # fmt: skip
        return cls(path, info, tuple(sessions))

    def __getitem__(self, key: str) -> SessionView:
        """The session of a key."""
        try:
            return self._by_key[key]
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

    def read(self, key: str, contrast: str, box: Box | None = None) -> np.ndarray:
        """(x, y, z) float32 conformed intensities of one scan, or of a box of it."""
        session = self[key]
        if contrast not in session.scans:
            raise InputError(f"session {key} has no {contrast}", expected=", ".join(session.scans))
        return read_array(session.folder / f"{contrast}.b2nd", box).astype(np.float32)

    def read_label(self, key: str, name: str, box: Box | None = None) -> np.ndarray:
        """(x, y, z) integer label map on the session's grid, or a box of it."""
        session = self[key]
        if name not in session.labels:
            raise InputError(f"session {key} has no label {name!r}", expected=", ".join(session.labels) or "none")
        return read_array(session.folder / f"label.{name}.b2nd", box)

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
        second = read_array(session.folder / f"second.{name}.b2nd", box)
        share = read_array(session.folder / f"share.{name}.b2nd", box).astype(np.float32) / SHARE_STEPS
        return LabelShares(first, second, share)

    def conformed(self, key: str, contrast: str) -> Conformed:
        """How a scan was conformed, with everything needed to go back."""
        return Conformed.from_json(self[key].scans[contrast]["conformed"])

    def verify(self) -> list[str]:
        """Every array that is missing, damaged or differs from its checksum, as ``key: what``; empty when all is well."""
        problems = []
        for session in self.sessions:
            entries = [(name, f"{name}.b2nd", entry["sha256"]) for name, entry in session.scans.items()]
            for name, entry in session.labels.items():
                entries += [
                    (f"label {name}", f"{part}.{name}.b2nd", entry[key])
                    for part, key in (("label", "sha256"), ("second", "second_sha256"), ("share", "share_sha256"))
                    if key in entry
                ]
            for name, file, expected in entries:
                try:
                    found = artifacts.sha256_array(read_array(session.folder / file))
                except ArtifactError as error:
                    problems.append(f"{session.key}: {name}: {error.what}")
                    continue
                if found != expected:
                    problems.append(f"{session.key}: {name}: the voxels are not the ones that were written")
        return problems

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


def _view(marker: Path) -> SessionView:
    entry = artifacts.read_json(marker)
    x, y, z = entry["shape"]
    return SessionView(
        entry["key"], entry["dataset"], entry["subject"], entry["session"], entry["split"], (x, y, z), np.array(entry["affine"]),
        entry["reference"], entry["scans"], entry["labels"], entry["columns"], marker.parent,
    )  # fmt: skip


def describe_store(spec: ConformSpec, dtype: str) -> dict[str, Any]:
    """The content of ``store.json``."""
    return {
        "artifact": "store",
        "version": VERSION,
        "neuroprior": __version__,
        "spec": spec.model_dump(mode="json"),
        "dtype": dtype,
    }


def hash_sessions(spec: Mapping[str, Any], dtype: str, sessions: Sequence[Mapping[str, Any]]) -> str:
    """The store's hash from its spec and the content of its ``session.json`` files."""
    digest = hashlib.sha256(json.dumps([dict(spec), dtype], sort_keys=True).encode())
    for entry in sorted(sessions, key=lambda entry: str(entry["key"])):
        digest.update(json.dumps(entry, sort_keys=True).encode())
    return digest.hexdigest()
