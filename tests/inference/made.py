"""Tiny fine-tuned models and heads that tests of inference share; nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroprior.core import nifti, seeds
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.volume import Volume
from neuroprior.heads import pooled, segmentation
from neuroprior.inference import model as models
from neuroprior.nets import unet

CONTRASTS = ("T1w", "T2w", "FLAIR")


def save(
    folder: Path,
    task: Mapping[str, Any],
    *,
    seed: int = 0,
    contrasts: Sequence[str] = CONTRASTS,
    spec: ConformSpec | None = None,
    split: str = "variational",
    calibration: Mapping[str, Any] | None = None,
) -> Path:
    """A model folder with random weights for a task description (``window`` and the like are filled in)."""
    from neuroprior.core import artifacts

    torch.manual_seed(seed)
    segments = task["name"] == "segmentation"
    config = {"features": [4, 8], "latent": 4, "split": split, "skips": segments}
    net = unet.build(unet.Config(**config))
    described = {"window": [16, 16, 16] if segments else [48, 48, 48], "target": "lesion", **task}
    if segments:
        name, head_config = (
            "segmentation",
            {
                "contrasts": list(contrasts),
                "features": 4,
                "classes": len(described["label_values"]) + 1,
            },
        )
        head: Any = segmentation.build(segmentation.Config(**head_config))
        with torch.no_grad():  # random classes that differ from place to place
            head.logits.weight.normal_(0, 3, generator=seeds.torch_generator(seed, "logits"))
    else:
        outputs = len(described["classes"]) if "classes" in described else 1
        name = "pooled"
        head_config = {
            "contrasts": list(contrasts),
            "anatomy_channels": net.anatomy_channels,
            "contrast_channels": net.contrast_channels,
            "outputs": outputs,
        }
        head = pooled.build(pooled.Config(**head_config))
    models.save(
        folder, net=net, net_name="unet", net_config=net.config.model_dump(mode="json"), spec=spec or ConformSpec(spacing_mm=4.0),
        contrasts=contrasts, kind="finetuned", method={"stage": "finetune"}, data={}, head=head, head_name=name, head_config=head_config,
        task=described,
    )  # fmt: skip
    if calibration is not None:
        info = artifacts.read_json(folder / "model.json")
        artifacts.write_json(folder / "model.json", info | {"calibration": dict(calibration)})
    return folder


def segmenter(folder: Path, values: Sequence[int] = (1,), **changes: Any) -> Path:
    """A segmentation model; keywords of :func:`save`, others go into the task."""
    own = {key: changes.pop(key) for key in ("seed", "contrasts", "spec", "split", "calibration") if key in changes}
    return save(folder, {"name": "segmentation", "label_values": list(values), **changes}, **own)


def head(shape: tuple[int, int, int] = (40, 44, 36), *, seed: int = 0) -> np.ndarray:
    """(x, y, z) float32: a textured ellipsoid in an empty background."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum((axis / 0.8) ** 2 for axis in axes) < 1
    rng = np.random.default_rng(seed)
    texture = 100 + 40 * np.sin(5 * axes[0] + seed) * np.cos(4 * axes[1]) + 10 * rng.standard_normal(shape)
    return np.where(inside, texture, 0).astype(np.float32)


def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file; 4 mm voxels by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, Volume(voxels, np.diag([4.0, 4.0, 4.0, 1.0]) if affine is None else affine))
    return path
