"""Fingerprints: what leaves each hash as it is, which copies the vector finds, and that people differ."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from neuroprior.core import nifti
from neuroprior.core.errors import ArtifactError
from neuroprior.core.grids import canonical_grid, grid_of
from neuroprior.core.resampling import resample
from neuroprior.core.volume import Volume
from neuroprior.data import fingerprint


@pytest.fixture(scope="module")
def scans(heads: Path) -> list[Volume]:
    return [nifti.read_scan(path)[0] for path in sorted(heads.glob("sub-*/**/anat/*_T1w.nii.gz"))]


def turned(volume: Volume, axes: str) -> Volume:
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(volume.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    voxels = np.ascontiguousarray(nibabel.orientations.apply_orientation(volume.voxels, turn))
    return Volume(voxels, volume.affine @ nibabel.orientations.inv_ornt_aff(turn, volume.shape))


def test_a_re_saved_file_has_the_same_hashes(scans: list[Volume], tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(scans[0].voxels.astype(np.float64), scans[0].affine + np.eye(4) * 0)
    image.header["descrip"] = b"copied"
    nibabel.save(image, tmp_path / "copy.nii")
    copy, original = fingerprint.of_file(str(tmp_path / "copy.nii")), fingerprint.of_volume(scans[0])
    assert (copy.content, copy.oriented, copy.values) == (original.content, original.oriented, original.values)
    assert fingerprint.of_volume(scans[1]).content != original.content


@pytest.mark.parametrize("axes", ["LPI", "SRA", "PIL"])
def test_other_axes_leave_two_hashes_and_the_vector(scans: list[Volume], axes: str) -> None:
    one, other = fingerprint.of_volume(scans[0]), fingerprint.of_volume(turned(scans[0], axes))
    assert one.content != other.content and one.oriented == other.oriented and one.values == other.values
    assert one.vector is not None and other.vector is not None
    assert one.vector @ other.vector > 0.99
    lying = fingerprint.of_volume(Volume(np.ascontiguousarray(scans[0].voxels[::-1]), scans[0].affine))
    assert lying.oriented != one.oriented and lying.values == one.values


def test_the_vector_finds_altered_copies_and_tells_people_apart(scans: list[Volume]) -> None:
    vectors = [fingerprint.vector(scan) for scan in scans]
    products = [float(a @ b) for a, b in combinations(vectors, 2)]  # type: ignore[operator]  # heads are found
    assert max(products) < 0.6
    draw = np.random.default_rng(0)
    for scan, own in zip(scans, vectors, strict=True):
        v, affine = scan.voxels, scan.affine
        assert own is not None and own.shape == (1485,) and np.linalg.norm(own) == pytest.approx(1, abs=1e-5)
        moved = affine.copy()
        moved[:3, 3] += affine[:3, :3] @ np.full(3, 2)
        coarse = canonical_grid(grid_of(scan), 5.2)
        noise = draw.normal(0, 0.05 * v[v > v.mean()].mean(), (2, *v.shape))
        copies = {
            "rescaled": Volume(v * np.float32(0.03) + 7, affine), "noise": Volume(np.hypot(v + noise[0], noise[1]).astype(np.float32), affine),
            "crop": Volume(v[2:-2, 2:-2, 2:-2].copy(), moved), "shift": Volume(ndimage.shift(v, (0.4, -0.3, 0.2), order=1), affine),
            "resampled": Volume(resample(scan, coarse), coarse.affine),
        }  # fmt: skip
        for name, copy in copies.items():
            found = fingerprint.vector(copy)
            assert found is not None and float(found @ own) > fingerprint.SAME, name


def test_real_people_are_told_apart_and_their_second_sessions_found(real_data: Path) -> None:
    files = sorted(real_data.glob("ixi-2mm/sub-*/**/*_T1w.nii.gz"))[:30] + sorted(
        real_data.glob("openms-*/sub-*/**/anat/*_FLAIR.nii.gz")
    )
    who = [file.name.split("_")[0] for file in files]
    vectors = np.stack([fingerprint.of_file(str(file)).vector for file in files])  # type: ignore[misc]
    product = vectors @ vectors.T
    other = np.array(who)[:, None] != np.array(who)[None]
    assert product[other].max() < 0.65 < fingerprint.SAME
    again = [k for k, name in enumerate(who) if name == "sub-L12"]
    assert len(again) == 2 and product[again[0], again[1]] > fingerprint.SAME


def test_what_has_no_head_has_no_vector_but_a_reason(tmp_path: Path) -> None:
    flat = fingerprint.of_volume(Volume(np.full((20, 20, 20), 3.0, np.float32), np.eye(4)))
    assert flat.vector is None and flat.content and "one value" in flat.reason
    (tmp_path / "bad.nii.gz").write_bytes(b"no scan")
    bad = fingerprint.of_file(str(tmp_path / "bad.nii.gz"))
    assert bad.content is None and bad.reason
    assert fingerprint.of_file(str(tmp_path / "absent.nii")).reason


def test_the_cache_reads_only_what_has_changed_and_goes_on(heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    paths = []
    for number, path in enumerate(sorted(heads.glob("sub-*/**/anat/*_T1w.nii.gz"))[:6]):
        paths.append(str(shutil.copy(path, tmp_path / f"{number}.nii.gz")))
    read: list[str] = []
    real = fingerprint.of_file

    def counted(path: str) -> fingerprint.Fingerprint:
        if len(read) == 4 and not read[-1].startswith("again"):
            read.append("again")
            raise KeyboardInterrupt
        read.append(path)
        return real(path)

    monkeypatch.setattr(fingerprint, "of_file", counted)
    monkeypatch.setattr(fingerprint, "PART", 3)
    cache = tmp_path / "x.fingerprints.parquet"
    with pytest.raises(KeyboardInterrupt):
        fingerprint.gather(paths, cache, progress=False)
    assert not cache.exists() and len(fingerprint.missing(paths, cache)) == 2
    first = fingerprint.gather(paths, cache, progress=False)
    assert [name for name in read if name != "again"] == paths  # each once
    assert not cache.with_name("x.fingerprints.parts").exists()
    os.utime(paths[0], ns=(1, 1))
    assert fingerprint.missing(paths, cache) == paths[:1]
    again = fingerprint.gather(paths, cache, progress=False)
    assert read.count(paths[0]) == 2 and read.count(paths[1]) == 1
    one, other = first[paths[1]].vector, again[paths[1]].vector
    assert one is not None and other is not None
    np.testing.assert_allclose(one, other, atol=1e-3)
    (tmp_path / "y.parquet").write_text("no table")
    with pytest.raises(ArtifactError, match="cannot be read"):
        fingerprint.gather(paths, tmp_path / "y.parquet", progress=False)


def test_a_file_that_ends_its_reader_is_named_and_read_again_another_time(
    heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(path) for path in sorted(heads.rglob("*_T1w.nii.gz"))[:3]]
    read = fingerprint.of_file

    def bad(path: str) -> fingerprint.Fingerprint:
        if path == paths[1]:
            raise MemoryError
        return read(path)

    monkeypatch.setattr(fingerprint, "of_file", bad)
    found = fingerprint.gather(paths, tmp_path / "prints.parquet", progress=False)
    assert [found[path].vector is None for path in paths] == [False, True, False]
    assert "out of memory" in found[paths[1]].reason
    assert fingerprint.missing(paths, tmp_path / "prints.parquet") == [paths[1]]
    monkeypatch.setattr(fingerprint, "of_file", read)
    assert fingerprint.gather(paths, tmp_path / "prints.parquet", progress=False)[paths[1]].vector is not None


def test_similar_rows_are_found_block_by_block() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=(50, 1485)).astype(np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    found = {(i, j) for i, j, _ in fingerprint.similar(a, a[10:20], block=7)}
    assert found == {(k, k - 10) for k in range(10, 20)}
