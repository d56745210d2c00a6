"""Pooled head: one vector a case from the fused representation, for classification and regression.

After the FOMO25 winner's fine-tuning (Gordaliza, Banus et al., arXiv 2601.13166): the anatomy halves are averaged over
contrasts, the contrast halves concatenated, average-pooled, then Linear, SiLU, dropout, Linear. Departures:

- A linear layer on a concatenation is a sum of one linear map a contrast; it is written so, and the sum is taken over
  the contrasts that are there and divided by their number. Any subset of contrasts works, and none is filled with zeros.
- ``pool="mean_max"`` adds the maximum to the average, since an average over the head hides a small lesion.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig
from ..core.representation import Representation
from ._ragged import mean_by_case


class Config(BaseConfig):
    """Settings of the pooled head."""

    contrasts: tuple[str, ...] = Field(min_length=1)
    """Canonical names the head knows, in the order of their numbers."""
    anatomy_channels: int = Field(ge=1)
    """Channels of the anatomy half."""
    contrast_channels: int = Field(ge=0)
    """Channels of the contrast half; 0 for a net with no split."""
    outputs: int = Field(ge=1)
    """Numbers a case: classes, or 1 for a regression."""
    hidden: int = Field(default=128, ge=1)
    """Width of the hidden layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of hidden units dropped while training."""
    pool: Literal["mean", "mean_max"] = "mean"
    """How each half becomes a vector."""


class PooledHead(nn.Module):
    """(B, outputs) raw outputs from the representations of B cases."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        factor = 2 if config.pool == "mean_max" else 1
        self.anatomy = nn.Linear(config.anatomy_channels * factor, config.hidden)
        self.contrast = nn.ModuleList(
            nn.Linear(config.contrast_channels * factor, config.hidden, bias=False)
            for _ in (config.contrasts if config.contrast_channels else ())
        )
        self.out = nn.Sequential(nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, config.outputs))

    def pool(self, half: Tensor) -> Tensor:
        """(N, C, x, y, z) -> (N, C) or (N, 2 C)."""
        flat = half.flatten(2)
        if self.config.pool == "mean":
            return flat.mean(2)
        return torch.cat([flat.mean(2), flat.amax(2)], 1)

    def forward(self, net: nn.Module, representation: Representation, case: Tensor, contrast: Tensor, n_cases: int) -> Tensor:
        """(n_cases, outputs); the shelf's docstring explains the ragged batch. ``net`` is not used."""
        hidden = self.anatomy(mean_by_case(self.pool(representation.anatomy), case, n_cases))
        if self.config.contrast_channels:
            pooled = self.pool(representation.contrast)  # (N, C)
            weight = torch.stack([layer.weight for layer in self.contrast])[contrast]  # (N, hidden, C)
            rows = torch.einsum("nc,nhc->nh", pooled, weight.to(pooled.dtype))
            hidden = hidden + mean_by_case(rows, case, n_cases)
        return self.out(hidden)


def build(config: Config) -> PooledHead:
    """The head of a config."""
    return PooledHead(config)
