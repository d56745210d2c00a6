"""One pretraining step of the papers' sizes on this machine, beside a plain transcription of how such code is usually written.

    python benchmarks/step.py [--what fomo25|mae] [--size 64] [--batch 1] [--pairs 5] [--recompute 2] [--device cuda]

``fomo25``: the paper's U-Net and a pair of boxes. The plain step encodes A and B one after the other, then decodes four times.
``mae``: ResEnc-L and a masked box; the plain step is nnssl's way: gradients emptied first, forward, squared error of what was hidden, SGD.
Plain blocks are convolution, ``nn.InstanceNorm3d`` and LeakyReLU in place; masks are drawn at full resolution.

Both take the same weights, masks and noise, so their losses must agree; each has a process of its own, steps are taken in turn, and the
ratio is taken pair by pair, of the clock and of processor time. Ours keeps freed memory (``engine/allocator.py``); ``--same-allocator``
lets the plain step do so too. Peak is of the resident memory of the whole process, imports included. Appends a JSON line to
benchmarks/results/step.jsonl.

With ``--device cuda`` both take bf16, ours its own layout and norm, and peak is that of the card's memory. There the two share the card,
one idle while the other steps.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import record
from neuroprior.core.seeds import torch_generator
from neuroprior.data.records import PairBatch
from neuroprior.engine.allocator import keep_freed_memory
from neuroprior.engine.device import kept_bytes, moved, set_factors, set_layout, set_recompute, tune_convolutions
from neuroprior.engine.optimisers import OptimizerConfig, advance, build
from neuroprior.engine.settings import TrainingConfig
from neuroprior.nets import resenc, unet
from neuroprior.objectives import cross_contrast, mae
from neuroprior.objectives._masking import block_mask, noise


def make_batch(size: int, n: int) -> PairBatch:
    """Random images, drawn from a named seed."""
    images = torch.randn(2, n, 1, size, size, size, generator=torch_generator("bench", size, n))
    return PairBatch(
        image_a=images[0], image_b=images[1], paired=[True] * n, contrast_a=["T1w"] * n, contrast_b=["T2w"] * n,
        subject=["s"] * n, sample=list(range(n)),
    )  # fmt: skip


def plain_block(x: Tensor, conv: nn.Module, norm: nn.Module, active: bool = True) -> Tensor:
    """Convolution, InstanceNorm, LeakyReLU, one module after the other."""
    x = norm(conv(x))
    return functional.leaky_relu(x, 0.01, inplace=True) if active else x


def plain_loss(net: unet.UNet, batch: PairBatch, epoch: float, seed: int) -> Tensor:
    """The published loss, written one scan and one decode at a time."""

    def encode(image: Tensor, name: str) -> tuple[Tensor, ...]:
        hidden = block_mask(batch["sample"], image.shape[2:], 4, 0.6, seed=seed, purpose=f"mask {name}").to(image.device)
        x = image * (~hidden).float()
        stages = []
        for level, block in enumerate(net.encoder):
            x = functional.max_pool3d(x, 2) if level else x
            for layer in block:
                x = plain_block(x, layer.conv, layer.norm)
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
        s = am + torch.exp(0.5 * al) * noise(batch["sample"], shape, seed=seed, purpose=f"noise anatomy {name}").to(image.device)
        c = cm + torch.exp(0.5 * cl) * noise(batch["sample"], shape, seed=seed, purpose=f"noise contrast {name}").to(image.device)
        return s, c, am, al, cm, cl

    def decode(s: Tensor, c: Tensor) -> Tensor:
        x = torch.cat([s, c], 1)
        for up, block in zip(net.up, net.decoder, strict=True):
            x = plain_block(up(x), block.conv, block.norm)
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


def plain_mae(net: resenc.ResEnc, batch: PairBatch, seed: int) -> Tensor:
    """Masked autoencoding with a ResidualEncoderUNet, layer by layer."""
    image = batch["image_a"]
    hidden = block_mask(batch["sample"], image.shape[2:], 16, 0.75, seed=seed, purpose="mask a").to(image.device)
    first = net.encoder.stem.convs[0]
    x = plain_block(image * (~hidden).float(), first.conv, first.norm)
    maps = []
    for stage in net.encoder.stages:
        for block in stage.blocks:
            shortcut = x
            for layer in block.skip:
                shortcut = (
                    plain_block(shortcut, layer.conv, layer.norm, False)
                    if isinstance(layer, resenc.ConvNorm)
                    else layer(shortcut)
                )
            x = plain_block(x, block.conv1.conv, block.conv1.norm)
            x = plain_block(x, block.conv2.conv, block.conv2.norm, False)
            x += shortcut
            x = functional.leaky_relu(x, 0.01, inplace=True)
        maps.append(x)
    for up, stage, skip in zip(net.decoder.transpconvs, net.decoder.stages, reversed(maps[:-1]), strict=True):
        layer = stage.convs[0]
        x = plain_block(torch.cat((up(x), skip), 1), layer.conv, layer.norm)
    error = (net.decoder.out(x) - image) ** 2
    return (error * hidden).sum() / hidden.sum()


def make(what: str, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer, float]:
    """The objective on the device, its optimiser and the largest norm of its gradient."""
    torch.manual_seed(0)
    if what == "fomo25":
        objective: nn.Module = cross_contrast.build(unet.build(unet.Config()), cross_contrast.Config()).to(device)
        return objective, build(objective, OptimizerConfig()), 1.0
    objective = mae.build(resenc.build(resenc.Config(split="none")), mae.Config(both=False)).to(device)
    return objective, build(objective, OptimizerConfig(name="sgd", lr=1e-2, weight_decay=3e-5)), 12.0


def step(kind: str, what: str, made: Any, batch: PairBatch) -> tuple[float, float, float]:
    """(seconds, processor seconds, loss) of one whole step."""
    objective, optimizer, clip = made
    device = batch["image_a"].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, cpu = time.perf_counter(), time.process_time()
    if kind == "plain" and what == "mae":
        optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        if kind == "ours":
            loss = objective(batch, epoch=5.0, seed=0)["loss"]
        else:
            loss = plain_loss(objective.net, batch, 5.0, 0) if what == "fomo25" else plain_mae(objective.net, batch, 0)
    if kind == "plain" and what == "fomo25":  # Lightning's order
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if kind == "ours":
        advance(objective, optimizer, clip)
    else:
        nn.utils.clip_grad_norm_(objective.parameters(), clip)
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - cpu, float(loss.detach())


def worker(kind: str, what: str, size: int, n: int, keep: bool, recompute: int, device_name: str, pipe: Any) -> None:
    """A process that takes a step whenever it is asked to and answers (seconds, processor seconds, loss, peak resident MB)."""
    device = torch.device(device_name)
    objective, optimizer, clip = make(what, device)
    if keep and device.type == "cpu":
        keep_freed_memory(kept_bytes(objective))
    tune_convolutions(device)  # for both
    if kind == "ours":
        set_recompute(objective, recompute)
        set_layout(objective, TrainingConfig(), device)
        set_factors(objective, TrainingConfig(), device)
    batch = moved(make_batch(size, n), device)
    while pipe.recv():
        found = step(kind, what, (objective, optimizer, clip), batch)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pipe.send((*found, torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=("fomo25", "mae"), default="fomo25")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--same-allocator", action="store_true")
    parser.add_argument("--recompute", type=int, default=0, help="finest levels that ours computes again in backward")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    for kind in ("ours", "plain"):
        pipes[kind], other = context.Pipe()
        keep = kind == "ours" or options.same_allocator
        context.Process(
            target=worker,
            args=(kind, options.what, options.size, options.batch, keep, options.recompute, options.device, other),
            daemon=True,
        ).start()
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    processor: dict[str, list[float]] = {"ours": [], "plain": []}
    peaks: dict[str, float] = {}
    apart: list[float] = []
    tolerance = 1e-3 if options.device == "cpu" else 0.05  # both train on: rounding to eight bits leads them apart
    for number in range(options.pairs + 1):
        losses = {}
        for kind in ("ours", "plain") if number % 2 else ("plain", "ours"):
            pipes[kind].send(True)
            spent, cpu, losses[kind], peaks[kind] = pipes[kind].recv()
            if number:  # the first is the warm-up
                seconds[kind].append(spent)
                processor[kind].append(cpu)
        assert abs(losses["ours"] - losses["plain"]) < tolerance * abs(losses["plain"]), losses
        apart.append(abs(losses["ours"] / losses["plain"] - 1))
    for pipe in pipes.values():
        pipe.send(False)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)]
    by_processor = [a / b for a, b in zip(processor["ours"], processor["plain"], strict=True)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "benchmark": "step", "what": options.what, "commit": commit, "size": options.size, "batch": options.batch, "pairs": options.pairs, "recompute": options.recompute, "same_allocator": options.same_allocator,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {torch.get_num_threads()} threads",
        "ours_s": statistics.median(seconds["ours"]), "plain_s": statistics.median(seconds["plain"]), "ratio": statistics.median(ratios),
        "ratio_min": min(ratios), "ratio_max": max(ratios), "ours_processor_s": statistics.median(processor["ours"]),
        "plain_processor_s": statistics.median(processor["plain"]), "processor_ratio": statistics.median(by_processor), "ours_peak_mb": peaks["ours"], "plain_peak_mb": peaks["plain"],
        "peak_ratio": peaks["ours"] / peaks["plain"], "losses_apart_first": apart[0], "losses_apart": max(apart),
        "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(), "ours_samples_a_second": options.batch / statistics.median(seconds["ours"]),
    }  # fmt: skip
    record.keep("step", result)
    for name, value in result.items():
        print(f"{name:>17}  {value:.3f}" if isinstance(value, float) else f"{name:>17}  {value}")


if __name__ == "__main__":
    main()
