"""Every reader on the shelf: it recognises its own and nothing else, and gives scans whose files are there."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from neuroprior.core import shelf
from neuroprior.core.errors import InputError
from neuroprior.core.records import Scan
from neuroprior.readers import bids, table


@pytest.fixture
def table_file(heads: Path, tmp_path: Path) -> Path:
    rows = [
        {"filename": scan.path, "ID": scan.subject.rsplit("-", 1)[-1], "kind": "t2-flair" if scan.contrast == "FLAIR" else scan.contrast,
         "age": scan.age, "iq": 100, "label_lesion": scan.labels.get("lesion")}
        for scan in bids.read(heads)
    ]  # fmt: skip
    path = tmp_path / "scans.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


MAP = {"path": "filename", "subject": "ID", "contrast": "kind"}


@pytest.mark.parametrize("name", [name for name in shelf.names("readers") if name not in ("nnunet", "dicom")])
def test_a_reader_gives_scans_that_are_there(name: str, heads: Path, table_file: Path, tmp_path: Path) -> None:
    """nnU-Net's layout, which knows no ages, and DICOM, which is converted, have files of tests of their own."""
    reader = shelf.load("readers", name)
    root = table_file if name == "table" else heads
    if name in ("openmind", "fomo"):
        root = tmp_path / ("heads.json" if name == "openmind" else "laid")
        reader.write(bids.read(heads), root)
    assert reader.recognises(root)
    scans = list(reader.read(root, column_map=MAP) if name == "table" else reader.read(root))
    assert len(scans) == 30
    for scan in scans:
        assert isinstance(scan, Scan)
        assert Path(scan.path).is_file()
        assert Path(scan.path).is_absolute()
        assert scan.subject.startswith(f"{scan.dataset}/sub-")
        assert scan.contrast in {"T1w", "T2w", "FLAIR"}
        assert scan.age is not None
        assert all(Path(path).is_file() for path in scan.labels.values())
    assert len({scan.scan for scan in scans}) == 30


@pytest.mark.parametrize("name", shelf.names("readers"))
def test_a_reader_recognises_no_empty_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert shelf.load("readers", name).recognises(tmp_path / "empty") is None
    assert shelf.load("readers", name).recognises(tmp_path / "absent") is None


def test_a_table_without_a_column_says_how_to_name_it(table_file: Path) -> None:
    with pytest.raises(InputError, match="--column path=THEIR_NAME"):
        list(table.read(table_file))
    with pytest.raises(InputError, match="did you mean 'filename'"):
        list(table.read(table_file, column_map=MAP | {"path": "filenam"}))


def test_the_real_datasets_have_their_rows(real_data: Path) -> None:
    expected = {
        "openms-cross": 8,
        "openms-long": 14,
        "ixi-2mm": 30,
        "ds002748": 2,
        "stroke-cstar": 3,
        "orientations": 7,
        "torchio-fernando": 1,
    }
    for name, count in expected.items():
        scans = list(bids.read(real_data / name))
        assert len(scans) == count, name
        assert all(scan.contrast != "unknown" for scan in scans), name
    cross = {scan.contrast: scan for scan in bids.read(real_data / "openms-cross") if "C07" in scan.subject}
    assert set(cross) == {"T1w", "T1ce", "T2w", "FLAIR"}
    assert all("lesion" in scan.labels and scan.brain_mask for scan in cross.values())
    assert all(scan.age is not None and scan.sex in ("F", "M") for scan in bids.read(real_data / "ixi-2mm"))
