"""Stores that are published at an address and fetched from it."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from neuroprior.core import artifacts
from neuroprior.core.errors import ArtifactError, InputError, MissingDependency
from neuroprior.data import building
from neuroprior.data.remote import fetch, publish
from neuroprior.data.sessions import session_file
from neuroprior.data.store import Store
from neuroprior.stages.store import store


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    place = f"memory://{uuid.uuid4().hex}/brains" if request.param == "memory" else f"file://{tmp_path}/there/brains"
    yield place
    files, root = fsspec.core.url_to_fs(place)
    if files.exists(root):
        files.rm(root, recursive=True)


def one_file(url: str, path: Path) -> tuple[fsspec.AbstractFileSystem, str, str]:
    """The file system, the place and the key of the first session of a published store."""
    key = Store.open(path).keys()[0]
    files, root = fsspec.core.url_to_fs(url)
    return files, f"{root}/{session_file(Path(), key).as_posix()}", key


def test_a_store_comes_back_as_it_was(store_path: Path, tmp_path: Path, url: str) -> None:
    sent = publish(store_path, url)
    came = fetch(url, tmp_path / "here")
    first, second = Store.open(store_path), Store.open(tmp_path / "here")
    assert sent.copied == sent.sessions == came.copied == len(first.sessions) == len(second.sessions)
    assert second.store_hash == first.store_hash == came.store_hash
    assert building.damages(tmp_path / "here") == {}
    for session in first.sessions:
        for name in session.scans:
            np.testing.assert_array_equal(second.read(session.key, name), first.read(session.key, name))


def test_both_ways_resume(store_path: Path, tmp_path: Path, url: str) -> None:
    publish(store_path, url)
    files, place, key = one_file(url, store_path)
    files.rm(place)
    assert publish(store_path, url).copied == 1
    assert publish(store_path, url).copied == 0
    fetch(url, tmp_path / "here")
    session_file(tmp_path / "here", key).unlink()
    (tmp_path / "here" / artifacts.MARKER).unlink()
    assert fetch(url, tmp_path / "here").copied == 1
    assert fetch(url, tmp_path / "here").copied == 0


def test_a_file_that_changed_there_is_refused_and_the_store_stays_unfinished(store_path: Path, tmp_path: Path, url: str) -> None:
    publish(store_path, url)
    files, place, key = one_file(url, store_path)
    content = bytearray(files.cat_file(place))
    content[100] ^= 1
    files.pipe_file(place, bytes(content))
    with pytest.raises(ArtifactError, match="does not arrive as it was published"):
        fetch(url, tmp_path / "here")
    assert not session_file(tmp_path / "here", key).exists()
    with pytest.raises(ArtifactError, match="not finished"):
        Store.open(tmp_path / "here")


def test_another_store_is_neither_overwritten_here_nor_there(store_path: Path, tmp_path: Path, url: str) -> None:
    publish(store_path, url)
    other = Path(shutil.copytree(store_path, tmp_path / "other"))
    facts = artifacts.read_json(other / artifacts.MARKER)
    artifacts.write_json(other / artifacts.MARKER, {**facts, "store_hash": "0" * 64})
    with pytest.raises(ArtifactError, match="another store lies there"):
        publish(other, url)
    with pytest.raises(ArtifactError, match="another store lies here"):
        fetch(url, other)
    files, root = fsspec.core.url_to_fs(url)
    assert json.loads(files.cat_file(f"{root}/{artifacts.MARKER}"))["store_hash"] == facts["store_hash"]


def test_an_unfinished_publication_is_no_store(store_path: Path, tmp_path: Path, url: str) -> None:
    publish(store_path, url)
    files, root = fsspec.core.url_to_fs(url)
    files.rm(f"{root}/{artifacts.MARKER}")
    with pytest.raises(ArtifactError, match="no finished store at this address"):
        fetch(url, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_missing_driver_is_named_with_its_package(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependency, match="pip install s3fs"):
        publish(store_path, "s3://bucket/brains")
    with pytest.raises(InputError, match="nope"):
        fetch("nope://bucket/brains", tmp_path / "here")


def test_the_command(store_path: Path, tmp_path: Path, url: str) -> None:
    assert "sessions copied" in str(store("publish", store_path, url=url))
    assert store("fetch", tmp_path / "here", url=url).out == tmp_path / "here"
    assert store("verify", tmp_path / "here").exit_code == 0
    with pytest.raises(InputError, match="needs an address"):
        store("fetch", tmp_path / "elsewhere")
