"""Regression: one number a session, from a column of the participants table. The net predicts it standardised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from ..core.config import Config as BaseConfig
from ..core.errors import InputError
from ..data.cases import Case
from ..data.store import SessionView, Store
from ._columns import column_values


class Config(BaseConfig):
    """Settings of the regression task."""

    pool: Literal["mean", "mean_max"] = "mean"
    """How each half becomes a vector."""
    hidden: int = Field(default=128, ge=1)
    """Width of the head's hidden layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of hidden units dropped while training."""
    beta: float = Field(default=0.5, gt=0)
    """Where the smooth-L1 loss turns from square to absolute, in standard deviations of the target."""


@dataclass(frozen=True)
class Regression:
    """A fitted regression task.

    Attributes:
        target: the column.
        mean, std: of the target over the training subjects, in its own unit; predicting ``mean`` is the floor.
        config: its settings.
    """

    target: str
    mean: float
    std: float
    config: Config
    name: str = "regression"

    def cases(self, store: Store, sessions: Sequence[SessionView], contrasts: Sequence[str]) -> list[Case]:
        """Sessions that have a number in the column; the case's target is standardised."""
        found = []
        for session in sessions:
            value = _number(session.value(self.target))
            names = tuple(name for name in contrasts if name in session.scans)
            if names and value is not None:
                found.append(Case(session, names, (value - self.mean) / self.std))
        return found

    def head(self, net: nn.Module, contrasts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The pooled head with one output."""
        return "pooled", {
            "contrasts": list(contrasts), "anatomy_channels": net.anatomy_channels, "contrast_channels": net.contrast_channels,
            "outputs": 1, "hidden": self.config.hidden, "dropout": self.config.dropout, "pool": self.config.pool,
        }  # fmt: skip

    def losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Smooth L1 from (B, 1) outputs and (B,) standardised targets; ``mae`` is in the target's unit."""
        return {
            "loss": smooth_l1_loss(output[:, 0], target, beta=self.config.beta),
            "mae": (output.detach()[:, 0] - target).abs().mean() * self.std,
        }

    def describe(self) -> dict[str, Any]:
        """Scale of the output, and the training mean as the floor."""
        return {
            "name": self.name, "target": self.target, "mean": self.mean, "std": self.std, "floor": {"mean": self.mean},
        }  # fmt: skip


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # anything float() refuses is caught below
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def fit(store: Store, sessions: Sequence[SessionView], target: str, contrasts: Sequence[str], config: Config) -> Regression:
    """The task for a column, its scale read from the training sessions (each subject counted once).

    Raises:
        InputError: nobody has a value, a value is no number, or all are the same.
    """
    by_subject: dict[str, float] = {}
    for session, value in column_values(store, sessions, target, contrasts):
        number = _number(value)
        if number is None:
            raise InputError(
                f"the column {target!r} holds {value!r} for {session.key}", expected="a number or n/a",
                next_step="use --task classification for names, or mend the participants table",
            )  # fmt: skip
        by_subject.setdefault(session.subject, number)
    values = np.array(list(by_subject.values()))
    if values.std() == 0:
        raise InputError(f"the column {target!r} has the same value, {values[0]}, for all {len(values)} training subjects")
    return Regression(target, float(values.mean()), float(values.std()), config)
