"""Masked autoencoding: hide blocks of the scan, reconstruct what was hidden.

After He et al. 2022 (arXiv 2111.06377) in 3-D, with the SSL3D winner's settings (Gordaliza, Banus et al., arXiv
2601.13166): blocks of 16^3, 75 % hidden and set to 0, squared error on hidden voxels only, each sample its own mask.
Departures: a convolutional net sees the masked scan whole, a transformer leaves the hidden tokens out; both scans of a pair
are used, as two samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig
from ..data.records import PairBatch
from ._masking import masks


class Config(BaseConfig):
    """Settings of masked autoencoding."""

    block: int = Field(default=16, ge=1)
    """Edge of a hidden block in voxels."""
    ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of blocks hidden."""
    both: bool = True
    """Whether the second scan of a pair is learned from too."""


class MAE(nn.Module):
    """Mean squared error over hidden voxels."""

    couples_samples = False

    def __init__(self, net: nn.Module, config: Config) -> None:
        super().__init__()
        self.net, self.config = net, config

    def forward(self, batch: PairBatch, *, epoch: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
        """``loss``: squared error of hidden voxels, the mean over each sample first and over samples then."""
        image, hidden, weight = self._inputs(batch, seed)
        guess = self._reconstruct(image, hidden)
        error = ((guess.float() - image) ** 2 * hidden).sum((1, 2, 3, 4)) / hidden.sum((1, 2, 3, 4))
        return {"loss": (error * weight).sum() / weight.sum()}

    def _inputs(self, batch: PairBatch, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        # an unpaired scan's copy has a mask of its own: a second view
        images = [batch["image_a"], batch["image_b"]] if self.config.both else [batch["image_a"]]
        hidden = masks(images, batch["sample"], self.config.block, self.config.ratio, seed=seed)
        return torch.cat(images), hidden, torch.ones(len(hidden), device=hidden.device)

    def _reconstruct(self, image: Tensor, hidden: Tensor) -> Tensor:
        return self.net.reconstruct(self.net.encode(image, hidden=hidden), image.shape[2:])

    @torch.no_grad()
    def panels(self, batch: PairBatch, *, seed: int = 0) -> Mapping[str, Tensor]:
        """``original``, ``masked`` and ``reconstruction`` of the first scans, each (B, x, y, z)."""
        image, hidden, _ = self._inputs(batch, seed)
        n = batch["image_a"].shape[0]
        guess = self._reconstruct(image[:n], hidden[:n]).float()
        return {"original": image[:n, 0], "masked": image[:n].masked_fill(hidden[:n], 0.0)[:, 0], "reconstruction": guess[:, 0]}


def build(net: nn.Module, config: Config) -> MAE:
    """The objective around a net."""
    return MAE(net, config)
