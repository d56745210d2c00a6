"""Preparing under faults, and the store's verify, repair, stats and view."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import artifacts, nifti, processes
from neuroprior.core.errors import ArtifactError, InputError
from neuroprior.core.records import Scan
from neuroprior.core.volume import Volume
from neuroprior.data import building, foretelling, preparing
from neuroprior.data.index import check_scan, read_index, write_index
from neuroprior.data.store import Store, session_file
from neuroprior.engine.pools import Where
from neuroprior.stages.prepare import prepare
from neuroprior.stages.store import store

Run = Callable[..., subprocess.CompletedProcess[str]]


def copied(store_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store_path, tmp_path / "copy"))


def flip_a_bit(path: Path, key: str, array: str) -> None:
    file, frame = Store.open(path).frame(key, array)
    content = bytearray(file.read_bytes())
    content[frame.offset + frame.header + frame.chunks // 2] ^= 4
    file.write_bytes(content)


def hash_of(path: Path) -> str:
    return Store.open(path).store_hash


# ------------------------------------------------------------------------------------------------------- verify and repair


def test_a_flipped_bit_is_found_and_healed(store_path: Path, tmp_path: Path) -> None:
    path = copied(store_path, tmp_path)
    assert store("verify", path).exit_code == 0
    sessions = Store.open(path).sessions
    flip_a_bit(path, sessions[1].key, "FLAIR")
    sessions[3].file.write_bytes(sessions[3].file.read_bytes()[:-7])
    sessions[4].file.unlink()
    found = store("verify", path)
    assert found.exit_code == 3
    assert set(found.problems) == {sessions[n].key for n in (1, 3, 4)}
    assert found.problems[sessions[1].key][0].startswith("FLAIR")
    healed = store("repair", path, workers=1)
    assert healed.exit_code == 0, str(healed)
    assert "3 repaired" in str(healed)
    assert store("verify", path).exit_code == 0
    assert hash_of(path) == hash_of(store_path)
    for a, b in zip(sorted(path.rglob("*.nps")), sorted(store_path.rglob("*.nps")), strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("harm", ["truncate", "remove", "marker"])
def test_damaged_tables_are_made_again(harm: str, store_path: Path, tmp_path: Path) -> None:
    path = copied(store_path, tmp_path)
    table = path / "sessions.parquet"
    if harm == "truncate":
        table.write_bytes(table.read_bytes()[:300])
    elif harm == "remove":
        table.unlink()
    else:
        artifacts.write_json(path / artifacts.MARKER, {"store_hash": "0" * 64})
    if harm != "marker":
        with pytest.raises(ArtifactError, match="repair"):
            Store.open(path)
    assert store("verify", path).exit_code == 3
    assert store("repair", path, workers=1).exit_code == 0
    assert hash_of(path) == hash_of(store_path)


def test_stats_and_view(store_path: Path, tmp_path: Path, run_cli: Run) -> None:
    told = str(store("stats", store_path))
    for part in ("10 subjects", "30 scans", "T1w 10", "int16", "dseg 10", "train 6"):
        assert part in told, told
    done = run_cli(
        "store", "view", store_path, "--case", Store.open(store_path).sessions[2].key, "--picture", tmp_path / "case.png"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "case.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(InputError, match="no session 'nobody'"):
        store("view", store_path, case="nobody")


# ------------------------------------------------------------------------------------------------------------------ faults


def test_killed_workers_leave_no_trace(
    index_file: Path, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are killed again and again while the parent goes on."""
    import psutil

    done = threading.Event()
    kills, workers = 0, []
    start = processes.Process.start

    def started(process: processes.Process) -> None:
        start(process)
        workers.append(psutil.Process(process.pid))

    monkeypatch.setattr(processes.Process, "start", started)

    def kill() -> None:
        nonlocal kills
        rng = np.random.default_rng(0)
        while not done.is_set() and kills < 6:
            with contextlib.suppress(psutil.Error, OSError):  # it ended, or the folder went, while it was looked at
                alive = [worker for worker in list(workers) if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
                # the first kill comes when the first session is written, whatever the machine's speed; the others at any time
                if alive and (kills or any((tmp_path / "store" / "sessions").rglob("*.nps"))):
                    time.sleep(float(rng.uniform(0.1, 1.5)) if kills else 0)
                    alive[int(rng.integers(len(alive)))].kill()
                    kills += 1
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        for _ in range(20):
            summary = prepare(index_file, tmp_path / "store", spacing="4", workers=2)
            if not summary.left_out and kills:
                break
            if not summary.left_out:  # it was done before anybody was killed
                shutil.rmtree(tmp_path / "store")
    finally:
        done.set()
        thread.join()
    assert kills, f"{len(workers)} workers were started and none was killed"
    assert hash_of(tmp_path / "store") == hash_of(store_path)
    assert store("verify", tmp_path / "store").exit_code == 0


def test_two_processes_fill_one_store(index_file: Path, store_path: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "neuroprior",
        "prepare",
        str(index_file),
        "--out",
        str(tmp_path / "store"),
        "--spacing",
        "4",
        "--workers",
        "1",
    ]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert hash_of(tmp_path / "store") == hash_of(store_path)
    assert store("verify", tmp_path / "store").exit_code == 0
    assert not list((tmp_path / "store").rglob(".*-????????*"))


def test_a_run_that_is_not_alone_keeps_its_temporary_files(tmp_path: Path) -> None:
    """A lock that could not be made exclusive is lost by the kernel and must be taken again."""
    with building.present(tmp_path) as first:
        with building.present(tmp_path) as second:
            assert not first()
            assert not second(), "the first is still at work"
        assert first(), "now it is alone"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_with_advice_and_is_resumed(index_file: Path, store_path: Path, small_disk: Path) -> None:
    out = small_disk / "store"
    with pytest.raises(ArtifactError, match=r"(?s)disk is full.*free space"):
        prepare(index_file, out, spacing="4", workers=1)
    assert not [path for path in out.rglob("*") if path.name.startswith(".") and path.name != ".building"]
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    assert prepare(index_file, out, spacing="4", workers=1).left_out == 0
    assert hash_of(out) == hash_of(store_path)


def test_a_read_only_disk_is_told(index_file: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ArtifactError, match="no permission to write"):
        prepare(index_file, small_disk / "store", spacing="4", workers=1)


def test_a_disk_that_fills_up_under_a_session_is_told(index_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="disk is full"):
        prepare(index_file, tmp_path / "store", spacing="4", workers=1, timeout=0)
    monkeypatch.undo()
    assert prepare(index_file, tmp_path / "store", spacing="4", workers=1).left_out == 0


def moved_index(index_file: Path, folder: Path) -> tuple[Path, list[Scan]]:
    """The index with its scans copied to a folder, where they can be harmed."""
    scans = []
    for scan in read_index(index_file):
        target = folder / Path(scan.path).name
        shutil.copy2(scan.path, target)
        scans.append(replace(scan, path=str(target)))
    write_index(scans, folder / "index.parquet")
    return folder / "index.parquet", scans


def test_a_file_that_vanishes_and_returns(index_file: Path, store_path: Path, tmp_path: Path) -> None:
    index, scans = moved_index(index_file, tmp_path)
    gone = Path(scans[4].path)
    gone.rename(tmp_path / "aside.nii.gz")
    first = prepare(index, tmp_path / "store", spacing="4", workers=1)
    assert first.left_out == 1
    (row,) = [
        row
        for row in Store.open(tmp_path / "store").table.to_dict("records")
        if row["name"] is None or row["name"] != row["name"]
    ]
    assert row["scan"] == scans[4].scan and "does not exist" in row["reason"]
    (tmp_path / "aside.nii.gz").rename(gone)
    assert store("verify", tmp_path / "store").exit_code == 3
    assert prepare(index, tmp_path / "store", spacing="4", workers=1).left_out == 0
    assert hash_of(tmp_path / "store") == hash_of(store_path)
    assert store("verify", tmp_path / "store").exit_code == 0


def test_a_file_that_changes_while_it_is_read(
    index_file: Path, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, scans = moved_index(index_file, tmp_path)
    real = nifti.read_scan

    def slowly(path: str, **options: object) -> object:
        result = real(path)
        if path == scans[7].path:
            os.utime(path, ns=(1, 1))
        return result

    monkeypatch.setattr(preparing.nifti, "read_scan", slowly)
    assert prepare(index, tmp_path / "store", spacing="4", workers=1, timeout=0).left_out == 1
    assert any("changed while it was read" in str(reason) for reason in Store.open(tmp_path / "store").table["reason"])
    monkeypatch.undo()
    assert prepare(index, tmp_path / "store", spacing="4", workers=1).left_out == 0
    assert hash_of(tmp_path / "store") == hash_of(store_path)


def test_a_slow_disk_is_quarantined_by_time(index_file: Path, store_path: Path, tmp_path: Path) -> None:
    """A named pipe nobody writes to: the slowest disk there is."""
    index, scans = moved_index(index_file, tmp_path)
    target = Path(scans[0].path)
    target.rename(tmp_path / "aside.nii.gz")
    os.mkfifo(target)
    summary = prepare(index, tmp_path / "store", spacing="4", workers=2, timeout=10)
    assert summary.quarantined == 1 and summary.sessions == 9
    table = Store.open(tmp_path / "store").table
    reasons = list(table.loc[table["scan"] == scans[0].scan, "reason"])
    assert "quarantined" in reasons[0] and "10 s" in reasons[0]
    target.unlink()
    (tmp_path / "aside.nii.gz").rename(target)
    assert prepare(index, tmp_path / "store", spacing="4", workers=1).left_out == 0
    assert hash_of(tmp_path / "store") == hash_of(store_path)


# ---------------------------------------------------------------------------------------------------------- estimates, notes


def test_a_dry_run_estimates_disk_and_time(tmp_path: Path, index_file: Path) -> None:
    scans = [
        replace(scan, scan=f"{scan.scan}-{n}", subject=f"{scan.subject}-{n}") for scan in read_index(index_file) for n in range(4)
    ]
    many = write_index(scans, tmp_path / "index.parquet")
    spec, config = building.ConformSpec(spacing_mm=3.0, order=3), preparing.PrepareConfig()
    told = foretelling.estimate(many, spec, config, Where(workers=1))
    began = time.process_time()
    built = building.build(many, tmp_path / "store", spec, config, Where(workers=1))
    spent = time.process_time() - began
    assert told.sessions == built.sessions and told.scans == built.scans
    assert told.megabytes == pytest.approx(built.megabytes, rel=0.25)
    assert told.cpu_seconds == pytest.approx(
        spent, rel=0.5
    )  # the 25 % that are asked for are measured in benchmarks/data: other jobs sway it
    assert not (tmp_path / "out").exists()


def one_scan(tmp_path: Path, label: np.ndarray | None = None, spacing: float = 1.0, **more: object) -> Path:
    rng = np.random.default_rng(0)
    ball = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) < 16
    affine = np.diag([spacing, spacing, spacing, 1.0])
    nifti.write(tmp_path / "a.nii.gz", Volume((ball * (100 + 10 * rng.random(ball.shape))).astype(np.float32), affine))
    labels = {}
    if label is not None:
        nifti.write(tmp_path / "l.nii.gz", Volume(label, affine))
        labels = {"lesion": str(tmp_path / "l.nii.gz")}
    scan = check_scan(Scan("d/a", "d", "d/a", "", "T1w", "T1w", str(tmp_path / "a.nii.gz"), labels=labels, **more), voxels=True)  # type: ignore[arg-type]
    return write_index([scan], tmp_path / "index.parquet")


def test_structures_of_a_few_voxels_are_told(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[20:22, 20:22, 20:24] = 3
    label[10:20, 10:20, 10:20] = 1
    prepare(one_scan(tmp_path, label), tmp_path / "store", spacing="3", workers=1)
    (session,) = Store.open(tmp_path / "store").sessions
    (note,) = [note for note in session.notes if "under 8 voxels" in note]
    assert "3 (0.6)" in note and "native" in note and "1 (" not in note


def test_masks_of_the_index_and_n4(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="N4 is SimpleITK's")
    ball = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) < 10
    nifti.write(tmp_path / "m.nii.gz", Volume(ball.astype(np.uint8), np.eye(4)))
    index = one_scan(tmp_path, brain_mask=str(tmp_path / "m.nii.gz"))
    for name, options in (("plain", {}), ("masked", {"mask": "index"}), ("n4", {"bias": "n4"})):
        prepare(index, tmp_path / name, spacing="1", workers=1, **options)
    plain, masked, n4 = (Store.open(tmp_path / name) for name in ("plain", "masked", "n4"))
    assert max(masked.sessions[0].shape) < min(plain.sessions[0].shape)
    assert len({plain.store_hash, masked.store_hash, n4.store_hash}) == 3
    inside = masked.read("d/a", "T1w")
    conform = masked.conformed("d/a", "T1w")
    centre = np.argwhere(np.abs(inside) > 0)
    assert len(centre)
    raw, _ = nifti.read_scan(tmp_path / "a.nii.gz")
    assert conform.intensity.mean == pytest.approx(float(raw.voxels[ball].mean()), rel=1e-3)


def test_memory_is_foreseen_from_headers(tmp_path: Path) -> None:
    fine = Scan(
        "d/a", "d", "d/a", "", "T1w", "T1w", "x.nii.gz", shape=(600, 700, 600), spacing_mm=(0.3, 0.3, 0.3), dtype="uint16"
    )
    small = replace(fine, shape=(60, 70, 60), spacing_mm=(3.0, 3.0, 3.0))
    spec = building.ConformSpec(spacing_mm=1.0)
    assert preparing.memory_mb([fine], spec) > 4000 > 500 > preparing.memory_mb([small], spec)
    assert session_file(Path("s"), "../../etc/passwd").resolve().is_relative_to(Path("s").resolve())


def test_a_scan_that_lies_beside_its_reference_is_aligned(index_file: Path, tmp_path: Path) -> None:
    """A FLAIR whose header is 14 mm off: aligned it lies on the T1w again; one that is no head is left as it was."""
    pytest.importorskip("dipy", reason="alignment is dipy's (extra atlas)")
    first = read_index(index_file)[0].subject
    scans = []
    for scan in (s for s in read_index(index_file) if s.subject == first and s.contrast in ("T1w", "FLAIR")):
        volume, _ = nifti.read_scan(scan.path)
        affine = volume.affine.copy()
        affine[0, 3] += 14.0 if scan.contrast == "FLAIR" else 0.0
        nifti.write(tmp_path / f"{scan.contrast}.nii.gz", Volume(volume.voxels, affine))
        scans.append(check_scan(replace(scan, path=str(tmp_path / f"{scan.contrast}.nii.gz"), labels={}), voxels=True))
    index = write_index(scans, tmp_path / "index.parquet")
    for name, align in (("off", False), ("on", True)):
        prepare(index, tmp_path / name, spacing="4", workers=1, align=align)
    whole = Store.open(tmp_path / "on")
    (session,) = whole.sessions
    rigid = np.array(session.scans["FLAIR"]["aligned"])
    assert rigid[0, 3] == pytest.approx(14.0, abs=2.0)
    assert any("aligned rigidly" in note for note in session.notes)
    heads = [
        {name: (o.read(session.key, name) > 0).astype(float) for name in ("T1w", "FLAIR")}
        for o in (Store.open(tmp_path / "off"), whole)
    ]
    before, after = (2 * (h["T1w"] * h["FLAIR"]).sum() / (h["T1w"].sum() + h["FLAIR"].sum()) for h in heads)
    assert after > before + 0.1
