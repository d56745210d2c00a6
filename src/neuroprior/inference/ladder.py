"""When memory runs out: the same work again on a smaller footing, told in one line, with the same result.

GPU -> one window at a time -> GPU that computes and CPU that puts together -> CPU. Windows, weights and draws do not depend on the
rung, so only the order of floating-point sums differs.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Rung:
    """A way to compute.

    Attributes:
        name: for people.
        device: where the net computes.
        batch: windows at a time.
        stitch: where windows are put together.
    """

    name: str
    device: str
    batch: int
    stitch: str


def rungs(device: str, batch: int) -> tuple[Rung, ...]:
    """The ladder of a device, best first."""
    if torch.device(device).type == "cpu":
        first = Rung(f"the CPU, {batch} windows at a time", "cpu", batch, "cpu")
        return (first, Rung("the CPU, one window at a time", "cpu", 1, "cpu")) if batch > 1 else (first,)
    ladder = [Rung(f"the GPU, {batch} windows at a time", device, batch, device)]
    if batch > 1:
        ladder.append(Rung("the GPU, one window at a time", device, 1, device))
    ladder.append(Rung("the GPU, putting windows together on the CPU", device, 1, "cpu"))
    ladder.append(Rung("the CPU, one window at a time", "cpu", 1, "cpu"))
    return tuple(ladder)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error)
        for word in ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def climb_down(ladder: Sequence[Rung], work: Callable[[Rung], T], *, what: str, start: int = 0) -> tuple[T, int]:
    """The result of ``work`` on the first rung from ``start`` on where it fits.

    Args:
        ladder: best first.
        work: starts anew on every rung.
        what: names the work in the message.
        start: rung to begin with.

    Returns:
        The result, and the number of the rung that gave it.

    Raises:
        MemoryError: it does not fit on the last rung either.
    """
    for number in range(start, len(ladder)):
        told = ""
        try:
            return work(ladder[number]), number
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
        # outside the except block, so that the failed attempt's tensors are free
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if number + 1 < len(ladder):
            logger.warning("%s: out of memory on %s; now on %s", what, ladder[number].name, ladder[number + 1].name)
            continue
        raise MemoryError(f"out of memory on {ladder[number].name}: {told}")
    raise ValueError(f"the ladder has no rung {start}")
