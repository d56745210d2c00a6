"""Rows of a score table as the parts of a report read them: names, numbers as text, and what belongs where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..assessments import _seeds
from ..assessments.significance import LOWER_IS_BETTER
from ..core.records import Score

if TYPE_CHECKING:
    import pandas as pd

ORDER = (
    "dice", "nsd", "hd95_mm", "lesion_f1", "lesion_recall", "empty_specificity", "volume_difference_ml", "auroc", "auprc",
    "balanced_accuracy", "f1", "sensitivity", "specificity", "ece", "brier", "mae", "rmse", "pearson_r",
)  # fmt: skip
"""The order of metrics in tables; others follow by name."""
CARD = {
    "segmentation": ("dice", "nsd", "lesion_f1", "hd95_mm", "dice_gap", "aurc"),
    "classification": ("auroc", "balanced_accuracy", "ece", "brier", "fairness", "excess_aurc"),
    "regression": ("mae", "pearson_r", "coverage", "mae_gap", "aurc"),
}
"""Task -> the metrics that the card shows."""
PER_CASE = {"segmentation": "dice", "regression": "absolute_error", "classification": "correct"}
"""Task -> the metric by which models are compared case by case and cases are called best or worst."""
FLOOR = "floor"
"""How the name of a trivial prediction begins."""
FEWSHOT = "few-shot"
"""Condition of the rows of a k-shot curve, which has a picture of its own."""
NOT_GROUPS = ("class", "coverage", "shots")
"""What stands before ``=`` in regions that are no groups of subjects."""
COSTS = {
    "device_hours": "device-hours of training", "parameters": "parameters", "training_flops": "operations of training", "energy_kwh": "kWh of training",
    "seconds_per_case": "seconds a case", "flops_per_window": "operations a window", "peak_memory_mb": "peak memory in MB",
    "peak_gpu_memory_mb": "peak GPU memory in MB",
}  # fmt: skip
"""Costs, in words."""


def missing(value: Any) -> bool:
    """Whether a cell holds no number: None, or the NaN that tables write for it."""
    return value is None or value != value


def number(value: Any) -> str:
    """A number as a table shows it; a dash where there is none."""
    return "–" if missing(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def cell(row: Mapping[str, Any]) -> str:
    """A score with its interval and count."""
    if missing(row["value"]):
        return "not defined"
    between = "" if missing(row["low"]) else f" [{number(row['low'])}, {number(row['high'])}]"
    return f"{number(row['value'])}{between} n={row['n']}"


def records(frame: pd.DataFrame) -> list[Score]:
    """The rows of a table as records; a missing number is None."""
    return [Score(**{k: None if v != v else v for k, v in row.items()}) for row in frame.to_dict("records")]


def stem(run: str) -> str:
    """The model that a run is of: its name without the seed at its end."""
    return _seeds.name_and_seed(run)[0]


def is_floor(model: str) -> bool:
    """Whether a model's name says that it is a trivial prediction."""
    return model.startswith(FLOOR)


def less_is_better(metric: str) -> bool:
    """Whether less of a metric is better; a gap or a fall is, whatever it is of."""
    plain = metric.removesuffix("_worst_group")
    return plain in LOWER_IS_BETTER or plain in COSTS or plain.endswith(("_gap", "_shift"))


def part_of(metric: str, region: str) -> str:
    """The part of the page that a row of the set belongs to; empty for the table of every metric."""
    before = region.split("=")[0] if "=" in region else ""
    if metric == "not_assessed":
        return "not assessed"
    if before == "shots":
        return "shots"
    if before == "coverage" or metric == "risk":
        return "selective"
    if before == "class" or metric in ("lesion_recall_pooled", "prevalence"):
        return "rare"
    if before:
        return "group"
    if metric.endswith(("_gap", "_worst_group", "_shift")) or metric == "fairness":
        return "groups"
    if metric in COSTS or metric.endswith("_per_device_hour"):
        return "cost"
    if region.endswith("temperature"):
        return "calibration"
    return ""
