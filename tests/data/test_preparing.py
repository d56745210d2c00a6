"""One session: labels move with the scan they were drawn on, what is lost is told, and errors are bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import bias, nifti
from neuroprior.core.errors import InputError
from neuroprior.core.grids import grid_of
from neuroprior.core.records import Scan
from neuroprior.core.resampling import resample_labels
from neuroprior.core.volume import Volume
from neuroprior.data import preparing
from neuroprior.data.index import check_scan, read_index, write_index
from neuroprior.data.store import Store
from neuroprior.stages.prepare import prepare
from neuroprior.stages.store import store

Balls = Callable[..., Path]
OFF_MM = 14.0


def head_scans(index_file: Path, folder: Path, off: dict[str, float]) -> tuple[dict[str, Scan], dict[str, Volume]]:
    """T1w and FLAIR of one head without labels, moved along x by their headers; and its label on the grid of each as it was, moved too."""
    rows = read_index(index_file)
    first = rows[0].subject
    chosen = {s.contrast: s for s in rows if s.subject == first and s.contrast in ("T1w", "FLAIR")}
    dseg, _ = nifti.read_labels(next(s.labels["dseg"] for s in chosen.values() if "dseg" in s.labels))
    scans, labels = {}, {}
    for contrast, scan in chosen.items():
        volume, _ = nifti.read_scan(scan.path)
        affine = volume.affine.copy()
        affine[0, 3] += off.get(contrast, 0.0)
        nifti.write(folder / f"{contrast}.nii.gz", Volume(volume.voxels, affine))
        labels[contrast] = Volume(resample_labels(dseg, grid_of(volume)), affine)
        scans[contrast] = check_scan(
            replace(scan, path=str(folder / f"{contrast}.nii.gz"), labels={}, brain_mask=None), voxels=True
        )
    return scans, labels


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize(
    ("drawn_on", "given_to"),
    [("FLAIR", ("FLAIR",)), ("FLAIR", ("FLAIR", "T1w")), ("T1w", ("FLAIR", "T1w")), ("T1w", ("T1w",))],
)
def test_a_label_moves_with_the_aligned_scan_it_was_drawn_on(
    drawn_on: str, given_to: tuple[str, ...], index_file: Path, tmp_path: Path
) -> None:
    """A FLAIR whose header is 14 mm off, and a label on it or on the T1w: aligned, the label lies where the T1w's tissue is."""
    pytest.importorskip("dipy", reason="alignment is dipy's (extra atlas)")
    scans, labels = head_scans(index_file, tmp_path, {"FLAIR": OFF_MM})
    nifti.write(tmp_path / "drawn.nii.gz", labels[drawn_on])
    nifti.write(tmp_path / "truth.nii.gz", labels["T1w"])
    told = {c: replace(s, labels={"drawn": str(tmp_path / "drawn.nii.gz")} if c in given_to else {}) for c, s in scans.items()}
    told["T1w"] = replace(told["T1w"], labels={**told["T1w"].labels, "truth": str(tmp_path / "truth.nii.gz")})
    index = write_index(list(told.values()), tmp_path / "index.parquet")
    prepare(index, tmp_path / "store", spacing="4", workers=1, align=True)
    opened = Store.open(tmp_path / "store")
    (session,) = opened.sessions
    assert "aligned" in session.scans["FLAIR"]
    drawn, truth = (opened.read_label(session.key, name) > 0 for name in ("drawn", "truth"))
    assert dice(drawn, truth) > 0.93
    assert any("label drawn: it was moved with FLAIR" in note for note in session.notes) == (drawn_on == "FLAIR")


def test_a_label_that_may_be_of_either_scan_stays_and_is_told(index_file: Path, tmp_path: Path) -> None:
    """Both scans have one grid, one of them holds a moved head: the label is taken for the other's."""
    pytest.importorskip("dipy", reason="alignment is dipy's (extra atlas)")
    scans, labels = head_scans(index_file, tmp_path, {})
    t1w, _ = nifti.read_scan(scans["T1w"].path)
    flair, _ = nifti.read_scan(scans["FLAIR"].path)
    moved = preparing.conform(flair, preparing.ConformSpec(normalise="none"), grid=grid_of(t1w))[0].voxels
    moved = np.roll(moved, 3, axis=0)
    nifti.write(tmp_path / "FLAIR.nii.gz", Volume(moved, t1w.affine))
    nifti.write(tmp_path / "label.nii.gz", labels["T1w"])
    both = [check_scan(replace(s, labels={"dseg": str(tmp_path / "label.nii.gz")}), voxels=True) for s in scans.values()]
    index = write_index(both, tmp_path / "index.parquet")
    stores = []
    for name, align in (("off", False), ("on", True)):
        prepare(index, tmp_path / name, spacing="4", workers=1, align=align)
        stores.append(Store.open(tmp_path / name))
    key = stores[1].keys()[0]
    assert "aligned" in stores[1][key].scans["FLAIR"]
    assert any("may have been drawn on T1w or on FLAIR" in note for note in stores[1][key].notes)
    np.testing.assert_array_equal(*(opened.read_label(key, "dseg") for opened in stores))


def test_a_scan_that_alignment_does_not_help_keeps_its_header(index_file: Path, tmp_path: Path) -> None:
    """A FLAIR that holds no head, only noise in a corner: whatever rigid transform is found, it is not used, and a note says so."""
    pytest.importorskip("dipy", reason="alignment is dipy's (extra atlas)")
    scans, _ = head_scans(index_file, tmp_path, {})
    volume, _ = nifti.read_scan(scans["FLAIR"].path)
    noise = np.zeros(volume.shape, np.float32)
    noise[:12, :12, :12] = 100 + 50 * np.random.default_rng(0).random((12, 12, 12))
    nifti.write(tmp_path / "FLAIR.nii.gz", Volume(noise, volume.affine))
    index = write_index([check_scan(scan, voxels=True) for scan in scans.values()], tmp_path / "index.parquet")
    stores = []
    for name, align in (("off", False), ("on", True)):
        prepare(index, tmp_path / name, spacing="4", workers=1, align=align)
        stores.append(Store.open(tmp_path / name))
    key = stores[1].keys()[0]
    assert "aligned" not in stores[1][key].scans["FLAIR"]
    assert any("FLAIR" in note and "rigid alignment did not help" in note for note in stores[1][key].notes)
    np.testing.assert_array_equal(*(opened.read(key, "FLAIR") for opened in stores))


# --------------------------------------------------------------------------------------------------------------------- N4


def biased(folder: Path) -> tuple[Path, np.ndarray]:
    """A ball of one tissue under a smooth field that doubles its intensities from one side to the other; and where the tissue is."""
    places = (np.indices((48, 48, 48)) - 23.5) / 24
    ball = np.linalg.norm(places, axis=0) < 0.8
    field = np.exp(0.35 * places[0] + 0.25 * places[1] ** 2)
    voxels = ball * (100 * field + np.random.default_rng(0).normal(0, 1, ball.shape))
    nifti.write(folder / "a.nii.gz", Volume(voxels.astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0])))
    scan = check_scan(Scan("d/a", "d", "d/a", "", "T1w", "T1w", str(folder / "a.nii.gz")), voxels=True)
    return write_index([scan], folder / "index.parquet"), np.linalg.norm(places, axis=0) < 0.7


def test_n4_takes_a_bias_field_away(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="N4 is SimpleITK's")
    index, tissue = biased(tmp_path)
    spread = {}
    for drift in ("none", "n4"):
        prepare(index, tmp_path / drift, spacing="native", crop="none", normalise="none", bias=drift, workers=1)
        values = Store.open(tmp_path / drift).read("d/a", "T1w")[tissue]
        spread[drift] = float(values.std() / values.mean())
    assert spread["none"] > 0.1
    assert spread["n4"] < spread["none"] / 3


def test_a_scan_of_which_n4_finds_no_field_is_kept_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = biased(tmp_path)

    def fails(volume: Volume) -> Volume:
        raise InputError("N4 found no bias field", got="no voxels")

    monkeypatch.setattr(bias, "without_bias", fails)
    monkeypatch.setattr(bias, "need_n4", lambda why: None)
    summary = prepare(index, tmp_path / "n4", spacing="native", bias="n4", workers=1, timeout=0)
    assert summary.left_out == 0
    prepare(index, tmp_path / "none", spacing="native", workers=1)
    n4, none = (Store.open(tmp_path / name) for name in ("n4", "none"))
    np.testing.assert_array_equal(n4.read("d/a", "T1w"), none.read("d/a", "T1w"))
    assert any(note.startswith("T1w: ") and "N4 found no bias field" in note for note in n4["d/a"].notes)


# ------------------------------------------------------------------------------------------------------- what is lost is told


@pytest.mark.parametrize(
    ("spacing", "advice"), [("native", "the label itself holds no more"), ("2", "the label itself holds no more"), ("4", "finer")]
)
def test_a_structure_of_three_voxels_is_told_at_any_spacing(spacing: str, advice: str, balls: Balls, tmp_path: Path) -> None:
    balls(1, ("T1w",))
    label = np.zeros((24, 24, 24), np.uint8)
    label[12, 12, 10:13] = 5
    if spacing == "2":
        label[12, 12, 11:13] = 0  # one voxel of 27 mm3 is 3.4 of 8 mm3
    nifti.write(tmp_path / "raw/sub-0_label.nii.gz", Volume(label, np.diag([3.0, 3.0, 3.0, 1.0])))
    prepare(balls(1, ("T1w",)), tmp_path / "store", spacing=spacing, workers=1)
    (note,) = [note for note in Store.open(tmp_path / "store")["d/sub-0"].notes if "under 8 voxels" in note]
    assert f"5 ({ {'native': 3.0, '2': 3.4, '4': 1.3}[spacing] })" in note
    assert advice in note


def test_stats_shows_every_kind_of_note_with_its_count(balls: Balls, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Thirty sessions with two kinds of notes: more than the log shows."""
    balls(30, ("T1w",))
    for number in range(30):
        label = np.zeros((24, 24, 24), np.uint8)
        label[12, 12, 10 : 12 + number % 3] = 1
        label[8, 8, 8] = 2 + number % 2
        nifti.write(tmp_path / f"raw/sub-{number}_label.nii.gz", Volume(label, np.diag([3.0, 3.0, 3.0, 1.0])))
    index = balls(30, ("T1w",))
    for number in range(7):
        (tmp_path / f"raw/sub-{number}_mask.nii.gz").unlink()
    prepare(index, tmp_path / "store", spacing="native", workers=1, mask="index")
    assert "more notes: neuroprior store stats shows them" in caplog.text
    told = str(store("stats", tmp_path / "store"))
    assert "notes of preparing: 37 in these kinds" in told
    assert "30 sessions, such as d/sub-0: label lesion has values of under 8 voxels" in told
    assert "7 sessions, such as d/sub-0: the brain mask of T1w is not used" in told


# ------------------------------------------------------------------------------------------------------------- rounding errors


@pytest.mark.parametrize("hot", [False, True], ids=["plain", "hot voxel"])
@pytest.mark.parametrize("dtype", ["int16", "float16", "float32"])
def test_the_recorded_error_bounds_what_is_read(dtype: str, hot: bool, tmp_path: Path) -> None:
    """At native spacing and without normalisation the truth is the file's own voxels, compared in float64; one voxel of 1,000 standard
    deviations makes int16 coarse, which is told."""
    rng = np.random.default_rng(3)
    ball = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) < 16
    voxels = np.where(ball, rng.normal(3, 1, ball.shape), 0).astype(np.float32)
    if hot:
        voxels[20, 20, 20] = 1000 * voxels.std()
    nifti.write(tmp_path / "a.nii.gz", Volume(voxels, np.eye(4)))
    scan = check_scan(Scan("d/a", "d", "d/a", "", "T1w", "T1w", str(tmp_path / "a.nii.gz")), voxels=True)
    index = write_index([scan], tmp_path / "index.parquet")
    prepare(index, tmp_path / "store", spacing="native", crop="none", normalise="none", dtype=dtype, workers=1)
    opened = Store.open(tmp_path / "store")
    bound = opened["d/a"].scans["T1w"]["rounding_error"]
    error = float(np.abs(opened.read("d/a", "T1w").astype(np.float64) - voxels.astype(np.float64)).max())
    assert error <= bound
    assert bound <= error * (1 + 1e-6), "and no more than that"
    told = [note for note in opened["d/a"].notes if "int16" in note]
    assert bool(told) == (hot and dtype == "int16")
    if dtype == "int16":
        assert (bound > voxels.std(dtype=np.float64) / 128) == hot
