"""Doctor: what this machine has, and what to set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Checkup:
    """What was found.

    Attributes:
        rows: (what, value, advice or an empty string).
        as_json: how it is printed.
    """

    rows: tuple[tuple[str, str, str], ...]
    as_json: bool = False

    def __str__(self) -> str:
        if self.as_json:
            import json

            return json.dumps({what: {"value": value, "advice": advice} for what, value, advice in self.rows}, indent=2)
        width = max(len(what) for what, _, _ in self.rows)
        lines = []
        for what, value, advice in self.rows:
            lines.append(f"{what:<{width}}  {value}" + (f"\n{'':<{width}}  -> {advice}" if advice else ""))
        return "\n".join(lines)


def doctor(folder: Path = Path("."), json: bool = False) -> Checkup:
    """Look at the machine as training would see it, and say what to set.

    Args:
        folder: where stores and runs would lie; its disk is looked at and 64 MB are written and removed.
        json: machine-readable.
    """
    import importlib.util
    import os
    import shutil
    import sys
    from importlib import metadata

    import psutil
    import torch

    from ..core.precision import has_quick_bfloat16, has_quick_int8
    from ..nets._fused import trouble

    rows: list[tuple[str, str, str]] = []
    rows.append(
        ("python", sys.version.split()[0], "" if sys.version_info >= (3, 11) else "neuroprior needs Python 3.11 or newer")
    )
    rows.append(("torch", torch.__version__, ""))
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts: Any = torch.cuda.get_device_properties(number)
            bf16 = has_quick_bfloat16("cuda")
            rows.append((f"gpu {number}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, bf16 {'yes' if bf16 else 'no'}",
                         "" if bf16 else "training.precision=32"))  # fmt: skip
            reason = trouble(torch.device("cuda", number))
            advice = "training goes on with torch's own norm, slower" if reason else ""
            if "No module named 'triton'" in reason:
                advice = "pip install triton"
            rows.append((f"norm on gpu {number}", reason or "fused, maps channels-last", advice))
    else:
        rows.append(("gpu", "none that torch can use", "use the recipe tiny, or a machine with a GPU for real training"))
        quick = has_quick_bfloat16("cpu")
        rows.append(("bfloat16 on the cpu", "quick (AMX)" if quick else "not quicker than float32 (no AMX)",
                     "training.precision=bf16 takes half the time; predict --preset fast uses it" if quick else ""))  # fmt: skip
        if not quick:
            whole = has_quick_int8("cpu")
            rows.append(("8-bit integers on the cpu", "quick (VNNI)" if whole else "not quick (no VNNI)",
                         "predict --preset fast uses them" if whole else "predict --preset fast is balanced here; --overlap 0.25 takes half its time, and is not free"))  # fmt: skip
    cores, why = granted_cores()
    rows.append(
        ("cores", f"{cores} granted ({why}), {os.cpu_count()} in the machine", f"training.workers={max(0, min(8, cores - 2))}")
    )
    memory = _memory_limit()
    rows.append(("memory", f"{memory / 2**30:.1f} GiB granted, {psutil.virtual_memory().available / 2**30:.1f} GiB free",
                 "prepare with --workers 1" if memory < 6 * 2**30 else ""))  # fmt: skip
    shm = Path("/dev/shm")
    if shm.is_dir():
        size = shutil.disk_usage(shm).total
        rows.append(
            (
                "/dev/shm",
                f"{size / 2**30:.1f} GiB",
                "loader workers need shared memory: training.workers=0, or docker run --shm-size=8g" if size < 2**30 else "",
            )
        )
    usage = shutil.disk_usage(folder)
    rows.append(
        (
            "disk",
            f"{usage.free / 2**30:.0f} GiB free at {folder}",
            "little room: 1 mm scans take about 5 MB each" if usage.free < 20 * 2**30 else "",
        )
    )
    speed = _write_speed(folder)
    rows.append(("write speed", f"{speed:.0f} MB/s", "a slow disk: keep the store on a local one" if speed < 50 else ""))
    for name in ("lightning", "monai", "nibabel", "blosc2", "numpy", "pandas", "scipy"):
        try:
            rows.append((name, metadata.version(name), ""))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed", f"pip install {name}"))
    if importlib.util.find_spec("torchvision") is not None:
        rows.append(
            (
                "torchvision",
                "installed",
                "with a CPU build of torch its import fails and takes lightning with it: pip uninstall torchvision",
            )
        )
    return Checkup(tuple(rows), json)


def granted_cores() -> tuple[int, str]:
    """The cores this process may use, and who says so: SLURM, the cgroup, or the affinity; the least of them."""
    import math
    import os

    found = [(len(os.sched_getaffinity(0)), "affinity")]
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if os.environ.get(name, "").isdigit():
            found.append((int(os.environ[name]), name))
            break
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            found.append((max(1, math.ceil(int(limit) / int(period))), "cgroup"))
    return min(found)


def _memory_limit() -> int:
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file():
        text = limit.read_text().strip()
        if text.isdigit():
            return min(total, int(text))
    return total


def _write_speed(folder: Path) -> float:
    """MB/s of writing and syncing 64 MB."""
    import os
    import tempfile
    import time

    block = os.urandom(2**22)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(16):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return 16 * len(block) / 1e6 / (time.perf_counter() - start)
