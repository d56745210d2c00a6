"""How much memory this process may use: the machine's, its control group's, and what SLURM granted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

WORKER_MB = 150.0
"""An interpreter with what a worker imports, beside what its job needs; measured at 70 to 125 MB, 223 with SimpleITK."""

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def granted_memory_mb(groups: Path = _GROUPS, own: Path = _OWN) -> float:
    """Memory that this process may still take, in MB: the least of what the machine has available, of what is left to each control group
    that it lies in, and of what SLURM granted to the job.

    Args:
        groups: where control groups are mounted.
        own: the file that names the groups of this process.
    """
    import psutil

    found = [psutil.virtual_memory().available / 1e6, *_left(groups, own)]
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", len(os.sched_getaffinity(0)))):
        with contextlib.suppress(KeyError, ValueError):
            granted = int(os.environ[name]) * times * 2**20 / 1e6
            found += [granted] if granted else []  # 0 is all that the node has
    return min(found)


def _left(groups: Path, own: Path) -> list[float]:
    """What is left to the groups of this process and all above them, in MB. A limit of any of them holds for all below it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    found: list[float] = []
    for line in lines or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        place = root / path.lstrip("/")
        while True:
            # a group that is not there: inside a container the names are those outside it, and its own limits lie at the root
            with contextlib.suppress(OSError, ValueError):
                found.append((int((place / names[0]).read_text()) - _used(place, names[1], names[2])) / 1e6)
            if place == root or root not in place.parents:
                break
            place = place.parent
    return [max(0.0, megabytes) for megabytes in found]


def _used(group: Path, current: str, idle: str) -> int:
    """Bytes that a group holds, without files that the kernel keeps in memory only as long as nobody wants it."""
    used = int((group / current).read_text())
    with contextlib.suppress(OSError):
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == idle:
                used -= int(value)
    return used
