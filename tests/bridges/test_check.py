"""Broken entry points are caught, each with a message that says what is wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from neuroprior.bridges import _check, _made_up
from neuroprior.bridges.challenge import contract
from neuroprior.core import artifacts
from neuroprior.core.errors import ArtifactError
from neuroprior.protocols import read

INFO = {"task": {"positive": "yes"}, "weights_sha256": "0" * 64}
HEAD = f"""#!{sys.executable}
import sys
words = sys.argv[1:]
given = dict(zip(words[::2], words[1::2]))
out, first = given.pop("--output"), next(iter(given.values()))
"""
MASK = (
    HEAD
    + "import nibabel as nib, numpy as np\nimage = nib.load(first)\nmask = (np.asarray(image.dataobj) > 300).astype(np.uint8)\naffine = image.affine\n"
)
SAVE = "nib.save(nib.Nifti1Image(mask, affine), out)\n"
VECTOR = HEAD + "import numpy as np\nvector = np.linspace(0, 1, 16).astype(np.float32)\n"


def folder_of(tmp_path: Path, number: int, script: str) -> Path:
    """An exported folder whose predict is ``script``."""
    protocol = read("fomo26")
    artifacts.write_json(tmp_path / "task.json", contract(protocol, protocol.task(number), INFO))
    for name in ("Apptainer.def", "requirements.txt", "README.md"):
        (tmp_path / name).write_text("")
    (tmp_path / "predict").write_text(script)
    os.chmod(tmp_path / "predict", 0o755)
    return tmp_path


GOOD = {
    "mask": (2, MASK + SAVE),
    "probability": (1, HEAD + "open(out, 'w').write('0.25')\n"),
    "number": (3, HEAD + "open(out, 'w').write('61.5\\n')\n"),
    "embedding": (6, VECTOR + "np.save(out, vector)\n"),
}

BROKEN = {
    "float mask": (2, MASK + "mask = mask.astype(np.float32)\n" + SAVE, "integers", "found float32"),
    "label 3": (4, MASK + "mask[mask > 0] = 3\n" + SAVE, "labels", "found [3]"),
    "half a label": (2, MASK + "mask = mask * np.float32(0.5)\n" + SAVE, "labels", "found 0.5"),
    "NaN in the mask": (2, MASK + "mask = mask.astype(np.float32); mask[0] = np.nan\n" + SAVE, "labels", "NaN"),
    "wrong affine": (2, MASK + "affine = affine.copy(); affine[0, 3] += 2\n" + SAVE, "affine", "differs by up to 2"),
    "RAS affine": (2, MASK + "affine = np.diag([4, 4, 4, 1.0])\n" + SAVE, "affine", "differs by up to"),
    "wrong shape": (2, MASK + "mask = mask[:-1]\n" + SAVE, "shape", "found (43, 52, 46)"),
    "no NIfTI": (2, HEAD + "open(out, 'w').write('hello')\n", "readable", "a NIfTI is expected"),
    "probability 1.2": (1, HEAD + "open(out, 'w').write('1.2')\n", "range", "found 1.2"),
    "NaN": (1, HEAD + "open(out, 'w').write('nan')\n", "one number", "found nan"),
    "NaN age": (3, HEAD + "open(out, 'w').write('nan')\n", "one number", "found nan"),
    "two numbers": (1, HEAD + "open(out, 'w').write('0.3 0.7')\n", "one number", "found 2: '0.3 0.7'"),
    "a word": (3, HEAD + "open(out, 'w').write('old')\n", "one number", "the word 'old'"),
    "2-D embedding": (6, VECTOR + "np.save(out, vector[None])\n", "one axis", "found shape (1, 16)"),
    "float64 embedding": (6, VECTOR + "np.save(out, vector.astype(float))\n", "float32", "found float64"),
    "NaN embedding": (6, VECTOR + "vector[3] = np.nan\nnp.save(out, vector)\n", "finite", "found 1 of 16"),
    "pickled embedding": (6, VECTOR + "np.save(out, np.array([{}]), allow_pickle=True)\n", "readable", "a .npy array is expected"),
    "length by size": (6, VECTOR + "import os\nnp.save(out, vector[: 8 + os.path.getsize(first) % 7])\n", "constant length", "one length"),
    "opens a socket": (
        1,
        HEAD + "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError:\n    pass\nopen(out, 'w').write('0.5')\n",
        "network",
        "192.0.2.1",
    ),
    "looks a name up": (1, HEAD + "import socket\nsocket.getaddrinfo('example.org', 443)\n", "network", "example.org"),
    "too slow": (1, HEAD + "import time\ntime.sleep(60)\n", "time", "at most 1.5 s are allowed"),
    "too large": (1, HEAD + "x = bytearray(1_500_000_000); x[::4096] = x[::4096]\nopen(out, 'w').write('0.5')\n", "memory", "at most 1024 MB"),
    "no output": (1, HEAD, "output file", "no output was written"),
    "two outputs": (1, HEAD + "open(out, 'w').write('0.5')\nopen(out + '.log', 'w').write('x')\n", "output file", "answer.txt.log"),
    "fails": (1, HEAD + "raise SystemExit('out of cheese')\n", "exit status", "out of cheese"),
    "trains": (
        1,
        HEAD + "import types\nsys.modules['lightning'] = types.ModuleType('lightning')\nsys.modules['lightning'].__file__ = 'x.py'\nopen(out, 'w').write('0.5')\n",
        "no training code",
        "imported lightning",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_an_entry_point_that_keeps_the_contract_passes(name: str, tmp_path: Path) -> None:
    number, script = GOOD[name]
    found = _check.check(folder_of(tmp_path, number, script), full_size=False)
    assert [row for row in found if row.status == _check.FAILED] == []
    cases = {row.case for row in found} - {"all"}
    assert len(cases) == (3 if number in (1, 2) else 2)
    assert any("oblique" in case for case in cases)
    if number in (1, 2):
        assert any("without the optional" in case for case in cases)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_point_is_caught(name: str, tmp_path: Path) -> None:
    number, script, check, message = BROKEN[name]
    seconds = 1.5 if name == "too slow" else 60
    found = _check.check(folder_of(tmp_path, number, script), seconds=seconds, memory_gb=1.0, full_size=False)
    caught = [row for row in found if row.status == _check.FAILED and row.check == check]
    assert caught, [row for row in found if row.status == _check.FAILED]
    assert any(message in row.message for row in caught), caught
    if check not in ("exit status", "network", "output file"):
        assert {row.check for row in found if row.status == _check.FAILED} <= {check, "integers"}


def test_an_entry_point_that_cannot_be_run_is_told_before_anything_else(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 1, HEAD)
    os.chmod(folder / "predict", 0o644)
    found = _check.check(folder)
    assert [row.message for row in found if row.status == _check.FAILED] == ["predict is not executable; chmod 755 predict"]
    (folder / "requirements.txt").unlink()
    assert any("missing: requirements.txt" in row.message for row in _check.check(folder))
    with pytest.raises(ArtifactError, match=r"task\.json"):
        _check.check(tmp_path / "nowhere")


def test_apptainer_runs_the_same_case_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "export", *GOOD["probability"])
    tools = tmp_path / "tools"
    tools.mkdir()
    fake = tools / "apptainer"
    fake.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/said\nwhile [ "$1" != {folder}/predict.sif ]; do shift; done; shift\nexec {folder}/predict "$@"\n'
    )
    os.chmod(fake, 0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    found = _check.check(folder, full_size=False)
    assert [row.status for row in found if row.check == "apptainer"] == [_check.SKIPPED]
    assert "apptainer build" in next(row.message for row in found if row.check == "apptainer")
    (folder / "predict.sif").write_text("")
    found = _check.check(folder, full_size=False)
    inside = [row for row in found if row.case.startswith("in the image")]
    assert inside
    assert all(row.status == _check.OK for row in inside)
    said = (tmp_path / "said").read_text()
    assert said.startswith("run --bind ")
    assert "--network none" in said


def test_the_made_up_grids_are_what_they_say() -> None:
    import nibabel

    assert nibabel.orientations.aff2axcodes(_made_up.grid_affine("plain")) == ("R", "A", "S")
    assert nibabel.orientations.aff2axcodes(_made_up.grid_affine("odd")) == ("P", "I", "L")
    for grid, (_, spacing) in _made_up.GRIDS.items():
        affine = _made_up.grid_affine(grid)
        np.testing.assert_allclose(nibabel.affines.voxel_sizes(affine), spacing, rtol=1e-6)
        linear = affine[:3, :3] / spacing
        np.testing.assert_allclose(linear.T @ linear, np.eye(3), atol=1e-6)
    assert np.abs(_made_up.grid_affine("oblique")[:3, :3]).min(initial=9, where=~np.eye(3, dtype=bool)) >= 0
    assert nibabel.affines.obliquity(_made_up.grid_affine("oblique")).max() > 0.1
