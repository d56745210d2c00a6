"""MGZ, MetaImage and NRRD against nibabel and SimpleITK: the same voxels in the same place as the NIfTI they were made from."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroprior.core import nifti
from neuroprior.core.errors import InputError

sitk = pytest.importorskip("SimpleITK", reason="the extra `itk` is not installed")

ENDINGS = (".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr")


def volume(dtype: str = "int16") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    voxels = rng.integers(0, 200, (5, 6, 7)).astype(dtype)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * [1.0, 1.5, 3.0]
    affine[:3, 3] = [-10, 20, 5]
    return voxels, affine


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Written by nibabel (mgz) or, through a NIfTI that SimpleITK reads, by SimpleITK."""
    if path.suffix in (".mgz", ".mgh"):
        nibabel.save(nibabel.MGHImage(voxels, affine), path)
        return path
    between = path.with_name("between.nii")
    nibabel.save(nibabel.Nifti1Image(voxels, affine), between)
    sitk.WriteImage(sitk.ReadImage(str(between)), str(path))
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_voxels_in_the_same_place(ending: str, dtype: str, tmp_path: Path) -> None:
    voxels, affine = volume(dtype)
    path = save(tmp_path / f"scan{ending}", voxels, affine)
    header = nifti.inspect_header(path)
    assert (header.shape, header.dtype, header.notes) == ((5, 6, 7), dtype, ())
    np.testing.assert_allclose(header.affine, affine, atol=1e-4)
    read, _ = nifti.read_scan(path)
    np.testing.assert_array_equal(read.voxels, voxels.astype(np.float32))
    labels, _ = nifti.read_labels(path)
    np.testing.assert_array_equal(labels.voxels, voxels.astype(int))
    out = tmp_path / "like.nii.gz"
    nifti.write_like(out, (voxels > 100).astype(np.uint8), like=path)
    made = nibabel.load(out)
    np.testing.assert_allclose(made.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(made.dataobj), voxels > 100)


def test_the_header_of_an_mgz_is_read_without_its_voxels(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.mgz", *volume())
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:300]))
    assert nifti.inspect_header(path).shape == (5, 6, 7)
    with pytest.raises(InputError, match="cut short"):
        nifti.read_scan(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_are_told(ending: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"scan{ending}", *volume())
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError):
        nifti.read_scan(path)
    path.write_bytes(b"")
    with pytest.raises(InputError):
        nifti.inspect_header(path)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_a_header_may_not_name_voxels_elsewhere(ending: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = save(tmp_path / f"in/scan{ending}", *volume())
    text = path.read_text()
    (data,) = [p for p in path.parent.iterdir() if p.suffix in (".raw", ".zraw", ".gz") and p.name.startswith("scan")]
    data.rename(tmp_path / data.name)
    with pytest.raises(InputError, match="not there"):
        nifti.read_scan(path)
    for where in (f"../{data.name}", str(tmp_path / data.name)):
        path.write_text(text.replace(data.name, where))
        with pytest.raises(InputError, match="outside its folder"):
            nifti.read_scan(path)
