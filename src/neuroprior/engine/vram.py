"""Settings with which a step fits into a given memory, at the same effective batch: smaller micro-batches first, then maps that are computed again.

A step is really taken, on what this process trains on. On a GPU torch's allocator says what it reserved. Elsewhere the bytes of all live
tensors are counted while the step runs: exact for what torch allocates, without the workspace of kernels, a GPU's context and fragmentation, for which
:data:`ROOM` is left.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..core import ranks
from ..core.config import read_yaml
from ..core.errors import ConfigError
from . import optimisers
from .device import device_of, is_out_of_memory, moved, set_factors, set_layout, set_recompute, takes_bf16
from .settings import TrainingConfig

logger = logging.getLogger(__name__)

ROOM = 0.9
"""Share of the given memory that a step may take: the rest is for fragmentation and kernels' workspace."""
CONTEXT_MB = 600.0
"""What a GPU's context and libraries take beside torch's tensors, where it cannot be read from the card (300 to 700 MB by CUDA and card)."""
BEGUN_WITHIN_S = 1800.0
"""Seconds in which the first of several processes begins a run."""
CARDS_GB = (8, 12, 24, 40, 80)
"""Memory of the cards that people have."""


@dataclass(frozen=True)
class Rung:
    """A way to take a recipe's step.

    Attributes:
        batch: samples a micro-batch.
        accumulate: micro-batches a step.
        recompute: finest levels whose maps are computed again.
        peak_mb: the most memory of torch during a step (MiB), measured, or foretold from one and two samples.
        seconds: of a step here, where it was measured.
    """

    batch: int
    accumulate: int
    recompute: int
    peak_mb: float
    seconds: float | None = None

    def settings(self) -> list[str]:
        """As ``--set`` takes them."""
        return [f"training.batch={self.batch}", f"training.accumulate={self.accumulate}", f"training.recompute={self.recompute}"]


Measure = Callable[[int, int, int], tuple[float, float]]
"""(batch, micro-batches, recompute) -> (peak MiB, seconds of a micro-batch); the peak is infinite where memory did not suffice."""


def rungs(effective: int, couples: int | None) -> list[int]:
    """Micro-batches that make up an effective batch, the largest first; one alone where ``couples`` samples are compared with each other."""
    return [couples] if couples is not None else [n for n in range(effective, 0, -1) if effective % n == 0]


class Ladder:
    """What a recipe's step takes in each way, measured when it is first asked for.

    Args:
        measure: see :data:`Measure`.
        effective: samples a step and process.
        couples: samples that must stay together in a micro-batch, or None.
        levels: how many finest levels can be computed again.
        certain_mb: up to so much the way that is chosen is measured (on a GPU), not foretold from one and two samples.
    """

    def __init__(self, measure: Measure, effective: int, couples: int | None, levels: int, *, certain_mb: float) -> None:
        self._measure, self._certain_mb = measure, certain_mb
        self.effective, self.couples, self.levels = effective, couples, levels
        self._known: dict[tuple[int, int], tuple[float, float]] = {}

    def _at(self, batch: int, recompute: int) -> tuple[float, float]:
        if (batch, recompute) not in self._known:
            self._known[batch, recompute] = self._measure(batch, self.effective // batch, recompute)
            peak, seconds = self._known[batch, recompute]
            told = "does not fit here" if peak == float("inf") else f"{peak:.0f} MiB, {seconds:.2f} s"
            logger.info("batch %d, recompute %d: %s", batch, recompute, told)
        return self._known[batch, recompute]

    def _foretold(self, batch: int, recompute: int) -> float:
        """The peak of a micro-batch from those of the two smallest: what does not grow with it, and what a sample adds."""
        ways = rungs(self.effective, self.couples)[::-1][:2]
        if batch in ways:
            return self._at(batch, recompute)[0]
        (one, few), (two, more) = ((n, self._at(n, recompute)[0]) for n in ways)
        return few + (more - few) * (batch - one) / (two - one)

    def fitting(self, limit_mb: float) -> Rung | None:
        """The way with the largest micro-batch that needs the fewest levels again, within a limit in MiB; None where there is none."""
        ways = rungs(self.effective, self.couples)
        for recompute in range(self.levels + 1):
            if self._at(ways[-1], recompute)[0] > limit_mb:
                continue  # not even the smallest
            for batch in ways:
                foretold = self._foretold(batch, recompute)
                if foretold > limit_mb:
                    continue
                measured = batch in ways[-2:] or foretold <= self._certain_mb
                peak, seconds = self._at(batch, recompute) if measured else (foretold, None)
                if peak <= limit_mb:
                    accumulate = self.effective // batch
                    return Rung(batch, accumulate, recompute, peak, None if seconds is None else seconds * accumulate)
        return None

    def smallest(self) -> float:
        """MiB of the way that takes the least."""
        return min(self._at(rungs(self.effective, self.couples)[-1], recompute)[0] for recompute in range(self.levels + 1))


def ladder(
    module: nn.Module, config: TrainingConfig, draw: Callable[[int], Any], *, couples: int | None = None,
    precision: Literal["here", "gpu"] = "here",
) -> Ladder:  # fmt: skip
    """The ladder of a module on what this process trains on; the module itself is not touched.

    Args:
        module: ``module(batch, epoch=float, seed=int)`` returns a mapping with ``loss``.
        config: the recipe's training.
        draw: a batch of so many samples on the CPU.
        couples: samples that are compared with each other and stay in one micro-batch, or None.
        precision: that of a run here, or that of one on a GPU with bfloat16.
    """
    device = device_of(config)
    low = takes_bf16(config, device.type != "cuda") if precision == "here" else config.precision != "32"

    def measure(size: int, micro: int, recompute: int) -> tuple[float, float]:
        batch = moved(draw(size), device)
        return step(module, config, batch, device, micro=micro, recompute=recompute, low=low, card=precision == "gpu")

    own = torch.cuda.get_device_properties(device).total_memory / 2**20 if device.type == "cuda" else 0.0
    return Ladder(measure, config.batch * config.accumulate, couples, levels_of(module), certain_mb=own)


def fitted(
    config: TrainingConfig, run: Path, asked: str, made: Callable[[int | None], Ladder], couples: int | None
) -> TrainingConfig:  # fmt: skip
    """A run's settings with the micro-batch and the maps computed again with which a step fits; the effective batch stays.

    A run that was begun keeps its micro-batch, since its trace depends on it.

    Args:
        config: as the recipe has it.
        run: the run folder, which may hold a run.
        asked: ``auto`` or a number of GB, see :func:`limit_of`.
        made: the ladder, given the samples that stay together.
        couples: as in :func:`ladder`.

    Raises:
        ConfigError: nothing fits; the least that a step takes is told.
    """
    ranks.join(config.devices)
    limit, begun = limit_of(asked, config), run / "recipe.yaml"
    effective = config.batch * config.accumulate
    if not ranks.is_first():
        _wait_for(begun)
    if begun.exists():
        earlier = read_yaml(begun).get("training") or {}
        if earlier.get("batch", 0) * earlier.get("accumulate", 0) == effective:
            if not ranks.is_first():  # the first has chosen
                return config.model_copy(update={name: earlier[name] for name in ("batch", "accumulate", "recompute")})
            couples = earlier["batch"]
    found = made(couples)
    rung = found.fitting(limit)
    if rung is None:
        raise ConfigError(
            "no way to take this recipe's step fits into that memory", expected=f"at most {limit:.0f} MiB (--vram {asked}, less what is kept free)",
            got=f"at least {found.smallest():.0f} MiB with the smallest micro-batch and maps computed again",
            next_step="a smaller data.patch, training.batch or net, or more memory",
        )  # fmt: skip
    logger.info(
        "--vram %s: %d x %d samples a step, maps of %d levels computed again: %.0f of %.0f MiB", asked, rung.batch, rung.accumulate, rung.recompute,
        rung.peak_mb, limit,
    )  # fmt: skip
    return config.model_copy(update={"batch": rung.batch, "accumulate": rung.accumulate, "recompute": rung.recompute})


def _wait_for(begun: Path) -> None:
    """Until the first process has chosen and begun the run: what another measures on its own GPU may differ.

    Raises:
        ConfigError: it has not for half an hour.
    """
    end = time.monotonic() + BEGUN_WITHIN_S
    while not begun.exists():
        if time.monotonic() > end:
            raise ConfigError(
                "the first process of the run has not begun it", file=begun, got=f"nothing for {BEGUN_WITHIN_S:g} s"
            )
        time.sleep(0.2)


def levels_of(module: nn.Module) -> int:
    """Levels whose maps the nets of a module can compute again."""
    return max((len(part.stage_strides) for part in module.modules() if hasattr(part, "recompute")), default=0)


def limit_of(asked: str, config: TrainingConfig) -> float:
    """MiB that a step may take: of ``auto`` what is free on the GPU, else of a number of GB.

    Raises:
        ConfigError: it is neither, or ``auto`` where there is no GPU.
    """
    device = device_of(config)
    if asked == "auto":
        if device.type != "cuda":
            raise ConfigError(
                "--vram auto asks the GPU, and this run has none", next_step=f"say for how many GB, such as --vram {CARDS_GB[2]}, or leave it out",
            )  # fmt: skip
        torch.zeros(1, device=device)  # the context is there before the rest is counted
        return ROOM * torch.cuda.mem_get_info(device)[0] / 2**20
    try:
        asked_gb = float(asked)
    except ValueError:
        asked_gb = float("nan")
    if not 0 < asked_gb < float("inf"):
        raise ConfigError(f"cannot read --vram {asked!r}", expected="auto, or a number of GB such as 24")
    return ROOM * (asked_gb * 1024 - CONTEXT_MB)


def step(
    module: nn.Module, config: TrainingConfig, batch: Any, device: torch.device, *, micro: int, recompute: int, low: bool,
    card: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """The peak of a step in MiB and the seconds of a micro-batch, the second of two; (inf, inf) where memory did not suffice.

    With several micro-batches the gradients of one are there while the next is computed. With DDP another copy of the gradients is added.

    Args:
        module: is copied.
        config: optimiser, clipping, layout.
        batch: a micro-batch on the device.
        device: where to.
        micro: micro-batches a step.
        recompute: finest levels whose maps are computed again.
        low: in bfloat16.
        card: whether it stands for a step on a GPU, which keeps no factors of gradients.
    """
    cuda = device.type == "cuda"
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
    counter = Counter()
    try:
        found = copy.deepcopy(module).to(device).train()
        if recompute:
            set_recompute(found, recompute)
        set_layout(found, config, device)
        if not card:
            set_factors(found, config, device)
        optimizer = optimisers.build(found, config.optimizer)
        counter.hold(found, optimizer, batch)
        seconds = 0.0
        with contextlib.nullcontext() if cuda else counter:  # on a GPU the allocator counts
            for number in range(2):
                began = time.perf_counter()
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                    loss = found(batch, epoch=0.0, seed=number)["loss"]
                (loss / micro).backward()
                if micro == 1 or number == 1:
                    optimisers.advance(found, optimizer, config.clip_norm)
                if cuda:
                    torch.cuda.synchronize(device)
                seconds = time.perf_counter() - began
        peak = (torch.cuda.max_memory_reserved(device) - before if cuda else counter.peak) / 2**20
        if config.devices > 1:
            peak += sum(p.numel() * p.element_size() for p in found.parameters()) / 2**20
        return peak, seconds
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return float("inf"), float("inf")


class Counter(TorchDispatchMode):
    """Counts the bytes of the tensors that live, and the most that lived at once (``peak``)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
        """Count what is there before anything is computed."""
        for tensor in _tensors(module, optimizer, batch):
            self._note(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size


def _tensors(module: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
    yield from (leaf for leaf in tree_leaves(dict(batch)) if isinstance(leaf, Tensor))
