"""Which datasets lie under some roots, and which reader reads each: what a folder is, is asked of every reader."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A dataset: where it lies, the name of its rows, and who reads it, and why."""

    root: Path
    name: str | None
    module: Any
    why: str


def sources_of(roots: list[Path], reader: str) -> list[Source]:
    """Every dataset under the roots, each with a name of its own."""
    from ..core.errors import InputError
    from ..readers import bids
    from .index import is_index

    found: list[Source] = []
    for root in roots:
        root = Path(os.path.abspath(root))
        if root.suffix == ".parquet" and is_index(root):
            found.append(Source(root, None, None, "it is an index"))
        else:
            found += [Source(folder, None, module, why) for folder, module, why in _datasets(root, reader)]
    twice = [str(root) for root, n in Counter(source.root for source in found).items() if n > 1]
    if twice:
        raise InputError("a dataset is given twice", file=twice[0], next_step="give it once")

    def called(source: Source) -> str:
        return source.root.name if source.module.__name__.endswith(".dicom") else bids.dataset_name(source.root)

    names = Counter(called(source).casefold() for source in found if source.module is not None)
    out, used = [], set(names)
    for source in found:
        if source.module is None or names[called(source).casefold()] == 1:
            out.append(source)
            continue
        name = called(source)
        longer = f"{source.root.resolve().parent.name}-{name}"
        number = 1
        while (longer if number == 1 else f"{longer}-{number}").casefold() in used:
            number += 1
        longer = longer if number == 1 else f"{longer}-{number}"
        used.add(longer.casefold())
        if source.module.__name__.endswith(".dicom"):  # its folder may be named after a patient
            logger.warning("several datasets have one name; that of a DICOM folder gets the name of the folder above in front")
        else:
            logger.warning("several datasets are called %r; that of %s is called %r", name, source.root, longer)
        out.append(Source(source.root, longer, source.module, source.why))
    return out


def _datasets(root: Path, reader: str) -> list[tuple[Path, Any, str]]:
    """The datasets in a folder: itself, or those among its children, each with the reader that recognises it, and why."""
    from ..core import shelf
    from ..core.errors import InputError

    if not root.exists():
        raise InputError("there is no such folder", file=root)
    if reader != "auto":
        return [(root, shelf.load("readers", reader), "asked for")]
    # the most particular reader first: bids recognises nearly everything; DICOM may lie in every dataset and is asked for last
    order = sorted(shelf.names("readers"), key=lambda name: (name == "bids", name))
    modules = [shelf.load("readers", name) for name in order if name != "dicom"]
    dicom = shelf.load("readers", "dicom")

    def recognised(folder: Path) -> tuple[Any, str] | None:
        for module in modules:
            try:
                why = module.recognises(folder)
            except OSError as error:
                logger.warning("%s cannot be looked into: %s", folder, error.strerror)
                return None
            if why:
                return module, why
        return None

    found = recognised(root)
    if found is not None:
        return [(root, found[0], "asked for" if root.is_file() else found[1])]
    children = (
        [child for child in sorted(root.iterdir()) if child.is_dir() and not child.name.startswith(".")] if root.is_dir() else []
    )
    told = [(child, *one) for child in children if (one := recognised(child)) is not None]
    if not told and (why := dicom.recognises(root)):
        return [(root, dicom, why)]
    theirs = {folder for folder, _, _ in told}
    rest = [child for child in children if child not in theirs and not (told and child.name == "sourcedata")]
    told = sorted([*told, *((child, dicom, why) for child in rest if (why := dicom.recognises(child)))], key=lambda one: one[0])
    if not told:
        raise InputError(
            "no dataset was recognised here", file=root, expected="a BIDS dataset, a folder of them, DICOM files, or a table of scans",
            got="an empty folder" if root.is_dir() and not any(root.iterdir()) else None,
            next_step="give the folder that holds sub-*, or a table: neuroprior index scans.csv --reader table",
        )  # fmt: skip
    others = [child.name for child in children if child not in {folder for folder, _, _ in told}]
    if any(module is dicom for _, module, _ in told):  # such folders may be named after patients
        logger.info(
            "%d datasets were found in a folder, %d of them DICOM", len(told), sum(module is dicom for _, module, _ in told)
        )
        if others:
            logger.warning("no reader recognises %d other folders: a dataset further down must be given by itself", len(others))
    else:
        logger.info(
            "%s holds %d datasets: %s%s",
            root,
            len(told),
            ", ".join(child.name for child, _, _ in told[:10]),
            " ..." * (len(told) > 10),
        )
        if others:
            logger.info(
                "no reader recognises %d other folders: %s%s", len(others), ", ".join(others[:10]), " ..." * (len(others) > 10)
            )
    if dicom.marked(root):
        logger.warning("DICOM files that lie beside the folders of datasets are left out: move them into a folder of their own")
    return told
