"""What lies in a BIDS folder and is no scan of it: other datasets, links into nothing, empty subjects, pairs, endings in capitals."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroprior.core.records import Scan
from neuroprior.data.index import read_index
from neuroprior.readers import _tree, bids, fomo
from neuroprior.stages.index import index

T1 = "sub-01/anat/sub-01_T1w.nii.gz"


def scan(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (10, 10, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([9.0, 9, 9, 1])), path)
    return path


def dataset(root: Path, *names: str, **description: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0", **description}))
    for n, name in enumerate(names):
        scan(root / name, n)
    return root


def read(root: Path) -> tuple[dict[str, Scan], str]:
    told: list[str] = []
    return {Path(row.path).relative_to(root).as_posix(): row for row in bids.read(root, tell=told.append)}, "\n".join(told)


@pytest.mark.parametrize("place", ["other_study", "extra/deeper/other_study"])
def test_a_dataset_inside_a_dataset_is_never_mixed_in(place: str, tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", T1)
    inner = dataset(root / place, "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_label-lesion_mask.nii.gz")
    (inner / "sub-01/anat/sub-01_T1w.json").write_text('{"Manufacturer": "Other"}')
    (inner / "T1w.json").write_text('{"Manufacturer": "Other"}')
    (inner / "sub-07").symlink_to("/gone")
    rows, told = read(root)
    assert set(rows) == {T1}
    assert (dict(rows[T1].labels), rows[T1].scanner) == ({}, None)
    assert f"{place} is a dataset of its own and is left out" in told
    assert f"give it as a source of its own ({inner})" in told
    assert "sub-07" not in told
    assert set(read(inner)[0]) == {"sub-01/anat/sub-01_T2w.nii.gz", "sub-07"}


def test_a_derivative_outside_derivatives_gives_its_masks_alone(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", T1)
    dataset(
        root / "tool", "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "sub-01/anat/sub-01_label-lesion_mask.nii.gz",
        DatasetType="derivative",
    )  # fmt: skip
    rows, told = read(root)
    assert set(rows) == {T1}
    assert set(rows[T1].labels) == {"lesion"}
    assert "1 image(s) of the derivative 'tool' are left out" in told
    assert "source of its own" not in told


def test_a_subject_folder_with_a_description_is_no_dataset(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", T1)
    (root / "sub-01/dataset_description.json").write_text("{}")
    assert set(read(root)[0]) == {T1}


def test_links_into_nothing_are_rows_and_empty_subjects_are_told(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", T1)
    (root / "sub-02").symlink_to("/gone/sub-02")
    (root / "sub-04").mkdir()
    (root / "sub-04/anat").symlink_to("/gone/anat")
    (root / "sub-03/anat").mkdir(parents=True)
    (root / "notes.txt").symlink_to("/gone/notes")
    rows, told = read(root)
    assert {name: row.status for name, row in rows.items()} == {T1: "ok", "sub-02": "bad", "sub-04/anat": "bad"}
    assert rows["sub-02"].reasons == ("the link leads nowhere: /gone/sub-02",)
    assert (rows["sub-02"].subject, rows["sub-04/anat"].subject) == ("d/sub-02", "d/sub-04")
    assert "1 subject folder(s) hold no file, for example sub-03" in told
    assert "1 link(s) lead nowhere, for example" in told and "notes.txt" in told
    index([root], tmp_path / "i.parquet", workers=1)
    assert {row.reasons for row in read_index(tmp_path / "i.parquet")} == {row.reasons for row in rows.values()}


def test_two_links_to_one_folder_are_told(tmp_path: Path) -> None:
    root, away = dataset(tmp_path / "d", T1), tmp_path / "away"
    scan(away / "anat/sub-02_T1w.nii.gz")
    for name in ("sub-02", "sub-03"):
        (root / name).symlink_to(away)
    rows, told = read(root)
    assert set(rows) == {T1, "sub-02/anat/sub-02_T1w.nii.gz"}
    assert "1 link(s) lead to folders that are read already and are left out" in told and "sub-03" in told


def test_half_of_a_pair_is_a_row_that_says_so(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", T1)
    (root / "sub-03/anat").mkdir(parents=True)
    for ending in ("hdr", "img"):
        (root / f"sub-03/anat/sub-03_T1w.{ending}").write_bytes(bytes(348))
    index([root], tmp_path / "i.parquet", workers=1)
    rows = {row.subject: row for row in read_index(tmp_path / "i.parquet")}
    assert set(rows) == {"d/sub-01", "d/sub-03"}
    assert rows["d/sub-03"].status == "bad"
    assert rows["d/sub-03"].reasons == (bids.PAIR,)


def test_endings_in_capitals_are_endings(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", T1)
    name = "sub-02/anat/sub-02_T1w.NII.GZ"
    scan(root / "sub-02/anat/sub-02_T1w.nii.gz", 7).rename(root / name)
    (root / "sub-02/anat/sub-02_T1w.JSON").write_text('{"Manufacturer": "A"}')
    scan(root / "sub-02/anat/sub-02_label-lesion_mask.nii.gz").rename(root / "sub-02/anat/sub-02_label-lesion_mask.Nii.Gz")
    rows, _ = read(root)
    assert rows[name].scan == "d/sub-02_T1w"
    assert (rows[name].contrast, rows[name].scanner, set(rows[name].labels)) == ("T1w", "A", {"lesion"})
    index([root], tmp_path / "i.parquet", workers=1, checks="header")
    assert {row.status for row in read_index(tmp_path / "i.parquet")} == {"ok"}
    (root / "dataset_description.json").unlink()
    for path in (root / "sub-01").rglob("*.nii.gz"):
        path.unlink()
    assert bids.recognises(root)


def test_a_ring_of_links_gives_no_scan_twice(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", T1)
    (root / "sub-01/loop").symlink_to(root)
    (root / "sub-01/anat/again").symlink_to("../..")
    (root / "sub-01/out").symlink_to(tmp_path)
    assert [Path(row.path).relative_to(root).as_posix() for row in bids.read(root)] == [T1]
    scan(tmp_path / "f/sub_1/ses_1/t1.nii.gz")
    (tmp_path / "f/sub_1/loop").symlink_to(tmp_path / "f")
    assert len(list(fomo.read(tmp_path / "f"))) == 1
    # two folders whose links lead into one another: each is read once by its own name, and once by the other's
    for one, other in (("a", "b"), ("b", "a")):
        scan(tmp_path / f"g/{one}/x.nii.gz")
        (tmp_path / f"g/{one}/to").symlink_to(tmp_path / "g" / other)
    assert _tree.walk(tmp_path / "g").count == 4


def test_two_participants_tables_are_compared_by_what_they_mean(tmp_path: Path) -> None:
    names = [f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in range(1, 7)]
    root = dataset(tmp_path / "d", *names)
    ours = ["40\tF", "40\tM", "50\tM", "n/a\tF", "30\t1", "6 years\tF"]
    theirs = ["40.0\tfemale", "44\tm", "50\tF", "12\tF", "30Y\t2", "7 years\tF"]
    (root / "derivatives/x").mkdir(parents=True)
    for folder, column, rows in ((root, "Age", ours), (root / "derivatives/x", "age", theirs)):
        lines = [f"sub-{n}\t{row}" for n, row in enumerate(rows, start=1)]
        (folder / "participants.tsv").write_text("\n".join([f"participant_id\t{column}\tsex", *lines]) + "\n")
    rows, _ = read(root)
    told = [" ".join(rows[name].reasons) for name in names]
    assert told[0] == told[3] == ""
    assert told[1] == "participants.tsv says age 40, that of derivatives/x 44; the first is used"
    assert told[2] == "participants.tsv says sex M, that of derivatives/x F; the first is used"
    assert told[4] == "participants.tsv says sex 1, that of derivatives/x 2; the first is used"
    assert "says age 6, that of derivatives/x 7" in told[5]
    (root / "derivatives/x/participants.json").write_text('{"age": {"Units": "months"}}')
    (root / "derivatives/x/participants.tsv").write_text("participant_id\tage\nsub-1\t480\n")
    assert read(root)[0][names[0]].reasons == ()
