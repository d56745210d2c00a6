"""Raw datasets at an address look like folders of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from neuroprior.core import formats, nifti, places
from neuroprior.core.errors import ArtifactError, InputError
from neuroprior.core.records import Scan
from neuroprior.data.index import to_table
from neuroprior.data.mirror import MANIFEST, address_of, mirror, with_addresses, with_mirrors


@pytest.fixture
def url(tmp_path: Path) -> str:
    place = f"memory://{tmp_path.name}/data/ds1"
    files, root = fsspec.core.url_to_fs(place)
    files.pipe_file(f"{root}/dataset_description.json", b'{"Name": "x"}')
    files.pipe_file(f"{root}/README", b"hello")
    files.pipe_file(f"{root}/sub-01/anat/sub-01_T1w.nii.gz", bytes(5_000_000))
    return place


def test_texts_are_brought_and_scans_are_placeholders(url: str, tmp_path: Path) -> None:
    root = mirror(url, tmp_path / "m.mirror")
    assert root.name == "ds1"
    assert (root / "dataset_description.json").read_text() == '{"Name": "x"}'
    assert (root / "README").read_text() == "hello"
    scan = root / "sub-01/anat/sub-01_T1w.nii.gz"
    assert scan.stat().st_size == 5_000_000
    assert scan.stat().st_blocks * 512 < 100_000
    assert address_of(str(scan)) == f"{url}/sub-01/anat/sub-01_T1w.nii.gz"
    assert address_of("/elsewhere/x") == "/elsewhere/x"


def test_only_what_changed_is_renewed_and_what_is_gone_goes(url: str, tmp_path: Path) -> None:
    root = mirror(url, tmp_path / "m.mirror")
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != MANIFEST}
    assert mirror(url, tmp_path / "m.mirror") == root
    assert {path: path.stat().st_mtime_ns for path in times} == times
    files, there = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{there}/README", b"hello again")
    files.pipe_file(f"{there}/sub-02/anat/sub-02_T1w.nii.gz", b"x")
    files.rm_file(f"{there}/sub-01/anat/sub-01_T1w.nii.gz")
    mirror(url, tmp_path / "m.mirror")
    assert (root / "README").read_text() == "hello again"
    assert not (root / "sub-01").exists()
    assert (root / "sub-02/anat/sub-02_T1w.nii.gz").stat().st_size == 1
    same = root / "dataset_description.json"
    assert same.stat().st_mtime_ns == times[same]
    assert (root / "README").stat().st_mtime_ns != times[root / "README"]


def test_names_that_lead_out_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = {
        "../out.json": {"size": 2},
        "/etc/x.json": {"size": 2},
        "a/../../b.tsv": {"size": 2},
        MANIFEST: {"size": 2},
        "ok.nii": {"size": 3},
    }
    monkeypatch.setattr(places.Folder, "listing", lambda self, under="": listing)
    root = mirror(f"memory://{tmp_path.name}/x", tmp_path / "m.mirror")
    assert sorted(path.name for path in (tmp_path / "m.mirror").rglob("*") if path.is_file()) == [MANIFEST, "ok.nii"]
    assert root.is_dir()
    assert caplog.text.count("cannot be used here") == 4


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing at this address"):
        mirror(f"memory://{tmp_path.name}/none", tmp_path / "m.mirror")


def test_a_file_is_here_while_it_is_read(url: str, tmp_path: Path) -> None:
    with places.local(f"{url}/README") as path:
        assert Path(path).read_text() == "hello"
        assert os.path.basename(path) == "README"
    assert not Path(path).exists()
    with places.local(str(tmp_path / "x")) as path:
        assert path == str(tmp_path / "x")
    with pytest.raises(ArtifactError, match="missing there"), places.local(f"{url}/no.json"):
        raise AssertionError


def test_a_detached_header_comes_with_its_voxels(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/itk"
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(
        f"{root}/a.mhd", b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    )
    files.pipe_file(f"{root}/a.raw", bytes(range(8)))
    root_here = mirror(url, tmp_path / "m.mirror")
    assert formats.voxel_file(root_here / "a.mhd") == root_here / "a.raw"  # so that a change of the voxels is seen
    with places.local(f"{url}/a.mhd") as path:
        assert nifti.read_scan(path)[0].voxels.ravel(order="F").tolist() == list(range(8))


def test_an_address_that_tells_no_state_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places.Folder, "listing", lambda self, under="": {"a.nii": {"size": 3}})
    mirror(f"memory://{tmp_path.name}/x", tmp_path / "m.mirror")
    assert "neither times nor tags" in caplog.text
    caplog.clear()
    monkeypatch.setattr(places.Folder, "listing", lambda self, under="": {"a.nii": {"size": 3, "ETag": "x"}})
    mirror(f"memory://{tmp_path.name}/x", tmp_path / "m.mirror")
    assert "neither times nor tags" not in caplog.text


def test_one_address_may_lie_below_another(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "m.mirror"
    inner, outer = mirror(url, folder), mirror(url.rpartition("/")[0], folder)
    paths = [f"{inner}/sub-01/anat/sub-01_T1w.nii.gz", f"{outer}/ds1/sub-01/anat/sub-01_T1w.nii.gz"]
    scans = [Scan(f"d/{n}", "d", "d/a", "", "T1w", "T1w", path, labels={"x": path}) for n, path in enumerate(paths)]
    told = with_addresses(to_table(scans), folder)
    assert told.column("path").to_pylist() == [f"{url}/sub-01/anat/sub-01_T1w.nii.gz"] * 2
    back = with_mirrors(told, folder)
    assert back.column("path").to_pylist() == [paths[0]] * 2
    assert paths[0] in back.column("labels")[1].as_py()
