"""Domain shift: the same model on other sites, scanners, field strengths, contrast subsets and resolutions.

Every group of every variable has a row. Where the model says what it learned from (``sites``, ``scanners``, ``datasets`` of its training data), cases from
there are held against cases from elsewhere. Where it does not, the worst group is held against all others; it is chosen after
looking, so its difference has a permutation p-value that chooses in the same way. Leave-one-site-out answers of ``neuroprior crossvalidate
--scheme loso`` are a variable too: ``left_out``, each group predicted by a model that never saw it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from ..core.config import Config as BaseConfig
from ..core.records import Score
from . import _subgroups
from ._answers import Answers, Groups, not_assessed
from .significance import LOWER_IS_BETTER

TRAINED_ON = {"site": "sites", "scanner": "scanners", "dataset": "datasets"}
"""Variable -> the key of the model's training data that names its values."""

SPACING_MM = (1.25, 2.5)
"""Edges of the resolution's groups, by the largest edge of a voxel in mm."""


class Config(BaseConfig):
    """What is compared."""

    variables: tuple[str, ...] = ("left_out", "dataset", "site", "scanner", "field_strength", "contrasts", "spacing")
    """Where they are known."""
    least: int = Field(default=5, ge=1)
    """Subjects below which a group is shown but not compared."""
    metrics: dict[str, tuple[str, ...]] = Field(
        default_factory=lambda: {
            "segmentation": ("dice", "nsd"),
            "classification": ("auroc", "balanced_accuracy"),
            "regression": ("mae",),
        }
    )
    """Task -> metrics."""


def spacing_group(spacing_mm: Sequence[float]) -> str:
    """The resolution's group of a scan: by the largest edge of its voxels."""
    largest = max(spacing_mm)
    low, high = SPACING_MM
    return f"<={low:g} mm" if largest <= low else f"{low:g}-{high:g} mm" if largest <= high else f">{high:g} mm"


def training_values(info: Mapping[str, Any], variable: str) -> tuple[str, ...]:
    """The values of a variable that the model learned its task from; empty where it does not say."""
    data = (info.get("model") or {}).get("data") or {}
    return tuple(str(value) for value in data.get(TRAINED_ON.get(variable, ""), ()) or ())


def assess(found: Answers, groups: Groups, info: Mapping[str, Any], config: Config | None = None) -> list[Score]:
    """Every group's value, and the fall from the known to the unknown.

    Args:
        found: answers of one model.
        groups: case -> variable -> group.
        info: of the predictions; ``info["model"]["data"]`` names what the model was trained on.
        config: variables, least, metrics.

    Returns:
        Rows of the metric in regions ``site=A``, and ``<metric>_shift`` in the region ``site``: in-domain less out-of-domain, or all others less the worst
        group, its sign turned for metrics of which less is better, so that positive is worse outside. One row with the reason where
        no variable has two groups.
    """
    config = config or Config()
    context = found.context
    made: list[Score] = []
    alone = []
    for variable in config.variables:
        labels = found.of(groups, variable)
        names = sorted({str(label) for label in labels} - {""})
        if not names:
            continue
        trained = training_values(info, variable)
        if len(names) == 1:
            seen = "" if not trained else ", seen in training" if names[0] in trained else ", not seen in training"
            alone.append(f"{variable}: {names[0]} only{seen}")
            continue
        for metric in config.metrics.get(context.task, ()):
            if metric not in found.measures:
                continue
            parts = _subgroups.parts(found, labels, metric, config.least)
            rows = _subgroups.group_rows(found, variable, metric, parts)
            if trained:
                rows = [_told(row, part.name in trained) for row, part in zip(rows, parts, strict=True)]
            made += rows
            made.append(_shift(found, variable, metric, parts, labels, trained, config.least))
    if made:
        return made
    reason = "; ".join(alone) or "nothing is known of " + ", ".join(config.variables)
    return [not_assessed(context, "domain_shift", f"no variable has two groups ({reason})")]


def _told(row: Score, seen: bool) -> Score:
    note = "seen in training" if seen else "not seen in training"
    return replace(row, note="; ".join(part for part in (note, row.note) if part))


def _shift(
    found: Answers, variable: str, metric: str, parts: Sequence[_subgroups.Part], labels: np.ndarray, trained: Sequence[str], least: int
) -> Score:  # fmt: skip
    """One difference of two sets of cases."""
    context = found.context
    known = {part.name for part in parts} & set(trained)
    others = {part.name for part in parts} - set(trained)
    p = None
    if trained and known and others:
        sides = np.where(np.isin(labels, list(known)), "in", np.where(np.isin(labels, list(others)), "out", ""))
        first, second = "in-domain", "out-of-domain"
    else:
        compared = [part for part in parts if not part.reason]
        if len(compared) < 2:
            left = "; ".join(f"{part.name}: {part.reason}" for part in parts if part.reason)
            return context.row("all", "all", f"{metric}_shift", variable, float("nan"), f"no two groups to compare; {left}", n=0)
        bad = compared[_subgroups.worst(metric, compared)]
        sides = np.where(labels == bad.name, "out", np.where(labels == "", "", "in"))
        first, second = "all others", f"worst group {bad.name}"
        values = [part.value for part in compared]
        p = _subgroups.by_chance(found, metric, compared, float(np.ptp(values)))
    pair = _subgroups.parts(found, sides.astype(object), metric, 1)  # "in" sorts before "out"
    if len(pair) < 2 or not all(np.isfinite(part.value) for part in pair):
        return context.row("all", "all", f"{metric}_shift", variable, float("nan"), "one side has no value", n=0)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    drawn = _subgroups.drawn(found, metric, pair)
    low, high = _subgroups.interval_of(None if drawn is None else sign * (drawn[:, 0] - drawn[:, 1]), pair)
    inside, outside = pair
    notes = [
        f"{first} {inside.value:.3g} (n = {inside.rows.size}) less {second} {outside.value:.3g} (n = {outside.rows.size}); positive is worse outside",
        "" if p is None else f"chosen after looking: p = {p:.2g} when groups are dealt at random",
        f"fewer than {least} subjects on a side" if min(part.subjects for part in pair) < least else "",
        "no interval: fewer than 3 subjects on a side" if low is None else "",
    ]
    n = inside.rows.size + outside.rows.size
    row = context.row(
        "all", "all", f"{metric}_shift", variable, sign * (inside.value - outside.value), "; ".join(t for t in notes if t), n=n
    )
    return replace(row, low=low, high=high)
