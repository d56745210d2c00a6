"""The loader: errors of workers say what happened, and nothing waits for ever."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from typing import Any

import pytest
from torch.utils.data import Dataset

from neuroprior.core.errors import ArtifactError, InputError
from neuroprior.data.loading import AHEAD, make_loader


class Trouble(Dataset[Any]):
    """Sample 3 is trouble."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def name(self, sample: int) -> str:
        return f"d/sub-{sample:02d}/ses-1 T1w"

    def __getitem__(self, sample: int) -> int:
        if sample == 3:
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "hang":
                time.sleep(60)
            if self.kind == "memory":
                raise MemoryError
            if self.kind == "torch":
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 10 bytes"
                )
            if self.kind == "input":
                raise InputError("the scan is torn", file="d/sub-01", expected="a whole one", next_step="mend it")
            if self.kind == "damaged":
                raise ArtifactError("a file of the store is damaged", got="bytes")
            if self.kind == "disk":
                raise OSError(5, "Input/output error", "store/x.nps")
            if self.kind == "bug":
                return sample // 0
        return sample


def first(samples: Any) -> Any:
    return samples[0]


def uneven(samples: Any) -> Any:
    raise ValueError("boxes of two sizes")


def loader(kind: str, workers: int, timeout_s: float = 900, collate: Any = first, batch: int = 1) -> Any:
    return make_loader(
        Trouble(kind), batch=batch, start_sample=0, n_samples=6, collate=collate, workers=workers, timeout_s=timeout_s
    )


CASE = r"sample 3 \(d/sub-03/ses-1 T1w\)"


def test_a_killed_worker_is_told_with_what_it_had_in_hand() -> None:
    with pytest.raises(InputError, match=rf"(?s)a loader worker died while it read {CASE}.*memory.*training\.workers"):
        list(loader("kill", 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_hang_is_an_error_that_names_what_is_being_read(workers: int) -> None:
    began = time.monotonic()
    seconds = 15 if workers else 2  # a process has to start first
    with pytest.raises(InputError, match=rf"(?s)no batch came for {seconds} seconds.*reading {CASE}.*data_timeout_s"):
        list(loader("hang", workers, timeout_s=seconds))
    assert time.monotonic() - began < 50, "it sleeps for a minute"


@pytest.mark.parametrize(
    ("kind", "error", "told", "workers"),
    [
        ("memory", InputError, r"out of memory.*training\.workers", 0),
        ("memory", InputError, r"out of memory.*training\.workers", 1),
        ("torch", InputError, r"out of memory.*training\.workers", 0),
        ("input", InputError, r"torn.*file: d/sub-01.*expected: a whole one.*mend it", 0),
        ("damaged", ArtifactError, r"damaged.*got: bytes", 0),
        ("damaged", ArtifactError, r"damaged.*got: bytes", 1),
        ("disk", InputError, r"OSError.*Input/output error.*file: store/x\.nps.*disk", 0),
        ("bug", InputError, r"ZeroDivisionError", 0),
        ("bug", InputError, r"ZeroDivisionError", 1),
    ],
)
def test_an_error_comes_with_its_case_and_trace(kind: str, error: type, told: str, workers: int) -> None:
    with pytest.raises(error, match=rf"(?s){CASE} could not be read: .*{told}") as raised:
        list(loader(kind, workers))
    assert "in test_loading.py, line" in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_make_no_batch_are_told(workers: int) -> None:
    with pytest.raises(
        InputError, match=r"(?s)sample 0 \(d/sub-00/ses-1 T1w\) and 2 more do not make a batch.*two sizes.*uneven"
    ):
        list(loader("none", workers, collate=uneven, batch=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_without_trouble_all_come_in_order(workers: int) -> None:
    made = loader("none", workers)
    assert len(made) == 6
    assert list(made) == list(range(6))


class Watched(Dataset[Any]):
    """Notes what is read, by which thread, and what the global generators say."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.threads: set[str] = set()

    def __getitem__(self, sample: int) -> int:
        self.threads.add(threading.current_thread().name)
        self.read.append(sample)
        return sample


def ahead(seen: Watched, n: int = 40) -> Any:
    return make_loader(seen, batch=2, start_sample=0, n_samples=n, collate=list, timeout_s=20)


def test_without_workers_a_thread_reads_ahead_but_not_everything() -> None:
    seen = Watched()
    batches = iter(ahead(seen))
    assert next(batches) == [0, 1]
    end = time.monotonic() + 10
    while len(seen.read) < 2 * (2 + AHEAD) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    assert seen.read == list(range(2 * (2 + AHEAD))), "what was taken, what is ready, and one that waits for room"
    assert seen.threads == {"neuroprior-loader"}


def test_a_loader_that_is_left_ends_its_thread() -> None:
    before = threading.active_count()
    for _, batch in zip(range(2), ahead(Watched()), strict=False):
        assert len(batch) == 2
    gc.collect()
    assert threading.active_count() == before


def test_reading_ahead_draws_nothing_from_the_global_generators() -> None:
    import numpy as np
    import torch

    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = (torch.rand(3), np.random.rand(3))  # noqa: NPY002
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    assert len(list(ahead(Watched()))) == 20
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002
