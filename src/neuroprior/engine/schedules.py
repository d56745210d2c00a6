"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from ..core.config import Config


class ScheduleConfig(Config):
    """Warm-up, then a decay."""

    name: Literal["cosine", "poly", "constant"] = "cosine"
    """Decay after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly to its full value."""
    warmup_epochs: float | None = Field(default=None, ge=0)
    """The same in epochs; resolved into ``warmup_steps`` before the first step."""
    power: float = Field(default=0.9, gt=0)
    """Exponent of the polynomial decay."""
    floor: float = Field(default=0.0, ge=0, lt=1)
    """Share of the full rate that is left at the end."""


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The share of the full learning rate at ``step`` (0 is the first of ``steps``).

    Warm-up step w of W has (w + 1) / W; then, with t from 0 to 1 over the rest: cosine (1 + cos(pi t)) / 2, polynomial
    (1 - t)^power, both scaled to end at ``floor``.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    t = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    decay = {"cosine": (1 + math.cos(math.pi * t)) / 2, "poly": (1 - t) ** config.power, "constant": 1.0}[config.name]
    return config.floor + (1 - config.floor) * decay
