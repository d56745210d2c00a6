"""The commands of the documentation run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from neuroprior.cli import stage_names

ROOT = Path(__file__).resolve().parent.parent


def blocks(path: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_quick_start_runs(tmp_path: Path) -> None:
    script = (
        "set -euo pipefail\nneuroprior() { "
        + f'"{sys.executable}" -m neuroprior "$@"; }}\n'
        + "\n".join(blocks(ROOT / "docs/quickstart.md"))
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report/report.html").is_file()


def test_the_page_on_reading_datasets_runs(tmp_path: Path) -> None:
    script = (
        "set -euo pipefail\nneuroprior() { "
        + f'"{sys.executable}" -m neuroprior "$@"; }}\n'
        + "\n".join(blocks(ROOT / "docs/readers.md"))
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "again.parquet").is_file()


def test_the_examples_in_python_run() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, page.name, "exec"), {})


def test_the_readme_names_commands_and_options_that_exist() -> None:
    import inspect

    import neuroprior

    for line in "\n".join(blocks(ROOT / "README.md")).splitlines():
        words = line.split("#")[0].split()
        if words[:1] != ["neuroprior"]:
            continue
        assert words[1] in stage_names()
        known = {name.rstrip("_").replace("_", "-") for name in inspect.signature(getattr(neuroprior, words[1])).parameters}
        assert {word[2:] for word in words if word.startswith("--")} <= known, line


def test_the_demo_script_is_the_one_in_runs() -> None:
    assert (ROOT / "runs/speedrun.sh").resolve() == ROOT / "src/neuroprior/stages/speedrun.sh"
