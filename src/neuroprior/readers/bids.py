"""BIDS datasets: names, participants and sessions tables, sidecars, and derivatives with masks and label maps.

What becomes a row: every NIfTI file of the dataset that is no label, outside the folders that hold no structural MRI
(``func``, ``eeg`` ...), whatever its name. A folder with a description of its own is another dataset and is told of, never mixed in. A time of
acquisition (``acq_time``) goes nowhere; it becomes the column ``days`` since the subject's first scan. Labels come from the dataset itself and from ``derivatives/*``:

- ``label-NAME_mask`` is the label NAME, ``desc-brain_mask`` the brain mask, any other mask is named by its ``desc``;
- ``dseg`` is named by its ``desc`` (or ``label``), or ``dseg``;
- without ``space``, or with the space of a contrast (``space-T1w``), a label belongs to the world of its session and so to
  every scan of it; a label in any other space (``space-common``, a template) is left out, and the rows say so.

Reference: Gorgolewski KJ et al., The brain imaging data structure, Scientific Data 3:160044 (2016), and its
specification 1.10 (inheritance of sidecars, derivatives).
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ..core import contrasts, formats
from ..core.errors import InputError
from ..core.records import BAD, OK, WARNING, Scan
from . import _people
from ._bids_tables import Tables, metadata, participants, second_tables
from ._tree import Tree, walk

logger = logging.getLogger(__name__)

DESCRIPTION = "dataset_description.json"
NIFTI = (".nii.gz", ".nii")
IMAGES = (*NIFTI, *formats.SUFFIXES)
"""What is an image by its name: NIfTI, as BIDS wants it, and what datasets on their way to BIDS hold."""
PAIRS = (".img", ".img.gz")
"""Halves of pairs (Analyze, NIfTI) that nothing here reads: each is a row that says so."""
CONTAINERS = (".zarr", ".ds", ".mefd", ".ngff")
"""Folders that are one file of another kind; they are not looked into."""
LABEL_SUFFIXES = ("mask", "dseg")
"""Suffixes of files that are labels, never scans."""
LEFT_OUT_SUFFIXES = ("probseg", "defacemask", "xfm", "warp")
"""Suffixes of files beside the images that are neither scans nor labels with whole numbers."""
OTHER_DATATYPES = ("func", "eeg", "meg", "ieeg", "beh", "pet", "fmap", "micr", "nirs", "motion", "emg", "mrs")
"""Folders that hold no structural MRI; their images are counted and told of, not indexed."""
LEFT_OUT_FOLDERS = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")
"""Folders whose images are no scans of the dataset, at whatever depth; masks and label maps of ``derivatives`` at the top are used."""
OWN_SPACES = ("orig", "native", "scanner", "individual", "subject")
"""Values of ``space`` that mean the session's own world."""
GENERIC_NAMES = ("bids", "raw", "rawdata", "data", "nifti", "dataset", "images")
"""Folder names that name nothing; the folder above then names the dataset."""

Tell = Callable[[str], None]
_SCAN_KEYS = ("acq", "ce", "rec", "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "chunk")


@dataclass(frozen=True)
class Name:
    """A BIDS file name taken apart: entities in their order, suffix, extension with its dot."""

    entities: Mapping[str, str]
    suffix: str
    extension: str


@dataclass(frozen=True)
class _Label:
    path: Path
    subject: str
    session: str
    name: str  # "brain" masks are told apart by `brain`
    brain: bool
    space: str
    origin: str  # derivative's name, or an empty string for the dataset itself
    desc: str
    entities: Mapping[str, str]


@dataclass
class _Files:
    """What one walk over a dataset finds."""

    images: list[Path] = field(default_factory=list)
    sidecars: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    transforms: list[Path] = field(default_factory=list)
    closed: list[tuple[Path, str]] = field(default_factory=list)
    pairs: list[Path] = field(default_factory=list)
    dangling: list[tuple[Path, str]] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    elsewhere: Counter[str] = field(default_factory=Counter)


def recognises(root: Path) -> str | None:
    """Why ``root`` looks like a BIDS dataset, or None. Looks at the folder and two levels below it."""
    if not root.is_dir():
        return None
    if (root / DESCRIPTION).is_file():
        return f"it has a {DESCRIPTION}"
    for subject in sorted(root.glob("sub-*")):
        for pattern in ("*/*.[nN][iI][iI]*", "*/*/*.[nN][iI][iI]*"):
            if next(subject.glob(pattern), None) is not None:
                return "it has sub-* folders with NIfTI files"
    return None


@lru_cache(maxsize=1 << 15)
def parse_name(filename: str) -> Name:
    """The parts of a BIDS file name; pieces that are no ``key-value`` pair are ignored, the last one is the suffix."""
    stem, extension = _split_extension(filename)
    *pairs, suffix = stem.split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    if "-" in suffix:  # no suffix at all, as in sub-01.nii.gz
        key, _, text = suffix.partition("-")
        entities[key] = text
        suffix = ""
    return Name(entities, suffix, extension)


def dataset_name(root: Path) -> str:
    """The name that a dataset's rows carry: its folder's name, or its parent's where that says nothing (``bids``)."""
    folder = root.resolve()
    while folder.name.casefold() in GENERIC_NAMES and folder.parent.name:
        folder = folder.parent
    return folder.name or "dataset"


def read(
    root: Path,
    *,
    name: str | None = None,
    contrast_map: Mapping[str, str] | None = None,
    tell: Tell = logger.info,
    tree: Tree | None = None,
) -> Iterator[Scan]:
    """The rows of a BIDS dataset: paths and metadata; headers and voxels are not looked at.

    Rows come sorted by path. A file whose contrast nobody knows, a folder that may not be listed, a link of a subject into nothing, half of
    a pair that is not read and a label map whose session has no scan are rows of status ``bad``.

    Args:
        root: the dataset's folder.
        name: the dataset's name in the rows; by default from the folder.
        contrast_map: the dataset's spelling of a contrast (``acq``-free: suffix with ``ce``, or the suffix alone) -> a
            canonical name.
        tell: where to say what was left out and why.
        tree: the walk over ``root``, where it is done already.

    Raises:
        InputError: ``root`` is no folder, or a table cannot be understood.
        LeakageError: two participants rows that disagree about one subject.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise InputError("there is no such folder", file=root)
    dataset = name or dataset_name(root)
    tell = _people.once(tell)
    tree = tree or walk(root)
    files = _sort(tree, str(root), skip=LEFT_OUT_FOLDERS)
    for datatype, count in sorted(files.elsewhere.items()):
        tell(f"{dataset}: {count} file(s) in {datatype}/ folders are not structural MRI and are left out")

    _tell_of_others(root, dataset, tree, files, tell)

    people = participants(root, tell)
    second = second_tables(tree, root, people)
    defaced = _defaced(files, root)
    licence = _people.read_description(root / DESCRIPTION, tell).get("License")
    labels, transforms = _labels(root, files, dataset, tree, tell)
    nobodys = sum(not label.subject for label in labels)
    if nobodys:  # a template's or an atlas' own
        tell(f"{dataset}: {nobodys} label map(s) or mask(s) belong to no subject and are left out")
        labels = [label for label in labels if label.subject]
    tables = Tables(tree)
    sidecars = _Sidecars(root, files.sidecars, tell)
    seen_subjects: set[str] = set()
    rows: list[Scan] = []
    days: list[date | None] = []

    for path in sorted(files.images):
        parsed = parse_name(path.name)
        if parsed.suffix in LABEL_SUFFIXES:
            continue
        if parsed.suffix in LEFT_OUT_SUFFIXES:
            tell(f"{dataset}: {path.name} is neither a scan nor a label of whole numbers and is left out")
            continue
        subject, session = _who(path.relative_to(root), parsed)
        if not subject:
            tell(f"{dataset}: {path.relative_to(root)} belongs to no subject and is left out")
            continue
        seen_subjects.add(subject)
        contrast, raw, problem = _contrast(parsed, contrast_map or {})
        notes = _doubts(path, parsed, root)
        notes += second.get(subject, [])
        sidecar = sidecars.of(path, parsed)
        found, day = metadata(root, subject, session, path, people, tables, tell)
        columns = found.pop("columns")
        days.append(day)
        rows.append(
            Scan(
                scan=f"{dataset}/{_split_extension(path.name)[0]}",
                dataset=dataset,
                subject=f"{dataset}/sub-{subject}",
                session=f"ses-{session}" if session else "",
                contrast=contrast,
                contrast_raw=raw,
                path=str(path),
                licence=str(licence) if licence else None,
                site=found.pop("site", None) or _text(sidecar.get("InstitutionName")),
                scanner=found.pop("scanner", None) or _scanner(sidecar),
                columns=columns,
                status=BAD if problem else WARNING if notes else OK,
                reasons=(*([problem] if problem else []), *notes),
                checks={"faces": DEFACED} if (subject, session, parsed.suffix) in defaced else {},
                **found,
            )
        )
    rows = _attach(_since_first(rows, days), labels, transforms, dataset)
    rows += _orphans(rows, labels, dataset, licence)
    rows += [_unread(root, dataset, folder, f"the folder cannot be listed: {reason}") for folder, reason in files.closed]
    rows += [
        _unread(root, dataset, link, f"the link leads nowhere: {target}")
        for link, target in files.dangling
        if _holds_scans(link, root)
    ]
    rows += [_unread(root, dataset, path, PAIR) for path in files.pairs if _who(path.relative_to(root), parse_name(path.name))[0]]
    unlisted = sorted(seen_subjects - set(people.rows)) if people.present else []
    if unlisted:
        tell(f"{dataset}: {len(unlisted)} subject(s) are not in participants.tsv, for example sub-{unlisted[0]}")
    absent = sorted(set(people.rows) - seen_subjects)
    if absent:
        tell(f"{dataset}: {len(absent)} participant(s) have no scan, for example sub-{absent[0]}")
    yield from sorted(rows, key=lambda row: row.path)


def label_names(path: Path, root: Path | None = None) -> dict[int, str]:
    """What the numbers of a ``dseg`` file mean, from the TSV that BIDS puts beside it or above it; empty where none is.

    Args:
        path: the label map.
        root: where to stop looking upwards; by default the nearest folder above with a dataset description.

    Raises:
        InputError: the table has no ``index`` and ``name`` columns, or an index is no whole number.
    """
    parsed = parse_name(Path(path).name)
    wanted = set(parsed.entities.items())
    for folder in Path(path).parents:
        fitting = []
        for table in folder.glob(f"*{parsed.suffix}.tsv"):
            other = parse_name(table.name)
            if other.suffix == parsed.suffix and set(other.entities.items()) <= wanted:
                fitting.append((len(other.entities), table))
        if fitting:
            table = max(fitting)[1]
            names = {}
            for row in _people.read_table(table):
                index = _people.value(row.get("index"))
                if not isinstance(index, int) or not row.get("name"):
                    raise InputError(
                        "a label table is damaged", file=table, expected="columns index (a whole number) and name", got=row
                    )
                names[index] = str(row["name"]).strip()
            return names
        if folder == root or (root is None and (folder / DESCRIPTION).is_file()):
            break
    return {}


# ---------------------------------------------------------------- the walk


def _sort(tree: Tree, root: str, skip: tuple[str, ...] = ()) -> _Files:
    """The images, sidecars and transforms below a folder of the tree.

    ``skip`` names folders that are left out, at whatever depth. With it, a folder with a dataset description of its own is another dataset:
    it is listed as ``nested`` and not looked into.
    """
    found = _Files()
    pending = [root]
    while pending:
        folder = pending.pop()
        datatype = os.path.basename(folder)
        for name in tree.files.get(folder, ()):
            plain = name.lower()
            if plain.endswith((*IMAGES, *PAIRS)):
                if datatype in OTHER_DATATYPES:
                    found.elsewhere[datatype] += 1
                else:
                    (found.images if plain.endswith(IMAGES) else found.pairs).append(Path(folder, name))
            elif plain.endswith(".json"):
                found.sidecars[folder].append(Path(folder, name))
            elif "_from-" in name and "_xfm." in name:
                found.transforms.append(Path(folder, name))
        for name in tree.folders.get(folder, ()):
            if name in skip or name.endswith(CONTAINERS):
                continue
            below = f"{folder}/{name}"
            if skip and not name.startswith(("sub-", "ses-")) and tree.has(f"{below}/{DESCRIPTION}"):
                found.nested.append(below)
            else:
                pending.append(below)

    def ours(path: str) -> bool:
        inside = path.startswith(f"{root}/") and not path.startswith(tuple(f"{nested}/" for nested in found.nested))
        return inside and not set(Path(path).relative_to(root).parts) & set(skip)

    found.closed = [(Path(folder), reason) for folder, reason in tree.closed if folder == root or ours(folder)]
    found.dangling = [(Path(link), target) for link, target in tree.dangling if ours(link)]
    return found


def _split_extension(filename: str) -> tuple[str, str]:
    for extension in (*IMAGES, *PAIRS):
        if filename[-len(extension) :].lower() == extension:
            return filename[: -len(extension)], filename[-len(extension) :]
    stem, dot, extension = filename.rpartition(".")
    return (stem, dot + extension) if dot else (filename, "")


def _who(relative: Path, parsed: Name) -> tuple[str, str]:
    """Subject and session of a file, without their prefixes: from its name, else from the folders it lies in."""
    folders = dict(part.split("-", 1) for part in relative.parts[:-1] if part.startswith(("sub-", "ses-")))
    subject, session = (parsed.entities.get(key, folders.get(key, "")) for key in ("sub", "ses"))
    if not (
        subject.isascii() and session.isascii()
    ):  # one letter has two spellings in Unicode, and file systems differ in which they keep
        subject, session = unicodedata.normalize("NFC", subject), unicodedata.normalize("NFC", session)
    return subject, session


DEFACED = "none: the dataset holds the defacing mask of this scan"
"""What ``check_faces`` says of a scan whose defacing mask lies beside it."""


def _defaced(files: _Files, root: Path) -> set[tuple[str, str, str]]:
    """(subject, session, suffix) of the scans whose defacing masks are there."""
    found = set()
    for path in files.images:
        name = parse_name(path.name)
        if name.suffix == "defacemask":
            found.add((*_who(path.relative_to(root), name), name.entities.get("mod", "T1w")))
    return found


def _doubts(path: Path, parsed: Name, root: Path) -> list[str]:
    """What is odd about a file's name: an entity that comes twice, or folders that name another subject or session."""
    stem, _ = _split_extension(path.name)
    keys = Counter(pair.split("-", 1)[0] for pair in stem.split("_") if "-" in pair)
    notes = [f"the name gives {key}- {count} times; the last one is used" for key, count in keys.items() if count > 1]
    for key in ("sub", "ses"):
        told = [part.partition("-")[2] for part in path.relative_to(root).parts[:-1] if part.startswith(f"{key}-")]
        if told and key in parsed.entities and parsed.entities[key] != told[-1]:
            notes.append(f"the name says {key}-{parsed.entities[key]}, the folder {key}-{told[-1]}; the name is used")
    return notes


PAIR = "half of a .hdr/.img pair, which is not read: convert the pair to one .nii.gz"


def _unread(root: Path, dataset: str, path: Path, reason: str) -> Scan:
    """The row of a folder, a link or a file that cannot be read."""
    subject, session = _who(path.relative_to(root) / "x", parse_name(path.name))
    return Scan(
        scan=f"{dataset}/{path.relative_to(root).as_posix()}",
        dataset=dataset,
        subject=f"{dataset}/sub-{subject}" if subject else f"{dataset}/?",
        session=f"ses-{session}" if session else "",
        contrast=contrasts.UNKNOWN,
        contrast_raw="",
        path=str(path),
        status=BAD,
        reasons=(reason,),
    )


def _holds_scans(link: Path, root: Path) -> bool:
    """Whether a link into nothing stood for a folder of a subject's; a link called like an image is a row as other images are."""
    parts = link.relative_to(root).parts
    return "." not in link.name and any(part.startswith("sub-") for part in parts) and not set(parts) & set(OTHER_DATATYPES)


def _tell_of_others(root: Path, dataset: str, tree: Tree, files: _Files, tell: Tell) -> None:
    """Say which folders give no scans of this dataset, and why."""
    for folder in files.nested:
        name = os.path.relpath(folder, root)
        if not _is_derivative(folder, tell):  # those of a derivative are counted with those in derivatives/
            tell(f"{dataset}: {name} is a dataset of its own and is left out: give it as a source of its own ({folder})")
    empty = [name for name in tree.folders.get(str(root), ()) if name.startswith("sub-") and _is_empty(tree, f"{root}/{name}")]
    if empty:
        tell(f"{dataset}: {len(empty)} subject folder(s) hold no file, for example {empty[0]}")
    again = [link for link in tree.again if link.startswith(f"{root}/")]
    if again:
        tell(f"{dataset}: {len(again)} link(s) lead to folders that are read already and are left out, for example {again[0]}")
    lost = [
        link for link, _ in files.dangling if not link.name.lower().endswith((*IMAGES, *PAIRS)) and not _holds_scans(link, root)
    ]
    if lost:
        tell(f"{dataset}: {len(lost)} link(s) lead nowhere, for example {lost[0]}")


def _is_derivative(folder: str, tell: Tell) -> bool:
    return str(_people.read_description(Path(folder, DESCRIPTION), tell).get("DatasetType")).casefold() == "derivative"


def _is_empty(tree: Tree, folder: str) -> bool:
    """Whether there is no file in a folder and below it, and every folder could be listed."""
    if tree.files.get(folder, [""]):
        return False
    return all(_is_empty(tree, f"{folder}/{name}") for name in tree.folders.get(folder, ()))


FIRST_YEAR = 1970
"""No MRI is older: BIDS shifts dates that may not be told to before 1925."""


def _since_first(rows: list[Scan], days: list[date | None]) -> list[Scan]:
    """The rows with the columns ``days``, since the subject's first scan, and ``acquisition_year``, where the day is known and not shifted."""
    first: dict[str, date] = {}
    for row, day in zip(rows, days):
        if day is not None:
            first[row.subject] = min(day, first.get(row.subject, day))
    out = []
    for row, day in zip(rows, days):
        if day is None:
            out.append(row)
            continue
        name = "days" if "days" not in row.columns else "days_since_first"
        told: dict[str, Any] = {name: (day - first[row.subject]).days}
        if day.year >= FIRST_YEAR:
            told["acquisition_year"] = day.year
        out.append(replace(row, columns={**row.columns, **told}))
    return out


# ---------------------------------------------------------------- what a scan shows, and what is known of it


def _contrast(parsed: Name, mapped: Mapping[str, str]) -> tuple[str, str, str | None]:
    """Canonical contrast, the dataset's spelling, and what is wrong with it."""
    agent = parsed.entities.get("ce")
    raw = f"ce-{agent}_{parsed.suffix}" if agent else parsed.suffix
    for spelling in (raw, parsed.suffix):
        if spelling in mapped:
            return contrasts.canonical(mapped[spelling]), raw, None
    part = parsed.entities.get("part")
    if part not in (None, "mag"):
        return contrasts.UNKNOWN, f"part-{part}_{raw}", f"the {part} part of an image is not a contrast of its own"
    if parsed.suffix == "MP2RAGE" or ("inv" in parsed.entities and parsed.suffix != "UNIT1"):
        return contrasts.UNKNOWN, raw, "a single inversion image is not the uniform MP2RAGE image (suffix UNIT1)"
    name = contrasts.from_bids(parsed.suffix, dict(parsed.entities))
    if name is None:
        return contrasts.UNKNOWN, raw, _people.unknown_contrast(raw)
    return name, raw, None


def _text(cell: object) -> str | None:
    return str(cell).strip() or None if cell is not None else None


def _scanner(sidecar: Mapping[str, Any]) -> str | None:
    words = [_text(sidecar.get(key)) for key in ("Manufacturer", "ManufacturersModelName")]
    strength = sidecar.get("MagneticFieldStrength")
    if isinstance(strength, int | float):
        words.append(f"{strength:g} T")
    return " ".join(word for word in words if word) or None


class _Sidecars:
    """Every JSON file that applies to a scan, merged from the top folder down (the inheritance principle)."""

    def __init__(self, root: Path, files: Mapping[str, list[Path]], tell: Tell) -> None:
        self.root, self.files, self.tell = str(root), files, tell
        self.chains: dict[str, list[tuple[str, int, frozenset[tuple[str, str]], Path]]] = {}
        self.read: dict[Path, dict[str, Any]] = {}

    def _chain(self, folder: str) -> list[tuple[str, int, frozenset[tuple[str, str]], Path]]:
        """(suffix, number of entities, entities, file) of the JSON files in a folder and those above it, from the top down."""
        if folder not in self.chains:
            above = self._chain(os.path.dirname(folder)) if folder != self.root and len(folder) > len(self.root) else []
            own = []
            for path in self.files.get(folder, ()):
                name = parse_name(path.name)
                own.append((name.suffix, len(name.entities), frozenset(name.entities.items()), path))
            self.chains[folder] = above + sorted(own, key=lambda item: (item[1], item[3])) if own else above
        return self.chains[folder]

    def of(self, path: Path, parsed: Name) -> dict[str, Any]:
        """What is said of one scan."""
        chain = self._chain(os.path.dirname(path))
        fitting = [item for item in chain if item[0] == parsed.suffix]
        if not fitting:
            return {}
        mine = set(parsed.entities.items())
        merged: dict[str, Any] = {}
        for _, _, entities, file in fitting:
            if entities <= mine:
                if file not in self.read:
                    self.read[file] = _people.read_description(file, self.tell)
                merged.update(self.read[file])
        return merged


# ---------------------------------------------------------------- labels


def _labels(root: Path, files: _Files, dataset: str, tree: Tree, tell: Tell) -> tuple[list[_Label], dict[tuple[str, str], set]]:
    """Every label of the dataset and its derivatives, and the transforms stated between contrasts of a session."""
    found = [_label(path, root, "") for path in files.images if parse_name(path.name).suffix in LABEL_SUFFIXES]
    transforms: dict[tuple[str, str], set[frozenset[str]]] = defaultdict(set)
    paths = list(files.transforms)
    derivatives = [(root / "derivatives", "")] if "derivatives" in tree.folders.get(str(root), ()) else []
    derivatives += [(Path(folder), os.path.basename(folder)) for folder in files.nested if _is_derivative(folder, tell)]
    others: Counter[str] = Counter()
    for folder, called in derivatives:
        walked = _sort(tree, str(folder))
        files.closed.extend(walked.closed)
        paths += walked.transforms
        for path in walked.images:
            top = path.relative_to(folder).parts[0]
            origin = called or ("" if top.startswith("sub-") else top)
            if parse_name(path.name).suffix in LABEL_SUFFIXES:
                found.append(_label(path, folder, origin))
            else:
                others[origin or "derivatives"] += 1
    for origin, count in sorted(others.items()):
        tell(f"{dataset}: {count} image(s) of the derivative {origin!r} are left out: only its masks and label maps are used")
    for path in paths:
        entities = parse_name(path.name).entities
        ends = [contrasts.find(entities.get(key, "")) for key in ("from", "to")]
        if all(ends):
            transforms[_who(path.relative_to(root), parse_name(path.name))].add(frozenset(map(str, ends)))
    return sorted(found, key=lambda label: str(label.path)), transforms


def _label(path: Path, root: Path, origin: str) -> _Label:
    parsed = parse_name(path.name)
    subject, session = _who(path.relative_to(root), parsed)
    desc, label = parsed.entities.get("desc", ""), parsed.entities.get("label", "")
    first, second = (label, desc) if parsed.suffix == "mask" else (desc, label)
    return _Label(
        path=path,
        subject=subject,
        session=session,
        name=first or second or parsed.suffix,
        brain=parsed.suffix == "mask" and (label or desc).casefold() == "brain",
        space=parsed.entities.get("space", ""),
        origin=origin,
        desc=desc,
        entities=parsed.entities,
    )


@cache
def _space_contrast(space: str) -> str | None:
    """The contrast whose world a ``space`` value names, or None."""
    return contrasts.find(space) if space else None


def _belongs(label: _Label) -> bool:
    """Whether a label lies in its own session's world."""
    return not label.space or label.space.casefold() in OWN_SPACES or _space_contrast(label.space) is not None


def _attach(
    rows: list[Scan], labels: list[_Label], transforms: Mapping[tuple[str, str], set[frozenset[str]]], dataset: str
) -> list[Scan]:
    by_subject: dict[str, list[_Label]] = defaultdict(list)
    for label in labels:
        by_subject[label.subject].append(label)
    sessions: dict[str, set[str]] = defaultdict(set)
    present: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        sessions[row.subject].add(row.session)
        present[row.subject, row.session].add(row.contrast)
    attached = []
    for row in rows:
        subject = row.subject.removeprefix(f"{dataset}/sub-")
        session = row.session.removeprefix("ses-")
        entities = parse_name(Path(row.path).name).entities
        told: list[str] = []
        fitting: list[_Label] = []
        for label in by_subject[subject]:
            if label.session and label.session != session:
                continue
            if any(key in label.entities and key in entities and label.entities[key] != entities[key] for key in _SCAN_KEYS):
                continue
            what = "brain mask" if label.brain else f"label {label.name!r}"
            if not _belongs(label):
                told.append(f"{what} in space-{label.space} is left out: that is not the world of this session")
            elif not label.session and len(sessions[row.subject]) > 1:
                told.append(f"{what} names no session and is left out: the subject has several ({label.path.name})")
            else:
                fitting.append(label)
        fitting.sort(key=lambda label: (_space_contrast(label.space) != row.contrast, bool(label.space), str(label.path)))
        chosen: dict[str, _Label] = {}
        brain: _Label | None = None
        for label in fitting:
            if label.brain:
                if brain is not None and brain.origin != label.origin:
                    told.append(f"a second brain mask, of {label.origin or 'the dataset'}, is left out")
                brain = brain or label
                continue
            name, first = label.name, chosen.get(label.name)
            if first is not None:
                if (first.origin, first.desc) == (label.origin, label.desc):
                    continue  # the same thing in another session-mate's space
                name = "_".join(part for part in (label.name, label.origin, label.desc) if part)
                if name in chosen:
                    continue
                told.append(f"two labels are called {label.name!r}; the one of {label.path.name} is called {name!r}")
            chosen[name] = label
        for label in [*chosen.values(), *([brain] if brain else [])]:
            world = _space_contrast(label.space)
            what = "brain mask" if label.brain else f"label {label.name!r}"
            if world is None or world == row.contrast:
                continue
            if world not in present[row.subject, row.session]:
                told.append(f"{what} lies in the world of a {world} that the session does not have")
            if frozenset((world, row.contrast)) in transforms.get((subject, session), ()):
                told.append(
                    f"{what} was drawn on the {world}; the dataset states a transform between {world} and {row.contrast}, "
                    "which is not applied, so it may be displaced here"
                )
        attached.append(
            replace(
                row,
                brain_mask=str(brain.path) if brain else None,
                labels={name: str(label.path) for name, label in chosen.items()},
                status=WARNING if told and row.status == OK else row.status,
                reasons=(*row.reasons, *told),
            )
        )
    return attached


def _orphans(rows: list[Scan], labels: list[_Label], dataset: str, licence: object) -> list[Scan]:
    """Rows for labels whose session has no scan at all, so that nothing is lost."""
    sessions = {(row.subject, row.session) for row in rows}
    subjects = {row.subject for row in rows}
    made = []
    for label in labels:
        subject = f"{dataset}/sub-{label.subject}"
        session = f"ses-{label.session}" if label.session else ""
        if (subject, session) in sessions or (not session and subject in subjects):
            continue
        made.append(
            Scan(
                scan=f"{dataset}/{_split_extension(label.path.name)[0]}",
                dataset=dataset,
                subject=subject,
                session=session,
                contrast=contrasts.UNKNOWN,
                contrast_raw="",
                path=str(label.path),
                labels={label.name: str(label.path)},
                licence=str(licence) if licence else None,
                status=BAD,
                reasons=("a label map or mask whose session has no scan",),
            )
        )
    return made
