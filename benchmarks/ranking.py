"""Three models ranked: from scratch, plain MAE and a split objective, on three synthetic tasks with few labelled cases.

Usage: python benchmarks/ranking.py [--out runs/ranking] [--seeds 0 1 2] [--steps 200] [--few-steps 300]

Makes its own heads at 4 mm (truth known), pretrains ``mae`` and ``ours`` (rows of ``priors/rows.py``) with every seed, fine-tunes all three on
lesions, health and age with the same labelled subjects and steps, predicts and scores the test subjects, and writes a report whose first section ranks
the models over subjects and seeds. Every step leaves its result in OUT and is not done again: the same command goes on where it was cut off.
Only commands of ``neuroprior`` are used, with their Python names. Prints one JSON line with the order and how far the data support it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

import neuroprior
from neuroprior.core import artifacts
from priors.rows import recipe

logger = logging.getLogger("ranking")

PATCH, BATCH, LR, SPACING = [16, 24, 16], 12, 2e-3, "4"
PRETRAINED = {"mae": "mae", "split": "ours"}
"""Name in tables -> row of the study of priors."""
TASKS = (
    ("lesion", "segmentation", "lesion", "FLAIR"),
    ("health", "classification", "health", "T1w,T2w,FLAIR"),
    ("age", "regression", "age", "T1w,T2w,FLAIR"),
)
"""Name, task, target, contrasts."""
LABELLED, TEST = 24, 72
"""Subjects that are learned from, and that are tested on."""


def make_data(out: Path, subjects: int) -> None:
    """Two families with different seeds: without labels, and with them."""
    for number, (name, count) in enumerate({"pre": subjects, "few": LABELLED + TEST}.items()):
        folder, index, store = out / "data" / name, out / "data" / f"{name}.parquet", out / "data" / f"{name}_store"
        if artifacts.is_complete(store):
            continue
        neuroprior.synthesise(
            folder, subjects=count, spacing=float(SPACING), seed=200 + number, skull=False, healthy=0.5, lesions="infarct,tumour",
            workers=1, progress=False,
        )  # fmt: skip
        table = pd.read_csv(folder / "participants.tsv", sep="\t")
        if name == "few":
            splits = np.array(["test"] * count, dtype=object)
            splits[np.random.default_rng(0).permutation(count)[:LABELLED]] = "train"
        else:
            splits = np.array(["train"] * count, dtype=object)
        file = out / "data" / f"{name}_split.tsv"
        pd.DataFrame({"participant_id": table["participant_id"], "split": splits}).to_csv(file, sep="\t", index=False)
        neuroprior.index([folder], out=index, checks="header", split="train=1", split_file=file)
        neuroprior.prepare(index, out=store, spacing=SPACING)
    if not (out / "data" / "anatomy.parquet").exists():
        neuroprior.anatomy(
            out / "data" / "pre.parquet", source="labelmap", out=out / "data" / "anatomy.parquet", set=["label=dseg"]
        )


def pretrained(out: Path, name: str, seed: int, steps: int) -> str:
    """The run folder of one pretraining."""
    run = out / "runs" / f"{name}-{seed}"
    path = out / "recipes" / f"{name}.yaml"
    if not artifacts.is_complete(run):
        path.parent.mkdir(parents=True, exist_ok=True)
        plan = recipe(PRETRAINED[name], steps=steps, batch=BATCH, patch=PATCH, lr=LR)
        artifacts.write_text(path, yaml.safe_dump(plan, sort_keys=False))
        neuroprior.pretrain(
            out / "data" / "pre_store", recipe=str(path), anatomy=out / "data" / "anatomy.parquet", out=run,
            set=[f"training.seed={seed}"],
        )  # fmt: skip
        if not artifacts.is_complete(run):
            raise SystemExit(75)  # interrupted: the same command goes on
    return str(run)


def judged(out: Path, name: str, source: str, seed: int, steps: int) -> list[Path]:
    """Score tables of one model and seed on the three tasks."""
    store, index = out / "data" / "few_store", out / "data" / "few.parquet"
    tables = []
    for task_name, task, target, contrasts in TASKS:
        label = f"{task_name}-{name}-{seed}"
        table = out / "scores" / f"{label}.parquet"
        tables.append(table)
        if table.exists():
            continue
        start = time.perf_counter()
        done = neuroprior.finetune(
            store, source, task, target, contrasts=contrasts, out=out / "few" / label, recipe=str(out / "recipes" / "split.yaml"), seed=seed,
            set=[f"training.steps={steps}", f"data.patch={2 * PATCH[0]}"],
        )  # fmt: skip
        if done.exit_code:  # interrupted: what it wrote is no result
            raise SystemExit(done.exit_code)
        neuroprior.predict(out / "few" / label, [str(index)], out=out / "predictions" / label, split="test", preset="fast")
        neuroprior.evaluate(out / "predictions" / label, index, out=table, name=f"{name} seed {seed}", resample=True)
        logger.info("%s: %.0f s", label, time.perf_counter() - start)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ranking"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--subjects", type=int, default=160, help="without labels")
    parser.add_argument("--steps", type=int, default=200, help="of each pretraining")
    parser.add_argument("--few-steps", type=int, default=300, help="of each fine-tuning")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    out: Path = given.out.resolve()
    start = time.process_time()
    make_data(out, given.subjects)
    logger.info("data: %.0f s of processor", time.process_time() - start)
    tables: list[Path] = []
    for seed in given.seeds:  # seed by seed, so that a cut-off study has whole seeds
        sources = {name: pretrained(out, name, seed, given.steps) for name in PRETRAINED}
        for name, source in {"scratch": "scratch", **sources}.items():
            tables += judged(out, name, source, seed, given.few_steps)
    page = neuroprior.report(tables, out=out / "report", title="Three models on three synthetic tasks")
    numbers = neuroprior.report(tables, out=out / "report", format="json")
    found = artifacts.read_json(numbers)["ranking"]
    print(json.dumps({"benchmark": "ranking", "seconds_of_processor_now": round(time.process_time() - start), "page": page.name,
                      "order": found["models"], "sentence": found["sentence"]}))  # fmt: skip


if __name__ == "__main__":
    main()
