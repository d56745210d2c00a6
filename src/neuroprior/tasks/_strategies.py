"""How a pretrained net is taken to a task, in a word: a table of phases, resolved into the run's settings.

The groups that the phases speak of: ``head`` (what the task put on top), ``decoder``, ``latent`` (the convolutions that split the
code), ``encoder.0`` ... ``encoder.N`` (finest first), ``adapters`` (low-rank ones). Sources: linear probing then full fine-tuning,
Kumar et al. 2022 (arXiv 2202.10054); layer-wise decay, Clark et al. 2020 (arXiv 2003.10555); adapters, Hu et al. 2022 (2106.09685);
decoder first, then all, each warmed up ("sawtooth"), as in public fine-tuning code of the OpenMind benchmark.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ..core.errors import ConfigError, suggestion
from ..engine.phases import ALL, PhaseConfig
from ._adapters import is_adapter

TOP = {"head": 1.0, "decoder": 1.0, ALL: 0.0}
"""What lies above the code."""

STRATEGIES: dict[str, tuple[dict[str, Any], ...]] = {
    "scratch": ({"rates": {ALL: 1.0}, "warmup": 0.1},),
    "full": ({"rates": {ALL: 1.0}},),
    "warmup-full": ({"rates": {ALL: 1.0}, "warmup": 0.1},),
    "closed-form": ({"rates": {"head": 1.0, ALL: 0.0}, "warmup": 0.05},),  # the head is solved for first (``_closed_form``)
    "linear-probe": ({"rates": {"head": 1.0, ALL: 0.0}, "warmup": 0.05},),
    "head-then-full": (
        {"share": 0.3, "rates": {"head": 1.0, ALL: 0.0}, "warmup": 0.05},
        {"share": 0.7, "rates": {"head": 1.0, ALL: 0.3}, "warmup": 0.1},
    ),
    "sawtooth": (
        {"share": 0.3, "rates": TOP, "warmup": 0.2},
        {"share": 0.7, "rates": {ALL: 1.0}, "warmup": 0.2},
    ),
    "llrd": ({"rates": {"head": 1.0, "decoder": 1.0}, "warmup": 0.1},),  # the encoder's rates follow from its depth
    "lora": ({"rates": {"head": 1.0, "adapters": 1.0, ALL: 0.0}, "warmup": 0.1},),
}
"""Word -> phases. ``scratch`` starts from random weights of the same net, all others from the pretrained ones. ``closed-form`` takes no step
where none is asked for."""


def check(word: str) -> str:
    """The word itself.

    Raises:
        ConfigError: there is no such strategy.
    """
    if word not in STRATEGIES:
        raise ConfigError(f"unknown strategy {word!r}", next_step=suggestion(word, tuple(STRATEGIES)))
    return word


def group_of(name: str) -> str:
    """The group of a parameter of ``Supervised`` (``net.*``, ``head.*``) by its name."""
    if not name.startswith("net."):
        return "head"
    if is_adapter(name):
        return "adapters"
    inside = name.removeprefix("net.")
    first = inside.split(".")[0]
    if first in ("encoder", "embed"):
        stage = re.match(r"encoder\.(?:stages\.|layers\.)?(\d+)\.", inside)
        return f"encoder.{stage[1]}" if stage else "encoder.0"
    return "latent" if first == "latent" else "decoder"


def phases(word: str, net: nn.Module, decay: float) -> tuple[PhaseConfig, ...]:
    """The phases of a strategy for a net.

    Args:
        word: a key of ``STRATEGIES``.
        net: gives the number of encoder stages.
        decay: factor from one stage to the next deeper below the head (``llrd``), in (0, 1].
    """
    found = [PhaseConfig.model_validate(phase) for phase in STRATEGIES[check(word)]]
    if word == "llrd":
        names = sorted(
            {group_of(f"net.{name}") for name, _ in net.named_parameters()} - {"decoder", "latent", "adapters"},
            key=lambda name: int(name.split(".")[1]),
        )
        rates = {name: decay ** (len(names) - place) for place, name in enumerate(names)}
        found = [phase.model_copy(update={"rates": phase.rates | {"latent": decay**0.5} | rates}) for phase in found]
    return tuple(found)
