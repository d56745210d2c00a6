"""A folder that is held keeps other processes out, and no longer than the process lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neuroprior.core import artifacts
from neuroprior.core.errors import ConfigError

HOLD = """
import sys, time
from neuroprior.core import artifacts
with artifacts.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process is at work"), artifacts.held(folder, wait=0.3):
            pass
        other.kill()
        other.wait()
    with artifacts.held(folder, wait=5):
        assert artifacts.sweep(folder) == 0
        assert [file.name for file in folder.iterdir()] == [artifacts.LOCK]
    with artifacts.held(folder, wait=0):
        pass


@pytest.mark.parametrize(("kind", "sign"), artifacts.SIGNS.items())
def test_one_artefact_is_not_written_into_another(kind: str, sign: str, tmp_path: Path) -> None:
    artifacts.require_place(tmp_path / "new" / "one", kind)
    (tmp_path / "notes.txt").touch()
    artifacts.require_place(tmp_path, kind)
    (tmp_path / sign).touch()
    artifacts.require_place(tmp_path, kind)
    with pytest.raises(ConfigError, match=rf"(?s)holds something else.*got: {kind}"):
        artifacts.require_place(tmp_path, "poem")
    for place in (tmp_path / sign, tmp_path / sign / "below"):
        with pytest.raises(ConfigError, match="--out is a file"):
            artifacts.require_place(place, kind)
