"""The study of priors: which pretraining puts what into which half, and whether it helps from few labels.

Usage: python benchmarks/priors/study.py [--out runs/priors] [--rows mae ours ...] [--seeds 0 1 2] [--steps 1600] [--jobs 2] [--gpu]

Makes its own data (synthetic heads at 4 mm; truth known), pretrains every row with every seed for the same number of steps on
the same data, asks each frozen net what its halves tell (``disentanglement``), fine-tunes each on 16 cases of three tasks
beside a net from scratch, a trivial guess and a ceiling, and writes README.md beside this file with what is there so far. Every step
leaves its result in OUT and is not done again; the same command goes on where it was cut off.

Choices (weights of the ``ours`` row, learning rate) were made on the family's val split; the tables are of its test split.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import fewshot
import numpy as np
import pandas as pd
import yaml
from rows import ROWS, UNREFINED, recipe

import neuroprior
from neuroprior.assessments import disentanglement as dis
from neuroprior.core import artifacts
from neuroprior.data.store import Store
from neuroprior.inference.model import load

HERE = Path(__file__).resolve().parent
logger = logging.getLogger("study")

SCALES = {
    "toy": {
        "pre": 300,
        "travelling": 150,
        "few": 96,
        "full": 240,
        "spacing": 4.0,
        "patch": [16, 24, 16],
        "batch": 12,
        "lr": 2e-3,
    },
    "gpu": {
        "pre": 1000,
        "travelling": 300,
        "few": 200,
        "full": 500,
        "spacing": 2.0,
        "patch": [32, 48, 32],
        "batch": 16,
        "lr": 1e-3,
    },
}
"""Subjects of each family and the size of the runs."""


def make_data(out: Path, scale: dict[str, Any], workers: int) -> None:
    """Four families with different seeds: pretraining, travelling (probes), few-shot, and as much labelled data as a ceiling wants."""
    shares = {
        "pre": "train=0.95,val=0.05",
        "travelling": "train=0.4,val=0.2,test=0.4",
        "few": None,
        "full": "train=0.95,val=0.05",
    }
    for number, (name, split) in enumerate(shares.items()):
        if artifacts.is_complete(out / "data" / f"{name}_store"):
            continue
        folder, index = out / "data" / name, out / "data" / f"{name}.parquet"
        settings: dict[str, Any] = {"healthy": 0.5}
        if name in ("few", "full"):  # healthy or not: a lesion that the contrasts show
            settings["lesions"] = "infarct,tumour"
        neuroprior.synthesise(
            folder, subjects=scale[name], spacing=scale["spacing"], seed=100 + number, skull=False, travelling=name == "travelling",
            workers=workers, progress=False, **settings,
        )  # fmt: skip
        if split is None:
            table = pd.read_csv(folder / "participants.tsv", sep="\t")
            order = np.random.default_rng(0).permutation(len(table))
            splits = np.array(["test"] * len(table), dtype=object)
            splits[order[:16]], splits[order[16:32]] = "train", "val"
            file = out / "data" / "few_split.tsv"
            pd.DataFrame({"participant_id": table["participant_id"], "split": splits}).to_csv(file, sep="\t", index=False)
            neuroprior.index([folder], out=index, checks="header", split="train=1", split_file=file)
        else:
            neuroprior.index([folder], out=index, checks="header", split=split)
        neuroprior.prepare(index, out=out / "data" / f"{name}_store", spacing=str(scale["spacing"]))
    if not (out / "data" / "anatomy.parquet").exists():
        neuroprior.anatomy(
            out / "data" / "pre.parquet", source="labelmap", out=out / "data" / "anatomy.parquet", set=["label=dseg"]
        )


def pretrain_row(out: Path, row: str, seed: int, settings: dict[str, Any]) -> str:
    """One pretraining; returns a line about it."""
    import torch

    torch.set_num_threads(settings["threads"])
    run = out / "runs" / f"{row}-{seed}"
    if not artifacts.is_complete(run):
        path = out / "recipes" / f"{row}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        plan = recipe(row, steps=settings["steps"], batch=settings["batch"], patch=settings["patch"], lr=settings["lr"])
        artifacts.write_text(path, yaml.safe_dump(plan, sort_keys=False))
        done = neuroprior.pretrain(
            out / "data" / "pre_store",
            recipe=str(path),
            anatomy=out / "data" / "anatomy.parquet",
            out=run,
            set=[f"training.seed={seed}"],
        )
        if done.exit_code:  # interrupted: the study ends here, and the same command goes on
            raise SystemExit(done.exit_code)
    ledger = artifacts.read_json(run / "ledger.json")
    return f"{row}-{seed}: {ledger.get('wall_seconds', float('nan')):.0f} s"


def probe_seed(out: Path, rows: list[str], seed: int, split: str, patch: list[int]) -> str:
    """Assess the nets of one seed that are not assessed yet; the trivial rows once a seed."""
    import torch

    store = Store.open(out / "data" / "travelling_store")
    folder = out / "probes"
    folder.mkdir(exist_ok=True)
    views = {"misalignment_mm": 4.0, "box": patch, "seed": seed}
    config = dis.Config.model_validate(
        {"views": views, "probes": {"nonlinear": ["contrast"]}, "swaps": 24, "resamples": 500, "seed": 0}
    )
    for row in (*rows, *(name for name, of in UNREFINED.items() if of in rows)):
        run = out / "runs" / f"{UNREFINED.get(row, row)}-{seed}"
        table = folder / f"{split}-{row}-{seed}.parquet"
        if table.exists() or not artifacts.is_complete(run):
            continue
        start = time.perf_counter()
        net: Any = load(run).net
        if row in UNREFINED:
            for name in ("refine", "restore"):
                torch.nn.init.eye_(net.latent[name].weight)
                net.latent[name].offset.zero_()
        found = dis.assess_nets(
            {row: net}, store, evaluate=(split,), config=config, trivial=(), pictures=out / "pictures" / str(seed)
        )
        dis.write(found, table)
        logger.info("%s-%d probed in %.0f s", row, seed, time.perf_counter() - start)
    table = folder / f"{split}-trivial-{seed}.parquet"
    first = next((row for row in ("ours", "split_z", *rows) if artifacts.is_complete(out / "runs" / f"{row}-{seed}")), None)
    if first is not None and not table.exists():
        net = load(out / "runs" / f"{first}-{seed}").net
        found = dis.assess_nets(
            {"random_weights": dis.untrained(net, seed)}, store, evaluate=(split,), config=config, trivial=("outline", "raw_pixels")
        )  # fmt: skip
        dis.write(dis.merge([found, _ceiling(store, split, config)]), table)
    return f"probes of seed {seed}"


def _ceiling(store: Store, split: str, config: dis.Config) -> dis.Assessment:
    """The row ``true_volumes``: every regional volume itself as the features of a scan. What age can be told from the anatomy at all."""
    views = dis.Views(store, ("train",), (split,), config.views)
    scans = dis.describe(views)
    values = np.asarray(scans.numbers["volumes"], dtype=np.float32)
    return dis.assess([dis.Features("true_volumes", "image", pooled=values, spatial=values)], scans, config)


def run_all(jobs: int, tasks: list[tuple[Any, ...]]) -> None:
    """Call (function, arguments...) in processes; every failure is told and counted."""
    failed = 0
    if jobs == 1:
        for task in tasks:
            logger.info(task[0](*task[1:]))
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(*task): task for task in tasks}
        for number, future in enumerate(as_completed(waiting), 1):
            try:
                logger.info("%d of %d, %s", number, len(tasks), future.result())
            except Exception as error:  # noqa: BLE001 (one failed run must not end the others)
                failed += 1
                logger.error("%s failed: %s", waiting[future][1:4], error)
    if failed:
        raise SystemExit(f"{failed} of {len(tasks)} runs failed; the same command tries them again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/priors"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--few-share", type=float, default=1.0, help="share of the few-shot tasks' steps, for a try")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="larger families, boxes and batches, one run at a time")
    parser.add_argument(
        "--parts", nargs="+", default=["pretrain", "probe", "few", "report"], choices=["pretrain", "probe", "few", "report"]
    )
    parser.add_argument("--split", default="test", choices=["val", "test"], help="which travelling subjects are asked about")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    out: Path = given.out.resolve()
    scale = SCALES["gpu" if given.gpu else "toy"]
    jobs = 1 if given.gpu else given.jobs
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    settings = {**scale, "steps": given.steps, "few_share": given.few_share, "few_split": given.split, "threads": threads}
    out.mkdir(parents=True, exist_ok=True)
    make_data(out, scale, workers=jobs)
    if "pretrain" in given.parts:  # seed by seed, so that a cut-off study has whole seeds
        run_all(jobs, [(pretrain_row, out, row, seed, settings) for seed in given.seeds for row in given.rows])
    if "probe" in given.parts:
        run_all(jobs, [(probe_seed, out, given.rows, seed, given.split, scale["patch"]) for seed in given.seeds])
    if "few" in given.parts:
        given_rows = tuple(row for row in given.rows if not row.endswith("untrained"))
        rows = (*given_rows, *fewshot.SCRATCH, fewshot.SOLVED, fewshot.CEILING)
        run_all(jobs, [(fewshot.run, out, row, seed, settings) for seed in given.seeds for row in rows])
    if "report" in given.parts:
        from report import write_report

        artifacts.write_json(
            out / "study.json", {"scale": scale, "steps": given.steps, "few_share": given.few_share, "split": given.split}
        )
        logger.info("written: %s", write_report(out, HERE / "README.md"))
        print(json.dumps({"benchmark": "priors", "out": out.name}))


if __name__ == "__main__":
    main()
