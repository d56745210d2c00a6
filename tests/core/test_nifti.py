"""Bad files are told, headers are kept bit for bit."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from neuroprior.core import headers, nifti
from neuroprior.core.errors import InputError
from neuroprior.core.volume import Volume


def array(shape: tuple[int, ...] = (6, 7, 8)) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)


def saved(path: Path, data: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def patched(path: Path, **header: Any) -> Path:
    """The file with header fields overwritten on disk, past every check of nibabel."""
    raw = bytearray(path.read_bytes())
    head = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in header.items():
        head[name] = value
    raw[:348] = head.binaryblock
    path.write_bytes(bytes(raw))
    return path


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.nii.gz", array((20, 20, 20)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"x\.nii\.gz"):
        nifti.read_scan(path)


def test_a_file_that_is_no_image_is_told(tmp_path: Path) -> None:
    for name, content in (
        ("a.nii.gz", b"not gzip"),
        ("b.nii", b"short"),
        ("c.nii.gz", gzip.compress(b"x" * 1000)),
        ("d.nii", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            headers.inspect_header(tmp_path / name)
    with pytest.raises(InputError, match="absent"):
        headers.inspect_header(tmp_path / "absent.nii")


@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (5, 6), (5, 6, 1)])
def test_what_is_no_volume_is_told(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="x.nii"):
        nifti.read_scan(saved(tmp_path / "x.nii", array(shape)))


def test_a_trailing_axis_of_one_is_fine(tmp_path: Path) -> None:
    volume, _ = nifti.read_scan(saved(tmp_path / "x.nii", array((5, 6, 7, 1))))
    assert volume.shape == (5, 6, 7)


@pytest.mark.parametrize("pixdim", [(1, 0, 1, 1), (1, 1, -2, 1), (1, np.nan, 1, 1)])
def test_an_impossible_spacing_is_told(tmp_path: Path, pixdim: tuple[float, ...]) -> None:
    path = saved(tmp_path / "x.nii", array())
    values = np.ones(8, dtype=np.float32)
    values[:4] = pixdim
    with pytest.raises(InputError, match="x.nii"):
        headers.inspect_header(patched(path, pixdim=values, sform_code=0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_told_or_set_to_zero(tmp_path: Path, value: float) -> None:
    data = array()
    data[1, 2, 3] = value
    path = saved(tmp_path / "x.nii", data)
    with pytest.raises(InputError, match=r"(?i)nan|finite"):
        nifti.read_scan(path)
    volume, notes = nifti.read_scan(path, nonfinite="zero")
    assert volume.voxels[1, 2, 3] == 0
    assert notes


def test_a_constant_volume_is_found(tmp_path: Path) -> None:
    assert nifti.check_voxels(Volume(np.full((4, 4, 4), 7.0, dtype=np.float32), np.eye(4)))
    assert not nifti.check_voxels(Volume(array((4, 4, 4)), np.eye(4)))


def test_axes_that_are_not_orthonormal_are_repaired_and_told(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1, 1, 1])
    affine[0, 1] = 0.05
    header = headers.inspect_header(saved(tmp_path / "x.nii", array(), affine))
    assert any("orthogonal" in note for note in header.notes)
    directions = header.affine[:3, :3] / np.linalg.norm(header.affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)


def test_rounding_in_the_affine_is_silent(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1, 1, 1])
    affine[0, 1] = 5e-7
    assert not headers.inspect_header(saved(tmp_path / "x.nii", array(), affine)).notes


def test_forms_that_disagree_are_told(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(array(), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 5
    image.set_qform(moved, 1)
    image.set_sform(np.eye(4), 1)
    nibabel.save(image, tmp_path / "x.nii")
    header = headers.inspect_header(tmp_path / "x.nii")
    assert any("qform" in note and "sform" in note for note in header.notes)
    np.testing.assert_array_equal(header.affine, np.eye(4))


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.nii", array())

    def closed(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", closed)
    monkeypatch.setattr(Path, "open", closed)
    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(InputError, match="permission"):
        nifti.read_scan(path)


def test_labels_stored_as_floats_are_rounded_or_told(tmp_path: Path) -> None:
    labels = np.zeros((4, 4, 4), dtype=np.float32)
    labels[1] = 2.0004
    volume, notes = nifti.read_labels(saved(tmp_path / "x.nii", labels))
    assert np.issubdtype(volume.voxels.dtype, np.integer)
    assert set(np.unique(volume.voxels)) == {0, 2}
    assert notes
    labels[2] = 0.4
    with pytest.raises(InputError, match=r"0\.4"):
        nifti.read_labels(saved(tmp_path / "x.nii", labels))


def test_voxels_are_nibabels(real_data: Path) -> None:
    for path in [
        *sorted((real_data / "openms-long").rglob("*_FLAIR.nii.gz"))[:3],
        *sorted((real_data / "stroke-cstar").rglob("*.nii.gz")),
    ]:
        image = nibabel.load(path)
        volume, _ = nifti.read_scan(path)
        np.testing.assert_allclose(volume.voxels, np.asarray(image.dataobj, dtype=np.float32), rtol=1e-6)
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-4)


def orientations() -> list[np.ndarray]:
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((-1, 1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[list(order)] * signs * np.array([1.0, 1.5, 2.0])
            affine[:3, 3] = (-20, 30, 4)
            found.append(affine)
    for seed in range(12):
        affine = found[seed * 4].copy()
        affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() @ affine[:3, :3]
        found.append(affine)
    return found


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1), (3, 4)])
def test_what_is_written_like_a_scan_has_its_header_bit_for_bit(tmp_path: Path, codes: tuple[int, int]) -> None:
    for number, affine in enumerate(orientations()):
        image = nibabel.Nifti1Image((array() * 10).astype(np.int16), affine)
        image.set_qform(affine, codes[0])
        image.set_sform(affine, codes[1])
        image.header.set_xyzt_units("mm", "sec")
        image.header["descrip"] = b"a scanner"
        nibabel.save(image, tmp_path / "scan.nii.gz")
        source: Any = nibabel.load(tmp_path / "scan.nii.gz")
        mask = (array() > 100).astype(np.uint8)
        nifti.write_like(tmp_path / "mask.nii.gz", mask, like=tmp_path / "scan.nii.gz", dtype=np.uint8)
        written: Any = nibabel.load(tmp_path / "mask.nii.gz")
        for field in ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                      "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"):  # fmt: skip
            np.testing.assert_array_equal(written.header[field], source.header[field], err_msg=f"{field} of orientation {number}")
        np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
        if number % 6 == 0:
            a, b = sitk.ReadImage(str(tmp_path / "scan.nii.gz")), sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
            assert (a.GetSize(), a.GetOrigin(), a.GetSpacing(), a.GetDirection()) == (
                b.GetSize(),
                b.GetOrigin(),
                b.GetSpacing(),
                b.GetDirection(),
            )


def test_an_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises((InputError, ValueError)):
        nifti.write_like(tmp_path / "y.nii", array((3, 3, 3)), like=saved(tmp_path / "x.nii", array()))


def test_the_fast_way_to_a_header_says_what_the_slow_way_says(tmp_path: Path) -> None:
    """5000 headers: whatever the fast way takes, the slow way takes without a note, with the same facts; and it takes the common ones."""
    from nibabel.nifti1 import Nifti1Header

    rng = np.random.default_rng(0)
    taken = 0
    for n in range(5000):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if n % 3 == 0 else np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
        if n % 3 == 2:  # a little oblique, as scanners are
            turn = turn @ np.linalg.qr(np.eye(3) + rng.normal(size=(3, 3)) * 0.1)[0]
        affine = np.eye(4)
        affine[:3, :3] = turn * rng.uniform(0.4, 5, 3)
        affine[:3, 3] = rng.normal(size=3) * 100
        header = Nifti1Header(endianness="<>"[n % 2])
        header.set_data_shape((*(int(k) for k in rng.integers(2, 200, 3)), *((1,) if n % 7 == 0 else ())))
        header.set_data_dtype(rng.choice([np.uint8, np.int16, np.float32, np.float64, np.int64]))
        header.set_qform(affine, code=int(rng.integers(0, 3)))
        header.set_sform(affine, code=int(rng.integers(0, 3)))
        header["magic"] = b"n+1"
        header["vox_offset"] = 352
        if n % 5 == 0:  # something to say
            field = rng.choice(["srow_x", "quatern_b", "qoffset_y", "pixdim", "xyzt_units", "dim", "pixdim0", "shear", "nan"])
            if field == "pixdim":
                header["pixdim"][2] *= 1.5
            elif field == "pixdim0":
                header["pixdim"][0] *= -1
            elif field == "xyzt_units":
                header["xyzt_units"] = 1
            elif field == "dim":
                header["dim"][3] = 1
            elif field == "shear":
                header["srow_x"][1] += float(rng.choice([1e-6, 1e-4, 1e-2]))
            elif field == "nan":
                header["srow_z"][2] = np.nan
            elif field == "srow_x":
                header[field][0] += 0.3
            else:
                header[field] = float(header[field]) + 0.4
        start = header.structarr.tobytes() + bytes(4)
        fast = headers._plain(start)
        if fast is None:
            continue
        taken += 1
        slow = headers.judge(headers.parse(start, tmp_path / "x.nii"), tmp_path / "x.nii")
        assert slow.notes == ()
        assert (fast[0].shape, fast[0].orientation, fast[0].dtype) == (slow.shape, slow.orientation, slow.dtype)
        assert (fast[0].qform_code, fast[0].sform_code) == (slow.qform_code, slow.sform_code)
        np.testing.assert_allclose(fast[0].affine, slow.affine, rtol=0, atol=0)
        np.testing.assert_allclose(fast[0].spacing_mm, slow.spacing_mm, rtol=1e-12)
        assert fast[1] == headers.length(headers.parse(start, tmp_path / "x.nii"))
    assert taken > 1200


def test_a_qfac_of_0_counts_as_1(tmp_path: Path) -> None:
    """The standard says so, and converters write it; nibabel's own reader mends it with a warning."""
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_shape((20, 21, 22))
    header.set_zooms((9, 9, 9))
    header.set_qform(np.array([[-9.0, 0, 0, 5], [0, 9, 0, 6], [0, 0, 9, 7], [0, 0, 0, 1]]), code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    wanted = np.diag([-9.0, 9, -9, 1])  # qfac 1: a half turn about y instead of a mirror
    wanted[:3, 3] = [5, 6, 7]
    path = tmp_path / "x.nii"
    for qfac, affine in ((0.0, wanted), (-1.0, header.get_qform())):
        header["pixdim"][0] = qfac
        path.write_bytes(header.structarr.tobytes() + bytes(4) + bytes(4 * 20 * 21 * 22))
        np.testing.assert_allclose(headers.inspect_header(path).affine, affine, atol=1e-5)


@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.mgz"])
@pytest.mark.parametrize("block", [1, 5000, 1 << 24])
def test_a_coarse_look_is_every_nth_voxel_and_counts_all(name: str, block: int, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(100, 20, (57, 44, 39)).astype(np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1] = np.nan, -5000
    affine = np.array([[0, -1.3, 0, 5], [1.0, 0, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    kind = nibabel.MGHImage if name.endswith("mgz") else nibabel.Nifti1Image
    nibabel.save(kind(voxels, affine), tmp_path / name)
    whole, counted = nifti.read_surveyed(tmp_path / name)
    coarse, told = nifti.read_coarse(tmp_path / name, 3.0, block=block)
    assert told == counted == nifti.survey(tmp_path / name, block=block)
    assert (told.n_nan, told.low) == (1, -5000)
    assert np.array_equal(coarse.voxels, whole.voxels[::3, ::2, ::2])
    assert np.allclose(coarse.affine @ [4, 5, 6, 1], whole.affine @ [12, 10, 12, 1])
