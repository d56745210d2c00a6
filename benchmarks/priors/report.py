"""The study's tables from what lies in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fewshot
import numpy as np
from rows import ROWS, UNREFINED

from neuroprior.assessments import disentanglement as dis
from neuroprior.core import artifacts

COLUMNS: tuple[tuple[str, tuple[str, str, str, str]], ...] = (
    ("same subject, other contrast (pooled)", ("subject across contrasts", "retrieval_top1", "pooled", "higher")),
    ("same subject, other contrast (spatial)", ("subject across contrasts", "retrieval_top1", "spatial", "higher")),
    ("same subject, other scanner (spatial)", ("subject across scanners", "retrieval_top1", "spatial", "higher")),
    ("ICC(3,1) PC1 over scanners", ("scanners", "icc_pc1", "pooled", "higher")),
    ("age R2, linear (spatial)", ("age", "linear_r2", "spatial", "higher")),
    ("regional volumes R2, linear (spatial)", ("volumes", "linear_r2", "spatial", "higher")),
    ("contrast, kNN (spatial)", ("contrast", "knn_balanced_accuracy", "spatial", "lower")),
    ("contrast, perceptron (spatial)", ("contrast", "mlp_balanced_accuracy", "spatial", "lower")),
    ("contrast, linear (spatial)", ("contrast", "linear_balanced_accuracy", "spatial", "lower")),
    ("lesion in its place on FLAIR, AUROC", ("lesion", "linear_auroc_same_place", "cells, FLAIR", "higher")),
    ("between-subject / across-contrast variance", ("subject", "variance_ratio_contrasts", "sampled", "higher")),
)
"""Heading -> target, metric, features, which direction is meant for the anatomy half."""
TRIVIAL = ("outline", "raw_pixels", "random_weights")
CONSTANT = {
    "linear_r2": 0.0,
    "knn_balanced_accuracy": 1 / 3,
    "linear_balanced_accuracy": 1 / 3,
    "mlp_balanced_accuracy": 1 / 3,
    "linear_auroc_same_place": 0.5,
}
"""What one answer for everybody scores, by definition."""
CEILING = "true_volumes"


def _found(out: Path, row: str, split: str) -> dict[int, dis.Assessment]:
    """Seed -> assessment."""
    files = sorted((out / "probes").glob(f"{split}-{row}-*.parquet"))
    return {int(file.stem.rsplit("-", 1)[1]): dis.read(file) for file in files}


def _cell(found: dict[int, dis.Assessment], model: str, region: str, question: tuple[str, str, str, str]) -> str:
    """Mean over seeds, with the interval of the seeds' pooled draws over subjects."""
    target, metric, condition, _ = question
    values, draws = [], []
    for assessment in found.values():
        key = (model, target, metric, region, condition)
        row = next((score for score in assessment.scores if dis._key(score) == key), None)
        if row is not None and row.value is not None:
            values.append(row.value)
            draws.append(assessment.draws[key])
    if not values:
        return "–"
    pooled = np.concatenate(draws)
    low, high = np.nanpercentile(pooled, [2.5, 97.5])
    return f"{np.mean(values):.2f} [{low:.2f}, {high:.2f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in rows)]


def disentanglement_table(out: Path, split: str) -> list[str]:
    """A table for the anatomy half and one for the contrast half."""
    lines: list[str] = []
    trivial = _found(out, "trivial", split)
    for half in ("anatomy", "contrast"):
        floor = [CONSTANT.get(metric) for _, (_, metric, _, _) in COLUMNS]
        rows = [["*constant*", "", *("–" if value is None else f"{value:.2f}" for value in floor)]]
        for model in TRIVIAL:
            regions = sorted({score.region for a in trivial.values() for score in a.scores if score.model == model})
            region = half if half in regions else (regions[0] if regions else half)
            rows.append([f"*{model}*", str(len(trivial)), *(_cell(trivial, model, region, question) for _, question in COLUMNS)])
        rows.append([f"*{CEILING}*", str(len(trivial)), *(_cell(trivial, CEILING, "image", question) for _, question in COLUMNS)])
        for row in (*ROWS, *UNREFINED):
            found = _found(out, row, split)
            if found and any(score.region == half and score.value is not None for a in found.values() for score in a.scores):
                rows.append([row, str(len(found)), *(_cell(found, row, half, question) for _, question in COLUMNS)])
        lines += [f"### {half} half", "", *_table(["row", "seeds", *(name for name, _ in COLUMNS)], rows), ""]
    return lines


def difference_table(out: Path, split: str, row: str = "ours") -> list[str]:
    """A row minus each trivial row: mean over seeds, interval of the paired draws over subjects, pooled over seeds."""
    found, trivial = _found(out, row, split), _found(out, "trivial", split)
    lines = []
    for heading, (target, metric, condition, _) in COLUMNS:
        half = "contrast" if target == "lesion" else "anatomy"
        cells = []
        for other in TRIVIAL:
            values, draws = [], []
            for seed in sorted(found.keys() & trivial.keys()):
                both = dis.merge([found[seed], trivial[seed]])
                left = (row, target, metric, half, condition)
                right = (other, target, metric, half if other == "random_weights" else "image", condition)
                if left in both.draws and right in both.draws:
                    values.append(dis.difference(both, left, right)["difference"])
                    draws.append(both.draws[left].astype(float) - both.draws[right])
            low, high = np.nanpercentile(np.concatenate(draws), [2.5, 97.5]) if draws else (0.0, 0.0)
            cells.append(f"{np.mean(values):+.2f} [{low:+.2f}, {high:+.2f}]" if values else "–")
        lines.append([heading, half, *cells])
    return _table(["question", "half", *(f"{row} - {name}" for name in TRIVIAL)], lines)


def halves_table(out: Path, split: str, row: str = "ours") -> list[str]:
    """The anatomy half of a row minus its contrast half, paired over subjects."""
    found, lines = _found(out, row, split), []
    for heading, (target, metric, condition, _) in COLUMNS:
        values, draws = [], []
        for one in found.values():
            left, right = ((row, target, metric, half, condition) for half in ("anatomy", "contrast"))
            if left in one.draws and right in one.draws:
                values.append(dis.difference(one, left, right)["difference"])
                draws.append(one.draws[left].astype(float) - one.draws[right])
        if values:
            low, high = np.nanpercentile(np.concatenate(draws), [2.5, 97.5])
            lines.append([heading, f"{np.mean(values):+.2f} [{low:+.2f}, {high:+.2f}]"])
    return _table(["question", f"{row}: anatomy half - contrast half"], lines)


def cost_table(out: Path) -> list[str]:
    """Parameters, operations and seconds of each row."""
    rows = []
    for row in ROWS:
        ledgers = [artifacts.read_json(path) for path in sorted((out / "runs").glob(f"{row}-*/ledger.json"))]
        if not ledgers:
            continue
        info = artifacts.read_json(next((out / "runs").glob(f"{row}-*/model/model.json")))

        def mean(name: str, ledgers: list[dict[str, Any]] = ledgers) -> float:
            found = [ledger[name] for ledger in ledgers if ledger.get(name) is not None]
            return float(np.mean(found)) if found else float("nan")

        rows.append([
            row, str(len(ledgers)), f"{info['parameters']['net'] / 1e6:.2f}", f"{mean('forward_flops') / 1e9:.1f}", f"{mean('wall_seconds'):.0f}",
        ])  # fmt: skip
    return _table(["row", "seeds", "parameters (M)", "forward pass of a batch (GFLOP)", "seconds"], rows)


def few_table(out: Path, split: str) -> list[str]:
    """Few-shot scores of every row that was run."""
    seeds = sorted({int(file.stem.rsplit("-", 1)[1]) for file in (out / "few").glob("*-scratch-[0-9]*.parquet")})
    if not seeds:
        return ["Not run yet."]
    return _table(*fewshot.table(out, list(ROWS), seeds, split))


def _plans(patch: Sequence[int], share: float) -> str:
    """How each task is learned, in words."""
    told = []
    for name, plan in fewshot.TASKS.items():
        box = (2 * patch[0],) * 3 if plan.whole else patch
        told.append(f"{name} {round(plan.steps * share)}, {plan.scratch:g}, {plan.pretrained:g}, {' x '.join(map(str, box))}")
    return "; ".join(told)


def write_report(out: Path, path: Path) -> Path:
    """README.md of the study."""
    facts = artifacts.read_json(out / "study.json")
    scale = facts["scale"]
    lines = [
        "# Priors: which pretraining puts what into which half", "",
        "Made by `python benchmarks/priors/study.py`; the rows are in `rows.py`. Synthetic heads at "
        f"{scale['spacing']:g} mm, {scale['pre']} subjects for pretraining (T1w, T2w, FLAIR, one scanner each), boxes of {' x '.join(map(str, scale['patch']))} "
        f"voxels, batches of {scale['batch']} pairs, {facts['steps']} steps for every row. Probes: {scale['travelling']} other subjects, each "
        "scanned on four scanners; fitted on 40 % of them, the weights of `ours` chosen on 20 %, the table of the other 40 % "
        f"(split {facts['split']}). A box of the same size in the middle of the head is seen, each scan's shifted by up to 4 mm along each axis by a draw of its own; what is left of the outline in it is the row `outline`. Intervals: 95 %, bootstrap over "
        "subjects, pooled over seeds. `random_weights` has the architecture of `ours`. Floor: `constant`, and for lesions the place alone (`outline`); ceiling: for age "
        "and volumes the true volumes (`true_volumes`, ridge), for lesions the smoothed largest and smallest value of a cell (`raw_pixels`).", "",
        "## Disentanglement", "", *disentanglement_table(out, facts["split"]),
        "### ours minus what knows nothing", "", *difference_table(out, facts["split"]), "",
        "### The halves of ours", "", *halves_table(out, facts["split"]), "",
        "## From 16 cases", "",
        f"Fine-tuning of all weights on 16 of {scale['few']} subjects of a third family; {facts['split']} subjects scored. Steps (those of every row), learning rate "
        f"from scratch and pretrained, and box: {_plans(scale['patch'], facts['few_share'])}. `{fewshot.SOLVED}` leaves the net of `ours` as it is and solves a linear head on "
        f"it (`--strategy closed-form`, seconds). `{fewshot.CEILING}` is the net from scratch with {scale['full']} labelled subjects and three times the steps. `scratch_vit` is the net of `vit_mae`, whose row is compared with it.", "", *few_table(out, facts["split"]), "",
        "## Cost", "", *cost_table(out), "",
    ]  # fmt: skip
    notes = path.parent / "NOTES.md"
    if notes.exists():
        lines += [notes.read_text(encoding="utf-8").strip(), ""]
    artifacts.write_text(path, "\n".join(lines))
    return path
