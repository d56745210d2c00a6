"""A store that is read where it lies, at an address."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from neuroprior import cli
from neuroprior.core import artifacts, places
from neuroprior.core.errors import ArtifactError, InputError
from neuroprior.data import sessions
from neuroprior.data.loading import make_loader
from neuroprior.data.pairs import PairConfig, PairDataset, collate_pairs
from neuroprior.data.remote import Outbox, fetch, publish
from neuroprior.data.sessions import session_file
from neuroprior.data.store import Store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROPRIOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def url(store_path: Path, tmp_path: Path) -> str:
    place = f"file://{tmp_path}/there/brains"
    publish(store_path, place)
    return place


def here(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.nps"))


def test_only_what_is_drawn_is_brought(store_path: Path, url: str, cache: Path) -> None:
    first, second = Store.open(store_path), Store.open(url)
    assert second.keys() == first.keys()
    assert second.store_hash == first.store_hash
    assert here(cache) == []
    session = first.sessions[1]
    name = next(iter(session.scans))
    np.testing.assert_array_equal(second.read(session.key, name), first.read(session.key, name))
    assert [file.name for file in here(cache)] == [session.file.name]
    assert dict(second[first.sessions[0].key].scans) == dict(first.sessions[0].scans)
    assert len(here(cache)) == 2
    assert second.path.parent.parent == cache


def test_samples_are_those_of_the_store_itself_with_workers_too(store_path: Path, url: str, cache: Path) -> None:
    batches = []
    for place, workers in ((store_path, 0), (url, 2)):
        dataset = PairDataset(Store.open(place), ("train", "val", "test"), PairConfig(patch=16), seed=3)
        loader = make_loader(dataset, batch=2, start_sample=0, n_samples=8, collate=collate_pairs, workers=workers)
        batches.append([batch["image_a"].numpy() for batch in loader])
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_was_brought_is_not_asked_for_again(store_path: Path, url: str, cache: Path, tmp_path: Path) -> None:
    store = Store.open(url)
    key, name = store.keys()[0], next(iter(store.sessions[0].scans))
    wanted = store.read(key, name)
    shutil.rmtree(tmp_path / "there/brains/sessions")
    np.testing.assert_array_equal(Store.open(url).read(key, name), wanted)
    with pytest.raises(ArtifactError, match="missing there"):
        store.read(store.keys()[1], next(iter(store.sessions[1].scans)))


def test_a_session_that_is_damaged_there_is_not_read(store_path: Path, url: str, cache: Path, tmp_path: Path) -> None:
    key = Store.open(store_path).keys()[0]
    place = session_file(tmp_path / "there/brains", key)
    content = bytearray(place.read_bytes())
    content[100] ^= 1
    place.write_bytes(content)
    store = Store.open(url)
    with pytest.raises(ArtifactError, match="does not arrive as it was published") as error:
        store.read(key, next(iter(store[key].scans)))
    assert "--again" in str(error.value)
    assert here(cache) == []
    with pytest.raises(ArtifactError, match="does not arrive"):
        fetch(url, tmp_path / "fetched")
    assert publish(store_path, url).copied == 0  # it has the right size
    assert publish(store_path, url, again=True).copied == len(store.keys())
    np.testing.assert_array_equal(
        store.read(key, next(iter(store[key].scans))), Store.open(store_path).read(key, next(iter(store[key].scans)))
    )


def test_a_bit_that_flipped_here_is_fetched_anew(store_path: Path, url: str, tmp_path: Path) -> None:
    fetch(url, tmp_path / "fetched")
    file = session_file(tmp_path / "fetched", Store.open(store_path).keys()[0])
    content = bytearray(file.read_bytes())
    content[200] ^= 4  # in a chunk: the record stays as it is
    file.write_bytes(content)
    assert not sessions.sound(file)
    assert fetch(url, tmp_path / "fetched").copied == 1
    assert sessions.sound(file)


def test_another_store_at_the_address_is_another_folder_here(store_path: Path, url: str, cache: Path, tmp_path: Path) -> None:
    first = Store.open(url).path
    marker = tmp_path / "there/brains" / artifacts.MARKER
    artifacts.write_json(marker, {**artifacts.read_json(marker), "store_hash": "0123456789abcdef"})
    assert Store.open(url).path != first


def test_no_finished_store_is_there(url: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "there/brains" / artifacts.MARKER).unlink()
    with pytest.raises(ArtifactError, match="no finished store at this address"):
        Store.open(url)


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NEUROPRIOR_CACHE", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert places.kept_for("s3://b/brains").parent == Path.home() / ".cache/neuroprior"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert places.kept_for("s3://b/brains").parent == tmp_path / "neuroprior"
    monkeypatch.setenv("NEUROPRIOR_CACHE", str(tmp_path / "x"))
    one, other = places.kept_for("s3://b/brains/"), places.kept_for("s3://c/brains")
    assert one.parent == other.parent == tmp_path / "x"
    assert one == places.kept_for("s3://b/brains") != other


@pytest.mark.parametrize(("text", "wanted"), [("s3://b/x", True), ("simplecache::s3://b/x", True), ("file:///x", True), ("/a/b", False), ("a:b", False), ("C:/x", False)])  # fmt: skip
def test_what_an_address_is(text: str, wanted: bool) -> None:
    assert places.is_address(text) is wanted


@pytest.mark.parametrize("command", [["audit", "s3://b/index.parquet"], ["predict", "model", "scans", "--out", "s3://b/o"], ["report", "file:///x"]])  # fmt: skip
def test_an_address_where_a_path_is_wanted_is_refused_and_makes_no_folder(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not an address"):
        cli.app(command, standalone_mode=False)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- prepared at an address


def test_an_outbox_sends_what_is_made_and_another_machine_goes_on_from_it(store_path: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/made"
    first, files = tmp_path / "first", sorted(store_path.glob("sessions/*/*.nps"))
    with Outbox(first, url) as box:
        first.mkdir()
        shutil.copyfile(store_path / "store.json", first / "store.json")
        for file in files[:2]:
            (first / file.relative_to(store_path)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, first / file.relative_to(store_path))
        assert box.send() == 2
        assert box.send() == 0
    there, root = fsspec.core.url_to_fs(url)
    broken = f"{root}/{files[1].relative_to(store_path).as_posix()}"
    there.pipe_file(broken, there.cat_file(broken)[:-1])
    there.pipe_file(f"{root}/sessions/00/..%2f.nps", b"not ours")
    second = tmp_path / "second"
    with Outbox(second, url) as box:
        assert [file.name for file in second.glob("sessions/*/*")] == [files[0].name]
        for file in (f for f in store_path.rglob("*") if f.is_file()):
            (second / file.relative_to(store_path)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, second / file.relative_to(store_path))
        box.finish()
    assert fetch(url, tmp_path / "third").store_hash == Store.open(store_path).store_hash


def test_an_outbox_for_another_store_is_refused(store_path: Path, tmp_path: Path, url: str) -> None:
    mine = tmp_path / "mine"
    artifacts.write_json(mine / "store.json", {**artifacts.read_json(store_path / "store.json"), "dtype": "float16"})
    with pytest.raises(ArtifactError, match="another store was begun there"), Outbox(mine, url):
        raise AssertionError
    assert Store.open(url).keys()


def test_a_session_made_again_in_the_same_size_is_sent_though_the_run_was_cut_off(store_path: Path, tmp_path: Path) -> None:
    url, here = f"memory://{tmp_path.name}/again", tmp_path / "here"
    shutil.copytree(store_path, here)
    with Outbox(here, url) as box:
        box.finish()
    file = session_file(here, Store.open(here).keys()[0])
    file.write_bytes(file.read_bytes())  # made again, and killed before it was sent
    with Outbox(here, url) as box:
        assert box.send() == 1
    with Outbox(here, url) as box:
        assert box.send() == 0
