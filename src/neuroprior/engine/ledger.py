"""``ledger.json``: what a run cost, summed over its interruptions."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..core import peak_memory


@dataclass
class Ledger:
    """Counters of a run.

    Attributes:
        steps, samples: done.
        wall_seconds: in the loop, over all resumes.
        cpu_seconds: of this process and its finished children.
        data_wait_seconds: the loop stood still for data.
        validation_seconds, checkpoint_seconds: by phase.
        forward_flops: of one step's forward pass on one process, by torch's counter; None until counted.
        peak_memory_mb: of the GPU where there is one, else resident memory.
        energy_kwh: of the GPU by NVML; None where there is none.
    """

    steps: int = 0
    samples: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    validation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    forward_flops: int | None = None
    peak_memory_mb: float = 0.0
    energy_kwh: float | None = None

    def report(self, *, device: str, processes: int) -> dict[str, Any]:
        """The ledger as it is written, with what follows from the counters."""
        flops = None if self.forward_flops is None else 3 * self.forward_flops
        per_second = None if flops is None or not self.wall_seconds else flops * self.steps / self.wall_seconds
        return asdict(self) | {
            "device": device,
            "processes": processes,
            "device_hours": self.wall_seconds * processes / 3600,
            "flops_per_step": flops,
            "flops_total": None if flops is None else flops * self.steps * processes,
            "flops_per_second": per_second,
            "flops_note": "three times the counted forward pass: one forward and a backward of twice its cost",
            "steps_per_second": self.steps / self.wall_seconds if self.wall_seconds else None,
            "data_wait_share": self.data_wait_seconds / self.wall_seconds if self.wall_seconds else None,
            "energy_note": None if self.energy_kwh is not None else "no GPU whose energy counter NVML can read",
        }


class Meter:
    """Adds the time, memory and energy since it was made, or last read, to a ledger."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall, self.cpu, self.energy = time.perf_counter(), _cpu_seconds(), _joules(device)

    def read(self, ledger: Ledger) -> None:
        """Bring ``ledger`` up to now."""
        wall, cpu, energy = time.perf_counter(), _cpu_seconds(), _joules(self.device)
        ledger.wall_seconds += wall - self.wall
        ledger.cpu_seconds += cpu - self.cpu
        if energy is not None and self.energy is not None:
            ledger.energy_kwh = (ledger.energy_kwh or 0.0) + (energy - self.energy) / 3.6e6
        self.wall, self.cpu, self.energy = wall, cpu, energy
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            peak = float(peak_memory.peak_mb())
        ledger.peak_memory_mb = max(ledger.peak_memory_mb, peak)


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def _joules(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except pynvml.NVMLError:
        return None
