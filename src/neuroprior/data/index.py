"""The index on disk and its checks.

One Parquet table, a row a scan (:class:`~neuroprior.core.records.Scan`). A scan that cannot be used is a row with a reason. In memory the
index is an Arrow table (about 700 bytes a row); ``Scan`` objects are made for those rows only that somebody asks for.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import __version__
from ..core import artifacts, formats, headers, nifti
from ..core.errors import ArtifactError, ConfigError, InputError, NeuropriorError
from ..core.grids import Grid, grid_of
from ..core.places import is_address, local
from ..core.records import BAD, CHECKS, OK, WARNING, Scan
from ..core.relations import overlap
from ..core.volume import Volume
from . import faces, mirror

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the index's layout."""
LABEL_OVERLAP = 0.3
"""A label of which less than this share lies in the scan's field of view does not belong to it."""
SPACING_MM = (0.05, 60.0)
"""Voxels shorter or longer than this are no brain scan's."""
BRAIN_LITRES = (0.3, 2.2)
"""What a brain mask may hold, from a newborn's brain to a large head's with the fluid around it."""
LARGE_BYTES = 1 << 30
"""Volumes that would take more memory than this, as stored and as float32, are read in blocks: their intensities whole, their face coarsely."""
EXTENT_MM = (20.0, 1000.0)
"""A volume whose longest side is below or above this holds no head, or its spacing is in another unit."""

POLICIES: dict[str, tuple[str, ...]] = {
    "geometry": ("fix", "skip", "fail"), "intensity": ("skip", "fix", "fail"), "label": ("fix", "skip", "fail"), "duplicates": ("fix", "skip", "fail"),
    "faces": ("keep", "skip", "fail"),
}  # fmt: skip
"""Check -> what may be done about what it finds; the first is the default.

``skip``: the row is kept with its reason and never used. ``fix``: geometry is repaired as the reasons say; NaN voxels become 0 when the scan
is prepared (a constant volume cannot be fixed and is skipped); a label that does not belong is left out; duplicates are kept and their
subjects stay in one split. ``fail``: the index stops and names the scans. ``faces=keep`` only flags.
"""

SCHEMA = pa.schema([
    *[(name, pa.string()) for name in ("scan", "dataset", "subject", "session", "contrast", "contrast_raw", "path", "brain_mask", "labels")],
    ("age", pa.float64()), *[(name, pa.string()) for name in ("sex", "health", "site", "scanner", "licence", "columns")],
    ("shape", pa.list_(pa.int64())), ("spacing_mm", pa.list_(pa.float64())), ("affine", pa.list_(pa.float64())),
    ("orientation", pa.string()), ("dtype", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64()),
    ("status", pa.string()), ("reasons", pa.list_(pa.string())), ("split", pa.string()),
    *[(f"check_{name}", pa.string()) for name in CHECKS],
    ("content", pa.string()), ("fingerprint", pa.string()), ("source", pa.string()), ("given_split", pa.string()),
])  # fmt: skip
"""The table's columns. ``content`` is equal where files may be equal, ``fingerprint`` says what the reader said of the scan, how it was
checked and what its labels, mask and voxel file were, ``source`` is the root that the row came from, ``given_split`` the split that the
dataset itself states."""


def to_table(scans: Sequence[Scan], **extra: Sequence[Any]) -> pa.Table:
    """Scans as a table of :data:`SCHEMA`; ``extra`` gives the last columns, which are empty otherwise.

    A split that a scan has by now is one that it was given (by its dataset, or by the index that it is taken from).
    """
    rows = [scan.row() for scan in scans]
    extra = {**extra, "given_split": [scan.split or None for scan in scans]}
    columns = []
    for item in SCHEMA:
        values = (
            extra.get(item.name)
            if item.name in ("content", "fingerprint", "source", "given_split")
            else [row[item.name] for row in rows]
        )
        if item.name == "age":
            values = [float(value) if isinstance(value, (int, float)) else None for value in values or ()]
        elif item.type == pa.string() and values is not None:  # what a reader gave as a number (a site 3) is text here
            values = [value if value is None or isinstance(value, str) else str(value) for value in values]
            values = [value if value is None or value.isprintable() else clean(value) for value in values]
        elif item.name == "reasons":
            values = [[clean(text) for text in texts] for texts in values or ()]
        columns.append(pa.nulls(len(rows), item.type) if values is None else pa.array(values, item.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def clean(text: str) -> str:
    """Text that UTF-8 can hold: a file name with broken bytes keeps them escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_index(scans: Sequence[Scan], path: str | Path) -> Path:
    """Write an index atomically, rows sorted by scan name."""
    return write_table(to_table(sorted(scans, key=lambda scan: (scan.scan, scan.path))), path)


def write_table(table: pa.Table, path: str | Path, **notes: Any) -> Path:
    """Write an index atomically from its table; ``notes`` go into the schema's metadata beside version and maker."""
    path = Path(path)
    note = {"artifact": "index", "version": VERSION, "neuroprior": __version__, **notes}
    table = table.replace_schema_metadata({b"neuroprior": json.dumps(note).encode()})
    with artifacts.atomic(path) as temporary:
        pq.write_table(table, temporary)
    return path


def replaced(table: pa.Table, **columns: Sequence[Any]) -> pa.Table:
    """A table with other values in some of its columns."""
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    return table


def read_table(path: str | Path) -> tuple[pa.Table, dict[str, Any]]:
    """The table of an index, and its notes.

    Raises:
        ArtifactError: the file is missing, is no index, or another version wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError("there is no index", file=path, next_step="make one: neuroprior index ROOT --out index.parquet")
    try:
        table = pq.read_table(path)
        note = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        raise ArtifactError(
            "the index cannot be read", file=path, expected="a Parquet table", got=(str(error).splitlines() or ["damaged"])[0]
        ) from None
    if not isinstance(note, dict) or note.get("artifact") != "index" or note.get("version") != VERSION:
        found = note if isinstance(note, dict) else {}
        raise ArtifactError(
            "this is no index of this version", file=path, expected=f"index version {VERSION}",
            got=f"{found.get('artifact', 'some other table')} version {found.get('version')}", next_step="run neuroprior index again",
        )  # fmt: skip
    return table, note


def is_index(path: str | Path) -> bool:
    """Whether a file is an index of any version."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata.get(b"neuroprior", b"{}")).get("artifact") == "index"
    except (OSError, pa.ArrowException, ValueError, AttributeError):
        return False


def read_index(path: str | Path) -> list[Scan]:
    """The rows of an index.

    Raises:
        ArtifactError: the file is missing, is no index, or another version wrote it.
    """
    table, _ = read_table(path)
    return scans_of(table)


def scans_of(table: pa.Table) -> list[Scan]:
    """The rows of a table."""
    return [Scan.from_row(row) for batch in table.to_batches(max_chunksize=10_000) for row in batch.to_pylist()]


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def parse_policies(texts: Iterable[str]) -> dict[str, str]:
    """``["intensity=fix", "faces=skip"]`` over the defaults of :data:`POLICIES`.

    Raises:
        ConfigError: a check or a policy is unknown.
    """
    chosen = {check: allowed[0] for check, allowed in POLICIES.items()}
    for text in texts:
        check, _, policy = text.partition("=")
        if check not in POLICIES or policy not in POLICIES[check]:
            raise ConfigError(
                f"cannot read the policy {text!r}", expected="; ".join(f"{name}={'|'.join(allowed)}" for name, allowed in POLICIES.items())
            )  # fmt: skip
        chosen[check] = policy
    return chosen


def fingerprint(scan: Scan, settings: str = "") -> str:
    """What a reader says of a scan, how it is checked, and size and time of the files beside it (labels, brain mask, the voxels of a detached
    header), in 16 hexadecimal digits: equal means that nothing but the image's own file can have changed.
    """
    said = (
        scan.scan, scan.dataset, scan.subject, scan.session, scan.contrast, scan.contrast_raw, scan.path, scan.brain_mask, sorted(scan.labels.items()),
        scan.age, scan.sex, scan.health, scan.site, scan.scanner, scan.licence, list(scan.columns.items()), scan.status, scan.reasons, scan.split, settings, *_beside(scan),
    )  # fmt: skip
    return hashlib.blake2b(repr(said).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _beside(scan: Scan) -> list[tuple[str, int, int]]:
    """Path, size and time of the files that a scan's row depends on beside its own; of one that is not there the path with zeros."""
    found = []
    for path in (scan.path, scan.brain_mask, *(file for _, file in sorted(scan.labels.items()))):
        files = [path] if path and path != scan.path else []
        if path and path.lower().endswith(formats.ITK):
            try:
                voxels = str(formats.voxel_file(path))
                files += [voxels] if voxels != path else []
            except (InputError, OSError, ValueError):
                logger.debug("%s: the file of its voxels is not known", path)
        for file in files:
            try:
                facts = os.stat(file)
                found.append((file, facts.st_size, facts.st_mtime_ns))
            except (OSError, ValueError):
                found.append((file, 0, 0))
    return found


def check_batch(scans: Sequence[Scan], *, voxels: bool, policies: Mapping[str, str], settings: str) -> pa.Table:
    """Rows as a table with what their files say."""
    said = [fingerprint(scan, settings) for scan in scans]  # before they are read: what changes meanwhile is read again next time
    checked, keys = [], []
    for scan in scans:
        with mirror.brought([scan]) as (here,):
            found = check_scan(here, voxels=voxels, policies=policies)
            keys.append(content_key(here.path) if found.status != BAD else None)
            checked.append(found if here.path == scan.path else _as_named(found, scan))
    return to_table(checked, content=keys, fingerprint=said)


def _as_named(found: Scan, scan: Scan) -> Scan:
    """What was found of the copy of a scan that lies at an address, said of the scan: paths, size and time are its own."""
    size, time = found.size_bytes, None
    if not is_address(scan.path):  # the placeholder's
        facts = os.stat(scan.path)
        size, time = facts.st_size, facts.st_mtime_ns
    labels = {name: path for name, path in scan.labels.items() if name in found.labels}
    return replace(found, path=scan.path, brain_mask=scan.brain_mask, labels=labels, size_bytes=size, mtime_ns=time)


def check_scan(scan: Scan, *, voxels: bool, policies: Mapping[str, str] | None = None) -> Scan:
    """The row with what its file says: geometry, and what is wrong with header, voxels and labels.

    Args:
        scan: a reader's row; one that is bad already keeps its reason.
        voxels: also read the intensities (NaN, constant), the face, and the labels (equal to the image, another grid).
        policies: check -> what to do about it (:data:`POLICIES`).
    """
    try:
        return _check_scan(scan, voxels, policies or parse_policies(()))
    except NeuropriorError as error:
        return replace(scan, status=BAD, reasons=(*scan.reasons, error.reason))
    except MemoryError:
        return replace(scan, status=BAD, reasons=(*scan.reasons, "out of memory while the scan was read"))
    except Exception as error:  # noqa: BLE001 - one file must never end an index of a hundred thousand
        logger.debug("%s: %r", scan.scan, error)
        return replace(scan, status=BAD, reasons=(*scan.reasons, f"the file cannot be understood ({type(error).__name__})"))


def _check_scan(scan: Scan, voxels: bool, policies: Mapping[str, str]) -> Scan:
    reasons, checks = list(scan.reasons), dict(scan.checks)
    status = scan.status
    if scan.path != clean(scan.path):
        raise InputError("the file's name is no UTF-8 text, and no table can hold it: rename it", file=clean(scan.path))
    if scan.status == BAD and (os.path.isdir(scan.path) or not scan.path.lower().endswith(headers.READABLE)):
        return scan  # a row about a folder, a link or an archive: the reader said what is wrong, and there is no image to look at
    try:
        facts = os.stat(scan.path)
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
            raise InputError("this is no regular file", file=scan.path, expected="a file", got=stat.filemode(facts.st_mode))
        header = headers.inspect_header(scan.path)
    except (InputError, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, InputError) else _unreadable(scan.path, error)
        return replace(scan, status=BAD, reasons=(*reasons, reason), checks={**checks, "geometry": reason})
    odd = [*header.notes, *_implausible(header)]
    remark = "; the qform places it, the sform is not set" if header.sform_code <= 0 < header.qform_code else ""
    checks["geometry"] = "; ".join(odd) or f"ok{remark}"
    reasons += odd
    if odd and status == OK:
        status = WARNING
    if odd and policies["geometry"] == "skip":
        status = BAD
    labels = dict(scan.labels)
    if voxels and status != BAD:
        large = math.prod(header.shape) * (np.dtype(header.dtype).itemsize + 4) > LARGE_BYTES
        volume, found = nifti.read_coarse(scan.path, faces.STEP_MM) if large else nifti.read_surveyed(scan.path)
        problems = list(found.problems)
        remark = f"; values below zero, down to {found.low:.4g}" if found.low < 0 else ""
        remark += f"; stored as {header.dtype} with a scale" if found.scaled else ""
        checks["intensity"] = "; ".join(problems) or f"ok{remark}"
        if problems and policies["intensity"] == "fix" and found.low < found.high:
            checks["intensity"] = f"fixed: {checks['intensity']}"
            reasons.append(f"{problems[0]}: they become 0 when the scan is prepared")
            status = WARNING
        elif problems:
            reasons += problems
            status = BAD
        if status != BAD:
            status = _check_face(volume, checks, reasons, status, policies["faces"])
            broken, remarks = _check_labels(None if large else volume, labels)
            broken += _check_mask(scan.brain_mask)
            reasons += broken
            if scan.labels or scan.brain_mask:
                checks["label"] = "; ".join(broken) or "; ".join(["ok", *remarks])
            if broken:
                status = BAD if policies["label"] == "skip" else WARNING if status == OK else status
    return replace(
        scan, size_bytes=facts.st_size, mtime_ns=facts.st_mtime_ns, shape=header.shape, spacing_mm=header.spacing_mm,
        affine=tuple(header.affine.ravel().tolist()), orientation=header.orientation, dtype=header.dtype,
        status=status, reasons=tuple(dict.fromkeys(reasons)), labels=labels, checks=checks,
    )  # fmt: skip


def _unreadable(path: str, error: Exception) -> str:
    if isinstance(error, OSError) and os.path.islink(path) and not os.path.exists(path):
        annexed = "annex" in os.readlink(path)
        return "a link to a file that is not there" + (": get it with datalad or git-annex" if annexed else "")
    return f"the file cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})"


def _implausible(header: headers.Header) -> list[str]:
    said = []
    shown = " x ".join(f"{mm:.3g}" for mm in header.spacing_mm)
    if not SPACING_MM[0] <= min(header.spacing_mm) <= max(header.spacing_mm) <= SPACING_MM[1]:
        said.append(f"voxels of {shown} mm are no brain scan's: is the unit right?")
    longest = max(n * mm for n, mm in zip(header.shape, header.spacing_mm))
    if not EXTENT_MM[0] <= longest <= EXTENT_MM[1]:
        said.append(f"the volume is {longest:.4g} mm long, which holds no head: is the spacing right?")
    return said


def _check_face(volume: Volume, checks: dict[str, str], reasons: list[str], status: str, policy: str) -> str:
    if "faces" not in checks:  # a reader may know from the dataset that it was defaced
        checks["faces"] = faces.look(volume).words
    if checks["faces"].startswith("face") and policy == "skip":
        reasons.append("the head shows a face: deface it, or index with --policy faces=keep")
        return BAD
    return status


def _check_labels(volume: Volume | None, labels: dict[str, str]) -> tuple[list[str], list[str]]:
    """What is wrong with a scan's labels, and remarks; those that do not belong are taken out of ``labels``.

    A volume that is too large to be held (None) cannot be compared with its labels, and that is told of each.
    """
    broken: list[str] = []
    remarks: list[str] = []
    for name, file in sorted(labels.items()):
        if volume is None:
            broken.append(f"label {name}: it was not looked at: the volume would take more than {LARGE_BYTES / 2**30:.3g} GiB")
            continue
        found = _check_label(volume.voxels, grid_of(volume), Path(file))
        broken += [f"label {name}: {found.problem}"] if found.problem else []
        remarks += [f"label {name}: {text}" for text in found.remarks]
        if not found.keep:
            del labels[name]
    return broken, remarks


def _check_mask(path: str | None) -> list[str]:
    """What is odd about a brain mask: it cannot be read, or it holds more or less than any brain."""
    if path is None:
        return []
    try:
        mask, _ = nifti.read_labels(path)
    except InputError as error:
        said = f"brain mask: {error.reason}"
    else:
        litres = float(np.count_nonzero(mask.voxels)) * float(np.prod(mask.spacing_mm)) / 1e6
        if BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1]:
            return []
        said = f"brain mask: it holds {litres:.2f} litres, which is no brain"
    return [said]


@dataclass(frozen=True)
class _Label:
    """What is wrong with a label, what is worth knowing of it, and whether it is kept."""

    problem: str | None = None
    remarks: tuple[str, ...] = ()
    keep: bool = True


def _check_label(image: np.ndarray, grid: Grid, path: Path) -> _Label:
    try:
        repaired = headers.inspect_header(path).notes
        label, notes = nifti.read_labels(path)
    except InputError as error:
        return _Label(f"left out: {error.reason}", keep=False)
    own = grid_of(label)
    if label.voxels.shape == image.shape and np.array_equal(label.voxels.astype(np.float32), image):
        return _Label("left out: it equals its image", keep=False)
    if own != grid and overlap(own, grid) < LABEL_OVERLAP:
        return _Label("left out: it lies outside the scan's field of view", keep=False)
    remarks = tuple(note for note in notes if note not in repaired)  # stored as another type, or rounded to whole numbers
    if own.shape != image.shape:
        return _Label("it lies on another grid: it will be resampled", remarks)
    return _Label(repaired[0] if repaired else None, remarks)


GRID = "; another grid than "
"""How the remark begins that a scan does not lie on the grid of its session's first."""


def session_grids(table: pa.Table) -> list[str | None]:
    """``check_geometry`` with the remark where a scan lies on another grid than the first usable one of its session (by name).

    Corners that lie within a tenth of a voxel are one grid: headers round.
    """
    subjects, visits, scans, status = (table.column(name).to_pylist() for name in ("subject", "session", "scan", "status"))
    checks = [text.split(GRID)[0] if text else text for text in table.column("check_geometry").to_pylist()]
    shapes, affines = (
        table.column(name).combine_chunks() for name in ("shape", "affine")
    )  # flat: lists of lists would take half a gigabyte
    (s_start, s_all), (a_start, a_all) = (
        (item.offsets.to_numpy(), item.values.to_numpy(zero_copy_only=False)) for item in (shapes, affines)
    )
    first: dict[tuple[str, str], int] = {}
    for row, key in enumerate(zip(subjects, visits)):
        text = checks[row]
        q = a_all[a_start[row] : a_start[row + 1]]
        if status[row] == BAD or text is None or len(q) != 16:
            continue
        other = first.setdefault(key, row)
        if other == row or not text.startswith("ok"):
            continue
        p = a_all[a_start[other] : a_start[other + 1]]
        a, b = (s_all[s_start[at] : s_start[at + 1]] for at in (other, row))
        same = a.tobytes() == b.tobytes()
        if same and p.tobytes() == q.tobytes():
            continue
        steps = np.abs(p - q).reshape(4, 4)[:3]
        apart = float((steps[:, :3] @ a[:3] + steps[:, 3]).max()) if same and len(a) == 3 else math.inf
        if apart > 0.1 * float(np.linalg.norm(p.reshape(4, 4)[:3, :3], axis=0).min()):
            checks[row] = f"{text}{GRID}{scans[other]}"
    return checks


# ---------------------------------------------------------------------------------------------------------------------
# Duplicates


def content_key(path: str) -> str | None:
    """A text that is equal for equal files, made from a few of their bytes.

    A gzip file carries the checksum of its content and its length in its last 8 bytes; of others the size and three blocks are taken. Of a
    detached header (``.mhd``) the file with the voxels counts: many scans may share one text.
    Files of one key may still differ: :func:`duplicates` compares them whole.
    """
    try:
        path = str(formats.voxel_file(path))
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if path.lower().endswith((".gz", ".mgz")) and size >= 18:
                file.seek(-8, 2)
                return f"gz-{file.read(8).hex()}"
            digest = hashlib.blake2b(digest_size=12)
            for place in (0, size // 2, max(size - 4096, 0)):
                file.seek(place)
                digest.update(file.read(4096))
            return f"{size}-{digest.hexdigest()}"
    except (OSError, InputError):
        return None


def _whole(path: str) -> str | None:
    """The hash of a file's content, unpacked where it is packed; of a detached header that of its voxels."""
    digest = hashlib.sha256()
    try:
        with local(mirror.address_of(path)) as here:
            here = str(formats.voxel_file(here))
            with open(here, "rb") as raw:
                file: Any = gzip.GzipFile(fileobj=raw) if here.lower().endswith((".gz", ".mgz")) else raw
                while block := file.read(1 << 22):
                    digest.update(block)
    except (OSError, EOFError, zlib.error, InputError, ArtifactError):
        return None
    return digest.hexdigest()


def duplicates(table: pa.Table) -> list[list[int]]:
    """Groups of rows whose files hold the same content, each sorted by scan; files are read only where their keys agree."""
    keys = table.column("content").to_pylist()
    first: dict[str, int] = {}
    more: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key is None:
            continue
        if key in first:
            more.setdefault(key, [first[key]]).append(row)
        else:
            first[key] = row
    groups = []
    for rows in more.values():
        places = table.take(rows).select(["path", "scan"]).to_pylist()
        same: dict[str, list[int]] = {}
        for row, place in zip(rows, places):
            if (digest := _whole(place["path"])) is not None:
                same.setdefault(digest, []).append(row)
        named = dict(zip(rows, (place["scan"] for place in places)))
        groups += [sorted(group, key=lambda row: named[row]) for group in same.values() if len(group) > 1]
    return groups
