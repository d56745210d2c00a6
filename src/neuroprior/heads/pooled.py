"""Pooled head: one vector a case from the fused representation, for classification and regression.

After the FOMO25 winner's fine-tuning (Gordaliza, Banus et al., arXiv 2601.13166): the anatomy halves are averaged over
contrasts, the contrast halves concatenated, average-pooled, then Linear, SiLU, dropout, Linear. Departures:

- A linear layer on a concatenation is a sum of one linear map a contrast; it is written so, and the sum is taken over
  the contrasts that are there and divided by their number. Any subset of contrasts works, and none is filled with zeros.
- ``pool="mean_max"`` adds the maximum to the average, since an average over the head hides a small lesion; ``mean_std`` adds the
  standard deviation.
- ``stage_channels`` also pools the encoder's stages: after instance normalisation the code alone says little of sizes.
- ``standardise`` centres and scales the pooled features by their mean and spread over the training cases. An average over the head
  differs little between people and lies far from 0; without it, the first hundreds of steps learn the same number for everybody.
- ``covariates`` are optional inputs of the hidden layer; a missing one has a learned stand-in.
- ``readout`` turns cumulative outputs into what inference expects.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig
from ..core.covariates import Covariate
from ..core.representation import Representation
from ._covariates import Embedding
from ._ragged import mean_by_case
from ._readout import Kind, Readout


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
    hidden: int = Field(default=128, ge=0)
    """Width of the hidden layer; 0 is a linear head."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of hidden units dropped while training."""
    pool: Literal["mean", "mean_max", "mean_std"] = "mean"
    """How each half becomes a vector."""
    stage_channels: tuple[int, ...] = ()
    """Channels of the encoder's stages that are pooled too; empty for the halves alone."""
    standardise: bool = False
    """Centre and scale the pooled features by their statistics over the training cases."""
    covariates: tuple[Covariate, ...] = ()
    """Optional inputs beside the images."""
    readout: Kind = "plain"
    """Whether the outputs are taken as they are, or are cumulative."""
    levels: tuple[float, ...] = ()
    """The values between the thresholds of ``ordered_values``, one more than there are thresholds."""


class PooledHead(nn.Module):
    """(B, outputs) raw outputs from the representations of B cases; ``ordered_values`` has the expected value in front."""

    anatomy_mean: Tensor
    anatomy_std: Tensor
    scan_mean: Tensor
    scan_std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        factor = 1 if config.pool == "mean" else 2
        wide = config.anatomy_channels * factor
        scan = config.contrast_channels * factor + 2 * sum(config.stage_channels)
        self.readout = Readout(config.readout, config.outputs, config.levels)
        width = config.hidden or self.readout.width
        self.anatomy = nn.Linear(wide, width)
        self.contrast = nn.ModuleList(nn.Linear(scan, width, bias=False) for _ in (config.contrasts if scan else ()))
        if config.standardise:
            n = len(config.contrasts)
            for name, shape in (("anatomy", (wide,)), ("scan", (n, scan))):
                self.register_buffer(f"{name}_mean", torch.zeros(shape))
                self.register_buffer(f"{name}_std", torch.ones(shape))
        self.covariates = Embedding(config.covariates, width) if config.covariates else None
        self.out = (
            nn.Sequential(nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, self.readout.width))
            if config.hidden
            else nn.Identity()
        )

    def pool(self, half: Tensor) -> Tensor:
        """(N, C, x, y, z) -> (N, C) or (N, 2 C)."""
        flat = half.flatten(2).float()  # half precision would lose the small differences that are standardised
        if self.config.pool == "mean":
            return flat.mean(2)
        if self.config.pool == "mean_std":
            return torch.cat([flat.mean(2), _spread(flat)], 1)
        return torch.cat([flat.mean(2), flat.amax(2)], 1)

    def vectors(self, representation: Representation, case: Tensor, n_cases: int) -> tuple[Tensor, Tensor]:
        """The pooled features before any weight: (n_cases, Da) of the anatomy, (N, Dc) of each scan (Dc may be 0)."""
        anatomy = mean_by_case(self.pool(representation.anatomy), case, n_cases)
        parts = [self.pool(representation.contrast)] if self.config.contrast_channels else []
        for stage in representation.stages if self.config.stage_channels else ():
            flat = stage.flatten(2).float()
            parts += [flat.mean(2), _spread(flat)]
        return anatomy, torch.cat(parts, 1) if parts else anatomy.new_zeros((case.shape[0], 0))

    def statistics(self, representation: Representation, contrast: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`standardise_by` wants of the scans of one case."""
        return self.vectors(representation, torch.zeros_like(contrast), 1)

    @torch.no_grad()
    def standardise_by(self, anatomy: Tensor, scans: Tensor, contrast: Tensor) -> None:
        """Set the statistics from the training cases' :meth:`vectors`.

        Args:
            anatomy: (B, Da).
            scans: (N, Dc).
            contrast: (N,) which contrast each scan is; one that has fewer than two scans gets the statistics of all.
        """
        _set_statistics(self.anatomy_mean, self.anatomy_std, anatomy)
        for number in range(len(self.config.contrasts)):
            rows = scans[contrast == number]
            _set_statistics(self.scan_mean[number], self.scan_std[number], rows if len(rows) > 1 else scans)

    def forward(
        self, net: nn.Module, representation: Representation, case: Tensor, contrast: Tensor, n_cases: int,
        covariates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(n_cases, outputs); the shelf's docstring explains the ragged batch. ``net`` is not used.

        ``covariates`` (n_cases, F) come from ``core.covariates.encode``; NaN, or None for all, means missing.
        """
        anatomy, scans = self.vectors(representation, case, n_cases)
        if self.config.standardise:
            anatomy = (anatomy - self.anatomy_mean) / self.anatomy_std
            scans = (scans - self.scan_mean[contrast]) / self.scan_std[contrast]
        hidden = self.anatomy(anatomy)
        if len(self.contrast):
            weight = torch.stack([layer.weight for layer in self.contrast])[contrast]  # (N, hidden, Dc)
            rows = torch.einsum("nc,nhc->nh", scans, weight.to(scans.dtype))
            hidden = hidden + mean_by_case(rows, case, n_cases)
        if self.covariates is not None:
            hidden = hidden + self.covariates(covariates, n_cases)
        return self.readout(self.out(hidden))


def _spread(flat: Tensor) -> Tensor:
    """(N, C, V) -> (N, C) standard deviations, with a gradient everywhere."""
    return (flat.var(2, correction=0) + 1e-6).sqrt()


def _set_statistics(mean: Tensor, std: Tensor, rows: Tensor) -> None:
    if len(rows) == 0 or rows.shape[1] == 0:
        return
    mean.copy_(rows.mean(0))
    spread = rows.std(0, correction=0)
    std.copy_(torch.where(spread > 1e-4 * spread.max().clamp_min(1e-6), spread, torch.ones_like(spread)))


def build(config: Config) -> PooledHead:
    """The head of a config."""
    return PooledHead(config)
