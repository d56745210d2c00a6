"""The loader: errors of workers say what happened, and nothing waits for ever."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from torch.utils.data import Dataset

from neuroprior.core.errors import InputError
from neuroprior.data.loading import make_loader


class Trouble(Dataset[Any]):
    """Sample 3 is trouble."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __getitem__(self, sample: int) -> int:
        if sample == 3:
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "hang":
                time.sleep(60)
            if self.kind == "memory":
                raise MemoryError
            if self.kind == "input":
                raise InputError("the scan is torn", file="d/sub-01")
        return sample


def drawn(kind: str, workers: int, timeout_s: float = 900) -> list[int]:
    loader = make_loader(
        Trouble(kind), batch=1, start_sample=0, n_samples=6, collate=lambda many: many[0] if workers == 0 else many,
        workers=workers, timeout_s=timeout_s,
    )  # fmt: skip
    return list(loader)


def first(samples: Any) -> Any:
    return samples[0]


def loader(kind: str, timeout_s: float = 900) -> Any:
    return make_loader(Trouble(kind), batch=1, start_sample=0, n_samples=6, collate=first, workers=1, timeout_s=timeout_s)


def test_a_killed_worker_is_told_as_such() -> None:
    with pytest.raises(InputError, match=r"(?s)a loader worker died.*memory.*training\.workers"):
        list(loader("kill"))


def test_a_hanging_worker_is_no_hang() -> None:
    with pytest.raises(InputError, match=r"no batch came for 4 seconds"):
        list(loader("hang", timeout_s=4))


@pytest.mark.parametrize(
    ("kind", "told"),
    [("memory", r"sample 3.*out of memory"), ("input", r"(?s)sample 3.*torn.*sub-01.*in test_loading\.py, line")],
)
def test_an_error_comes_with_its_sample_and_trace(kind: str, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        drawn(kind, 0)
    with pytest.raises(RuntimeError, match=told):
        list(loader(kind))


def test_without_trouble_all_come_in_order() -> None:
    assert drawn("none", 0) == list(range(6))
    made = loader("none")
    assert len(made) == 6
    assert list(made) == list(range(6))
