"""What the whole loop of ``neuroprior pretrain`` costs beside its bare step: loader, augmentation, trace, looks, Lightning.

    python benchmarks/loop.py [--recipe fomo25] [--steps 8] [--rounds 3] [--set training.batch=2]

Synthetic heads at 2 mm. ``bare`` is the step of the recipe (``engine/pace.py``) on one batch, over and over; ``loop`` is ``neuroprior.pretrain``, timed from the
end of one step to the end of the next, which holds drawing, cropping and augmenting the pairs and what is due after a step. A process each, in turn; the
first two steps do not count. Ratios are of means, round by round, by the clock and by processor. Appends a JSON line to benchmarks/results/loop.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import neuroprior
import record
from neuroprior.data.loading import make_loader
from neuroprior.data.pairs import PairDataset, collate_pairs
from neuroprior.data.store import Store
from neuroprior.engine import pace
from neuroprior.engine.loop import Loop
from neuroprior.inference import model as models
from neuroprior.objectives._recipe import read_recipe


def bare(store: Path, recipe: str, settings: list[str], steps: int, pipe: Any) -> None:
    """Seconds and processor seconds a step, of one batch."""
    plan = read_recipe(recipe, settings)
    config = plan.training
    opened = Store.open(store)
    plan = plan.fitted(dimension=0, contrasts=tuple(opened.data_summary()["contrasts"]))
    dataset = PairDataset(opened, ("train",), plan.data, seed=0, anatomy={}, batch=config.batch)
    objective = plan.build_objective(models.build_net(plan.net_name, plan.net))
    loader = make_loader(dataset, batch=config.batch, start_sample=0, n_samples=config.batch, collate=collate_pairs, workers=0)
    batch = next(iter(loader))
    found = pace.take(objective, config, itertools.repeat(batch, (steps + 2) * config.accumulate), 10**9)
    pipe.send((statistics.mean(found.step_s), statistics.mean(found.processor_s)))


def loop(store: Path, recipe: str, settings: list[str], steps: int, pipe: Any) -> None:
    """The same of a real run."""
    ends: list[tuple[float, float]] = []
    original = Loop.on_train_batch_end

    def noted(self: Loop, *rest: Any) -> None:
        ends.append((time.perf_counter(), time.process_time()))
        original(self, *rest)

    Loop.on_train_batch_end = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        plain = [
            f"training.steps={steps + 2}",
            "training.epochs=null",
            "training.validate_every=null",
            "training.panels_every=null",
        ]
        neuroprior.pretrain(store, recipe=recipe, out=Path(folder) / "run", set=[*settings, *plain])
    accumulate = read_recipe(recipe, settings).training.accumulate
    first, last = ends[2 * accumulate - 1], ends[-1]
    pipe.send(((last[0] - first[0]) / steps, (last[1] - first[1]) / steps))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="fomo25")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", action="extend", default=[])
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "loop": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        neuroprior.synthesise(folder / "heads", subjects=6, spacing=2.0, contrasts="T1w,T2w,FLAIR", workers=1, progress=False)
        neuroprior.index([folder / "heads"], out=folder / "index.parquet", split="train=1")
        neuroprior.prepare(folder / "index.parquet", out=folder / "store", spacing="2")
        for number in range(given.rounds):
            for kind, work in [("bare", bare), ("loop", loop)][:: 1 if number % 2 else -1]:
                mine, other = context.Pipe()
                process = context.Process(target=work, args=(folder / "store", given.recipe, given.set, given.steps, other))
                process.start()
                found[kind].append(mine.recv())
                process.join()
    ratios = [[a[k] / b[k] for a, b in zip(found["loop"], found["bare"], strict=True)] for k in (0, 1)]
    result = {
        "benchmark": "loop", "recipe": given.recipe, "settings": given.set, "steps": given.steps, "rounds": given.rounds,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {torch.get_num_threads()} threads",
        "bare_s": [a for a, _ in found["bare"]], "loop_s": [a for a, _ in found["loop"]], "ratio": statistics.median(ratios[0]), "ratios": ratios[0],
        "bare_processor_s": [b for _, b in found["bare"]], "loop_processor_s": [b for _, b in found["loop"]],
        "processor_ratio": statistics.median(ratios[1]), "processor_ratios": ratios[1],
    }  # fmt: skip
    record.keep("loop", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
