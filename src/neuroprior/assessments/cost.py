"""Cost: parameters, operations, time, memory, energy and device-hours, as the files recorded them, and what they bought.

Training costs come from ``ledger.json`` of the run that holds the model and from the lineage in ``model.json`` (what the models that it started from had cost);
prediction costs from the rows of ``predictions.tsv``. What was not recorded is a row without a value that says so: nothing is estimated, but the
operations of one window, which are counted on tensors without values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts
from ..core.config import Config as BaseConfig
from ..core.records import Score
from ._answers import Answers, Groups, not_assessed
from .accuracy import caution, mean_of
from .significance import LOWER_IS_BETTER

HEADLINE = {"segmentation": "dice", "classification": "auroc", "regression": "mae"}
"""Task -> the metric that is bought."""
COSTS = ("parameters", "device_hours", "training_flops", "energy_kwh", "seconds_per_case", "peak_memory_mb", "flops_per_window")
"""Costs that a Pareto front can be drawn against."""


class Config(BaseConfig):
    """What is counted."""

    flops: bool = True
    """Count the operations of one window (builds the net without weights; needs the model folder)."""


def gather(model: Path | None) -> dict[str, Any]:
    """What the files of a model say of its cost.

    Args:
        model: a model folder, a run folder that holds one, or an ensemble's folder; None where it is not known.

    Returns:
        Plain data: ``parameters``, ``ledger`` (of the run, or None), ``lineage`` (the recorded costs of earlier models), ``net``, ``window``, ``members``.

    Raises:
        ArtifactError: the folder holds no model.
    """
    if model is None:
        return {}
    from ..inference import ensemble
    from ..inference import model as models

    if ensemble.is_ensemble(model):
        folders = sorted((model / "members").iterdir(), key=lambda path: path.name)
        infos = [models.read_info(folder) for folder in folders]
        return {
            "parameters": sum(sum(info["parameters"].values()) for info in infos), "members": len(infos), "ledger": None,
            "lineage": [], "net": infos[0]["net"], "window": (infos[0].get("task") or {}).get("window"), "described": "ensemble",
        }  # fmt: skip
    folder = models.resolve(model)
    info = models.read_info(folder)
    book = next((place / "ledger.json" for place in (folder, folder.parent) if (place / "ledger.json").is_file()), None)
    return {
        "parameters": sum(info["parameters"].values()), "members": 1, "ledger": None if book is None else artifacts.read_json(book),
        "lineage": [entry.get("cost") for entry in info.get("lineage", ())], "net": info["net"],
        "window": (info.get("task") or {}).get("window"),
    }  # fmt: skip


def flops_per_window(net: Mapping[str, Any], window: Sequence[int]) -> int:
    """Operations of encoding and decoding one window of one contrast, counted by torch on tensors without values (a multiply-add is two).

    Args:
        net: ``name`` and ``config``, as in ``model.json``.
        window: voxels along each axis.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..inference.model import build_net

    with torch.device("meta"):
        built = build_net(str(net["name"]), net["config"]).eval()
        image = torch.empty((1, 1, *window))
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        made = built.encode(image)
        built.decode(made.anatomy, made.contrast)
    return int(counter.get_total_flops())


def assess(found: Answers, groups: Groups, info: Mapping[str, Any], config: Config | None = None) -> list[Score]:
    """What the model cost and what the cost bought.

    Args:
        found: answers of one model; rows ``seconds``, ``peak_memory_mb``, ``peak_gpu_memory_mb`` of its cases are prediction costs.
        groups: not used.
        info: ``info["cost"]`` is what :func:`gather` found.
        config: what is counted.

    Returns:
        Rows of the set: ``seconds_per_case`` (mean, with its interval), ``peak_memory_mb``, ``peak_gpu_memory_mb`` (largest), ``parameters``,
        ``flops_per_window``, ``device_hours``, ``training_flops``, ``energy_kwh``, and ``<metric>_per_device_hour``; one row with the reason where nothing was recorded.
    """
    config = config or Config()
    context = found.context
    made: list[Score] = []

    def add(metric: str, value: float | None, note: str, n: int = 1) -> None:
        made.append(context.row("all", "all", metric, "all", float("nan") if value is None else float(value), note, n=n))

    seconds = found.values("seconds")
    kept = np.flatnonzero(np.isfinite(seconds))
    if kept.size:
        who = [found.subjects[k] for k in kept]
        low, high = mean_of(context, "seconds", who, seconds[kept])
        note = "; ".join(t for t in ("reading, computing and writing", caution(who, (low, high))) if t)
        row = context.row("all", "all", "seconds_per_case", "all", float(seconds[kept].mean()), note, n=kept.size)
        made.append(replace(row, low=low, high=high))
    for metric in ("peak_memory_mb", "peak_gpu_memory_mb"):
        peak = found.values(metric)
        if np.isfinite(peak).any():
            add(metric, float(np.nanmax(peak)), "the largest of the cases", int(np.isfinite(peak).sum()))
    known = info.get("cost") or {}
    if known:
        _of_model(known, config, add)
        hours = next((row.value for row in made if row.metric == "device_hours"), None)
        bought = HEADLINE.get(context.task, "")
        if bought in found.measures:
            value = found.measured(bought, np.ones(len(found.cases), dtype=bool), "all").value
            if bought in LOWER_IS_BETTER:
                add(f"{bought}_per_device_hour", None, "an error is not divided by hours: see the Pareto front")
            elif hours and value is not None:
                add(f"{bought}_per_device_hour", value / hours, f"{bought} {value:.3g} over {hours:.3g} device-hours of training")
            else:
                add(f"{bought}_per_device_hour", None, "no device-hours were recorded")
    if not made:
        return [not_assessed(context, "cost", "neither times of cases nor a model folder (--model) are known")]
    if not known:
        made.append(not_assessed(context, "cost of training", "the model folder is not given: --model"))
    return made


def _of_model(known: Mapping[str, Any], config: Config, add: Any) -> None:
    several = f"of {known['members']} members" if known.get("members", 1) > 1 else ""
    add("parameters", known["parameters"], several)
    window = known.get("window")
    if config.flops and window:
        size = " x ".join(str(edge) for edge in window)
        try:
            add("flops_per_window", flops_per_window(known["net"], window), f"encoder and decoder, one contrast, {size} voxels")
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            add("flops_per_window", None, f"cannot be counted without values: {' '.join(str(error).split())[:120]}")
    ledger, earlier = known.get("ledger"), list(known.get("lineage") or ())
    if ledger is None:
        for metric in ("device_hours", "training_flops", "energy_kwh"):
            add(metric, None, "not recorded: there is no ledger.json beside the model")
        return
    unknown = sum(entry is None for entry in earlier)
    counted = [entry for entry in earlier if entry]
    devices = " and ".join(sorted({str(ledger.get("device")), *(str(entry.get("device")) for entry in counted)}))
    for metric, key in (("device_hours", "device_hours"), ("training_flops", "flops_total"), ("energy_kwh", "energy_kwh")):
        values = [entry.get(key) for entry in (ledger, *counted)]
        there = [float(value) for value in values if value is not None]
        parts = [
            f"on {devices}",
            f"with {len(counted)} earlier models" if counted else "",
            f"{unknown} earlier models not recorded" if unknown else "",
        ]
        if len(there) < len(values):
            parts.append(
                str(ledger.get("energy_note") or "not recorded")
                if key == "energy_kwh"
                else f"{len(values) - len(there)} not recorded"
            )
        add(metric, sum(there) if there else None, "; ".join(part for part in parts if part))


def pareto(rows: Sequence[Score], *, metric: str | None = None, cost: str = "device_hours") -> list[Score]:
    """Which of several models no other beats in both a metric and a cost.

    Args:
        rows: of the set, of several models (several tables of scores together); trivial floors are left out.
        metric: by default the headline of the task.
        cost: one of :data:`COSTS`.

    Returns:
        For each task and model that has both, ``on_pareto_front`` (1 or 0) in the region ``dice against device_hours``; its note has both
        numbers and names a model that beats it. Models that lack one have a row without a value that says which. Ties stay on the front.
    """
    whole = [row for row in rows if row.case == "all" and row.condition == "clean" and not row.model.startswith("floor")]
    made = []
    for task, target in dict.fromkeys((row.task, row.target) for row in whole):
        name = metric or HEADLINE.get(task, "")
        mine = [row for row in whole if (row.task, row.target) == (task, target)]
        models = list(dict.fromkeys(row.model for row in mine))
        if len(models) < 2:
            continue
        quality = {
            model: _mean([row for row in mine if row.model == model and row.metric == name and _plain(row.region)])
            for model in models
        }
        price = {
            model: _mean([row for row in mine if row.model == model and row.metric == cost and row.region == "all"])
            for model in models
        }
        sign = -1 if name in LOWER_IS_BETTER else 1
        region = f"{name} against {cost}"
        for model in models:
            q, c = quality[model], price[model]
            if q is None or c is None:
                note = f"no {name}" if q is None else f"no {cost} was recorded"
                made.append(Score(model, task, target, "all", "all", "on_pareto_front", region, "clean", None, n=0, note=note))
                continue
            better = [
                other for other in models
                if (theirs := quality[other]) is not None and (paid := price[other]) is not None
                and sign * theirs >= sign * q and paid <= c and (theirs, paid) != (q, c)
            ]  # fmt: skip
            note = f"{name} {q:.4g}, {cost} {c:.4g}" + (
                f"; {better[0]} is as good or better for as little or less" if better else ""
            )
            made.append(
                Score(model, task, target, "all", "all", "on_pareto_front", region, "clean", float(not better), n=1, note=note)
            )
    return made


def _plain(region: str) -> bool:
    return "," not in region and "=" not in region


def _mean(rows: Sequence[Score]) -> float | None:
    values = [row.value for row in rows if row.value is not None]
    return float(np.mean(values)) if values else None
