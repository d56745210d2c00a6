"""Regression: one number a session, from a column of the participants table. The net predicts it standardised.

Losses beside the plain ones: ``heteroscedastic``, the Gaussian likelihood with a predicted variance (Nix and Weigend 1994; Kendall
and Gal 2017); ``ordinal``, a distribution function over bins, one cross-entropy a threshold (Niu et al. 2016, for age), whose
expected value is the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..core.covariates import Covariate
from ..core.errors import InputError
from ..data.cases import Case
from ..data.store import SessionView, Store
from ._columns import VectorConfig, column_values, vector_head

LOG_VARIANCE = (-7.0, 5.0)
"""Smallest and largest predicted log-variance, in units of the target's variance."""


class Config(VectorConfig):
    """Settings of the regression task."""

    pool: Literal["mean", "mean_max", "mean_std"] = "mean"
    """How each half becomes a vector."""
    loss: Literal["smooth_l1", "mse", "mae", "huber", "heteroscedastic", "ordinal"] = "smooth_l1"
    """What is minimised."""
    beta: float = Field(default=0.5, gt=0)
    """Where smooth L1 and Huber turn from square to absolute, in standard deviations of the target."""
    bins: int = Field(default=16, ge=2)
    """Bins of ``ordinal``, of equal width between the training values' extremes."""


@dataclass(frozen=True)
class Regression:
    """A fitted regression task.

    Attributes:
        target: the column.
        mean, std: of the target over the training subjects, in its own unit; predicting ``mean`` is the floor.
        config: its settings.
        covariates: optional inputs of the head.
        levels: standardised bin centres of ``ordinal``.
    """

    target: str
    mean: float
    std: float
    config: Config
    covariates: tuple[Covariate, ...] = field(default=())
    levels: tuple[float, ...] = ()
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
        """The pooled head; its first output is the standardised number."""
        if self.config.loss == "ordinal":
            return vector_head(
                self.config,
                net,
                contrasts,
                len(self.levels) - 1,
                self.covariates,
                readout="ordered_values",
                levels=list(self.levels),
            )
        return vector_head(self.config, net, contrasts, 2 if self.config.loss == "heteroscedastic" else 1, self.covariates)

    def losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss from (B, outputs) outputs and (B,) standardised targets; ``mae`` is in the target's unit."""
        value, c = output[:, 0], self.config
        if c.loss == "mse":
            loss = functional.mse_loss(value, target)
        elif c.loss == "mae":
            loss = functional.l1_loss(value, target)
        elif c.loss == "huber":
            loss = functional.huber_loss(value, target, delta=c.beta)
        elif c.loss == "heteroscedastic":
            logvar = output[:, 1].clamp(*LOG_VARIANCE)
            loss = 0.5 * (torch.exp(-logvar) * (value - target) ** 2 + logvar).mean()
        elif c.loss == "ordinal":
            levels = torch.tensor(self.levels, dtype=output.dtype, device=output.device)
            above = (target[:, None] > (levels[:-1] + levels[1:]) / 2).to(output.dtype)
            loss = functional.binary_cross_entropy_with_logits(output[:, 1:], above)
        else:
            loss = functional.smooth_l1_loss(value, target, beta=c.beta)
        return {"loss": loss, "mae": (value.detach() - target).abs().mean() * self.std}

    def describe(self) -> dict[str, Any]:
        """Scale of the first output, the training mean as the floor, and how the others give a spread.

        ``spread`` is ``{"kind": "log_variance", "output": 1}`` (std = exp(half of it, clamped) times ``std``),
        ``{"kind": "cumulative", "levels": [...]}`` (logits of exceeding the middle between neighbouring standardised levels, from output
        1 on), or None.
        """
        spread: dict[str, Any] | None = None
        if self.config.loss == "heteroscedastic":
            spread = {"kind": "log_variance", "output": 1, "clamp": list(LOG_VARIANCE)}
        if self.config.loss == "ordinal":
            spread = {"kind": "cumulative", "levels": list(self.levels)}
        return {
            "name": self.name, "target": self.target, "mean": self.mean, "std": self.std, "floor": {"mean": self.mean},
            "spread": spread, "covariates": [covariate.name for covariate in self.covariates],
        }  # fmt: skip


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # anything float() refuses is caught below
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def fit(
    store: Store, sessions: Sequence[SessionView], target: str, contrasts: Sequence[str], config: Config,
    covariates: Sequence[Covariate] = (),
) -> Regression:  # fmt: skip
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
    if len(values) < 2:
        raise InputError(f"only one training subject has a number in column {target!r}", expected="at least two")
    if values.std() == 0:
        raise InputError(f"the column {target!r} has the same value, {values[0]}, for all {len(values)} training subjects")
    mean, std = float(values.mean()), float(values.std())
    levels: tuple[float, ...] = ()
    if config.loss == "ordinal":
        levels = tuple(((np.linspace(values.min(), values.max(), config.bins) - mean) / std).tolist())
    return Regression(target, mean, std, config, tuple(covariates), levels)
