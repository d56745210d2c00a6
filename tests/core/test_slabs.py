"""Slabs give the whole's voxels, bit for bit."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest

from neuroprior.core.grids import Grid
from neuroprior.core.resampling import resample
from neuroprior.core.slabs import Slabs
from neuroprior.core.volume import Volume

RNG = np.random.default_rng(0)
CODES = ["".join(code) for order in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*order)]


def turned(grid: Grid, code: str) -> Grid:
    """The same field of view stored in another orientation."""
    image = nibabel.Nifti1Image(np.zeros(grid.shape, dtype=np.uint8), grid.affine)
    ornt = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(grid.affine), nibabel.orientations.axcodes2ornt(tuple(code))
    )
    out = image.as_reoriented(ornt)
    x, y, z = out.shape
    return Grid((x, y, z), out.affine)


def joined(source: Grid, target: Grid, values: np.ndarray, thickness: int) -> np.ndarray:
    slabs = Slabs(source, target, thickness)
    out = np.zeros(target.shape, dtype=np.float32)
    lasts = [slab.last for slab in slabs.slabs]
    assert lasts == sorted(lasts), "slabs come in the order in which the source's rows arrive"
    for slab in slabs.slabs:
        out[slab.where] = slabs.sample(slab, values[slab.first : slab.last])
    return out


@pytest.mark.parametrize("code", CODES)
def test_every_orientation(code: str) -> None:
    source = Grid((11, 9, 13), np.diag([2.0, 2.0, 2.0, 1.0]))
    affine = np.diag([1.3, 1.1, 2.7, 1.0])
    affine[:3, 3] = (-1.2, 0.4, 2.0)
    target = turned(Grid((18, 15, 9), affine), code)
    values = RNG.random(source.shape).astype(np.float32)
    whole = resample(Volume(values, source.affine), target)
    for thickness in (1, 4, 100):
        np.testing.assert_array_equal(joined(source, target, values, thickness), whole)


@pytest.mark.parametrize("spacing", [0.5, 1.0, 2.0, 3.7])
def test_every_spacing_and_a_field_of_view_that_is_larger(spacing: float) -> None:
    source = Grid((12, 10, 8), np.diag([2.0, 2.0, 2.0, 1.0]))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -6.0
    target = Grid((int(40 / spacing), int(36 / spacing), int(30 / spacing)), affine)
    values = RNG.random(source.shape).astype(np.float16)
    whole = resample(Volume(values.astype(np.float32), source.affine), target)
    np.testing.assert_array_equal(joined(source, target, values, 3), whole)


def test_grids_that_do_not_meet_have_no_slab() -> None:
    far = np.eye(4)
    far[:3, 3] = 1000
    assert Slabs(Grid((4, 4, 4), np.eye(4)), Grid((4, 4, 4), far), 2).slabs == ()


def test_grids_of_other_axes_are_refused() -> None:
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    with pytest.raises(ValueError, match="share their axes"):
        Slabs(Grid((8, 8, 8), np.eye(4)), Grid((8, 8, 8), turn), 2)
