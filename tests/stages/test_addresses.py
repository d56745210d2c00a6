"""The river with its raw data and its store at addresses: the same rows, the same store, the same samples."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from neuroprior.data.index import read_index, read_table
from neuroprior.data.mirror import MANIFEST
from neuroprior.stages.index import index

MINE = {"path", "brain_mask", "labels", "mtime_ns", "fingerprint", "source"}


@pytest.fixture
def raw(heads: Path, tmp_path: Path) -> Path:
    place = tmp_path / "there/raw"
    shutil.copytree(heads, place)
    return place


def facts(path: Path) -> list[dict[str, object]]:
    return [{name: cell for name, cell in row.items() if name not in MINE} for row in read_table(path)[0].to_pylist()]


def test_an_index_of_an_address_says_what_one_of_the_folder_says(raw: Path, tmp_path: Path) -> None:
    url = f"file://{raw}"
    here = index([raw], tmp_path / "a.parquet", workers=1)
    there = index([url], tmp_path / "b.parquet", workers=2)
    assert there.datasets == here.datasets
    assert facts(tmp_path / "b.parquet") == facts(tmp_path / "a.parquet")
    rows = {row.scan: row for row in read_index(tmp_path / "b.parquet")}
    for row in read_index(tmp_path / "a.parquet"):
        other = rows[row.scan]
        assert other.path == f"{url}/{Path(row.path).relative_to(raw)}"
        assert other.labels == {name: f"{url}/{Path(path).relative_to(raw)}" for name, path in row.labels.items()}
    assert any(row.labels for row in rows.values())
    scans = list((tmp_path / "b.mirror").rglob("*.nii.gz"))
    assert scans
    assert all(path.stat().st_blocks == 0 for path in scans)


def test_what_did_not_change_there_is_kept(raw: Path, tmp_path: Path) -> None:
    out, url = tmp_path / "b.parquet", f"file://{raw}"
    total = len(facts(out)) if index([url], out, workers=1) else 0
    assert index([url], out, workers=1).reused == total
    image = sorted(raw.rglob("*T1w.nii.gz"))[0]
    image.write_bytes(b"no image any more")
    again = index([url], out, workers=1)
    assert again.reused == total - 1
    assert again.bad == 1
    image.unlink()
    assert len(facts(out)) - 1 == len(read_index(index([url], out, workers=1).out))
    assert not list((tmp_path / "b.mirror").rglob(image.name))


def test_copies_at_an_address_are_told_from_scans_that_only_look_alike(tmp_path: Path, heads: Path) -> None:
    url = f"memory://{tmp_path.name}/raw"
    files, root = fsspec.core.url_to_fs(url)
    image = sorted(heads.rglob("*T1w.nii.gz"))
    for number, content in enumerate((image[0].read_bytes(), image[1].read_bytes(), image[0].read_bytes())):
        files.pipe_file(f"{root}/sub-{number}/anat/sub-{number}_T1w.nii.gz", content)
    index([url], tmp_path / "i.parquet", workers=1)
    told = {row.scan: row.checks["duplicates"] for row in read_index(tmp_path / "i.parquet")}
    assert {scan.rpartition("/")[2]: text.partition(" ")[0] for scan, text in told.items()} == {
        "sub-0_T1w": "ok", "sub-1_T1w": "ok", "sub-2_T1w": "equals",
    }  # fmt: skip


def test_a_manifest_is_not_data(raw: Path, tmp_path: Path) -> None:
    index([f"file://{raw}"], tmp_path / "b.parquet", workers=1)
    assert len(list((tmp_path / "b.mirror").rglob(MANIFEST))) == 1
    assert not any(MANIFEST in row.path for row in read_index(tmp_path / "b.parquet"))
