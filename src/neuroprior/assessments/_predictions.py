"""Predictions on disk against a reference: the rows of every case, of the set, and of the trivial floor.

Three kinds: a folder of ``neuroprior predict`` with an index; any tool's folder of masks with a folder of masks; a folder of ``neuroprior
crossvalidate``, whose cases are scored already. What cannot be scored is a row with its reason: ``not_scored`` where there is nothing to compare with, or
the worst score where the prediction is missing, unreadable or not a number.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core import nifti
from ..core.errors import InputError, NeuropriorError
from ..core.grids import Grid, corner_distance_mm, grid_of
from ..core.records import BAD, Scan, Score
from ..core.volume import Volume
from ..data.cases import mapped_labels
from ..data.index import read_index
from ..tasks._calibration import group_of
from . import matching
from .accuracy import Context, classify, printed_rule, regress, segmentation_case, summarise
from .domain_shift import spacing_group
from .fewshot import regions_of
from .significance import read_scores

logger = logging.getLogger(__name__)

SUM_TOLERANCE = 1e-3
"""How far the probabilities of a case may be from a sum of one: the digits of a table and half precision pass."""


@dataclass
class Scored:
    """What was read and scored.

    Attributes:
        rows: of cases, of the set, and of the floor.
        groups: case -> variable -> group.
        failed: cases without a usable prediction; they count as the worst.
        unscored: predictions or references that could not be compared, a row each.
        unusable: those among them that point to a mistake: other grids, references that cannot be read.
        abstained: cases that the model left to a person.
        references: case -> reference mask.
    """

    rows: list[Score] = field(default_factory=list)
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: int = 0
    unscored: int = 0
    unusable: int = 0
    abstained: int = 0
    references: dict[str, str] = field(default_factory=dict)

    def leave_out(self, context: Context, case: str, subject: str, reason: str, *, unusable: bool = False) -> None:
        """A row ``not_scored`` that says why."""
        logger.warning("%s is not scored: %s", case, reason)
        self.rows.append(context.row(case, subject, "not_scored", "all", float("nan"), reason, n=0))
        self.unscored += 1
        self.unusable += unusable


class OtherGrid(InputError):
    """The prediction lies on another grid than the reference, and nobody asked to resample it."""


# --------------------------------------------------------------------------------------------------------------- grids


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes lie on one grid up to rounding in their headers."""
    return a.shape == b.shape and corner_distance_mm(grid_of(a), grid_of(b)) < 0.01 * min(a.spacing_mm)


def nearest(volume: Volume, grid: Grid) -> np.ndarray:
    """A label map on another grid of the same world: each voxel gets the label of the voxel that its centre lies in, 0 outside.

    Args:
        volume: integer voxels.
        grid: where to look.
    """
    back = np.linalg.inv(volume.affine) @ np.asarray(grid.affine)
    made = np.zeros(grid.shape, dtype=volume.voxels.dtype)
    x, y = np.meshgrid(np.arange(grid.shape[0]), np.arange(grid.shape[1]), indexing="ij")
    for z in range(grid.shape[2]):
        place = np.floor(
            np.tensordot(back[:3, :3], np.stack([x, y, np.full_like(x, z)]), 1) + back[:3, 3, None, None] + 0.5 - 1e-9
        )
        place = place.astype(np.int64)
        inside = ((place >= 0) & (place < np.array(volume.shape)[:, None, None])).all(0)
        made[..., z][inside] = volume.voxels[tuple(place[:, inside])]
    return made


def said(volume: Volume) -> str:
    """A grid in words: its shape, spacing and orientation's place."""
    size, mm = " x ".join(map(str, volume.shape)), " x ".join(f"{edge:.3g}" for edge in volume.spacing_mm)
    origin = ", ".join(f"{value:.4g}" for value in np.asarray(volume.affine)[:3, 3])
    return f"{size} voxels of {mm} mm from ({origin})"


def on_reference(guess: Volume, truth: Volume, resample: bool) -> tuple[np.ndarray, str]:
    """The prediction's labels on the reference's grid, and what was done to them.

    Raises:
        OtherGrid: the grids differ and ``resample`` is off.
    """
    if same_grid(truth, guess):
        return guess.voxels, ""
    if not resample:
        raise OtherGrid(
            "the prediction lies on another grid than the reference", expected=said(truth), got=said(guess),
            next_step="--resample takes the nearest neighbour of every voxel, told in the row",
        )  # fmt: skip
    return nearest(guess, grid_of(truth)), f"prediction resampled by nearest neighbour from {said(guess)}"


# ----------------------------------------------------------------------------------------------- a folder of predictions


def read_table(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``predictions.tsv``, ``n/a`` as None."""
    with open(folder / "predictions.tsv", encoding="utf-8", newline="") as file:
        return [{k: None if v == "n/a" else v for k, v in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def sessions_of(reference: Path) -> dict[str, list[Scan]]:
    """The usable scans of an index by case."""
    found: dict[str, list[Scan]] = {}
    for scan in read_index(reference):
        if scan.status != BAD:
            found.setdefault(f"{scan.subject}/{scan.session}" if scan.session else scan.subject, []).append(scan)
    return found


def from_table(
    context: Context,
    predictions: Path,
    reference: Path,
    info: Mapping[str, Any],
    *,
    resample: bool = False,
    columns: Sequence[str] = (),
) -> Scored:
    """Scores of a folder of ``neuroprior predict``, or of any tool that writes such a table, against an index.

    Args:
        context: origin and rule.
        predictions: holds ``predictions.tsv`` and the masks.
        reference: index with labels and columns.
        info: the content of ``predictions.json``.
        resample: bring masks on other grids to the reference's.
        columns: further columns of the index whose values are groups.

    Raises:
        InputError: nothing can be compared.
    """
    made = Scored()
    rows, sessions = read_table(predictions), sessions_of(reference)
    known = [row for row in rows if row["case"] in sessions]
    if not rows:
        raise InputError("the predictions hold no case", file=predictions, next_step="predict again")
    if not known:
        raise InputError(
            "no predicted case is in the reference", file=reference, got=", ".join(str(row["case"]) for row in rows[:3])
        )
    answered = [row for row in known if row["status"] != "abstained"]
    made.abstained = len(known) - len(answered)
    if not answered:
        raise InputError("the model abstained from every case", file=predictions, next_step="predict without --abstain")
    made.groups = {row["case"]: groups_of(sessions[row["case"]], row, columns) for row in answered}
    if context.task == "segmentation":
        _segmentation(made, context, predictions, answered, sessions, info, resample)
    else:
        _values(made, context, reference, answered, sessions, info)
    if made.abstained:
        made.rows.append(replace(context.row("all", "all", "answered", "all", len(answered) / len(known)), n=len(known)))
    for row in rows:
        if row["case"] not in sessions:
            made.leave_out(context, row["case"], row["subject"] or row["case"], "no reference: the index has no such case")
    for case in _not_predicted(rows, sessions, info, context):
        made.leave_out(
            context, case, sessions[case][0].subject, f"no prediction for this case of the split {info['command']['split']}"
        )
    return made


def _not_predicted(
    rows: Sequence[Mapping[str, Any]], sessions: Mapping[str, Sequence[Scan]], info: Mapping[str, Any], context: Context
) -> list[str]:
    """Cases of the split that was predicted which have a truth and no row."""
    split = (info.get("command") or {}).get("split")
    datasets = {row.get("dataset") for row in rows} - {None}
    there = {row["case"] for row in rows}
    if not split or not datasets:
        return []
    return [
        case for case, scans in sessions.items()
        if case not in there and scans[0].split == split and scans[0].dataset in datasets and _has_truth(scans, context)
    ]  # fmt: skip


def _has_truth(scans: Sequence[Scan], context: Context) -> bool:
    if context.task == "segmentation":
        return any(context.target in scan.labels for scan in scans)
    return truth_of(scans, context.target) is not None


def truth_of(scans: Sequence[Scan], target: str) -> Any:
    """The first scan's value of a column that has one."""
    return next((value for value in (scan.value(target) for scan in scans) if value is not None), None)


def groups_of(scans: Sequence[Scan], row: Mapping[str, Any], columns: Sequence[str] = ()) -> dict[str, str]:
    """What groups a case belongs to, as far as the index and the row tell.

    ``sex``, ``age`` (three groups), ``dataset``, ``site``, ``scanner``, ``field_strength``, ``contrasts`` (as predicted from), ``spacing``, and other columns.
    """
    made = group_of({"sex": truth_of(scans, "sex"), "age": truth_of(scans, "age")})
    for name in ("dataset", "site", "scanner", *columns):
        value = truth_of(scans, name)
        if name not in made and value not in (None, ""):
            made[name] = str(value)
    strength = next((v for v in (truth_of(scans, n) for n in ("field_strength", "MagneticFieldStrength")) if v is not None), None)
    if strength is None:
        told = re.search(r"(?<![\w.])(\d+(?:\.\d+)?) ?T\b", made.get("scanner", ""))
        strength = told[1] if told else None
    if strength is not None:
        made["field_strength"] = f"{str(strength).removesuffix('T').strip()} T"
    if row.get("contrasts"):
        made["contrasts"] = "+".join(sorted(str(row["contrasts"]).split(",")))
    given = next((scan for scan in scans if scan.path == row.get("input")), None) or next(
        (scan for scan in scans if scan.contrast == row.get("reference")), scans[0]
    )
    if given.spacing_mm:
        made["spacing"] = spacing_group(given.spacing_mm)
    return made


def _cost_rows(context: Context, row: Mapping[str, Any]) -> list[Score]:
    found = {name: _number(row.get(name)) for name in ("seconds", "peak_memory_mb", "peak_gpu_memory_mb")}
    return [context.row(row["case"], row["subject"], name, "all", value) for name, value in found.items() if math.isfinite(value)]


def _number(cell: Any) -> float:
    """A table's cell as a number; NaN where it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def _segmentation(
    made: Scored, context: Context, predictions: Path, rows: Sequence[Mapping[str, Any]], sessions: Mapping[str, Sequence[Scan]],
    info: Mapping[str, Any], resample: bool,
) -> None:  # fmt: skip
    values = info["label_values"]
    regions = regions_of(context.target, values)
    mine: list[Score] = []
    floor: list[Score] = []
    extra: list[Score] = []
    floor_context = replace(context, model="floor: empty mask")
    for row in rows:
        case, subject = row["case"], row["subject"]
        ordered = sorted(sessions[case], key=lambda scan: (scan.contrast != row.get("reference"), scan.scan))
        label_path = next((scan.labels[context.target] for scan in ordered if context.target in scan.labels), None)
        if label_path is None:
            made.leave_out(context, case, subject, f"no reference: the index has no label {context.target!r} of it")
            continue
        try:
            truth, _ = nifti.read_labels(label_path)
        except NeuropriorError as error:
            made.leave_out(context, case, subject, f"the reference cannot be read: {error.reason}", unusable=True)
            continue
        truth = Volume(mapped_labels(truth.voxels, info), truth.affine)
        note, guess = "", np.zeros_like(truth.voxels)
        if row["status"] != "ok" or not row["output"]:
            note = f"failed: {row['reason']}"
        else:
            try:
                guess, note = on_reference(nifti.read_labels(predictions / row["output"])[0], truth, resample)
            except OtherGrid as error:
                made.leave_out(context, case, subject, f"{error.reason}; {error.next_step}", unusable=True)
                continue
            except NeuropriorError as error:
                note = f"failed: {error.reason}"
        failed = note.startswith("failed")
        made.failed += failed
        made.references[case] = label_path
        mine += segmentation_case(context, case, subject, guess, truth.voxels, truth.spacing_mm, regions, note)
        empty = np.zeros_like(truth.voxels)
        floor += segmentation_case(floor_context, case, subject, empty, truth.voxels, truth.spacing_mm, regions)
        extra += _cost_rows(context, row)
        if failed:
            continue
        if math.isfinite(_number(row.get("confidence"))):
            extra.append(context.row(case, subject, "confidence", "all", _number(row["confidence"])))
        for region, value in regions.items():
            ends = {name: _number(row.get(f"volume_ml_{value}_{name}")) for name in ("low", "high")}
            if all(math.isfinite(end) for end in ends.values()):
                extra += [context.row(case, subject, f"interval_{name}", region, end) for name, end in ends.items()]
    if not made.references:
        raise InputError(
            f"no predicted case can be scored against a label {context.target!r}", file=predictions,
            got=made.rows[0].note if made.rows else None,
        )  # fmt: skip
    made.rows = [*mine, *summarise(context, mine), *floor, *summarise(floor_context, floor), *extra, *made.rows]


def _values(
    made: Scored, context: Context, reference: Path, rows: Sequence[Mapping[str, Any]], sessions: Mapping[str, Sequence[Scan]],
    info: Mapping[str, Any],
) -> None:  # fmt: skip
    usable = []
    for row in rows:
        if truth_of(sessions[row["case"]], context.target) is None:
            made.leave_out(context, row["case"], row["subject"], f"no reference: no value in the column {context.target!r}")
        else:
            usable.append(row)
    if not usable:
        raise InputError(f"no predicted case has a value in column {context.target!r}", file=reference)
    truth = [truth_of(sessions[row["case"]], context.target) for row in usable]
    scored = _classification if context.task == "classification" else _regression
    found, extra, failed = scored(context, usable, truth, info)
    made.failed = failed
    for row in usable:
        extra += _cost_rows(context, row)
    made.rows = [*found, *extra, *made.rows]


def _classification(
    context: Context, rows: Sequence[Mapping[str, Any]], truth: Sequence[Any], info: Mapping[str, Any]
) -> tuple[list[Score], list[Score], int]:
    names = [str(value) for value in truth]
    cases, subjects = [row["case"] for row in rows], [row["subject"] for row in rows]
    prior = info["floor"]["prior"]
    common = max(prior, key=lambda name: prior[name])
    positive, classes = info["positive"], [str(name) for name in info.get("classes") or ()]
    guess, probability, notes, extra = [], [], [], []
    for row, name in zip(rows, names, strict=True):
        each = {c: _number(row[f"p_{c}"]) for c in classes if row.get(f"p_{c}") is not None}
        p = _number(row.get("probability"))
        reason = f"{row['reason']}" if row["status"] != "ok" else _impossible(each, p)
        notes.append(f"failed: {reason}" if reason else "")
        guess.append("failed" if reason else str(row["value"]))
        # a failed case is put where it hurts: at the wrong end
        probability.append((0.0 if name == positive else 1.0) if reason else p)
        if not reason and len(each) == len(classes) > 2:
            extra += [context.row(row["case"], row["subject"], "class_probability", c, v) for c, v in each.items()]
        if reason and row["status"] == "ok":
            logger.warning("%s counts as failed: %s", row["case"], reason)
    made = classify(context, cases, subjects, names, guess, probability, positive, notes)
    floor = replace(context, model="floor: prior")
    made += classify(floor, cases, subjects, names, [common] * len(rows), [prior[positive]] * len(rows), positive)
    return made, extra, sum(bool(note) for note in notes)


def _impossible(each: Mapping[str, float], p: float) -> str:
    """Why a case's probabilities cannot be used; empty where they can."""
    if not math.isfinite(p):
        return "the probability is not a number"
    if not 0 <= p <= 1 or not all(0 <= value <= 1 for value in each.values()):
        return "a probability is not in [0, 1]"
    total = sum(each.values())
    if each and not abs(total - 1) <= SUM_TOLERANCE:
        return f"the probabilities sum to {total:.4g}, not to one"
    return ""


def _regression(
    context: Context, rows: Sequence[Mapping[str, Any]], truth: Sequence[Any], info: Mapping[str, Any]
) -> tuple[list[Score], list[Score], int]:
    numbers = [float(value) for value in truth]
    cases, subjects = [row["case"] for row in rows], [row["subject"] for row in rows]
    mean = float(info["floor"]["mean"])
    guess, notes, extra, failed = [], [], [], 0
    for row, number in zip(rows, numbers, strict=True):
        value = _number(row["value"]) if row["status"] == "ok" else float("nan")
        if not math.isfinite(value):
            failed += 1
            reason = row["reason"] if row["status"] != "ok" else "the prediction is not a number"
            notes.append(f"failed, counted as twice the floor's error: {reason}")
            guess.append(number + 2 * (mean - number))
            continue
        notes.append("")
        guess.append(value)
        found = {
            "uncertainty": row.get("value_std"),
            "interval_low": row.get("value_low"),
            "interval_high": row.get("value_high"),
        }
        extra += [
            context.row(row["case"], row["subject"], name, "all", _number(cell))
            for name, cell in found.items() if math.isfinite(_number(cell))
        ]  # fmt: skip
    made = regress(context, cases, subjects, numbers, guess, notes)
    made += regress(replace(context, model="floor: training mean"), cases, subjects, numbers, [mean] * len(rows))
    return made, extra, failed


# -------------------------------------------------------------------------------------------------- masks of any tool


def from_folders(
    context: Context,
    predictions: Path,
    reference: Path,
    *,
    resample: bool = False,
    people: Mapping[str, Mapping[str, str]] | None = None,
) -> Scored:
    """Scores of any tool's masks against reference masks, matched by name or by BIDS entities; what does not match is a row.

    Args:
        context: origin and rule.
        predictions, reference: folders of NIfTI masks.
        resample: bring masks on other grids to the reference's.
        people: subject -> column -> value, for groups.

    Raises:
        InputError: a folder holds no masks, or nothing fits.
    """
    if not reference.is_dir():
        raise InputError(
            "masks made by another tool need a folder of reference masks", file=reference,
            expected="a folder; an index goes with what neuroprior predict wrote, its predictions.json included",
        )  # fmt: skip
    files = sorted(path.relative_to(reference) for path in reference.rglob("*.nii*"))
    offered = sorted(path.relative_to(predictions) for path in predictions.rglob("*.nii*"))
    for folder, name, there in ((reference, "reference", files), (predictions, "predictions", offered)):
        if not there:
            raise InputError(f"the {name} folder holds no NIfTI masks", file=folder)
    matched = matching.match(files, offered)
    if not matched.pairs:
        raise InputError(
            "no prediction fits any reference",
            file=predictions,
            expected=f"names like {', '.join(file.as_posix() for file in files[:3])}",
            got=", ".join(file.as_posix() for file in offered[:3]),
            next_step="name the masks as the references are, or give both their BIDS entities (sub-, ses-)",
        )
    logger.info("%s\n%s", matched, printed_rule(context.rule))
    partner = {pair.reference: pair.prediction for pair in matched.pairs}
    made = Scored()
    mine: list[Score] = []
    values: set[int] = set()
    unreadable: dict[Path, str] = {}
    for file in files:  # the regions are all labels of all references, so they are read twice rather than kept
        try:
            values |= {int(v) for v in np.unique(nifti.read_labels(reference / file)[0].voxels)} - {0}
        except NeuropriorError as error:
            unreadable[Path(file)] = error.reason
    regions = {"mask": next(iter(values), 1)} if len(values) <= 1 else {f"label {value}": value for value in sorted(values)}
    for file in files:
        case, subject = file.as_posix(), matching.subject(file)
        if Path(file) in unreadable:
            made.leave_out(context, case, subject, f"the reference cannot be read: {unreadable[Path(file)]}", unusable=True)
            continue
        truth, _ = nifti.read_labels(reference / file)
        voxels, note = np.zeros_like(truth.voxels), ""
        if file not in partner:
            note = f"failed: there is no prediction ({matched.references[file]})"
        else:
            try:
                voxels, note = on_reference(nifti.read_labels(predictions / partner[file])[0], truth, resample)
            except OtherGrid as error:
                made.leave_out(context, case, subject, f"{error.reason}; {error.next_step}", unusable=True)
                continue
            except NeuropriorError as error:
                note = f"failed: {error.reason}"
        made.failed += note.startswith("failed")
        made.groups[case] = {"spacing": spacing_group(truth.spacing_mm), **_of_person((people or {}).get(subject, {}))}
        mine += segmentation_case(context, case, subject, voxels, truth.voxels, truth.spacing_mm, regions, note)
    if not mine:
        raise InputError("no case can be scored", file=predictions, got=made.rows[0].note if made.rows else None)
    made.rows = [*mine, *summarise(context, mine), *made.rows]
    for file, reason in matched.predictions.items():
        made.leave_out(context, file.as_posix(), matching.subject(file), f"no reference: {reason}")
    return made


def _of_person(columns: Mapping[str, str]) -> dict[str, str]:
    return {**{k: v for k, v in columns.items() if k not in ("sex", "age")}, **group_of(columns)}


def read_people(path: Path) -> dict[str, dict[str, str]]:
    """Subject -> column -> value of a participants table.

    Raises:
        InputError: it cannot be read, or has no column ``participant_id``.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except OSError as error:
        raise InputError("the participants table cannot be read", file=path, got=error.strerror) from None
    except (UnicodeDecodeError, csv.Error):
        rows = []
    if not rows or "participant_id" not in rows[0]:
        raise InputError("this is no participants table", file=path, expected="tab-separated, with a column participant_id")
    made = {}
    for row in rows:
        values = {str(k): str(v) for k, v in row.items() if k and k != "participant_id" and v not in (None, "", "n/a")}
        name = str(row["participant_id"])
        made[name] = values
        made.setdefault(f"sub-{name.removeprefix('sub-')}", values)
    return made


# ------------------------------------------------------------------------------------------------------ cross-validation


def is_crossvalidation(folder: Path) -> bool:
    """Whether a folder was made by ``neuroprior crossvalidate``."""
    return (folder / "scores.parquet").is_file() and (folder / "folds.tsv").is_file()


def from_crossvalidation(
    name: str, folder: Path, reference: Path, *, columns: Sequence[str] = ()
) -> tuple[Scored, dict[str, Any]]:
    """The out-of-fold answers of ``neuroprior crossvalidate``, scored already; those of ``--scheme loso`` have a group ``left_out``.

    Args:
        name: of the model in rows.
        folder: of the cross-validation.
        reference: index, for groups.
        columns: further columns of the index whose values are groups.

    Returns:
        The rows under the model's name, and what ``predictions.json`` would hold of them.

    Raises:
        InputError: it holds no out-of-fold answers.
    """
    import json

    import pyarrow.parquet as pq

    rows = [
        replace(row, model=name if row.model == "out of fold" else row.model)
        for row in read_scores(folder / "scores.parquet")
        if row.model == "out of fold" or row.model.startswith("floor")
    ]
    mine = [row for row in rows if row.model == name and row.case != "all"]
    if not mine:
        raise InputError("the cross-validation holds no out-of-fold answers", file=folder)
    noted = json.loads((pq.read_schema(folder / "scores.parquet").metadata or {}).get(b"neuroprior", b"{}"))
    with open(folder / "folds.tsv", encoding="utf-8", newline="") as file:
        left = {row["participant_id"]: row["fold"] for row in csv.DictReader(file, delimiter="\t") if row["split"] == "test"}
    by_session = {}
    for scans in sessions_of(reference).values():
        for key in {(scan.subject, scan.session) for scan in scans}:
            by_session[key] = scans
    made = Scored(rows)
    for row in mine:
        if row.case in made.groups:
            continue
        session = next((s for (subject, s) in by_session if subject == row.subject and (not s or s in row.case)), "")
        scans = by_session.get((row.subject, session), [])
        made.groups[row.case] = groups_of(scans, {}, columns) if scans else {}
        if noted.get("scheme") == "loso" and row.subject in left:
            made.groups[row.case]["left_out"] = left[row.subject]
    made.rows += _out_of_fold(folder / "out_of_fold.tsv", mine)
    return made, {"task": mine[0].task, "target": mine[0].target}


def _out_of_fold(path: Path, rows: Sequence[Score]) -> list[Score]:
    """Intervals of numbers and probabilities of more than two classes, which the table of scores does not hold; each learned on other folds."""
    if not path.is_file():
        return []
    first = {row.case: row for row in rows}
    made = []
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            one = first.get(line["case"])
            if one is None:
                continue
            named = {"interval_low": line.get("value_low"), "interval_high": line.get("value_high")}
            cells = [(metric, "all", _number(cell)) for metric, cell in named.items()]
            classes = [key for key in line if key.startswith("p_") and f"{key}_uncalibrated" in line]
            if len(classes) > 2:
                cells += [("class_probability", key.removeprefix("p_"), _number(line[f"{key}_uncalibrated"])) for key in classes]
            made += [
                replace(one, metric=metric, region=region, value=value, note="")
                for metric, region, value in cells if math.isfinite(value)
            ]  # fmt: skip
    return made
