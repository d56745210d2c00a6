"""Loaders: the global stream of samples, cut into batches for each rank.

Sample s of the stream is the same whatever the number of workers and ranks; the ranks' batches of one step together are
the batch that one process would have taken.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..core import processes
from ..core.errors import InputError, NeuropriorError

TIMEOUT_S = 900.0
"""A batch that has not come after this long will not come: on the slowest disks one takes a minute."""
PREFETCH = 3
"""Batches that each worker reads ahead."""


class BatchNumbers:
    """The sample numbers of each batch of one rank.

    Args:
        batch: samples a batch and rank.
        start_sample: first sample of the whole stream, a multiple of ``batch * world``.
        n_samples: how many samples of the stream are left, over all ranks.
        rank, world: which of how many processes this is.
    """

    def __init__(self, batch: int, start_sample: int, n_samples: int, rank: int, world: int) -> None:
        self.batch, self.start, self.rank, self.world = batch, start_sample, rank, world
        self.n_batches = max(0, n_samples // (batch * world))

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.n_batches):
            first = self.start + (step * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))

    def __len__(self) -> int:
        return self.n_batches


class _Named(Dataset[Any]):
    """A dataset whose errors say which sample failed, with their trace, as an error that survives the way from a worker."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, sample: int) -> Any:
        try:
            return self.dataset[sample]
        except NeuropriorError as error:
            raise RuntimeError(f"sample {sample} could not be read: {error}\n{_trace(error)}") from None
        except MemoryError as error:
            raise RuntimeError(
                f"sample {sample} could not be read: out of memory; use fewer training.workers or a smaller data.patch\n{_trace(error)}"
            ) from None


def _trace(error: BaseException) -> str:
    """Where an error came from: the innermost frames, on lines of their own."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return "\n".join(f"  in {Path(frame.filename).name}, line {frame.lineno}, {frame.name}" for frame in frames)


class Loader:
    """Batches of a data loader; a worker that dies or hangs is an error that says so.

    Iterate over it; ``len`` is the number of batches.
    """

    def __init__(self, loader: DataLoader[Any], workers: int, timeout_s: float) -> None:
        self.loader, self.workers, self.timeout_s = loader, workers, timeout_s

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.loader
        except RuntimeError as error:
            told = str(error)
            if "exited unexpectedly" in told or "is killed by signal" in told:
                raise InputError(
                    "a loader worker died", got=_death(error),
                    expected=f"{self.workers} live workers",
                    next_step="use fewer training.workers (0 reads in the training process), or more memory",
                ) from error  # fmt: skip
            if "DataLoader timed out" in told:
                raise InputError(
                    f"no batch came for {self.timeout_s:.0f} seconds", expected="a disk and workers that answer",
                    got=_states(self.loader), next_step="look at the disk the store lies on; training.workers=0 shows where it hangs",
                ) from error  # fmt: skip
            raise


def _death(error: BaseException) -> str:
    """How a worker ended: torch names the signal in the error or in what it was raised from."""
    texts = [str(error)] + [str(e) for e in (error.__cause__, error.__context__) if e is not None]
    text = next((t for t in texts if "signal" in t), texts[0])
    return text.splitlines()[0] + ("; most likely for want of memory" if "Killed" in text else "")


def _states(loader: DataLoader[Any]) -> str:
    """What the workers are doing, by the operating system."""
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append(f"process {child.pid} {child.status()}, {child.memory_info().rss / 1e6:.0f} MB")
    return "; ".join(found[:8]) or f"{loader.num_workers} workers"


def make_loader(
    dataset: Dataset[Any],
    *,
    batch: int,
    start_sample: int,
    n_samples: int,
    collate: Callable[[Sequence[Any]], Any],
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Loader:
    """A loader over a part of the global stream of samples.

    Args:
        dataset: maps a sample number to a sample.
        batch: samples a batch and rank.
        start_sample: where the stream goes on, for example after a resume.
        n_samples: samples left, over all ranks.
        collate: samples -> batch.
        rank, world: which of how many processes this is.
        workers: loader processes; 0 reads in the training process.
        pin_memory: for copies to a GPU that do not wait.
        timeout_s: how long a batch of the workers is waited for.

    Each worker reads ahead by ``PREFETCH`` batches.

    Raises:
        InputError: the stream does not begin at a whole step.
    """
    if start_sample % (batch * world):
        raise InputError(
            f"the stream cannot begin at sample {start_sample}", expected=f"a multiple of batch x processes = {batch * world}"
        )
    loader = DataLoader(
        _Named(dataset), batch_sampler=BatchNumbers(batch, start_sample, n_samples, rank, world), num_workers=workers,
        collate_fn=collate, pin_memory=pin_memory, persistent_workers=False,
        multiprocessing_context=processes.context() if workers else None, timeout=timeout_s if workers else 0,
        prefetch_factor=PREFETCH if workers else None,
    )  # fmt: skip
    return Loader(loader, workers, timeout_s)
