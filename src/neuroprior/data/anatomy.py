"""The table of anatomy on disk: its checks, which row a subject takes, and the vectors that training aims at.

One Parquet table, a row a candidate scan, with regional volumes in ml (``docs/formats.md``). A row is ``ok``, ``failed`` or ``missing``; of
a subject's ``ok`` rows exactly one is ``used``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from ..anatomy import FAILED, OK, rank
from ..core import artifacts
from ..core.config import Config
from ..core.errors import ArtifactError, ConfigError, InputError

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the table's layout."""

REGION = "volume:"
"""What the names of the columns with regional volumes begin with."""

TEXT = ("dataset", "subject", "session", "scan", "contrast", "contrast_raw", "source", "path", "status", "reason")

Form = Literal["raw", "fraction_of_icv", "z_scored"]


class Quality(Config):
    """What counts as plausible."""

    icv_low_ml: float = Field(900.0, gt=0)
    """Least plausible intracranial volume, in ml."""
    icv_high_ml: float = Field(2200.0, gt=0)
    """Largest plausible intracranial volume, in ml."""
    outlier_z: float = Field(6.0, gt=0)
    """A region is far off when the logarithm of its share of the intracranial volume lies more robust standard deviations from the median."""
    outlier_share: float = Field(0.1, ge=0, le=1)
    """A row is an outlier when more than this share of its regions is far off; 1 switches the check off."""
    outlier_rows: int = Field(10, ge=4)
    """With fewer rows in the table nobody can be called an outlier."""

    @model_validator(mode="after")
    def _in_order(self) -> Quality:
        if self.icv_low_ml >= self.icv_high_ml:
            raise ValueError("icv_low_ml must lie below icv_high_ml")
        return self


SMALLEST_ML = 0.05
"""Added to volumes before their logarithm: below it a volume is counting noise."""

NARROWEST = 0.02
"""Least robust standard deviation of a logarithm of a share."""


# --------------------------------------------------------------------------------------------------------------- checks


def judge(rows: Sequence[Mapping[str, Any]], quality: Quality) -> list[dict[str, Any]]:
    """The rows with those that are not plausible set to ``failed``, with a reason.

    Args:
        rows: with ``volumes`` (region -> ml), ``icv_ml``, ``status`` and ``reason``; a row that is not ``ok`` is left alone.
        quality: what is plausible.
    """
    judged = [dict(row) for row in rows]
    for row in judged:
        if row["status"] == OK:
            reason = _impossible(row["volumes"], row["icv_ml"], quality)
            if reason:
                row.update(status=FAILED, reason=reason)
    for place, reason in _outliers([row for row in judged if row["status"] == OK], quality):
        place.update(status=FAILED, reason=reason)
    return judged


def _impossible(volumes: Mapping[str, float], icv: float | None, quality: Quality) -> str | None:
    values = np.array(list(volumes.values()), dtype=np.float64)
    if not len(values):
        return "no volume was measured"
    if not (np.isfinite(values).all() and (values >= 0).all()):
        return "a volume is negative or no number"
    if icv is None:
        return None
    low, high = quality.icv_low_ml, quality.icv_high_ml
    if low <= icv <= high:
        return None
    told = f"the intracranial volume is not plausible (expected {low:g} to {high:g} ml, got {icv:.6g} ml)"
    if low <= icv / 1000 <= high:
        return f"{told}: these look like mm3 given as ml (of a table: --set units=mm3)"
    if low <= icv * 1000 <= high:
        return f"{told}: these look like ml given as mm3 (of a table: --set units=ml)"
    return told


def _outliers(rows: list[dict[str, Any]], quality: Quality) -> list[tuple[dict[str, Any], str]]:
    """Rows whose regions are far from the table's, with the reason; by the median and the median absolute deviation."""
    if quality.outlier_share >= 1:
        return []
    if len(rows) < quality.outlier_rows:
        logger.info("outliers are not looked for: %d rows, %d are needed", len(rows), quality.outlier_rows)
        return []
    names = sorted({name for row in rows for name in row["volumes"]})
    table = np.array([[row["volumes"].get(name, np.nan) for name in names] for row in rows], dtype=np.float64)
    whole = np.array([_whole(row) for row in rows])
    shares = np.log((table + SMALLEST_ML) / whole[:, None])
    known = np.isfinite(shares).sum(0) >= quality.outlier_rows
    shares, names = shares[:, known], [name for name, keep in zip(names, known, strict=True) if keep]
    if not names:
        return []
    middle = np.nanmedian(shares, axis=0)
    width = np.maximum(1.4826 * np.nanmedian(np.abs(shares - middle), axis=0), NARROWEST)
    z = (shares - middle) / width
    found = []
    for row, own in zip(rows, z, strict=True):
        far = np.abs(np.nan_to_num(own)) > quality.outlier_z
        if far.sum() > quality.outlier_share * np.isfinite(own).sum():
            worst = int(np.nanargmax(np.abs(own)))
            reason = f"an outlier: {far.sum()} of {np.isfinite(own).sum()} regions are far from the table's (most {names[worst]}, z = {own[worst]:+.1f})"
            found.append((row, reason))
    return found


def _whole(row: Mapping[str, Any]) -> float:
    return float(row["icv_ml"]) if row["icv_ml"] else float(sum(row["volumes"].values()))


def choose(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ``used`` set: of each subject's ``ok`` rows the one of the preferred contrast, and of those the first session."""
    chosen: dict[str, int] = {}
    order = sorted(
        range(len(rows)), key=lambda i: (rank(rows[i]["contrast"], rows[i]["contrast_raw"]), rows[i]["session"], rows[i]["scan"])
    )
    for i in order:
        if rows[i]["status"] == OK:
            chosen.setdefault(rows[i]["subject"], i)
    taken = set(chosen.values())
    return [{**row, "used": i in taken} for i, row in enumerate(rows)]


# -------------------------------------------------------------------------------------------------------------- on disk


def write_anatomy(rows: Sequence[Mapping[str, Any]], path: str | Path, note: Mapping[str, Any]) -> Path:
    """Write the table atomically, rows sorted by subject, session and scan.

    Args:
        rows: judged and chosen.
        path: of the table.
        note: what goes into the metadata beside artefact, version and units: source, its settings, what made it.
    """
    path = Path(path)
    regions = list(dict.fromkeys(name for row in rows for name in row["volumes"]))
    records = []
    for row in sorted(rows, key=lambda row: (row["subject"], row["session"], row["scan"], row["path"] or "")):
        provenance = dict(row["provenance"])
        fill = provenance.get("absent_ml") if row["volumes"] else None
        volumes = {f"{REGION}{name}": row["volumes"].get(name, fill) for name in regions}
        own = {name: row[name] for name in (*TEXT, "used", "icv_ml", "inputs_sha256")}
        own |= {"notes": list(row["notes"]), "provenance": json.dumps(provenance, sort_keys=True)}
        records.append({**own, **volumes})
    names = [*TEXT, "used", "icv_ml", "notes", "provenance", "inputs_sha256"]
    numbers = {"icv_ml", *(f"{REGION}{name}" for name in regions)}
    schema = pa.schema(
        [
            pa.field(
                name,
                pa.float64()
                if name in numbers
                else pa.bool_()
                if name == "used"
                else pa.list_(pa.string())
                if name == "notes"
                else pa.string(),
            )
            for name in (*names, *(f"{REGION}{name}" for name in regions))
        ],
        metadata={"neuroprior": json.dumps({"artifact": "anatomy", "version": VERSION, "units": "ml", **note})},
    )
    with artifacts.atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(records, schema=schema), temporary)
    return path


def read_rows(path: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a table, as :func:`write_anatomy` takes them, and its note.

    Raises:
        ArtifactError: the file is missing, is no table of anatomy, or another version wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(
            "there is no table of anatomy",
            file=path,
            next_step="make one: neuroprior anatomy index.parquet --out anatomy.parquet",
        )
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            "the table of anatomy cannot be read", file=path, expected="a Parquet table", got=str(error).splitlines()[0]
        ) from None
    note = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
    if note.get("artifact") != "anatomy" or note.get("version") != VERSION:
        raise ArtifactError(
            "this is no table of anatomy of this version", file=path, expected=f"anatomy version {VERSION}",
            got=f"{note.get('artifact', 'some other table')} version {note.get('version')}", next_step="run neuroprior anatomy again",
        )  # fmt: skip
    rows = []
    for record in table.to_pylist():
        row = {name: value for name, value in record.items() if not name.startswith(REGION)}
        row["volumes"] = {
            name.removeprefix(REGION): value for name, value in record.items() if name.startswith(REGION) and value is not None
        }
        row["provenance"] = json.loads(row["provenance"])
        rows.append(row)
    return rows, note


# -------------------------------------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Targets:
    """One vector a subject, the same for every contrast and time point.

    Attributes:
        form: how the volumes are expressed (:meth:`AnatomyTable.targets`).
        names: of the vector's elements: regions, then ``icv``.
        vectors: subject -> float32 (names,).
        mean, scale: (names,) float64 that were subtracted and divided by; 0 and 1 unless ``z_scored``.
    """

    form: Form
    names: tuple[str, ...]
    vectors: Mapping[str, np.ndarray]
    mean: np.ndarray
    scale: np.ndarray

    def vector(self, subject: str) -> np.ndarray | None:
        """A subject's (names,) float32 vector; None where its anatomy is missing or incomplete."""
        return self.vectors.get(subject)


@dataclass(frozen=True)
class AnatomyTable:
    """The rows that are used: one a subject.

    Attributes:
        subjects: namespaced, as in the index.
        regions: names of the columns of ``volumes_ml``.
        volumes_ml: (subjects, regions) float64, NaN where a region was not measured.
        icv_ml: (subjects,) float64, NaN where it is not known.
        source: where the volumes come from.
    """

    subjects: tuple[str, ...]
    regions: tuple[str, ...]
    volumes_ml: np.ndarray
    icv_ml: np.ndarray
    source: str

    @classmethod
    def read(cls, path: str | Path) -> AnatomyTable:
        """The used rows of ``anatomy.parquet``.

        Raises:
            ArtifactError: the file is missing, is no table of anatomy, another version wrote it, or a subject is used twice.
            InputError: no row is used.
        """
        rows, note = read_rows(path)
        used = [row for row in rows if row["used"]]
        if not used:
            raise InputError(
                "no subject of the table has usable anatomy", file=path, next_step="read the reasons in its column 'reason'"
            )
        subjects = [row["subject"] for row in used]
        if len(set(subjects)) < len(subjects):
            double = next(name for name in subjects if subjects.count(name) > 1)
            raise ArtifactError("a subject is used twice", file=path, got=double, next_step="run neuroprior anatomy again")
        regions = tuple(dict.fromkeys(name for row in used for name in row["volumes"]))
        volumes = np.array([[row["volumes"].get(name, np.nan) for name in regions] for row in used], dtype=np.float64)
        icv = np.array([np.nan if row["icv_ml"] is None else row["icv_ml"] for row in used], dtype=np.float64)
        return cls(tuple(subjects), regions, volumes, icv, note["source"])

    def targets(self, form: Form, fit: Iterable[str]) -> Targets:
        """The vectors that training aims at.

        Args:
            form: ``raw``: volumes and intracranial volume in ml. ``fraction_of_icv``: volumes as shares of the intracranial volume, which itself
                is given in litres. ``z_scored``: those shares and the intracranial volume, each less the mean and divided by the standard
                deviation of the subjects in ``fit``.
            fit: the subjects that statistics may be taken from (the training split); others without anatomy do no harm.

        Regions that fewer than half of ``fit`` have are dropped, and with ``z_scored`` those without spread in ``fit``; the log names them. A
        subject that lacks one of the others has no vector.

        Raises:
            ConfigError: the form is unknown, or needs an intracranial volume that the table does not have.
            InputError: no subject of ``fit`` (two for ``z_scored``) has anatomy.
        """
        if form not in get_args(Form):
            raise ConfigError(f"unknown form of targets {form!r}", expected=", ".join(get_args(Form)))
        if form != "raw" and not np.isfinite(self.icv_ml).any():
            raise ConfigError(
                f"targets as {form} need an intracranial volume",
                got=f"none in the table (source {self.source})",
                next_step="use raw",
            )
        wanted = set(fit)
        fitting = np.array([subject in wanted for subject in self.subjects])
        least = 2 if form == "z_scored" else 1
        if fitting.sum() < least:
            raise InputError(
                "too few subjects of the training split have anatomy", expected=f"at least {least}", got=int(fitting.sum()),
                next_step="are the subjects named as in the index (dataset/sub-01)?",
            )  # fmt: skip
        values, names = self.volumes_ml, [*self.regions]
        if form != "raw":
            values = values / self.icv_ml[:, None]
        if np.isfinite(self.icv_ml).any():
            values = np.concatenate([values, self.icv_ml[:, None] / (1000 if form == "fraction_of_icv" else 1)], axis=1)
            names.append("icv")
        kept = np.isfinite(values[fitting]).mean(0) >= 0.5
        _tell_dropped(names, kept, "fewer than half of the training subjects have them")
        mean, scale = np.zeros(values.shape[1]), np.ones(values.shape[1])
        if form == "z_scored":
            complete = values[fitting]
            mean[kept], scale[kept] = np.nanmean(complete[:, kept], axis=0), np.nanstd(complete[:, kept], axis=0)
            flat = kept & (scale <= 1e-9 * np.maximum(np.abs(mean), 1e-9))
            _tell_dropped(names, ~flat, "they have no spread in the training subjects")
            kept &= ~flat
        values = ((values - mean) / np.where(kept, scale, 1))[:, kept].astype(np.float32)
        whole = np.isfinite(values).all(1)
        if (~whole).any():
            logger.info("%d of %d subjects lack a region and have no vector", int((~whole).sum()), len(whole))
        vectors = {subject: row for subject, row, ok in zip(self.subjects, values, whole, strict=True) if ok}
        return Targets(form, tuple(n for n, keep in zip(names, kept, strict=True) if keep), vectors, mean[kept], scale[kept])


def _tell_dropped(names: Sequence[str], kept: np.ndarray, why: str) -> None:
    dropped = [name for name, keep in zip(names, kept, strict=True) if not keep]
    if dropped:
        some = ", ".join(dropped[:8]) + (" ..." if len(dropped) > 8 else "")
        logger.info("%d regions are dropped from the targets (%s): %s", len(dropped), why, some)
