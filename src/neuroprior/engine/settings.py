"""What can be set about a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ..core.config import Config
from ..core.errors import ConfigError
from .health import HealthConfig
from .optimisers import OptimizerConfig
from .phases import PhaseConfig
from .schedules import ScheduleConfig


class TrainingConfig(Config):
    """How long, with what, how often."""

    steps: int | None = Field(default=None, ge=0)
    """Optimiser steps; or give ``epochs``. With 0 the module is saved as it came."""
    epochs: float | None = Field(default=None, gt=0)
    """Length in epochs, where ``steps`` is not given."""
    hours: float | None = Field(default=None, gt=0)
    """Longest time in the loop, over all resumes; the run then ends cleanly, and goes on when given more."""
    steps_per_epoch: int | None = Field(default=None, ge=1)
    """Steps an epoch; follows from the data where not given."""
    batch: int = Field(default=2, ge=1)
    """Samples a process and micro-batch."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches a step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Which optimiser."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the run."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; None does not clip."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """``auto`` is bf16 on a GPU that has it, else 32; ``bf16`` also on a CPU, which gains by it if it has AMX."""
    compile: bool = False
    """Try ``torch.compile``; where it fails the run goes on without."""
    recompute: int = Field(default=0, ge=0)
    """Finest levels of a convolutional net whose maps are computed again in backward instead of being kept: the same numbers with less
    memory, in more time."""
    layout: Literal["auto", "channels_last", "contiguous"] = "auto"
    """How maps lie in memory; ``auto`` asks the net, which is for channels-last on a CPU and on a GPU where its norm has a kernel."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Which device."""
    devices: int = Field(default=1, ge=1)
    """Processes; more than one trains with DDP."""
    workers: int = Field(default=0, ge=0)
    """Loader processes a training process; 0 reads ahead in a thread of it."""
    data_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds without a batch after which a run ends with the case that is being read: a disk that hangs, not one that is slow."""
    seed: int = 0
    """Of everything random."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two writes of the trace."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between two states."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Minutes between two states."""
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between two validations; there is always one at the end."""
    panels_every: int | None = Field(default=None, ge=1)
    """Steps between two pictures; there is always one at the end."""
    health: HealthConfig = HealthConfig()
    """When the run is looked at, and what an alarm does."""
    phases: tuple[PhaseConfig, ...] = ()
    """Which parameters learn in which part of the run; empty trains all of them all the time."""
    keep: Literal["last", "best"] = "last"
    """Whose weights the model folder gets: those of the last step, or of the best validation."""
    watch: str = "loss"
    """The validation score that says which is best."""
    watch_ema: float = Field(default=0.0, ge=0, lt=1)
    """Share of the past in the smoothed score; 0 takes each validation as it is."""
    patience: int | None = Field(default=None, ge=1)
    """End the run after this many validations without a better one; None trains to the end."""

    @field_validator("precision", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """``training.precision=32`` on a command line is a number."""
        return str(value) if value == 32 else value

    def resolved(self, samples_per_epoch: int) -> TrainingConfig:
        """The same with ``steps``, ``steps_per_epoch`` and ``warmup_steps`` as numbers.

        Raises:
            ConfigError: neither steps nor epochs is given, or both.
        """
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError("give either training.steps or training.epochs", got=f"steps={self.steps}, epochs={self.epochs}")
        per_step = self.batch * self.accumulate * self.devices
        per_epoch = self.steps_per_epoch or max(1, samples_per_epoch // per_step)
        steps = self.steps if self.steps is not None else max(1, round((self.epochs or 0) * per_epoch))
        schedule = self.schedule
        if schedule.warmup_epochs is not None:
            warmup = round(schedule.warmup_epochs * per_epoch)
            schedule = schedule.model_copy(update={"warmup_steps": warmup, "warmup_epochs": None})
        return self.model_copy(update={"steps": steps, "epochs": None, "steps_per_epoch": per_epoch, "schedule": schedule})
