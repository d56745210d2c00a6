"""Demo: the whole river on synthetic heads, from nothing to a report."""

from __future__ import annotations

from pathlib import Path


def demo(
    out: Path = Path("neuroprior-demo"), subjects: int = 30, spacing: float = 3.0, steps: int = 60, pretrain_steps: int = 200
) -> Path:
    """Run every stage once on synthetic heads; each command is shown, so that you can type it yourself.

    Finished steps are skipped and interrupted ones go on: run it again whenever you like. The commands are those of
    ``runs/speedrun.sh``.

    Args:
        out: folder of everything that is made.
        subjects: synthetic subjects.
        spacing: in mm, of the heads and of the store.
        steps: of each fine-tuning run.
        pretrain_steps: of the pretraining run.

    Returns:
        The report.

    Raises:
        ArtifactError: a step failed; its own message stands above.
    """
    import os
    import shlex
    import subprocess
    import sys

    from ..core.errors import ArtifactError

    script = Path(__file__).with_name("speedrun.sh")
    settings = {
        "SUBJECTS": str(subjects), "SPACING": f"{spacing:g}", "STEPS": str(steps), "PRETRAIN_STEPS": str(pretrain_steps),
        "NEUROPRIOR": f"{shlex.quote(sys.executable)} -m neuroprior",
    }  # fmt: skip
    done = subprocess.run(["bash", str(script), str(out)], env={**os.environ, **settings}, check=False)
    if done.returncode:
        raise ArtifactError(
            f"a step of the demo ended with exit code {done.returncode}", file=out,
            next_step="read its message above; the same command goes on from there",
        )  # fmt: skip
    return out / "report" / "report.html"
