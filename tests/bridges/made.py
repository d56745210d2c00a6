"""Tiny untrained models for every kind of task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from neuroprior.core.conforming import ConformSpec
from neuroprior.inference import model as models

DATA: dict[str, Any] = {"subjects": 3, "sessions": 3, "scans": 3, "datasets": ["made"], "licences": ["CC0"]}


def make_model(
    folder: Path,
    kind: str | None,
    contrasts: list[str],
    *,
    labels: tuple[int, ...] = (1,),
    classes: tuple[str, ...] = ("no", "yes"),
    split: str = "variational",
    spacing: float = 8.0,
) -> Path:
    """A model folder with a two-level U-Net; ``kind`` None is a pretrained one."""
    from neuroprior.core import shelf

    config = {"features": [4, 8], "latent": 4, "split": split}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = models.build_net("unet", config)
        head, head_name, head_config, task = None, None, None, None
        if kind == "segmentation":
            net = shelf.load("nets", "unet").with_skips(net)
            head_name = "segmentation"
            head_config = {"contrasts": contrasts, "features": net.feature_channels, "classes": 1 + len(labels)}
            task = {"name": kind, "target": "lesion", "label_values": list(labels), "floor": {"empty_mask": True}}
        elif kind is not None:
            head_name = "pooled"
            head_config = {
                "contrasts": contrasts, "anatomy_channels": net.anatomy_channels, "contrast_channels": net.contrast_channels,
                "outputs": len(classes) if kind == "classification" else 1, "hidden": 4,
            }  # fmt: skip
            task = {"name": kind, "target": "health" if kind == "classification" else "age"}
            if kind == "classification":
                task |= {"classes": list(classes), "positive": classes[-1]}
            else:
                task |= {"mean": 50.0, "std": 12.0}
        if head_name is not None and task is not None and head_config is not None:
            head = models.build_head(head_name, head_config)
            task["window"] = [16, 16, 16]
    return models.save(
        folder, net=net, net_name="unet", net_config=net.config.model_dump(mode="json"), spec=ConformSpec(spacing_mm=spacing),
        contrasts=contrasts, kind="pretrained" if kind is None else "finetuned", method={"objective": "none"}, data=DATA,
        head=head, head_name=head_name, head_config=head_config, task=task,
    )  # fmt: skip


MODELS: dict[int, dict[str, Any]] = {
    1: {"kind": "classification", "contrasts": ["FLAIR", "DWI", "ADC", "SWI", "T2starw"]},
    2: {"kind": "segmentation", "contrasts": ["FLAIR", "DWI", "SWI"]},
    3: {"kind": "regression", "contrasts": ["T1w"]},
    4: {"kind": "segmentation", "contrasts": ["T2w"], "labels": (1, 2)},
    5: {"kind": "classification", "contrasts": ["T1w"]},
    6: {"kind": None, "contrasts": ["T1w", "T2w"]},
    7: {"kind": "regression", "contrasts": ["T1w", "FLAIR"]},
}
"""A model that fits each FOMO26 task."""
