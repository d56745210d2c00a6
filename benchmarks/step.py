"""One pretraining step of the paper's size on this machine, beside a plain transcription of METHODS-style code.

    python benchmarks/step.py [--size 64] [--batch 1] [--pairs 5]

The plain step is how such code is usually written: A and B are encoded one after the other, the four decodes run one after the
other, masks are drawn at full resolution. Both take the same weights, masks and noise, so their losses must agree; each has a process
of its own, steps are taken in turn, and the ratio is taken pair by pair. Ours keeps freed memory (``engine/allocator.py``); ``--same-allocator`` lets the plain
step do so too, which leaves the effect of the batching alone. Appends a JSON line to benchmarks/results/step.jsonl.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroprior.core.seeds import torch_generator
from neuroprior.data.records import PairBatch
from neuroprior.engine.allocator import keep_freed_memory
from neuroprior.engine.optimisers import OptimizerConfig, build
from neuroprior.nets import unet
from neuroprior.objectives import cross_contrast
from neuroprior.objectives._masking import block_mask, noise


def make_batch(size: int, n: int) -> PairBatch:
    """Random images, drawn from a named seed."""
    images = torch.randn(2, n, 1, size, size, size, generator=torch_generator("bench", size, n))
    return PairBatch(
        image_a=images[0], image_b=images[1], paired=torch.ones(n, dtype=torch.bool), contrast_a=["T1w"] * n, contrast_b=["T2w"] * n,
        subject=["s"] * n, sample=torch.arange(n),
    )  # fmt: skip


def plain_loss(net: unet.UNet, batch: PairBatch, epoch: float, seed: int) -> Tensor:
    """The published loss, written one scan and one decode at a time."""

    def encode(image: Tensor, name: str) -> tuple[Tensor, ...]:
        hidden = block_mask(batch["sample"], image.shape[2:], 4, 0.6, seed=seed, purpose=f"mask {name}")
        x = image * (~hidden).float()
        stages = []
        for level, block in enumerate(net.encoder):
            x = block(functional.max_pool3d(x, 2) if level else x)
            stages.append(x)
        pooled = torch.cat([functional.adaptive_avg_pool3d(stage, stages[-1].shape[2:]) for stage in stages], 1)
        latent = net.latent
        am, al, cm, cl = (
            latent["anatomy_mean"](pooled),
            latent["anatomy_logvar"](pooled),
            latent["contrast_mean"](pooled),
            latent["contrast_logvar"](pooled),
        )
        shape = am.shape[1:]
        s = am + torch.exp(0.5 * al) * noise(batch["sample"], shape, seed=seed, purpose=f"noise anatomy {name}")
        c = cm + torch.exp(0.5 * cl) * noise(batch["sample"], shape, seed=seed, purpose=f"noise contrast {name}")
        return s, c, am, al, cm, cl

    def decode(s: Tensor, c: Tensor) -> Tensor:
        x = torch.cat([s, c], 1)
        for up, block in zip(net.up, net.decoder, strict=True):
            x = block(up(x))
        return net.out(x)

    def kl(mean: Tensor, logvar: Tensor) -> Tensor:
        return -0.5 * torch.mean(1 + logvar - mean.pow(2) - logvar.exp())

    a, b = batch["image_a"], batch["image_b"]
    s_a, c_a, am_a, al_a, cm_a, cl_a = encode(a, "a")
    s_b, c_b, am_b, al_b, cm_b, cl_b = encode(b, "b")
    shared = (s_a + s_b) / 2
    smooth = nn.SmoothL1Loss(beta=0.1)
    rec = smooth(decode(s_a, c_a), a) + smooth(decode(s_b, c_b), b)
    cross = smooth(decode(shared, c_a), a) + smooth(decode(shared, c_b), b)
    divergence = kl(am_a, al_a) + kl(am_b, al_b) + kl(cm_a, cl_a) + kl(cm_b, cl_b)
    agreement = 1 - functional.cosine_similarity(am_a.flatten(1), am_b.flatten(1)).mean()
    separation = functional.cosine_similarity(cm_a.flatten(1), cm_b.flatten(1)).mean()
    return 3 * rec + cross + 0.001 * min(1, epoch / 10) * divergence + 0.5 * agreement + 0.5 * separation


def step(kind: str, objective: nn.Module, optimizer: torch.optim.Optimizer, batch: PairBatch) -> tuple[float, float]:
    """(seconds, loss) of one whole step."""
    start = time.perf_counter()
    loss = objective(batch, epoch=5.0, seed=0)["loss"] if kind == "ours" else plain_loss(objective.net, batch, 5.0, 0)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - start, float(loss.detach())


def worker(kind: str, size: int, n: int, keep: bool, pipe: Any) -> None:
    """A process that takes a step whenever it is asked to and answers (seconds, loss, peak resident MB)."""
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    objective = cross_contrast.build(unet.build(unet.Config()), cross_contrast.Config())
    optimizer = build(objective, OptimizerConfig())
    batch = make_batch(size, n)
    while pipe.recv():
        seconds, loss = step(kind, objective, optimizer, batch)
        pipe.send((seconds, loss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--same-allocator", action="store_true")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    for kind in ("ours", "plain"):
        pipes[kind], other = context.Pipe()
        keep = kind == "ours" or options.same_allocator
        context.Process(target=worker, args=(kind, options.size, options.batch, keep, other), daemon=True).start()
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    peaks: dict[str, float] = {}
    for number in range(options.pairs + 1):
        losses = {}
        for kind in ("ours", "plain") if number % 2 else ("plain", "ours"):
            pipes[kind].send(True)
            spent, losses[kind], peaks[kind] = pipes[kind].recv()
            if number:  # the first is the warm-up
                seconds[kind].append(spent)
        assert abs(losses["ours"] - losses["plain"]) < 1e-3 * abs(losses["plain"]), losses
    for pipe in pipes.values():
        pipe.send(False)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "benchmark": "step", "commit": commit, "size": options.size, "batch": options.batch, "pairs": options.pairs, "same_allocator": options.same_allocator,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {torch.get_num_threads()} threads",
        "ours_s": statistics.median(seconds["ours"]), "plain_s": statistics.median(seconds["plain"]), "ratio": statistics.median(ratios),
        "ratio_min": min(ratios), "ratio_max": max(ratios), "ours_peak_mb": peaks["ours"], "plain_peak_mb": peaks["plain"],
        "peak_ratio": peaks["ours"] / peaks["plain"], "losses_agree": True,
    }  # fmt: skip
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    with open(folder / "step.jsonl", "a") as file:
        file.write(json.dumps(result) + "\n")
    for name, value in result.items():
        print(f"{name:>14}  {value:.3f}" if isinstance(value, float) else f"{name:>14}  {value}")


if __name__ == "__main__":
    main()
