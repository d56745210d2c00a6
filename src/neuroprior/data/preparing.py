"""Preparing one session: read its scans, bring them to one grid, write them; the unit of work of ``neuroprior prepare``.

Scans are read, conformed and compressed one after the other, so that a session needs the memory of its largest scan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core import artifacts, bias, headers, nifti
from ..core.config import Config
from ..core.conforming import Conformed, ConformSpec, conform
from ..core.contrasts import UNKNOWN
from ..core.errors import ArtifactError, InputError, MissingDependency, NeuropriorError
from ..core.grids import Grid, corner_distance_mm, grid_of
from ..core.records import BAD, Scan
from ..core.relations import overlap
from ..core.resampling import resample_label_shares
from ..core.session import MIN_OVERLAP, PREFERENCE, SessionFrame, covers, frame_of
from ..core.volume import Volume
from . import brain_masks, mirror, sessions
from .sessions import AGAIN, session_file
from .store import pack_label

FEW_VOXELS = 8
"""A label whose volume is less than this many voxels of the store is told: a net can hardly learn it there."""

CHANGING = "the file changed while it was read"
"""Reason of a scan that may be read another time, and ..."""
PASSING = (CHANGING, headers.MISSING, headers.UNREADABLE_NOW)
"""... of those that may come back, or whose disk does not answer: prepare tries their session again when it is next run."""

ON_GRID_VOXELS = 0.1
"""How far a label's corners may lie from a scan's, in voxels, for it to have been drawn on that scan."""

FAR_STEPS = 128
"""An int16 scan whose rounding error is more than this fraction of its standard deviation is told."""


class PrepareConfig(Config):
    """What is done to every session beyond the conforming that a model replays."""

    dtype: Literal["int16", "float16", "float32"] = "int16"
    """Of the voxels on disk; ``int16`` has steps of about 1/512 of a scan's standard deviation."""
    mask: str = "head"
    """What the box is drawn around and the intensities are normalised over: ``head``, which is found in the scan; ``index``, the brain mask of the
    index where the session's reference has one; or the mask that a command makes of the reference, with ``{in}`` and ``{out}``."""
    bias: Literal["none", "n4"] = "none"
    """Correction of slow intensity drifts before conforming: N4 (Tustison 2010) by SimpleITK."""
    align: bool = False
    """Align a session's scans rigidly to its reference where they do not lie on it by their headers."""


def session_key(scan: Scan) -> str:
    """The unique name of a scan's session: ``dataset/sub-01/ses-1``."""
    return f"{scan.subject}/{scan.session}" if scan.session else scan.subject


def usable(scan: Scan) -> bool:
    """Whether a row of the index goes into a store: not bad, and its contrast known."""
    return scan.status != BAD and scan.contrast != UNKNOWN


def group_sessions(scans: Iterable[Scan]) -> dict[str, list[Scan]]:
    """The usable scans of an index by session, sorted; bad rows and unknown contrasts are left out."""
    groups: dict[str, list[Scan]] = {}
    for scan in sorted(scans, key=lambda scan: (session_key(scan), scan.scan)):
        if usable(scan):
            groups.setdefault(session_key(scan), []).append(scan)
    return groups


def source_of(scans: Iterable[Scan], config: PrepareConfig) -> str:
    """What a session is made of: a digest of what the index says of its scans, a hyphen, and one of its label (and mask) files.

    Names, sizes and times of the files count, and everything that goes into the record; where the files lie does not. The second is
    empty where there is no such file, and ``?`` where one cannot be looked at.
    """
    rows, files = hashlib.blake2b(digest_size=12), hashlib.blake2b(digest_size=8)
    beside = 0
    seen = True
    for scan in sorted(scans, key=lambda scan: scan.scan):
        others = dict(scan.labels)
        if config.mask == "index" and scan.brain_mask:
            others["\0mask"] = scan.brain_mask
        told = (
            scan.scan, scan.dataset, scan.subject, scan.session, scan.contrast, scan.split, scan.size_bytes, scan.mtime_ns, scan.age, scan.sex,
            scan.health, scan.site, scan.scanner, scan.licence, dict(scan.columns), scan.checks.get("intensity", "").startswith("fixed"),
            {name: _from(scan.path, path) for name, path in others.items()},
        )  # fmt: skip
        rows.update(json.dumps(told, sort_keys=True).encode())
        for name, path in sorted(others.items()):
            beside += 1
            try:
                facts = Path(path).stat()
                files.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
            except (OSError, ValueError):
                seen = False
    return f"{rows.hexdigest()}-{'' if not beside else files.hexdigest() if seen else '?'}"


def _from(scan: str, other: str) -> str:
    """The way from a scan to a file that belongs to it: the same wherever their common folder lies."""
    a, b = scan.split("/"), other.split("/")
    common = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return "/".join([str(len(a) - common), *b[common:]])


def unchanged(made_of: str, now: str) -> bool:
    """Whether a session that was made of the one is what the other would make; a store that does not say, and labels that are out of
    reach now, count as unchanged."""
    (rows, _, files), (rows_now, _, files_now) = made_of.partition("-"), now.partition("-")
    return not made_of or (rows == rows_now and (files == files_now or files_now == "?"))


def memory_mb(scans: Iterable[Scan], spec: ConformSpec) -> float:
    """The most memory that preparing a session may need beyond the interpreter, from its headers alone.

    Measured on scans of 200 to 400 voxels a side, and rounded up (by a factor of 1.2 to 2, since the crop is not known before).
    """
    largest = 0.0
    for scan in scans:
        native = float(np.prod(scan.shape or (1, 1, 1)))
        size = np.dtype(scan.dtype or "float32").itemsize if scan.dtype in np.sctypeDict else 8
        largest = max(largest, native * (2 * size + 14) + 18 * conformed_voxels(scan, spec))
    return 120 + largest / 1e6


def conformed_voxels(scan: Scan, spec: ConformSpec) -> float:
    """Voxels of a scan's whole field of view at the wanted spacing."""
    native = float(np.prod(scan.shape or (1, 1, 1)))
    if spec.spacing_mm == "native":
        return native
    return native * float(np.prod(scan.spacing_mm or (1.0, 1.0, 1.0))) / float(spec.spacing_mm) ** 3


def prepare_session(out: Path, key: str, scans: list[Scan], spec: ConformSpec, config: PrepareConfig) -> str | None:
    """Write one session into a store; one that is there already and made of the same (another process may have made it) is left as it is.

    Args:
        out: the store.
        key: the session's name.
        scans: its usable rows.
        spec: how to conform.
        config: what else is done.

    Returns:
        None, or the reason why the session is not in the store.

    Raises:
        ArtifactError: the disk is full or not writable: this concerns every session.
    """
    file = session_file(out, key)
    again = file.with_suffix(AGAIN)
    source = source_of(scans, config)
    if not again.exists() and _there(file, source):
        return None
    try:
        with mirror.brought(scans) as here:
            retry = _prepare(file, key, here, (spec, config, source))
    except (ArtifactError, MissingDependency):
        raise
    except NeuropriorError as error:
        return error.reason
    if retry:
        artifacts.write_text(again, "")
    else:
        again.unlink(missing_ok=True)
    return None


def _there(file: Path, source: str) -> bool:
    """Whether a session file is there, whole by its record, and made of this."""
    try:
        return file.is_file() and unchanged(sessions.read_all(file)[2], source)
    except ArtifactError:
        return False


def _still(path: str, read: Callable[[str], tuple[Volume, tuple[str, ...]]]) -> tuple[Volume, tuple[str, ...]]:
    """What is read from a file that stands still meanwhile, and the reader's notes.

    Raises:
        InputError: the reader's own, or that the file changed or went away.
    """
    before = _state(path)
    try:
        found = read(path)
    except InputError:
        if _state(path) != before:
            raise InputError(CHANGING, file=path, next_step="run the same command again") from None
        raise
    if _state(path) != before:
        raise InputError(CHANGING, file=path, next_step="run the same command again")
    return found


def _read(path: str, nonfinite: Literal["error", "zero"] = "error") -> Volume:
    """A scan's voxels, of a file that stands still; values that are not finite end it, or become 0 (``nonfinite="zero"``)."""
    volume, _ = _still(path, lambda path: nifti.read_scan(path, nonfinite=nonfinite))
    problems = nifti.check_voxels(volume)
    if problems:
        raise InputError("; ".join(problems))
    return volume


def _state(path: str) -> tuple[int, int, int]:
    try:
        stat = Path(path).stat()
    except FileNotFoundError:
        raise InputError(headers.MISSING, file=path, next_step="check the path") from None
    except OSError as error:
        raise headers.unreadable(path, error) from None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _prepare(file: Path, key: str, scans: list[Scan], how: tuple[ConformSpec, PrepareConfig, str]) -> bool:
    """Write the session file; True where a scan, a label or a mask is left out that may be readable another time."""
    spec, config, source = how
    refused: dict[str, str] = {}
    notes: list[str] = []
    retry = False

    def load(scan: Scan) -> Volume | None:
        nonlocal retry
        try:
            fixed = scan.checks.get("intensity", "").startswith("fixed")  # index --policy intensity=fix
            volume = _read(scan.path, "zero" if fixed else "error")
        except InputError as error:
            refused[scan.scan] = error.reason
            retry |= error.what in PASSING
            return None
        if config.bias == "none":
            return volume
        try:
            return bias.without_bias(volume)
        except InputError as error:
            notes.append(f"{scan.contrast}: its intensity drifts are left as they are: {error.reason}")
            return volume

    rank = {name: place for place, name in enumerate(PREFERENCE)}
    candidates = sorted(
        scans, key=lambda scan: (rank.get(scan.contrast, len(rank)), scan.contrast)
    )  # stable: by scan name within
    found = next(((scan, volume) for scan in candidates if (volume := load(scan)) is not None), None)
    if found is None:
        raise InputError("no scan of the session can be read: " + "; ".join(refused.values()))
    first, volume = found
    mask, passing = _mask(first, config, notes)
    retry |= passing
    frame = frame_of(volume, spec, mask)
    places: dict[str, Place] = {}
    entries: dict[str, Any] = {}
    packed: dict[str, sessions.Packed] = {}

    def keep(name: str, scan: Scan, conformed: Volume, record: Conformed, moved: np.ndarray | None) -> None:
        stored, scale, error = sessions.quantised(conformed.voxels, config.dtype)
        if not np.isfinite(error):
            refused[scan.scan] = f"its normalised intensities do not fit {config.dtype}: use --dtype float32"
            return
        if config.dtype == "int16":
            spread = float(conformed.voxels.std(dtype=np.float64))
            if error > spread / FAR_STEPS:
                notes.append(
                    f"{name}: a few voxels are so bright that int16 rounds the others to {error / spread:.2g} standard deviations; --dtype "
                    "float32 or --normalise clamp_zscore_01 keeps them apart"
                )
        packed[name] = sessions.pack(stored, scale)
        entries[name] = {
            "scan": scan.scan, "sha256": packed[name].sha256, "scale": scale, "rounding_error": error, "conformed": record.to_json(),
        }  # fmt: skip
        if moved is not None:
            entries[name]["aligned"] = moved.tolist()

    reference = first.contrast
    anchor: Volume | None = None
    copies: dict[str, int] = {}
    for scan in [first, *(scan for scan in scans if scan is not first)]:
        if scan.scan in refused:
            continue
        other = volume if scan is first else load(scan)
        if other is None:
            continue
        copies[scan.contrast] = copies.get(scan.contrast, 0) + 1
        name = scan.contrast if copies[scan.contrast] == 1 else f"{scan.contrast}.{copies[scan.contrast]}"
        problem = None if scan is first else covers(other, frame, name, reference)
        if problem is not None:
            refused[scan.scan] = problem
            continue
        try:
            conformed, record = conform(other, spec, grid=frame.grid, mask=frame.mask)
            moved = None
            if config.align and scan is first:
                anchor = conformed
            elif config.align and anchor is not None:
                conformed, record, moved = _aligned(anchor, other, conformed, record, (spec, frame, name), notes)
        except InputError as error:
            refused[scan.scan] = error.reason
            continue
        places[scan.scan] = Place(name, grid_of(other), moved)
        keep(name, scan, conformed, record, moved)
        del other, conformed
        if scan is first:
            del volume, found
    if not entries:
        raise InputError("no scan of the session can be used: " + "; ".join(refused.values()))
    labels, arrays, more, passing = _labels(scans, frame.grid, places)
    retry |= passing
    columns = {k: v for scan in scans for k, v in scan.columns.items()}
    columns |= {name: getattr(scans[0], name) for name in ("age", "sex", "health", "site", "scanner", "licence")}
    record = {
        "key": key, "dataset": first.dataset, "subject": first.subject, "session": first.session, "split": first.split,
        "shape": list(frame.grid.shape), "affine": frame.grid.affine.tolist(), "reference": reference, "scans": entries,
        "labels": labels, "columns": columns, "refused": refused, "notes": notes + more,
    }  # fmt: skip
    if retry and _there(file, source) and lacking(json.loads(sessions.read(file)[0]), record):
        return True  # what is there has more than can be read now
    sessions.write(file, record, packed | arrays, source)
    return retry


def lacking(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of the scans and labels that one record of a session has and a later one has not."""
    labels = sorted(set(before["labels"]) - set(after["labels"]))
    return [*sorted(set(before["scans"]) - set(after["scans"])), *(f"label {name}" for name in labels)]


@dataclass(frozen=True)
class Place:
    """Where a scan of a session lies.

    Attributes:
        name: in the store.
        native: its own grid, by its header.
        rigid: (4, 4), mm of the reference's space to mm of the scan's, where it was aligned; else None.
    """

    name: str
    native: Grid
    rigid: np.ndarray | None


def _mask(scan: Scan, config: PrepareConfig, notes: list[str]) -> tuple[Volume | None, bool]:
    """The reference's brain mask, where it is wanted and there; and whether it may be readable another time."""
    if config.mask == "head":
        return None, False
    if config.mask != "index":
        return brain_masks.by_command(config.mask, scan.path), False
    if not scan.brain_mask:
        notes.append(f"{scan.contrast} has no brain mask in the index: the head that is found in it is used")
        return None, False
    try:
        mask, _ = _still(scan.brain_mask, nifti.read_labels)
    except InputError as error:
        notes.append(f"the brain mask of {scan.contrast} is not used: {error.reason}")
        return None, error.what in PASSING
    return mask, False


def _aligned(
    anchor: Volume,
    native: Volume,
    conformed: Volume,
    record: Conformed,
    where: tuple[ConformSpec, SessionFrame, str],
    notes: list[str],
) -> tuple[Volume, Conformed, np.ndarray | None]:
    """A scan brought onto the reference where its header does not, and the rigid transform (mm of the reference -> mm of the scan).

    The alignment is kept only where the heads then overlap at least as well and the two scans are more alike; else a note says so.
    """
    from . import alignment

    spec, frame, name = where
    sides = (anchor.voxels, anchor.affine, conformed.voxels, conformed.affine)
    before = alignment.compare(*sides)
    reason = before.reason(min_overlap=0.7, max_shift_mm=GRID_TOLERANCE_MM)
    if reason is None:
        return conformed, record, None
    rigid = alignment.rigid(*sides)
    moved = Volume(native.voxels, np.linalg.inv(rigid) @ native.affine)
    again, told = conform(moved, spec, grid=frame.grid, mask=frame.mask)
    gain = [alignment.mutual_information(anchor.voxels[::2, ::2, ::2], v.voxels[::2, ::2, ::2]) for v in (conformed, again)]
    left = alignment.compare(anchor.voxels, anchor.affine, again.voxels, again.affine).reason(0.7, GRID_TOLERANCE_MM)
    if left is not None or gain[1] <= gain[0]:
        notes.append(
            f"{name}: {reason}; rigid alignment did not help ({left or 'the scans are no more alike'}), its header is kept"
        )
        return conformed, record, None
    shift = float(np.linalg.norm((rigid @ np.append(anchor.affine[:3, 3], 1) - np.append(anchor.affine[:3, 3], 1))[:3]))
    notes.append(f"{name}: {reason}; it was aligned rigidly to the reference, which moves a corner by {shift:.1f} mm")
    return again, told, rigid


GRID_TOLERANCE_MM = 3.0
"""A shift that makes two scans of a session more alike and is larger than this is a misalignment."""


def _labels(
    scans: list[Scan], grid: Grid, places: Mapping[str, Place]
) -> tuple[dict[str, Any], dict[str, sessions.Packed], list[str], bool]:
    """The session's labels on its grid: entries of the record, arrays, notes; and whether one may be readable another time."""
    paths = {name: path for scan in scans for name, path in scan.labels.items()}
    labels: dict[str, Any] = {}
    arrays: dict[str, sessions.Packed] = {}
    notes: list[str] = []
    passing = False
    for name, path in sorted(paths.items()):
        try:
            volume, repairs = _still(path, nifti.read_labels)
        except InputError as error:
            notes.append(f"label {name} left out: {error.reason}")
            passing |= error.what in PASSING
            continue
        notes += [f"label {name}: {text}" for text in repairs]
        owners = [places[scan.scan] for scan in scans if scan.scan in places and scan.labels.get(name) == path]
        rigid, told = _moved(name, grid_of(volume), owners)
        notes += told
        if rigid is not None:  # as the scan it was drawn on: its voxels in mm of the scan, and from there to mm of the reference
            volume = Volume(volume.voxels, np.linalg.inv(rigid) @ volume.affine)
        if overlap(grid, grid_of(volume)) < MIN_OVERLAP:
            notes.append(f"label {name} left out: it lies outside the head's field of view")
            continue
        shares = resample_label_shares(volume, grid)
        notes += _shrinking(name, volume, shares.first, grid)
        labels[name], packed = pack_label(name, shares)
        arrays |= packed
    return labels, arrays, notes, passing


def _moved(name: str, own: Grid, owners: list[Place]) -> tuple[np.ndarray | None, list[str]]:
    """The rigid transform of the scan that a label was drawn on, of those that the index gives it to; and what is to be told.

    It was drawn on the scan whose grid it has. Where several have it, or none has, one that was not moved is taken.
    """
    near = ON_GRID_VOXELS * min(own.spacing_mm)
    drawn_on = [place for place in owners if place.native.shape == own.shape and corner_distance_mm(place.native, own) <= near]
    chosen = min(drawn_on or owners, key=lambda place: place.rigid is not None, default=None)
    aligned = [place.name for place in drawn_on or owners if place.rigid is not None]
    if chosen is None or not aligned:
        return None, []
    if chosen.rigid is not None:
        return chosen.rigid, [f"label {name}: it was moved with {chosen.name}, which it was drawn on"]
    return None, [
        f"label {name}: it may have been drawn on {chosen.name} or on {', '.join(aligned)}, which was aligned; it is taken for one of "
        f"{chosen.name} and stays where it is"
    ]


def _shrinking(name: str, volume: Volume, hard: np.ndarray, grid: Grid) -> list[str]:
    """What the store's spacing does to a label: it loses volume as a hard mask, or values become a few voxels."""
    notes: list[str] = []
    fine, coarse = float(np.prod(volume.spacing_mm)), float(np.prod(grid.spacing_mm))
    before, after = int((volume.voxels > 0).sum()) * fine / 1000, int((hard > 0).sum()) * coarse / 1000
    if after < 0.75 * before:
        notes.append(
            f"label {name} shrinks from {before:.2f} to {after:.2f} ml as a hard mask at this spacing; its partial volumes are kept, "
            "but a finer --spacing would show more of it"
        )
    values, counts = np.unique(volume.voxels[volume.voxels > 0], return_counts=True)
    small: Mapping[int, float] = {
        int(v): n * fine / coarse for v, n in zip(values, counts, strict=True) if n * fine < FEW_VOXELS * coarse
    }
    if small:
        shown = ", ".join(f"{value} ({voxels:.1f})" for value, voxels in list(small.items())[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        advice = "--spacing native or a finer one would keep them" if coarse > fine * 1.01 else "the label itself holds no more"
        notes.append(f"label {name} has values of under {FEW_VOXELS} voxels at this spacing: {shown}{more}; {advice}")
    return notes
