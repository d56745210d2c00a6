"""Keep freed memory in the process while computing on the CPU.

glibc gives every block above 32 MB back to the kernel when it is freed, and a step of a 3-D network allocates hundreds of
them: each comes back page by page. Told to keep them, the same step is about a third faster (``benchmarks/README.md``).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


KEPT = 64 << 20
"""Bytes: a map of the finest level of a box of 64^3 is kept, and one of 96^3 is not, whose pages cost more memory than they save time."""

KEPT_PREDICTING = 512 << 20
"""Bytes, without gradients: a map of the finest level of four windows of 64^3 with 32 channels has 128 MB, and few are alive at a time."""


def keep_freed_memory(limit: int = KEPT) -> bool:
    """Let glibc keep freed blocks for reuse. Returns False where there is no glibc.

    Args:
        limit: bytes of the largest block that is kept.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_THRESHOLD, limit)) and bool(
        libc.mallopt(M_TRIM_THRESHOLD, min(2 * max(limit, KEPT), 2**31 - 1))
    )
