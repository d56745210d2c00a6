"""The index as a stage: policies, conditions, merges, duplicates, what is kept from before, and what survives a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from neuroprior.core.errors import ConfigError, InputError, LeakageError
from neuroprior.data import indexing
from neuroprior.data.index import read_index, read_table
from neuroprior.stages.index import index

Make = Callable[..., Path]


def scan(
    path: Path, seed: int = 0, *, change: Callable[[np.ndarray], Any] | None = None, affine: np.ndarray | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (12, 12, 12)).astype(np.float32)
    if change is not None:
        change(voxels)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([8.0, 8, 8, 1]) if affine is None else affine), path)
    return path


def label(root: Path, subject: str, value: float, dtype: Any = np.float32) -> Path:
    """A lesion mask of one value in one corner, for a subject's scans."""
    voxels = np.zeros((12, 12, 12), dtype)
    voxels[:4, :4, :4] = value
    path = root / f"sub-{subject}/anat/sub-{subject}_label-lesion_mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([8.0, 8, 8, 1])), path)
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Two datasets, one without a licence, twelve subjects, and a duplicate across them."""
    root = tmp_path / "data"
    for d, (name, licence) in enumerate((("one", "CC0"), ("two", None))):
        facts = {"Name": name, "BIDSVersion": "1.10.0"} | ({"License": licence} if licence else {})
        (root / name).mkdir(parents=True)
        (root / name / "dataset_description.json").write_text(json.dumps(facts))
        rows = ["participant_id\tage\tsex\tEDSS"]
        for s in range(6):
            rows.append(f"sub-{s}\t{30 + 10 * s}\t{'FM'[s % 2]}\t{s / 2}")
            for c, contrast in enumerate(("T1w", "FLAIR")):
                scan(root / name / f"sub-{s}/anat/sub-{s}_{contrast}.nii.gz", seed=100 * d + 10 * s + c)
        (root / name / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def rows(out: Path) -> dict[str, Any]:
    return {row.scan: row for row in read_index(out)}


def test_a_merge_names_subjects_by_their_dataset(made: Path, tmp_path: Path) -> None:
    summary = index([made], tmp_path / "i.parquet", workers=1)
    assert summary.datasets == {"one": 12, "two": 12}
    assert summary.subjects == 12
    assert summary.licences == {"one": "CC0", "two": "not stated"}
    assert "two" in str(summary)
    assert "--licence two=" in str(summary)
    assert summary.readers[str(made / "one")] == "bids: it has a dataset_description.json"
    stated = index([made], tmp_path / "i.parquet", licence=["two=CC-BY-4.0"], workers=1)
    assert stated.licences["two"] == "CC-BY-4.0"


def test_datasets_of_one_name_get_names_of_their_own(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "one", tmp_path / "other/one")
    summary = index([made, tmp_path / "other"], tmp_path / "i.parquet", workers=1)
    assert set(summary.datasets) == {"data-one", "other-one", "two"}
    with pytest.raises(InputError, match="given twice"):
        index([made, made / "one"], tmp_path / "j.parquet", workers=1)


def test_indexes_merge_and_keep_their_splits(made: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        index([made / name], tmp_path / f"{name}.parquet", split="train=0.5,test=0.5", workers=1)
    index([tmp_path / "one.parquet", tmp_path / "two.parquet"], tmp_path / "both.parquet", split="train=1", workers=1)
    both = rows(tmp_path / "both.parquet")
    for name in ("one", "two"):
        for key, row in rows(tmp_path / f"{name}.parquet").items():
            assert both[key].split == row.split
            assert (both[key].affine, both[key].age, both[key].checks) == (row.affine, row.age, row.checks)
    assert len(both) == 24


def test_a_condition_leaves_rows_out(made: Path, tmp_path: Path) -> None:
    summary = index([made], tmp_path / "i.parquet", where="contrast == 'FLAIR' and age > 60 and licence == 'CC0'", workers=1)
    assert {(r.contrast, r.dataset) for r in read_index(tmp_path / "i.parquet")} == {("FLAIR", "one")}
    assert (summary.ok + summary.warning, summary.left_out) == (2, 22)
    again = index([made], tmp_path / "i.parquet", where="contrast == 'FLAIR' and age > 60 and licence == 'CC0'", workers=1)
    assert (again.reused, again.left_out) == (2, 22)
    index([made], tmp_path / "i.parquet", where="EDSS >= 2.5 and shape is not None", workers=1)
    assert {r.subject for r in read_index(tmp_path / "i.parquet")} == {"one/sub-5", "two/sub-5"}
    with pytest.raises(ConfigError, match="did you mean 'EDSS'"):
        index([made], tmp_path / "k.parquet", where="EDS > 1 or age > 0", workers=1)
    with pytest.raises(InputError, match="leaves none of 24 scans"):
        index([made], tmp_path / "k.parquet", where="age > 900", workers=1)
    with pytest.raises(ConfigError, match="no place in a condition"):
        index([made], tmp_path / "k.parquet", where="__import__('os')", workers=1)


def nan(voxels: np.ndarray) -> None:
    voxels[3, 3, 3] = np.nan


def constant(voxels: np.ndarray) -> None:
    voxels[:] = 7


SHEARED = np.array([[8.0, 2, 0, 0], [0, 8, 0, 0], [0, 0, 8, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(("fault", "check", "policy", "status", "reason"), [
    ({"change": nan}, "intensity", "skip", "bad", "1 NaN"), ({"change": nan}, "intensity", "fix", "warning", "they become 0"),
    ({"change": constant}, "intensity", "fix", "bad", "constant"), ({"affine": SHEARED}, "geometry", "fix", "warning", "not orthogonal"),
    ({"affine": SHEARED}, "geometry", "skip", "bad", "not orthogonal"), ({"affine": np.diag([0.008, 0.008, 0.008, 1])}, "geometry", "fix", "warning", "no brain scan"),
    ({"seed": 1}, "duplicates", "fix", "warning", "same image as one/sub-0_FLAIR"), ({"seed": 1}, "duplicates", "skip", "bad", "same image"),
    ({"label": 0.5}, "label", "fix", "warning", "no whole numbers"), ({"label": 0.5}, "label", "skip", "bad", "no whole numbers"),
])  # fmt: skip
def test_every_check_is_a_column_and_has_its_policies(
    made: Path, tmp_path: Path, fault: dict[str, Any], check: str, policy: str, status: str, reason: str
) -> None:  # fmt: skip
    if "label" in fault:
        label(made / "two", "3", fault["label"])
        (made / "two/sub-3/anat/sub-3_FLAIR.nii.gz").unlink()  # it would share the label
    else:
        scan(made / "two/sub-3/anat/sub-3_T1w.nii.gz", **fault)
    summary = index([made], tmp_path / "i.parquet", policy=[f"{check}={policy}"], workers=1)
    table = pd.read_parquet(tmp_path / "i.parquet").set_index("scan")
    row = table.loc["two/sub-3_T1w"]
    assert str(row["status"]) == status
    assert reason in "; ".join(row["reasons"])
    assert str(row[f"check_{check}"]) != "ok"
    nobody = "nobody looked"  # the others have no label
    others = set(table.drop(index="two/sub-3_T1w")[f"check_{check}"].fillna(nobody))
    assert others == ({nobody} if check == "label" else {"ok"})
    assert summary.warning + summary.bad == 1
    with pytest.raises(InputError, match=rf"1 scans fail the check '{check}'[\s\S]*two/sub-3_T1w"):
        index([made], tmp_path / "none.parquet", policy=[f"{check}=fail"], workers=1)
    assert not (tmp_path / "none.parquet").exists()


def test_duplicates_across_subjects_stay_in_one_split(made: Path, tmp_path: Path) -> None:
    for s in range(5):  # a chain: every subject of two shares a scan with one of one
        shutil.copy(made / f"one/sub-{s}/anat/sub-{s}_T1w.nii.gz", made / f"two/sub-{s + 1}/anat/sub-{s + 1}_T1w.nii.gz")
    for seed in range(4):
        index([made], tmp_path / "i.parquet", split="train=0.5,test=0.5", seed=seed, workers=1)
        split = {row.subject: row.split for row in read_index(tmp_path / "i.parquet")}
        assert all(split[f"one/sub-{s}"] == split[f"two/sub-{s + 1}"] for s in range(5))
        assert Counter(split.values()) == {"train": 6, "test": 6}
    # the same content packed in another way is found all the same; another content of one checksum is not taken for it
    voxels = nibabel.load(made / "one/sub-5/anat/sub-5_T1w.nii.gz")
    nibabel.save(voxels, made / "two/sub-0/anat/sub-0_T1w.nii")
    (made / "two/sub-0/anat/sub-0_T1w.nii.gz").unlink()
    assert "two/sub-0_T1w" in rows(tmp_path / "i.parquet")


def test_pairs_from_a_table_stay_together_and_contradictions_are_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("left_subject\tright_subject\none/sub-0\ttwo/sub-5\n")
    for seed in range(5):
        index([made], tmp_path / "i.parquet", together=tmp_path / "pairs.tsv", split="train=0.5,test=0.5", seed=seed, workers=1)
        split = {row.subject: row.split for row in read_index(tmp_path / "i.parquet")}
        assert split["one/sub-0"] == split["two/sub-5"]
    (tmp_path / "split.tsv").write_text("participant_id\tsplit\none/sub-0\ttrain\ntwo/sub-5\ttest\n")
    with pytest.raises(LeakageError, match="belong together"):
        index([made], tmp_path / "i.parquet", together=tmp_path / "pairs.tsv", split_file=tmp_path / "split.tsv", workers=1)


def test_strata_are_spread_evenly(made: Path, tmp_path: Path) -> None:
    index([made], tmp_path / "i.parquet", stratify="sex", split="train=0.5,test=0.5", workers=1)
    people = {(row.subject, row.sex, row.split) for row in read_index(tmp_path / "i.parquet")}
    assert Counter((sex, split) for _, sex, split in people) == {(s, p): 3 for s in "FM" for p in ("train", "test")}


def test_what_has_not_changed_is_not_read_again(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    from neuroprior.data import index as tables

    plain = tables.check_scan
    monkeypatch.setattr(tables, "check_scan", lambda scan, **options: read.append(scan.scan) or plain(scan, **options))
    out = tmp_path / "i.parquet"
    index([made], out, workers=1)
    assert len(read) == 24
    first, before = out.read_bytes(), read_table(out)[0]

    def again(expected: set[str], **options: Any) -> None:
        read.clear()
        index([made], out, workers=1, **options)
        assert set(read) == expected

    again(set())
    assert out.read_bytes() == first
    os.utime(made / "one/sub-1/anat/sub-1_T1w.nii.gz", ns=(1, 1))
    again({"one/sub-1_T1w"})
    table = (made / "two/participants.tsv").read_text()
    (made / "two/participants.tsv").write_text(table.replace("sub-2\t50", "sub-2\t51"))
    again({"two/sub-2_T1w", "two/sub-2_FLAIR"})
    assert rows(out)["two/sub-2_T1w"].age == 51
    scan(made / "two/sub-2/ses-1/anat/sub-2_ses-1_T2w.nii.gz", seed=77)
    again({"two/sub-2_ses-1_T2w"})
    shutil.rmtree(made / "two/sub-5")
    again(set())
    assert "two/sub-5" not in {row.subject for row in read_index(out)}
    # labels, masks and what a text header points to belong to what has not changed
    mask = label(made / "one", "2", 0.5)
    again({"one/sub-2_T1w", "one/sub-2_FLAIR"})
    assert "left out" in rows(out)["one/sub-2_T1w"].checks["label"]
    again(set())
    label(made / "one", "2", 1)
    again({"one/sub-2_T1w", "one/sub-2_FLAIR"})
    assert list(rows(out)["one/sub-2_T1w"].labels.values()) == [str(mask)]
    (made / "one/derivatives/x/sub-3/anat").mkdir(parents=True)
    brain = made / "one/derivatives/x/sub-3/anat/sub-3_desc-brain_mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((12, 12, 12), np.uint8), np.diag([8.0, 8, 8, 1])), brain)
    again({"one/sub-3_T1w", "one/sub-3_FLAIR"})
    os.utime(brain, ns=(1, 1))
    again({"one/sub-3_T1w", "one/sub-3_FLAIR"})
    again(set())
    again({row.scan for row in read_index(out)}, checks="header")
    again(set(), checks="header", split="train=1")
    assert {row.split for row in read_index(out)} == {"train"}
    assert before.num_rows == 24


def mhd(folder: Path, seed: int) -> Path:
    """A text header, the same for all, and voxels beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "T1w.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 12 12 12\nElementSpacing = 8 8 8\nElementType = MET_UCHAR\nElementDataFile = T1w.raw\n"
    )
    (folder / "T1w.raw").write_bytes(np.random.default_rng(seed).integers(0, 255, 1728).astype(np.uint8).tobytes())
    return folder / "T1w.mhd"


def test_voxels_and_labels_elsewhere_are_seen_to_change_and_to_be_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text headers are alike; their voxels are not, save for two. A table's labels lie outside any tree that is walked."""
    from neuroprior.data import index as tables

    for s in range(5):
        mhd(tmp_path / f"p{s}", seed=min(s, 3))
    label(scan(tmp_path / "sub-9/anat/sub-9_T1w.nii.gz", 9).parents[2], "9", 0.5)
    table = "path,subject,contrast,label_lesion\n" + "".join(f"p{s}/T1w.mhd,{s},T1w,\n" for s in range(5))
    table += "sub-9/anat/sub-9_T1w.nii.gz,9,T1w,sub-9/anat/sub-9_label-lesion_mask.nii.gz\n"
    (tmp_path / "scans.csv").write_text(table)
    out = tmp_path / "i.parquet"
    index([tmp_path / "scans.csv"], out, workers=1)
    found = rows(out)
    assert {name for name, row in found.items() if row.checks["duplicates"] != "ok"} == {"scans/sub-4_T1w"}
    assert found["scans/sub-9_T1w"].labels == {}
    read: list[str] = []
    plain = tables.check_scan
    monkeypatch.setattr(tables, "check_scan", lambda scan, **options: read.append(scan.scan) or plain(scan, **options))
    index([tmp_path / "scans.csv"], out, workers=1)
    assert read == []
    mhd(tmp_path / "p4", seed=4)
    label(tmp_path, "9", 1)
    index([tmp_path / "scans.csv"], out, workers=1)
    assert sorted(read) == ["scans/sub-4_T1w", "scans/sub-9_T1w"]
    found = rows(out)
    assert {row.checks["duplicates"] for row in found.values()} == {"ok"}
    assert list(found["scans/sub-9_T1w"].labels) == ["lesion"]
    assert read_table(out)[0].drop_columns(["mtime_ns"]).equals(
        (index([tmp_path / "scans.csv"], tmp_path / "fresh.parquet", workers=1), read_table(tmp_path / "fresh.parquet"))[1][0].drop_columns(["mtime_ns"])
    )  # fmt: skip


def test_remarks_are_no_faults(made: Path, tmp_path: Path) -> None:
    """Values below zero, a qform alone, another grid in a session, a mask stored as floats: told, and no reason to stop."""
    scan(made / "one/sub-0/anat/sub-0_T1w.nii.gz", change=lambda voxels: voxels.__isub__(100))
    image = nibabel.Nifti1Image(np.random.default_rng(1).normal(100, 20, (12, 12, 12)).astype(np.float32), None)
    image.header.set_qform(np.diag([8.0, 8, 8, 1]), 1)
    image.header.set_sform(None, 0)
    nibabel.save(image, made / "one/sub-1/anat/sub-1_T1w.nii.gz")
    scan(made / "one/sub-2/anat/sub-2_T1w.nii.gz", 5, affine=np.diag([7.0, 8, 8, 1]))
    label(made / "one", "3", 1)
    fail = [f"{check}=fail" for check in ("geometry", "intensity", "label", "duplicates", "faces")]
    assert index([made], tmp_path / "i.parquet", policy=fail, workers=1).ok == 24
    found = rows(tmp_path / "i.parquet")
    assert "; values below zero" in found["one/sub-0_T1w"].checks["intensity"]
    assert "ok; the qform" in found["one/sub-1_T1w"].checks["geometry"]
    assert "; another grid than" in found["one/sub-2_T1w"].checks["geometry"]
    assert found["one/sub-3_T1w"].checks["label"] == "ok; label lesion: labels stored as float32 were read as uint8"
    assert not (tmp_path / "i.issues.tsv").exists()
    label(made / "one", "3", 0.5)
    with pytest.raises(InputError, match="2 scans fail the check 'label'"):
        index([made], tmp_path / "i.parquet", policy=fail, workers=1)


def test_a_large_volume_is_looked_at_for_a_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in blocks, it shows the same face; its labels are told not to have been looked at."""
    from neuroprior.data import index as tables

    x, y, z = (axis * 4.0 for axis in np.mgrid[:48, :60, :50])
    z = z - 196
    voxels = 100.0 * (((x - 96) / 72) ** 2 + ((y - 130) / 90) ** 2 + ((z + 62) / 62) ** 2 < 1)
    voxels[(np.abs(x - 96) < 50) & (y > 140) & (y < 205) & (z < -70) & (z > -190)] = 80
    (tmp_path / "one/sub-1/anat").mkdir(parents=True)
    nibabel.save(
        nibabel.Nifti1Image(np.repeat(voxels, 4, axis=0), np.diag([1.0, 4, 4, 1])), tmp_path / "one/sub-1/anat/sub-1_T1w.nii.gz"
    )
    index([tmp_path / "one"], tmp_path / "i.parquet", workers=1)
    plain = rows(tmp_path / "i.parquet")["one/sub-1_T1w"]
    assert plain.checks["faces"].startswith("face")
    monkeypatch.setattr(tables, "LARGE_BYTES", 100)
    monkeypatch.setattr(tables.nifti, "read_surveyed", lambda path: pytest.fail("a large volume must not be read whole"))
    index([tmp_path / "one"], tmp_path / "j.parquet", policy=["faces=skip"], workers=1)
    large = rows(tmp_path / "j.parquet")["one/sub-1_T1w"]
    assert (large.status, large.checks) == ("bad", {name: text for name, text in plain.checks.items() if name != "duplicates"})
    with pytest.raises(InputError, match="1 scans fail the check 'faces'"):
        index([tmp_path / "one"], tmp_path / "k.parquet", policy=["faces=fail"], workers=1)
    label(tmp_path / "one", "1", 1)
    for policy, status in (("fix", "warning"), ("skip", "bad")):
        index([tmp_path / "one"], tmp_path / "k.parquet", policy=[f"label={policy}"], workers=1)
        row = rows(tmp_path / "k.parquet")["one/sub-1_T1w"]
        assert (row.status, "was not looked at" in row.reasons[0]) == (status, True)


def test_how_large_is_large() -> None:
    """By bytes: 2 GB of float64 are, as many voxels of one byte are not counted alike."""
    from neuroprior.data.index import LARGE_BYTES

    assert 268e6 * (8 + 4) > LARGE_BYTES > 512**3 * (1 + 4)


def test_a_long_index_tells_how_many_and_how_fast(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexing, "TOLD_EVERY_S", 0.0)
    with caplog.at_level("INFO"):
        index([made], tmp_path / "i.parquet", workers=1)
    told = [message for message in caplog.messages if "known scans read" in message]
    assert re.fullmatch(r"28 files listed, 24 of 24 known scans read \([1-9]\d*/s\)", told[-1])
    seen = [int(re.findall(r"(\d+) of", message)[0]) for message in told]
    assert seen == sorted(seen)
    assert 8 in seen
    caplog.clear()
    monkeypatch.setattr(indexing, "TOLD_EVERY_S", 30.0)
    with caplog.at_level("INFO"):
        index([made], tmp_path / "j.parquet", workers=1)
    assert not [message for message in caplog.messages if "known scans read" in message]  # it did not take long


def test_a_duplicate_that_is_gone_is_no_reason_any_more(made: Path, tmp_path: Path) -> None:
    scan(made / "two/sub-3/anat/sub-3_T1w.nii.gz", seed=1)
    assert index([made], tmp_path / "i.parquet", workers=1).warning == 1
    assert index([made], tmp_path / "i.parquet", workers=1).warning == 1
    scan(made / "one/sub-0/anat/sub-0_FLAIR.nii.gz", seed=555)
    assert index([made], tmp_path / "i.parquet", workers=1).warning == 0


def test_a_damaged_earlier_index_is_made_anew(made: Path, tmp_path: Path) -> None:
    for content in (b"", b"PAR1 nonsense PAR1"):
        (tmp_path / "i.parquet").write_bytes(content)
        assert index([made], tmp_path / "i.parquet", workers=1).reused == 0
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "i.parquet")
    assert index([made], tmp_path / "i.parquet", workers=1).reused == 0


def test_workers_give_the_same_table(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "FEW", {"header": 0, "voxels": 0})
    index([made], tmp_path / "one.parquet", workers=1)
    index([made], tmp_path / "two.parquet", workers=2)
    assert read_table(tmp_path / "one.parquet")[0].equals(read_table(tmp_path / "two.parquet")[0])


def test_a_worker_that_dies_takes_only_its_scan_along(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that kills its process: told by name; the others are there."""
    (tmp_path / "deadly.py").write_text(
        "import os\nfrom neuroprior.data.index import to_table\n"
        "def work(scans):\n    if any('sub-2_T1w' in scan.scan for scan in scans):\n        os._exit(9)\n    return to_table(scans)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    from neuroprior.data.index import scans_of
    from neuroprior.readers import bids

    scans = list(bids.read(made / "one"))
    with indexing.Pool(SimpleNamespace(workers=2)) as pool:  # type: ignore[arg-type]  # it needs no more of the options
        tables = list(pool._parallel(importlib.import_module("deadly").work, [scans[n : n + 4] for n in range(0, 12, 4)]))
    told = {scan.scan: scan for table in tables for scan in scans_of(table)}
    assert len(told) == 12
    assert sum(table.num_rows for table in tables) == 12
    assert "killed the process twice" in told["one/sub-2_T1w"].reasons[0]
    assert [scan.scan for scan in told.values() if scan.status == "bad"] == ["one/sub-2_T1w"]


@pytest.mark.parametrize("checks", ["header", "voxels"])
def test_pipes_and_links_into_nothing_are_told(made: Path, tmp_path: Path, checks: str) -> None:
    for path in (
        made / "one/sub-1/anat/sub-1_T1w.nii.gz",
        made / "one/sub-2/anat/sub-2_T1w.nii.gz",
        made / "one/sub-3/anat/sub-3_T1w.nii.gz",
    ):
        path.unlink()
    os.mkfifo(made / "one/sub-1/anat/sub-1_T1w.nii.gz")
    (made / "one/sub-2/anat/sub-2_T1w.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (made / "one/sub-3/anat/sub-3_T1w.nii.gz").symlink_to(".git/annex/objects/aa/bb/MD5E-s1--x.nii.gz")
    index([made], tmp_path / "i.parquet", checks=checks, workers=1)
    told = {name: "; ".join(row.reasons) for name, row in rows(tmp_path / "i.parquet").items() if row.status == "bad"}
    assert set(told) == {"one/sub-1_T1w", "one/sub-2_T1w", "one/sub-3_T1w"}
    assert "no regular file" in told["one/sub-1_T1w"]
    assert told["one/sub-2_T1w"] == "a link to a file that is not there"
    assert "datalad" in told["one/sub-3_T1w"]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, made: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed without a word while it reads: the next run takes over what was kept, and gives the table of an undisturbed one."""
    out = tmp_path / "i.parquet"
    index([made], tmp_path / "whole.parquet", workers=1)
    monkeypatch.setattr(indexing, "KEPT_EVERY_S", 0.0)
    monkeypatch.setattr(indexing, "BATCH", {"header": 3, "voxels": 3})
    child = os.fork()
    if child == 0:
        from neuroprior.data import index as tables

        plain, count = tables.check_scan, [0]

        def slow(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == 14:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **options)

        tables.check_scan = slow
        index([made], out, workers=1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not out.exists()
    assert list((tmp_path / "i.parts").glob("*.parquet"))
    started = time.monotonic()
    summary = index([made], out, workers=1)
    assert summary.reused == 12
    assert read_table(out)[0].equals(read_table(tmp_path / "whole.parquet")[0])
    assert not (tmp_path / "i.parts").exists()
    assert time.monotonic() - started < 60


def test_a_dataset_that_cannot_be_read_is_a_row_among_others(made: Path, tmp_path: Path) -> None:
    (made / "two/participants.tsv").write_text("participant_id\tage\nsub-1\t3\nsub-1\t4\n")
    summary = index([made], tmp_path / "i.parquet", workers=1)
    (bad,) = [row for row in read_index(tmp_path / "i.parquet") if row.status == "bad"]
    assert "disagree" in bad.reasons[0]
    assert bad.path == str(made / "two")
    assert summary.ok == 12


def test_the_map_of_contrasts_is_asked_for_and_used(made: Path, tmp_path: Path) -> None:
    for s in range(3):
        (made / f"one/sub-{s}/anat/sub-{s}_FLAIR.nii.gz").rename(made / f"one/sub-{s}/anat/sub-{s}_wonder.nii.gz")
    summary = index([made], tmp_path / "i.parquet", workers=1)
    assert summary.unknown == {"wonder": 3}
    assert "wonder (3)" in str(summary)
    assert "--contrast-map FILE" in str(summary)
    (tmp_path / "map.yaml").write_text("wonder: FLAIR\n")
    assert index([made], tmp_path / "i.parquet", contrast_map=tmp_path / "map.yaml", workers=1).unknown == {}


def test_the_way_to_nnssl_and_back(made: Path, tmp_path: Path) -> None:
    index([made], tmp_path / "i.parquet", pretrain_json=tmp_path / "p.json", variable=[f"here={made}"], workers=1)
    assert "$here/one/sub-0" in (tmp_path / "p.json").read_text()
    index([tmp_path / "p.json"], tmp_path / "again.parquet", variable=[f"here={made}"], workers=1)
    ours, again = read_index(tmp_path / "i.parquet"), read_index(tmp_path / "again.parquet")
    assert {(s.path, s.subject, s.contrast, s.age, s.split) for s in ours} == {
        (s.path, s.subject, s.contrast, s.age, s.split) for s in again
    }


def test_what_the_index_fixed_is_prepared(made: Path, tmp_path: Path) -> None:
    from neuroprior.data.store import Store
    from neuroprior.stages.prepare import prepare

    scan(made / "two/sub-3/anat/sub-3_T1w.nii.gz", change=nan)
    for policy, stored in (("skip", 23), ("fix", 24)):
        index([made], tmp_path / "i.parquet", policy=[f"intensity={policy}"], workers=1)
        prepare(tmp_path / "i.parquet", tmp_path / policy, spacing="8", workers=1)
        assert sum(len(session.scans) for session in Store.open(tmp_path / policy).sessions) == stored
