"""Covariates from the training sessions: which kind each is, and its scale or its categories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.covariates import Covariate
from ..core.errors import ConfigError, suggestion
from ..data.store import SessionView, Store
from ._columns import is_missing, known_columns


def fit(store: Store, sessions: Sequence[SessionView], names: Sequence[str], target: str) -> tuple[Covariate, ...]:
    """What the head must know of each column, read from the training sessions.

    Raises:
        ConfigError: a column is the target, has no value, or has the same for everybody.
    """
    found = []
    for name in names:
        if name == target:
            raise ConfigError(f"{name!r} cannot be both the target and a covariate")
        values = [session.value(name) for session in sessions if not is_missing(session.value(name))]
        if not values:
            raise ConfigError(
                f"no training session has a value of the covariate {name!r}", next_step=suggestion(name, known_columns(store))
            )
        if len({str(value) for value in values}) < 2:
            raise ConfigError(f"the covariate {name!r} is {values[0]!r} for all training sessions", next_step="leave it out")
        if all(isinstance(value, (int, float)) for value in values):
            numbers = np.array(values, dtype=float)
            found.append(Covariate(name=name, kind="number", mean=float(numbers.mean()), std=float(numbers.std())))
        else:
            found.append(Covariate(name=name, kind="category", levels=tuple(sorted({str(value) for value in values}))))
    return tuple(found)
