"""Covariates beside the images (age, sex ...): optional numbers and categories, each with a learned stand-in when it is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig


class Covariate(BaseConfig):
    """One covariate and how its values become numbers."""

    name: str
    """The participants column."""
    kind: Literal["number", "category"]
    """Numbers are standardised, categories numbered."""
    mean: float = 0.0
    """Of a number, over the training subjects."""
    std: float = Field(default=1.0, gt=0)
    """Of a number, over the training subjects."""
    levels: tuple[str, ...] = ()
    """The known categories; any other is missing."""


def encode(values: Mapping[str, Any], covariates: Sequence[Covariate]) -> list[float]:
    """The values as the head takes them: a standardised number, a category's place, or NaN where it is missing or unknown."""
    row = []
    for covariate in covariates:
        value = values.get(covariate.name)
        if covariate.kind == "category":
            row.append(float(covariate.levels.index(str(value))) if str(value) in covariate.levels else math.nan)
            continue
        try:
            row.append((float(value) - covariate.mean) / covariate.std)  # type: ignore[arg-type]  # what float() refuses is missing
        except (TypeError, ValueError):
            row.append(math.nan)
    return row


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
