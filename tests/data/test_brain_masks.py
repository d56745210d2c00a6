"""Brain masks by another tool's command: a small script stands for the tool."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import nifti
from neuroprior.core.errors import ConfigError, InputError, MissingDependency
from neuroprior.core.records import Scan
from neuroprior.core.volume import Volume
from neuroprior.data.brain_masks import by_command, check_command
from neuroprior.data.index import check_scan, write_index
from neuroprior.data.store import Store
from neuroprior.stages.prepare import prepare

TOOL = """
import sys, nibabel, numpy
image = nibabel.load(sys.argv[1])
mask = (numpy.asarray(image.dataobj) > 150).astype("uint8")
{extra}
nibabel.save(nibabel.Nifti1Image(mask, image.affine), sys.argv[2])
"""


def tool(folder: Path, extra: str = "") -> str:
    path = folder / "a tool.py"
    path.write_text(TOOL.format(extra=extra))
    return f"{sys.executable} '{path}' {{in}} {{out}}"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A bright ball (the brain) in a dim one (the head)."""
    far = np.linalg.norm(np.indices((50, 50, 50)) - 24.5, axis=0)
    rng = np.random.default_rng(0)
    voxels = np.where(far < 16, 200, np.where(far < 22, 100, 0)) + (far < 22) * rng.normal(0, 5, far.shape)
    path = tmp_path / "it's a scan.nii.gz"
    nifti.write(path, Volume(voxels.astype(np.float32), np.diag([4.0, 4, 4, 1])))
    return path


def test_the_command_makes_the_mask(scan: Path, tmp_path: Path) -> None:
    mask = by_command(tool(tmp_path), str(scan))
    far = np.linalg.norm(np.indices((50, 50, 50)) - 24.5, axis=0)
    np.testing.assert_array_equal(mask.voxels > 0, far < 16)


def test_a_store_is_normalised_over_it(scan: Path, tmp_path: Path) -> None:
    row = check_scan(Scan("d/a", "d", "d/a", "", "T1w", "T1w", str(scan)), voxels=True)
    index = write_index([row], tmp_path / "index.parquet")
    command = tool(tmp_path)
    for name, mask in (("brain", command), ("head", "head")):
        assert prepare(index, tmp_path / name, spacing="4", mask=mask, workers=1).exit_code == 0
    brain, head = (Store.open(tmp_path / name) for name in ("brain", "head"))
    assert max(brain.sessions[0].shape) < max(head.sessions[0].shape)
    values = brain.read("d/a", "T1w")
    inside = values[values > values.max() / 2 - 3]
    assert abs(float(np.median(inside))) < 0.5  # the brain is the mean, where the head's would be 0 between the two balls
    assert brain.info["steps"]["mask"] == command
    assert brain.store_hash != head.store_hash


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ("sys.exit('no licence')", "ended with 1"),
        ("sys.exit(0)", "wrote no mask"),
        ("mask[:] = 0", "holds no brain"),
        ("mask[:] = 1", "holds no brain"),
    ],
)
def test_a_tool_that_fails_is_the_sessions_reason(extra: str, what: str, scan: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what) as error:
        by_command(tool(tmp_path, extra), str(scan))
    assert "no licence" not in extra or "no licence" in error.value.reason
    row = check_scan(Scan("d/a", "d", "d/a", "", "T1w", "T1w", str(scan)), voxels=True)
    with pytest.raises(InputError, match="no session could be prepared") as error:
        prepare(write_index([row], tmp_path / "i.parquet"), tmp_path / "s", spacing="4", mask=tool(tmp_path, extra), workers=1)
    assert what in str(error.value)


def test_commands_that_cannot_be_run(tmp_path: Path) -> None:
    for command in ("hed", "synthstrip {in}", "x '{in} {out}", ""):
        with pytest.raises(ConfigError):
            check_command(command)
    with pytest.raises(MissingDependency, match="no program"):
        check_command("surely-not-there {in} {out}")
    with pytest.raises(MissingDependency, match="cannot be run"):
        by_command("surely-not-there {in} {out}", "x.nii")
    with pytest.raises(ConfigError):
        prepare(tmp_path / "i.parquet", tmp_path / "s", mask="brain")
