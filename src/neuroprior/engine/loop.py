"""The loop on Lightning: it steps the module and keeps trace, states and cost."""

from __future__ import annotations

import copy
import gc
import logging
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from ..core import artifacts, seeds
from ..core.errors import ConfigError, DivergenceError
from ..core.processes import STOPPING
from . import events, optimisers
from .compiling import Compiled
from .device import is_out_of_memory, moved
from .health import ADVICE, RUINED, Alarm, Monitor, Observation, measure, probe
from .ledger import Ledger, Meter
from .phases import PhaseConfig, rate_of, share_of_rate
from .progress import Progress
from .resuming import copied, restore
from .selection import Selection
from .settings import TrainingConfig

logger = logging.getLogger(__name__)

SIGNALS = (*STOPPING, signal.SIGINT)
"""Signals on which a run saves its state and ends."""

STOP_FILE = "STOP"
"""A file of this name in the run folder does the same; it is removed when it is obeyed."""


def has_time(config: TrainingConfig, spent_seconds: float) -> bool:
    """Whether a run that has spent so long may go on."""
    return config.hours is None or spent_seconds < config.hours * 3600


class Loop(lightning.LightningModule):
    """The Lightning side: steps the module, and keeps trace, states and cost."""

    def __init__(
        self, module: nn.Module, config: TrainingConfig, run: Path, loader: Callable[[int, int, int], Iterable[Any]],
        save_model: Callable[[Any, Path], object], validate: Callable[[Any], dict[str, float]] | None,
        panels: Callable[[Any, Path], object] | None, observe: Callable[[Any], Observation] | None, state: dict[str, Any] | None,
        group_of: Callable[[str], str] | None = None, kept: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.module, self.config, self.run = module, config, run
        self._loader, self._save_model, self._validate, self._panels = loader, save_model, validate, panels
        self._observe, self._group_of, self._kept = observe, group_of, {} if kept is None else kept
        self._good: dict[str, Any] | None = state["good"] if state else None
        self._saved: int | None = self._good["step"] if self._good else None
        self._ruined: tuple[Alarm, str] | None = None
        self.monitor = Monitor(config.health, config.steps or 1, state.get("health") if state else None)
        self._state = state
        self.start = int(state["step"]) if state else 0
        self.step = self.start
        self.book = Ledger(**state["ledger"]) if state else Ledger()
        self.selection = Selection(config.watch, config.watch_ema)
        self._best: dict[str, Any] | None = None
        self.ended: str | None = None
        if state:
            module.load_state_dict(state["module"], strict=True)
            if state.get("selection"):
                self.selection = Selection(**state["selection"])
            self._best = state.get("best")
            self.ended = state.get("ended")
            if self.ended == "hours" and has_time(config, self.book.wall_seconds):
                self.ended = None
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._micro: list[dict[str, Tensor]] = []
        self._stop: str | None = None
        self._compiled: Compiled | None = None
        self._first: Any = None
        self.too_large: ConfigError | None = None

    # -- Lightning's hooks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser; its learning rate is set before every step."""
        return optimisers.build(self.module, self.config.optimizer, self._group_of if self.config.phases else None)

    @property
    def over(self) -> bool:
        """Whether the run has come to an end of its own."""
        return self.ended is not None or self.step >= (self.config.steps or 0)

    def train_dataloader(self) -> Any:
        """The batches from the first step that is not done yet."""
        world = self.trainer.world_size
        return self._loader(self.start * self.config.batch * self.config.accumulate * world, self.trainer.global_rank, world)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch where the module is, but for what draws masks and noise (:func:`.device.moved`)."""
        return moved(batch, device)

    def on_fit_start(self) -> None:
        """Restore the optimiser, rewind the trace, compile."""
        fresh = self._state is None
        if self._state is not None:
            restore(self.trainer.optimizers[0], self._state["optimizer"])
            self._state = None
        self.meter = Meter(self.device)
        self._checkpointed = self._ended = time.perf_counter()
        self.progress = Progress(self.config.steps or 0, self.start, enabled=self.trainer.is_global_zero)
        if self.trainer.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter

            events.rewind(self.run / "events.jsonl", -1 if fresh else self.start)
            self.writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.start + 1)
        if self.config.compile:
            self._compiled = Compiled(self.module, self.device)
        self.module.train()
        if fresh:
            self._look()
            self._checkpoint()  # something to go back to

    def on_train_start(self) -> None:
        """Lightning has put its own handlers up by now, which would end the process without a state."""
        self.listen()

    def listen(self) -> None:
        """From now on a signal ends the run after a step."""
        if threading.current_thread() is threading.main_thread():  # elsewhere the caller handles signals
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        if self._stop is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop = signal.Signals(number).name

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set everything that depends on the number of the step."""
        self.book.data_wait_seconds += time.perf_counter() - self._ended
        if self.step == self.start:
            self._first = batch
        if self.book.forward_flops is None:
            self.book.forward_flops = _count_flops(self.module, batch, self.config.seed)
        share, phase = share_of_rate(self.config.phases, self.config.schedule, self.step, self.config.steps or 1)
        rate = self.config.optimizer.lr * share * self.monitor.lr_scale
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate if phase is None else rate * rate_of(phase, group["group"])
        if phase is not None:
            self._freeze(phase)
        torch.manual_seed(seeds.entropy(self.config.seed, "step", self.step, len(self._micro), self.global_rank) % 2**63)

    def _rate(self, step: int) -> float:
        """The learning rate of a step (counted from 0) before the groups' factors, rollbacks included."""
        share, _ = share_of_rate(self.config.phases, self.config.schedule, step, self.config.steps or 1)
        return self.config.optimizer.lr * share * self.monitor.lr_scale

    def _freeze(self, phase: PhaseConfig) -> None:
        """Give gradients to what learns in this phase, and to nothing else; frozen layers count no statistics and drop nothing."""
        assert self._group_of is not None
        for prefix, module in self.module.named_modules():
            own = list(module.named_parameters(recurse=False))
            for name, parameter in own:
                parameter.requires_grad_(rate_of(phase, self._group_of(f"{prefix}.{name}" if prefix else name)) > 0)
            if own:
                module.training = any(parameter.requires_grad for _, parameter in own)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a micro-batch."""
        epoch = self.step / (self.config.steps_per_epoch or 1)
        losses = (self._compiled or self.module)(batch, epoch=epoch, seed=self.config.seed)
        self._micro.append({name: value.detach() for name, value in losses.items()})
        return losses["loss"]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The gradients of a micro-batch."""
        if self._compiled is not None and self._compiled.active:
            self._compiled.backward(loss, share=1 / self.config.accumulate, first=len(self._micro) == 1)
        else:
            loss.backward(*args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any]) -> None:
        """The last micro-batch's gradients, then the optimiser's step (:func:`.optimisers.advance`)."""
        optimizer_closure()
        optimisers.advance(self.module, self.trainer.optimizers[0], self.config.clip_norm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a whole step: note it, and do what is due."""
        self._ended = time.perf_counter()
        if len(self._micro) < self.config.accumulate:
            return
        parts = {name: torch.stack([micro[name] for micro in self._micro]).mean() for name in self._micro[0]}
        self._micro, self._first = [], None
        self.step += 1
        self.book.steps += 1
        self.book.samples += self.config.batch * self.config.accumulate * self.trainer.world_size
        self._pending.append((self.step, parts))
        c = self.config
        stop, late, timed_out = self._agreed()
        if timed_out and self.step < (c.steps or 0):
            self.ended = "hours"
        last = self.over
        due = late or bool(c.checkpoint_steps and self.step % c.checkpoint_steps == 0)
        look = last or self.step % c.health.interval(c.steps or 1) == 0
        if last or stop or due or look or self.step % c.log_every == 0:
            self._flush()
        if look:  # nowhere else: when a run goes back must depend neither on the clock nor on interruptions
            self._look()
        if last or (c.validate_every and self.step % c.validate_every == 0):
            self._run_validation()
            if not last and c.patience is not None and self.selection.stale >= c.patience:
                logger.info("no better %s in %d validations: the run ends after step %d", c.watch, c.patience, self.step)
                self.ended, last = "patience", True
                self._flush()
        if last or (c.panels_every and self.step % c.panels_every == 0):
            self._draw_panels()
        if (last or stop or due) and self._ruined is None:  # a resumed run comes to the ruin again, and to the look that ends it
            self._checkpoint()
        if stop and not last:
            logger.warning("%s: stopped after step %d with a usable model; the same command resumes", stop, self.step)
            self.trainer.should_stop = True
        if self.ended is not None and self._ruined is None:
            self.trainer.should_stop = True
        self._ended = time.perf_counter()

    def on_fit_end(self) -> None:
        """Close the books; a finished run gets its marker."""
        self.progress.close()
        if self.trainer.is_global_zero:
            self.writer.close()
            if self.over:
                self._mark()

    def on_exception(self, exception: BaseException) -> None:
        """Leave the terminal as it was; where the first step did not fit into memory, find out what does."""
        self.progress.close()
        if self.trainer.is_global_zero:
            self.writer.close()
        if self._first is not None and is_out_of_memory(exception):
            traceback.clear_frames(exception.__traceback__)  # they hold what was computed so far
            self.too_large = self._what_fits()

    def _what_fits(self) -> ConfigError:
        """The error that names the largest of the halved batches with which a forward and a backward pass go through here."""
        c, size = self.config, self.config.batch
        self._micro, fits = [], 0
        while size > 1 and not fits:
            size //= 2
            self.module.zero_grad(set_to_none=True)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                with self.trainer.precision_plugin.forward_context():
                    loss = self.module(_rows(self._first, size), epoch=0.0, seed=c.seed)["loss"]
                loss.backward()
                fits = size
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        self._first = None
        advice = "not even a batch of one fits: a smaller data.patch or net, or a device with more memory"
        if fits:
            advice = (
                f"--set training.batch={fits} --set training.accumulate={c.accumulate * -(-c.batch // fits)} fits here and keeps the "
                "effective batch"
            )  # fmt: skip
        return ConfigError(
            "the first step does not fit into memory", file=self.run, got=f"training.batch={c.batch} on {self.device}", next_step=advice
        )  # fmt: skip

    # -- what is due

    def _agreed(self) -> tuple[str | None, bool, bool]:
        """The signal, whether the time for a state has come, and whether the hours are over, for this process or (with DDP) any."""
        late = (time.perf_counter() - self._checkpointed) / 60 >= self.config.checkpoint_minutes
        spent = self.book.wall_seconds + time.perf_counter() - self.meter.wall
        over = not has_time(self.config, spent)
        if self.trainer.is_global_zero and self._stop is None and (self.run / STOP_FILE).exists():
            (self.run / STOP_FILE).unlink(missing_ok=True)
            self._stop = f"the file {STOP_FILE}"
        if self.trainer.world_size == 1:
            return self._stop, late, over
        flags = torch.tensor([self._stop is not None, late, over], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        stopped, late, over = (bool(flag) for flag in flags.tolist())
        return (self._stop or "a signal to another process") if stopped else None, late, over

    def _flush(self) -> None:
        """Write the pending steps of the trace; the only place where the loop waits for the device."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        values = torch.stack([torch.stack([parts[name].float() for name in names]) for _, parts in self._pending])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= self.trainer.world_size
        rows = values.cpu().tolist()
        steps = [step for step, _ in self._pending]
        self._pending = []
        self.meter.read(self.book)
        lines = []
        for step, row in zip(steps, rows, strict=True):
            lines.append({"event": "step", "step": step, **dict(zip(names, row, strict=True)), "lr": self._rate(step - 1)})
        finite = [line for line in lines if math.isfinite(line["loss"])]
        if self.trainer.is_global_zero:
            events.append(self.run / "events.jsonl", finite)
            for line in finite:
                for name in (*names, "lr"):
                    self.writer.add_scalar(f"train/{name}", line[name], line["step"])
        for line in lines:
            wrong = self.monitor.loss(line["loss"]) if self._ruined is None else None
            if wrong is not None:
                self._ruined = (
                    wrong,
                    f"at step {line['step']}: " + ", ".join(f"{name} {line[name]:.3g}" for name in (*names, "lr")),
                )
                self._tell([wrong], line["step"])
        wait = self.book.data_wait_seconds / self.book.wall_seconds if self.book.wall_seconds else 0.0
        self.progress.update(self.step, lines[-1]["loss"], wait)

    def _look(self) -> None:
        """Look at weights and features; then keep this state as good, warn, go back or stop.

        The first process measures and tells the others, so that all come to the same verdict.
        """
        action = self.config.health.action
        if self._ruined is None and not self._finite():
            self._ruined = Alarm("weights", "training", math.nan, math.inf), f"weights after step {self.step}"
            self._tell([self._ruined[0]], self.step)
        if self._ruined is None and self._observe is not None:
            start = time.perf_counter()
            found, identify = self._measured()
            due = self.monitor.look(self.step, found, identify)
            if self.trainer.is_global_zero:
                events.append(self.run / "events.jsonl", [{"event": "health", "step": self.step, **found}])
                for name, value in found.items():
                    self.writer.add_scalar(f"health/{name}", value, self.step)
            self._tell(due, self.step)
            self.book.validation_seconds += time.perf_counter() - start
            harmful = [a for a in due if a.kind in RUINED or (action != "warn" and a.kind != "targets")]
            if harmful:
                self._ruined = harmful[0], f"a look after step {self.step}"
        if self._ruined is not None:
            alarm, got = self._ruined
            self._go_back(alarm, got, stop=action == "stop" and alarm.kind not in RUINED)
        elif self._good is None or (self.monitor.calm and (self.monitor.healthy or action == "warn")):
            start = time.perf_counter()
            self._good = copied({
                "step": self.step, "module": self.module.state_dict(), "optimizer": self.trainer.optimizers[0].state_dict(),
            })  # fmt: skip
            self.book.checkpoint_seconds += time.perf_counter() - start

    def _finite(self) -> bool:
        """Whether all weights and all that the optimiser remembers are finite, in every process."""
        remembered = [v for state in self.trainer.optimizers[0].state.values() for v in state.values() if isinstance(v, Tensor)]
        tensors = [t.detach() for t in (*self.module.state_dict().values(), *remembered) if t.is_floating_point()]
        verdict = torch.stack([t.isfinite().all().to(self.device) for t in tensors]).all().to(torch.int32)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(verdict, op=torch.distributed.ReduceOp.MIN)
        return bool(verdict)

    def _measured(self) -> tuple[dict[str, float], frozenset[str]]:
        """The measures, taken by the first process, and the features that ought to tell groups apart."""
        told: list[Any] = [None]
        if self.trainer.is_global_zero:
            seen = self._seen()
            told = [(measure(seen), seen.identify)]
        if self.trainer.world_size > 1:
            torch.distributed.broadcast_object_list(told, device=self.device)
        return told[0]

    def _seen(self) -> Observation:
        assert self._observe is not None
        self.module.eval()
        with torch.no_grad():
            seen = self._observe(self.module)
        self.module.train()
        return seen

    def _tell(self, alarms: list[Alarm], step: int) -> None:
        if not self.trainer.is_global_zero:
            return
        for alarm in alarms:
            logger.warning("step %d, %s", step, alarm)
            self.progress.warn(alarm.kind)
        events.append(self.run / "events.jsonl", [alarm.event(step) for alarm in alarms])

    def _go_back(self, alarm: Alarm, got: str, *, stop: bool = False) -> None:
        """Take the weights and the optimiser of the last good state, with a lower learning rate, and go on from this step.

        Raises:
            DivergenceError: there is no good state, or the run went back often enough.
        """
        good = self._good
        if good is None or stop or self.monitor.rollbacks >= self.config.health.max_rollbacks:
            after = f" after {self.monitor.rollbacks} rollbacks" if self.monitor.rollbacks else ""
            raise DivergenceError(
                f"{alarm.kind} of {alarm.name} ({alarm.value:.3g}) at step {self.step}{after}", file=self.run,
                expected=alarm.expected, got=got,
                next_step=f"{ADVICE[alarm.kind]}; the last good state is kept",
            )  # fmt: skip
        self.module.load_state_dict(good["module"], strict=True)
        restore(self.trainer.optimizers[0], copy.deepcopy(good["optimizer"]))  # the optimiser keeps and changes what it is given
        self.monitor.rolled_back()
        self._ruined = None
        if self.trainer.is_global_zero:
            logger.warning(
                "step %d: went back to the weights of step %d, learning rate times %.3g from now on",
                self.step,
                good["step"],
                self.monitor.lr_scale,
            )
            line = {"event": "rollback", "step": self.step, "to": good["step"], "lr_scale": self.monitor.lr_scale}
            events.append(self.run / "events.jsonl", [line])

    def _run_validation(self) -> None:
        if self._validate is None:
            return
        start = time.perf_counter()
        self.module.eval()
        with torch.no_grad():
            scores = self._validate(self.module)
        self.module.train()
        if self.config.watch not in scores:
            raise ConfigError(
                f"training.watch is {self.config.watch!r}, which validation does not measure", expected=", ".join(scores)
            )
        if self.selection.update(self.step, float(scores[self.config.watch])) and self.config.keep == "best":
            self._best = copied(self.module.state_dict())
        if self.trainer.is_global_zero:
            events.append(self.run / "events.jsonl", [{"event": "validation", "step": self.step, **scores}])
            for name, value in scores.items():
                self.writer.add_scalar(f"validation/{name}", value, self.step)
            logger.info("step %d, validation: %s", self.step, ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        if self._observe is not None and self.trainer.is_global_zero:
            read = probe(self._seen())
            if read:
                events.append(self.run / "events.jsonl", [{"event": "probe", "step": self.step, **read}])
                for name, value in read.items():
                    self.writer.add_scalar(f"probe/{name}", value, self.step)
        self.book.validation_seconds += time.perf_counter() - start

    def _draw_panels(self) -> None:
        if self._panels is None or not self.trainer.is_global_zero:
            return
        self.module.eval()
        with torch.no_grad():
            self._panels(self.module, self.run / "panels" / f"step-{self.step:06d}.png")
        self.module.train()

    def _checkpoint(self) -> None:
        start = time.perf_counter()
        assert self._good is not None  # kept before the first step
        if self.trainer.is_global_zero:
            folder = self.run / "state"
            self.meter.read(self.book)
            self._save_chosen()
            content = {
                "ended": self.ended, "selection": self.selection.state(), "best": self._best, "step": self.step, "module": self.module.state_dict(), "optimizer": self.trainer.optimizers[0].state_dict(),
                "ledger": asdict(self.book), "health": self.monitor.state(), "good": self._good["step"],
            }  # fmt: skip
            good = folder / f"good-{self._good['step']:08d}.pt"
            if self._good["step"] != self._saved:
                with artifacts.atomic(good) as temporary:
                    torch.save(self._good, temporary)
                self._saved = self._good["step"]
            with artifacts.atomic(folder / f"step-{self.step:08d}.pt") as temporary:
                torch.save(content, temporary)
            for kind in ("step", "good"):  # each of two states refers to a good one, not older than that of the state before
                for old in sorted(folder.glob(f"{kind}-*.pt"))[:-2]:
                    old.unlink()
            self._write_ledger()
        self._checkpointed = time.perf_counter()
        self.book.checkpoint_seconds += self._checkpointed - start

    def _save_chosen(self) -> None:
        """The model folder, with the weights of this step or of the best validation so far."""
        chosen, step = self.module, self.step
        if self.config.keep == "best" and self._best is not None:
            chosen, step = copy.deepcopy(self.module), self.selection.step or self.step
            chosen.load_state_dict(self._best, strict=True)
        self._kept.update({"keep": self.config.keep, "step": step, "last_step": self.step})
        if self.selection.step is not None:
            self._kept.update({
                "metric": self.selection.metric, "best_step": self.selection.step, "best_score": self.selection.raw,
                "ema": self.selection.ema,
            })  # fmt: skip
        self._save_model(chosen, self.run / "model")

    def _write_ledger(self) -> None:
        device = (
            torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
        )
        artifacts.write_json(self.run / "ledger.json", self.book.report(device=device, processes=self.config.devices))

    def _mark(self) -> None:
        artifacts.mark_complete(
            self.run,
            {
                "step": self.step, "ended": self.ended or "steps", "wall_seconds": self.book.wall_seconds, "model": dict(self._kept),
                "made_by": artifacts.provenance("train"),
            },
        )  # fmt: skip

    def finish_without_steps(self) -> None:
        """The last state is there, only the marker is missing."""
        events.rewind(self.run / "events.jsonl", self.step)
        self._save_chosen()
        self._write_ledger()
        self._mark()


class Errors(lightning.Callback):
    """Lets the loop see an error before the trainer is taken down; Lightning tells callbacks alone."""

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        pl_module.on_exception(exception)


def _rows(batch: Any, n: int) -> Any:
    """The first ``n`` samples of a batch."""
    return {name: value[:n] for name, value in batch.items()} if isinstance(batch, Mapping) else batch[:n]


def _count_flops(module: nn.Module, batch: Any, seed: int) -> int:
    """Floating-point operations of one forward pass, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(batch, epoch=0.0, seed=seed)
    return int(counter.get_total_flops())
