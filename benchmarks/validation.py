"""What a validation costs while a segmentation is fine-tuned, and what it says, by the overlap of its windows.

    python benchmarks/validation.py STORE RUN [RUN ...] [--cases 4]

Whole volumes of the store's validation sessions (with ``--cases`` beyond them, of its test sessions), segmented by each run's model with windows
that overlap by half (as in a prediction), by a quarter (as while a run validates) and not at all; and by half with two windows a step, as it was before
windows were taken by their size. Runs of several lengths show whether a coarser validation puts them in the same order.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from neuroprior.data.cases import class_numbers
from neuroprior.data.store import Store
from neuroprior.inference import model as models
from neuroprior.inference import windows
from record import keep

WAYS = {"half, two a step": (0.5, 2), "half": (0.5, None), "quarter": (0.25, None), "none": (0.0, None)}


def dice(guess: np.ndarray, truth: np.ndarray, classes: int) -> list[float]:
    """Of each class that the truth has."""
    return [
        2 * float(np.sum((guess == k) & (truth == k))) / float(np.sum(guess == k) + np.sum(truth == k))
        for k in range(1, classes + 1)
        if (truth == k).any()
    ]


def measured(run: Path, store: Store, cases: int) -> dict[str, tuple[float, float]]:
    """Way -> seconds and Dice, means over cases."""
    model = models.load(run)
    values = tuple(model.task["label_values"])
    chosen = [s for split in ("val", "test") for s in store.sessions if s.split == split][:cases]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    scores: dict[str, list[float]] = {name: [] for name in WAYS}
    for session in chosen:
        names = [name for name in model.contrasts if name in session.scans]
        images = torch.from_numpy(np.stack([store.read(session.key, name, None) for name in names])).float()
        truth = class_numbers(store.read_label(session.key, model.task["target"]), values)
        for name, (overlap, batch) in WAYS.items():
            start = time.perf_counter()
            found = windows.segment(model, images, names, window=model.task["window"], overlap=overlap, batch=batch)
            seconds[name].append(time.perf_counter() - start)
            scores[name] += dice(found.argmax(0).numpy(), truth, len(values))
    return {name: (float(np.mean(seconds[name])), float(np.mean(scores[name]))) for name in WAYS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--cases", type=int, default=4)
    given = parser.parse_args(arguments)
    store = Store.open(given.store)
    found = {str(run.name): measured(run, store, given.cases) for run in given.runs}
    print(f"{'':<18} time   Dice of " + ", ".join(found))
    for name in WAYS:
        time_of = [row[name][0] / row["half, two a step"][0] for row in found.values()]
        print(f"{name:<18} {np.median(time_of):.2f}   " + "  ".join(f"{row[name][1]:.4f}" for row in found.values()))
    if len(found) > 2:
        for name in ("quarter", "none"):
            rank = float(spearmanr([row["half"][1] for row in found.values()], [row[name][1] for row in found.values()])[0])
            print(f"rank correlation of the runs' Dice, half and {name}: {rank:.3f}")
    keep("validation", {"threads": torch.get_num_threads(), "cases": given.cases, "runs": found})


if __name__ == "__main__":
    main()
