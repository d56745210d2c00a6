"""A table of scans (CSV, TSV or Parquet), one row a scan, with a map for columns of other names.

Needed are the columns ``path`` (absolute, or relative to the table), ``subject`` and ``contrast``. Known beside them:
``session``, ``dataset``, ``brain_mask``, ``age``, ``sex``, ``health``, ``site``, ``scanner``, ``licence``, and ``label_<name>``
with the path of a label map. Every other column is kept as metadata.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core import contrasts
from ..core.errors import InputError, suggestion
from ..core.records import BAD, OK, Scan
from . import _people

SUFFIXES = (".csv", ".tsv", ".parquet")
NEEDED = ("path", "subject", "contrast")
PLAIN = ("health", "site", "scanner", "licence")


def recognises(root: Path) -> str | None:
    """Why ``root`` is a table of scans, or None. Looks at the columns' names only."""
    if not root.is_file() or root.suffix not in SUFFIXES:
        return None
    return "it is a table" if root.suffix != ".parquet" or "path" in _names(root) else None


def _names(root: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(root).names)


def read(
    root: Path,
    *,
    contrast_map: Mapping[str, str] | None = None,
    column_map: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Iterator[Scan]:
    """The rows of a table as scans; headers and voxels are not looked at.

    Args:
        root: the table.
        contrast_map: the table's spelling of a contrast -> a canonical name.
        column_map: our name of a column -> the table's (``{"path": "filename"}``).
        name: the dataset's name where the table has no such column; by default the file's.

    Raises:
        InputError: the table cannot be read, or a needed column is missing; the message suggests which might be meant.
    """
    root = Path(os.path.abspath(root))
    table = _load(root)
    wanted = dict(column_map or {})
    absent = sorted(set(wanted.values()) - set(table[0]) if table else ())
    if absent:
        raise InputError(f"the table has no column {absent[0]!r}", file=root, next_step=suggestion(absent[0], sorted(table[0])))
    theirs = {ours: wanted.get(ours, ours) for ours in (*NEEDED, "session", "dataset", "brain_mask", "age", "sex", *PLAIN)}
    for ours in NEEDED:
        if table and theirs[ours] not in table[0]:
            raise InputError(
                f"the table has no column {ours!r}", file=root, expected=", ".join(NEEDED), got=", ".join(sorted(table[0])),
                next_step=f"name it: --column {ours}=THEIR_NAME",
            )  # fmt: skip
    seen: dict[str, int] = {}
    for row in table:
        yield _scan(row, theirs, root, contrast_map or {}, name or root.stem, seen)


def _load(root: Path) -> list[dict[str, Any]]:
    import pandas as pd

    try:
        if root.suffix == ".parquet":
            frame = pd.read_parquet(root)
        else:
            frame = pd.read_csv(root, sep="\t" if root.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError("the table cannot be read", file=root, got=str(error).splitlines()[0]) from None
    return [{str(key): _people.value(cell) for key, cell in row.items()} for row in frame.to_dict("records")]


def _scan(
    row: dict[str, Any], theirs: dict[str, str], root: Path, contrast_map: Mapping[str, str], name: str, seen: dict[str, int]
) -> Scan:
    def get(ours: str) -> Any:
        return row.get(theirs[ours])

    def path(value: Any) -> str:
        return os.path.abspath(root.parent / str(value))

    dataset = str(get("dataset") or name)
    subject = str(get("subject"))
    subject = subject if subject.startswith("sub-") else f"sub-{subject}"
    session = str(get("session") or "")
    session = session if not session or session.startswith("ses-") else f"ses-{session}"
    raw = str(get("contrast"))
    contrast = contrast_map.get(raw) or contrasts.find(raw)
    base = "_".join(part for part in (subject, session, raw) if part)
    seen[f"{dataset}/{base}"] = count = seen.get(f"{dataset}/{base}", 0) + 1
    labels = {
        key.removeprefix("label_"): path(value) for key, value in row.items() if key.startswith("label_") and value is not None
    }
    used = set(theirs.values()) | {key for key in row if key.startswith("label_")}
    mask = get("brain_mask")
    return Scan(
        scan=f"{dataset}/{base}" if count == 1 else f"{dataset}/{base}-{count}", dataset=dataset, subject=f"{dataset}/{subject}",
        session=session, contrast=contrast or contrasts.UNKNOWN, contrast_raw=raw, path=path(get("path")),
        brain_mask=None if mask is None else path(mask), labels=labels, age=_people.age_years(get("age")), sex=_people.sex(get("sex")),
        columns={key: value for key, value in row.items() if key not in used and value is not None},
        status=OK if contrast else BAD, reasons=() if contrast else (_people.unknown_contrast(raw),),
        **{ours: None if get(ours) is None else str(get(ours)) for ours in PLAIN},
    )  # fmt: skip
