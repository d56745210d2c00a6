"""Covariates beside the images, each with a learned stand-in when it is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.covariates import Covariate


class Embedding(nn.Module):
    """(B, F) encoded covariates -> (B, width), the sum of one vector a covariate; a missing one has a learned vector of its own."""

    def __init__(self, covariates: Sequence[Covariate], width: int) -> None:
        super().__init__()
        self.covariates = tuple(covariates)
        # row 0 stands for "missing"; then one row a category, or the one that a number is multiplied with
        self.tables = nn.ParameterList(
            nn.Parameter(torch.randn(1 + (len(c.levels) if c.kind == "category" else 1), width) / math.sqrt(width))
            for c in covariates
        )

    def forward(self, values: Tensor | None, n_cases: int) -> Tensor:
        """``values`` (B, F) with NaN for missing; None means that all are missing."""
        first = next(self.parameters())
        if values is None:
            values = first.new_full((n_cases, len(self.covariates)), math.nan)
        total = first.new_zeros((n_cases, first.shape[1]))
        for place, (covariate, table) in enumerate(zip(self.covariates, self.tables, strict=True)):
            column = values[:, place].to(table.dtype)
            absent = column.isnan()
            known = column.nan_to_num(0.0)
            row = table[1 + known.long()] if covariate.kind == "category" else known[:, None] * table[1]
            total = total + torch.where(absent[:, None], table[0], row)
        return total
