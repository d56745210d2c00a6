"""Training on Lightning, with an exact resume of our own.

The trace of losses depends on the settings, the data and the seed alone (on a GPU but for rounding). Everything that a
step needs is a function of its number (samples, masks, noise, dropout, learning rate), so the state that must be saved is
small: weights, optimiser, step and ledger. It is written as tensors and plain values and read back with
``weights_only=True``.

A run folder::

    RUN/
      recipe.yaml  environment.json     what was asked for, and with what
      events.jsonl  tensorboard/        the trace
      panels/step-000100.png            pictures of fixed cases
      state/step-00000100.pt            the last two resumable states
      state/good-00000090.pt            what each of them goes back to when the run is ruined
      model/                            usable at any time after the first state
      ledger.json                       cost
      complete.json                     written last
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import nn

from ..core import artifacts, ranks
from ..core.errors import ConfigError
from .allocator import keep_freed_memory
from .device import device_of, kept_bytes, set_factors, set_layout, set_recompute, takes_bf16, tune_convolutions
from .health import Observation
from .loop import SIGNALS, Errors, Loop, has_time
from .resuming import load_state, refuse_other
from .settings import TrainingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        run: its folder.
        status: ``complete``, or ``stopped`` by a signal or the stop file (the same command resumes it).
        step: steps done, over all resumes.
        ended: what completed it: ``steps``, ``hours`` or ``patience``.
    """

    run: Path
    status: Literal["complete", "stopped"]
    step: int
    ended: str = "steps"

    @property
    def exit_code(self) -> int:
        """0 when complete; 75 (try again) when stopped."""
        return 0 if self.status == "complete" else 75

    def __str__(self) -> str:
        again = "" if self.status == "complete" else " (run the same command again to go on)"
        why = {"hours": " (the hours are over)", "patience": " (no better validation)"}.get(self.ended, "")
        return f"{self.status} after {self.step} steps{again if again else why}: {self.run}"


def train(
    module: nn.Module,
    config: TrainingConfig,
    run: Path,
    *,
    loader: Callable[[int, int, int], Iterable[Any]],
    save_model: Callable[[Any, Path], object],
    recipe: Mapping[str, Any],
    validate: Callable[[Any], dict[str, float]] | None = None,
    panels: Callable[[Any, Path], object] | None = None,
    observe: Callable[[Any], Observation] | None = None,
    group_of: Callable[[str], str] | None = None,
    kept: dict[str, Any] | None = None,
) -> TrainingResult:
    """Train a module, resuming the run folder where an earlier call left it.

    Args:
        module: ``module(batch, epoch=float, seed=int)`` returns a mapping with ``loss`` and named parts.
        config: with ``steps`` given.
        run: the run folder.
        loader: ``loader(start_sample, rank, world)`` gives the batches from that sample of the global stream on.
        save_model: writes a usable model folder.
        recipe: plain data that says what this run is; a folder made from another one is refused.
        validate: named scores of the module, ``loss`` among them.
        panels: draws pictures of fixed cases into a PNG file.
        observe: shows what the module makes of fixed inputs, for the health checks; a function of the module alone.
        group_of: the group of a parameter by its name, as the phases of ``config`` call it.
        kept: filled with whose weights are saved (``keep``, ``step``, ``metric``, ``score``) before each ``save_model``.

    Raises:
        ConfigError: the folder holds a run of another recipe or one that another process is at, or no length is given.
        DivergenceError: the loss is not finite or explodes (or features collapse, with ``health.action=stop``) and going back
            to the last good state did not help as often as ``health.max_rollbacks`` allows; that state stays.
    """
    if config.steps is None:
        raise ConfigError("training.steps is not set")
    if (config.keep == "best" or config.patience is not None) and validate is None:
        raise ConfigError(
            "training.keep=best and training.patience need validation cases", got="none",
            next_step="index with a val split (--split train=0.7,val=0.1,test=0.2), or train to the end with training.keep=last",
        )  # fmt: skip
    if config.phases and group_of is None:
        raise ConfigError("training.phases belong to fine-tuning: this run has no named groups of parameters")
    resolved = dict(recipe) | {"training": config.model_dump(mode="json")}
    artifacts.require_place(run, "run")
    group, first = ranks.join(config.devices), ranks.is_first()
    if artifacts.is_complete(run):
        refuse_other(run, resolved)
        marker = artifacts.read_json(run / artifacts.MARKER)
        if marker.get("ended") != "hours" or not has_time(config, marker["wall_seconds"]):
            logger.info("the run is complete already: %s", run)
            return TrainingResult(run, "complete", marker["step"], marker.get("ended", "steps"))
    with artifacts.held(run) if first else contextlib.nullcontext():
        if first:
            (run / artifacts.MARKER).unlink(missing_ok=True)  # there is time for more of it
            artifacts.sweep(run)
            if (run / "recipe.yaml").exists():
                refuse_other(run, resolved)
            else:
                artifacts.write_text(run / "recipe.yaml", yaml.safe_dump(resolved, sort_keys=False))
            artifacts.write_json(run / "environment.json", artifacts.provenance("train"))
        elif (run / "recipe.yaml").exists():
            refuse_other(run, resolved)  # nobody waits for a process that has refused
        set_recompute(module, config.recompute)
        state = load_state(run)
        loop = Loop(module, config, run, loader, save_model, validate, panels, observe, state, group_of, kept)
        _see_gpus(config, group)
        cpu = config.accelerator != "gpu" and device_of(config).type == "cpu"  # without a GPU "gpu" is Lightning's to refuse
        if cpu:
            keep_freed_memory(kept_bytes(module))
        set_layout(module, config, device_of(config))
        set_factors(module, config, device_of(config))
        tune_convolutions(device_of(config))
        bf16 = takes_bf16(config, cpu)
        strategy: Any = "auto"
        if config.devices > 1:
            from lightning.pytorch.strategies import DDPStrategy

            strategy = DDPStrategy(process_group_backend="gloo" if cpu else "nccl", find_unused_parameters=True)
        with _quiet_lightning():
            trainer = lightning.Trainer(
                accelerator="cpu" if cpu else "gpu", devices=group.per_node, num_nodes=group.nodes, strategy=strategy,
                plugins=None if TorchElasticEnvironment.detect() else [LightningEnvironment()],
                precision="bf16-mixed" if bf16 else "32-true",
                max_steps=config.steps - loop.start, max_epochs=-1, accumulate_grad_batches=config.accumulate,
                logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Errors()],
                enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=run,
            )  # fmt: skip
        if loop.start < config.steps and loop.ended is None:
            try:
                with _quiet_lightning(), _kept_signals():
                    loop.listen()
                    trainer.fit(loop)
            except Exception as error:
                if loop.too_large is not None:
                    raise loop.too_large from error
                raise
        elif first:  # killed after the last state, before the marker; or no steps were asked for
            loop.finish_without_steps()
        status: Literal["complete", "stopped"] = "complete" if loop.over else "stopped"
        return TrainingResult(run, status, loop.step, loop.ended or "steps")


def _see_gpus(config: TrainingConfig, group: ranks.Group) -> None:
    """Refuse to begin where SLURM hides the others' GPUs from a process, which Lightning would ask for by their numbers.

    Raises:
        ConfigError: so it is.
    """
    if config.devices > 1 and device_of(config).type == "cuda" and torch.cuda.device_count() < group.per_node:
        raise ConfigError(
            "a process does not see the GPUs of its machine", expected=f"{group.per_node}", got=f"{torch.cuda.device_count()}",
            next_step="ask SLURM for --gpus-per-node instead of --gpus-per-task, or for --gpu-bind=none",
        )  # fmt: skip


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """The signal handlers of before are there again after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _quiet_lightning:
    """Lightning's advertising and its hints about loaders stay out of the user's log; its errors do not."""

    def __enter__(self) -> None:
        import warnings

        self.loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
        self.levels = [log.level for log in self.loggers]
        for log in self.loggers:
            log.setLevel(logging.WARNING)
        self.catcher = warnings.catch_warnings()
        self.catcher.__enter__()
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Trainer.fit` stopped.*")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # a run may start its processes itself
        warnings.filterwarnings(
            "ignore", message=".*Grad strides do not match bucket view.*"
        )  # copied on the way to other processes
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # batch norms of a pretrained net

    def __exit__(self, *error: object) -> None:
        self.catcher.__exit__(None, None, None)
        for log, level in zip(self.loggers, self.levels, strict=True):
            log.setLevel(level)
