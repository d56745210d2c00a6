"""Raw nnU-Net datasets, taken as they are: both versions' keys, odd labels, and through index and prepare into a fine-tuning."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from neuroprior.core.errors import InputError
from neuroprior.data.index import read_index
from neuroprior.data.store import Store
from neuroprior.readers import bids, nnunet
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare
from neuroprior.tasks import segmentation

V1 = {"modality": {"0": "FLAIR", "1": "T1"}, "labels": {"0": "background", "1": "lesion"}, "numTraining": 6}
V2 = {
    "channel_names": {"0": "T2-FLAIR", "1": "T1w"},
    "labels": {"background": 0, "lesion": 1},
    "numTraining": 6,
    "file_ending": ".nii.gz",
}
Make = Callable[..., Path]


@pytest.fixture
def make(heads: Path, tmp_path: Path) -> Make:
    """Six of the synthetic heads copied into the layout, the label drawn by hand."""

    def build(facts: dict[str, Any], value: Callable[[int], float] = lambda n: 1, dtype: Any = np.uint8) -> Path:
        root = tmp_path / "Dataset007_Lesions"
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True)
        (root / "dataset.json").write_text(json.dumps(facts))
        scans = {(s.subject, s.contrast): s for s in bids.read(heads)}
        for n, subject in enumerate(sorted({subject for subject, _ in scans})[:6]):
            for channel, contrast in (("0000", "FLAIR"), ("0001", "T1w")):
                target = root / "imagesTr" / f"BR_{n:03d}_{channel}.nii.gz"
                target.write_bytes(Path(scans[subject, contrast].path).read_bytes())
            image: Any = nibabel.load(root / "imagesTr" / f"BR_{n:03d}_0000.nii.gz")
            label = np.zeros(image.shape, dtype=dtype)
            x, y, z = (length // 2 for length in image.shape)
            label[x - 4 : x + 4, y - 4 : y + 4, z - 4 : z + 4] = value(n)
            nibabel.save(nibabel.Nifti1Image(label, image.affine), root / "labelsTr" / f"BR_{n:03d}.nii.gz")
        return root

    return build


@pytest.mark.parametrize("facts", [V1, V2])
def test_both_versions_give_the_same_rows(make: Make, facts: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    root = make(facts)
    assert nnunet.recognises(root)
    rows = list(nnunet.read(root))
    assert len(rows) == 12
    assert {row.contrast for row in rows} == {"FLAIR", "T1w"}
    assert {row.subject for row in rows} == {f"Dataset007_Lesions/sub-{nnunet.subject_name(f'BR_{n:03d}')}" for n in range(6)}
    assert all(Path(row.labels["dseg"]).is_file() and row.status == "ok" for row in rows)
    assert {row.columns["label_names_dseg"] for row in rows} == {"0=background;1=lesion"}
    assert not caplog.records


def test_what_does_not_fit_is_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    root = make(V1 | {"numTraining": 9, "modality": {"0": "FLAIR", "1": "CT", "2": "T2"}})
    (root / "labelsTr/BR_000.nii.gz").rename(root / "labelsTr/BR_777.nii.gz")
    (root / "imagesTs").mkdir()
    (root / "imagesTs/BR_100_0000.nii.gz").write_bytes((root / "imagesTr/BR_000_0000.nii.gz").read_bytes())
    with caplog.at_level(logging.INFO):
        rows = list(nnunet.read(root))
    assert "numTraining 9, imagesTr holds 6" in caplog.text
    assert "1 labels have no image, for example BR_777" in caplog.text
    assert "1 cases of imagesTs are left out" in caplog.text
    ct = [row for row in rows if row.contrast_raw == "CT"]
    assert {row.status for row in ct} == {"bad"}
    assert "unknown contrast 'CT'" in "; ".join(ct[0].reasons)
    assert all("lacks channel 0002 (T2)" in "; ".join(row.reasons) for row in rows)
    assert "its label is missing" in "; ".join(rows[0].reasons)
    mapped = list(nnunet.read(root, contrast_map={"CT": "T1w"}))
    assert {row.contrast for row in mapped} == {"FLAIR", "T1w"}
    (test,) = nnunet.read(root / "imagesTs")
    assert (test.subject, test.labels) == (f"Dataset007_Lesions/sub-{nnunet.subject_name('BR_100')}", {})
    (root / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match="names no channels"):
        list(nnunet.read(root))


def test_label_names_run_either_way() -> None:
    assert nnunet.label_names({"0": "background", "2": "left"}) == {0: "background", 2: "left"}
    assert nnunet.label_names({"background": 0, "whole": [1, 2], "core": 2}) == {0: "background", 1: "whole 1", 2: "core"}


def store_of(root: Path, out: Path) -> Store:
    index([root], out / "index.parquet", split="train=1", workers=1)
    prepare(out / "index.parquet", out / "store", spacing="4", workers=1)
    return Store.open(out / "store")


def fit(store: Store, **settings: Any) -> segmentation.Segmentation:
    return segmentation.fit(store, store.sessions, "dseg", ("FLAIR", "T1w"), segmentation.Config(**settings))


def test_255_for_1_in_some_files_is_told_with_the_table_and_mended_by_the_map(make: Make, tmp_path: Path) -> None:
    store = store_of(make(V2, value=lambda n: 255 if n % 2 else 1), tmp_path)
    with pytest.raises(InputError, match=r"(?s)255.*expected: 1 lesion.*255: \d+ voxels in 3 of 6 sessions.*--label-map 255:1"):
        fit(store)
    task = fit(store, label_map={255: 1})
    assert (task.values, task.sources) == ((1,), ((1, 255),))
    assert task.describe()["label_map"] == {"255": 1}
    with pytest.raises(InputError, match="--label-map names 4"):
        fit(store, label_map={4: 1})
    with pytest.raises(InputError, match="is empty in all"):
        fit(store, label_map={255: 0, 1: 0})


def test_whole_floats_are_labels_and_others_are_told(make: Make, tmp_path: Path) -> None:
    store = store_of(make(V2, value=lambda n: 1.0 if n else 0.5, dtype=np.float32), tmp_path)
    assert fit(store).values == (1,)
    (without,) = [s for s in store.sessions if "dseg" not in s.labels]
    with pytest.raises(InputError, match=r"(?s)no training session has a label.*no whole numbers"):
        segmentation.fit(store, [without], "dseg", ("FLAIR", "T1w"), segmentation.Config())


def test_gaps_are_kept_as_they_are_and_said(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_of(make(V2 | {"labels": {"background": 0, "a": 2, "b": 7}}, value=lambda n: 7 if n % 2 else 2), tmp_path)
    with caplog.at_level(logging.INFO):
        task = fit(store)
    assert task.values == (2, 7)
    assert "have gaps" in caplog.text
    assert "--label-map 2:1,7:2" in caplog.text
    assert fit(store, label_map={2: 1, 7: 2}).values == (1, 2)


def small(root: Path, *cases: str, ending: str = ".nii.gz", facts: dict[str, Any] | None = None) -> Path:
    """A dataset of one channel with tiny volumes."""
    stated = {
        "channel_names": {"0": "T1w"},
        "labels": {"background": 0, "a": 1},
        "numTraining": len(cases),
        "file_ending": ending,
    }
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(stated | (facts or {})))
    for n, case in enumerate(cases):
        image = np.random.default_rng(n).normal(100, 20, (6, 6, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([20.0, 20, 20, 1])), root / f"imagesTr/{case}_0000.nii.gz")
        label = np.eye(6, dtype=np.uint8)[None].repeat(6, 0)
        nibabel.save(nibabel.Nifti1Image(label, np.diag([20.0, 20, 20, 1])), root / f"labelsTr/{case}.nii.gz")
    return root


@pytest.mark.parametrize("cases", [("BraTS_1_11", "BraTS_11_1"), ("A-1", "A_1", "A1"), ("a.b", "ab"), ("_", "-"), ("é1", "1")])
def test_every_case_is_a_person_of_its_own(cases: tuple[str, ...], tmp_path: Path) -> None:
    subjects = {row.columns["case"]: row.subject for row in nnunet.read(small(tmp_path / "Dataset001_X", *cases))}
    assert set(subjects) == set(cases)
    assert len(set(subjects.values())) == len(cases)
    assert all(subject.rpartition("/sub-")[2].isalnum() and subject.isascii() for subject in subjects.values())
    # a case's name does not depend on which others are there
    alone = {row.subject for row in nnunet.read(small(tmp_path / "b/Dataset001_X", cases[0]))}
    assert alone == {subjects[cases[0]]}


def test_names_of_subjects_are_readable_and_no_name_is_that_of_another_case() -> None:
    import itertools

    assert nnunet.subject_name("BraTS001") == "BraTS001"
    assert nnunet.subject_name("BR_001").startswith("BR001x")
    assert nnunet.subject_name(nnunet.subject_name("A_1")) != nnunet.subject_name("A_1")  # a case called like another's subject
    cases = ["".join(letters) for n in range(1, 6) for letters in itertools.product("a1_-", repeat=n)]
    assert len({nnunet.subject_name(case) for case in cases}) == len(cases)


def test_an_ending_that_the_package_reads_is_taken(tmp_path: Path) -> None:
    root = small(tmp_path / "Dataset001_X", ending=".nrrd")
    head = b"NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
    head += b"space directions: (30,0,0) (0,30,0) (0,0,30)\nencoding: raw\nspace origin: (0,0,0)\n\n"
    (root / "imagesTr/A_0000.nrrd").write_bytes(head + bytes(range(120)))
    (root / "labelsTr/A.nrrd").write_bytes(head + bytes(60) + bytes([1]) * 60)
    index([root], tmp_path / "i.parquet", workers=1)
    (row,) = read_index(tmp_path / "i.parquet")
    assert (row.status, row.shape, set(row.labels)) == ("ok", (6, 5, 4), {"dseg"}), row.reasons


def test_endings_in_capitals_are_endings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = small(tmp_path / "Dataset001_X", "A", "B")
    (root / "imagesTr/A_0000.nii.gz").rename(root / "imagesTr/A_0000.NII.GZ")
    (root / "labelsTr/B.nii.gz").rename(root / "labelsTr/B.Nii.gz")
    with caplog.at_level(logging.WARNING):
        assert [(row.columns["case"], row.status, set(row.labels)) for row in nnunet.read(root)] == [
            ("A", "ok", {"dseg"}), ("B", "ok", {"dseg"}),
        ]  # fmt: skip
    assert not caplog.records


def test_a_case_and_channel_that_comes_twice_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = small(tmp_path / "Dataset001_X", "A")
    (root / "imagesTr/A_0000.nii").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert len(list(nnunet.read(root))) == 1
    assert "is the same case and channel" in caplog.text


def test_a_dataset_that_cannot_be_read_has_one_reason(tmp_path: Path) -> None:
    small(tmp_path / "all/Dataset001_X", "A", facts={"file_ending": ".png"})
    small(tmp_path / "all/Dataset002_Y", "A")
    index([tmp_path / "all"], tmp_path / "i.parquet", workers=1)
    bad, ok = sorted(read_index(tmp_path / "i.parquet"), key=lambda row: row.status)
    assert (bad.dataset, bad.status, ok.status) == ("Dataset001_X", "bad", "ok")
    assert len(bad.reasons) == 1
    assert "cannot be read" in bad.reasons[0]
