"""What a user may hand to ``predict``: scans by contrast name, image files, a BIDS folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import contrasts, shelf
from ..core.errors import ConfigError, InputError
from ..core.records import BAD, Scan
from .reading import CaseInput

IMAGE_SUFFIXES = (".nii", ".nii.gz")


def from_scans(scans: Iterable[Scan]) -> list[CaseInput]:
    """Index rows grouped into cases, one a session, in order of first appearance; bad rows and unknown contrasts are left out.

    Of two scans of one contrast in a session the first is taken, told in a note. Age, sex and the participants columns come along
    as covariates.
    """
    grouped: dict[tuple[str, str], list[Scan]] = {}
    for scan in scans:
        if scan.status != BAD and scan.contrast != contrasts.UNKNOWN:
            grouped.setdefault((scan.subject, scan.session), []).append(scan)
    cases = []
    for (subject, session), rows in grouped.items():
        images: dict[str, Path] = {}
        notes = []
        for row in rows:
            if row.contrast in images:
                notes.append(f"of several {row.contrast} scans {images[row.contrast].name} is used, not {Path(row.path).name}")
                continue
            images[row.contrast] = Path(row.path)
        case = f"{subject}/{session}" if session else subject
        known: dict[str, Any] = dict(rows[0].columns) | {"age": rows[0].age, "sex": rows[0].sex}
        covariates = {key: value for key, value in known.items() if value is not None}
        cases.append(CaseInput(case, rows[0].dataset, subject, session, images, tuple(notes), covariates))
    return cases


def contrast_of_file(path: Path) -> str | None:
    """The canonical contrast in a file's BIDS name (``sub-01_ce-gadolinium_T1w.nii.gz``), or None."""
    parts = path.name.split(".")[0].split("_")
    entities = dict(part.split("-", 1) for part in parts if "-" in part)
    return contrasts.from_bids(parts[-1], entities)


def from_arguments(arguments: Sequence[str], known: Sequence[str], *, as_: str | None = None) -> list[CaseInput]:
    """Cases from the command line's inputs.

    Args:
        arguments: ``CONTRAST=FILE`` pairs (together one case; the name may be one of several, ``SWI_OR_T2STAR=FILE``), image files
            (one case each, contrast from the file's BIDS name, or the model's only one), or folders of a layout that a reader
            recognises.
        known: the model's contrasts.
        as_: the contrast that an image is taken for whose own nobody knows.

    Raises:
        InputError: a path is not there, a folder holds no scans, a file's contrast cannot be told, or one is given twice.
    """
    named: dict[str, Path] = {}
    notes: list[str] = []
    cases: list[CaseInput] = []
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        if equals and not Path(argument).exists():
            contrast, note = _named(name, known, as_)
            if contrast in named:
                raise InputError(
                    f"two scans are given for {contrast}", got=f"{named[contrast]} and {rest}",
                    next_step="give one of them, or predict them one after the other",
                )  # fmt: skip
            named[contrast] = _existing(Path(rest))
            notes += note
            continue
        path = _existing(Path(argument))
        if path.is_dir():
            found = from_scans(_read_folder(path))
            if not found:
                raise InputError(
                    "the folder holds no scan of a known contrast", file=path, next_step="name the scans: T1w=scan.nii.gz"
                )
            cases += found
        else:
            cases.append(_single(path, known, as_))
    if named:  # whatever the order of the arguments, the case has one name
        stems = [named[name].name.split(".")[0] for name in sorted(named)]
        parts = [part for stem in stems for part in stem.split("_") if part.startswith("sub-")]
        subject = parts[0] if parts else f"sub-{''.join(c for c in stems[0] if c.isalnum())}"
        cases.append(CaseInput(subject, "", subject, "", dict(sorted(named.items())), tuple(sorted(notes))))
    return cases


def _named(name: str, known: Sequence[str], as_: str | None) -> tuple[str, list[str]]:
    """The canonical contrast of a name on the command line, and what is told of it."""
    if as_ is not None and contrasts.find(name) is None and contrasts._key(name) not in map(contrasts._key, contrasts.ONE_OF):
        return as_, [f"{name} is no contrast that we know; it is taken as {as_} (--as)"]
    accepted = contrasts.accepts(name)
    chosen = next((one for one in accepted if one in known), accepted[0])
    return chosen, [f"{name} is taken as {chosen}"] if len(accepted) > 1 else []


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError("there is no such input", file=path, expected="a scan, a BIDS folder, an index, or CONTRAST=FILE")
    return path


def _single(path: Path, known: Sequence[str], as_: str | None) -> CaseInput:
    if not path.name.endswith(IMAGE_SUFFIXES):
        raise InputError("this is no NIfTI file", file=path, expected=" or ".join(IMAGE_SUFFIXES))
    contrast, notes = contrast_of_file(path), ()
    if contrast is None and as_ is not None:
        contrast, notes = as_, (f"{path.name} is taken as {as_} (--as)",)
    if contrast is None and len(known) == 1:
        contrast, notes = known[0], (f"{path.name} is taken as {known[0]}, the model's only contrast",)
    if contrast is None:
        raise InputError(
            "the contrast cannot be told from the file's name", file=path, expected=f"one of {', '.join(known)}",
            next_step=f"write it before the file: {known[0]}={path.name}",
        )  # fmt: skip
    stem = path.name.split(".")[0]
    subject = next(
        (part for part in stem.split("_") if part.startswith("sub-")), f"sub-{''.join(c for c in stem if c.isalnum())}"
    )
    session = next((part for part in stem.split("_") if part.startswith("ses-")), "")
    return CaseInput(stem, "", subject, session, {contrast: path}, notes)


def _read_folder(path: Path) -> list[Scan]:
    for name in shelf.names("readers"):
        reader = shelf.load("readers", name)
        if reader.recognises(path):
            return list(reader.read(path))
    raise InputError(
        "no reader recognises this folder", file=path, expected="a BIDS dataset",
        next_step="index it first (neuroprior index), or name the scans: T1w=scan.nii.gz",
    )  # fmt: skip


# ------------------------------------------------------------------------------------- contrasts that the model never saw


def parse_as(text: str | None, known: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """``"T2w"`` (for whatever the model does not know) or ``"PDw=T2w,SWI=T2w"`` (by name) as canonical names.

    Returns:
        The contrast for any unknown one, or None; and given contrast -> contrast it is taken for.

    Raises:
        InputError: a name is unknown.
        ConfigError: the model does not know what the scan should be taken for.
    """
    anything: str | None = None
    by_name: dict[str, str] = {}
    for part in (text or "").split(","):
        left, equals, right = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        wanted = contrasts.canonical(right if equals else left)
        if wanted not in known:
            raise ConfigError(f"--as {wanted}: the model does not know {wanted} either", expected=f"one of {', '.join(known)}")
        if equals:
            by_name[contrasts.canonical(left)] = wanted
        else:
            anything = wanted
    return anything, by_name


def taken_as(case: CaseInput, known: Sequence[str], anything: str | None, by_name: Mapping[str, str]) -> CaseInput:
    """The case with scans that the model never saw taken for contrasts that it knows, each told in a note.

    A contrast that the case has is never replaced, and where several scans would be taken for one contrast none is.
    """
    wishes: dict[str, list[str]] = {}
    for name in sorted(case.scans):
        wanted = by_name.get(name) or (anything if name not in known else None)
        if wanted is not None and wanted != name:
            wishes.setdefault(wanted, []).append(name)
    scans, notes = dict(case.scans), list(case.notes)
    for wanted, names in sorted(wishes.items()):
        if wanted in case.scans:
            notes.append(f"{', '.join(names)} not taken as {wanted}: the case has one")
        elif len(names) > 1:
            notes.append(f"{', '.join(names)} could all be taken as {wanted}: say which, --as {names[0]}={wanted}")
        else:
            scans[wanted] = scans.pop(names[0])
            notes.append(f"{names[0]} is taken as {wanted} (--as); the model never saw {names[0]}")
    return replace(case, scans=dict(sorted(scans.items())), notes=tuple(notes))


# ------------------------------------------------------------------------------------------------- cases of a whole run


def told_apart(cases: Sequence[CaseInput]) -> list[CaseInput]:
    """The cases with names, and with subjects where two would write the same files, that are each there once."""
    made: list[CaseInput] = []
    names: set[str] = set()
    places: set[tuple[str, str, str]] = set()
    for case in cases:
        name, subject = case.case, case.subject
        place = (case.dataset, subject, case.session)
        if place in places:
            stem = next(iter(case.scans.values())).name.split(".")[0]
            base = f"sub-{''.join(c for c in stem if c.isalnum())}"
            options = itertools.chain([base], (f"{base}x{n}" for n in itertools.count(2)))
            subject = next(word for word in options if (case.dataset, word, case.session) not in places)
        if name in names:
            name = next(word for word in (f"{name}#{n}" for n in itertools.count(2)) if word not in names)
        names.add(name)
        places.add((case.dataset, subject, case.session))
        changed = (name, subject) != (case.case, case.subject)
        note = (f"another case has this name or place; written as {subject}",) if changed else ()
        made.append(replace(case, case=name, subject=subject, notes=case.notes + note))
    return made


def subsets(cases: Sequence[CaseInput], known: Sequence[str]) -> dict[str, list[CaseInput]]:
    """``"T1w+FLAIR"`` -> the cases that have these contrasts, cut to them, for every non-empty subset that a case has.

    Names are in the model's order; small subsets come first.
    """
    found: dict[tuple[str, ...], list[CaseInput]] = {}
    for case in cases:
        there = [name for name in known if name in case.scans]
        for n in range(1, len(there) + 1):
            for names in itertools.combinations(there, n):
                cut = {name: path for name, path in case.scans.items() if name in names}
                found.setdefault(names, []).append(replace(case, scans=cut))
    order = sorted(found, key=lambda names: (len(names), [known.index(name) for name in names]))
    return {"+".join(names): found[names] for names in order}
