"""Fresh processes that do not run the caller's script again.

A spawned process imports the main module of its parent. A script without ``if __name__ == "__main__"`` would then do its work once more in
every worker, and one read from standard input cannot be imported at all: workers die before they have done anything. What our workers
call lies in this package, so they need no main module.
"""

from __future__ import annotations

import signal
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from pickle import PicklingError
from typing import Any

from .errors import ConfigError

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""What a scheduler sends to all processes of a job before it kills them: the last two are what SLURM's ``--signal`` is asked for."""


def require_workers(workers: int | None) -> None:
    """Raises a ConfigError for a number of workers below 1; None is as many as there are cores."""
    if workers is not None and workers < 1:
        raise ConfigError("--workers is a number of processes", expected="1 or more", got=workers)


@contextmanager
def _without_main() -> Iterator[None]:
    """An empty main module for a moment."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class Process(SpawnProcess):
    """A spawned process; it gets the caller's main module only where what it is given comes from there."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        try:
            with _without_main():
                return SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]
        except (PicklingError, AttributeError):  # something of the caller's own: found before any process has begun
            return SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]


class Context(SpawnContext):
    """What ``multiprocessing.get_context("spawn")`` gives, with the process of this module."""

    Process = Process


def context() -> SpawnContext:
    """For a pool of processes, a pipe or a data loader's ``multiprocessing_context``."""
    _start_tracker()
    return Context()


def _start_tracker() -> None:
    """Start multiprocessing's resource tracker so that it ignores what SLURM sends to all processes of a job, as it does what a terminal sends."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING if number != signal.SIGTERM}
    try:
        resource_tracker.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
