"""AMAES: masked autoencoding in which the augmentation must be undone as well.

Munk et al. 2024, "AMAES: Augmented Masked Autoencoder Pretraining on Public Brain MRI Data for 3D-Native Segmentation" (arXiv
2408.00640): the scan is augmented and masked, the target is the scan before both, blocks of 4^3 hidden at 60 %.

Departures: the augmentations are a smooth gain, a contrast curve, blur and noise (nothing moves, so that the target stays in
place); the error counts on the whole volume by default, since what is visible has to be cleaned too, or on hidden voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig
from ..data.records import PairBatch
from ._intensity import disturbed
from ._masking import masks


class Config(BaseConfig):
    """Settings of augmented masked autoencoding."""

    block: int = Field(default=4, ge=1)
    """Edge of a hidden block in voxels."""
    ratio: float = Field(default=0.6, gt=0, lt=1)
    """Share of blocks hidden."""
    strength: float = Field(default=0.2, ge=0)
    """How far intensities are changed (see ``_intensity``)."""
    region: Literal["volume", "hidden"] = "volume"
    """Where the error counts."""


class AMAES(nn.Module):
    """Mean squared error against the scan as it was."""

    couples_samples = False

    def __init__(self, net: nn.Module, config: Config) -> None:
        super().__init__()
        self.net, self.config = net, config

    def forward(self, batch: PairBatch, *, epoch: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
        """``loss``: the mean over voxels of each scan first and over scans then."""
        image, changed, hidden = self._inputs(batch, seed)
        guess = self.net.reconstruct(self.net.encode(changed, hidden=hidden), image.shape[2:])
        scored = hidden if self.config.region == "hidden" else torch.ones_like(hidden)
        error = ((guess.float() - image) ** 2 * scored).sum((1, 2, 3, 4)) / scored.sum((1, 2, 3, 4))
        return {"loss": error.mean()}

    def _inputs(self, batch: PairBatch, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """(2B, 1, x, y, z) scans A before B, the same augmented, and what is hidden."""
        c, images, changed = self.config, (batch["image_a"], batch["image_b"]), []
        for name, image in zip("ab", images, strict=True):
            changed.append(disturbed(image, batch["sample"], c.strength, seed=seed, purpose=f"augmentation {name}"))
        return torch.cat(images), torch.cat(changed), masks(images, batch["sample"], c.block, c.ratio, seed=seed)

    @torch.no_grad()
    def panels(self, batch: PairBatch, *, seed: int = 0) -> Mapping[str, Tensor]:
        """``original``, ``input`` (augmented and masked) and ``reconstruction`` of scans A, each (B, x, y, z)."""
        image, changed, hidden = (part[: batch["image_a"].shape[0]] for part in self._inputs(batch, seed))
        guess = self.net.reconstruct(self.net.encode(changed, hidden=hidden), image.shape[2:]).float()
        return {"original": image[:, 0], "input": changed.masked_fill(hidden, 0.0)[:, 0], "reconstruction": guess[:, 0]}


def build(net: nn.Module, config: Config) -> AMAES:
    """The objective around a net."""
    return AMAES(net, config)
