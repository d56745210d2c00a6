"""Does training end where it would without the fast paths? Validation loss of whole runs, with every one of them and with none.

    python benchmarks/fastpaths.py STORE [--recipe tiny] [--steps 150] [--seeds 0 1 2] [--set data.patch=32]

Without: contiguous maps, torch's InstanceNorm and LeakyReLU, skips joined before they are convolved, one batched decode instead of one after the other, memory given back when it is freed, gradients of a heavy net held whole.
What is left differs by rounding, which training magnifies; the difference is put beside the spread between seeds. STORE has a val split.
Each run is ``neuroprior pretrain`` in a process of its own. Appends a JSON line to benchmarks/results/fastpaths.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import neuroprior
import record
from neuroprior.core import artifacts
from neuroprior.engine import training
from neuroprior.nets import _fused
from neuroprior.objectives import _piecewise


def without() -> None:
    """Take every fast path out of this process."""
    _fused.fast_layout = lambda _: torch.contiguous_format
    _piecewise.PIECE_VOXELS["cpu"] = 10**12
    training.keep_freed_memory = lambda _: None
    training.set_factors = lambda *_: None


def losses(run: Path) -> tuple[list[float], float]:
    """The loss of every step, and the last validation loss."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    last = [event for event in events if event["event"] == "validation"][-1]
    return [event["loss"] for event in events if event["event"] == "step"], float(last["loss"])


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", action="extend", default=[])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, run = given.one
        if kind == "without":
            without()
        done = neuroprior.pretrain(
            given.store, recipe=given.recipe, out=Path(run),
            set=[f"training.steps={given.steps}", "training.log_every=1", "training.panels_every=null", f"training.seed={given.seeds[0]}", *given.set],
        )  # fmt: skip
        raise SystemExit(done.exit_code)
    found: dict[str, list[float]] = {"with": [], "without": []}
    apart = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            traces = {}
            for kind, values in found.items():
                run = Path(folder) / f"{kind}-{seed}"
                command = [
                    sys.executable,
                    __file__,
                    str(given.store),
                    "--recipe",
                    given.recipe,
                    "--steps",
                    str(given.steps),
                    "--seeds",
                    str(seed),
                ]
                subprocess.run(
                    [*command, "--one", kind, str(run), *(["--set", *given.set] if given.set else [])],
                    check=True,
                    stderr=subprocess.DEVNULL,
                )
                traces[kind], value = losses(run)
                values.append(value)
                assert artifacts.is_complete(run)
            apart.append(max(abs(a - b) / abs(b) for a, b in zip(traces["with"][:10], traces["without"][:10], strict=True)))
    result = {
        "benchmark": "fastpaths", "recipe": given.recipe, "steps": given.steps, "seeds": given.seeds, **found,
        "largest_difference_of_a_seed": max(abs(a - b) for a, b in zip(found["with"], found["without"], strict=True)),
        "spread_of_seeds": statistics.stdev(found["without"]) if len(given.seeds) > 1 else None,
        "first_ten_steps_apart": max(apart),
    }  # fmt: skip
    record.keep("fastpaths", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
