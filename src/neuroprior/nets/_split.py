"""How a net's code becomes two halves: not at all, by its channels, or from all stages, with or without noise.

- ``none``: the code is the anatomy half, the contrast half has no channels (plain baselines).
- ``channels``: the first ``anatomy_share`` of the code's channels are anatomy, the remainder contrast (SSL3D winner).
- ``variational``: all stages are average-pooled to the coarsest grid and concatenated; four 1x1x1 convolutions give mean and
  log-variance of two halves of ``latent`` channels (FOMO25 winner).
- ``stages``: as ``variational``, the means alone (ours). The code of a deep stage has passed an instance normalisation over its few
  cells, and fine stages know what it has lost; a log-variance that no term holds in place would be noise without a measure.

Both winners: Gordaliza, Banus et al., arXiv 2601.13166.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..core.config import Config
from ..core.representation import Representation

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
    anatomy_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the code's channels that are anatomy in a split by channels."""

    def halves(self, code: int) -> tuple[int, int]:
        """Channels of the anatomy and the contrast half of a code of ``code`` channels."""
        if self.split in LATENTS:
            return self.latent, self.latent
        if self.split == "none":
            return code, 0
        anatomy = round(self.anatomy_share * code)
        return anatomy, code - anatomy

    def latents(self, stages: int) -> nn.ModuleDict | None:
        """The convolutions of a split over ``stages`` concatenated channels; None for the other splits."""
        if self.split not in LATENTS:
            return None
        return nn.ModuleDict({name: nn.Conv3d(stages, self.latent, 1) for name in LATENTS[self.split]})


def represent(
    config: SplitConfig,
    latents: nn.ModuleDict | None,
    stages: Sequence[Tensor],
    noise: tuple[Tensor, Tensor] | None,
    visible: Tensor | None = None,
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
    grid = code.shape[2:]
    pooled = torch.cat([s if s.shape[2:] == grid else functional.adaptive_avg_pool3d(s, grid) for s in stages], 1)
    if config.split == "stages":
        return Representation(latents["anatomy"](pooled), latents["contrast"](pooled), tuple(stages), visible=visible)
    am, al, cm, cl = (latents[name](pooled) for name in LATENTS["variational"])
    anatomy, contrast = am, cm
    if noise is not None:
        anatomy = am + torch.exp(0.5 * al) * noise[0].to(am.dtype)
        contrast = cm + torch.exp(0.5 * cl) * noise[1].to(cm.dtype)
    return Representation(anatomy, contrast, tuple(stages), am, al, cm, cl, visible)
