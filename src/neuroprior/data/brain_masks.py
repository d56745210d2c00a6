"""A brain mask by somebody else's tool (SynthStrip, HD-BET or any other): its command is run on a scan, and what it writes is read and checked."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from ..core import nifti
from ..core.errors import ConfigError, InputError, MissingDependency
from ..core.volume import Volume

IN, OUT = "{in}", "{out}"
SMALLEST_ML, LARGEST_ML = 50.0, 3000.0
"""Of a brain with what lies around it: a mask that is outside is no brain mask."""


def check_command(command: str) -> None:
    """Refuse a command that cannot be run.

    Raises:
        ConfigError: it does not say where the scan and the mask stand.
        MissingDependency: there is no such program on this machine.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError("the mask command cannot be read", got=command, expected=str(error)) from None
    if not words or not any(IN in word for word in words) or not any(OUT in word for word in words):
        raise ConfigError(
            "a mask is head, index, or a command with {in} and {out}", got=command,
            expected="for example 'mri_synthstrip -i {in} -m {out}'",
        )  # fmt: skip
    if shutil.which(words[0]) is None:
        raise MissingDependency(f"there is no program {words[0]!r} here", next_step="install it, or give its whole path")


def by_command(command: str, path: str) -> Volume:
    """The mask that a command makes of a scan, nonzero where the brain is.

    Args:
        command: with ``{in}`` for the scan and ``{out}`` for the mask (``.nii.gz``); no shell reads it.
        path: of the scan.

    Raises:
        InputError: the command fails, writes no mask, or one that holds no brain.
        MissingDependency: there is no such program on this machine.
    """
    with tempfile.TemporaryDirectory(prefix="neuroprior-mask-") as folder:
        out = Path(folder, "mask.nii.gz")
        words = [word.replace(IN, path).replace(OUT, str(out)) for word in shlex.split(command)]
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise MissingDependency(
                f"{words[0]!r} cannot be run", got=error.strerror, next_step="install it on every machine that prepares"
            ) from None
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        if done.returncode:
            raise InputError(
                f"the mask command ended with {done.returncode}", file=path, got=said[-1] if said else "nothing said"
            )
        if not out.is_file():
            raise InputError(
                "the mask command wrote no mask", file=path, expected="a file at {out}", got=said[-1] if said else "nothing said"
            )
        mask, _ = nifti.read_labels(out)
    size = float((mask.voxels > 0).sum()) * float(np.prod(mask.spacing_mm)) / 1000
    if not SMALLEST_ML <= size <= LARGEST_ML:
        raise InputError(
            "the mask command's mask holds no brain",
            file=path,
            expected=f"{SMALLEST_ML:.0f} to {LARGEST_ML:.0f} ml",
            got=f"{size:.0f} ml",
        )
    return mask
