"""The state of a run on disk, and whether a folder holds the run that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..core.config import read_yaml
from ..core.errors import ArtifactError, ConfigError
from .settings import TrainingConfig

logger = logging.getLogger(__name__)


def load_state(run: Path) -> dict[str, Any] | None:
    """The newest readable state, with the good one that it refers to under ``good``, or None.

    States are written atomically, so an unreadable one is damage and is told.
    """
    for path in sorted((run / "state").glob("step-*.pt"), reverse=True):
        reading = path
        try:
            state = torch.load(reading, map_location="cpu", weights_only=True)
            reading = path.with_name(f"good-{state['good']:08d}.pt")
            return state | {"good": torch.load(reading, map_location="cpu", weights_only=True)}
        except (RuntimeError, EOFError, OSError, KeyError) as error:
            logger.warning("the state %s is damaged (%s): taking the one before", reading, str(error).splitlines()[0])
    return None


def copied(value: Any) -> Any:
    """Nested tensors and plain values, the tensors copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return type(value)(copied(item) for item in value) if isinstance(value, (list, tuple)) else value


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Bring an optimiser to a state of before.

    What it remembers is laid out in memory as its parameters are: a fused step goes through both side by side and would mix them up where a
    run was begun with maps in another layout.

    Raises:
        ArtifactError: the state is of another net.
    """
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise ArtifactError("the optimiser's state does not fit the net", got=str(error)) from None
    for parameter, remembered in optimizer.state.items():
        for name, value in remembered.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                remembered[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def refuse_other(run: Path, recipe: Mapping[str, Any]) -> None:
    """Nothing where the folder's run was begun with this recipe.

    Raises:
        ConfigError: it was another one; the settings that differ are named.
    """
    found = read_yaml(run / "recipe.yaml")
    if isinstance(found.get("training"), dict):  # settings that came after the run was begun had their defaults in it
        found["training"] = TrainingConfig().model_dump(mode="json") | found["training"]
    plain = yaml.safe_load(yaml.safe_dump(dict(recipe)))
    different = sorted(_differences(found, plain))
    if different:
        raise ConfigError(
            "the run folder holds a run of another recipe", file=run, expected=f"the same {', '.join(different[:6])}",
            got="; ".join(f"{key}: {_get(found, key)!r} there, {_get(plain, key)!r} now" for key in different[:6]),
            next_step="choose another --out, or ask for what the folder was begun with",
        )  # fmt: skip


UNBINDING = tuple(
    f"{where}training.{name}" for where in ("", "settings.") for name in ("workers", "log_every", "hours", "recompute")
)
"""Settings that may differ between a run and its resume."""


def _differences(a: Any, b: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif a != b and prefix not in UNBINDING:
        yield prefix


def _get(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
