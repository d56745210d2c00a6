"""The records that cross borders: what an index row, a session, a prediction and a score are.

They are plain and small; tables of them live on disk as Parquet or TSV (``docs/formats.md``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

CHECKS = ("geometry", "intensity", "label", "duplicates", "faces")
"""What an index looks at."""

OK, WARNING, BAD = "ok", "warning", "bad"
"""The three values of an index row's ``status``; a ``bad`` row is kept with its reason and never used."""


@dataclass(frozen=True)
class Scan:
    """One image file as an index row.

    Attributes:
        scan: unique name, ``dataset/file-stem``.
        dataset: the dataset's name.
        subject: namespaced, ``dataset/sub-01``: the unit of every split.
        session: ``ses-1``, or an empty string where the dataset has no sessions.
        contrast: canonical name (``core.contrasts``), or ``unknown``.
        contrast_raw: as the dataset spells it.
        path: absolute path of the image.
        brain_mask: absolute path of a brain mask in this scan's world, or None.
        labels: label name -> absolute path (lesion masks, segmentations) in this scan's world.
        age: years, or None.
        sex: ``F``, ``M`` or None.
        health: as given (``healthy``, ``ms`` ...), or None.
        site, scanner, licence: as given, or None.
        columns: every other column of the participants and sessions tables, values as text or number.
        shape: voxels along each stored axis, or None where the header cannot be read.
        spacing_mm: along each stored axis.
        affine: 16 numbers, row by row, voxel -> RAS+ mm, repaired where the file's was not orthonormal.
        orientation: axis codes such as ``LAS``.
        dtype: on disk.
        size_bytes, mtime_ns: of the file, for incremental indexing.
        status: ``ok``, ``warning`` or ``bad``.
        reasons: what is wrong or was repaired, one sentence each.
        split: ``train``, ``val``, ``test`` or an empty string.
        checks: what was looked at (``geometry``, ``intensity``, ``label``, ``duplicates``, ``faces``) -> ``ok``, or what was found; columns
            ``check_NAME`` in the table, empty where nobody looked.
    """

    scan: str
    dataset: str
    subject: str
    session: str
    contrast: str
    contrast_raw: str
    path: str
    brain_mask: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    age: float | None = None
    sex: str | None = None
    health: str | None = None
    site: str | None = None
    scanner: str | None = None
    licence: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    affine: tuple[float, ...] | None = None
    orientation: str | None = None
    dtype: str | None = None
    size_bytes: int | None = None
    mtime_ns: int | None = None
    status: str = OK
    reasons: tuple[str, ...] = ()
    split: str = ""
    checks: Mapping[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The record as a flat table row: mappings become JSON text, tuples become lists."""
        row: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "checks":
                row |= {f"check_{name}": value.get(name) for name in CHECKS}
                continue
            if isinstance(value, Mapping):
                value = json.dumps(dict(value), sort_keys=True, ensure_ascii=False)
            elif isinstance(value, tuple):
                value = list(value)
            row[item.name] = value
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Scan:
        """The record of a table row (the inverse of :meth:`row`; missing values become None)."""
        found = {name: row.get(f"check_{name}") for name in CHECKS}
        values: dict[str, Any] = {"checks": {name: text for name, text in found.items() if isinstance(text, str)}}
        for item in fields(cls):
            if item.name not in row or item.name == "checks":
                continue
            value = row[item.name]
            if item.name in ("labels", "columns"):
                value = json.loads(value) if isinstance(value, str) and value else {}
            elif item.name in ("shape", "spacing_mm", "affine", "reasons"):
                value = None if value is None or isinstance(value, float) else tuple(v for v in value)
                if item.name == "reasons":
                    value = value or ()
                elif value is not None:
                    value = tuple(int(v) if item.name == "shape" else float(v) for v in value)
            elif isinstance(value, float) and value != value:
                value = None
            if item.name in ("size_bytes", "mtime_ns") and value is not None:
                value = int(value)
            values[item.name] = value
        for name in ("session", "split"):
            values[name] = values.get(name) or ""
        return cls(**values)

    def value(self, column: str) -> Any:
        """The value of a named field or of any other participants column; None where there is none."""
        if column in {item.name for item in fields(self)}:
            return getattr(self, column)
        return self.columns.get(column)


@dataclass(frozen=True)
class Score:
    """One number: a case under a metric.

    Attributes:
        model: what made the prediction.
        task, target: for example ``segmentation`` of ``lesion``.
        case, subject: who was judged; ``case`` is ``all`` for a metric of the whole set (AUROC).
        metric: name on the metrics shelf.
        region: label name, size bin, or ``all``.
        condition: ``clean``, a contrast subset, or a corruption.
        value: the number, or None where the metric is undefined for this case.
        low, high: 95 % interval, where the number has one of its own.
        n: how many observations the number rests on.
        note: why a value is missing or special.
    """

    model: str
    task: str
    target: str
    case: str
    subject: str
    metric: str
    region: str
    condition: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 1
    note: str = ""
