"""Scores in a model card: a section of the model folder's ``README.md`` between two markers, made from a table of scores.

Run again with the same name it replaces itself; under another name (another test set) it stands beside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..core import artifacts
from ..core.records import Score
from ._answers import NOT_ASSESSED
from .accuracy import printed_rule
from .significance import LOWER_IS_BETTER

SHOWN = {
    "segmentation": ("dice", "nsd", "hd95_mm", "lesion_f1", "lesion_recall", "volume_error_ml", "empty_specificity"),
    "classification": ("auroc", "auprc", "balanced_accuracy", "sensitivity", "specificity", "ece", "brier", "nll"),
    "regression": ("mae", "rmse", "mean_error", "pearson_r", "error_slope", "coverage", "interval_width"),
}
"""Task -> the metrics of the first table."""
ASSESSED = (
    "aurc", "excess_aurc", "risk_at_coverage", "coverage", "fairness", "lesion_recall_pooled", "prevalence", "seconds_per_case",
    "peak_memory_mb", "parameters", "device_hours",
)  # fmt: skip
"""Metrics of the second table, beside gaps, shifts and worst groups."""


def cell(row: Score) -> str:
    """A score with its interval and count, as a card shows it."""
    if row.value is None:
        return f"not defined ({row.note})" if row.note else "not defined"
    between = "" if row.low is None or row.high is None else f" [{_number(row.low)}, {_number(row.high)}]"
    return f"{_number(row.value)}{between}, n = {row.n}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def section(rows: Sequence[Score], model: str, *, rule: str = "honest", table: str = "") -> str:
    """The section's text in Markdown.

    Args:
        rows: of a table of scores.
        model: whose rows; rows of floors stand beside.
        rule: for empty masks, of a segmentation.
        table: name of the file of scores.
    """
    whole = [row for row in rows if row.case == "all" and row.condition == "clean"]
    lines = [f"## Scores: {model}", ""]
    for task, target in dict.fromkeys((row.task, row.target) for row in whole if row.model == model):
        mine = [row for row in whole if (row.model, row.task, row.target) == (model, task, target)]
        floor = {
            (row.metric, row.region): row
            for row in whole if row.model.startswith("floor") and (row.task, row.target) == (task, target)
        }  # fmt: skip
        name = next((row.model for row in floor.values()), "")
        lines += [f"{task} of {target}; 95 % intervals over subjects", "", f"| | value |{f' {name} |' if name else ''}"]
        lines.append("|---|---|" + ("---|" if name else ""))
        for row in mine:
            if (
                row.metric in SHOWN.get(task, ())
                and "=" not in row.region
                and "," not in row.region
                and "temperature" not in row.region
            ):
                beside = floor.get((row.metric, row.region))
                third = f" {'–' if beside is None else cell(beside)} |" if name else ""
                lines.append(f"| {_name(row)} | {cell(row)} |{third}")
        more = [row for row in mine if _assessed(row) and not (row.metric in SHOWN.get(task, ()) and row.region == "all")]
        if more:
            lines += ["", "| assessed | value | |", "|---|---|---|"]
            lines += [f"| {_name(row)} | {cell(row)} | {'' if row.value is None else _plain(row.note)} |" for row in more]
        reasons = [f"{row.region.replace('_', ' ')}: {_plain(row.note)}" for row in mine if row.metric == NOT_ASSESSED]
        if reasons:
            lines += ["", "Not assessed: " + "; ".join(reasons) + "."]
        if task == "segmentation":
            lines += ["", *(f"{line}  " for line in printed_rule(rule).splitlines())]
        lines.append("")
    if table:
        lines.append(f"Computed by `neuroprior evaluate` from `{table}`, which holds every case.")
    return "\n".join(lines).rstrip()


def _assessed(row: Score) -> bool:
    return row.value is not None and (row.metric in ASSESSED or row.metric.endswith(("_gap", "_shift", "_worst_group")))


def _name(row: Score) -> str:
    name = row.metric.replace("_", " ") + ("" if row.region in ("all", row.target) else f" ({row.region})")
    return name + (" ↓" if row.metric in LOWER_IS_BETTER else "")


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def write(folder: Path, rows: Sequence[Score], model: str, *, rule: str = "honest", table: str = "") -> Path:
    """Put the section into the card of a model folder; everything outside its markers stays as it is.

    Args:
        folder: model folder, a run folder that holds one, or an ensemble's folder.
        rows, model, rule, table: as in :func:`section`.

    Returns:
        The card.

    Raises:
        ArtifactError: the folder holds no model.
    """
    from ..inference import ensemble
    from ..inference import model as models

    place = folder if ensemble.is_ensemble(folder) else models.resolve(folder)
    card = place / models.CARD
    before = card.read_text(encoding="utf-8") if card.is_file() else ""
    key = re.sub(r"[^\w. +-]", "-", model)
    begin, end = f"<!-- begin scores: {key} -->", f"<!-- end scores: {key} -->"
    block = f"{begin}\n{section(rows, model, rule=rule, table=table)}\n{end}"
    found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", before, re.DOTALL)
    if found:
        text = before[: found.start()] + block + before[found.end() :]
    else:
        text = f"{before.rstrip()}\n\n{block}\n".lstrip("\n")
    if text != before:
        artifacts.write_text(card, text)
    return card
