"""SynthSeg: the table of volumes that it writes with ``--vol``, or its label maps.

Billot et al., SynthSeg: segmentation of brain MRI scans of any contrast and resolution without retraining, Medical Image Analysis 2023.
The table has a row an image (its file name without suffix), volumes in mm3 and the column ``total intracranial``, which becomes the
intracranial volume; with ``--parc`` also the 68 cortical areas. Without a table the maps are found as by ``labelmap``; their ids are known
here, and the intracranial volume is the sum of all regions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..core.config import Config as Base
from ..core.errors import InputError, suggestion
from ..core.records import Scan
from . import FAILED, Anatomy, Candidate, labelmap
from ._matching import candidate, first_of_each_session, lone_sessions, session_names, stem

VERSION = 1

_PAIRED = {
    2: "cerebral white matter", 3: "cerebral cortex", 4: "lateral ventricle", 5: "inferior lateral ventricle", 7: "cerebellum white matter",
    8: "cerebellum cortex", 10: "thalamus", 11: "caudate", 12: "putamen", 13: "pallidum", 17: "hippocampus", 18: "amygdala",
    26: "accumbens area", 28: "ventral DC",
}  # fmt: skip
_RIGHT = {
    2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54, 26: 58, 28: 60,
}  # fmt: skip
NAMES: dict[int, str] = {
    **{i: f"left {name}" for i, name in _PAIRED.items()},
    **{_RIGHT[i]: f"right {name}" for i, name in _PAIRED.items()},
    14: "3rd ventricle", 15: "4th ventricle", 16: "brain-stem", 24: "csf",
}  # fmt: skip
"""Id -> region, as SynthSeg numbers and names them (the ids are FreeSurfer's)."""

INTRACRANIAL = "total intracranial"

Unit = Literal["mm3", "ml"]


class Config(Base):
    """How to read a table of volumes, or which maps to count."""

    units: Unit = "mm3"
    """Of the table; SynthSeg writes mm3."""
    columns: dict[str, str] = Field(default_factory=dict)
    """SynthSeg's name of a column -> the table's, where it was renamed; the column of image names is ``subject``."""
    label: str | None = None
    """Without a table: name of the map in the index's ``labels``."""
    unnamed: Literal["refuse", "by_id", "drop"] = "refuse"
    """What becomes of ids in a map that are not SynthSeg's."""


def find(scans: Sequence[Scan], files: Path | None, config: Config) -> list[Candidate]:
    """The row or the map of every scan; rows of the table that belong to none are candidates of their own.

    Raises:
        InputError: the table cannot be read, lacks a column or has one that SynthSeg does not write.
    """
    if files is None or files.is_dir():
        return labelmap.find(scans, files, _maps(config))
    rows = _read(files, config)
    doubles = _disagreeing(rows)
    lone = lone_sessions(scans)
    firsts = first_of_each_session(scans)
    taken: set[str] = set()
    found = []
    for scan in scans:
        names = [stem(scan.path)]
        if firsts[scan.scan] is scan:
            names += session_names(scan, lone[scan.subject])
        name = next((name for name in names if name in rows), None)
        if name is None:
            other = "; the session's anatomy stands with another scan" if firsts[scan.scan] is not scan else ""
            found.append(candidate(scan, reason=f"the table has no row of this scan{other}"))
            continue
        taken.add(name)
        found.append(_candidate(scan, files, rows[name][0], name in doubles, name))
    for name in sorted(set(rows) - taken):
        found.append(
            Candidate("", "", "", "", "", "", str(files.absolute()), (str(files.absolute()),), status=FAILED,
                      reason=f"no scan of the index belongs to the table's row {name!r}")
        )  # fmt: skip
    return found


def measure(candidate: Candidate, config: Config) -> Anatomy:
    """The volumes in a table's row or a map.

    Raises:
        InputError: a volume is missing, negative or no number, or the map cannot be used.
    """
    assert candidate.path is not None
    if not candidate.given:
        return labelmap.count(Path(candidate.path), NAMES, _maps(config))
    wrong = [name for name, value in candidate.given.items() if not math.isfinite(value) or value < 0]
    if wrong:
        raise InputError(
            f"{len(wrong)} volumes of the row are missing or negative", file=candidate.path, got=", ".join(wrong[:5]),
            next_step="run SynthSeg on this scan again",
        )  # fmt: skip
    per_ml = 1000.0 if config.units == "mm3" else 1.0
    volumes = {name: value / per_ml for name, value in candidate.given.items()}
    return Anatomy(volumes, volumes.pop(INTRACRANIAL), {"tool": "SynthSeg", "units": config.units})


def _maps(config: Config) -> labelmap.Config:
    return labelmap.Config(label=config.label, unnamed=config.unnamed)


def _read(path: Path, config: Config) -> dict[str, list[Mapping[str, float]]]:
    """Image name -> its rows.

    Raises:
        InputError: the table cannot be read, lacks a column or has one that SynthSeg does not write.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError("the table of volumes cannot be read", file=path, got=str(error).splitlines()[0]) from None
    theirs = [str(column) for column in table.columns]
    absent = [name for name in config.columns.values() if name not in theirs]
    if absent:
        raise InputError(f"the table has no column {absent[0]!r}", file=path, next_step=suggestion(absent[0], theirs))
    ours = {column: name for name, column in config.columns.items()}
    who = config.columns.get("subject", theirs[0] if theirs else "")
    named = {column: ours.get(column, _canonical(column)) for column in theirs if column != who}
    needed = [*NAMES.values(), INTRACRANIAL]
    missing = [name for name in needed if name not in named.values()]
    strange = [column for column, name in named.items() if name not in needed and not name.startswith(("ctx-lh-", "ctx-rh-"))]
    if missing or strange:
        hint = suggestion(missing[0], strange) if missing and strange else "is it SynthSeg's table of volumes (--vol)?"
        raise InputError(
            f"{len(missing)} columns are missing, {len(strange)} are not SynthSeg's", file=path,
            expected=", ".join(missing[:5]) or "SynthSeg's names", got=", ".join(strange[:5]) or "none of them",
            next_step=f"{hint} Say which is which: --set 'columns={{{missing[0] if missing else 'OURS'}: THEIRS}}'",
        )  # fmt: skip
    twice = [name for name, n in Counter(named.values()).items() if n > 1]
    if twice:
        raise InputError("two columns mean the same", file=path, got=twice[0])
    rows: dict[str, list[Mapping[str, float]]] = {}
    for record in table.to_dict("records"):
        name = stem(str(record[who]).strip()).removesuffix("_synthseg")
        if name:
            rows.setdefault(name, []).append({ours_: _number(record[column]) for column, ours_ in named.items()})
    return rows


def _canonical(column: str) -> str:
    text = " ".join(column.split())
    return _BY_FOLD.get(text.casefold(), text)


_BY_FOLD = {name.casefold(): name for name in (*NAMES.values(), INTRACRANIAL)}


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _disagreeing(rows: Mapping[str, list[Mapping[str, float]]]) -> set[str]:
    """The names that stand in the table more than once with other numbers."""
    return {name for name, copies in rows.items() if any(copy != copies[0] for copy in copies[1:])}


def _candidate(scan: Scan, path: Path, given: Mapping[str, float], double: bool, name: str) -> Candidate:
    where = str(path.absolute())
    if double:
        return candidate(
            scan, where, inputs=(where,), status=FAILED, reason=f"the table lists {name!r} more than once, with different volumes"
        )
    return candidate(scan, where, given={**given})
