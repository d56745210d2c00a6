"""The river with its raw data and its store at addresses: the same rows, the same store, the same samples."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from neuroprior.core.errors import ConfigError, InputError
from neuroprior.data import preparing
from neuroprior.data.index import read_index, read_table
from neuroprior.data.mirror import MANIFEST
from neuroprior.data.remote import fetch
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare
from neuroprior.stages.store import store

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


def test_an_index_named_by_a_relative_path_names_addresses_too(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(raw)
    url = f"file://{tmp_path}/link"
    first = index([url], Path("b.parquet"), workers=1)
    assert all(row.path.startswith(f"{url}/sub-") for row in read_index(Path("b.parquet")))
    assert index([url], Path("b.parquet"), workers=1).reused == first.ok + first.warning + first.bad


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


# ----------------------------------------------------------------------------------------------------------------- the store


@pytest.fixture
def river(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """An index of an address, and the address of a store to come."""
    monkeypatch.setenv("NEUROPRIOR_CACHE", str(tmp_path / "cache"))
    index([f"file://{raw}"], tmp_path / "b.parquet", workers=1)
    return tmp_path / "b.parquet", f"file://{tmp_path}/there/store"


def test_a_store_made_at_an_address_is_that_of_a_folder(
    river: tuple[Path, str], raw: Path, tmp_path: Path, store_path: Path
) -> None:
    table, url = river
    index([raw], tmp_path / "a.parquet", workers=1)
    here = prepare(tmp_path / "a.parquet", tmp_path / "store", spacing="4", workers=1)
    there = prepare(table, url, spacing="4", workers=2)
    assert there.store_hash == here.store_hash
    assert there.exit_code == 0
    assert fetch(url, tmp_path / "fetched").store_hash == here.store_hash
    assert not list((tmp_path / "cache").rglob("neuroprior-*"))


def test_a_cluster_needs_a_disk_that_it_shares(river: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    table, url = river
    monkeypatch.delenv("NEUROPRIOR_CACHE")
    with pytest.raises(ConfigError, match="must all see the folder"):
        prepare(table, url, spacing="4", scheduler="tcp://10.0.0.1:8786")


def test_another_machine_goes_on_from_what_was_sent(
    river: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, url = river
    first = prepare(table, url, spacing="4", workers=1)
    there = tmp_path / "there/store"
    shutil.rmtree(tmp_path / "cache")
    files = sorted(there.rglob("*.nps"))
    for file in files[:2]:
        file.unlink()
    (there / "complete.json").unlink()
    made: list[str] = []
    work = preparing._prepare
    monkeypatch.setattr(preparing, "_prepare", lambda file, key, *rest: (made.append(key), work(file, key, *rest))[1])
    again = prepare(table, url, spacing="4", workers=1, timeout=0)
    assert len(made) == 2
    assert again.store_hash == first.store_hash
    assert sorted(there.rglob("*.nps")) == files


def test_a_scan_that_is_gone_from_the_address_is_tried_again(river: tuple[Path, str], raw: Path, tmp_path: Path) -> None:
    table, url = river
    image = sorted(raw.rglob("*FLAIR.nii.gz"))[0]
    content = image.read_bytes()
    image.unlink()
    poor = prepare(table, url, spacing="4", workers=1)
    assert poor.left_out == 1
    image.write_bytes(content)
    whole = prepare(table, url, spacing="4", workers=1)
    assert whole.left_out == 0
    assert whole.store_hash != poor.store_hash
    assert fetch(url, tmp_path / "fetched").store_hash == whole.store_hash
    assert not list((tmp_path / "there/store").rglob("*.again"))


def test_a_model_learns_from_an_address(
    river: tuple[Path, str], tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    table, url = river
    prepare(table, url, spacing="4", workers=1)
    done = run_cli(
        "pretrain", url, "--recipe", "tiny", "--out", str(tmp_path / "run"), "--set", "training.steps=2", "--set", "data.patch=16",
        "--set", "training.workers=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model/model.json").is_file()
    told = store("stats", url)
    assert f"{len(facts(table))} scans" in str(told)
    picture = store("view", url, picture=tmp_path / "x.png").out
    assert picture is not None
    assert picture.stat().st_size > 1000
    with pytest.raises(InputError, match="not an address"):
        store("verify", url)
