"""Losses of label maps, for whole classes and for shares of a voxel, from MONAI's parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..data.cases import as_shares

Region = Literal["dice", "tversky", "none"]
Voxel = Literal["ce", "focal", "none"]


def region_loss(logits: Tensor, target: Tensor, *, kind: Region, batch: bool, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """1 - overlap, averaged over the foreground classes.

    Args:
        logits: (B, C, x, y, z).
        target: (B, x, y, z) int64 class numbers or (B, C, x, y, z) shares.
        kind: ``dice`` (Milletari et al. 2016), or ``tversky`` (Salehi et al. 2017).
        batch: over all samples together (nnU-Net's "batch Dice": a box with no foreground does not dominate), or each by itself.
        alpha, beta: weight of false positives and of false negatives (``tversky``).
    """
    from monai.losses.dice import DiceLoss
    from monai.losses.tversky import TverskyLoss

    soft = target.ndim == logits.ndim
    settings: dict[str, Any] = {"include_background": False, "softmax": True, "batch": batch, "soft_label": soft}
    shares = target.to(logits.dtype) if soft else as_shares(target, logits.shape[1]).to(logits.dtype)
    if kind == "dice":
        return DiceLoss(**settings)(logits, shares)
    return TverskyLoss(**settings, alpha=alpha, beta=beta)(logits, shares)


def voxel_loss(logits: Tensor, target: Tensor, *, kind: Voxel, gamma: float = 2.0) -> Tensor:
    """Cross-entropy of every voxel, or its focal form (1 - p)^gamma (Lin et al. 2017), averaged over voxels.

    Args:
        logits: (B, C, x, y, z).
        target: (B, x, y, z) int64 class numbers or (B, C, x, y, z) shares.
        kind: which.
        gamma: how much easy voxels are left out (``focal``).
    """
    if kind == "ce":
        return functional.cross_entropy(logits, target if target.ndim < logits.ndim else target.to(logits.dtype))
    shares = target if target.ndim == logits.ndim else as_shares(target, logits.shape[1])
    logp = logits.log_softmax(1)
    return -((1 - logp.exp()) ** gamma * logp * shares.to(logp.dtype)).sum(1).mean()


def coarser(target: Tensor, classes: int, level: int, shape: torch.Size) -> Tensor:
    """A target as shares on the decoder's grid ``level`` halvings coarser: (B, C, *shape); outside the box is background."""
    shares = target if target.ndim == 5 else as_shares(target, classes)
    step = 2**level
    missing = [max(0, length * step - extent) for length, extent in zip(shape, shares.shape[2:], strict=True)]
    foreground = functional.pad(shares[:, 1:], (0, missing[2], 0, missing[1], 0, missing[0]))
    foreground = functional.avg_pool3d(foreground, step)[..., : shape[0], : shape[1], : shape[2]]
    return torch.cat([1 - foreground.sum(1, keepdim=True).clamp(0, 1), foreground], 1)


def deep(outputs: list[Tensor], target: Tensor, losses: Any) -> Mapping[str, Tensor]:
    """The finest level's losses, ``loss`` being the mean over all levels with weights 1, 1/2, 1/4 ... (Lee et al. 2015; nnU-Net).

    Args:
        outputs: logits (B, C, x / 2^k, ...) of level k, the finest first.
        target: of the finest.
        losses: a task's function of (logits, target).
    """
    found = dict(losses(outputs[0], target))
    total, weights = found["loss"], 1.0
    for level, logits in enumerate(outputs[1:], start=1):
        weight = 0.5**level
        total = total + weight * losses(logits, coarser(target, logits.shape[1], level, logits.shape[2:]))["loss"]
        weights += weight
    return found | {"loss": total / weights}
