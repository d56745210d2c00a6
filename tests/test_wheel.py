"""The wheel holds everything that the command needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_installs_and_runs_without_the_source_tree(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("neuroprior-*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)],
        check=True,
    )
    program = "import neuroprior, sys; from neuroprior.cli import app; print(neuroprior.__file__, file=sys.stderr); app(['list', 'recipes'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stderr
    assert "fomo25" in done.stdout
    for name in (
        "reporting/page.html.j2",
        "stages/speedrun.sh",
        "recipes/tiny.yaml",
        "protocols/fomo26.yaml",
        "bridges/_watch.py",
        "py.typed",
    ):
        assert (site / "neuroprior" / name).is_file(), name
