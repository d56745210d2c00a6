"""FreeSurfer: ``aseg.stats``, ``lh.`` and ``rh.aparc.stats`` and ``wmparc.stats`` in a folder a subject.

Read are the structures of ``aseg.stats`` and ``wmparc.stats``, the grey-matter volumes of the cortical areas (as ``ctx-lh-<area>``, their
names in FreeSurfer's colour table), and the summary volumes of ``aseg.stats`` under their own names (``BrainSegVol``, ``lhCortexVol`` ...).
The intracranial volume is FreeSurfer's estimate, eTIV. Volumes are those of the files, divided by 1000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.config import Config as Base
from ..core.errors import InputError
from ..core.records import Scan
from . import FAILED, Anatomy, Candidate
from ._matching import candidate, first_of_each_session, lone_sessions, session_names

VERSION = 1

FILES = ("aseg.stats", "lh.aparc.stats", "rh.aparc.stats", "wmparc.stats")
"""What is read of a subject's ``stats`` folder; only the first is needed."""

ETIV = "eTIV"


class Config(Base):
    """How a subject's name in the files is judged."""

    generic_names: tuple[str, ...] = ("output", "subject", "freesurfer", "fs", "recon")
    """Values of the files' ``subjectname`` that name nobody (pipelines in containers write them); any other must be the subject's."""


@dataclass(frozen=True)
class Stats:
    """One ``.stats`` file.

    Attributes:
        subject: its ``subjectname``.
        program: its ``generating_program`` and version.
        measures_mm3: summary volumes by short name.
        structures_mm3: volumes of the table's rows by ``StructName``.
    """

    subject: str
    program: str
    measures_mm3: dict[str, float]
    structures_mm3: dict[str, float]


def find(scans: Sequence[Scan], files: Path | None, config: Config) -> list[Candidate]:
    """The folder of every scan; folders that belong to none are candidates of their own.

    A session's folder goes to the scan that FreeSurfer was most likely run on (T1w first).

    Raises:
        InputError: ``files`` is no folder.
    """
    if files is not None and not files.is_dir():
        raise InputError("there is no such folder of subjects", file=files, expected="FreeSurfer's SUBJECTS_DIR")
    lone, firsts = lone_sessions(scans), first_of_each_session(scans)
    taken: set[Path] = set()
    tops: set[Path] = set() if files is None else {files.absolute()}
    found = []
    for scan in scans:
        top = files.absolute() if files is not None else _beside(Path(scan.path))
        if firsts[scan.scan] is not scan:
            found.append(candidate(scan, reason="the session's anatomy stands with another scan"))
            continue
        names = session_names(scan, lone[scan.subject]) if top is not None else []
        folder = next((top / name for name in names if top is not None and (top / name / "stats" / FILES[0]).is_file()), None)
        if top is not None:
            tops.add(top)
        if folder is None:
            found.append(candidate(scan, reason="no aseg.stats belongs to this scan"))
            continue
        taken.add(folder)
        inputs = tuple(str(folder / "stats" / name) for name in FILES if (folder / "stats" / name).is_file())
        found.append(candidate(scan, str(folder), inputs=inputs))
    for top in sorted(tops):
        for path in sorted(top.glob(f"*/stats/{FILES[0]}")):
            if path.parent.parent not in taken:
                found.append(
                    Candidate("", "", "", "", "", "", str(path.parent.parent), status=FAILED,
                              reason=f"no scan of the index belongs to the folder {path.parent.parent.name!r}")
                )  # fmt: skip
    return found


def measure(candidate: Candidate, config: Config) -> Anatomy:
    """The volumes in a subject's statistics.

    Raises:
        InputError: a file is damaged, its units are others, or it names another subject.
    """
    assert candidate.path is not None
    folder = Path(candidate.path)
    notes: list[str] = []
    volumes: dict[str, float] = {}
    icv = None
    program = ""
    for path in map(Path, candidate.inputs):
        stats = read_stats(path)
        note = _check_subject(stats.subject, folder, candidate, config, path)
        if note:
            notes.append(note)
        prefix = f"ctx-{path.name[:2]}-" if ".aparc" in path.name else ""
        rows = {prefix + name: mm3 / 1000 for name, mm3 in stats.structures_mm3.items()}
        if path.name == FILES[0]:
            measures = {name: mm3 / 1000 for name, mm3 in stats.measures_mm3.items()}
            icv, program = measures.pop(ETIV, None), stats.program
            rows |= {name: value for name, value in measures.items() if name not in rows}
        clash = [name for name in rows if name in volumes and volumes[name] != rows[name]]
        if clash:
            raise InputError("two files give a structure different volumes", file=path, got=clash[0])
        volumes |= rows
    absent = [name for name in FILES if not (folder / "stats" / name).is_file()]
    if absent:
        notes.append(f"there is no {', '.join(absent)}")
    return Anatomy(volumes, icv, {"tool": "FreeSurfer", "program": program}, tuple(dict.fromkeys(notes)))


def read_stats(path: Path) -> Stats:
    """The volumes in one ``.stats`` file, in mm3 as they stand.

    Raises:
        InputError: the file cannot be read, has no table, states other units than mm^3, or holds a row that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the statistics cannot be read", file=path, got=str(error)) from None
    subject, program = "", ""
    units: dict[str, str] = {}
    columns: list[str] = []
    measures: dict[str, float] = {}
    structures: dict[str, float] = {}
    last = ""
    for number, line in enumerate(lines, start=1):
        words = line.lstrip("#").split()
        try:
            if not line.startswith("#"):
                if words:
                    _row(words, columns, structures)
            elif words[:1] == ["subjectname"]:
                subject = " ".join(words[1:])
            elif words[:1] == ["cvs_version"] or words[:1] == ["generating_program"]:
                program = f"{program} {' '.join(words[1:])}".strip()
            elif words[:1] == ["Measure"]:
                name, value, unit = _summary(line)
                if unit == "mm^3":
                    measures[name] = value
            elif words[:1] == ["ColHeaders"]:
                columns = words[1:]
            elif words[:1] == ["TableCol"] and words[2:3] == ["ColHeader"]:
                last = words[3]
            elif words[:1] == ["TableCol"] and words[2:3] == ["Units"]:
                units[last] = " ".join(words[3:])
        except (ValueError, IndexError, KeyError):
            raise InputError(
                "a line of the statistics cannot be read", file=path, got=f"line {number}: {line.strip()[:60]}"
            ) from None
    column = "Volume_mm3" if "Volume_mm3" in columns else "GrayVol"
    if not structures or "StructName" not in columns or column not in columns:
        raise InputError(
            "the statistics hold no table of volumes", file=path, expected="the columns StructName and Volume_mm3 or GrayVol",
            got=", ".join(columns) or "no ColHeaders", next_step="run FreeSurfer on this subject again",
        )  # fmt: skip
    if units.get(column, "mm^3") != "mm^3":
        raise InputError("the volumes have other units", file=path, expected="mm^3", got=units[column])
    return Stats(subject, program, measures, structures)


def _row(words: list[str], columns: list[str], structures: dict[str, float]) -> None:
    record = dict(zip(columns, words, strict=True))
    value = float(record["Volume_mm3"] if "Volume_mm3" in record else record["GrayVol"]) if columns else math.nan
    if not math.isfinite(value) or value < 0 or record["StructName"] in structures:
        raise ValueError
    structures[record["StructName"]] = value


def _summary(line: str) -> tuple[str, float, str]:
    """Short name, value and unit of a ``# Measure`` line."""
    parts = [part.strip() for part in line.split(",")]
    return parts[-4], float(parts[-2]), parts[-1]


def _beside(path: Path) -> Path | None:
    """The ``derivatives/freesurfer`` of the dataset that a scan lies in."""
    return next((top for folder in path.parents if (top := folder / "derivatives" / "freesurfer").is_dir()), None)


def _check_subject(told: str, folder: Path, candidate: Candidate, config: Config, path: Path) -> str | None:
    """A note where the files name nobody.

    Raises:
        InputError: they name another subject.
    """
    subject = candidate.subject.rsplit("/", 1)[-1]
    bare, session = subject.removeprefix("sub-"), candidate.session.removeprefix("ses-")
    own = {folder.name, subject, bare, f"{subject}_{candidate.session}", f"{bare}_{session}"}
    if told in own:
        return None
    if told in config.generic_names or not told:
        return f"the files name no subject ({told or 'empty'!r}): they are taken to be of the folder's"
    raise InputError(
        f"{path.name} is of another subject", file=path, expected=" or ".join(sorted({folder.name, subject})), got=told,
        next_step="put the right subject's files here; if the name means nobody: --set 'generic_names=[NAME]'",
    )  # fmt: skip
