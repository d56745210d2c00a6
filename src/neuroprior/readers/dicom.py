"""A tree of DICOM files: grouped by series, checked slice by slice, converted by dcm2niix, named by nobody's name.

- Files are told by their content, not by their names. A series is what shares a SeriesInstanceUID; MR only, no localisers.
- Checks before converting: slices missing, at one place twice, of another orientation, or sheared (gantry tilt). Such a series is a row
  with the reason. A copy of a file (the same SOPInstanceUID) is left out and told.
- The contrast is guessed from the sequence (``_dicom_contrast``): columns ``contrast_confidence`` and ``contrast_why``.
- **Nothing that says who it is leaves the files.** Subjects are ``sub-`` and a keyed hash of the patient's identifier; the key is drawn once
  and stays in the conversion folder (``key.bin``, only readable by you): delete it, and nobody can match identifiers any more. Sessions are
  numbered by date, the date itself is left out (``days_since_first`` is kept). Ages are whole years, 90 for all above 89 (HIPAA safe
  harbor). A folder that is named as a patient is gets a keyed hash for a name (``_dicom_people``). Of free text nothing is kept; the NIfTI
  header's text fields are blanked; file names of the tree are never written down.

Conversion: Li X et al., The first step for neuroimaging data analysis: DICOM to NIfTI conversion, J Neurosci Methods 264 (2016), through the
``dcm2niix`` wheel; headers: ``pydicom`` (the extra ``dicom``).
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts, contrasts, shelf
from ..core.errors import ArtifactError, InputError, MissingDependency
from ..core.records import BAD, OK, WARNING, Scan
from . import _dicom_frames, _people
from ._dicom_contrast import guess
from ._dicom_people import People, cover, key_of, keyed
from ._dicom_people import subject as subject_of
from ._dicom_slices import Series, check_slices, number
from ._tree import DEEPEST, Tree, walk

logger = logging.getLogger(__name__)

VERSION = 1
UNSURE = 0.5
"""A guess of this confidence or less makes the row a warning."""
TIMEOUT_S = 600
"""How long one series may take to convert."""
_TAGS = (
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientAge",
    "PatientSex", "StudyDate", "SeriesNumber", "Modality", "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "GantryDetectorTilt",
    "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "ScanningSequence", "SequenceVariant", "ContrastBolusAgent", "DiffusionBValue",
    "SeriesDescription", "ProtocolName", "Manufacturer", "ManufacturerModelName", "MagneticFieldStrength", "Rows", "Columns", "NumberOfFrames",
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "InstanceNumber", "AcquisitionTime", "TriggerTime", "SpacingBetweenSlices",
    "SliceThickness", "ImagesInAcquisition", "OtherPatientNames", "PatientBirthName", "OtherPatientIDs", "AccessionNumber",
)  # fmt: skip


@dataclass(frozen=True)
class Gathered:
    """What a tree holds, and what may be said of it.

    Attributes:
        series: the MR series, by subject, study and number.
        others: what else is there, counted.
        dataset: the folder's name, or what stands for it where it names a patient.
        shown: the folder's path, or what stands for it where it names a patient.
    """

    series: list[Series]
    others: Counter[str]
    dataset: str
    shown: str


def recognises(root: Path) -> str | None:
    """Why ``root`` holds DICOM, or None: where there is none, and where a folder is another reader's (each is then a dataset of its own).

    Looks at the first files of at most 50 folders, for their ``DICM`` mark; a folder ``sourcedata`` below belongs to another dataset.
    """
    if not root.is_dir():
        return None
    readers = [shelf.load("readers", name) for name in shelf.names("readers") if name != "dicom"]
    pending, looked, found = [str(root)], 0, False
    while pending and looked < 50:
        folder = pending.pop(0)
        looked += 1
        try:
            if any(reader.recognises(Path(folder)) for reader in readers):
                return None
            with os.scandir(folder) as entries:
                below = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != ".")
        except OSError:
            continue
        found = found or marked(Path(folder))
        pending += [path for path in below if os.path.basename(path) != "sourcedata"]
    return "it has files with the DICM mark" if found else None


def marked(folder: Path) -> bool:
    """Whether one of a folder's first own files has the ``DICM`` mark."""
    try:
        with os.scandir(folder) as entries:
            files = sorted(entry.path for entry in entries if entry.name[0] != "." and entry.is_file())
    except OSError:
        return False
    return any(_is_dicom(path) for path in files[:3])


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
    gathered: Gathered | None = None,
) -> Iterator[Scan]:
    """The series as scans, converted to NIfTI on the way; one that is converted already and has not changed is not converted again.

    Args:
        root: the folder with the files, in whatever order.
        into: the conversion folder, of any number of datasets: those that share it share the key, and a patient has one pseudonym in all of them.
            ``dicom-converted`` beside the root where not given. Nothing is written elsewhere.
        name: the dataset's name; by default the folder's, or a keyed hash where that names a patient.
        contrast_map: a guess (``T2w``), ``unknown``, or what an image without a contrast is (``phase``, ``epi``) -> a canonical name.
        tell: where to say what was left out and why; file names are never said.
        gathered: what ``gather`` found for the same root and conversion folder.

    Raises:
        InputError: no DICOM file of a magnetic resonance series is there, or the conversion folder's path names a patient.
        MissingDependency: the extra ``dicom`` is not installed.
    """
    into = _into(root, into)
    gathered = gathered if gathered is not None else gather(root, into)
    series, dataset = gathered.series, name or gathered.dataset
    for what, count in sorted(gathered.others.items()):
        tell(f"{dataset}: {count} {what} are left out")
    if not series:
        raise InputError("no magnetic resonance series was found", file=gathered.shown, expected="DICOM files of Modality MR",
                         got=", ".join(f"{n} {what}" for what, n in sorted(gathered.others.items())) or "an empty folder")  # fmt: skip
    key = key_of(into)
    who = {one.uid: subject_of(one.first, key) for one in series}
    sessions, days = _sessions(series, who)
    copies: Counter[tuple[str, str, str]] = Counter()
    for one in series:
        subject, anonymous = who[one.uid]
        study = str(one.first.get("StudyInstanceUID") or one.uid)
        session = sessions[subject, study]
        found = guess(one.first)
        raw = found.shown or found.contrast
        contrast = (contrast_map or {}).get(raw, found.contrast)
        place = into / keyed(f"{dataset}\n{one.uid}", key, 16)  # two datasets may hold series of one identifier
        checked = check_slices(one)
        problems, notes = list(checked.problems), list(checked.notes)
        if contrast == contrasts.UNKNOWN and found.shown:
            problems.append(
                f"it shows no contrast of the vocabulary ({found.why}); to use it all the same, map it with a contrast map: {raw}: T1w"
            )
        elif contrast == contrasts.UNKNOWN:
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
        nth = copies[subject, session, contrast]
        first = one.first
        strength = _people.value(str(first.get("MagneticFieldStrength") or ""))
        words = [
            str(first[tag]).strip() for tag in ("Manufacturer", "ManufacturerModelName") if str(first.get(tag) or "").strip()
        ]
        words += [f"{strength:g} T"] if isinstance(strength, (int, float)) else []
        columns: dict[str, Any] = {
            "contrast_confidence": found.confidence, "contrast_why": found.why, "slices": len(one.looks), "days_since_first": days[subject, study],
        }  # fmt: skip
        yield Scan(
            scan=f"{dataset}/sub-{subject}_{session}_{contrast}{'' if nth == 1 else f'-{nth}'}", dataset=dataset,
            subject=f"{dataset}/sub-{subject}", session=session, contrast=contrast, contrast_raw=raw,
            path=str(path), age=_age(first), sex=_people.sex(first.get("PatientSex")), scanner=" ".join(words) or None,
            columns={key: value for key, value in columns.items() if value is not None},
            status=BAD if problems else WARNING if notes else OK, reasons=(*problems, *notes),
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the tree


def _into(root: Path, into: Path | None) -> Path:
    return Path(os.path.abspath(into if into is not None else Path(os.path.abspath(root)).with_name("dicom-converted")))


def gather(root: Path, into: Path | None = None, *, name: str | None = None, tree: Tree | None = None) -> Gathered:
    """Read the headers of a tree, and see whether its path says who somebody is.

    Args:
        root: the folder with the files.
        into: the conversion folder, as in ``read``; it is made here, with its key.
        name: what the dataset would be called; by default as the folder is.
        tree: the root's files, where they are listed already.

    Raises:
        InputError: the conversion folder's path names a patient.
        MissingDependency: pydicom is absent.
    """
    root, into = Path(os.path.abspath(root)), _into(root, into)
    series, others, people = collect(tree if tree is not None else walk(root), into)
    telling = people.told_by_path(into)
    if telling > 1:
        raise InputError(
            "the folder for converted images lies below a folder that is named as a patient is, and every path would say it",
            expected="a place that names nobody", next_step="give another place for the index: --out",
        )  # fmt: skip
    if telling:
        logger.warning(
            "a folder above the converted images shares a word with a patient's name or a date: every path will say it"
        )
    dataset, shown = name or root.name, str(root)
    if series or people.told_by_path(root) or people.told_by(dataset):
        into.mkdir(parents=True, exist_ok=True)
        key_of(into)
    hidden = cover(str(root), into) or ""
    if people.told_by(dataset):
        logger.warning(
            "a folder is named as a patient of its files is, or by a date: in all that is written it is called %s; for a better name, rename the "
            "folder or give a link to it with another name", hidden,
        )  # fmt: skip
        dataset = hidden
    return Gathered(series, others, dataset, hidden if people.told_by_path(root) else shown)


def collect(tree: Tree, skip: Path) -> tuple[list[Series], Counter[str], People]:
    """The MR series of a tree, by subject, study and number; what else was there, counted; and who the files are of.

    Raises:
        MissingDependency: pydicom is absent.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise MissingDependency("DICOM needs pydicom", next_step='install the extra: pip install "neuroprior[dicom]"') from None
    import warnings

    found: dict[str, Series] = {}
    people = People()
    others: Counter[str] = Counter()
    others["folders that may not be listed"] = len(tree.closed)
    entered = {*tree.files, *(folder for folder, _ in tree.closed)}
    others[f"folders more than {DEEPEST} levels down"] = sum(
        f"{at}/{name}" not in entered for at, names in tree.folders.items() for name in names
    )
    seen: dict[str, set[str]] = defaultdict(set)
    for path in _files(tree, skip):
        if not _is_dicom(str(path)):
            others["NIfTI images" if path.name.endswith((".nii", ".nii.gz")) else "files that are no DICOM"] += 1
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # values out of their norm are no reason to stop
                raw = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS, *_dicom_frames.TAGS])
                tags = {tag: _plain(raw, tag) for tag in _TAGS}
                whole, frames = _dicom_frames.frames(raw, _plain)
                tags |= {tag: value for tag, value in whole.items() if tags.get(tag) is None}
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
        people.add(tags)
        if frames:
            tags["frames"] = frames
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
    for one in found.values():
        one.slices.sort(key=lambda item: (number(item[1].get("InstanceNumber")) or 0.0, str(item[0])))
    order = sorted(
        found.values(), key=lambda one: (str(one.first.get("PatientID") or ""), str(one.first.get("StudyDate") or ""), number(one.first.get("SeriesNumber")) or 0.0, one.uid)
    )  # fmt: skip
    return order, +others, people


def _files(tree: Tree, skip: Path) -> Iterator[Path]:
    """Every file of a tree once, whatever links lead to it, outside the conversion folder."""
    entered: set[str] = set()
    for folder, names in tree.files.items():
        real = os.path.realpath(folder)
        if real in entered or Path(folder).is_relative_to(skip):
            continue
        entered.add(real)
        yield from (Path(folder, name) for name in names if name.upper() != "DICOMDIR")


def _plain(raw: Any, tag: str) -> Any:
    value = raw.get(tag)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if hasattr(value, "__iter__") and not isinstance(value, bytes) and type(value).__name__ != "PersonName":
        return [item if isinstance(item, (str, int, float)) else str(item) for item in value]
    return str(value)


# ------------------------------------------------------------------------------------------------------------- people


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
        for nth, study in enumerate(order, start=1):
            names[subject, study] = f"ses-{nth:02d}"
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
