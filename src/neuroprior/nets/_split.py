"""How a net's code becomes two halves: not at all, by its channels, or from all stages, with or without noise.

- ``none``: the code is the anatomy half, the contrast half has no channels (plain baselines).
- ``channels``: the first ``anatomy_share`` of the code's channels are anatomy, the remainder contrast (SSL3D winner).
- ``variational``: all stages are average-pooled to the coarsest grid and concatenated; four 1x1x1 convolutions give mean and
  log-variance of two halves of ``latent`` channels (FOMO25 winner).
- ``stages``: as ``variational``, the means alone (ours). The code of a deep stage has passed an instance normalisation over its few
  cells, and fine stages know what it has lost; a log-variance that no term holds in place would be noise without a measure.

A split over all stages can have more (all ours, all off by default): ``summary`` channels of the anatomy half that a small
network makes of the whole box, the same in every cell, since regional volumes and age are no matter of one place; ``contrast_pool``,
by which the contrast half sees each stage's largest value in a cell beside its mean, since a lesion is small; ``contrast_finer``, by which
its cells are smaller than the anatomy's, for the same reason; ``refined``, a linear map
after the anatomy half and its inverse before the decoder, the identity until it is fitted (``objectives/_refine``).

Both winners: Gordaliza, Banus et al., arXiv 2601.13166.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ..core.config import Config
from ..core.representation import Representation
from ._layout import mean_pooled

LATENTS = {
    "variational": ("anatomy_mean", "anatomy_logvar", "contrast_mean", "contrast_logvar"),
    "stages": ("anatomy", "contrast"),
}
"""The convolutions of each split that has some."""


class SplitConfig(Config):
    """Settings that every net's config has."""

    split: Literal["variational", "stages", "channels", "none"] = "variational"
    """How the representation is split."""
    latent: int = Field(default=256, ge=1)
    """Channels of each half of a split over all stages."""
    summary: int = Field(default=0, ge=0)
    """With ``stages``: further channels of the anatomy half, made of the whole box and alike in every cell."""
    contrast_pool: Literal["mean", "both"] = "mean"
    """With ``stages``: whether the contrast half sees the mean of each stage in a cell, or its largest value too."""
    contrast_finer: int = Field(default=0, ge=0)
    """With ``stages``: how many stages finer than the code the grid of the contrast half is. A decoder sees it averaged on the code's grid."""
    refined: bool = False
    """With ``stages``: whether a linear map can be fitted after the anatomy half when training is over."""
    anatomy_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the code's channels that are anatomy in a split by channels."""

    @model_validator(mode="after")
    def _of_stages(self) -> SplitConfig:
        if self.split != "stages" and (self.summary or self.contrast_pool != "mean" or self.contrast_finer or self.refined):
            raise ValueError("net.summary, net.contrast_pool, net.contrast_finer and net.refined need net.split=stages")
        return self

    def halves(self, code: int) -> tuple[int, int]:
        """Channels of the anatomy and the contrast half of a code of ``code`` channels."""
        if self.split in LATENTS:
            return self.latent + self.summary, self.latent
        if self.split == "none":
            return code, 0
        anatomy = round(self.anatomy_share * code)
        return anatomy, code - anatomy

    def latents(self, stages: int) -> nn.ModuleDict | None:
        """The convolutions of a split over ``stages`` concatenated channels; None for the other splits."""
        if self.split not in LATENTS:
            return None
        wide = {"contrast": 2 * stages} if self.contrast_pool == "both" else {}
        made: dict[str, nn.Module] = {
            name: nn.Conv3d(wide.get(name, stages), self.latent, 1) for name in LATENTS[self.split]
        }  # fmt: skip
        if self.summary:
            made["summary"] = Summary(stages, self.summary)
        if self.refined:
            made |= {name: Linear(self.latent + self.summary) for name in ("refine", "restore")}
        return nn.ModuleDict(made)


class Summary(nn.Module):
    """What the whole box tells: stages pooled to 2^3, BatchNorm, a layer of 128, then ``width`` numbers.

    Without the BatchNorm all that subjects share drowns what they do not. Masked scans are normalised by their own batch and leave the
    running statistics, which evaluation uses, alone. With ``norm`` in evaluation, whatever else trains, the running ones are used and stay:
    so a task learns from batches of a few scans what it will be asked for.
    """

    def __init__(self, stages: int, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(stages * 8, affine=False)
        self.mlp = nn.Sequential(nn.Linear(stages * 8, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, pooled: Tensor, masked: bool) -> Tensor:
        """(B, stages, x, y, z) -> (B, width, x, y, z), the same in every cell. A batch of one is normalised as in evaluation."""
        x = functional.adaptive_avg_pool3d(pooled, 2).flatten(1)
        norm = self.norm
        if norm.training and x.shape[0] < 2:
            x = functional.batch_norm(x, norm.running_mean, norm.running_var, None, None, False, 0.0, norm.eps)
        elif norm.training and masked:
            x = functional.batch_norm(x, None, None, None, None, True, 0.0, norm.eps)
        else:
            x = norm(x)
        return self.mlp(x)[:, :, None, None, None].expand(-1, -1, *pooled.shape[2:])


class Linear(nn.Module):
    """A fixed linear map of channels with an offset, the identity at first; not trained by gradients."""

    weight: Tensor
    offset: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(channels))
        self.register_buffer("offset", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) -> the same shape."""
        return torch.einsum("ij,bjxyz->bixyz", self.weight.to(x.dtype), x) + self.offset.to(x.dtype).view(1, -1, 1, 1, 1)


def unrefined(net: nn.Module) -> nn.Module:
    """The net with its refinement, which is fitted when training is over, taken away: as it was trained, and as training goes on. In place."""
    for module in net.modules():
        if isinstance(module, Linear):
            module.weight.copy_(torch.eye(len(module.weight)))
            module.offset.zero_()
    return net


def restored(latents: nn.ModuleDict | None, code: Tensor) -> Tensor:
    """(B, Ca + Cc, x, y, z), the halves as the decoder was trained on them: the anatomy half before its refinement, where it has one."""
    if latents is None or "restore" not in latents:
        return code
    linear: Any = latents["restore"]
    anatomy = linear.weight.shape[0]
    return torch.cat([linear(code[:, :anatomy]), code[:, anatomy:]], 1)


def represent(
    config: SplitConfig,
    latents: nn.ModuleDict | None,
    stages: Sequence[Tensor],
    noise: tuple[Tensor, Tensor] | None,
    visible: Tensor | None = None,
    masked: bool = False,
) -> Representation:
    """The representation of an encoder's stages.

    Args:
        config, latents: the split and its convolutions.
        stages: feature maps, finest first, each (B, C_i, x_i, y_i, z_i); the last is the code.
        noise: standard normal tensors of the halves' shape, for reparameterised samples (only a variational split has any); None gives
            the means.
        visible: (B, 1, x, y, z) bool on the code's grid, for a net that leaves hidden tokens out.
    """
    code = stages[-1]
    if latents is None:
        anatomy = config.halves(code.shape[1])[0]
        return Representation(code[:, :anatomy], code[:, anatomy:], tuple(stages), visible=visible)
    pooled = _on(code.shape[2:], stages)
    if config.split == "stages":
        anatomy = latents["anatomy"](pooled)
        if "summary" in latents:
            anatomy = torch.cat([anatomy, latents["summary"](pooled, masked)], 1)
        if "refine" in latents:
            anatomy = latents["refine"](anatomy)
        if config.contrast_finer >= len(stages):
            raise ValueError(f"net.contrast_finer={config.contrast_finer}, but the net has {len(stages)} stages")
        fine = stages[-1 - config.contrast_finer].shape[2:]
        seen = _on(fine, stages) if config.contrast_finer else pooled
        if config.contrast_pool == "both":
            seen = torch.cat([seen, _on(fine, stages, largest=True)], 1)
        return Representation(anatomy, latents["contrast"](seen), tuple(stages), visible=visible)
    am, al, cm, cl = (latents[name](pooled) for name in LATENTS["variational"])
    anatomy, contrast = am, cm
    if noise is not None:
        anatomy = am + torch.exp(0.5 * al) * noise[0].to(am.dtype)
        contrast = cm + torch.exp(0.5 * cl) * noise[1].to(cm.dtype)
    return Representation(anatomy, contrast, tuple(stages), am, al, cm, cl, visible)


def _on(grid: Sequence[int], stages: Sequence[Tensor], *, largest: bool = False) -> Tensor:
    """All stages on one grid, concatenated: the mean or the largest value of a finer stage in a cell, the nearest of a coarser one."""
    shrink = functional.adaptive_max_pool3d if largest else mean_pooled
    return torch.cat(
        [
            s if s.shape[2:] == grid
            else shrink(s, tuple(grid)) if s.shape[2] > grid[0]
            else functional.interpolate(s, size=tuple(grid), mode="nearest")
            for s in stages
        ], 1,
    )  # fmt: skip
