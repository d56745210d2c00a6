"""Peak memory of predicting many classes on a large scan, beyond what is there before and beyond the answer itself.

    python benchmarks/predict_memory.py [--classes 100] [--size 512] [--window 64] [--overlap 0] [--features 2,4] [--native]

A net with random weights labels a synthetic head of SIZE^3 voxels. With ``--native`` the model works at the scan's own spacing, so that
the conformed grid is as large as the native one (the hardest case); without it at twice the spacing. Prints one line a stage, and the
peak at the end.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from neuroprior.core import peak_memory
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.volume import Volume
from neuroprior.heads import segmentation
from neuroprior.inference import model as models
from neuroprior.inference import predictor, reading
from neuroprior.inference.presets import PredictConfig
from neuroprior.nets import unet


def tiny(folder: Path, classes: int, window: int, features: tuple[int, ...], spacing: float) -> models.Model:
    """A segmentation model with random weights."""
    torch.manual_seed(0)
    net = unet.build(unet.Config(features=features, latent=2, skips=True))
    config = {"contrasts": ["T1w"], "features": features[0], "classes": classes}
    head = segmentation.build(segmentation.Config(**config))
    task = {"name": "segmentation", "target": "regions", "label_values": list(range(1, classes)), "window": [window] * 3}
    models.save(
        folder, net=net, net_name="unet", net_config=net.config.model_dump(mode="json"), contrasts=["T1w"], kind="finetuned", method={},
        data={}, head=head, head_name="segmentation", head_config=config, task=task,
        spec=ConformSpec(spacing_mm=spacing, crop="none"),
    )  # fmt: skip
    return models.load(folder)


def scan(size: int, spacing: float) -> Volume:
    """A textured ball of ``size`` cubed voxels, made plane by plane."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    rng = np.random.default_rng(0)
    voxels = np.empty((size, size, size), dtype=np.float32)
    for x, plane in zip(axis, voxels, strict=True):
        distance = x * x + axis[:, None] ** 2 + axis**2
        plane[:] = np.where(distance < 0.8, 100 + 20 * rng.standard_normal((size, size), dtype=np.float32), 0)
    return Volume(voxels, np.diag([spacing, spacing, spacing, 1.0]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=100, help="background included")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--overlap", type=float, default=0.0)
    parser.add_argument("--features", default="2,4")
    parser.add_argument("--native", action="store_true")
    given = parser.parse_args()
    spacing = 0.5
    features = tuple(int(n) for n in given.features.split(","))
    with tempfile.TemporaryDirectory() as folder:
        model = tiny(Path(folder) / "model", given.classes, given.window, features, spacing if given.native else 2 * spacing)
        volume = scan(given.size, spacing)
        resettable = peak_memory.reset_peak()
        before = peak_memory.peak_mb()
        print(f"before, with the scan in memory: {before} MiB (peak can be reset: {resettable})", flush=True)
        start = time.perf_counter()
        prepared = reading.prepare(model, {"T1w": volume})
        print(
            f"conformed to {tuple(prepared.images.shape[1:])}: peak {peak_memory.peak_mb()} MiB, {time.perf_counter() - start:.0f} s"
        )
        output, _ = predictor.compute(model, prepared, PredictConfig(overlap=given.overlap, window_batch=1))
        assert output.mask is not None
        answer = output.mask.nbytes >> 20
        peak = peak_memory.peak_mb()
        print(
            f"answer {output.mask.shape} {output.mask.dtype}, {len(np.unique(output.mask[::8, ::8, ::8]))} labels seen: {answer} MiB"
        )
        print(f"{given.classes} classes on {given.size}^3, window {given.window}, overlap {given.overlap}: peak {peak} MiB, beyond the start "
              f"and the answer {peak - before - answer} MiB, in all beyond the answer {(peak - answer) / 1024:.2f} GiB; "
              f"{time.perf_counter() - start:.0f} s, {torch.get_num_threads()} threads, max RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
