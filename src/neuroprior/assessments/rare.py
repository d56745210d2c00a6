"""Rare things: is the rarest class found, are the smallest lesions, and how many labelled subjects does it take?

A class: its sensitivity, and the area under its precision-recall curve against the rest, whose floor is the prevalence (Saito and Rehmsmeier 2015), printed
beside it. A lesion: the share found in each size bin over all lesions of all cases (a case with forty counts more than one with two), where
``accuracy`` gives the mean over cases. A structure: in how many of the cases that have it any of it is found. The k-shot curve is read
from a folder of ``neuroprior fewshot``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ..core.config import Config as BaseConfig
from ..core.errors import InputError
from ..core.records import Score
from ..metrics import auroc
from ..metrics._bootstrap import wilson
from ._answers import Answers, Groups, not_assessed
from .accuracy import SIZE_BINS_ML, caution, mean_of, set_interval

FEWSHOT = "few-shot"
"""Condition of the rows of a k-shot curve."""


class Config(BaseConfig):
    """What counts as rare."""

    classes: int = Field(default=3, ge=1)
    """At most this many classes, the rarest first."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Classes of at most this share of the cases."""


def assess(found: Answers, groups: Groups, info: Mapping[str, Any], config: Config | None = None) -> list[Score]:
    """Sensitivity for what is rare.

    Args:
        found: answers of one model.
        groups, info: not used, but ``info["classes"]`` names classes of which there may be no case.
        config: what counts as rare.

    Returns:
        Of a classification ``sensitivity``, ``auprc`` and ``prevalence`` in regions ``class=name``; of a segmentation ``lesion_recall_pooled`` in
        regions ``lesion, small`` and ``sensitivity`` of each structure; one row with the reason otherwise.
    """
    config = config or Config()
    context = found.context
    if context.task == "regression":
        return [not_assessed(context, "rare", "a number has no rare class; see error_slope for its ends")]
    made = _classes(found, info, config) if context.task == "classification" else [*_lesions(found), *_structures(found)]
    return made or [not_assessed(context, "rare", "no case has a structure to find")]


def _classes(found: Answers, info: Mapping[str, Any], config: Config) -> list[Score]:
    context = found.context
    n = len(found.cases)
    names = list(dict.fromkeys([*map(str, info.get("classes") or ()), *found.classes]))
    count = {name: int((found.truth == name).sum()) for name in names}
    rare = sorted((name for name in names if count[name] <= config.share * n), key=lambda name: (count[name], name))
    made = []
    for name in rare[: config.classes]:
        region, yes = f"class={name}", found.truth == name
        prevalence = count[name] / n
        low, high = wilson(prevalence, len(set(found.subjects)))
        made.append(
            replace(
                context.row("all", "all", "prevalence", region, prevalence, f"{count[name]} of {n} cases", n=n),
                low=low,
                high=high,
            )
        )
        if not count[name]:
            made.append(context.row("all", "all", "sensitivity", region, float("nan"), "not defined: no case of the class", n=0))
            continue
        who = [found.subjects[k] for k in np.flatnonzero(yes)]
        hit = (found.guess[yes] == name).astype(float)
        low, high = mean_of(context, "correct", who, hit)
        row = context.row("all", "all", "sensitivity", region, float(hit.mean()), caution(who, (low, high)), n=len(hit))
        made.append(replace(row, low=low, high=high))
        if name not in found.classes:
            continue
        p = found.probabilities[:, list(found.classes).index(name)]
        kept = np.flatnonzero(np.isfinite(p))
        subjects = [found.subjects[k] for k in kept]
        t, q = yes[kept], p[kept]
        value = auroc.auprc(t, q)
        low, high = (
            set_interval(context, subjects, lambda k, t=t, q=q: auroc.auprc(t[k], q[k])) if np.isfinite(value) else (None, None)
        )
        note = (
            f"floor: the prevalence, {t.mean():.3g}; {value / t.mean():.2g} times it"
            if np.isfinite(value)
            else "not defined: one class only"
        )
        made.append(replace(context.row("all", "all", "auprc", region, value, note, n=kept.size), low=low, high=high))
    return made


def _lesions(found: Answers) -> list[Score]:
    """Over all lesions: found ones of a size bin over all of that size."""
    context = found.context
    made = []
    sizes = {name: (low, high) for name, low, high in SIZE_BINS_ML}
    for region in found.regions("lesion_count"):
        total = np.nan_to_num(found.values("lesion_count", region))
        hits = np.nan_to_num(found.values("lesion_recall", region)) * total
        kept = np.flatnonzero(total > 0)
        low_ml, high_ml = sizes.get(region.rsplit(", ", 1)[-1], (0.0, np.inf))
        size = f"{low_ml:g} ml and more" if np.isinf(high_ml) else f"{low_ml:g} to {high_ml:g} ml"
        if not kept.size:
            made.append(context.row("all", "all", "lesion_recall_pooled", region, float("nan"), f"no lesion of {size}", n=0))
            continue
        who = [found.subjects[k] for k in kept]

        def pooled(k: np.ndarray, kept: np.ndarray = kept, hits: np.ndarray = hits, total: np.ndarray = total) -> float:
            return float(hits[kept[k]].sum() / total[kept[k]].sum())

        low, high = set_interval(context, who, pooled)
        note = "; ".join(
            t for t in (f"{int(total.sum())} lesions of {size} in {kept.size} cases", caution(who, (low, high))) if t
        )
        row = context.row("all", "all", "lesion_recall_pooled", region, pooled(np.arange(kept.size)), note, n=int(total.sum()))
        made.append(replace(row, low=low, high=high))
    return made


def _structures(found: Answers) -> list[Score]:
    """The share of the cases that have a structure in which any of it is found."""
    context = found.context
    made = []
    regions = found.regions("true_volume_ml")
    volume = {region: found.values("true_volume_ml", region) for region in regions}
    order = sorted(regions, key=lambda region: float(np.nan_to_num(np.nanmean(np.append(volume[region], 0.0)))))
    for place, region in enumerate(order):
        there = np.flatnonzero(volume[region] > 0)
        if not there.size:
            made.append(context.row("all", "all", "sensitivity", region, float("nan"), "not defined: no case has it", n=0))
            continue
        hit = (np.nan_to_num(found.values("dice", region))[there] > 0).astype(float)
        who = [found.subjects[k] for k in there]
        low, high = mean_of(context, "correct", who, hit)
        note = f"any overlap; {volume[region][there].mean():.3g} ml on average" + (
            ", the smallest" if place == 0 and len(order) > 1 else ""
        )
        row = context.row(
            "all",
            "all",
            "sensitivity",
            region,
            float(hit.mean()),
            "; ".join(t for t in (note, caution(who, (low, high))) if t),
            n=len(hit),
        )
        made.append(replace(row, low=low, high=high))
    return made


def shot_curve(folder: Path, *, seed: int = 0) -> list[Score]:
    """The k-shot curve of a folder of ``neuroprior fewshot``.

    Args:
        folder: with ``curve.parquet``.
        seed: of the bootstrap.

    Returns:
        A row for each number of shots and starting point: the model is the starting point, the condition ``few-shot``, the region ``shots=5``.

    Raises:
        InputError: there is no curve.
    """
    import pandas as pd

    from . import fewshot

    path = folder / "curve.parquet" if folder.is_dir() else folder
    if not path.is_file():
        raise InputError("there is no k-shot curve here", file=folder, expected="curve.parquet, made by neuroprior fewshot")
    frame = pd.read_parquet(path)
    if "shots" not in frame:
        raise InputError("this table is no k-shot curve", file=path, expected="a column shots, as neuroprior fewshot writes it")
    rows: list[dict[str, Any]] = [
        {str(key): None if isinstance(value, float) and np.isnan(value) else value for key, value in row.items()}
        for row in frame[frame["condition"] != "floor"].to_dict("records")
    ]
    made = []
    for task, target in dict.fromkeys((row["task"], row["target"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["target"]) == (task, target)]
        metric = fewshot.CASE_METRIC[task]
        for point in fewshot.curve(mine, metric, seed=seed):
            spread = "" if point.spread is None else f", spread over seeds {point.spread:.3g}"
            made.append(Score(
                point.condition, task, target, "all", "all", metric, f"shots={point.shots}", FEWSHOT, point.value, point.low, point.high,
                n=point.seeds, note=f"{point.subjects:g} labelled subjects, {point.seeds} seeds{spread}",
            ))  # fmt: skip
    return made
