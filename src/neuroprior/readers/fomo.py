"""FOMO-60K and FOMO-300K: ``sub_1/ses_1/t1.nii.gz``, or ``PT001_Name/sub-01/ses-01/[anat/]sub-01_ses-01_T1w.nii.gz``, and their tables.

- ``participants.tsv`` (``participant_id``, perhaps ``session_id`` and ``dataset``) gives age, sex and health; ``mri_info.tsv`` (the same keys and
  ``filename``) the scanner; ``mapping.tsv`` the source dataset of a participant. In FOMO-300K identifiers are unique only within a source
  dataset, so a row without its ``dataset`` is never guessed.
- The source dataset is the column ``source_dataset``; where sources are folders (``PT030_OpenNeuro/ds000001``) each is a dataset of its own.
- Original identifiers that a mapping table carries are left where they are: only the source's name is taken.
- A file's contrast is its name without the entities and the number behind it: ``t1_2.nii.gz`` is t1. ``scan`` says nothing: map it.

Layout: the FOMO-MRI data sets (Cerri et al., arXiv 2506.14432).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ..core import artifacts, contrasts
from ..core.errors import InputError
from ..core.records import BAD, OK, Scan
from . import _people
from ._people import once
from ._tree import Tree, walk

logger = logging.getLogger(__name__)

ENDINGS = (".nii.gz", ".nii")
TABLES = ("participants.tsv", "mapping.tsv", "mri_info.tsv")
_SUBJECT, _SESSION = re.compile(r"sub[-_](.+)"), re.compile(r"ses[-_](.+)")
_ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_KEYS = ("dataset", "participant_id", "session_id", "filename")


def recognises(root: Path) -> str | None:
    """Why ``root`` looks like one of these, or None: ``sub_*/ses_*`` folders, or ``mapping.tsv`` and ``participants.tsv`` above ``sub*`` folders."""
    if not root.is_dir():
        return None
    for subject in sorted(root.glob("sub_*"))[:20]:
        if next(subject.glob("ses_*/*.[nN][iI][iI]*"), None) is not None:
            return "it has sub_*/ses_* folders with NIfTI files"
    if all((root / name).is_file() for name in TABLES[:2]):
        for pattern in ("sub[-_]*/ses[-_]*", "*/sub[-_]*/ses[-_]*", "*/*/sub[-_]*/ses[-_]*"):
            if next(root.glob(pattern), None) is not None:
                return "it has participants.tsv, mapping.tsv and sub*/ses* folders"
    return None


def read(
    root: Path,
    *,
    name: str | None = None,
    contrast_map: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = logger.info,
    tree: Tree | None = None,
) -> Iterator[Scan]:
    """The files as scans; headers and voxels are not looked at.

    Args:
        root: the folder with the tables.
        name: the collection's name; by default the folder's.
        contrast_map: a file's name of a contrast (``scan``, ``gre``) -> a canonical name.
        tell: where to say what was left out and why.
        tree: the walk over ``root``, where it is done already.

    Raises:
        InputError: there is no such folder, or a table cannot be understood.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise InputError("there is no such folder", file=root)
    collection = name or root.name
    people, sources, info = (_Table(root / table, tell) for table in TABLES)
    tell = once(tell)
    dictionary = _people.read_description(root / "participants.json", tell)
    dictionary = _people.distrusted((row for rows in people.rows.values() for row in rows), dictionary, tell)
    licence = _people.read_description(root / "dataset_description.json", tell).get("License")
    seen: set[tuple[str, str, str]] = set()
    tree = tree or walk(root)
    closed, nowhere = dict(tree.closed), dict(tree.dangling)
    for folder, dataset, subject, session, path in _walk(tree):
        if path is None:
            where = str(root / folder)
            reason = (
                f"the folder cannot be listed: {closed[where]}"
                if where in closed
                else f"the link leads nowhere: {nowhere[where]}"
            )
            yield _row(f"{collection}/{folder}", collection, subject, session, where, reason)
            continue
        relative = path.relative_to(root).as_posix()
        own = f"{collection}-{dataset.replace('/', '-')}" if dataset else collection
        if path.suffix.lower() == ".zip":
            yield _row(f"{own}/{relative}", own, subject, session, str(path), "the session is packed: unzip it where it lies")
            continue
        raw = spelling(path.name, subject, session)
        contrast = (contrast_map or {}).get(raw) or contrasts.find(raw)
        found = people.find(dataset, subject, session)
        row = found[0] if found else {}
        mapping = sources.find(dataset, subject, session)
        source = (mapping[0].get("dataset") if mapping else None) or row.get("dataset") or dataset
        details = _details(info.find(dataset, subject, session), relative, path.name)
        known = _people.facts({k: v for k, v in row.items() if k not in _KEYS}, dictionary, tell)
        columns = {**known.pop("columns"), **({"source_dataset": source} if source else {})}
        words = [str(details[k]) for k in ("Manufacturer", "ManufacturersModelName", "ManufacturerModelName") if details.get(k)]
        strength = _people.value(details.get("MagneticFieldStrength"))
        words += [f"{strength:g} T"] if isinstance(strength, (int, float)) else []
        if words:
            known["scanner"] = " ".join(words)
        key = (dataset, subject, session)
        if people.rows and not row and key not in seen:
            tell(f"{own}: sub-{subject} is not in participants.tsv")
        seen.add(key)
        reasons = () if contrast else (_people.unknown_contrast(raw),)
        stem = _ENDING.sub("", path.name)
        yield Scan(
            scan=f"{own}/sub-{subject}_ses-{session}_{stem}" if not stem.startswith("sub-") else f"{own}/{stem}", dataset=own,
            subject=f"{own}/sub-{subject}", session=f"ses-{session}" if session else "", contrast=contrast or contrasts.UNKNOWN,
            contrast_raw=raw, path=str(path), licence=str(licence) if licence else None, columns=columns,
            status=OK if contrast else BAD, reasons=reasons, **known,
        )  # fmt: skip


def spelling(filename: str, subject: str = "", session: str = "") -> str:
    """A file's name of its contrast: without ending, ``sub``/``ses``/``run`` entities and the number behind it."""
    stem = _ENDING.sub("", filename)
    parts = [part for part in stem.split("_") if not re.fullmatch(r"(sub|ses|run|acq|rec|echo|dir)-.+", part)]
    if len(parts) > 1 and re.fullmatch(r"\d+", parts[-1]):
        parts.pop()
    return "_".join(parts)


def _row(scan: str, dataset: str, subject: str, session: str, path: str, reason: str) -> Scan:
    return Scan(
        scan=scan, dataset=dataset, subject=f"{dataset}/sub-{subject or '?'}", session=f"ses-{session}" if session else "",
        contrast=contrasts.UNKNOWN, contrast_raw="", path=path, status=BAD, reasons=(reason,),
    )  # fmt: skip


def _walk(tree: Tree) -> Iterator[tuple[str, str, str, str, Path | None]]:
    """(folder, source dataset, subject, session, file) of every image, sorted by path; no file where a folder cannot be looked into."""
    closed, nowhere = dict(tree.closed), dict(tree.dangling)
    pending: list[tuple[str, tuple[str, ...], str, str]] = [(tree.root, (), "", "")]
    while pending:
        folder, above, subject, session = pending.pop()
        relative = os.path.relpath(folder, tree.root)
        if folder in closed or folder in nowhere:
            yield relative, "/".join(above), subject, session, None
            continue
        for name in tree.files.get(folder, ()):
            if subject and name.lower().endswith(ENDINGS):
                yield relative, "/".join(above), subject, session, Path(folder, name)
            elif subject and name.lower().endswith(".zip"):
                packed = _SESSION.fullmatch(name[:-4])
                yield relative, "/".join(above), subject, packed[1] if packed else session, Path(folder, name)
        deeper = []
        links = [name for name in tree.files.get(folder, ()) if f"{folder}/{name}" in nowhere and "." not in name]
        for name in sorted([*tree.folders.get(folder, ()), *links]):
            path, is_subject, is_session = f"{folder}/{name}", _SUBJECT.fullmatch(name), _SESSION.fullmatch(name)
            if is_subject and not subject:
                deeper.append((path, above, is_subject[1], ""))
            elif is_session and subject and not session:
                deeper.append((path, above, subject, is_session[1]))
            elif name not in links:
                deeper.append((path, above if subject else (*above, name), subject, session))
        pending += reversed(deeper)


def _bare(text: object, kind: re.Pattern[str]) -> str:
    word = str(text or "").strip()
    found = kind.fullmatch(word)
    return found[1] if found else word


class _Table:
    """The rows of a table by (source dataset, subject, session), and where the folders tell no dataset, by the last two."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self.rows: dict[tuple[str, str, str], list[dict[str, str]]] = defaultdict(list)
        self.datasets: dict[tuple[str, str], set[str]] = defaultdict(set)
        for line, row in enumerate(_people.read_table(path) if path.is_file() else (), start=2):
            if "participant_id" not in row:
                raise InputError(
                    "a table has no participant_id", file=path, expected="participant_id", got=", ".join(map(str, row))
                )
            if not _people.raw(row["participant_id"]):
                tell(f"{path}: row {line} has no participant_id and is left out")
                continue
            dataset = str(row.get("dataset") or "").strip("/")
            subject, session = _bare(row["participant_id"], _SUBJECT), _bare(row.get("session_id"), _SESSION)
            rows = self.rows[dataset, subject, session]
            if path.name == TABLES[0] and rows and rows[0] != row:
                tell(f"{path}: sub-{subject} has two rows that disagree; the first is used")
                continue
            rows.append(row)
            self.datasets[subject, session].add(dataset)

    def find(self, dataset: str, subject: str, session: str) -> list[dict[str, str]]:
        """The rows of a session, else of a subject; none where two datasets have that subject and the folders do not say which."""
        for visit in (session, ""):
            if dataset:
                found = self.rows.get((dataset, subject, visit)) or self.rows.get(("", subject, visit))
            else:
                known = self.datasets.get((subject, visit), set())
                found = self.rows.get((next(iter(known)), subject, visit)) if len(known) == 1 else None
            if found:
                return found
        return []


def _details(rows: list[dict[str, str]], relative: str, filename: str) -> dict[str, str]:
    """The row of ``mri_info.tsv`` whose file is this one."""
    for row in rows:
        told = str(row.get("filename") or "").strip()
        if told in (relative, filename) or (told and relative.endswith("/" + told)):
            return row
    return {}


def write(scans: Iterable[Scan], folder: str | Path) -> int:
    """Lay usable scans out as ``sub_N/ses_M/NAME.nii.gz`` with their tables; returns how many.

    ``participants.tsv`` holds age, sex, group and the source dataset a session; ``mapping.tsv`` says which subject and session a folder was.
    Only ``.nii.gz`` files are laid out (as hard links where the disk allows, else copies); labels are left out: the layout has no place for them.

    Args:
        scans: index rows; bad ones are left out.
        folder: a new or empty folder; nothing outside it is written.

    Raises:
        InputError: the folder holds something, or a scan is no ``.nii.gz``.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError("the folder is not empty", file=folder, next_step="choose a new one")
    people: dict[str, int] = {}
    visits: dict[tuple[str, str], int] = {}
    used: dict[tuple[int, int, str], int] = {}
    participants: dict[tuple[int, int], str] = {}
    mapping: dict[tuple[int, int], str] = {}
    count = 0
    for scan in sorted((scan for scan in scans if scan.status != BAD), key=lambda scan: (scan.subject, scan.session, scan.scan)):
        if not scan.path.endswith(".nii.gz"):
            raise InputError("only .nii.gz files have a place in this layout", file=scan.path, next_step="convert it first")
        subject = people.setdefault(scan.subject, len(people) + 1)
        session = visits.setdefault((scan.subject, scan.session), 1 + sum(who == scan.subject for who, _ in visits))
        base = re.sub(r"[^a-z0-9]", "", scan.contrast.lower()) or "scan"
        used[subject, session, base] = number = used.get((subject, session, base), 0) + 1
        target = folder / f"sub_{subject}/ses_{session}/{base}{'' if number == 1 else f'_{number}'}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(os.path.realpath(scan.path), target)
        except OSError:
            shutil.copyfile(scan.path, target)
        cells = ("n/a" if cell is None else str(cell) for cell in (scan.age, scan.sex, scan.health))
        source = str(scan.columns.get("source_dataset") or scan.dataset)
        participants[subject, session] = "\t".join([f"sub_{subject}", f"ses_{session}", source, *cells])
        mapping[subject, session] = "\t".join([f"sub_{subject}", f"ses_{session}", source, scan.subject, scan.session or "n/a"])
        count += 1
    head = "participant_id\tsession_id\tdataset"
    artifacts.write_text(folder / TABLES[0], "\n".join([f"{head}\tage\tsex\tgroup", *participants.values()]) + "\n")
    artifacts.write_text(folder / TABLES[1], "\n".join([f"{head}\tsource_participant\tsource_session", *mapping.values()]) + "\n")
    return count
