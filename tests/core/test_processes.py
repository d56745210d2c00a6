"""Worker processes do not need the caller's script: not one without a guard, and not one that no process could read again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
print("script")
from concurrent.futures import ProcessPoolExecutor
from neuroprior.core import processes
with ProcessPoolExecutor(2, mp_context=processes.context()) as pool:
    print(sorted(pool.map(abs, [-1, -2, -3])))
"""
OWN = """
from concurrent.futures import ProcessPoolExecutor
from neuroprior.core import processes

def work(x):
    return x * x

def set_up(function):
    pass

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=processes.context(), initializer=set_up, initargs=(work,)) as pool:
        print(list(pool.map(work, [2, 3])))
"""


@pytest.mark.parametrize("how", ["file", "standard input"])
def test_a_script_without_a_guard_runs_once(tmp_path: Path, how: str) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    command = [sys.executable, str(file)] if how == "file" else [sys.executable, "-"]
    done = subprocess.run(command, input=SCRIPT if how != "file" else None, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["script", "[1, 2, 3]"]


def test_what_comes_from_the_callers_script_is_still_found(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(OWN)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[4, 9]"]
