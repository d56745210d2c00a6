"""Checkpoints of the FOMO25 winner (FOMO2JOMO) and of the organisers' baseline that it was built on: plain U-Nets of Lightning.

Gordaliza, Banus et al., arXiv 2601.13166; Munk et al., "AMAES" (arXiv 2408.00640). The file is Lightning's ``.ckpt``, with the weights under
``state_dict``, each name beginning with ``model.``. The winner's net has four 1x1x1 convolutions for means and log-variances of two halves (the
variational split of ``nets/unet``); the baseline's has none.

Departures: the decoder of a fine-tuned task is left out, and so is its fusion; nets with two convolutions a level in the decoder (``unet_b``,
``unet_xl``) are taken with their encoder alone. Their voxels outside the head are what their own clamping makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.conforming import ConformSpec
from ..core.errors import ArtifactError
from ._foreign import Foreign, Wishes, split_settings, weights

WEIGHTS, PREFIX = "state_dict", "model."

HALVES = {
    "conv_mu_shared": "latent.anatomy_mean",
    "conv_logvar_shared": "latent.anatomy_logvar",
    "conv_mu_modality": "latent.contrast_mean",
    "conv_logvar_modality": "latent.contrast_logvar",
}
"""Their convolutions of the two halves -> ours."""


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this is a checkpoint of that code."""
    found = content.get(WEIGHTS)
    return isinstance(found, Mapping) and any("encoder.in_conv.conv1.conv.weight" in str(name) for name in found)


def translate(content: Mapping[str, Any], path: Path, wishes: Wishes) -> Foreign:
    """The checkpoint in our words.

    Args:
        content: of the file.
        path: for errors.
        wishes: of the caller.

    Raises:
        ArtifactError: weights are missing.
    """
    state: dict[str, Any] = {}
    left: dict[str, str] = {}
    for theirs, value in weights(content, WEIGHTS, path).items():
        name = theirs.removeprefix(PREFIX)
        part = name.split(".")[0]
        if part in ("decoder_task", "fusion_layer"):
            left[theirs] = "of a task that it was fine-tuned on"
        else:
            state[_ours(name)] = value
    levels = sorted({int(found[1]) for name in state if (found := re.match(r"encoder\.(\d+)\.\d+\.conv\.weight", name))})
    if levels != list(range(len(levels))) or len(levels) < 2:
        raise ArtifactError("the encoder is not whole", file=path, expected="levels 0, 1, 2 ...", got=levels)
    features = [state[f"encoder.{level}.0.conv.weight"].shape[0] for level in levels]
    convolutions = sum(bool(re.match(r"encoder\.0\.\d+\.conv\.weight", name)) for name in state)
    first = state.get("decoder.0.conv.weight")
    halves = state.get("latent.anatomy_mean.weight")
    config: dict[str, Any] = {
        "features": features, "convolutions": convolutions, "skips": first is not None and first.shape[1] == 2 * features[-2],
        **(split_settings(wishes) if halves is None else {"split": "variational", "latent": halves.shape[0]}),
    }  # fmt: skip
    settings = content.get("hyper_parameters") or {}
    patch = settings.get("patch_size") or (settings.get("config") or {}).get("patch_size")
    origin = {
        "tool": "FOMO25", "method": str(settings.get("model_name") or ("mmunetvae" if halves is not None else "unet")),
        "epoch": content.get("epoch"), "steps": content.get("global_step"),
    }  # fmt: skip
    return Foreign(
        "unet", config, state, ConformSpec(spacing_mm=wishes.spacing_mm or 1.0, crop="nonzero", normalise="clamp_zscore_01", order=3),
        origin, _edges(patch), left,
        ("scans are clamped to their percentiles, z-scored and brought to 0..1, as that code does: prepare with the options that convert prints",),
    )  # fmt: skip


def _ours(name: str) -> str:
    """Our name of a weight; what has none keeps its own."""
    part = name.split(".")[0]
    if part in HALVES:
        return name.replace(part, HALVES[part], 1)
    if found := re.match(r"encoder\.(in_conv|encoder_conv(\d+))\.conv(\d+)\.(.*)", name):
        return f"encoder.{found[2] or 0}.{int(found[3]) - 1}.{found[4]}"
    if found := re.match(r"decoder\.upsample(\d+)\.(.*)", name):
        return f"up.{int(found[1]) - 1}.{found[2]}"
    if found := re.match(r"decoder\.decoder_conv(\d+)\.conv1\.(.*)", name):
        return f"decoder.{int(found[1]) - 1}.{found[2]}"
    return re.sub(r"^decoder\.out_conv\.", "out.", name)


def _edges(patch: Any) -> tuple[int, ...] | None:
    """Edge lengths of a patch that was given as one number or three."""
    if isinstance(patch, (list, tuple)) and len(patch) == 3:
        return tuple(int(n) for n in patch)
    return (int(patch),) * 3 if isinstance(patch, (int, float)) and patch else None
