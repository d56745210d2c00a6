"""The index on disk, its checks and its splits.

One Parquet table, a row a scan (:class:`~neuroprior.core.records.Scan`). A scan that cannot be used is a row with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .. import __version__
from ..core import artifacts, nifti, seeds
from ..core.contrasts import UNKNOWN
from ..core.errors import ArtifactError, ConfigError, InputError, LeakageError
from ..core.geometry import grid_of, overlap
from ..core.records import BAD, OK, WARNING, Scan

VERSION = 1
"""Version of the index's layout."""
LABEL_OVERLAP = 0.3
"""A label of which less than this share lies in the scan's field of view does not belong to it."""


def write_index(scans: Sequence[Scan], path: str | Path) -> Path:
    """Write an index atomically, rows sorted by scan name."""
    path = Path(path)
    frame = pd.DataFrame([scan.row() for scan in sorted(scans, key=lambda scan: (scan.scan, scan.path))])
    for name in ("age",):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    for name in ("size_bytes", "mtime_ns"):
        frame[name] = frame[name].astype("Int64")
    table = pa.Table.from_pandas(frame, preserve_index=False)
    note = {"artifact": "index", "version": VERSION, "neuroprior": __version__}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"neuroprior": json.dumps(note).encode()})
    with artifacts.atomic(path) as temporary:
        pq.write_table(table, temporary)
    return path


def read_index(path: str | Path) -> list[Scan]:
    """The rows of an index.

    Raises:
        ArtifactError: the file is missing, is no index, or another version wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError("there is no index", file=path, next_step="make one: neuroprior index ROOT --out index.parquet")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            "the index cannot be read", file=path, expected="a Parquet table", got=str(error).splitlines()[0]
        ) from None
    note = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
    if note.get("artifact") != "index" or note.get("version") != VERSION:
        raise ArtifactError(
            "this is no index of this version", file=path, expected=f"index version {VERSION}",
            got=f"{note.get('artifact', 'some other table')} version {note.get('version')}", next_step="run neuroprior index again",
        )  # fmt: skip
    return [Scan.from_row(row) for row in table.to_pylist()]


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def check_scan(scan: Scan, *, voxels: bool) -> Scan:
    """The row with what its file says: geometry, and what is wrong with header, voxels and labels.

    Args:
        scan: a reader's row; one that is bad already keeps its reason.
        voxels: also read the intensities (NaN, constant) and the labels (empty, equal to the image, another grid).
    """
    path = Path(scan.path)
    reasons = list(scan.reasons)
    status = scan.status
    try:
        stat = path.stat()
        scan = replace(scan, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)
        header = nifti.inspect_header(path)
    except (InputError, OSError) as error:
        reason = error.reason if isinstance(error, InputError) else f"the file cannot be read ({error.strerror})"
        return replace(scan, status=BAD, reasons=(*reasons, reason))
    scan = replace(
        scan, shape=header.shape, spacing_mm=header.spacing_mm, affine=tuple(float(v) for v in header.affine.ravel()),
        orientation=header.orientation, dtype=header.dtype,
    )  # fmt: skip
    reasons += header.notes
    if header.notes and status == OK:
        status = WARNING
    labels = dict(scan.labels)
    if voxels and status != BAD:
        try:
            volume, _ = nifti.read_scan(path)
        except InputError as error:
            return replace(scan, status=BAD, reasons=(*reasons, error.reason))
        problems = nifti.check_voxels(volume)
        if problems:
            return replace(scan, status=BAD, reasons=(*reasons, *problems))
        for name, file in sorted(labels.items()):
            problem, keep = _check_label(volume.voxels, grid_of(volume), Path(file))
            if problem:
                reasons.append(f"label {name}: {problem}")
                status = WARNING if status == OK else status
            if not keep:
                del labels[name]
    return replace(scan, status=status, reasons=tuple(dict.fromkeys(reasons)), labels=labels)


def _check_label(image: np.ndarray, grid: object, path: Path) -> tuple[str | None, bool]:
    """What is wrong with a label, and whether it is kept all the same."""
    try:
        label, notes = nifti.read_labels(path)
    except InputError as error:
        return f"left out: {error.reason}", False
    own = grid_of(label)
    if label.voxels.shape == image.shape and np.array_equal(label.voxels.astype(np.float32), image):
        return "left out: it equals its image", False
    if own != grid and overlap(own, grid) < LABEL_OVERLAP:  # type: ignore[arg-type]  # both are grids
        return "left out: it lies outside the scan's field of view", False
    if own.shape != image.shape:
        return "it lies on another grid: it will be resampled", True
    return (notes[0], True) if notes else (None, True)


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def parse_split(text: str) -> dict[str, float]:
    """``"train=0.8,val=0.1,test=0.1"`` as fractions that sum to one.

    Raises:
        ConfigError: it cannot be read, names another split, or does not sum to one.
    """
    try:
        fractions = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ConfigError(f"cannot read the split {text!r}", expected="train=0.8,val=0.1,test=0.1") from None
    if set(fractions) - {"train", "val", "test"} or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ConfigError(f"the split {text!r} is impossible", expected="shares of train, val and test that sum to 1")
    return fractions


def assign_splits(
    scans: Sequence[Scan], fractions: Mapping[str, float], *, seed: int, given: Mapping[str, str] | None = None
) -> list[Scan]:
    """The rows with a split each: by subject, and in each dataset and health group in the wanted shares.

    Args:
        scans: rows; bad ones get their subject's split too.
        fractions: split -> share of subjects.
        seed: of the order.
        given: subject (namespaced or bare) -> split, taken as it is.

    A group's remainders are handed out by a running count over all groups, so that the shares hold overall.
    """
    given = given or {}
    groups: dict[tuple[str, str], list[str]] = {}
    for scan in scans:
        key = (scan.dataset, str(scan.health or ""))
        if all(scan.subject not in names for names in groups.values()):
            groups.setdefault(key, []).append(scan.subject)
    chosen: dict[str, str] = {}
    owed = dict.fromkeys(fractions, 0.0)
    for key in sorted(groups):
        names = sorted(groups[key])
        order = seeds.generator(seed, "split", *key).permutation(len(names))
        for place in order:
            name = names[int(place)]
            fixed = given.get(name) or given.get(name.rsplit("/", 1)[-1])
            if fixed:
                chosen[name] = fixed
                continue
            for split, share in fractions.items():
                owed[split] += share
            best = max(owed, key=lambda split: owed[split])
            owed[best] -= 1
            chosen[name] = best
    return [replace(scan, split=chosen[scan.subject]) for scan in scans]


def check_leakage(scans: Iterable[Scan]) -> None:
    """Refuse an index in which a subject stands in two splits.

    Raises:
        LeakageError: naming the subjects.
    """
    splits: dict[str, set[str]] = {}
    for scan in scans:
        splits.setdefault(scan.subject, set()).add(scan.split)
    both = sorted(subject for subject, names in splits.items() if len(names) > 1)
    if both:
        raise LeakageError(
            f"{len(both)} subjects stand in more than one split", got=", ".join(both[:5]),
            expected="each subject in one split", next_step="let neuroprior index make the splits, or mend the split file",
        )  # fmt: skip


def unknown_contrasts(scans: Iterable[Scan]) -> dict[str, int]:
    """The spellings that nobody knows, with how many scans bear each."""
    counts: dict[str, int] = {}
    for scan in scans:
        if scan.contrast == UNKNOWN and scan.contrast_raw:
            counts[scan.contrast_raw] = counts.get(scan.contrast_raw, 0) + 1
    return counts
