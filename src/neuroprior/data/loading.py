"""Loaders: the global stream of samples, cut into batches for each rank.

Sample s of the stream is the same whatever the number of workers and ranks; the ranks' batches of one step together are
the batch that one process would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..core.errors import InputError, NeuropriorError


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
    """A dataset whose errors say which sample failed, as an error that survives the way from a worker."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, sample: int) -> Any:
        try:
            return self.dataset[sample]
        except NeuropriorError as error:
            raise RuntimeError(f"sample {sample} could not be read: {error}") from None
        except MemoryError:
            raise RuntimeError(f"sample {sample} could not be read: out of memory; use fewer training.workers") from None


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
) -> DataLoader[Any]:
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

    Raises:
        InputError: the stream does not begin at a whole step.
    """
    if start_sample % (batch * world):
        raise InputError(
            f"the stream cannot begin at sample {start_sample}", expected=f"a multiple of batch x processes = {batch * world}"
        )
    return DataLoader(
        _Named(dataset), batch_sampler=BatchNumbers(batch, start_sample, n_samples, rank, world), num_workers=workers,
        collate_fn=collate, pin_memory=pin_memory, persistent_workers=False,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
