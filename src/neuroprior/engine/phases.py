"""Phases of a run: which parameters learn in which part of it, how fast, and with what warm-up. Plain data and pure functions.

A parameter belongs to a named *group* (``head``, ``decoder``, ``encoder.2`` ...). A phase gives groups a factor on the learning
rate; a factor of 0 freezes the group: its weights, its normalisation and its part of the optimiser stay as they are, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..core.config import Config
from ..core.errors import ConfigError
from .schedules import ScheduleConfig, factor

ALL = "all"
"""The entry of ``rates`` for every group that no other entry names."""


class PhaseConfig(Config):
    """One part of a run."""

    share: float = Field(default=1.0, gt=0)
    """Part of the steps, relative to the other phases' shares."""
    rates: dict[str, float] = Field(default={ALL: 1.0}, min_length=1)
    """Group -> factor on the learning rate, 0 freezes. ``encoder`` names ``encoder.2`` too; the longest name counts, then ``all``."""
    warmup: float | None = Field(default=None, ge=0, lt=1)
    """Share of this phase's steps over which the rate rises; None takes the schedule's own warm-up."""


def lengths(phases: Sequence[PhaseConfig], steps: int) -> list[int]:
    """Steps of each phase; they sum to ``steps``."""
    total, ends, done = sum(phase.share for phase in phases), [], 0.0
    for phase in phases:
        done += phase.share
        ends.append(round(steps * done / total))
    return [end - before for before, end in zip([0, *ends[:-1]], ends, strict=True)]


def rate_of(phase: PhaseConfig, group: str) -> float:
    """The factor of a group in a phase.

    Raises:
        ConfigError: no entry of ``rates`` names the group.
    """
    parts = group.split(".")
    for n in range(len(parts), 0, -1):
        name = ".".join(parts[:n])
        if name in phase.rates:
            return phase.rates[name]
    if ALL in phase.rates:
        return phase.rates[ALL]
    raise ConfigError(
        f"a phase says nothing of the parameters {group!r}", expected=f"{group} or {ALL}", got=", ".join(phase.rates)
    )


def share_of_rate(
    phases: Sequence[PhaseConfig], schedule: ScheduleConfig, step: int, steps: int
) -> tuple[float, PhaseConfig | None]:
    """The share of the full learning rate at a step (0 is the first of ``steps``), and the phase it lies in.

    Every phase runs through the schedule once from its warm-up to its end. Without phases it is the schedule alone.
    """
    if not phases:
        return factor(schedule, step, steps), None
    start = 0
    for phase, length in zip(phases, lengths(phases, steps), strict=True):
        if step < start + length or phase is phases[-1]:
            own = schedule if phase.warmup is None else schedule.model_copy(update={"warmup_steps": round(phase.warmup * length)})
            return factor(own, step - start, length), phase
        start += length
    raise AssertionError("the last phase ends with the run")
