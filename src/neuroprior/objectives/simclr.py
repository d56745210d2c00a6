"""SimCLR over contrasts: two scans of a subject attract, scans of other subjects in the batch repel.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv 2002.05709): a projection of
the pooled code (Linear, ReLU, Linear), NT-Xent with a temperature.

Departures: the two views are two contrasts (or time points) of a subject; a subject with one scan gives two augmented views of
it. Both views are changed in intensity and partly hidden. Scans of one subject are never each other's negatives. Nothing is
reconstructed, so the decoder learns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig
from ..core.representation import both_halves
from ..data.records import PairBatch
from ._agreement import dense_infonce
from ._intensity import disturbed
from ._masking import masks
from ._pooling import pooled


class Config(BaseConfig):
    """Settings of SimCLR."""

    block: int = Field(default=8, ge=1)
    """Edge of a hidden block in voxels."""
    ratio: float = Field(default=0.3, ge=0, lt=1)
    """Share of blocks hidden in each view."""
    strength: float = Field(default=0.2, ge=0)
    """How far intensities are changed (see ``_intensity``)."""
    projection: int = Field(default=128, ge=2)
    """Width of the projection."""
    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosines."""


class SimCLR(nn.Module):
    """NT-Xent over the batch's pairs."""

    couples_samples = True

    def __init__(self, net: nn.Module, config: Config) -> None:
        super().__init__()
        self.net, self.config = net, config
        n: Any = net
        width: int = n.anatomy_channels + n.contrast_channels
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.projection))

    def forward(self, batch: PairBatch, *, epoch: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
        """``loss`` and ``accuracy``, the share of scans whose nearest projection is their partner's. A batch of one subject has loss 0."""
        changed, hidden = self._inputs(batch, seed)
        code = self.net.encode(changed, hidden=hidden)
        n = batch["image_a"].shape[0]
        whole = both_halves(code.anatomy, code.contrast)
        rows = self.project(pooled(whole, code.visible, 1)).float()
        if len(set(batch["subject"])) < 2:
            return {"loss": rows.sum() * 0.0, "accuracy": rows.new_zeros(())}
        a, b = (half.view(n, -1, 1, 1, 1) for half in (rows[:n], rows[n:]))
        loss = dense_infonce(a, b, batch["subject"], self.config.temperature)
        with torch.no_grad():
            unit = nn.functional.normalize(rows, dim=1)
            nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
            partner = torch.arange(2 * n, device=nearest.device).roll(n)
            accuracy = (nearest == partner).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def _inputs(self, batch: PairBatch, seed: int) -> tuple[Tensor, Tensor]:
        """(2B, 1, x, y, z) augmented views, A before B, and what is hidden."""
        c, views = self.config, []
        for name, image in zip("ab", (batch["image_a"], batch["image_b"]), strict=True):
            views.append(disturbed(image, batch["sample"], c.strength, seed=seed, purpose=f"augmentation {name}"))
        return torch.cat(views), masks(views, batch["sample"], c.block, c.ratio, seed=seed)

    @torch.no_grad()
    def panels(self, batch: PairBatch, *, seed: int = 0) -> Mapping[str, Tensor]:
        """Both scans and both views as the net sees them, each (B, x, y, z)."""
        views, hidden = self._inputs(batch, seed)
        n = batch["image_a"].shape[0]
        seen = views.masked_fill(hidden, 0.0)
        return {"scan A": batch["image_a"][:, 0], "view A": seen[:n, 0], "scan B": batch["image_b"][:, 0], "view B": seen[n:, 0]}


def build(net: nn.Module, config: Config) -> SimCLR:
    """The objective around a net."""
    return SimCLR(net, config)
