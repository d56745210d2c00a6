"""Predictions on disk: a BIDS derivative with one TSV row a case."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..core import artifacts, nifti
from ..core.errors import ConfigError
from .reading import CaseInput

TABLE, DESCRIPTION = "predictions.tsv", "predictions.json"

COLUMNS = (
    "case", "dataset", "subject", "session", "task", "target", "contrasts", "missing", "reference", "input", "output", "value",
    "value_std", "value_low", "value_high", "probability", "confidence", "flags", "status", "reason", "seconds", "peak_memory_mb",
    "peak_gpu_memory_mb", "computed_on", "inputs_sha256", "model_sha256", "settings_sha256", "output_sha256",
)  # fmt: skip
"""Fixed columns of ``predictions.tsv``; a classification adds ``p_<class>``, a segmentation ``volume_ml_<label>`` with ``_low`` and
``_high``."""

MAPS = ("probseg", "entropy", "mutualinfo")
"""What may lie beside a mask: foreground probability, entropy, and what the passes disagree on; all in 0..1."""


def mask_path(out: Path, case: CaseInput, target: str, n_values: int, *, several_datasets: bool, kind: str = "mask") -> Path:
    """Where a case's mask goes: ``sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz``, or ``desc-..._dseg`` for many labels.

    With several datasets in one run the dataset's name is a folder above, so that equal subject names do not collide.
    """
    subject = case.subject.rsplit("/", 1)[-1]
    parts = [subject, *([case.session] if case.session else [])]
    folder = out / case.dataset if several_datasets and case.dataset else out
    word = "".join(letter for letter in target if letter.isalnum())
    if kind == "mask":
        ending = f"label-{word}_mask" if n_values == 1 else f"desc-{word}_dseg"
    else:
        ending = f"label-{word}_{kind}"
    return folder.joinpath(*parts, "anat", f"{'_'.join(parts)}_{ending}.nii.gz")


def write_description(out: Path, model: Mapping[str, Any], command: Mapping[str, Any]) -> None:
    """``dataset_description.json`` (BIDS) and ``predictions.json`` (what made these, and the floor to compare with)."""
    artifacts.write_json(
        out / "dataset_description.json",
        {
            "Name": f"neuroprior predictions: {model['task']['target']}",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "neuroprior", "Version": __version__}],
        },
    )
    artifacts.write_json(
        out / DESCRIPTION,
        {
            "artifact": "predictions",
            "version": 1,
            "task": model["task"]["name"],
            "target": model["task"]["target"],
            "classes": model["task"].get("classes"),
            "positive": model["task"].get("positive"),
            "label_values": model["task"].get("label_values"),
            "label_sources": model["task"].get("label_sources"),
            "floor": model["task"].get("floor"),
            "calibration": model.get("calibration"),
            "contrasts": model["contrasts"],
            "model": {key: model.get(key) for key in ("kind", "weights_sha256", "method", "lineage", "licences")}
            | {"data": {key: model.get("data", {}).get(key) for key in ("subjects", "datasets", "sites", "scanners")}},
            "command": dict(command),
        },
    )


def write_map(path: Path, array: np.ndarray, *, like: Path, quantise: bool) -> None:
    """A map in 0..1 on the grid of ``like``: float32, or uint8 with ``scl_slope`` 1/255 (an eighth of the size and more, when packed)."""
    if quantise:
        nifti.write_like(path, np.rint(array * np.float32(255)).astype(np.uint8), like=like, slope=1 / 255)
    else:
        nifti.write_like(path, array, like=like, dtype=np.float32)


def require_same(out: Path, model: Mapping[str, Any]) -> None:
    """Raises a ConfigError where the folder holds the predictions of another task or target."""
    if not (out / DESCRIPTION).is_file():
        return
    earlier = artifacts.read_json(out / DESCRIPTION)
    here = (model["task"]["name"], model["task"]["target"])
    there = (earlier.get("task"), earlier.get("target"))
    if there != here:
        raise ConfigError(
            "this folder holds the predictions of another task", file=out, expected=f"{here[0]} of {here[1]}",
            got=f"{there[0]} of {there[1]}", next_step="choose another --out",
        )  # fmt: skip


def write_table(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``predictions.tsv``, atomically; an absent value is ``n/a`` as in BIDS."""
    extra = sorted({key for row in rows for key in row} - set(COLUMNS))
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow([*COLUMNS, *extra])
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in (*COLUMNS, *extra)])
    artifacts.write_text(out / TABLE, text.getvalue())


def read_table(out: Path) -> list[dict[str, str | None]]:
    """The rows of ``predictions.tsv``, ``n/a`` as None; an empty list where there is no table."""
    if not (out / TABLE).is_file():
        return []
    with open(out / TABLE, encoding="utf-8", newline="") as file:
        return [
            {key: None if value == "n/a" else value for key, value in row.items()} for row in csv.DictReader(file, delimiter="\t")
        ]


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return "n/a" if value != value else f"{value:.6g}"
    return " ".join(str(value).split()) or "n/a"
