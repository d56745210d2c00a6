"""The commands of the documentation run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from neuroprior.cli import stage_names

ROOT = Path(__file__).resolve().parent.parent


def blocks(path: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def run(pages: list[str], folder: Path) -> None:
    """All bash blocks of some pages, one after the other, in one empty folder."""
    script = (
        "set -euo pipefail\nneuroprior() { "
        + f'"{sys.executable}" -m neuroprior "$@"; }}\n'
        + "\n".join(block for page in pages for block in blocks(ROOT / "docs" / page))
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_quick_start_and_the_report_run(tmp_path: Path) -> None:
    run(["quickstart.md", "report.md"], tmp_path)
    assert (tmp_path / "report/report.html").is_file()
    assert "By group" in (tmp_path / "report-ranked/report.html").read_text()


@pytest.mark.slow
def test_the_assessments_page_runs(tmp_path: Path) -> None:
    run(["assessments.md"], tmp_path)
    assert "## Scores: sex" in (tmp_path / "runs/sex/model/README.md").read_text(encoding="utf-8")
    assert (tmp_path / "scores/short.parquet").is_file()


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


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_pages_name_commands_and_options_that_exist(page: str) -> None:
    import inspect

    import neuroprior

    for line in "\n".join(blocks(ROOT / page)).replace("\\\n", " ").splitlines():
        words = line.split("#")[0].split()
        if words[:1] != ["neuroprior"]:
            continue
        if words[1] in ("list", "--version", "--help"):
            continue
        assert words[1] in stage_names()
        known = {name.rstrip("_").replace("_", "-") for name in inspect.signature(getattr(neuroprior, words[1])).parameters}
        known |= {f"no-{name}" for name in known} | {"help"}
        assert {word[2:].split("=")[0] for word in words if word.startswith("--")} <= known, line


def test_the_demo_script_is_the_one_in_runs() -> None:
    assert (ROOT / "runs/speedrun.sh").resolve() == ROOT / "src/neuroprior/stages/speedrun.sh"
