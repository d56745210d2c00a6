"""Evaluate: predictions and a reference in, a table of scores with intervals out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..assessments.accuracy import Context
    from ..core.records import Score

logger = logging.getLogger(__name__)

HEADLINES = ("dice", "nsd", "lesion_f1", "auroc", "balanced_accuracy", "mae", "pearson_r")
ASSESSED = (
    "ece_class_wise", "aurc", "excess_aurc", "coverage", "fairness", "lesion_recall_pooled", "seconds_per_case", "device_hours",
)  # fmt: skip
"""What is shown of the assessments, beside gaps and shifts; everything is in the table."""
OF_SUBSETS = ("calibration", "conformal")
"""Assessments that are also made of every subset of contrasts."""


@dataclass(frozen=True)
class EvaluateSummary:
    """The scores over the whole set.

    Attributes:
        out: the table.
        headlines: the rows that people look at first.
        failed: cases without a usable prediction; they count as the worst.
        subsets: the table over subsets of contrasts, or None where there are none.
        subset_headlines: its rows.
        abstained: cases that the model left to a person; they are not scored.
        rule: the rule for empty masks in words; empty for other tasks.
        assessed: the rows of the assessments.
        unscored: predictions without a reference, references without a prediction, and what could not be compared; each is a row.
        unusable: those among them that point to a mistake: masks on other grids, references that cannot be read.
        card: the model card that the scores were written into, or None.
    """

    out: Path
    headlines: tuple[Score, ...]
    failed: int
    subsets: Path | None = None
    subset_headlines: tuple[Score, ...] = ()
    abstained: int = 0
    rule: str = ""
    assessed: tuple[Score, ...] = ()
    unscored: int = 0
    unusable: int = 0
    card: Path | None = None

    @property
    def exit_code(self) -> int:
        """3 when something could not be compared that should have been, else 0."""
        return 3 if self.unusable else 0

    def __str__(self) -> str:
        lines = [f"{row.model:<12} {_told(row)}" for row in self.headlines]
        lines += [f"  {row.condition:<24} {_told(row)}" for row in self.subset_headlines]
        shown = [row for row in self.assessed if row.metric in ASSESSED or row.metric.endswith(("_gap", "_shift"))]
        lines += [f"  {_told(row)}" for row in shown if row.value is not None and "=" not in row.region]
        lines += [f"  not assessed: {row.region}: {row.note}" for row in self.assessed if row.metric == "not_assessed"]
        if self.rule:
            lines.append(self.rule)
        if self.failed:
            lines.append(f"{self.failed} failed cases counted as the worst")
        if self.abstained:
            lines.append(f"{self.abstained} cases were left to a person and are not scored")
        if self.unscored:
            wrong = f", {self.unusable} of them for a mistake to be repaired" if self.unusable else ""
            lines.append(f"{self.unscored} cases NOT SCORED{wrong}: rows not_scored in the table say why")
        if self.subsets is not None:
            lines.append(f"over subsets of contrasts: {self.subsets}")
        if self.card is not None:
            lines.append(f"written into the model card: {self.card}")
        return "\n".join([*lines, str(self.out)])


def _told(row: Score) -> str:
    value = "not defined" if row.value is None else f"{row.value:.3f}"
    between = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.metric} {row.region}: {value}{between}, n = {row.n}"


def evaluate(
    predictions: Path,
    reference: Path,
    out: Path = Path("scores.parquet"),
    name: str | None = None,
    rule: str = "honest",
    tolerance_mm: float = 1.0,
    assess: str = "all",
    groups: str | None = None,
    participants: Path | None = None,
    model: Path | None = None,
    card: bool = True,
    fewshot: Path | None = None,
    resample: bool = False,
    seed: int = 0,
) -> EvaluateSummary:
    """Score predictions case by case and over the set, beside the trivial floor, and judge them beyond accuracy.

    Args:
        predictions: folder made by neuroprior predict or crossvalidate, or any tool's folder of masks, named as in the reference
            folder or by BIDS entities (sub-, ses-); what does not match is listed.
        reference: index (.parquet) that holds labels and columns, or a folder of reference masks.
        out: the table of scores (Parquet).
        name: of the model in tables; by default the predictions folder's name.
        rule: for empty masks: "honest" or "fomo26".
        tolerance_mm: of the normalised surface Dice.
        assess: comma-separated assessments beyond accuracy (calibration, selective, conformal, fairness, domain_shift, rare, cost), all
            or none; one that does not apply is a row with the reason.
        groups: comma-separated further columns whose groups should be served alike, beside sex and age.
        participants: table of the subjects (participants.tsv) with columns for groups, for masks of another tool.
        model: the model folder that made the predictions, for its cost and its card.
        card: write the scores into the model's card (README.md); only where --model is given.
        fewshot: folder made by neuroprior fewshot, whose k-shot curve is added.
        resample: bring masks on another grid to the reference's by nearest neighbour; without it they are not scored, and told.
        seed: of the bootstrap.

    Returns:
        The scores over the whole set; every case's rows are in the table.

    Raises:
        InputError: nothing can be compared.
        ConfigError: an unknown rule or assessment.
    """
    from ..assessments import _card, _panel, _predictions, cost, fairness, rare
    from ..assessments._answers import answers
    from ..assessments._tables import write_scores
    from ..assessments.accuracy import Context, empty_rule, printed_rule
    from ..core import artifacts
    from ..core.errors import InputError

    empty_rule(rule)
    wanted = _panel.chosen(assess)
    if not predictions.is_dir():
        raise InputError("there is no predictions folder", file=predictions)
    named = name or predictions.name
    columns = tuple(part.strip() for part in (groups or "").split(",") if part.strip())
    info: dict[str, Any] = {}
    subset_scores: list[Score] = []
    if (predictions / "predictions.json").is_file():
        info = artifacts.read_json(predictions / "predictions.json")
        context = Context(named, info["task"], info["target"], rule=rule, tolerance_mm=tolerance_mm, seed=seed)
        scored = _predictions.from_table(context, predictions, reference, info, resample=resample, columns=columns)
        subset_scores = _subsets(context, predictions, reference, resample, columns, tuple(n for n in wanted if n in OF_SUBSETS))
    elif _predictions.is_crossvalidation(predictions):
        scored, info = _predictions.from_crossvalidation(named, predictions, reference, columns=columns)
        context = Context(named, info["task"], info["target"], rule=rule, tolerance_mm=tolerance_mm, seed=seed)
    else:
        context = Context(named, "segmentation", "mask", rule=rule, tolerance_mm=tolerance_mm, seed=seed)
        people = None if participants is None else _predictions.read_people(participants)
        scored = _predictions.from_folders(context, predictions, reference, resample=resample, people=people)
    settings = {"fairness": fairness.Config(variables=tuple(dict.fromkeys(("sex", "age", *columns))))}
    info = {**info, "cost": cost.gather(model) if "cost" in wanted else {}}
    cut = _cut(scored.groups, columns, settings["fairness"])
    assessed = _panel.run(wanted, answers(context, scored.rows), cut, info, settings)
    there = {_key(row) for row in scored.rows}
    assessed = [row for row in assessed if _key(row) not in there]
    if fewshot is not None:
        assessed += rare.shot_curve(fewshot, seed=seed)
    facts = {
        "rule": rule, "printed_rule": printed_rule(rule), "tolerance_mm": tolerance_mm, "predictions": str(predictions),
        "references": scored.references, "groups": cut, "assessed": list(wanted), "model": info.get("model"),
        "calibration": info.get("calibration"), "resample": resample,
    }  # fmt: skip
    everything = [*scored.rows, *assessed, *subset_scores]
    write_scores(everything, out, facts)
    told = printed_rule(rule) if context.task == "segmentation" else ""
    written = None
    if model is not None and card:
        written = _card.write(model, everything, named, rule=rule, table=out.name)
    headlines = tuple(
        row
        for row in scored.rows
        if row.case == "all" and row.metric in HEADLINES and "," not in row.region and row.condition == "clean"
    )
    table, short = _told_subsets(subset_scores, out)
    return EvaluateSummary(
        out,
        headlines,
        scored.failed,
        table,
        short,
        scored.abstained,
        told,
        tuple(assessed),
        scored.unscored,
        scored.unusable,
        written,
    )


def _key(row: Score) -> tuple[str, ...]:
    return row.model, row.task, row.target, row.case, row.metric, row.region, row.condition


def _cut(groups: Mapping[str, Mapping[str, str]], columns: Sequence[str], config: Any) -> dict[str, dict[str, str]]:
    """Case -> variable -> group, columns of many numbers cut into groups."""
    from ..assessments.fairness import group_names

    made = {case: dict(of) for case, of in groups.items()}
    for name in columns:
        cases = list(made)
        for case, group in zip(cases, group_names(name, [made[case].get(name) for case in cases], config), strict=True):
            made[case].pop(name, None)
            if group is not None:
                made[case][name] = group
    return made


def _subsets(
    context: Context, predictions: Path, reference: Path, resample: bool, columns: Sequence[str], wanted: Sequence[str]
) -> list[Score]:
    """Scores of every folder under ``subsets/``; the condition of their rows names the contrasts, fewest first."""
    from dataclasses import replace

    from ..assessments import _panel, _predictions
    from ..assessments._answers import NOT_ASSESSED, answers
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
        here = replace(context, condition=folder.name)
        # who was not predicted is told of the whole set; a subset is not there for cases that lack a contrast
        info["command"] = {**(info.get("command") or {}), "split": None}
        try:
            scored = _predictions.from_table(here, folder, reference, info, resample=resample, columns=columns)
        except InputError as error:
            logger.warning("subset %s is not scored: %s", folder.name, error.reason)
            made.append(here.row("all", "all", "not_scored", "all", float("nan"), error.reason, n=0))
            continue
        if scored.failed:
            logger.warning("subset %s: %d failed cases counted as the worst", folder.name, scored.failed)
        there = {_key(row) for row in scored.rows}
        more = _panel.run(wanted, answers(here, scored.rows), scored.groups, info)
        made += scored.rows + [row for row in more if row.metric != NOT_ASSESSED and _key(row) not in there]
    return made


def _told_subsets(scores: Sequence[Score], out: Path) -> tuple[Path | None, tuple[Score, ...]]:
    """The table over subsets of contrasts and its rows of the first headline; (None, ()) where there are none."""
    told = tuple(
        row for row in scores if row.case == "all" and row.metric in HEADLINES and "," not in row.region and "=" not in row.region
    )
    if not told:
        return None, ()
    path = out.with_suffix(".subsets.tsv")
    _write_subsets(path, told)
    first = next(metric for metric in HEADLINES if any(row.metric == metric for row in told))
    return path, tuple(row for row in told if row.metric == first and not row.model.startswith("floor"))


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
