"""What a user may hand to ``predict``: scans by contrast name, image files, a BIDS folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core import contrasts, shelf
from ..core.errors import InputError
from ..core.records import BAD, Scan
from .predictor import CaseInput

IMAGE_SUFFIXES = (".nii", ".nii.gz")


def from_scans(scans: Iterable[Scan]) -> list[CaseInput]:
    """Index rows grouped into cases, one a session, in order of first appearance; bad rows and unknown contrasts are left out.

    Of two scans of one contrast in a session the first is taken.
    """
    grouped: dict[tuple[str, str], list[Scan]] = {}
    for scan in scans:
        if scan.status != BAD and scan.contrast != contrasts.UNKNOWN:
            grouped.setdefault((scan.subject, scan.session), []).append(scan)
    cases = []
    for (subject, session), rows in grouped.items():
        images: dict[str, Path] = {}
        for row in rows:
            images.setdefault(row.contrast, Path(row.path))
        case = f"{subject}/{session}" if session else subject
        cases.append(CaseInput(case, rows[0].dataset, subject, session, images))
    return cases


def contrast_of_file(path: Path) -> str | None:
    """The canonical contrast in a file's BIDS name (``sub-01_ce-gadolinium_T1w.nii.gz``), or None."""
    parts = path.name.split(".")[0].split("_")
    entities = dict(part.split("-", 1) for part in parts if "-" in part)
    return contrasts.from_bids(parts[-1], entities)


def from_arguments(arguments: Sequence[str], known: Sequence[str]) -> list[CaseInput]:
    """Cases from the command line's inputs.

    Args:
        arguments: ``CONTRAST=FILE`` pairs (together one case), image files (one case each, contrast from the file's BIDS
            name, or the model's only one), or folders of a layout that a reader recognises.
        known: the model's contrasts.

    Raises:
        InputError: a path is not there, a folder holds no scans, or a file's contrast cannot be told.
    """
    named: dict[str, Path] = {}
    cases: list[CaseInput] = []
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        if equals and not Path(argument).exists():
            canonical = contrasts.canonical(name)
            named[canonical] = _existing(Path(rest))
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
            cases.append(_single(path, known))
    if named:
        first = next(iter(named.values()))
        stem = first.name.split(".")[0]
        subject = next(
            (part for part in stem.split("_") if part.startswith("sub-")), f"sub-{''.join(c for c in stem if c.isalnum())}"
        )
        cases.append(CaseInput(subject, "", subject, "", named))
    return cases


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError("there is no such input", file=path, expected="a scan, a BIDS folder, an index, or CONTRAST=FILE")
    return path


def _single(path: Path, known: Sequence[str]) -> CaseInput:
    if not path.name.endswith(IMAGE_SUFFIXES):
        raise InputError("this is no NIfTI file", file=path, expected=" or ".join(IMAGE_SUFFIXES))
    contrast = contrast_of_file(path)
    if contrast is None and len(known) == 1:
        contrast = known[0]
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
    return CaseInput(stem, "", subject, session, {contrast: path})


def _read_folder(path: Path) -> list[Scan]:
    for name in shelf.names("readers"):
        reader = shelf.load("readers", name)
        if reader.recognises(path):
            return list(reader.read(path))
    raise InputError(
        "no reader recognises this folder", file=path, expected="a BIDS dataset",
        next_step="index it first (neuroprior index), or name the scans: T1w=scan.nii.gz",
    )  # fmt: skip
