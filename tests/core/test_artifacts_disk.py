"""What a failing disk and a race do to what is written."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from neuroprior.core import artifacts
from neuroprior.core.errors import ArtifactError


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.EIO, "cannot be written"), (errno.ESTALE, "cannot be written"), (errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"),
        (errno.EROFS, "no permission"),
    ],
)  # fmt: skip
def test_a_disk_that_fails_is_an_error_of_ours(number: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(ArtifactError, match=rf"(?s){what}.*a\.json.*next step"):
        artifacts.write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifacts.write_text(tmp_path / "file" / "a.txt", "")


def test_another_files_error_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), artifacts.atomic(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()


@pytest.mark.parametrize("number", [0, errno.EINVAL, errno.EIO])
def test_the_folder_is_flushed_after_the_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed file is on the disk when its folder is; a file system that cannot flush folders is no error, one that fails is."""
    flushed: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        place = Path(f"/proc/self/fd/{handle}").readlink()
        flushed.append("folder" if place.is_dir() else "file")
        if place.is_dir() and number:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(ArtifactError, match="cannot be written"):
            artifacts.write_text(tmp_path / "a.txt", "a")
    else:
        artifacts.write_text(tmp_path / "a.txt", "a")
        assert (tmp_path / "a.txt").read_text() == "a"
    assert flushed == ["file", "folder"]


@pytest.mark.parametrize("links", [True, False], ids=["", "without hard links"])
def test_of_many_who_write_once_one_does(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    meeting = threading.Barrier(8)
    won: list[int] = []

    def run(number: int) -> None:
        meeting.wait()
        if artifacts.write_json_once(tmp_path / "store.json", {"by": number}):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert json.loads((tmp_path / "store.json").read_text()) == {"by": won[0]}
    assert [file.name for file in tmp_path.iterdir()] == ["store.json"]
