"""The look for a face: on a head of balls made here, whole, defaced and stripped, in all orientations; and on real heads."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import nifti
from neuroprior.core.volume import Volume
from neuroprior.data.faces import look


def head(*, face: bool = True, skull: bool = True, below: int = 200) -> Volume:
    """At 4 mm in RAS: a cranium, and a jaw below and in front of it."""
    x, y, z = (axis * 4.0 for axis in np.mgrid[:48, :60, : below // 4])
    z = z + 4 - below
    if skull:
        voxels = 100.0 * (((x - 96) / 72) ** 2 + ((y - 130) / 90) ** 2 + ((z + 62) / 62) ** 2 < 1)
    else:
        voxels = 100.0 * (((x - 96) / 65) ** 2 + ((y - 130) / 82) ** 2 + ((z + 60) / 60) ** 2 < 1)
    if face and skull:
        voxels[(np.abs(x - 96) < 50) & (y > 140) & (y < 205) & (z < -70) & (z > -190)] = 80
    return Volume(voxels.astype(np.float32), np.diag([4.0, 4, 4, 1]))


@pytest.mark.parametrize(("made", "verdict"), [
    (head(), "face"), (head(face=False), "none"), (head(skull=False), "none"), (head(below=120), "cannot tell"),
    (Volume(np.zeros((20, 20, 20), np.float32), np.eye(4)), "cannot tell"),
])  # fmt: skip
def test_what_is_seen(made: Volume, verdict: str) -> None:
    assert look(made).verdict == verdict


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_it_does_not_depend_on_the_axes(order: tuple[int, int, int], flip: tuple[int, int, int]) -> None:
    made = head()
    turned = made.voxels.transpose(order)[tuple(slice(None, None, sign) for sign in flip)]
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * flip * 4
    assert look(Volume(turned, affine)).share == pytest.approx(look(made).share, abs=0.03)


def test_real_heads(real_data: Path) -> None:
    """IXI was published with faces; cut off below the brow they have none. ds002748 was published without."""
    files = sorted((real_data / "ixi-2mm").glob("sub-*/ses-*/anat/*_T1w.nii.gz"))
    assert len(files) == 30
    for file in files:
        volume, _ = nifti.read_scan(file)
        assert look(volume).verdict == "face", file.name
    assert volume.orientation == "PSR"
    cut = volume.voxels.copy()
    tissue = np.flatnonzero((cut > 0.12 * np.percentile(cut[cut > 0], 98)).any(axis=(0, 2)))
    cut[: cut.shape[0] // 2, : tissue[-1] - 45] = 0  # the front half, from 90 mm below the top
    assert look(Volume(cut, volume.affine)).verdict == "none"
    for file in sorted((real_data / "ds002748").glob("sub-*/ses-*/anat/*_T1w.nii.gz")):
        assert look(nifti.read_scan(file)[0]).verdict == "none", file.name
