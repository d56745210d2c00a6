"""What a prediction costs: the presets on a synthetic case of 1 mm with the toy net, and the paper's net by the window.

    python benchmarks/predict.py [--size 160,192,160] [--window 64] [--threads 1] [--contrasts 1] [--windows 3]

Wall time and processor time (which a busy machine does not stretch) for each preset and its ratio to ``balanced``; then seconds a
window of the FOMO25 winner's net (recipe ``fomo25``), times the windows of each preset. Left-right mirroring is allowed, so
``accurate`` looks at every window twice.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroprior.core import shelf
from neuroprior.core.config import read_yaml
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.volume import Volume
from neuroprior.heads import segmentation
from neuroprior.inference import model as models
from neuroprior.inference import predictor, reading, windows
from neuroprior.inference.layout import lay
from neuroprior.inference.presets import PRESETS, preset


def build(folder: Path, recipe: str, window: int, contrasts: list[str]) -> models.Model:
    """A lesion segmentation model with random weights and a recipe's net."""
    torch.manual_seed(0)
    settings = read_yaml(shelf.path_of("recipes", recipe))["net"]
    name = str(settings.pop("name"))
    net = shelf.load("nets", name).with_skips(models.build_net(name, settings))
    config = {"contrasts": contrasts, "features": net.feature_channels, "classes": 2}
    head = segmentation.build(segmentation.Config(**config))
    models.save(
        folder, net=net, net_name=name, net_config=net.config.model_dump(mode="json"), contrasts=contrasts, kind="finetuned", method={},
        data={}, head=head, head_name="segmentation", head_config=config, spec=ConformSpec(spacing_mm=1.0),
        task={"name": "segmentation", "target": "lesion", "label_values": [1], "window": [window] * 3, "mirror_axes": [0]},
    )  # fmt: skip
    return models.load(folder)


def scan(shape: tuple[int, ...], seed: int) -> Volume:
    """A textured ellipsoid at 1 mm that fills most of the volume."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    inside = axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2 < 0.9
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return Volume(np.where(inside, 100 + 15 * noise, 0).astype(np.float32), np.eye(4))


def timed(work: Any) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="160,192,160")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contrasts", type=int, default=1)
    parser.add_argument("--windows", type=int, default=3, help="of the paper's net")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = tuple(int(n) for n in given.size.split(","))
    names = ["T1w", "T2w", "FLAIR"][: given.contrasts]
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder) / "toy", "tiny", given.window, names)
        for part in (model.net, model.head):
            assert part is not None
            part.to(given.device)
        volumes = {name: scan(shape, n) for n, name in enumerate(names)}
        wall, cpu = timed(lambda: reading.prepare(model, volumes))
        prepared = reading.prepare(model, volumes)
        grid = tuple(prepared.images.shape[1:])
        print(f"{shape} at 1 mm, {given.contrasts} contrasts, conformed to {grid} in {wall:.1f} s ({cpu:.1f} s of processor); "
              f"{given.threads} threads, {given.device}", flush=True)  # fmt: skip
        counts: dict[str, int] = {}
        each = None
        for name in ("balanced", *(name for name in PRESETS if name != "balanced")):
            config = preset(name, model.net)
            counts[name] = len(lay(grid, (given.window,) * 3, config.overlap)) * (2 if config.mirror else 1)
            wall, cpu = timed(lambda config=config: predictor.compute(model, prepared, config))
            each = each or cpu
            print(f"toy net, {name:<8} {counts[name]:4d} looks  {wall:7.1f} s  {cpu:7.1f} s of processor  {cpu / counts[name]:.3f} s a look  "
                  f"{cpu / each:.2f} x balanced", flush=True)  # fmt: skip
        paper = build(Path(folder) / "paper", "fomo25", given.window, names)
        for part in (paper.net, paper.head):
            assert part is not None
            part.to(given.device)
        box = torch.randn(1, given.contrasts, *(given.window,) * 3, generator=torch.Generator().manual_seed(0)).to(given.device)
        with torch.inference_mode():
            seconds = [timed(lambda: windows.raw_outputs(paper, box, names)) for _ in range(given.windows + 1)][1:]
        wall, cpu = (min(pair[k] for pair in seconds) for k in (0, 1))
        size = sum(p.numel() for p in paper.net.parameters()) / 1e6
        print(f"paper's net ({size:.1f} M parameters), window {given.window}: {wall:.2f} s wall, {cpu:.2f} s of processor a look; a case "
              + ", ".join(f"{name} {math.ceil(count * cpu)} s" for name, count in counts.items()) + " of processor")  # fmt: skip


if __name__ == "__main__":
    main()
