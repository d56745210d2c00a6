"""What datasets are like: a row with a reason or a word to the user for each oddity, and nobody's name anywhere."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from neuroprior.core import headers, nifti
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.records import Scan
from neuroprior.data.index import read_index
from neuroprior.readers import _people, bids
from neuroprior.stages.index import index


def scan(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (10, 10, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([9.0, 9, 9, 1])), path)
    return path


def dataset(root: Path, names: list[str], **tables: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for n, name in enumerate(names):
        scan(root / name, n)
    for table, text in tables.items():
        (root / f"{table}.tsv").write_text(text)
    return root


def read(root: Path) -> tuple[dict[str, Scan], str]:
    told: list[str] = []
    rows = {Path(row.path).relative_to(root).as_posix(): row for row in bids.read(root, tell=told.append)}
    return rows, "\n".join(told)


T1 = "sub-01/anat/sub-01_T1w.nii.gz"


@pytest.mark.parametrize(("table", "dictionary", "age", "told"), [
    ("participant_id\tage\nsub-01\t30\n", {}, 30.0, ""), ("participant_id\tage\nsub-01\t30\n", {"age": {"Units": "months"}}, 2.5, ""),
    ("participant_id\tage_months\nsub-01\t30\n", {}, 2.5, ""), ("participant_id\tage_in_weeks\nsub-01\t40\n", {}, 40 * 7 / 365.25, ""),
    ("participant_id\tage\nsub-01\t30\nsub-02\t240\n", {}, None, "no age in years"),
    ("participant_id\tage\nsub-01\t30\nsub-02\t240\n", {"age": {"Units": "month"}}, 2.5, ""),
    ("participant_id\tage\nsub-01\t030Y\n", {}, 30.0, ""), ("participant_id\tage\nsub-01\t89+\n", {}, 89.0, ""),
    ("participant_id\tage\nsub-01\told\n", {}, None, "not understood"), ("participant_id\tage\nsub-01\t-5\n", {}, None, "not understood"),
])  # fmt: skip
def test_ages(table: str, dictionary: dict[str, Any], age: float | None, told: str, tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", [T1], participants=table)
    (root / "participants.json").write_text(json.dumps(dictionary))
    rows, said = read(root)
    assert rows[T1].age == (None if age is None else pytest.approx(age))
    assert told in said


@pytest.mark.parametrize(("dictionary", "sex"), [
    ({}, None), ({"sex": {"Levels": {"0": "female", "1": "male"}}}, "M"), ({"sex": {"Levels": {"1": "F", "0": "M"}}}, "F"), ({"sex": {"Levels": "?"}}, None),
])  # fmt: skip
def test_sex_as_a_number_is_taken_only_where_it_is_explained(dictionary: dict[str, Any], sex: str | None, tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", [T1], participants="participant_id\tsex\nsub-01\t1\n")
    (root / "participants.json").write_text(json.dumps(dictionary))
    rows, said = read(root)
    assert rows[T1].sex == sex
    assert rows[T1].columns.get("sex") == (None if sex else 1)
    assert ("not understood" in said) == (sex is None)


def test_entities_that_come_twice_and_folders_that_disagree(tmp_path: Path) -> None:
    twice, elsewhere = "sub-01/anat/sub-01_acq-a_acq-b_T1w.nii.gz", "sub-02/anat/sub-03_T1w.nii.gz"
    rows, _ = read(dataset(tmp_path / "d", [twice, elsewhere]))
    assert rows[twice].status == rows[elsewhere].status == "warning"
    assert "acq- 2 times" in rows[twice].reasons[0]
    assert "the name says sub-03, the folder sub-02" in rows[elsewhere].reasons[0]


def test_the_same_scan_packed_and_unpacked_and_names_that_differ_by_case(tmp_path: Path) -> None:
    names = [T1, "sub-01/anat/sub-01_T1w.nii", "sub-a1/anat/sub-a1_T1w.nii.gz", "sub-A1/anat/sub-A1_T1w.nii.gz"]
    if (tmp_path / "CASE").mkdir() or (tmp_path / "case").exists():
        pytest.skip("this file system does not tell cases apart")
    root = dataset(tmp_path / "d", names)
    index([root], tmp_path / "i.parquet", workers=1)
    rows = {Path(row.path).relative_to(root).as_posix(): row for row in read_index(tmp_path / "i.parquet")}
    assert len(rows) == 4
    assert sorted(row.status for row in rows.values()) == ["bad", "ok", "warning", "warning"]
    assert "of the same name" in " ".join(next(row for row in rows.values() if row.status == "bad").reasons)
    assert "differs by case only" in rows["sub-a1/anat/sub-a1_T1w.nii.gz"].reasons[0]
    assert len({row.scan for row in rows.values()}) == 4


def test_two_participants_tables_that_disagree(tmp_path: Path) -> None:
    root = dataset(
        tmp_path / "d",
        [T1, "sub-02/anat/sub-02_T1w.nii.gz"],
        participants="participant_id\tage\tsex\nsub-01\t40\tF\nsub-02\t50\tM\n",
    )
    (root / "derivatives/tool").mkdir(parents=True)
    (root / "derivatives/tool/participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t41\tF\nsub-02\t50\tm\n")
    rows, _ = read(root)
    assert rows[T1].age == 40
    assert rows[T1].reasons == ("participants.tsv says age 40, that of derivatives/tool 41; the first is used",)
    assert rows["sub-02/anat/sub-02_T1w.nii.gz"].status == "ok"


def test_names_in_any_letters(tmp_path: Path) -> None:
    composed, taken_apart = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
    name = f"sub-{taken_apart}/anat/sub-{taken_apart}_T1w.nii.gz"
    root = dataset(tmp_path / "données 数据", [name], participants=f"participant_id\tage\nsub-{composed}\t33\n")
    index([root], tmp_path / "i.parquet", workers=1)
    (row,) = read_index(tmp_path / "i.parquet")
    assert (row.age, row.status, row.subject) == (33.0, "ok", f"données 数据/sub-{composed}")
    # a name that is no UTF-8 at all
    (root / "sub-02/anat").mkdir(parents=True)
    broken = os.fsencode(root / "sub-02/anat") + b"/sub-02_\xff_T1w.nii.gz"
    with open(broken, "wb") as file:
        file.write((root / name).read_bytes())
    index([root], tmp_path / "i.parquet", workers=1)
    rows = read_index(tmp_path / "i.parquet")
    assert [row.status for row in sorted(rows, key=lambda row: row.status)] == ["bad", "ok"]
    assert "no UTF-8" in next(row.reasons[0] for row in rows if row.status == "bad")


def test_datasets_nested_in_derivatives_are_no_scans(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", [T1])
    inner = dataset(root / "derivatives/copies/rawdata", ["sub-09/anat/sub-09_T1w.nii.gz"])
    deeper = dataset(root / "sub-01/derivatives/x", ["sub-08/anat/sub-08_T1w.nii.gz"])
    rows, said = read(root)
    assert set(rows) == {T1}
    assert "derivative 'copies'" in said
    assert len(read(inner)[0]) == len(read(deeper)[0]) == 1


def test_rings_of_links_end(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", [T1])
    (root / "sub-01/loop").symlink_to(root)
    (root / "sub-01/anat/again").symlink_to("../..")
    rows = list(bids.read(root))
    assert 1 <= len(rows) <= 4
    summary = index([root], tmp_path / "i.parquet", workers=1)
    assert summary.ok + summary.warning + summary.bad == len(rows)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("dtype", "slope", "intercept"), [("i2", 0.5, -3.0), ("u1", 2.0, 0.0), ("i4", 1e-3, 1e3), ("f4", 1.0, 0.0), ("f8", -2.0, 1.0)]
)
def test_mixed_endian_and_scaled_data(order: str, dtype: str, slope: float, intercept: float, tmp_path: Path) -> None:
    voxels = np.random.default_rng(3).integers(0, 200, (9, 8, 7)).astype(f"{order}{dtype}")
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(np.dtype(f"{order}{dtype}"))
    header.set_sform(np.diag([10.0, 10, 10, 1]), 1)
    header["scl_slope"], header["scl_inter"], header["vox_offset"], header["magic"] = slope, intercept, 352, b"n+1"
    path = tmp_path / "x.nii"
    path.write_bytes(header.structarr.tobytes() + bytes(4) + voxels.tobytes(order="F"))
    true = voxels.astype(np.float64) * slope + intercept
    np.testing.assert_allclose(nifti.read_scan(path)[0].voxels, true, rtol=1e-6)
    for found in (nifti.survey(path, block=100), nifti.read_surveyed(path)[1]):
        assert (found.voxels, found.n_nan, found.n_infinite) == (voxels.size, 0, 0)
        np.testing.assert_allclose((found.low, found.high), (true.min(), true.max()), rtol=1e-9)


def test_a_survey_counts_what_is_no_number_block_by_block(tmp_path: Path) -> None:
    voxels = np.random.default_rng(3).normal(size=(9, 8, 7)).astype(np.float32)
    voxels[0, 0, :3], voxels[4, 4, 4] = np.nan, -np.inf
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([10.0, 10, 10, 1])), tmp_path / "x.nii.gz")
    for block in (16, 100, 1 << 20):
        found = nifti.survey(tmp_path / "x.nii.gz", block=block)
        good = voxels[np.isfinite(voxels)]
        assert (found.n_nan, found.n_infinite) == (3, 1)
        assert (found.low, found.high) == (good.min(), good.max())
    assert nifti.check_voxels(nifti.Volume(voxels, np.eye(4))) == found.problems


def test_a_gzip_bomb_is_read_no_further_than_its_header_needs(tmp_path: Path) -> None:
    import gzip
    import time
    import tracemalloc

    path = scan(tmp_path / "x.nii")
    with gzip.open(tmp_path / "x.nii.gz", "wb", compresslevel=1) as file:
        file.write(path.read_bytes())
        for _ in range(300):
            file.write(bytes(1 << 20))
    started = time.monotonic()
    tracemalloc.start()
    assert headers.inspect_header(tmp_path / "x.nii.gz").shape == (10, 10, 10)
    assert nifti.read_scan(tmp_path / "x.nii.gz")[0].shape == (10, 10, 10)
    assert tracemalloc.get_traced_memory()[1] < 60 << 20
    tracemalloc.stop()
    assert time.monotonic() - started < 5


def test_a_header_of_astronomical_size_is_told(tmp_path: Path) -> None:
    content = bytearray(scan(tmp_path / "x.nii").read_bytes())
    struct.pack_into("<8h", content, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
    (tmp_path / "x.nii").write_bytes(content)
    for call in (headers.inspect_header, nifti.read_scan, nifti.survey):
        with pytest.raises(InputError, match="cut short"):
            call(tmp_path / "x.nii")


def test_descriptions_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = dataset(tmp_path / "d", [T1])
    sidecar = root / "sub-01/anat/sub-01_T1w.json"
    for text in ("[" * 200_000, "{", "[]", "5", '{"Manufacturer": {"a": [1]}, "MagneticFieldStrength": "x"}'):
        sidecar.write_text(text)
        rows, _ = read(root)
        assert rows[T1].status == "ok"
    monkeypatch.setattr(_people, "LARGEST_DESCRIPTION", 10)
    sidecar.write_text('{"Manufacturer": "A"}')
    rows, said = read(root)
    assert rows[T1].scanner is None
    assert "is no description" in said


READ = """
import resource, sys
from neuroprior.readers import openmind
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
before = peak()
print(sum(1 for _ in openmind.read(sys.argv[1], variables={"v": "/x"})), peak() - before)
"""


@pytest.mark.slow
def test_a_collection_of_200_megabytes(tmp_path: Path) -> None:
    """The text is held once, a dataset's objects at a time: well below the objects of the whole."""
    image = {
        "name": "x",
        "modality": "T1w",
        "image_path": "$v/a.nii.gz",
        "image_info": {"note": "n" * 900},
        "associated_masks": None,
    }
    subject = json.dumps({"subject_info": {}, "sessions": {"1": {"images": [image] * 10}}})
    with open(tmp_path / "c.json", "w") as file:
        file.write('{"collection_name": "big", "datasets": {')
        for d in range(200):
            inner = ",".join(f'"s{s}": {subject}' for s in range(100))
            file.write(f'{"," if d else ""}"d{d}": {{"subjects": {{{inner}}}}}')
        file.write("}}")
    assert (tmp_path / "c.json").stat().st_size > 200e6
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "c.json")], capture_output=True, text=True, check=True)
    found, grown_mb = done.stdout.split()
    assert int(found) == 200_000
    assert float(grown_mb) < 700


@pytest.mark.slow
def test_a_file_of_two_gigabytes(tmp_path: Path) -> None:
    import resource

    header = nibabel.Nifti1Header()
    header.set_data_shape((1100, 1000, 1000))
    header.set_data_dtype(np.int16)
    header.set_zooms((0.2, 0.2, 0.2))
    header.set_sform(np.diag([0.2, 0.2, 0.2, 1]), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "d/sub-01/anat/sub-01_T1w.nii"
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        file.write(header.structarr.tobytes() + bytes(4))
        file.seek(352 + 2 * 500_000_000)
        file.write(b"\x05\x00")
        file.truncate(352 + 2 * 1100 * 1000 * 1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = index([dataset(tmp_path / "d", [])], tmp_path / "i.parquet", workers=1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
    (row,) = read_index(tmp_path / "i.parquet")
    assert (summary.warning, row.shape, row.checks["intensity"]) == (0, (1100, 1000, 1000), "ok")
    assert row.reasons == ()
    assert row.checks["faces"].startswith("cannot tell")  # it was looked at, coarsely


PLANTED = ("Zaphod", "BEEBLEBROX", "1952-03-11", "MRN-424242", "Heart of Gold Street", "zaphod@example.org")


@pytest.mark.parametrize("kind", ["bids", "fomo", "openmind", "table"])
def test_nobody_is_named_by_the_tables_of_people(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = ("Patient Name", "birth_date", "MRN", "Address", "e-mail", "EDSS")
    cells = ("Zaphod BEEBLEBROX", "1952-03-11", "MRN-424242", "Heart of Gold Street 42", "zaphod@example.org", "2")
    root = tmp_path / "d"
    if kind == "bids":
        dataset(root, [T1], participants="\t".join(("participant_id", *columns)) + "\n" + "\t".join(("sub-01", *cells)) + "\n")
        (root / "sub-01/anat/sub-01_T1w.json").write_text(json.dumps({"PatientName": "Zaphod", "PatientBirthDate": "1952-03-11"}))
    elif kind == "fomo":
        scan(root / "sub_1/ses_1/t1.nii.gz")
        (root / "participants.tsv").write_text(
            "\t".join(("participant_id", *columns)) + "\n" + "\t".join(("sub_1", *cells)) + "\n"
        )
        (root / "mapping.tsv").write_text("participant_id\tdataset\toriginal\nsub_1\tX\tZaphod\n")
    elif kind == "openmind":
        scan(root / "t1.nii.gz")
        image = {
            "name": "t1",
            "modality": "T1w",
            "image_path": "t1.nii.gz",
            "image_info": {"patient_name": "Zaphod"},
            "associated_masks": None,
        }
        sessions = {"1": {"session_info": {"birth_date": "1952-03-11"}, "images": [image]}}
        value = {
            "collection_name": "c",
            "datasets": {"d": {"subjects": {"s": {"subject_info": dict(zip(columns, cells)), "sessions": sessions}}}},
        }
        (root / "pretrain_data.json").write_text(json.dumps(value))
    else:
        scan(root / "t1.nii.gz")
        row = {"path": "t1.nii.gz", "subject": "1", "contrast": "T1w", **dict(zip(columns, cells))}
        pd.DataFrame([row]).to_csv(root / "scans.csv", index=False)
    with caplog.at_level(logging.DEBUG):
        index([root / "scans.csv" if kind == "table" else root], tmp_path / "i.parquet", reader=kind, workers=1)
    table = pd.read_parquet(tmp_path / "i.parquet")
    assert len(table) == 1
    assert list(table["status"]) == ["ok"], list(table["reasons"])
    assert "EDSS" in table["columns"][0]
    text = table.to_csv() + caplog.text + (tmp_path / "i.parquet").read_bytes().decode("latin-1")
    for word in PLANTED:
        assert word not in text, word


def test_faces_are_flagged_and_can_be_refused(tmp_path: Path) -> None:
    x, y, z = (axis * 4.0 for axis in np.mgrid[:48, :60, :50])
    z -= 196
    head = 100.0 * (((x - 96) / 72) ** 2 + ((y - 130) / 90) ** 2 + ((z + 62) / 62) ** 2 < 1)
    whole = head.copy()
    whole[(np.abs(x - 96) < 50) & (y > 140) & (y < 205) & (z < -70) & (z > -190)] = 80
    root = dataset(tmp_path / "d", [])
    for subject, voxels in (("01", whole), ("02", head), ("03", whole * 1.01)):
        path = root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), np.diag([4.0, 4, 4, 1])), path)
    scan(root / "sub-03/anat/sub-03_mod-T1w_defacemask.nii.gz")  # the dataset says that it was defaced
    summary = index([root], tmp_path / "i.parquet", workers=1)
    told = {row.subject[-2:]: row for row in read_index(tmp_path / "i.parquet")}
    assert summary.faces == 1
    assert "1 scans show a face" in str(summary)
    assert told["01"].checks["faces"].startswith("face: ")
    assert told["02"].checks["faces"].startswith("none: ")
    assert told["03"].checks["faces"] == bids.DEFACED
    assert {row.status for row in told.values()} == {"ok"}
    index([root], tmp_path / "i.parquet", policy=["faces=skip"], workers=1)
    assert {row.subject[-2:] for row in read_index(tmp_path / "i.parquet") if row.status == "bad"} == {"01"}
    with pytest.raises(InputError, match="1 scans fail the check 'faces'"):
        index([root], tmp_path / "j.parquet", policy=["faces=fail"], workers=1)
    with pytest.raises(ConfigError, match="seen in the voxels only"):
        index([root], tmp_path / "j.parquet", policy=["faces=skip"], checks="header", workers=1)
