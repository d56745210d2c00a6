"""The peak memory of a piece of work, where the system can tell it apart from that of the whole process.

``getrusage`` alone would count the process that started this one: Linux keeps its peak through ``exec``.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Begin anew to watch the resident memory's peak; False where only the peak since the process began can be had."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # Linux: sets VmHWM to the present size
        return True
    return False


def peak_mb() -> int:
    """Peak resident memory in MiB since the last reset (since the process began, where nothing can be reset)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset) >> 20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak >> 20 if sys.platform == "darwin" else peak >> 10)


def peak_gpu_mb() -> int | None:
    """Peak memory that torch held on the GPU in MiB since the last reset; None without a GPU in use."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    return torch.cuda.max_memory_allocated() >> 20
