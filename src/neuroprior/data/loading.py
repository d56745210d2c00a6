"""Loaders: the global stream of samples, cut into batches for each rank.

Sample s of the stream is the same whatever the number of workers and ranks; the ranks' batches of one step together are
the batch that one process would have taken. Batches are read ahead, by worker processes or by a thread of this one; whatever goes
wrong with a sample (an error, a worker that dies, a disk that hangs) is an error of ours that names the case.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import queue
import re
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..core import processes
from ..core.errors import InputError, NeuropriorError
from ..engine.device import is_out_of_memory

TIMEOUT_S = 900.0
"""A batch that has not come after this long will not come: on the slowest disks one takes a minute."""
PREFETCH = 3
"""Batches that each worker reads ahead, and ..."""
AHEAD = 2
"""... that the thread does, where there are no workers."""
ENDS_WITHIN_S = 5.0
"""Seconds that the thread, or a killed worker, has to end when no more batches are wanted: it is at most in the middle of one."""


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


@dataclass(frozen=True)
class _Failure:
    """Comes in the place of a batch that could not be made: an error that survives the way from a worker."""

    kind: type[NeuropriorError]
    what: str
    file: str | None
    expected: str | None
    got: str
    next_step: str | None

    @classmethod
    def of(cls, error: Exception, what: str) -> _Failure:
        """What there is to be said of an error; ``what`` could not be done."""
        where = _trace(error)
        if isinstance(error, NeuropriorError):
            file = None if error.file is None else os.fspath(error.file)
            expected = None if error.expected is None else str(error.expected)
            got = where if error.got is None else f"{error.got} ({where})"
            return cls(type(error), f"{what}: {error.what}", file, expected, got, error.next_step)
        if is_out_of_memory(error):
            advice = "use fewer training.workers or a smaller data.patch"
            return cls(InputError, f"{what}: out of memory", None, None, where, advice)
        file, advice = None, None
        if isinstance(error, OSError):
            file, advice = None if error.filename is None else str(error.filename), "look at the disk the store lies on"
        return cls(InputError, f"{what}: {type(error).__name__}: {error}", file, None, where, advice)

    def error(self) -> NeuropriorError:
        return self.kind(self.what, file=self.file, expected=self.expected, got=self.got, next_step=self.next_step)


def _trace(error: BaseException) -> str:
    """Where an error came from: the innermost frames, the last one last."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return "; ".join(f"in {Path(frame.filename).name}, line {frame.lineno}, {frame.name}" for frame in frames)


def _told(dataset: Any, sample: int) -> str:
    """A sample with its case, where the dataset can name it (``dataset.name(sample)``) without reading it."""
    case = ""
    if hasattr(dataset, "name"):
        try:
            case = f" ({dataset.name(sample)})"
        except Exception as error:  # noqa: BLE001  # it is asked because something is wrong, and that must be told whatever comes
            case = f" (its case cannot be named: {type(error).__name__}: {error})"
    return f"sample {sample}{case}"


class _Batches(Dataset[Any]):
    """A dataset that is read a batch at a time, and notes in shared memory which sample each worker has in hand."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[Sequence[Any]], Any], workers: int) -> None:
        self.dataset, self.collate = dataset, collate
        self.notes = processes.context().RawArray("q", [0, -1] * max(1, workers))  # a worker's process, and its sample or -1

    def __getitems__(self, numbers: Sequence[int]) -> Any:
        """A batch, or a :class:`_Failure`."""
        worker = get_worker_info()
        mine = 0 if worker is None else 2 * worker.id
        self.notes[mine] = os.getpid()
        samples = []
        try:
            for number in numbers:
                self.notes[mine + 1] = number
                try:
                    samples.append(self.dataset[number])
                except Exception as error:  # noqa: BLE001  # each is raised again by the loader, with the case
                    return _Failure.of(error, f"{_told(self.dataset, number)} could not be read")
            try:
                return self.collate(samples)
            except Exception as error:  # noqa: BLE001  # the same
                return _Failure.of(error, f"{_told(self.dataset, numbers[0])} and {len(numbers) - 1} more do not make a batch")
        finally:
            self.notes[mine + 1] = -1

    def in_hand(self, process: int | None = None) -> str:
        """The samples being read, by one process or by all."""
        pairs = zip(self.notes[::2], self.notes[1::2], strict=True)
        found = [_told(self.dataset, sample) for pid, sample in pairs if sample >= 0 and process in (None, pid)]
        return ", ".join(found[:8])


_WORKERS: weakref.WeakSet[Any] = weakref.WeakSet()
"""Every loader worker that was started."""


def _deaf(_: int) -> None:
    """In a worker: whether a signal ends the training is decided by the training process, and SLURM, a shell's Ctrl-C and ``timeout`` send theirs to all."""
    for number in (*processes.STOPPING, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill what is left of them before this process ends: a worker that waits for a disk would be waited for."""
    for worker in list(_WORKERS):
        # torch tells of the death where it has not let go of them yet; in a fork of this process they are somebody else's
        with contextlib.suppress(RuntimeError, AssertionError):
            if worker.is_alive():
                worker.kill()
                worker.join(ENDS_WITHIN_S)


def _as_it_is(batch: Any) -> Any:
    return batch


def _pinned(batch: Any) -> Any:
    """The same with its tensors in pinned memory."""
    if isinstance(batch, torch.Tensor):
        return batch.pin_memory()
    if isinstance(batch, Mapping):
        return {name: _pinned(value) for name, value in batch.items()}
    return batch


class Loader:
    """Batches, read ahead; a sample that cannot be read and a worker that dies or hangs are errors that name the case.

    Iterate over it; ``len`` is the number of batches.
    """

    def __init__(self, batches: _Batches, numbers: BatchNumbers, *, workers: int, pin_memory: bool, timeout_s: float) -> None:
        self._batches, self._numbers = batches, numbers
        self._workers, self._pin_memory, self._timeout_s = workers, pin_memory, timeout_s

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        with contextlib.closing(self._processes() if self._workers else self._thread()) as source:
            for batch in source:
                if isinstance(batch, _Failure):
                    raise batch.error()
                yield batch

    def _thread(self) -> Iterator[Any]:
        """Batches read by one thread: it draws from the samples' own generators alone, so nothing depends on when it runs."""
        ready: queue.Queue[Any] = queue.Queue(AHEAD)
        stop, end = threading.Event(), object()
        device = torch.cuda.current_device() if self._pin_memory else None

        def read() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)
                for numbers in self._numbers:
                    batch = self._batches.__getitems__(numbers)
                    ready.put(_pinned(batch) if device is not None else batch)
                    if stop.is_set():
                        return
                ready.put(end)
            except Exception as error:  # noqa: BLE001  # raised by the loader
                ready.put(_Failure.of(error, "a batch could not be made ready"))

        thread = threading.Thread(target=read, name="neuroprior-loader", daemon=True)
        thread.start()
        hangs = False
        try:
            while True:
                try:
                    batch = ready.get(timeout=self._timeout_s)
                except queue.Empty:
                    hangs = True
                    raise self._no_batch("one thread of this process") from None
                if batch is end:
                    return
                yield batch
        finally:
            stop.set()
            with contextlib.suppress(queue.Empty):
                while True:
                    ready.get_nowait()
            if not hangs:
                thread.join(ENDS_WITHIN_S)

    def _processes(self) -> Iterator[Any]:
        """Batches read by worker processes."""
        loader = DataLoader(
            self._batches, batch_sampler=self._numbers, num_workers=self._workers, collate_fn=_as_it_is, pin_memory=self._pin_memory,
            persistent_workers=False, multiprocessing_context=processes.context(), timeout=self._timeout_s, prefetch_factor=PREFETCH,
            worker_init_fn=_deaf,
        )  # fmt: skip
        before = set(multiprocessing.active_children())
        batches = iter(loader)
        _WORKERS.update(set(multiprocessing.active_children()) - before)
        try:
            yield from batches
        except RuntimeError as error:
            told = str(error)
            if "exited unexpectedly" in told or "is killed by signal" in told:
                having = self._batches.in_hand(_process_in(error))
                raise InputError(
                    f"a loader worker died while it read {having}" if having else "a loader worker died between two samples",
                    got=_death(error), expected=f"{self._workers} live workers",
                    next_step="use fewer training.workers (0 reads in the training process), or more memory",
                ) from error  # fmt: skip
            if "DataLoader timed out" in told:
                raise self._no_batch(_states(self._workers)) from error
            raise

    def _no_batch(self, got: str) -> InputError:
        reading = self._batches.in_hand()
        return InputError(
            f"no batch came for {self._timeout_s:g} seconds", expected="a disk and workers that answer",
            got=f"{got}, reading {reading}" if reading else f"{got}, reading nothing",
            next_step="look at the disk the store lies on; a disk that is only slow needs a larger training.data_timeout_s",
        )  # fmt: skip


def _chain(error: BaseException) -> list[str]:
    """What an error and those it was raised from say."""
    return [str(e) for e in (error, error.__cause__, error.__context__) if e is not None]


def _process_in(error: BaseException) -> int | None:
    """The process that torch says has died, or None."""
    found = re.search(r"DataLoader worker \(pid\(?s?\)? (\d+)", "\n".join(_chain(error)))
    return int(found[1]) if found else None


def _death(error: BaseException) -> str:
    """How a worker ended: torch names the signal in the error or in what it was raised from."""
    texts = _chain(error)
    text = next((t for t in texts if "signal" in t), texts[0])
    return text.splitlines()[0] + ("; most likely for want of memory" if "Killed" in text else "")


def _states(workers: int) -> str:
    """What the workers are doing, by the operating system."""
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append(f"process {child.pid} {child.status()}, {child.memory_info().rss / 1e6:.0f} MB")
    return "; ".join(found[:8]) or f"{workers} workers"


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
        dataset: maps a sample number to a sample; its ``name(sample)``, where it has one, names the case without reading it.
        batch: samples a batch and rank.
        start_sample: where the stream goes on, for example after a resume.
        n_samples: samples left, over all ranks.
        collate: samples -> batch.
        rank, world: which of how many processes this is.
        workers: loader processes; 0 reads in a thread of the training process.
        pin_memory: for copies to a GPU that do not wait.
        timeout_s: how long a batch is waited for.

    Each worker reads ahead by ``PREFETCH`` batches, the thread by ``AHEAD``.

    Raises:
        InputError: the stream does not begin at a whole step.
    """
    if start_sample % (batch * world):
        raise InputError(
            f"the stream cannot begin at sample {start_sample}", expected=f"a multiple of batch x processes = {batch * world}"
        )
    return Loader(
        _Batches(dataset, collate, workers), BatchNumbers(batch, start_sample, n_samples, rank, world), workers=workers,
        pin_memory=pin_memory, timeout_s=timeout_s,
    )  # fmt: skip
