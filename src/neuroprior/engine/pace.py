"""How fast a module takes steps here: the steps of a run one by one, each with its wait for data.

The same work as ``engine/training`` does in a step (move the batch, forward, backward, clip, optimiser), without trace, states and looks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import optimisers
from .allocator import keep_freed_memory
from .device import device_of, kept_bytes, moved, set_factors, set_layout, set_recompute, takes_bf16, tune_convolutions
from .ledger import Ledger, Meter
from .settings import TrainingConfig


@dataclass(frozen=True)
class Pace:
    """What was measured.

    Attributes:
        device: ``cpu`` or the name of the GPU.
        precision: ``32`` or ``bf16``.
        step_s: seconds of each step with its wait for data.
        wait_s: seconds of each step that were spent waiting for data.
        processor_s: processor seconds of this process in each step (loader processes not counted).
        peak_memory_mb: allocated on the GPU, or resident in this process.
        energy_kwh: of the GPU over all measured steps; None where nothing tells it.
    """

    device: str
    precision: str
    step_s: tuple[float, ...]
    wait_s: tuple[float, ...]
    processor_s: tuple[float, ...]
    peak_memory_mb: float
    energy_kwh: float | None

    @property
    def median_s(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.step_s)

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest step in seconds."""
        return min(self.step_s), max(self.step_s)

    @property
    def wait_share(self) -> float:
        """Share of the time that the loop stood still for data."""
        return sum(self.wait_s) / sum(self.step_s)


def take(module: nn.Module, config: TrainingConfig, batches: Iterable[Any], seconds: float) -> Pace:
    """Steps until ``seconds`` are over, at least three, or until the batches end; the first two are not counted.

    Args:
        module: ``module(batch, epoch=float, seed=int)`` returns a mapping with ``loss``; it is trained.
        config: optimiser, precision, clipping; a step is one micro-batch times ``accumulate``.
        batches: micro-batches.
        seconds: after the first two steps.

    Raises:
        ValueError: fewer batches than three steps need.
    """
    device = device_of(config)
    cuda = device.type == "cuda"
    low = takes_bf16(config, not cuda)
    if not cuda:
        keep_freed_memory(kept_bytes(module))
    module = module.to(device).train()
    set_recompute(module, config.recompute)
    set_layout(module, config, device)
    set_factors(module, config, device)
    tune_convolutions(device)
    optimizer = optimisers.build(module, config.optimizer)
    book, meter = Ledger(), Meter(device)
    step_s, wait_s, processor_s = [], [], []
    source, number, end = iter(batches), 0, float("inf")
    while number < 5 or time.perf_counter() < end:
        if number == 2:
            end = time.perf_counter() + seconds
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            meter.read(Ledger())  # begin anew
        begin, cpu, waited = time.perf_counter(), time.process_time(), 0.0
        for _ in range(config.accumulate):
            before = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - before
            if batch is None:
                break
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                loss = module(moved(batch, device), epoch=0.0, seed=number)["loss"]
            (loss / config.accumulate).backward()
        if batch is None:
            break
        optimisers.advance(module, optimizer, config.clip_norm)
        if cuda:
            torch.cuda.synchronize(device)
        if number >= 2:
            step_s.append(time.perf_counter() - begin)
            wait_s.append(waited)
            processor_s.append(time.process_time() - cpu)
        number += 1
    if not step_s:
        raise ValueError("at least three steps of batches are needed")
    meter.read(book)
    name = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    return Pace(
        name, "bf16" if low else "32", tuple(step_s), tuple(wait_s), tuple(processor_s), book.peak_memory_mb, book.energy_kwh
    )  # fmt: skip
