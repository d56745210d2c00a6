"""Cellwise head: every cell of the code is read by itself, then cells are pooled. One vector a case, for classification and regression.

Ours. A network whose every layer is instance-normalised has nearly the same channel means for everybody, so a head that pools first
(``pooled``) learns little of sizes. A layer with a nonlinearity in each cell turns its mean into a count of cells that look a certain
way (Zaheer et al., "Deep Sets", 2017), a coarse grid keeps roughly where they are, and batch normalisation over scans (Ioffe and Szegedy
2015) brings out what differs between people: without it, all that they share drowns the remainder, in values and in gradients.

- Each scan's halves and stages are read by one map for the anatomy, shared by contrasts, and one a contrast for the remainder.
- The pooled numbers of a scan are normalised with the scans of its contrast in the batch where there are at least four, else by running
  statistics, which begin as those of the training cases, and whose gradient is centred as a batch norm's would be. A prediction always takes the running ones: it never depends on a batch.
- A case is the mean over its scans: any subset in any order works, none is filled with zeros.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..core.config import Config as BaseConfig
from ..core.covariates import Covariate
from ..core.representation import Representation
from ._covariates import Embedding
from ._ragged import mean_by_case
from ._readout import Kind, Readout

ENOUGH = 4
"""Scans of a contrast in a batch from which their own mean and spread are taken while training."""


class Config(BaseConfig):
    """Settings of the cellwise head."""

    contrasts: tuple[str, ...] = Field(min_length=1)
    """Canonical names the head knows, in the order of their numbers."""
    anatomy_channels: int = Field(ge=1)
    """Channels of the anatomy half."""
    contrast_channels: int = Field(ge=0)
    """Channels of the contrast half; 0 for a net with no split."""
    stage_channels: tuple[int, ...] = ()
    """Channels of the encoder's stages that are read too; empty for the halves alone."""
    outputs: int = Field(ge=1)
    """Numbers a case: classes, or 1 for a regression."""
    width: int = Field(default=32, ge=1)
    """Numbers that are read from each cell."""
    grid: int = Field(default=2, ge=1)
    """Cells along each axis that are left after pooling; 1 forgets where something was."""
    hidden: int = Field(default=64, ge=0)
    """Width of the hidden layer after pooling; 0 is a linear one."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of hidden units dropped while training."""
    momentum: float = Field(default=0.01, gt=0, le=1)
    """How far one scan moves the running statistics."""
    covariates: tuple[Covariate, ...] = ()
    """Optional inputs beside the images."""
    readout: Kind = "plain"
    """Whether the outputs are taken as they are, or are cumulative."""
    levels: tuple[float, ...] = ()
    """The values between the thresholds of ``ordered_values``."""


class CellwiseHead(nn.Module):
    """(B, outputs) raw outputs from the representations of B cases; ``ordered_values`` has the expected value in front."""

    mean: Tensor
    variance: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        scan = config.contrast_channels + sum(config.stage_channels)
        self.anatomy = nn.Linear(config.anatomy_channels, config.width)
        self.contrast = nn.ModuleList(nn.Linear(scan, config.width, bias=False) for _ in (config.contrasts if scan else ()))
        pooled = config.width * config.grid**3
        self.register_buffer("mean", torch.zeros(len(config.contrasts), pooled))
        self.register_buffer("variance", torch.ones(len(config.contrasts), pooled))
        self.readout = Readout(config.readout, config.outputs, config.levels)
        width = config.hidden or self.readout.width
        self.pooled = nn.Linear(pooled, width)
        self.covariates = Embedding(config.covariates, width) if config.covariates else None
        last = nn.Sequential(nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(width, self.readout.width))
        self.out = last if config.hidden else nn.Identity()

    def scans(self, representation: Representation, contrast: Tensor) -> Tensor:
        """(N, width * grid^3) of N scans, before they are normalised; ``contrast`` (N,) says which contrast each is.

        Always in float32: people differ by little.
        """
        code = representation.anatomy
        cells = code.shape[2:]
        maps = (representation.contrast,) if self.config.contrast_channels else ()
        maps += representation.stages if self.config.stage_channels else ()
        parts = [m if m.shape[2:] == cells else functional.adaptive_avg_pool3d(m, cells) for m in maps]
        read = torch.einsum("ncxyz,hc->nhxyz", code.float(), self.anatomy.weight) + self.anatomy.bias.view(1, -1, 1, 1, 1)
        if parts:
            weight = torch.stack([layer.weight for layer in self.contrast])[contrast]
            read = read + torch.einsum("ncxyz,nhc->nhxyz", torch.cat(parts, 1).float(), weight)
        return functional.adaptive_avg_pool3d(functional.silu(read), self.config.grid).flatten(1)

    def statistics(self, representation: Representation, contrast: Tensor) -> tuple[Tensor, ...]:
        """What :meth:`standardise_by` wants of the scans of one case."""
        return (self.scans(representation, contrast),)

    @torch.no_grad()
    def standardise_by(self, scans: Tensor, contrast: Tensor) -> None:
        """Begin the running statistics with those of (N, D) training :meth:`scans`; a contrast with fewer than two takes those of all."""
        for number in range(len(self.config.contrasts)):
            rows = scans[contrast == number]
            rows = rows if len(rows) > 1 else scans
            if len(rows) > 1:
                self.mean[number] = rows.mean(0)
                self.variance[number] = rows.var(0, correction=0)

    def normalised(self, scans: Tensor, contrast: Tensor) -> Tensor:
        """(N, D) :meth:`scans` centred and scaled by contrast; while training, the running statistics follow. No value leaves the device."""
        if not self.training:
            return self._scaled(scans, contrast, self.mean, self.variance)
        mine = functional.one_hot(contrast, len(self.config.contrasts)).to(scans.dtype)  # (N, contrasts)
        count = mine.sum(0)[:, None]
        here = mine.T @ scans / count.clamp_min(1)
        spread = mine.T @ (scans - here[contrast]).square() / count.clamp_min(1)
        enough = count >= ENOUGH
        few = (count > 1) & ~enough  # the values stay; the gradient loses what would move all scans alike, as in a batch norm
        centred = scans + torch.where(few, here.detach() - here, torch.zeros_like(here))[contrast]
        result = self._scaled(centred, contrast, torch.where(enough, here, self.mean), torch.where(enough, spread, self.variance))
        with torch.no_grad():
            share = 1 - (1 - self.config.momentum) ** count  # 0 where there is no scan
            one = mine.T @ (scans - self.mean[contrast]).square()  # a single scan's spread is its distance from the others
            self.variance += share * (torch.where(count > 1, spread * count / (count - 1).clamp_min(1), one) - self.variance)
            self.mean += share * (here - self.mean)
        return result

    @staticmethod
    def _scaled(scans: Tensor, contrast: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (scans - mean[contrast]) / (variance[contrast] + 1e-5 * variance.mean() + 1e-12).sqrt()

    def forward(
        self, net: nn.Module, representation: Representation, case: Tensor, contrast: Tensor, n_cases: int,
        covariates: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(n_cases, outputs); the shelf's docstring explains the ragged batch. ``net`` is not used.

        ``covariates`` (n_cases, F) come from ``core.covariates.encode``; NaN, or None for all, means missing.
        """
        with torch.autocast(case.device.type, enabled=False):
            scans = self.normalised(self.scans(representation, contrast), contrast)
            hidden = self.pooled(mean_by_case(scans, case, n_cases))
            if self.covariates is not None:
                hidden = hidden + self.covariates(covariates, n_cases)
            return self.readout(self.out(hidden))


def build(config: Config) -> CellwiseHead:
    """The head of a config."""
    return CellwiseHead(config)
