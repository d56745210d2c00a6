"""nnssl's pretrain_data.json: read as it lies, paths by an explicit mapping, and both ways round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuroprior.core.errors import InputError
from neuroprior.core.records import Scan
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


FIELDS = ("dataset", "subject", "session", "contrast", "age", "sex", "health", "site", "scanner", "licence")


def known(scan: Scan) -> tuple[Any, ...]:
    columns = {
        key: value
        for key, value in scan.columns.items()
        if value is not None and key not in ("collection", "image_name", "health_status")
    }
    return (*(getattr(scan, name) for name in FIELDS), columns)


def visit(session: str, contrast: str = "T1w", **facts: Any) -> Scan:
    columns = facts.pop("columns", {})
    return Scan(
        scan=f"d/sub-1_{session}_{contrast}", dataset="d", subject="d/sub-1", session=session, contrast=contrast, contrast_raw=contrast,
        path=f"/data/{session}_{contrast}.nii.gz", columns=columns, **facts,
    )  # fmt: skip


def test_a_subject_whose_visits_differ_goes_round(tmp_path: Path) -> None:
    rows = [
        visit("ses-1", age=30.0, sex="F", site="A", columns={"EDSS": 1, "hand": "R", "session_weeks": 0, "quality": 3}),
        visit("ses-1", "T2w", age=30.0, sex="F", site="A", columns={"EDSS": 1, "hand": "R", "session_weeks": 0, "quality": 4}),
        visit("ses-2", age=38.0, sex="F", health="ms", site="B", scanner="X 3 T", columns={"EDSS": 5, "group": "A", "hand": "R", "session_weeks": 417}),
        visit("ses-3", sex="F", health="ms", site="B", columns={"hand": "R"}),
    ]  # fmt: skip
    openmind.write(rows, tmp_path / "c.json")
    again = list(openmind.read(tmp_path / "c.json"))
    assert [known(scan) for scan in again] == [known(row) for row in rows]
    assert [(scan.age, scan.columns.get("EDSS")) for scan in again] == [(30.0, 1), (30.0, 1), (38.0, 5), (None, None)]
    subject = json.loads((tmp_path / "c.json").read_text())["datasets"]["d"]["subjects"]["sub-1"]
    assert subject["subject_info"]["hand"] == "R"
    assert subject["sessions"]["ses-2"]["session_info"]["age"] == 38.0
    assert "hand" not in subject["sessions"]["ses-2"]["session_info"]
    assert subject["sessions"]["ses-1"]["images"][1]["image_info"] == {"quality": 4}


def test_the_age_of_a_visit_goes_before_that_of_the_subject(tmp_path: Path) -> None:
    value = collection()
    subject = value["datasets"]["ds000001"]["subjects"]["sub-01"]
    for info, age in (({"age": 38}, 38), ({"age_at_scan": 38}, 38), ({"age": None}, None), ({}, 30), (None, 30)):
        subject["sessions"]["ses-01"]["session_info"] = info
        (tmp_path / "c.json").write_text(json.dumps(value))
        assert {scan.age for scan in openmind.read(tmp_path / "c.json")} == {age}, info
    del subject["subject_info"]["age"]
    subject["sessions"]["ses-01"]["session_info"] = {"age": 38}
    (tmp_path / "c.json").write_text(json.dumps(value))
    (scan, _) = openmind.read(tmp_path / "c.json")
    assert (scan.age, "session_age" in scan.columns) == (38.0, False)


def test_ages_in_months_spoil_the_ages_of_their_dataset_alone(tmp_path: Path) -> None:
    def person(age: Any, name: str) -> dict[str, Any]:
        images = [{"name": name, "modality": "T1w", "image_path": name}]
        return {"subject_info": {"age": age}, "sessions": {"1": {"images": images}}}

    value = {"collection_name": "c", "datasets": {
        "d": {"subjects": {"s1": person(240, "a.nii"), "s2": person(30, "b.nii")}}, "e": {"subjects": {"s1": person(30, "c.nii")}},
        "f": {"subjects": {"s1": {"subject_info": {"age": 30}, "sessions": {"1": {"session_info": {"age": 240}, "images": [
            {"name": "x", "modality": "T1w", "image_path": "x.nii"}]}, "2": {"images": [{"name": "y", "modality": "T1w", "image_path": "y.nii"}]}}}}},
    }}  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(value))
    told: list[str] = []
    rows = {Path(scan.path).stem: scan for scan in openmind.read(tmp_path / "c.json", tell=told.append)}
    assert {name: row.age for name, row in rows.items()} == {"a": None, "b": None, "c": 30.0, "x": None, "y": None}
    assert (rows["a"].columns["age"], rows["b"].columns["age"]) == (240, 30)
    assert told[0].startswith("d: the column 'age' holds 240, which is no age in years")


def test_masks_and_labels_without_a_place_are_told(tmp_path: Path) -> None:
    labels = {"lesion": "/data/l.nii.gz", "anatomy_mask": "/data/a.nii.gz"}
    rows = [visit("ses-1", labels=labels, brain_mask="/data/b.nii.gz"), visit("ses-2", labels=labels)]
    told: list[str] = []
    openmind.write(rows, tmp_path / "c.json", tell=told.append)
    assert told == [
        "the brain mask of 1 scan(s) has no place in c.json and is left out", "the label 'lesion' of 2 scan(s) has no place in c.json and is left out",
    ]  # fmt: skip
    assert [dict(scan.labels) for scan in openmind.read(tmp_path / "c.json")] == [{"anatomy_mask": "/data/a.nii.gz"}] * 2


def test_a_scanner_of_the_subject_is_the_scanner(tmp_path: Path) -> None:
    value = collection()
    value["datasets"]["ds000001"]["subjects"]["sub-01"]["subject_info"]["scanner"] = "Other"
    (tmp_path / "c.json").write_text(json.dumps(value))
    assert {scan.scanner for scan in openmind.read(tmp_path / "c.json")} == {"Other"}
