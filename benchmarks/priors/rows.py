"""The rows of the study: what differs from one pretraining to the next, everything else being equal."""

from __future__ import annotations

from typing import Any

NET = {"name": "unet", "features": [8, 16, 32, 64], "convolutions": 1}
"""The toy net of every convolutional row: code of 64 channels on a grid of 2 x 3 x 2 for a box of 16 x 24 x 16 voxels."""
CHANNELS = NET | {"split": "channels"}
VARIATIONAL = NET | {"split": "variational", "latent": 32}
WHOLE = NET | {"split": "none"}

BLOCK = 4
SPLIT: dict[str, Any] = {"name": "anatomy_split", "block": BLOCK, "ratio": 0.75}
CROSS: dict[str, Any] = {"name": "cross_contrast", "block": BLOCK, "ratio": 0.6}

OURS: dict[str, Any] = {
    "net": NET | {"split": "stages", "latent": 32, "summary": 16, "contrast_pool": "both", "contrast_finer": 1, "refined": True},
    "objective": SPLIT | {
        "ratio": 0.5, "view": "whole", "reconstruction": 0.3, "anatomy": 12.0, "distance": "smooth_l1",
        "agreement": 1.0, "agreement_form": "dense_infonce", "temperature": 0.1, "pathology": 0.15, "pathology_share": 0.4, "lesions": 3.0,
        "refine": 5, "refine_summary": 3, "refine_contrast": 1000.0,
    },
    "data": {"shift": 1, "intensity": 0.2},
}  # fmt: skip

ROWS: dict[str, dict[str, Any]] = {
    # baselines: no split
    "mae": {"net": WHOLE, "objective": {"name": "mae", "block": BLOCK, "ratio": 0.75}},
    "amaes": {"net": WHOLE, "objective": {"name": "amaes", "block": BLOCK}},
    "simclr": {"net": WHOLE, "objective": {"name": "simclr", "block": BLOCK}},
    "vit_mae": {
        "net": {"name": "vit", "token": 4, "width": 96, "depth": 4, "heads": 4, "decoder_width": 48, "decoder_depth": 1, "decoder_heads": 4, "features": 8},
        "objective": {"name": "mae", "block": BLOCK, "ratio": 0.75},
    },
    # the FOMO25 winner: both wirings as published, and with a term that has no empty optimum
    "cross_own": {"net": VARIATIONAL, "objective": CROSS | {"wiring": "own"}},
    "cross_other": {"net": VARIATIONAL, "objective": CROSS | {"wiring": "other"}},
    "cross_own_infonce": {"net": VARIATIONAL, "objective": CROSS | {"wiring": "own", "agreement_form": "dense_infonce"}},
    # the SSL3D winner: as published (cosine, raw volumes), each target form, each repair, with and without pathology
    "split_raw": {"net": CHANNELS, "objective": SPLIT, "data": {"targets": "raw"}},
    "split_fraction": {"net": CHANNELS, "objective": SPLIT, "data": {"targets": "fraction_of_icv"}},
    "split_z": {"net": CHANNELS, "objective": SPLIT},
    "split_z_centred": {"net": CHANNELS, "objective": SPLIT | {"centre": "batchnorm"}},
    "split_z_smooth": {"net": CHANNELS, "objective": SPLIT | {"distance": "smooth_l1"}},
    "split_map": {
        "net": CHANNELS, "objective": SPLIT | {"target": "map", "map_labels": list(range(1, 22))}, "data": {"label": "dseg"},
    },
    "split_z_no_pathology": {"net": CHANNELS, "objective": SPLIT | {"centre": "batchnorm", "pathology": 0.0}},
    # ours: volumes in channels of their own, fine detail for the contrast half, and a closed-form map at the end
    "ours": OURS,
    # the closed form alone: ours, not trained (its statistics are those of 20 batches)
    "ours_untrained": OURS | {"training": {"steps": 20, "optimizer": {"name": "adamw", "lr": 1e-9, "weight_decay": 0.0}}},
}  # fmt: skip
"""Row name -> recipe parts that differ."""

UNREFINED = {"ours_unrefined": "ours"}
"""Rows that are probed and not trained: another row's net with its closed-form map taken out."""

SPLIT_ROWS = tuple(name for name in ROWS if name.startswith(("cross", "split", "ours")))


def recipe(row: str, *, steps: int, batch: int, patch: list[int], lr: float) -> dict[str, Any]:
    """The full recipe of a row. All look at the middle of the head, where volumes can be seen and subjects be compared place by place."""
    parts = ROWS[row]
    return {
        "net": parts["net"],
        "objective": parts["objective"],
        "data": {
            "patch": patch, "flip": 0.0, "min_head": 0.9, "intensity": 0.1, "place": "centre", "jitter": 2, **parts.get("data", {}),
        },
        "training": {
            "steps": steps, "batch": batch, "optimizer": {"name": "adamw", "lr": lr, "weight_decay": 0.01},
            "schedule": {"name": "cosine", "warmup_steps": max(1, steps // 20)}, "clip_norm": 1.0, "checkpoint_minutes": 10.0,
            **parts.get("training", {}),
        },
    }  # fmt: skip
