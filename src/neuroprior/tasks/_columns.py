"""Targets that are a column of the participants table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import nn

from ..core.config import Config as BaseConfig
from ..core.covariates import Covariate
from ..core.errors import InputError, suggestion
from ..data.store import SessionView, Store
from ._protocol import usable_contrasts

logger = logging.getLogger(__name__)


class VectorConfig(BaseConfig):
    """Settings of a task with one vector a case."""

    head: Literal["cellwise", "pooled"] = "cellwise"
    """``cellwise`` reads every cell, then pools; ``pooled`` pools first (the paper's, with ``pool=mean``, ``stages=false`` and
    ``standardise=false``)."""
    width: int = Field(default=32, ge=1)
    """Of ``cellwise``: numbers that are read from each cell."""
    grid: int = Field(default=2, ge=1)
    """Of ``cellwise``: cells along each axis that are left after pooling."""
    pool: Literal["mean", "mean_max", "mean_std"] = "mean_max"
    """Of ``pooled``: how each half becomes a vector."""
    standardise: bool = True
    """Of ``pooled``: centre and scale the features by their statistics over the training cases (``cellwise`` always does)."""
    stages: bool = True
    """Read the encoder's stages too, not the halves alone."""
    hidden: int = Field(default=64, ge=0)
    """Width of the hidden layer; 0 is a linear one."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of hidden units dropped while training."""


def vector_head(
    config: VectorConfig, net: nn.Module, contrasts: Sequence[str], outputs: int, covariates: Sequence[Covariate], **more: Any
) -> tuple[str, dict[str, Any]]:
    """Name and config of the head for a task."""
    common = {
        "contrasts": list(contrasts), "anatomy_channels": net.anatomy_channels, "contrast_channels": net.contrast_channels,
        "stage_channels": list(net.stage_channels) if config.stages else [], "outputs": outputs, "hidden": config.hidden,
        "dropout": config.dropout, "covariates": [covariate.model_dump(mode="json") for covariate in covariates], **more,
    }  # fmt: skip
    if config.head == "cellwise":
        return "cellwise", common | {"width": config.width, "grid": config.grid}
    return "pooled", common | {"pool": config.pool, "standardise": config.standardise}


def is_missing(value: object) -> bool:
    """Whether a cell says that nothing is known."""
    return value is None or str(value).strip().lower() in {"", "n/a", "na", "nan", "none", "null"}


def known_columns(store: Store) -> list[str]:
    """The columns that some session has."""
    return sorted({"age", "sex", "health", "site", "scanner", *(k for s in store.sessions for k in s.columns)})


def column_values(
    store: Store, sessions: Sequence[SessionView], target: str, contrasts: Sequence[str]
) -> list[tuple[SessionView, object]]:
    """The sessions with a value in column ``target`` (``n/a`` and empty are none) and one of the contrasts.

    Sessions left out are told, with the reason.

    Raises:
        InputError: nobody has such a value; the message lists the columns there are.
    """
    found, without, unseen = [], [], []
    for session in sessions:
        value = session.value(target)
        if is_missing(value):
            without.append(session.key)
        elif not usable_contrasts(session, contrasts):
            unseen.append(session.key)
        else:
            found.append((session, value))
    if not found:
        known = known_columns(store)
        raise InputError(
            f"no training session has a value in column {target!r} and one of {', '.join(contrasts)}",
            expected=f"a column with values; there are: {', '.join(known)}",
            next_step=suggestion(target, known),
        )
    for keys, why in ((without, f"no value in column {target!r}"), (unseen, f"none of {', '.join(contrasts)}")):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            logger.warning("%d of %d training sessions left out, they have %s: %s%s", len(keys), len(sessions), why,
                           ", ".join(keys[:5]), more)  # fmt: skip
    return found
