"""Planted names, birth dates and days of visits, from every kind of table through index, prepare and audit: they are in nothing that was written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from neuroprior.core.errors import LeakageError
from neuroprior.data.index import read_index
from neuroprior.data.store import Store
from neuroprior.readers import bids
from neuroprior.stages.audit import audit
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare

PEOPLE = {
    "PatientBirthDate": ("19520311", "19520312"), "patient_birth_date": ("1952-03-11", "1952-03-12"), "OtherPatientNames": ("Zaphod", "Trillian"),
    "AccessionNumber": ("ACC777", "ACC778"), "Nachname": ("BEEBLEBROX", "McMILLAN"), "operator": ("DrMarvin", "DrMarvin"),
    "scan_date": ("2009-06-15", "2009-06-16"), "Post Code": ("ZZ99", "ZZ98"), "PatientID": ("PAT5", "PAT6"), "EDSS": ("2", "3"),
}  # fmt: skip
PLANTED = tuple(
    sorted({cell for name, cells in PEOPLE.items() if name != "EDSS" for cell in cells} | {"2009-06", "13:45", "20090615"})
)


def scan(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (16, 16, 16)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([9.0, 9, 9, 1])), path)


def plant(kind: str, root: Path) -> Path:
    rows = [{name: cells[n] for name, cells in PEOPLE.items()} for n in range(2)]
    if kind == "bids":
        for n in range(2):
            scan(root / f"sub-{n}/anat/sub-{n}_T1w.nii.gz", n)
            (root / f"sub-{n}/sub-{n}_scans.tsv").write_text(
                f"filename\tacq_time\toperator\nanat/sub-{n}_T1w.nii.gz\t2009-06-15T13:45:30\tDrMarvin\n"
            )
            (root / f"sub-{n}/anat/sub-{n}_T1w.json").write_text(json.dumps(rows[n]))
        (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
        frame = pd.DataFrame([{"participant_id": f"sub-{n}", **row} for n, row in enumerate(rows)])
        frame.to_csv(root / "participants.tsv", sep="\t", index=False)
    elif kind == "fomo":
        for n in range(2):
            scan(root / f"sub_{n}/ses_1/t1.nii.gz", n)
        frame = pd.DataFrame([{"participant_id": f"sub_{n}", **row} for n, row in enumerate(rows)])
        for name in ("participants", "mapping", "mri_info"):
            frame.to_csv(root / f"{name}.tsv", sep="\t", index=False)
    elif kind == "openmind":
        subjects = {}
        for n, row in enumerate(rows):
            scan(root / f"{n}.nii.gz", n)
            image = {"name": "t1", "modality": "T1w", "image_path": f"{n}.nii.gz", "image_info": row}
            subjects[f"s{n}"] = {"subject_info": row, "sessions": {"1": {"session_info": row, "images": [image]}}}
        value = {"collection_name": "c", "datasets": {"d": {"subjects": subjects}}}
        (root / "pretrain_data.json").write_text(json.dumps(value))
    else:
        for n in range(2):
            scan(root / f"{n}.nii.gz", n)
        frame = pd.DataFrame([{"path": f"{n}.nii.gz", "subject": str(n), "contrast": "T1w", **row} for n, row in enumerate(rows)])
        frame.to_csv(root / "scans.csv", index=False)
        return root / "scans.csv"
    return root


def everything(folder: Path) -> str:
    """All that was written, tables unpacked, and what a store says of its sessions."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            texts.append(f"{path}\n{path.read_bytes().decode('latin-1')}")
            if path.suffix == ".parquet":
                texts.append(pd.read_parquet(path).to_csv())
    texts += [repr(session) for session in Store.open(folder / "store").sessions]
    return "\n".join(texts)


@pytest.mark.parametrize("kind", ["bids", "fomo", "openmind", "table"])
def test_what_was_planted_is_nowhere(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = plant(kind, tmp_path / "data")
    out = tmp_path / "out"
    with caplog.at_level(logging.DEBUG):
        index([root], out / "i.parquet", reader=kind, workers=1, pretrain_json=out / "pretrain.json")
        prepare(out / "i.parquet", out / "store", spacing="9", workers=1)
        audit([out / "i.parquet"], out / "audit.parquet", target=["EDSS"], voxels=2, permutations=99, workers=1, progress=False)
    assert [row.status for row in read_index(out / "i.parquet")] == ["ok", "ok"]
    written = everything(out) + caplog.text
    assert "EDSS" in written
    assert "may say who somebody is" in caplog.text
    assert caplog.text.count("the column 'Nachname' may say") == 1  # not once a subject
    for word in PLANTED:
        assert word not in written, word


def test_rows_that_disagree_are_named_and_their_cells_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = plant("bids", tmp_path / "data/one")
    plant("bids", tmp_path / "data/two")
    (root / "participants.tsv").write_text(
        "participant_id\tname\tbirth_date\tEDSS\nsub-0\tZaphod\t1952-03-11\t1\nsub-1\tFord\t1950-01-01\t1\nsub-0\tZaphod\t1952-03-12\t2\n"
    )
    with caplog.at_level(logging.DEBUG):
        index([tmp_path / "data"], tmp_path / "i.parquet", workers=1)
    bad = next(row for row in read_index(tmp_path / "i.parquet") if row.status == "bad")
    text = caplog.text + repr(bad) + (tmp_path / "i.issues.tsv").read_text()
    assert "birth_date (not shown)" in bad.reasons[0]
    assert "rows 2 and 4" in bad.reasons[0]
    assert "EDSS='1' / '2'" in bad.reasons[0]
    for word in ("Zaphod", "1952"):
        assert word not in text
    with pytest.raises(LeakageError) as error:
        list(bids.read(root))
    assert "1952" not in str(error.value)


def test_a_time_of_acquisition_becomes_days_since_the_first_scan(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for name in ("sub-1/ses-a/anat/sub-1_ses-a_T1w", "sub-1/ses-b/anat/sub-1_ses-b_T1w", "sub-1/ses-b/anat/sub-1_ses-b_T2w", "sub-2/anat/sub-2_T1w",
                 "sub-3/anat/sub-3_T1w"):  # fmt: skip
        scan(root / f"{name}.nii.gz", 0)
    (root / "participants.tsv").write_text("participant_id\tdays\nsub-2\t5\n")
    (root / "sub-1/sub-1_sessions.tsv").write_text(
        "session_id\tacq_time\nses-a\t1877-06-15T13:45:30\nses-b\t1878-06-15T01:00:00.25Z\n"
    )
    (root / "sub-1/ses-b/sub-1_ses-b_scans.tsv").write_text(
        "filename\tacq_time\nanat/sub-1_ses-b_T2w.nii.gz\t1878-06-16T09:00:00\n"
    )
    (root / "sub-2/sub-2_scans.tsv").write_text("filename\tacq_time\nanat/sub-2_T1w.nii.gz\t2009-06-15\n")
    (root / "sub-3/sub-3_scans.tsv").write_text("filename\tacq_time\nanat/sub-3_T1w.nii.gz\tJune 2009\n")
    told: list[str] = []
    rows = {Path(row.path).name.removesuffix(".nii.gz"): row.columns for row in bids.read(root, tell=told.append)}
    assert [rows[name].get("days") for name in ("sub-1_ses-a_T1w", "sub-1_ses-b_T1w", "sub-1_ses-b_T2w")] == [0, 365, 366]
    assert rows["sub-2_T1w"] == {"days": 5, "days_since_first": 0, "acquisition_year": 2009}
    assert not any("acquisition_year" in rows[name] for name in rows if name != "sub-2_T1w")  # 1877 is a shifted date
    assert rows["sub-3_T1w"] == {}
    assert any("sub-3: an acq_time cannot be read and is left out" in text for text in told)
    assert not any("2009" in text for text in told)
