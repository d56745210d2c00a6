"""Which datasets a folder holds: a BIDS dataset never vanishes beside DICOM, and DICOM is found wherever nobody else's it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from neuroprior.data.datasets import sources_of
from neuroprior.readers import dicom


def bids(root: Path, described: bool = True) -> Path:
    image = root / "sub-01/anat/sub-01_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"x")
    if described:
        (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
    return root


def files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"IM{number}").write_bytes(bytes(128) + b"DICM")
    return folder


def found(root: Path) -> list[tuple[str, str]]:
    return [(str(one.root.relative_to(root)), one.module.__name__.rsplit(".", 1)[-1]) for one in sources_of([root], "auto")]


def test_a_bids_dataset_beside_dicom_is_two_sources(tmp_path: Path) -> None:
    bids(tmp_path / "bids1")
    files(tmp_path / "dcm/a/b")
    assert found(tmp_path) == [("bids1", "bids"), ("dcm", "dicom")]
    assert dicom.recognises(tmp_path) is None


def test_sourcedata_of_a_dataset_is_no_dataset(tmp_path: Path) -> None:
    bids(tmp_path / "one")
    bids(tmp_path / "two")
    files(tmp_path / "one/sourcedata/sub-01")
    assert found(tmp_path) == [("one", "bids"), ("two", "bids")]
    files(tmp_path / "sourcedata/sub-01")
    assert found(tmp_path) == [("one", "bids"), ("two", "bids")]
    assert found(tmp_path / "sourcedata") == [(".", "dicom")]  # unless it is asked for


def test_a_dataset_without_a_description_is_bids_for_all_its_sourcedata(tmp_path: Path) -> None:
    bids(tmp_path / "x", described=False)
    files(tmp_path / "x/sourcedata/sub-01")
    assert found(tmp_path / "x") == [(".", "bids")]
    assert dicom.recognises(tmp_path / "x") is None


def test_patients_are_one_dataset_and_a_dataset_deeper_down_is_not_swallowed(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        files(tmp_path / "all" / patient / "series")
    assert found(tmp_path / "all") == [(".", "dicom")]
    bids(tmp_path / "all/p3/converted")
    assert found(tmp_path / "all") == [("p1", "dicom"), ("p2", "dicom")]
    only = files(tmp_path / "raw/sourcedata/x").parent
    assert found(tmp_path / "raw") == [("sourcedata", "dicom")]
    assert dicom.recognises(only)


def test_loose_dicom_files_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files(tmp_path / "top")
    bids(tmp_path / "top/site")
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path / "top") == [("site", "bids")]
    assert "DICOM files that lie beside the folders of datasets are left out" in caplog.text
