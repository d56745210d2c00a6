"""Each source against files whose numbers are known, and every bad input with its reason."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroprior.anatomy import FAILED, MISSING, OK, Candidate, freesurfer, labelmap, synthseg
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.records import Scan
from neuroprior.readers import bids

from . import made

# ------------------------------------------------------------------------------------------------------------ labelmap


def test_label_maps_equal_dlmuse_for_all_thirty(real_data: Path) -> None:
    root = real_data / "ixi-2mm"
    oracle = pd.read_csv(root / "derivatives/dlmuse/DLMUSE_Volumes.csv").set_index("MRID")
    singles = [code for code in oracle.columns if int(code) < 300]
    config = labelmap.Config(ignore=(69,))  # the optic chiasm, which DLMUSE's total leaves out
    found = labelmap.find(list(bids.read(root)), None, config)
    assert len(found) == 30
    for candidate, scan in zip(found, bids.read(root), strict=True):
        theirs = oracle.loc[scan.columns["source_id"]]
        ours = labelmap.measure(candidate, config)
        assert {code: round(ours.volumes_ml.get(code, 0.0) * 1000, 6) for code in singles} == {
            code: theirs[code] for code in singles
        }
        assert ours.icv_ml is not None
        assert round(ours.icv_ml * 1000, 6) == theirs["702"]


def test_ids_without_a_name_are_refused_named_or_dropped(tmp_path: Path) -> None:
    path = made.label_map(tmp_path / "a_dseg.nii.gz", {1: 100, 2: 50, 9: 8})
    names = {1: "grey", 2: "white"}
    with pytest.raises(InputError, match="1 label ids have no name in the table: 9"):
        labelmap.count(path, names, labelmap.Config())
    by_id = labelmap.count(path, names, labelmap.Config(unnamed="by_id"))
    assert by_id.volumes_ml == {"grey": 12.5, "white": 6.25, "9": 1.0}
    dropped = labelmap.count(path, names, labelmap.Config(unnamed="drop"))
    assert dropped.volumes_ml == {"grey": 12.5, "white": 6.25}
    assert dropped.icv_ml == 18.75
    assert "left out" in dropped.notes[-1]
    ignored = labelmap.count(path, names, labelmap.Config(ignore=(9,)))
    assert ignored.volumes_ml == dropped.volumes_ml


def test_ids_of_one_name_are_summed_and_absent_ones_are_zero(tmp_path: Path) -> None:
    path = made.label_map(tmp_path / "a_dseg.nii.gz", {1: 100, 2: 60})
    found = labelmap.count(path, {1: "grey", 2: "grey", 3: "ventricle"}, labelmap.Config(icv="none"))
    assert found.volumes_ml == {"grey": 20.0, "ventricle": 0.0}
    assert found.icv_ml is None


def test_real_maps_with_unnamed_ids_say_which(real_data: Path) -> None:
    root = real_data / "synthseg-labels"
    path = next(root.glob("sub-*/ses-1/anat/*_dseg.nii.gz"))
    assert labelmap.names_beside(path) is None  # the table is of desc-segmentation, the map is desc-generation
    table = root / "desc-segmentation_dseg.tsv"
    with pytest.raises(InputError, match=r"\d+ label ids have no name in desc-segmentation_dseg.tsv: .*25"):
        labelmap.count(path, labelmap.read_names(table), labelmap.Config(), table)


def test_names_are_found_as_bids_has_them(tmp_path: Path) -> None:
    path = made.label_map(tmp_path / "derivatives/x/sub-1/anat/sub-1_desc-aseg_dseg.nii.gz", {1: 1})
    (tmp_path / "derivatives/x/dataset_description.json").write_text("{}")
    assert labelmap.names_beside(path) is None
    general = made.names_table(tmp_path / "derivatives/x/dseg.tsv", {1: "a"})
    made.names_table(tmp_path / "derivatives/x/desc-other_dseg.tsv", {1: "b"})
    assert labelmap.names_beside(path) == general
    own = made.names_table(tmp_path / "derivatives/x/desc-aseg_dseg.tsv", {1: "c"})
    assert labelmap.names_beside(path) == own
    nearest = path.with_name("sub-1_desc-aseg_dseg.json")
    nearest.write_text('{"1": "d"}')
    assert labelmap.names_beside(path) == nearest
    assert labelmap.read_names(nearest) == {1: "d"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\tname\n1\ta\n", "lacks a column"),
        ("index\tname\n1\ta\n1\tb\n", "names label 1 twice"),
        ("index\tname\nx\ta\n", "no whole number"),
    ],
)
def test_a_bad_table_of_names_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dseg.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        labelmap.read_names(path)


def test_several_maps_must_be_told_apart(tmp_path: Path) -> None:
    scan = replace(made.scan(tmp_path, "sub-1"), labels={"a": "/x/sub-1_desc-a_dseg.nii.gz", "b": "/x/sub-1_desc-b_dseg.nii.gz"})
    with pytest.raises(ConfigError, match="--set label=NAME"):
        labelmap.find([scan], None, labelmap.Config())
    assert labelmap.find([scan], None, labelmap.Config(label="b"))[0].path == "/x/sub-1_desc-b_dseg.nii.gz"
    with pytest.raises(ConfigError, match="no scan of the index has a label"):
        labelmap.find([scan], None, labelmap.Config(label="c"))


def test_an_empty_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        labelmap.count(made.label_map(tmp_path / "a_dseg.nii.gz", {0: 5}), None, labelmap.Config())


# ------------------------------------------------------------------------------------------------------------ synthseg


@pytest.fixture
def scans(tmp_path: Path) -> list[Scan]:
    return made.people(tmp_path, 3)


def write(frame: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "volumes.csv"
    frame.to_csv(path, index=False)
    return path


def test_a_table_of_volumes_is_read_in_ml(scans: list[Scan], tmp_path: Path) -> None:
    frame = made.synthseg_rows(scans)
    found = synthseg.find(scans, write(frame, tmp_path), synthseg.Config())
    for k, candidate in enumerate(found):
        ours = synthseg.measure(candidate, synthseg.Config())
        assert ours.icv_ml == pytest.approx(frame[synthseg.INTRACRANIAL][k] / 1000, rel=1e-12)
        assert len(ours.volumes_ml) == 32
        assert all(ours.volumes_ml[name] == pytest.approx(frame[name][k] / 1000, rel=1e-12) for name in synthseg.NAMES.values())


def test_renamed_and_missing_columns_say_which(scans: list[Scan], tmp_path: Path) -> None:
    frame = made.synthseg_rows(scans).rename(columns={"left thalamus": "L_Thalamus"})
    with pytest.raises(InputError, match=r"1 columns are missing, 1 are not SynthSeg's(.|\n)*left thalamus(.|\n)*L_Thalamus"):
        synthseg.find(scans, write(frame, tmp_path), synthseg.Config())
    mended = synthseg.find(scans, write(frame, tmp_path), synthseg.Config(columns={"left thalamus": "L_Thalamus"}))
    assert "left thalamus" in mended[0].given
    with pytest.raises(InputError, match="total intracranial"):
        synthseg.find(scans, write(made.synthseg_rows(scans).drop(columns="total intracranial"), tmp_path), synthseg.Config())
    with pytest.raises(InputError, match="no column 'nowhere'"):
        synthseg.find(scans, write(frame, tmp_path), synthseg.Config(columns={"left thalamus": "nowhere"}))


def test_a_subject_listed_twice_is_failed(scans: list[Scan], tmp_path: Path) -> None:
    other = made.synthseg_rows(scans, seed=1)
    same = made.synthseg_rows(scans)
    path = write(pd.concat([same, other.iloc[[0]], same.iloc[[1]]]), tmp_path)
    found = synthseg.find(scans, path, synthseg.Config())
    assert [candidate.status for candidate in found] == [FAILED, OK, OK]
    assert "more than once" in found[0].reason


def test_rows_of_nobody_and_scans_without_a_row_are_told(scans: list[Scan], tmp_path: Path) -> None:
    found = synthseg.find(scans[1:], write(made.synthseg_rows(scans[:2]), tmp_path), synthseg.Config())
    assert [candidate.status for candidate in found] == [OK, MISSING, FAILED]
    assert "sub-00_T1w" in found[2].reason


def test_an_empty_cell_fails_its_row(scans: list[Scan], tmp_path: Path) -> None:
    frame = made.synthseg_rows(scans)
    frame.loc[0, "left putamen"] = np.nan
    found = synthseg.find(scans, write(frame, tmp_path), synthseg.Config())
    with pytest.raises(InputError, match="left putamen"):
        synthseg.measure(found[0], synthseg.Config())


def test_synthseg_maps_are_counted_by_its_own_names(tmp_path: Path) -> None:
    path = made.label_map(tmp_path / "a_synthseg.nii.gz", {2: 80, 41: 40, 24: 8})
    found = synthseg.measure(Candidate("", "", "", "", "", "", str(path)), synthseg.Config())
    assert found.volumes_ml["left cerebral white matter"] == 10
    assert found.volumes_ml["csf"] == 1
    assert len(found.volumes_ml) == 32
    strange = made.label_map(tmp_path / "b_synthseg.nii.gz", {2: 80, 202: 1})
    with pytest.raises(InputError, match="202"):
        synthseg.measure(Candidate("", "", "", "", "", "", str(strange)), synthseg.Config())


# ---------------------------------------------------------------------------------------------------------- freesurfer


def test_freesurfer_values_are_those_of_the_files(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "freesurfer-stats/derivatives/freesurfer"
    scan = replace(made.scan(tmp_path, "sub-soichi"), dataset="freesurfer-stats", subject="freesurfer-stats/sub-soichi")
    found = freesurfer.find([scan], folder, freesurfer.Config())
    assert [candidate.status for candidate in found] == [OK]
    ours = freesurfer.measure(found[0], freesurfer.Config())
    expected: dict[str, float] = {}
    for name, prefix, column in (("aseg", "", 3), ("wmparc", "", 3), ("lh.aparc", "ctx-lh-", 3), ("rh.aparc", "ctx-rh-", 3)):
        for line in (folder / f"sub-soichi/stats/{name}.stats").read_text().splitlines():
            words = line.split()
            if words and not line.startswith("#"):
                expected[prefix + (words[0] if prefix else words[4])] = float(words[column])
    assert len(expected) > 150
    assert {name: round(ours.volumes_ml[name] * 1000, 6) for name in expected} == expected
    assert ours.icv_ml == pytest.approx(1420.434160521, abs=1e-12)
    assert ours.volumes_ml["lhCortexVol"] == pytest.approx(232.345220912, abs=1e-12)
    assert not any("to-eTIV" in name or "Holes" in name for name in ours.volumes_ml)
    assert "name no subject ('output')" in ours.notes[0]


def test_statistics_of_another_subject_are_refused(scans: list[Scan], tmp_path: Path) -> None:
    folder = made.freesurfer_folders(scans, tmp_path / "fs")
    (folder / "sub-01/stats/aseg.stats").write_text(made.ASEG.format(name="sub-77"))
    found = freesurfer.find(scans, folder, freesurfer.Config())
    with pytest.raises(InputError, match=r"another subject(.|\n)*sub-01(.|\n)*got: sub-77"):
        freesurfer.measure(found[1], freesurfer.Config())
    assert freesurfer.measure(found[1], freesurfer.Config(generic_names=("sub-77",))).icv_ml == pytest.approx(1420.434160521)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Volume_mm3", "Volume_cm3", "no table of volumes|cannot be read"),
        ("5581.1", "broken", "a line of the statistics cannot be read"),
        ("Left-Inf-Lat-Vent ", "Left-Lateral-Ventricle ", "a line of the statistics cannot be read"),
    ],
)
def test_damaged_statistics_are_refused(scans: list[Scan], tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = made.freesurfer_folders(scans[:1], tmp_path / "fs")
    path = folder / "sub-00/stats/aseg.stats"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        freesurfer.read_stats(path)


def test_a_table_without_etiv_has_no_intracranial_volume(scans: list[Scan], tmp_path: Path) -> None:
    folder = made.freesurfer_folders(scans[:1], tmp_path / "fs")
    path = folder / "sub-00/stats/aseg.stats"
    path.write_text(re.sub(r".*eTIV, Estimated.*\n", "", path.read_text()))
    found = freesurfer.find(scans[:1], folder, freesurfer.Config())
    assert freesurfer.measure(found[0], freesurfer.Config()).icv_ml is None
