"""nnssl's pretrain_data.json: read as it lies, paths by an explicit mapping, and both ways round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuroprior.core.errors import InputError
from neuroprior.readers import bids, openmind


def collection(**image: Any) -> dict[str, Any]:
    images = [
        {"name": "sub-01_ses-01_T1w.nii.gz", "modality": "T1w", "image_path": "$openmind/ds000001/sub-01/t1.nii.gz",
         "image_info": {"manufacturer": "Siemens", "magnetic_field_strength": 3, "image_quality_score": 1.5},
         "associated_masks": {"anatomy_mask": "$openmind/ds000001/sub-01/anat.nii.gz", "anonymization_mask": None}} | image,
        {"name": "sub-01_ses-01_odd.nii.gz", "modality": "inplaneT9", "image_path": "/somewhere/odd.nii.gz", "image_info": None,
         "associated_masks": None},
    ]  # fmt: skip
    subject = {"subject_id": "sub-01", "subject_info": {"age": 30, "sex": "female", "health_status": "healthy", "bmi": 21.5},
               "sessions": {"ses-01": {"session_id": "ses-01", "session_info": {"weeks": 0}, "images": images}}}  # fmt: skip
    return {"collection_index": 7, "collection_name": "OpenMind", "datasets": {
        "ds000001": {"dataset_index": "ds000001", "dataset_info": {"License": "CC0"}, "name": "One", "subjects": {"sub-01": subject}}}}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / openmind.NAME
    path.write_text(json.dumps(collection()))
    return path


def test_a_collection_is_read(file: Path) -> None:
    assert openmind.recognises(file)
    assert openmind.recognises(file.parent)
    odd, scan = sorted(openmind.read(file, variables={"openmind": "/data/om"}), key=lambda scan: scan.status)
    assert (scan.dataset, scan.subject, scan.session, scan.contrast) == ("ds000001", "ds000001/sub-01", "ses-01", "T1w")
    assert scan.path == "/data/om/ds000001/sub-01/t1.nii.gz"
    assert scan.labels == {"anatomy_mask": "/data/om/ds000001/sub-01/anat.nii.gz"}
    assert (scan.age, scan.sex, scan.health, scan.licence, scan.scanner) == (30.0, "F", "healthy", "CC0", "Siemens 3 T")
    assert scan.columns["bmi"] == 21.5
    assert scan.columns["image_image_quality_score"] == 1.5
    assert scan.columns["session_weeks"] == 0
    assert odd.status == "bad"
    assert "unknown contrast 'inplaneT9'" in odd.reasons[0]
    mapped = list(openmind.read(file, variables={"openmind": "/data/om"}, contrast_map={"inplaneT9": "T1w"}))
    assert {scan.contrast for scan in mapped} == {"T1w"}


def test_a_variable_is_never_taken_from_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("openmind", "/from/the/environment")
    scan = next(openmind.read(file))
    assert scan.status == "bad"
    assert "--variable openmind=FOLDER" in scan.reasons[0]
    assert "/from/the/environment" not in scan.path


@pytest.mark.parametrize("path", ["$openmind/../../etc/passwd", "../up.nii.gz", "a/../../b.nii.gz", "", None, 5, "a\0b"])
def test_a_path_that_climbs_is_refused(path: Any, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(collection(image_path=path)))
    scan = next(openmind.read(tmp_path / "c.json", variables={"openmind": "/data/om"}))
    assert scan.status == "bad"


def test_it_goes_round(file: Path, tmp_path: Path, heads: Path) -> None:
    variables = {"openmind": "/data/om"}
    rows = [scan for scan in openmind.read(file, variables=variables) if scan.status != "bad"]
    assert openmind.write(rows, tmp_path / "again.json", collection="OpenMind", variables=variables) == 1
    again = list(openmind.read(tmp_path / "again.json", variables=variables))
    assert again == rows
    ours, theirs = json.loads((tmp_path / "again.json").read_text()), collection()
    (image,) = ours["datasets"]["ds000001"]["subjects"]["sub-01"]["sessions"]["ses-01"]["images"]
    assert image == theirs["datasets"]["ds000001"]["subjects"]["sub-01"]["sessions"]["ses-01"]["images"][0]
    subject = ours["datasets"]["ds000001"]["subjects"]["sub-01"]["subject_info"]
    assert subject == {"age": 30.0, "sex": "F", "health_status": "healthy", "bmi": 21.5}
    # any index goes out and comes back: people, places and contrasts are the same
    rows = list(bids.read(heads))
    openmind.write(rows, tmp_path / "heads.json", variables={"heads": str(heads)})
    assert str(heads) not in (tmp_path / "heads.json").read_text()
    back = {scan.path: scan for scan in openmind.read(tmp_path / "heads.json", variables={"heads": str(heads)})}
    for row in rows:
        scan = back[row.path]
        fields = ("dataset", "subject", "session", "contrast", "age", "sex", "health", "licence")
        assert [getattr(scan, name) for name in fields] == [getattr(row, name) for name in fields]
        assert Path(scan.path).is_file()


def test_masks_without_a_place_are_left_out_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(
        json.dumps(collection(associated_masks={"anatomy_mask": "../a.nii.gz", "anonymization_mask": 3}))
    )
    scan = next(openmind.read(tmp_path / "c.json", variables={"openmind": "/data/om"}))
    assert (scan.status, dict(scan.labels)) == ("warning", {})
    assert "anatomy_mask left out" in scan.reasons[0]


@pytest.mark.parametrize("text", [
    "", "{", "[]", "5", '{"collection_name": "x"}', '{"datasets": {"a": {"subjects": ', '{"collection_name": 5, "datasets": []}',
    '{"datasets": ' + "[" * 100_000, '{"datasets": {"a": 1} "b": 2}', '{"a" 5}',
])  # fmt: skip
def test_a_damaged_file_is_an_error_that_says_where(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError):
        list(openmind.read(tmp_path / "c.json"))


@pytest.mark.parametrize(
    "value", [None, 5, "x", [], {"subjects": []}, {"subjects": {"s": None}}, {"subjects": {"s": {"sessions": {"1": {}}}}}]
)
def test_odd_values_give_no_scan_and_no_crash(value: Any, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"collection_name": "x", "datasets": {"a": value}}))
    assert list(openmind.read(tmp_path / "c.json")) == []


def test_images_of_one_name_keep_names_of_their_own(file: Path) -> None:
    value = collection()
    images = value["datasets"]["ds000001"]["subjects"]["sub-01"]["sessions"]["ses-01"]["images"]
    images.append(images[0])
    file.write_text(json.dumps(value))
    names = [scan.scan for scan in openmind.read(file)]
    assert len(set(names)) == len(names) == 3
    assert replace(next(openmind.read(file)), path="").path == ""
