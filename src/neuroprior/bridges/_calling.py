"""One call of an exported folder's ``predict``: without a network, watched, and stopped when it takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """How one call of ``predict`` ended.

    Attributes:
        returncode: negative for a signal; None when it was stopped for being too slow.
        seconds, peak_mb: wall-clock time and largest resident memory.
        tail: the end of its standard error.
        network: what it tried on the network.
        modules: module name -> file, of what it had imported; empty when it could not be looked at.
        files: what lies in the output folder.
    """

    returncode: int | None
    seconds: float
    peak_mb: float
    tail: str
    network: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def network_namespace() -> list[str]:
    """The words before a command that give it a network namespace of its own; none where the system does not allow it."""
    if shutil.which("unshare") is None:
        return []
    tried = subprocess.run(["unshare", "--map-current-user", "--net", "true"], capture_output=True, check=False)
    return ["unshare", "--map-current-user", "--net", "--"] if tried.returncode == 0 else []


def call(
    command: Sequence[str | Path], output: Path, *, seconds: float | None, prefix: Sequence[str] = (),
    extra: Mapping[str, str] | None = None,
) -> Outcome:  # fmt: skip
    """Run one command without a network, watched; stopped with all its children when it takes longer than ``seconds``.

    Args:
        command: what to run.
        output: a file in the folder that is looked at afterwards.
        seconds: at most; None for as long as it takes.
        prefix: words before the command.
        extra: variables of its environment.
    """
    with tempfile.TemporaryDirectory(prefix="neuroprior-watch-") as name:
        watch = Path(name)
        shutil.copyfile(Path(__file__).with_name("_watch.py"), watch / "sitecustomize.py")
        report = watch / "report.json"
        drop = {"PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS"}
        environment = {key: value for key, value in os.environ.items() if key not in drop}
        environment |= {
            "PYTHONPATH": str(watch), "NEUROPRIOR_WATCH": str(report), "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        } | dict(extra or {})  # fmt: skip
        with open(watch / "stderr", "w+b") as errors:
            start = time.perf_counter()
            process = subprocess.Popen(
                [*prefix, *map(str, command)], cwd=watch, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
            try:
                code, peak = _wait(process, seconds)
            except BaseException:  # Ctrl-C: the child has a session of its own and would live on
                _stop(process)
                raise
            taken = time.perf_counter() - start
            errors.seek(0)
            tail = errors.read().decode("utf-8", "replace").strip()[-1500:]
        network = Path(f"{report}.network")
        modules = json.loads(report.read_text(encoding="utf-8"))["modules"] if report.is_file() else {}
        tried = tuple(network.read_text(encoding="utf-8").splitlines()) if network.is_file() else ()
    files = tuple(sorted(p.relative_to(output.parent).as_posix() for p in output.parent.rglob("*") if p.is_file()))
    return Outcome(code, taken, peak, tail, tried, modules, files)


def _wait(process: subprocess.Popen[bytes], seconds: float | None) -> tuple[int | None, float]:
    """Exit status (None when stopped) and peak resident megabytes of a process.

    The kernel's own account of an ended process begins with what its parent held when it was started, so on Linux the high-water mark of
    the running program is read instead, fifty times a second.
    """
    start, stopped, peak = time.perf_counter(), False, 0.0
    while True:
        peak = max(peak, _resident_mb(process.pid))
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        if not stopped and seconds is not None and time.perf_counter() - start > seconds:
            stopped = True
            _stop(process)
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    scale = 1024**2 if sys.platform == "darwin" else 1024
    return None if stopped else process.returncode, peak or usage.ru_maxrss / scale


def _resident_mb(pid: int) -> float:
    """The largest resident memory of a running program so far; 0 where it cannot be told."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM:")), 0.0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    import signal

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
