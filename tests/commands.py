"""``neuroprior ARGS`` without the seconds that a fresh interpreter takes for its imports: forked from a process that has done them.

What a fresh interpreter would do beyond that is tested where it matters: imports in ``test_import``, the installed command in
``test_wheel`` and the commands of the docs in ``test_docs``.

    python tests/commands.py        # reads requests from standard input, a JSON line each
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path

PRELOADED = (
    "torch", "lightning.pytorch", "pandas", "nibabel", "scipy.ndimage", "scipy.stats", "sklearn.linear_model", "matplotlib.pyplot", "monai.inferers",
    "pydantic", "click",
)  # fmt: skip
"""What commands find there. Blosc2 is not among them, since it starts threads; jemalloc's, which comes with pandas, expects a fork."""


class Command:
    """A command that is running; as much of ``subprocess.Popen`` as the tests need."""

    def __init__(self, args: list[str], pid: int, server: subprocess.Popen[str]) -> None:
        self.args, self.pid = args, pid
        self._server = server
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, minus the signal's number where it was killed.

        Raises:
            TimeoutExpired: it still runs after so many seconds.
        """
        if self.returncode is None:
            assert self._server.stdout is not None
            if not select.select([self._server.stdout], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._server.stdout.readline())
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Commands:
    """Starts commands, one at a time."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._last: Command | None = None

    def start(self, *args: object, cwd: Path | None = None, stdout: Path | None = None, stderr: Path | None = None) -> Command:
        """Start ``neuroprior ARGS``.

        Args:
            args: of the command.
            cwd: where, by default here.
            stdout, stderr: files for what it says, which is lost by default.
        """
        assert self._last is None or self._last.poll() is not None, "one command at a time"
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        words = [str(arg) for arg in args]
        request = {
            "args": words, "cwd": str(cwd or Path.cwd()), "stdout": str(stdout or os.devnull), "stderr": str(stderr or os.devnull),
            "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        }  # fmt: skip
        print(json.dumps(request), file=self._server.stdin)
        self._last = Command(words, int(self._server.stdout.readline()), self._server)
        return self._last

    def run(self, *args: object, folder: Path, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """What ``subprocess.run`` would answer; ``folder`` is for its output."""
        files = folder / "stdout", folder / "stderr"
        command = self.start(*args, cwd=cwd, stdout=files[0], stderr=files[1])
        try:
            code = command.wait(timeout)
        except subprocess.TimeoutExpired:
            command.kill()
            command.wait()
            raise
        return subprocess.CompletedProcess(command.args, code, *(path.read_text() for path in files))

    def close(self) -> None:
        """End the process that commands are forked from."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        assert self._server.stdout is not None
        self._server.stdout.close()


def serve() -> bool:
    """Answer requests with the number of a forked process, and its exit status when it has ended; True in such a process."""
    sys.path[0] = ""  # as ``python -m`` has it
    for name in PRELOADED:
        importlib.import_module(name)
    names = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*") if task.name != str(os.getpid())}
    assert names <= {"jemalloc_bg_thd"}, f"a process with threads that do not expect it cannot be forked: {names}"
    for line in sys.stdin:
        request: Mapping[str, str] = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(request)
            return True
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return False


def _become(request: Mapping[str, object]) -> None:
    """Take over a request's folder, environment, output and arguments."""
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[arg-type]
    for number, name, how in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY),
        (2, request["stderr"], os.O_WRONLY),
    ):
        file = os.open(str(name), how | (os.O_CREAT | os.O_TRUNC if how == os.O_WRONLY else 0), 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.argv[1:] = request["args"]  # type: ignore[assignment]


def _run() -> int:
    """The command's exit status, as the interpreter would find it."""
    try:
        runpy.run_module("neuroprior", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 (it is told, as the interpreter would)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    if serve():
        status = _run()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # to take a large interpreter apart takes longer than most commands
