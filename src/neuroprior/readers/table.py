"""A table of scans (CSV, TSV or Parquet), one row a scan, with a map for columns of other names.

Needed are the columns ``path`` (absolute, or relative to the table), ``subject`` and ``contrast``. Known beside them:
``session``, ``dataset``, ``brain_mask``, ``licence``, and ``label_<name>`` with the path of a label map. Paths and identifiers are taken as
the text that they are: ``1E5`` and ``100000`` are two people. A row that lacks one is bad, and says so.

Ages, sexes, health, sites, scanners and splits are understood as in a BIDS participants table, with the data dictionary (``scans.json`` beside
``scans.csv``) where there is one. Every other column is kept as metadata, but for those that say who somebody is.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core import contrasts
from ..core.errors import InputError, LeakageError, suggestion
from ..core.records import BAD, OK, Scan
from . import _people

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".parquet")
NEEDED = ("path", "subject", "contrast")
FACTS = ("age", "sex", "health", "site", "scanner", "split")


def recognises(root: Path) -> str | None:
    """Why ``root`` is a table of scans, or None. Looks at the columns' names only."""
    if not root.is_file() or root.suffix.lower() not in SUFFIXES:
        return None
    return "it is a table" if root.suffix.lower() != ".parquet" or "path" in _names(root) else None


def _names(root: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(root).names)


def read(
    root: Path,
    *,
    contrast_map: Mapping[str, str] | None = None,
    column_map: Mapping[str, str] | None = None,
    name: str | None = None,
    tell: Callable[[str], None] = logger.info,
) -> Iterator[Scan]:
    """The rows of a table as scans; headers and voxels are not looked at.

    Args:
        root: the table.
        contrast_map: the table's spelling of a contrast -> a canonical name.
        column_map: our name of a column -> the table's (``{"path": "filename"}``).
        name: the dataset's name where the table has no such column; by default the file's.
        tell: where to say what was left out or not understood.

    Raises:
        InputError: the table cannot be read, or a needed column is missing; the message suggests which might be meant.
        LeakageError: a subject's rows stand in different splits.
    """
    root = Path(os.path.abspath(root))
    table = _load(root)
    tell = _people.once(tell)
    wanted = dict(column_map or {})
    absent = sorted(set(wanted.values()) - set(table[0]) if table else ())
    if absent:
        raise InputError(f"the table has no column {absent[0]!r}", file=root, next_step=suggestion(absent[0], sorted(table[0])))
    theirs = {ours: wanted.get(ours, ours) for ours in (*NEEDED, "session", "dataset", "brain_mask", "licence", *FACTS)}
    for ours in NEEDED:
        if table and theirs[ours] not in table[0]:
            raise InputError(
                f"the table has no column {ours!r}", file=root, expected=", ".join(NEEDED), got=", ".join(sorted(table[0])),
                next_step=f"name it: --column {ours}=THEIR_NAME",
            )  # fmt: skip
    for ours in ("subject", "session"):
        if _people.identifying(theirs[ours]):
            tell(
                f"{root}: {ours}s are called as the column {theirs[ours]!r} says, which may tell who somebody is: use a number of your own"
            )
    people = [_person(row, theirs) for row in table]

    def say(text: str) -> None:
        tell(f"{root}: {text}")

    dictionary = _people.distrusted(people, _dictionary(root, theirs, tell), say)
    sessions: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in table:
        sessions[_who(row, theirs, name or root.stem)].add(_people.raw(row.get(theirs["session"])))
    seen: dict[str, int] = {}
    splits: dict[str, str] = {}
    for number, (row, person) in enumerate(zip(table, people), start=1):
        several = len(sessions[_who(row, theirs, name or root.stem)]) > 1
        facts = _people.facts(person, dictionary, say)
        scan = _scan(row, theirs, root, contrast_map or {}, name or root.stem, seen, number, several, facts)
        split = splits.setdefault(scan.subject, scan.split)
        if split != scan.split and scan.status != BAD:
            raise LeakageError(
                f"{scan.subject} stands in more than one split", file=root, expected="one split for all scans of a subject",
                got=f"{split or 'none'} and, in row {number}, {scan.split or 'none'}", next_step="mend the column split",
            )  # fmt: skip
        yield scan


def _load(root: Path) -> list[dict[str, Any]]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if root.suffix.lower() == ".parquet":  # not through pandas, which makes the ids of a column with a gap into 1.0 and 2.0
            rows = pq.ParquetFile(root).read().to_pylist()
        else:
            separator = "\t" if root.suffix.lower() == ".tsv" else ","
            rows = pd.read_csv(root, sep=separator, dtype=str, keep_default_na=False).to_dict("records")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError("the table cannot be read", file=root, got=(str(error).splitlines() or ["damaged"])[0]) from None
    kept = (str, int, float, bool, type(None))
    return [{str(key): cell if isinstance(cell, kept) else str(cell) for key, cell in row.items()} for row in rows]


def _person(row: Mapping[str, Any], theirs: Mapping[str, str]) -> dict[str, Any]:
    """What a row says of the person and the scan: no paths and no identifiers, and facts under our names."""
    places = {theirs[ours] for ours in theirs if ours not in FACTS} | {key for key in row if key.startswith("label_")}
    named = {theirs[ours]: ours for ours in FACTS}
    return {named.get(key, key): cell for key, cell in row.items() if key not in places and _people.value(cell) is not None}


def _dictionary(root: Path, theirs: Mapping[str, str], tell: Callable[[str], None]) -> dict[str, Any]:
    """The data dictionary beside the table, under our names; an age's unit may be told by the name of its column alone."""
    found = _people.read_description(root.with_suffix(".json"), tell)
    found |= {ours: found[theirs[ours]] for ours in FACTS if theirs[ours] in found}
    if theirs["age"] != "age" and "age" not in found and (unit := _people.unit_in(theirs["age"])):
        found["age"] = {"Units": unit}
    return found


def _who(row: Mapping[str, Any], theirs: Mapping[str, str], name: str) -> tuple[str, str]:
    subject = _people.raw(row.get(theirs["subject"]))
    return _people.raw(row.get(theirs["dataset"])) or name, subject.removeprefix("sub-")


def _scan(
    row: Mapping[str, Any], theirs: Mapping[str, str], root: Path, contrast_map: Mapping[str, str], name: str, seen: dict[str, int], number: int,
    several: bool, facts: dict[str, Any],
) -> Scan:  # fmt: skip
    def get(ours: str) -> str:
        return _people.raw(row.get(theirs[ours]))

    def path(text: str) -> str:
        return os.path.abspath(root.parent / text)

    dataset, subject = _who(row, theirs, name)
    session = get("session")
    session = session if not session or session.startswith("ses-") else f"ses-{session}"
    raw = get("contrast")
    contrast = contrast_map.get(raw) or contrasts.find(raw) if raw else None
    problems = [f"row {number} of the table has no {ours}" for ours in NEEDED if not get(ours)]
    if several and not session:
        problems.append(f"row {number} of the table has no session, and other rows of the subject have one")
    if raw and contrast is None:
        problems.append(_people.unknown_contrast(raw))
    base = "_".join(part for part in (f"sub-{subject}", session, raw) if part) if subject else f"row-{number}"
    seen[f"{dataset}/{base}"] = count = seen.get(f"{dataset}/{base}", 0) + 1
    mask = get("brain_mask")
    return Scan(
        scan=f"{dataset}/{base}" if count == 1 else f"{dataset}/{base}-{count}", dataset=dataset,
        subject=f"{dataset}/sub-{subject}" if subject else f"{dataset}/?", session=session, contrast=contrast or contrasts.UNKNOWN, contrast_raw=raw,
        path=path(get("path")) if get("path") else str(root), brain_mask=path(mask) if mask else None,
        labels={key.removeprefix("label_"): path(_people.raw(cell)) for key, cell in row.items() if key.startswith("label_") and _people.raw(cell)},
        licence=get("licence") or None, status=BAD if problems else OK, reasons=tuple(problems), **facts,
    )  # fmt: skip
