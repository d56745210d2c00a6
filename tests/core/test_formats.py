"""MGZ, MetaImage and NRRD against nibabel and SimpleITK: the same voxels in the same place as the NIfTI they were made from."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroprior.core import formats, headers, nifti
from neuroprior.core.errors import InputError

sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, which these are compared with, is not installed")

ENDINGS = (".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr")


def volume(dtype: str = "int16") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    voxels = rng.integers(0, 200, (5, 6, 7)).astype(dtype)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * [1.0, 1.5, 3.0]
    affine[:3, 3] = [-10, 20, 5]
    return voxels, affine


def save(path: Path, voxels: np.ndarray, affine: np.ndarray, *, packed: bool = False) -> Path:
    """Written by nibabel (mgz) or, through a NIfTI that SimpleITK reads, by SimpleITK."""
    if path.suffix in (".mgz", ".mgh"):
        nibabel.save(nibabel.MGHImage(voxels, affine), path)
        return path
    between = path.with_name("between.nii")
    nibabel.save(nibabel.Nifti1Image(voxels, affine), between)
    sitk.WriteImage(sitk.ReadImage(str(between)), str(path), useCompression=packed)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_voxels_in_the_same_place(ending: str, dtype: str, packed: bool, tmp_path: Path) -> None:
    voxels, affine = volume(dtype)
    path = save(tmp_path / f"scan{ending}", voxels, affine, packed=packed)
    header = headers.inspect_header(path)
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
    assert headers.inspect_header(path).shape == (5, 6, 7)
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
        headers.inspect_header(path)


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


@pytest.mark.parametrize("space", ["right-anterior-superior", "LPS", "left-anterior-superior"])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_the_worlds_and_byte_orders_of_nrrd(space: str, endian: str, tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=f"{'<' if endian == 'little' else '>'}i2").reshape(3, 4, 5)
    head = f"NRRD0004\n# a comment\ntype: short\ndimension: 3\nspace: {space}\nsizes: 3 4 5\nendian: {endian}\nencoding: raw\nkey:=value\n"
    head += "space directions: (0,2,0) (3,0,0) (0,0,-4)\nspace origin: (10,20,30)\n\n"
    path = tmp_path / "x.nrrd"
    path.write_bytes(head.encode() + voxels.tobytes(order="F"))
    found, _ = nifti.read_scan(path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(found.voxels, sitk.GetArrayFromImage(image).T)
    for index in ((0, 0, 0), (2, 3, 4)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(found.affine @ [*index, 1], [-x, -y, z, 1], atol=1e-6)


def test_other_people_s_odd_headers_are_told(tmp_path: Path) -> None:
    for name, text, reason in (
        ("a.mha", "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementNumberOfChannels = 3\nElementDataFile = LOCAL\n", "single numbers"),
        ("b.mha", "NDims = 3\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", "DimSize"),
        ("c.mhd", "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LIST\n", "list of files"),
        ("d.mha", "NDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", "no volume"),
        ("e.nrrd", "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: ascii\n\n1 2 3", "unusual way"),
        ("f.nrrd", "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 99999\nencoding: raw\n\n1 2 3", "cut short"),
        ("g.nrrd", "NRRD0004\ntype: block\ndimension: 3\n\n", "type"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=reason):
            headers.inspect_header(tmp_path / name)


@pytest.mark.parametrize("ending", ENDINGS)
def test_where_the_voxels_are(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"anything")
    if ending in (".mhd", ".mha"):
        path.write_text("NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = y.raw\n")
    elif ending in (".nhdr", ".nrrd"):
        path.write_text("NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: y.raw\n")
    (tmp_path / "y.raw").write_bytes(bytes(8))
    detached = ending in formats.ITK
    assert formats.voxel_file(path) == (tmp_path / "y.raw" if detached else path)
    (tmp_path / "y.raw").unlink()
    if detached:
        with pytest.raises(InputError, match="not there"):
            formats.voxel_file(path)
        path.write_bytes(
            path.read_bytes()
            .replace(b"ElementDataFile = y.raw", b"ElementDataFile = LOCAL")
            .replace(b"data file: y.raw\n", b"\n")
            + bytes(8)
        )
        assert formats.voxel_file(path) == path
