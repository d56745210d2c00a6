"""Covariates beside the images (age, sex ...): numbers and categories, and how their values become what a head takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from .config import Config


class Covariate(Config):
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
