"""A tree of DICOM files: grouped by series, checked slice by slice, converted by dcm2niix, named by nobody's name.

- Files are told by their content, not by their names. A series is what shares a SeriesInstanceUID; MR only, no localisers.
- Checks before converting: slices missing, at one place twice, of another orientation, or sheared (gantry tilt). Such a series is a row
  with the reason. A copy of a file (the same SOPInstanceUID) is left out and told.
- The contrast is guessed from the sequence (``_dicom_contrast``): columns ``contrast_confidence`` and ``contrast_why``.
- **Nothing that says who it is leaves the files.** Subjects are ``sub-`` and a keyed hash of the patient's identifier; the key is drawn once
  and stays in the conversion folder (``key.bin``, only readable by you): delete it, and nobody can match identifiers any more. Sessions are
  numbered by date, the date itself is left out (``days_since_first`` is kept). Ages are whole years, 90 for all above 89 (HIPAA safe
  harbor). Of free text nothing is kept; the NIfTI header's text fields are blanked; file names of the tree are never written down.

Conversion: Li X et al., The first step for neuroimaging data analysis: DICOM to NIfTI conversion, J Neurosci Methods 264 (2016), through the
``dcm2niix`` wheel; headers: ``pydicom`` (the extra ``dicom``).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts, contrasts
from ..core.errors import ArtifactError, InputError, MissingDependency
from ..core.records import BAD, OK, WARNING, Scan
from . import _people
from ._dicom_contrast import guess

logger = logging.getLogger(__name__)

VERSION = 1
FEWEST_SLICES = 8
"""A series of fewer slices is a localiser or a planning image, no volume."""
GAP = 1.5
"""A step between slices above this many median steps is a gap."""
SHEAR = 0.02
"""Slices that shift sideways by more than this share of their distance are tilted (about 1.1 degrees)."""
UNSURE = 0.5
"""A guess of this confidence or less makes the row a warning."""
TIMEOUT_S = 600
"""How long one series may take to convert."""
_TAGS = (
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientAge",
    "PatientSex", "StudyDate", "SeriesNumber", "Modality", "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "GantryDetectorTilt",
    "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "ScanningSequence", "SequenceVariant", "ContrastBolusAgent", "DiffusionBValue",
    "SeriesDescription", "ProtocolName", "Manufacturer", "ManufacturerModelName", "MagneticFieldStrength", "Rows", "Columns", "NumberOfFrames",
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "InstanceNumber", "AcquisitionTime", "TriggerTime",
)  # fmt: skip
_VOLUME_TAGS = (
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "ImageType",
    "TriggerTime",
)
"""What tells two slices at one place apart as members of two volumes."""


@dataclass
class Series:
    """One series: a file and its tags for every slice."""

    uid: str
    slices: list[tuple[Path, Mapping[str, Any]]] = field(default_factory=list)
    copies: int = 0

    @property
    def first(self) -> Mapping[str, Any]:
        """The tags of the slice that comes first."""
        return self.slices[0][1]


@dataclass(frozen=True)
class Checked:
    """What is wrong with a series.

    Attributes:
        problems: reasons not to convert it.
        notes: what is told of a series that is converted.
        volumes: how many volumes it holds.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    volumes: int = 1


def recognises(root: Path) -> str | None:
    """Why ``root`` holds DICOM, or None. Looks at the first files of at most 50 folders, for their ``DICM`` mark."""
    if not root.is_dir():
        return None
    pending, looked = [str(root)], 0
    while pending and looked < 50:
        looked += 1
        try:
            with os.scandir(pending.pop(0)) as entries:
                listing = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        if looked == 1 and any(entry.name == "dataset_description.json" for entry in listing):
            return None
        files = [entry for entry in listing if not entry.name.startswith(".") and entry.is_file()]
        for entry in files[:3]:
            if _is_dicom(entry.path):
                return "it has files with the DICM mark"
        pending += [entry.path for entry in listing if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)]
    return None


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def read(
    root: Path,
    *,
    into: Path | None = None,
    name: str | None = None,
    contrast_map: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = logger.info,
) -> Iterator[Scan]:
    """The series as scans, converted to NIfTI on the way; one that is converted already and has not changed is not converted again.

    Args:
        root: the folder with the files, in whatever order.
        into: the conversion folder; beside the root (``NAME-converted``) where not given. Nothing is written elsewhere.
        name: the dataset's name; by default the folder's.
        contrast_map: a guess (``T2w``) or ``unknown`` -> a canonical name.
        tell: where to say what was left out and why; file names are never said.

    Raises:
        InputError: no DICOM file of a magnetic resonance series is there.
        MissingDependency: the extra ``dicom`` is not installed.
    """
    root = Path(os.path.abspath(root))
    into = Path(os.path.abspath(into if into is not None else root.with_name(f"{root.name}-converted")))
    dataset = name or root.name
    series, others = collect(root, tell, skip=into)
    if not series:
        raise InputError("no magnetic resonance series was found", file=root, expected="DICOM files of Modality MR",
                         got=", ".join(f"{n} {what}" for what, n in sorted(others.items())) or "an empty folder")  # fmt: skip
    into.mkdir(parents=True, exist_ok=True)
    key = _key(into)
    who = {one.uid: _subject(one.first, key) for one in series}
    sessions, days = _sessions(series, who)
    copies: Counter[tuple[str, str, str]] = Counter()
    for one in series:
        subject, anonymous = who[one.uid]
        study = str(one.first.get("StudyInstanceUID") or one.uid)
        session = sessions[subject, study]
        found = guess(one.first)
        contrast = (contrast_map or {}).get(found.contrast, found.contrast)
        place = into / hmac.new(key, one.uid.encode(), hashlib.sha256).hexdigest()[:16]
        checked = check_slices(one)
        problems, notes = list(checked.problems), list(checked.notes)
        if contrast == contrasts.UNKNOWN:
            problems.append(
                f"the contrast cannot be told from the sequence ({found.why}); map it with a contrast map: unknown: T1w"
            )
        elif found.confidence <= UNSURE:
            notes.append(f"the contrast is a guess of confidence {found.confidence:g}: {found.why}")
        if anonymous:
            notes.append("the files name no patient: the study counts as a subject of its own")
        path = place / "image.nii.gz"
        if not checked.problems:
            reason = _convert(one, place, checked.volumes)
            problems += [reason] if reason else []
        copies[subject, session, contrast] += 1
        number = copies[subject, session, contrast]
        first = one.first
        strength = _people.value(str(first.get("MagneticFieldStrength") or ""))
        words = [
            str(first[tag]).strip() for tag in ("Manufacturer", "ManufacturerModelName") if str(first.get(tag) or "").strip()
        ]
        words += [f"{strength:g} T"] if isinstance(strength, (int, float)) else []
        columns: dict[str, Any] = {
            "contrast_confidence": found.confidence, "contrast_why": found.why, "slices": len(one.slices), "days_since_first": days[subject, study],
        }  # fmt: skip
        yield Scan(
            scan=f"{dataset}/sub-{subject}_{session}_{contrast}{'' if number == 1 else f'-{number}'}", dataset=dataset,
            subject=f"{dataset}/sub-{subject}", session=session, contrast=contrast, contrast_raw=found.contrast,
            path=str(path), age=_age(first), sex=_people.sex(first.get("PatientSex")), scanner=" ".join(words) or None,
            columns={key: value for key, value in columns.items() if value is not None},
            status=BAD if problems else WARNING if notes else OK, reasons=(*problems, *notes),
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the tree


def collect(root: Path, tell: Callable[[str], None], skip: Path | None = None) -> tuple[list[Series], Counter[str]]:
    """The MR series of a tree, by subject, study and number, and what else was there, counted.

    Raises:
        MissingDependency: pydicom is absent.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise MissingDependency(
            "DICOM needs pydicom", file=root, next_step='install the extra: pip install "neuroprior[dicom]"'
        ) from None
    import warnings

    found: dict[str, Series] = {}
    others: Counter[str] = Counter()
    seen: dict[str, set[str]] = defaultdict(set)
    for path in _files(root, skip):
        if not _is_dicom(str(path)):
            others["files that are no DICOM"] += 1
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # values out of their norm are no reason to stop
                raw = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
                tags = {tag: _plain(raw, tag) for tag in _TAGS}
        except (
            InvalidDicomError,
            OSError,
            ValueError,
            AttributeError,
            TypeError,
            KeyError,
            NotImplementedError,
            EOFError,
            RecursionError,
        ):
            others["damaged DICOM files"] += 1
            continue
        except Exception as error:  # noqa: BLE001 - pydicom raises what its parts raise; a damaged file must not end the index
            logger.debug("a DICOM file cannot be read: %s", type(error).__name__)
            others["damaged DICOM files"] += 1
            continue
        if str(tags.get("Modality") or "") != "MR":
            others["DICOM files of another modality" if tags.get("Modality") else "damaged DICOM files"] += 1
            continue
        uid = str(tags.get("SeriesInstanceUID") or f"in {path.parent}")
        one = found.setdefault(uid, Series(uid))
        instance = str(tags.get("SOPInstanceUID") or path)
        if instance in seen[uid]:
            one.copies += 1
            continue
        seen[uid].add(instance)
        one.slices.append((path, tags))
    for what, count in sorted(others.items()):
        tell(f"{root.name}: {count} {what} are left out")
    for one in found.values():
        one.slices.sort(key=lambda item: (_float(item[1].get("InstanceNumber")) or 0.0, str(item[0])))
    order = sorted(
        found.values(), key=lambda one: (str(one.first.get("PatientID") or ""), str(one.first.get("StudyDate") or ""), _float(one.first.get("SeriesNumber")) or 0.0, one.uid)
    )  # fmt: skip
    return order, others


def _files(root: Path, skip: Path | None) -> Iterator[Path]:
    pending = [str(root)]
    while pending:
        folder = pending.pop()
        if skip is not None and Path(folder) == skip:
            continue
        try:
            with os.scandir(folder) as entries:
                listing = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in listing:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif entry.is_file() and entry.name.upper() != "DICOMDIR":
                yield Path(entry.path)


def _plain(raw: Any, tag: str) -> Any:
    value = raw.get(tag)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if hasattr(value, "__iter__") and not isinstance(value, bytes):
        return [item if isinstance(item, (str, int, float)) else str(item) for item in value]
    return str(value)


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _vector(value: Any, n: int) -> np.ndarray | None:
    numbers = [_float(item) for item in value] if isinstance(value, list) else []
    return np.array(numbers, dtype=np.float64) if len(numbers) == n and None not in numbers else None


# ------------------------------------------------------------------------------------------------------------- checks


def check_slices(series: Series) -> Checked:
    """What is wrong with a series' slices: missing, doubled, turned, tilted, too few; and what is worth telling."""
    problems: list[str] = []
    notes = [f"{series.copies} copies of slices are left out"] if series.copies else []
    first = series.first
    kinds = {str(word).upper() for word in first.get("ImageType") or [] if isinstance(first.get("ImageType"), list)}
    if "LOCALIZER" in kinds:
        return Checked(("a localiser, no volume",), tuple(notes))
    frames = _float(first.get("NumberOfFrames")) or 1
    if frames > 1:
        return Checked((), tuple(notes))  # one file holds the volume; its places are in its own tables, which dcm2niix reads
    if len(series.slices) < FEWEST_SLICES:
        return Checked((f"{len(series.slices)} slices are no volume (at least {FEWEST_SLICES})",), tuple(notes))
    sizes = {(str(tags.get("Rows")), str(tags.get("Columns"))) for _, tags in series.slices}  # damaged ones are lists
    if len(sizes) > 1:
        problems.append(f"slices of {len(sizes)} sizes in one series")
    places = [_vector(tags.get("ImagePositionPatient"), 3) for _, tags in series.slices]
    turns = [_vector(tags.get("ImageOrientationPatient"), 6) for _, tags in series.slices]
    lost = sum(place is None or turn is None for place, turn in zip(places, turns))
    if lost:
        return Checked((*problems, f"{lost} of {len(places)} slices state no position"), tuple(notes))
    positions, orientations = np.array(places), np.array(turns)
    if np.abs(orientations - orientations[0]).max() > 1e-2:
        return Checked((*problems, "slices of several orientations in one series"), tuple(notes))
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    if np.linalg.norm(normal) < 0.5:
        return Checked((*problems, "the orientation is no orientation"), tuple(notes))
    normal /= np.linalg.norm(normal)
    along = positions @ normal
    levels, owner, counts = np.unique(np.round(along, 2), return_inverse=True, return_counts=True)
    if len(levels) < FEWEST_SLICES:
        return Checked((*problems, f"slices at {len(levels)} places are no volume (at least {FEWEST_SLICES})"), tuple(notes))
    steps = np.diff(levels)
    step = float(np.median(steps))
    wide = steps > GAP * step
    if wide.any():
        missing = int(np.rint(steps[wide] / step - 1).sum())
        problems.append(
            f"about {max(missing, 1)} slices are missing: a step of {steps.max():.1f} mm among steps of {step:.1f} mm"
        )
    elif np.abs(steps - step).max() > 0.1 * step:
        notes.append(f"slices lie {steps.min():.2f} to {steps.max():.2f} mm apart; they are taken as {step:.2f} mm")
    volumes = 1
    if counts.max() > 1:
        volumes = int(counts.max())
        told_apart = all(
            _told_apart([tags for (_, tags), n in zip(series.slices, owner) if n == level]) for level in range(len(levels))
        )
        if counts.min() != counts.max() or not told_apart:
            doubled = int((counts > np.median(counts)).sum()) if counts.min() != counts.max() else len(levels)
            problems.append(
                f"{doubled} places hold more slices than the others or slices that nothing tells apart: duplicate positions"
            )
    tilt = _float(first.get("GantryDetectorTilt")) or 0.0
    middle = np.array([positions[owner == level].mean(axis=0) for level in range(len(levels))])
    aside = middle - middle[0] - np.outer((middle - middle[0]) @ normal, normal)
    shear = float(np.linalg.norm(aside[-1]) / max(levels[-1] - levels[0], 1e-6))
    if shear > SHEAR or abs(tilt) > 0.5:
        angle = np.degrees(np.arctan(shear)) if shear > SHEAR else abs(tilt)
        problems.append(f"the slices are tilted by {angle:.1f} degrees (gantry tilt): resample it before")
    return Checked(tuple(problems), tuple(notes), volumes)


def _told_apart(tags: list[Mapping[str, Any]]) -> bool:
    return len({tuple(str(one.get(tag)) for tag in _VOLUME_TAGS) for one in tags}) == len(tags)


# ------------------------------------------------------------------------------------------------------------- people


def _key(into: Path) -> bytes:
    """The conversion folder's secret, drawn where there is none yet. Not a function of a seed: it must not be guessed."""
    path = into / "key.bin"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != 32:
            raise ArtifactError("the conversion folder's key is damaged", file=path, expected="32 bytes", got=f"{len(key)} bytes",
                                next_step="choose another conversion folder") from None  # fmt: skip
        return key
    key = secrets.token_bytes(32)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key


def _subject(tags: Mapping[str, Any], key: bytes) -> tuple[str, bool]:
    """The subject's pseudonym, and whether the files name no patient."""
    identity = str(tags.get("PatientID") or "").strip()
    if identity:
        text = f"id {identity} {str(tags.get('IssuerOfPatientID') or '').strip()}"
    elif str(tags.get("PatientName") or "").strip():
        text = f"name {tags.get('PatientName')} {tags.get('PatientBirthDate')}"
    else:
        text = f"study {tags.get('StudyInstanceUID') or tags.get('SeriesInstanceUID')}"
    return hmac.new(key, text.encode("utf-8", errors="replace"), hashlib.sha256).hexdigest()[:12], text.startswith("study ")


def _sessions(
    series: list[Series], who: Mapping[str, tuple[str, bool]]
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], int | None]]:
    """Session and days since the subject's first study, for (subject, study)."""
    from datetime import date

    dates: dict[str, dict[str, date | None]] = defaultdict(dict)
    for one in series:
        text = str(one.first.get("StudyDate") or "")
        try:
            day: date | None = date(int(text[:4]), int(text[4:6]), int(text[6:8]))
        except ValueError:
            day = None
        dates[who[one.uid][0]].setdefault(str(one.first.get("StudyInstanceUID") or one.uid), day)
    names: dict[tuple[str, str], str] = {}
    days: dict[tuple[str, str], int | None] = {}
    for subject, studies in dates.items():
        known = [day for day in studies.values() if day is not None]
        order = sorted(studies, key=lambda study: (studies[study] or date.max, study))
        for number, study in enumerate(order, start=1):
            names[subject, study] = f"ses-{number:02d}"
            day = studies[study]
            days[subject, study] = (day - min(known)).days if day is not None else None
    return names, days


def _age(tags: Mapping[str, Any]) -> float | None:
    """Whole years, 90 for all above 89."""
    text = str(tags.get("PatientAge") or "").strip().upper()
    years: float | None = None
    if len(text) == 4 and text[:3].isdigit() and text[3] in "DWMY":
        years = int(text[:3]) * {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1}[text[3]]
    else:
        born, seen = str(tags.get("PatientBirthDate") or ""), str(tags.get("StudyDate") or "")
        if born.isdigit() and seen.isdigit() and len(born) == len(seen) == 8:
            years = int(seen[:4]) - int(born[:4]) - (seen[4:] < born[4:])
    if years is None or not 0 <= years <= 130:
        return None
    return 90.0 if years > 89 else float(int(years)) if years >= 2 else round(years, 1)


# --------------------------------------------------------------------------------------------------------- conversion


def _digest(series: Series) -> str:
    facts = [(str(tags.get("SOPInstanceUID")), path.stat().st_size) for path, tags in series.slices]
    return artifacts.sha256_json([VERSION, sorted(facts)])


def _convert(series: Series, place: Path, volumes: int) -> str | None:
    """Convert into ``place``; returns why not. A marker with the files' digest says what is there already."""
    import importlib.util

    if volumes > 1:
        return f"the series holds {volumes} volumes: split it, or take its mean, and give one volume"
    try:
        digest = _digest(series)
    except OSError as error:
        return f"a slice cannot be read ({error.strerror})"
    marker, image = place / artifacts.MARKER, place / "image.nii.gz"
    if marker.is_file() and image.is_file():
        try:
            if artifacts.read_json(marker).get("digest") == digest:
                return None
        except (ArtifactError, AttributeError):
            logger.debug("a conversion's marker is damaged: converted again")
    if importlib.util.find_spec("dcm2niix") is None:
        raise MissingDependency("DICOM needs dcm2niix", next_step='install the extra: pip install "neuroprior[dicom]"')
    import dcm2niix

    with tempfile.TemporaryDirectory(prefix=".converting-", dir=place.parent) as folder:
        source, made = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        made.mkdir()
        for number, (path, _) in enumerate(series.slices):  # names of our own: dcm2niix echoes them in messages
            (source / f"{number:06d}.dcm").symlink_to(path)
        try:
            done = subprocess.run(
                [dcm2niix.bin, "-z", "y", "-b", "n", "-ba", "y", "-f", "image", "-w", "1", "-o", str(made), str(source)],
                capture_output=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"dcm2niix did not end within {TIMEOUT_S} s"
        except OSError as error:
            return f"dcm2niix cannot be run ({error.strerror})"
        images = sorted(made.glob("*.nii*"))
        if not images:
            return f"dcm2niix made no image (exit code {done.returncode})"
        if len(images) > 1:
            return f"dcm2niix made {len(images)} images of the series"
        place.mkdir(exist_ok=True)
        _blank(images[0])
        shutil.move(str(images[0]), image)
    artifacts.write_json(marker, {"digest": digest, "slices": len(series.slices)})
    return None


def _blank(path: Path) -> None:
    """Clear the header's text fields: a scanner's comments may name the patient."""
    import gzip

    content = bytearray(gzip.decompress(path.read_bytes()))
    order = "little" if int.from_bytes(content[:4], "little") == 348 else "big"
    for start, length in (
        (4, 10),
        (14, 18),
        (148, 80),
        (228, 24),
        (328, 16),
    ):  # data_type, db_name, descrip, aux_file, intent_name
        content[start : start + length] = bytes(length)
    offset = int(np.frombuffer(content, "<f4" if order == "little" else ">f4", 1, 108)[0])
    if 352 < offset <= len(content):  # header extensions may hold DICOM tags
        content[348:offset] = bytes(offset - 348)
    path.write_bytes(gzip.compress(bytes(content), compresslevel=4, mtime=0))
