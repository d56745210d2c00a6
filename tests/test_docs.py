"""The commands of the documentation run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.bridges.foreign import BLOCKS, FEATURES, ResidualUNet, nnssl_checkpoint, shaken

from neuroprior.cli import stage_names

ROOT = Path(__file__).resolve().parent.parent


def blocks(path: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def run_text(text: str, folder: Path) -> str:
    """Some lines of bash in a folder; what they print."""
    script = f'set -euo pipefail\npython() {{ "{sys.executable}" "$@"; }}\nneuroprior() {{ python -m neuroprior "$@"; }}\n{text}'
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(pages: list[str], folder: Path) -> None:
    """All bash blocks of some pages, one after the other, in one empty folder."""
    run_text("\n".join(block for page in pages for block in blocks(ROOT / "docs" / page)), folder)


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
    run(["readers.md"], tmp_path)
    assert (tmp_path / "again.parquet").is_file()


SRUN = """#!{python}
import os, pathlib, signal, subprocess, sys, time
step = subprocess.Popen([sys.executable, "-m", *sys.argv[1:]], start_new_session=True)
trace = pathlib.Path("runs/fomo25/events.jsonl")
while step.poll() is None and not (trace.exists() and trace.read_text().count('"step"') > 2):
    time.sleep(0.05)
if step.poll() is None and not pathlib.Path("requeued").exists():
    os.killpg(step.pid, signal.SIGUSR1)
sys.exit(step.wait())
"""


@pytest.mark.slow
def test_the_job_of_the_slurm_page_goes_back_to_the_queue_until_it_is_done(store_path: Path, tmp_path: Path) -> None:
    """Under a stub srun that sends what ``--signal`` asks for, once."""
    [script] = blocks(ROOT / "docs/slurm.md")
    small = "training.workers=2 --set data.patch=16 --set net.features=[4,8] --set net.latent=4 --set training.accelerator=cpu"
    script = script.replace("--recipe fomo25", "--recipe tiny").replace("training.workers=6", f"{small} --set training.steps=60")
    (tmp_path / "store").symlink_to(store_path)
    requeue = f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n'
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", requeue)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "OMP_NUM_THREADS": "1"}
    for code in (75, 0):
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == code, done.stderr
        assert "Warning" not in done.stderr and "HINT" not in done.stderr
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert "complete after 60 steps" in done.stdout


@pytest.mark.slow
def test_the_page_on_weights_from_elsewhere_runs(heads: Path, tmp_path: Path) -> None:
    """With a small net and heads of 4 mm."""
    nnssl_checkpoint(shaken(ResidualUNet(FEATURES, BLOCKS)), tmp_path / "checkpoint_final.pth")
    (tmp_path / "bids").symlink_to(heads)
    text = "\n".join(blocks(ROOT / "docs/weights.md"))
    small = "--set data.patch=16 --set training.batch=2"
    text = text.replace("--spacing 1.0", "--spacing 4").replace("--out runs/lesion", f"--out runs/lesion --steps 2 {small}")
    said = run_text(text.replace("pretrain store", f"pretrain store {small} --set training.steps=2"), tmp_path)
    assert "loaded    53 weights, 100.0% of the net's numbers" in said
    assert (tmp_path / "runs/lesion/comparison.json").is_file()
    assert said.count("foreground probability, largest difference") == 2
    assert "FAILED" not in said


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
