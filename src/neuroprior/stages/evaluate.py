"""Evaluate: predictions and a reference in, a table of scores with intervals out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.records import Score

logger = logging.getLogger(__name__)

HEADLINES = ("dice", "nsd", "lesion_f1", "auroc", "balanced_accuracy", "mae", "pearson_r")


@dataclass(frozen=True)
class EvaluateSummary:
    """The scores over the whole set.

    Attributes:
        out: the table.
        headlines: the rows that people look at first.
        failed: cases without a prediction; they count as the worst.
        subsets: the table over subsets of contrasts, or None where there are none.
        subset_headlines: its rows.
        abstained: cases that the model left to a person; they are not scored.
    """

    out: Path
    headlines: tuple[Score, ...]
    failed: int
    subsets: Path | None = None
    subset_headlines: tuple[Score, ...] = ()
    abstained: int = 0

    def __str__(self) -> str:
        lines = []
        for row in self.headlines:
            value = "not defined" if row.value is None else f"{row.value:.3f}"
            between = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
            lines.append(f"{row.model:<12} {row.metric} {row.region}: {value}{between}, n = {row.n}")
        for row in self.subset_headlines:
            value = "not defined" if row.value is None else f"{row.value:.3f}"
            between = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
            lines.append(f"  {row.condition:<24} {row.metric} {row.region}: {value}{between}, n = {row.n}")
        if self.failed:
            lines.append(f"{self.failed} failed cases counted as the worst")
        if self.abstained:
            lines.append(f"{self.abstained} cases were left to a person and are not scored")
        if self.subsets is not None:
            lines.append(f"over subsets of contrasts: {self.subsets}")
        return "\n".join([*lines, str(self.out)])


def evaluate(
    predictions: Path,
    reference: Path,
    out: Path = Path("scores.parquet"),
    name: str | None = None,
    rule: str = "honest",
    tolerance_mm: float = 1.0,
    seed: int = 0,
) -> EvaluateSummary:
    """Score predictions case by case and over the set, beside the trivial floor.

    Args:
        predictions: folder made by neuroprior predict, or any tool's folder of masks, named as in the reference folder or by
            BIDS entities (sub-, ses-); what does not match is listed.
        reference: index (.parquet) that holds labels and columns, or a folder of reference masks.
        out: the table of scores (Parquet).
        name: of the model in tables; by default the predictions folder's name.
        rule: for empty masks: "honest" or "fomo26".
        tolerance_mm: of the normalised surface Dice.
        seed: of the bootstrap.

    Returns:
        The scores over the whole set; every case's rows are in the table.

    Raises:
        InputError: nothing can be compared.
    """
    from ..assessments._tables import write_scores
    from ..assessments.accuracy import Context
    from ..core import artifacts
    from ..core.errors import ConfigError, InputError

    if rule not in ("honest", "fomo26"):
        raise ConfigError(f"unknown --rule {rule!r}", expected="honest or fomo26")
    if not predictions.is_dir():
        raise InputError("there is no predictions folder", file=predictions)
    model = name or predictions.name
    subset_scores: list[Score] = []
    abstained = 0
    if (predictions / "predictions.json").is_file():
        info = artifacts.read_json(predictions / "predictions.json")
        context = Context(model, info["task"], info["target"], rule=rule, tolerance_mm=tolerance_mm, seed=seed)
        scores, failed, references, abstained = _from_table(context, predictions, reference, info)
        subset_scores = _subsets(context, predictions, reference)
    else:
        context = Context(model, "segmentation", "mask", rule=rule, tolerance_mm=tolerance_mm, seed=seed)
        scores, failed = _from_folders(context, predictions, reference)
        references = {}
    facts = {"rule": rule, "tolerance_mm": tolerance_mm, "predictions": str(predictions), "references": references}
    write_scores([*scores, *subset_scores], out, facts)
    headlines = tuple(row for row in scores if row.case == "all" and row.metric in HEADLINES and "," not in row.region)
    if not subset_scores:
        return EvaluateSummary(out, headlines, failed, abstained=abstained)
    table = out.with_suffix(".subsets.tsv")
    told = tuple(row for row in subset_scores if row.case == "all" and row.metric in HEADLINES and "," not in row.region)
    _write_subsets(table, told)
    first = next(metric for metric in HEADLINES if any(row.metric == metric for row in told))
    short = tuple(row for row in told if row.metric == first and not row.model.startswith("floor"))
    return EvaluateSummary(out, headlines, failed, table, short, abstained)


def _subsets(context: Any, predictions: Path, reference: Path) -> list[Score]:
    """Scores of every folder under ``subsets/``; the condition of their rows names the contrasts, fewest first."""
    from dataclasses import replace

    from ..core import artifacts
    from ..core.errors import ArtifactError, InputError

    folders = [path.parent for path in (predictions / "subsets").glob("*/predictions.json")]
    made: list[Score] = []
    for folder in sorted(folders, key=lambda path: (path.name.count("+"), path.name)):
        info = artifacts.read_json(folder / "predictions.json")
        if (info["task"], info["target"]) != (context.task, context.target):
            raise ArtifactError(
                "a subset's predictions are of another task", file=folder, expected=f"{context.task} of {context.target}",
                got=f"{info['task']} of {info['target']}", next_step="predict again with --subsets into a new folder",
            )  # fmt: skip
        try:
            scores, failed, _, _ = _from_table(replace(context, condition=folder.name), folder, reference, info)
        except InputError as error:
            logger.warning("subset %s is not scored: %s", folder.name, error.reason)
            continue
        if failed:
            logger.warning("subset %s: %d failed cases counted as the worst", folder.name, failed)
        made += scores
    return made


def _write_subsets(path: Path, rows: tuple[Score, ...]) -> None:
    """One line for each subset of contrasts, metric and region."""
    import csv
    import io

    from ..core import artifacts

    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["contrasts", "n_contrasts", "model", "metric", "region", "value", "low", "high", "n"])
    for row in rows:
        numbers = ["n/a" if value is None else f"{value:.6g}" for value in (row.value, row.low, row.high)]
        writer.writerow([row.condition, row.condition.count("+") + 1, row.model, row.metric, row.region, *numbers, row.n])
    artifacts.write_text(path, text.getvalue())


def _from_table(
    context: Any, predictions: Path, reference: Path, info: dict[str, Any]
) -> tuple[list[Score], int, dict[str, str], int]:
    """Scores of a predictions folder against an index, failed cases, the reference mask of each case, and who was left to a person."""
    import csv
    from dataclasses import replace

    from ..core.errors import InputError
    from ..core.records import BAD
    from ..data.index import read_index

    with open(predictions / "predictions.tsv", encoding="utf-8", newline="") as file:
        rows = [{k: None if v == "n/a" else v for k, v in row.items()} for row in csv.DictReader(file, delimiter="\t")]
    sessions: dict[str, list[Any]] = {}
    for scan in read_index(reference):
        if scan.status != BAD:
            sessions.setdefault(f"{scan.subject}/{scan.session}" if scan.session else scan.subject, []).append(scan)
    known = [row for row in rows if row["case"] in sessions]
    if not known:
        raise InputError(
            "no predicted case is in the reference", file=reference, got=", ".join(str(row["case"]) for row in rows[:3])
        )
    answered = [row for row in known if row["status"] != "abstained"]
    abstained = len(known) - len(answered)
    share: list[Score] = []
    if abstained:
        share = [replace(context.row("all", "all", "answered", "all", len(answered) / len(known)), n=len(known))]
        known = answered
        if not known:
            raise InputError("the model abstained from every case", file=predictions, next_step="predict without --abstain")
    if context.task == "segmentation":
        scores, failed, references = _segmentation(context, predictions, known, sessions, info)
        return scores + share, failed, references, abstained
    usable = [row for row in known if _truth(sessions[str(row["case"])], context.target) is not None]
    if not usable:
        raise InputError(f"no predicted case has a value in column {context.target!r}", file=reference)
    if len(usable) < len(known):
        logger.warning("%d predicted cases have no value in %s and are not scored", len(known) - len(usable), context.target)
    failed = sum(row["status"] != "ok" for row in usable)
    truth = [_truth(sessions[str(row["case"])], context.target) for row in usable]
    groups = [_groups(sessions[str(row["case"])]) for row in usable]
    if context.task == "classification":
        made = _classification(context, usable, truth, info) + _calibrated(context, usable, truth, info)
    else:
        made = _regression(context, usable, truth, info) + _intervals(context, usable, truth, groups, info)
    return made + share, failed, {}, abstained


def _groups(scans: list[Any]) -> dict[str, str]:
    """Sex and age group of a case, as far as known."""
    from ..tasks._calibration import group_of

    return group_of({"sex": _truth(scans, "sex"), "age": _truth(scans, "age")})


def _calibrated(context: Any, rows: list[dict[str, Any]], truth: list[Any], info: dict[str, Any]) -> list[Score]:
    """Calibration of the positive class's probability, and what it was before the model's temperature where it has one."""
    import numpy as np

    from ..assessments.fewshot import before_and_after
    from ..inference.calibration import Calibration, temper

    classes, positive = list(info["classes"]), info["positive"]
    answered = [k for k, row in enumerate(rows) if row["status"] == "ok"]
    if not answered or any(rows[k].get(f"p_{name}") is None for k in answered for name in classes):
        return []
    after = np.array([[float(rows[k][f"p_{name}"]) for name in classes] for k in answered])
    calibration = Calibration.from_json(info.get("calibration"))
    # tempering is undone by its reciprocal, up to the digits of the table
    before = after if calibration is None else temper(after, 1 / calibration.temperature)
    column = classes.index(positive)
    yes = np.array([str(truth[k]) == positive for k in answered])
    made = before_and_after(context, [rows[k]["subject"] for k in answered], yes, before[:, column], after[:, column])
    return [row for row in made if calibration is not None or row.region == "after temperature"]


def _intervals(
    context: Any, rows: list[dict[str, Any]], truth: list[Any], groups: list[dict[str, str]], info: dict[str, Any]
) -> list[Score]:
    """Coverage and width of the predicted intervals, over all and by sex and age group; nothing where there are none."""
    from types import SimpleNamespace

    import numpy as np

    from ..assessments.fewshot import interval_scores
    from ..inference.calibration import Calibration

    low, high = (
        np.array([float(row[name]) if row.get(name) is not None else np.nan for row in rows])
        for name in ("value_low", "value_high")
    )
    if not np.isfinite(low).any():
        return []
    calibration = Calibration.from_json(info.get("calibration"))
    level = 0.9 if calibration is None else calibration.level
    found = [SimpleNamespace(subject=row["subject"], groups=group) for row, group in zip(rows, groups, strict=True)]
    return interval_scores(context, found, np.array([float(value) for value in truth]), low, high, level)


def _truth(scans: list[Any], target: str) -> Any:
    return next((value for value in (scan.value(target) for scan in scans) if value is not None), None)


def _segmentation(
    context: Any, predictions: Path, rows: list[dict[str, Any]], sessions: dict[str, list[Any]], info: dict[str, Any]
) -> tuple[list[Score], int, dict[str, str]]:
    from dataclasses import replace

    import numpy as np

    from ..assessments.accuracy import segmentation_case, summarise
    from ..core import nifti
    from ..core.errors import InputError
    from ..core.geometry import grid_of, resample_labels
    from ..core.volume import Volume
    from ..data.cases import mapped_labels

    values = info["label_values"]
    regions = {context.target: values[0]} if len(values) == 1 else {f"{context.target} {value}": value for value in values}
    made: list[Score] = []
    floor: list[Score] = []
    floor_context = replace(context, model="floor: empty mask")
    failed = 0
    references: dict[str, str] = {}
    for row in rows:
        scans = sessions[row["case"]]
        contrast = row.get("reference")
        ordered = sorted(scans, key=lambda scan: (scan.contrast != contrast, scan.scan))
        label_path = next((scan.labels[context.target] for scan in ordered if context.target in scan.labels), None)
        if label_path is None:
            logger.warning("%s has no label %r and is not scored", row["case"], context.target)
            continue
        references[row["case"]] = label_path
        truth, _ = nifti.read_labels(label_path)
        truth = Volume(mapped_labels(truth.voxels, info), truth.affine)
        note = ""
        if row["status"] == "ok" and row["output"]:
            guess, _ = nifti.read_labels(predictions / row["output"])
            reference = truth.voxels
            if grid_of(truth) != grid_of(guess) and not _same(truth, guess):
                reference = resample_labels(truth, grid_of(guess))
                note = "reference resampled to the prediction's grid"
        else:
            failed += 1
            note = f"failed: {row['reason']}"
            guess, reference = Volume(np.zeros_like(truth.voxels), truth.affine), truth.voxels
        made += segmentation_case(context, row["case"], row["subject"], guess.voxels, reference, guess.spacing_mm, regions, note)
        floor += segmentation_case(
            floor_context, row["case"], row["subject"], np.zeros_like(reference), reference, guess.spacing_mm, regions
        )
    if not references:
        raise InputError(f"no predicted case has a label {context.target!r} in the reference")
    return made + summarise(context, made) + floor + summarise(floor_context, floor), failed, references


def _same(a: Any, b: Any) -> bool:
    """Whether two volumes lie on one grid up to rounding in their headers."""
    from ..core.geometry import corner_distance_mm, grid_of

    return a.shape == b.shape and corner_distance_mm(grid_of(a), grid_of(b)) < 0.01 * min(a.spacing_mm)


def _classification(context: Any, rows: list[dict[str, Any]], truth: list[Any], info: dict[str, Any]) -> list[Score]:
    from dataclasses import replace

    from ..assessments.accuracy import classify

    names = [str(value) for value in truth]
    cases, subjects = [row["case"] for row in rows], [row["subject"] for row in rows]
    prior = info["floor"]["prior"]
    common = max(prior, key=lambda name: prior[name])
    positive = info["positive"]
    guess = [row["value"] if row["status"] == "ok" else "failed" for row in rows]
    # a failed case is put where it hurts: at the wrong end
    probability = [
        float(row["probability"]) if row["status"] == "ok" else (0.0 if name == positive else 1.0)
        for row, name in zip(rows, names, strict=True)
    ]
    notes = ["" if row["status"] == "ok" else f"failed: {row['reason']}" for row in rows]
    made = classify(context, cases, subjects, names, guess, probability, positive, notes)
    floor = replace(context, model="floor: prior")
    return made + classify(floor, cases, subjects, names, [common] * len(rows), [prior[positive]] * len(rows), positive)


def _regression(context: Any, rows: list[dict[str, Any]], truth: list[Any], info: dict[str, Any]) -> list[Score]:
    from dataclasses import replace

    from ..assessments.accuracy import regress

    numbers = [float(value) for value in truth]
    cases, subjects = [row["case"] for row in rows], [row["subject"] for row in rows]
    mean = float(info["floor"]["mean"])
    guess = [
        float(row["value"]) if row["status"] == "ok" else number + 2 * (mean - number)
        for row, number in zip(rows, numbers, strict=True)
    ]
    notes = ["" if row["status"] == "ok" else f"failed, counted as twice the floor's error: {row['reason']}" for row in rows]
    made = regress(context, cases, subjects, numbers, guess, notes)
    return made + regress(replace(context, model="floor: training mean"), cases, subjects, numbers, [mean] * len(rows))


def _from_folders(context: Any, predictions: Path, reference: Path) -> tuple[list[Score], int]:
    """Scores of any tool's masks against reference masks, matched by name or by BIDS entities; what does not match is a row."""
    import numpy as np

    from ..assessments import matching
    from ..assessments.accuracy import printed_rule, segmentation_case, summarise
    from ..core import nifti
    from ..core.errors import InputError
    from ..core.geometry import grid_of, resample_labels

    if not reference.is_dir():
        raise InputError("masks made by another tool need a folder of reference masks", file=reference)
    files = sorted(path.relative_to(reference) for path in reference.rglob("*.nii*"))
    offered = sorted(path.relative_to(predictions) for path in predictions.rglob("*.nii*"))
    for folder, name, found in ((reference, "reference", files), (predictions, "predictions", offered)):
        if not found:
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
    made: list[Score] = []
    failed = 0
    values: set[int] = set()
    truths = {}
    for file in files:
        truths[file], _ = nifti.read_labels(reference / file)
        values |= {int(v) for v in np.unique(truths[file].voxels)} - {0}
    regions = {"mask": next(iter(values), 1)} if len(values) <= 1 else {f"label {value}": value for value in sorted(values)}
    for file in files:
        truth, note = truths[file], ""
        wanted, spacing = truth.voxels, truth.spacing_mm
        if file in partner:
            guess, _ = nifti.read_labels(predictions / partner[file])
            voxels, spacing = guess.voxels, guess.spacing_mm
            if not _same(truth, guess):
                wanted, note = resample_labels(truth, grid_of(guess)), "reference resampled to the prediction's grid"
        else:
            failed += 1
            voxels, note = np.zeros_like(truth.voxels), f"failed: there is no prediction ({matched.references[file]})"
        made += segmentation_case(context, file.as_posix(), matching.subject(file), voxels, wanted, spacing, regions, note)
    over = summarise(context, made)
    for file, reason in matched.predictions.items():
        name = file.as_posix()
        made.append(context.row(name, matching.subject(file), "not_scored", "all", float("nan"), f"no reference: {reason}", n=0))
    return made + over, failed
