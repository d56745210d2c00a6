"""What a second prepare does anew: what has changed, what failed for a passing reason, and nothing else."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import artifacts, nifti
from neuroprior.core.errors import ArtifactError
from neuroprior.core.volume import Volume
from neuroprior.data import sessions, verifying
from neuroprior.data.index import read_index, write_index
from neuroprior.data.preparing import PrepareConfig, source_of
from neuroprior.data.rows import Rows
from neuroprior.data.sessions import read_all, session_file
from neuroprior.data.store import Store
from neuroprior.stages.prepare import prepare
from neuroprior.stages.store import store

Balls = Callable[..., Path]
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])  # of the balls


def files_of(path: Path) -> dict[str, tuple[int, int]]:
    return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in path.rglob("*.nps")}


def fresh(index: Path, tmp_path: Path, **options: object) -> str:
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    return prepare(index, tmp_path / "fresh", spacing="4", workers=1, timeout=0, **options).store_hash  # type: ignore[arg-type]


def other_voxels(path: Path) -> None:
    volume, _ = nifti.read_scan(path)
    nifti.write(path, Volume(volume.voxels[::-1].copy(), volume.affine))
    os.utime(path, ns=(7, 7))


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("change", ["a scan more", "a scan less", "other voxels", "other age", "other split", "other label"])
def test_a_session_that_changed_is_prepared_anew(change: str, finished: bool, balls: Balls, tmp_path: Path) -> None:
    out = tmp_path / "store"
    first = ("T1w",) if change == "a scan more" else ("T1w", "FLAIR")
    prepare(balls(2, first), out, spacing="4", workers=1, timeout=0)
    before = files_of(out)
    if change == "other voxels":
        other_voxels(tmp_path / "raw/sub-1_FLAIR.nii.gz")
    elif change == "other label":
        nifti.write(tmp_path / "raw/sub-1_label.nii.gz", Volume(np.ones((24, 24, 24), np.uint8), AFFINE))
    more = {"age": 77.0} if change == "other age" else {"split": "val"} if change == "other split" else {}
    index = balls(2, ("T1w",) if change == "a scan less" else ("T1w", "FLAIR"), **more)
    if not finished:
        (out / artifacts.MARKER).unlink()
    summary = prepare(index, out, spacing="4", workers=1, timeout=0)
    assert summary.left_out == 0
    assert summary.store_hash == fresh(index, tmp_path)
    assert store("verify", out).exit_code == 0
    after = files_of(out)
    touched = {"d/sub-1"} if change in ("other voxels", "other label") else {"d/sub-0", "d/sub-1"}
    for key in ("d/sub-0", "d/sub-1"):
        name = session_file(out, key).name
        assert (after[name] != before[name]) == (key in touched)
    assert prepare(index, out, spacing="4", workers=1, timeout=0).store_hash == summary.store_hash
    assert files_of(out) == after, "what has not changed is not done again"


def test_scans_that_moved_and_older_stores_are_not_done_again(
    balls: Balls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The files under another folder are the same ones; a store that does not say what it was made of counts as unchanged."""
    out = tmp_path / "store"
    index = balls(2)
    prepare(index, out, spacing="4", workers=1, timeout=0)
    before = files_of(out)
    shutil.move(tmp_path / "raw", tmp_path / "deep/er/raw")
    scans = []
    for scan in read_index(index):
        path, *labels = (text.replace("/raw/", "/deep/er/raw/") for text in (scan.path, *scan.labels.values()))
        scans.append(replace(scan, path=path, labels=dict(zip(scan.labels, labels, strict=True))))
    moved = write_index(scans, tmp_path / "moved.parquet")
    prepare(moved, out, spacing="4", workers=1, timeout=0)
    assert files_of(out) == before
    prepare(index, out, spacing="4", workers=1, timeout=0)  # its labels are out of reach: nobody can say that they changed
    assert files_of(out) == before
    shutil.move(tmp_path / "deep/er/raw", tmp_path / "raw")
    for file in out.rglob("*.nps"):  # as an older neuroprior wrote it
        record, frames, source = read_all(file)
        assert source and source.partition("-")[2] not in ("", "?")
        arrays = {name: sessions.pack(sessions.read_array(file, frame), frame.scale) for name, frame in frames.items()}
        sessions.write(file, json.loads(record), arrays)
        assert read_all(file)[2] == ""
    (out / artifacts.MARKER).unlink()
    before = files_of(out)
    with caplog.at_level(logging.INFO, logger="neuroprior"):
        prepare(balls(2, age=99.0), out, spacing="4", workers=1, timeout=0)
    assert files_of(out) == before
    assert "2 of 2 sessions are there" in caplog.text


def test_what_sessions_are_made_of_is_read_in_batches_as_one_by_one(balls: Balls, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroprior.data import rows as module

    rows = Rows(balls(3))
    config = PrepareConfig(mask="index")
    expected = {key: source_of(rows.scans(key), config) for key in rows.keys}
    assert len(set(expected.values())) == 3
    monkeypatch.setattr(module, "BATCH", 2)
    assert dict(rows.sources(set(rows.keys), config)) == expected
    assert [key for key, _ in rows.sources({"d/sub-2", "d/sub-0"}, config)] == ["d/sub-0", "d/sub-2"]


# ------------------------------------------------------------------------------------------------------ for a passing reason


THINGS = {"scan": "FLAIR", "label": "label", "mask": "mask"}
PART = {"scan": ("read_scan", "FLAIR"), "label": ("read_labels", "label"), "mask": ("read_labels", "mask")}


def healed(index: Path, out: Path, tmp_path: Path) -> None:
    """After the reason has passed, a second prepare makes the store of a run that was never disturbed."""
    assert list(out.rglob("*.again")), "the session is to be tried again"
    assert store("verify", out).exit_code == 3
    summary = prepare(index, out, spacing="4", workers=1, timeout=0, mask="index")
    assert summary.left_out == 0 and not list(out.rglob("*.again"))
    assert summary.store_hash == fresh(index, tmp_path, mask="index")
    assert store("verify", out).exit_code == 0


@pytest.mark.parametrize("thing", THINGS)
def test_what_vanishes_is_tried_again(thing: str, balls: Balls, tmp_path: Path) -> None:
    index = balls(2)
    file = tmp_path / f"raw/sub-1_{THINGS[thing]}.nii.gz"
    file.rename(tmp_path / "aside")
    first = prepare(index, tmp_path / "store", spacing="4", workers=1, timeout=0, mask="index")
    assert first.sessions == 2 and first.exit_code == 0
    told = [*Store.open(tmp_path / "store")["d/sub-1"].notes, *map(str, Store.open(tmp_path / "store").table["reason"])]
    assert any("does not exist" in text for text in told)
    (tmp_path / "aside").rename(file)
    healed(index, tmp_path / "store", tmp_path)


def test_a_session_that_is_tried_again_never_loses_what_it_has(balls: Balls, tmp_path: Path) -> None:
    """The FLAIR is back, and now the T1w and the label are out of reach."""
    index, raw, out = balls(2), tmp_path / "raw", tmp_path / "store"
    (raw / "sub-1_FLAIR.nii.gz").rename(tmp_path / "FLAIR")
    prepare(index, out, spacing="4", workers=1, timeout=0, mask="index")
    before = session_file(out, "d/sub-1").read_bytes()
    (tmp_path / "FLAIR").rename(raw / "sub-1_FLAIR.nii.gz")
    for name in ("T1w", "label"):
        (raw / f"sub-1_{name}.nii.gz").rename(tmp_path / name)
    prepare(index, out, spacing="4", workers=1, timeout=0, mask="index")
    assert session_file(out, "d/sub-1").read_bytes() == before
    for name in ("T1w", "label"):
        (tmp_path / name).rename(raw / f"sub-1_{name}.nii.gz")
    healed(index, out, tmp_path)


@pytest.mark.parametrize("thing", THINGS)
def test_what_changes_while_it_is_read_is_tried_again(
    thing: str, balls: Balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = balls(2)
    name, part = PART[thing]
    real = getattr(nifti, name)

    def slowly(path: str, **options: object) -> object:
        result = real(path, **options)
        if path.endswith(f"sub-1_{part}.nii.gz"):
            os.utime(path, ns=(1, 1))
        return result

    monkeypatch.setattr(nifti, name, slowly)
    prepare(index, tmp_path / "store", spacing="4", workers=1, timeout=0, mask="index")
    monkeypatch.undo()
    healed(index, tmp_path / "store", tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
@pytest.mark.parametrize("thing", THINGS)
def test_a_disk_that_does_not_answer_is_asked_again(
    thing: str, number: int, balls: Balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = balls(2)
    real = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == f"sub-1_{THINGS[thing]}.nii.gz":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    prepare(index, tmp_path / "store", spacing="4", workers=1, timeout=0, mask="index")
    monkeypatch.undo()
    healed(index, tmp_path / "store", tmp_path)


def test_a_disk_that_does_not_say_what_lies_on_it_is_asked_again(
    balls: Balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = balls(2)
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path.name == "sub-1_FLAIR.nii.gz":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert prepare(index, tmp_path / "store", spacing="4", workers=1, timeout=0, mask="index").left_out == 1
    monkeypatch.undo()
    healed(index, tmp_path / "store", tmp_path)


# ------------------------------------------------------------------------------------------------- exit codes and two runs


def test_a_session_of_which_nothing_can_be_read_fails(balls: Balls, tmp_path: Path) -> None:
    index = balls(2)
    for file in (tmp_path / "raw").glob("sub-1_[TF]*"):
        file.write_bytes(b"no volume")
    summary = prepare(index, tmp_path / "store", spacing="4", workers=1, timeout=0)
    assert (summary.sessions, summary.failed, summary.quarantined, summary.exit_code) == (1, 1, 0, 3)
    assert "1 sessions failed" in str(summary)


def test_a_scan_that_is_left_out_of_its_session_is_no_failure(balls: Balls, tmp_path: Path) -> None:
    index = balls(2)
    (tmp_path / "raw/sub-1_FLAIR.nii.gz").write_bytes(b"no volume")
    summary = prepare(index, tmp_path / "store", spacing="4", workers=1, timeout=0)
    assert (summary.left_out, summary.failed, summary.exit_code) == (1, 0, 0)


def test_a_session_that_changed_and_cannot_be_read_keeps_its_file_and_fails(balls: Balls, tmp_path: Path) -> None:
    out = tmp_path / "store"
    prepare(balls(2), out, spacing="4", workers=1, timeout=0)
    before = files_of(out)
    index = balls(2, age=50.0)
    shutil.rmtree(tmp_path / "raw")
    assert prepare(index, out, spacing="4", workers=1, timeout=0).exit_code == 3
    assert files_of(out) == before
    assert Store.open(out).read("d/sub-1", "T1w").any()


def test_of_two_runs_with_other_settings_at_one_moment_one_is_refused(
    balls: Balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked and seen no store before either writes its settings."""
    index, meeting = balls(2), threading.Barrier(2, timeout=60)
    real = Rows.__init__

    def together(self: Rows, path: Path) -> None:
        real(self, path)
        if path == index:
            meeting.wait()

    monkeypatch.setattr(Rows, "__init__", together)
    outcomes: list[object] = []

    def run(spacing: str) -> None:
        try:
            outcomes.append(prepare(index, tmp_path / "store", spacing=spacing, workers=1, timeout=0))
        except ArtifactError as error:
            outcomes.append(error.what)

    threads = [threading.Thread(target=run, args=(spacing,)) for spacing in ("4", "5")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "another store lies here, prepared with other settings" in outcomes
    assert store("verify", tmp_path / "store").exit_code == 0


def test_half_written_files_of_a_killed_run_are_no_sessions(balls: Balls, tmp_path: Path) -> None:
    """Killed in the middle of a write: the temporary file has the ending of a session."""
    index, out = balls(2, ("T1w",)), tmp_path / "store"
    wanted = prepare(index, out, spacing="4", workers=1, timeout=0).store_hash
    one = session_file(out, Rows(index).keys[0])
    (out / artifacts.MARKER).unlink()
    half = one.with_name(f".{one.stem}-ib1qa5_5.nps")
    half.write_bytes(one.read_bytes()[:100])
    one.with_name(f".{one.stem}-ab12cd34.again").write_bytes(b"")
    one.unlink()
    assert prepare(index, out, spacing="4", workers=1, timeout=0).store_hash == wanted
    assert not list((out / "sessions").rglob(".*"))
    half.write_bytes(b"half")
    assert verifying.damages(out) == {}
    (out / "sessions.parquet").write_bytes(b"")  # nobody says which sessions there are but their files
    (out / "index.parquet").unlink()
    assert half.name not in verifying.damages(out)
