"""DICOM trees made here: geometry against the numbers they were made from, faults told, and nobody named anywhere."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from neuroprior.core.errors import InputError
from neuroprior.data.index import read_index, read_table
from neuroprior.readers import dicom
from neuroprior.readers._dicom_contrast import guess
from neuroprior.readers._dicom_people import People
from neuroprior.stages.audit import audit
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare
from neuroprior.stages.report import report

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
pytest.importorskip("dcm2niix", reason="the extra `dicom` is not installed")

PLANTED = ("Zaphod", "BEEBLEBROX", "MRN-424242", "19520311", "Heart of Gold", "Magrathea", "20240229", "DrMarvin")
"""What must be found nowhere: name, identifier, birth date, institution, address, study date, physician."""
T1 = {"RepetitionTime": 2300.0, "EchoTime": 2.98, "InversionTime": 900.0, "FlipAngle": 9.0, "ScanningSequence": ["GR", "IR"],
      "SeriesDescription": "t1_mprage_sag"}  # fmt: skip
MP2RAGE = T1 | {"RepetitionTime": 5000.0, "InversionTime": 700.0, "FlipAngle": 4.0}
LONG = {"ScanningSequence": "GR", "RepetitionTime": 28, "EchoTime": 20}
Make = Callable[..., Path]


def series(
    folder: Path, number: int = 1, *, slices: int = 12, shift: float = 0.0, skip: tuple[int, ...] = (), **tags: Any
) -> list[Path]:
    """An axial series of 16 x 20 pixels of 2 x 1.5 mm, slices of 3 mm; the value of a pixel says where it is."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for k in range(slices):
        if k in skip:
            continue
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.MediaStorageSOPClassUID = MRImageStorage
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, f"1.2.3.{number}.{k + 1}"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.Modality, data.Manufacturer, data.ManufacturerModelName, data.MagneticFieldStrength = "MR", "SIEMENS", "Prisma", 3.0
        data.PatientName, data.PatientID, data.PatientBirthDate = "BEEBLEBROX^Zaphod", "MRN-424242", "19520311"
        data.PatientSex, data.StudyDate, data.InstitutionName = "M", "20240229", "Heart of Gold"
        data.PatientAddress, data.ReferringPhysicianName = "Magrathea", "DrMarvin"
        data.ImageComments = "Zaphod BEEBLEBROX"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = (
            "1.2.3",
            f"1.2.3.{number}",
            number,
            k + 1,
        )
        data.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [-16.0, -15.0 + shift * k, -20.0 + 3.0 * k]
        data.PixelSpacing, data.SliceThickness, data.SpacingBetweenSlices = [1.5, 2.0], 3.0, 3.0
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 20, 16, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        rows, columns = np.mgrid[:20, :16]
        data.PixelData = (columns + 20 * rows + 500 * k).astype(np.uint16).tobytes()
        for tag, value in (T1 | tags).items():
            setattr(data, tag, value(k) if callable(value) else value)
        path = folder / f"Zaphod-{number}-{k}"
        data.save_as(path, enforce_file_format=True)
        made.append(path)
    return made


def the_row(root: Path, into: Path) -> Any:
    (row,) = dicom.read(root, into=into)
    return row


def test_the_volume_lies_where_the_slices_said(tmp_path: Path) -> None:
    series(tmp_path / "in/a")
    assert "DICM" in str(dicom.recognises(tmp_path / "in"))
    row = the_row(tmp_path / "in", tmp_path / "out")
    assert (row.status, row.reasons, row.contrast) == ("ok", (), "T1w")
    image = nibabel.load(row.path)
    assert sorted(image.shape) == [12, 16, 20]
    voxels = np.asarray(image.dataobj)
    # the voxel at any place holds the value that was drawn there: patient x (left) by columns, y (back) by rows, z by slices
    for column, line, k in ((0, 0, 0), (15, 0, 3), (3, 19, 11)):
        lps = np.array([-16.0 + 2.0 * column, -15.0 + 1.5 * line, -20.0 + 3.0 * k])
        at = np.rint(np.linalg.inv(image.affine) @ [-lps[0], -lps[1], lps[2], 1]).astype(int)[:3]
        assert voxels[tuple(at)] == column + 20 * line + 500 * k
    assert (row.age, row.sex, row.scanner) == (71.0, "M", "SIEMENS Prisma 3 T")
    assert row.columns["contrast_confidence"] == 0.85


def test_it_is_converted_once(tmp_path: Path) -> None:
    series(tmp_path / "in")
    first = the_row(tmp_path / "in", tmp_path / "out")
    stamp = Path(first.path).stat().st_mtime_ns
    assert the_row(tmp_path / "in", tmp_path / "out") == first
    assert Path(first.path).stat().st_mtime_ns == stamp
    series(tmp_path / "in", slices=13)
    assert Path(the_row(tmp_path / "in", tmp_path / "out").path).stat().st_mtime_ns != stamp


@pytest.mark.parametrize(("options", "reason"), [
    ({"skip": (5,)}, "about 1 slices are missing"), ({"skip": (5, 6, 9)}, "slices are missing"), ({"shift": 0.3}, "tilted by 5.7 degrees"),
    ({"slices": 3}, "no volume"), ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localiser"),
    ({"ImagePositionPatient": lambda k: [0.0, 0.0, 3.0 * (k // 2)], "slices": 24}, "duplicate positions"),
    ({"ImagePositionPatient": lambda k: [0.0, 0.0, 3.0 * max(k, 1)]}, "duplicate positions"),
    ({"ImageOrientationPatient": lambda k: [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, -1]}, "several orientations"),
    ({"GantryDetectorTilt": 12.0}, "tilted by 12.0 degrees"),
    ({"EchoTime": lambda k: 5.0 * (1 + k % 2), "ImagePositionPatient": lambda k: [0.0, 0.0, 3.0 * (k // 2)], "slices": 24}, "holds 2 volumes"),
    ({"skip": (11,), "ImagesInAcquisition": 12}, "1 slices are missing: the files state 12 images"),
    ({"skip": (0, 1), "ImagesInAcquisition": 12}, "2 slices are missing: the files state 12 images"),
    ({"slices": 24, "skip": tuple(range(1, 24, 2))}, "11 slices are missing: the files state a step of 3.0 mm, and slices lie 6.0 mm apart"),
])  # fmt: skip
def test_a_fault_is_a_row_with_its_reason(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    series(tmp_path / "in", **options)
    row = the_row(tmp_path / "in", tmp_path / "out")
    assert row.status == "bad"
    assert reason in "; ".join(row.reasons)
    assert not Path(row.path).exists()


RENUMBERED = {"slices": 24, "skip": tuple(range(1, 24, 2)), "InstanceNumber": lambda k: 1 + k // 2}


@pytest.mark.parametrize(("options", "note"), [
    ({"skip": (0, 1)}, "the numbers of the images begin at 3: slices may be missing"),
    ({"InstanceNumber": lambda k: 2 * k + 1}, "the numbers of the images leave out 11: slices may be missing"),
    (RENUMBERED, "the files state a step of 3.0 mm, and slices lie 6.0 mm apart: slices may be missing"),
    ({"SpacingBetweenSlices": 2.0}, "the files state a step of 2.0 mm, and slices lie 3.0 mm apart: slices may be missing"),
    ({"ImagesInAcquisition": 24}, "the files state 24 images in the acquisition and 12 are here: other series may hold the others"),
])  # fmt: skip
def test_what_is_no_certain_fault_is_a_note(options: dict[str, Any], note: str, tmp_path: Path) -> None:
    series(tmp_path / "in", **options)
    row = the_row(tmp_path / "in", tmp_path / "out")
    assert (row.status, row.reasons) == ("warning", (note,))


@pytest.mark.parametrize("options", [
    {"ImagesInAcquisition": 12}, {"InstanceNumber": lambda k: k + 101, "ImagesInAcquisition": 12}, {"InstanceNumber": lambda k: k},
    {"SliceThickness": 2.5, "SpacingBetweenSlices": 0.5},  # a scanner that writes the gap
    {"SliceThickness": 6.0}, {"SpacingBetweenSlices": None, "InstanceNumber": None},
])  # fmt: skip
def test_a_whole_series_has_no_note(options: dict[str, Any], tmp_path: Path) -> None:
    series(tmp_path / "in", **options)
    row = the_row(tmp_path / "in", tmp_path / "out")
    assert (row.status, row.reasons) == ("ok", ())


def enhanced(
    path: Path, *, frames: int = 12, skip: tuple[int, ...] = (), stated: int | None = None, echoes: int = 1, groups: bool = True
) -> Path:
    """The series of above as one enhanced file; times lie in the functional groups alone."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence
    from pydicom.uid import EnhancedMRImageStorage

    def group(**values: Any) -> Sequence:
        item = Dataset()
        for tag, value in values.items():
            setattr(item, tag, value)
        return Sequence([item])

    made = series(path.parent / "single", slices=frames)
    sources = [dcmread(file) for k, file in enumerate(made) if k not in skip for _ in range(echoes)]
    data = dcmread(made[0])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "PixelSpacing",
                "SliceThickness", "SpacingBetweenSlices", "ScanningSequence"):  # fmt: skip
        delattr(data, tag)
    data.EchoPulseSequence, data.InversionRecovery, data.EchoPlanarPulseSequence = "GRADIENT", "YES", "NO"
    data.NumberOfFrames = len(sources) if stated is None else stated
    data.PixelData = b"".join(source.PixelData for source in sources)
    shared, own = Dataset(), []
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.PixelMeasuresSequence = group(PixelSpacing=[1.5, 2.0], SliceThickness=3.0, SpacingBetweenSlices=3.0)
    shared.MRTimingAndRelatedParametersSequence = group(RepetitionTime=2300.0, FlipAngle=9.0)
    shared.MRModifierSequence = group(InversionTimes=[900.0])
    for number, source in enumerate(sources):
        frame = Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=source.ImagePositionPatient)
        frame.MREchoSequence = group(EffectiveEchoTime=2.98 + 3.0 * (number % echoes))
        frame.FrameContentSequence = group(
            StackID="1", InStackPositionNumber=number // echoes + 1, DimensionIndexValues=[1, number // echoes + 1]
        )
        own.append(frame)
    if groups:
        data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(own)
    for file in made:
        file.unlink()
    data.save_as(path, enforce_file_format=True)
    return path


def test_an_enhanced_file_is_read_frame_by_frame(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    enhanced(tmp_path / "in/whole")
    row = the_row(tmp_path / "in", tmp_path / "out")
    assert (row.status, row.reasons, row.contrast, row.columns["slices"]) == ("ok", (), "T1w", 12)
    assert row.columns["contrast_why"] == "GR IR TR 2300 TE 2.98 TI 900 flip 9"
    assert sorted(nibabel.load(row.path).shape) == [12, 16, 20]


@pytest.mark.parametrize(("options", "reason"), [
    ({"skip": (5,)}, "about 1 slices are missing"), ({"stated": 13}, "state 13 frames and describe 12"), ({"echoes": 2}, "holds 2 volumes"),
    ({"frames": 4}, "4 slices are no volume"), ({"frames": 24, "skip": tuple(range(1, 24, 2))}, "slices lie 6.0 mm apart: slices may be missing"),
    ({"groups": False}, "the places of its 12 frames are not stated: whether slices are missing was not checked"),
])  # fmt: skip
def test_faults_of_an_enhanced_file_are_found(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    enhanced(tmp_path / "in/whole", **options)
    row = the_row(tmp_path / "in", tmp_path / "out")
    assert row.status != "ok"
    assert reason in "; ".join(row.reasons)


def test_what_shows_no_contrast_is_mapped_by_what_it_is(tmp_path: Path) -> None:
    series(tmp_path / "in", ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
    for mapping, contrast, status in (({"unknown": "T1w"}, "unknown", "bad"), ({"phase": "SWI"}, "SWI", "warning")):
        (row,) = dicom.read(tmp_path / "in", into=tmp_path / "out", contrast_map=mapping)
        assert (row.contrast, row.contrast_raw, row.status) == (contrast, "phase", status)
    (row,) = dicom.read(tmp_path / "in", into=tmp_path / "out")
    assert row.reasons[0].startswith("it shows no contrast of the vocabulary (a phase image)")
    assert "phase: T1w" in row.reasons[0]


def test_folders_too_far_down_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series(tmp_path / "in/a")
    series(tmp_path.joinpath("in", *"bcdefghijklmno"), 2)
    with caplog.at_level(logging.INFO):
        the_row(tmp_path / "in", tmp_path / "out")
    assert "1 folders more than 12 levels down are left out" in caplog.text


def test_links_are_followed_once(tmp_path: Path) -> None:
    series(tmp_path / "elsewhere/a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/ring").symlink_to(tmp_path / "in")
    (tmp_path / "in/again").symlink_to(tmp_path / "elsewhere/a")
    row = the_row(tmp_path / "in", tmp_path / "out")
    assert (row.status, row.reasons, row.columns["slices"]) == ("ok", (), 12)


def test_copies_other_modalities_and_rubbish_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = series(tmp_path / "in/a")
    series(tmp_path / "in/ct", 2, Modality="CT")
    (tmp_path / "in/b").mkdir()
    (tmp_path / "in/b/copy").write_bytes(made[3].read_bytes())
    (tmp_path / "in/notes.txt").write_text("Zaphod")
    (tmp_path / "in/broken").write_bytes(made[0].read_bytes()[:150])
    with caplog.at_level(logging.INFO):
        row = the_row(tmp_path / "in", tmp_path / "out")
    assert row.status == "warning"
    assert "1 copies of slices are left out" in row.reasons
    assert "12 DICOM files of another modality" in caplog.text
    assert "1 files that are no DICOM" in caplog.text
    assert "1 damaged DICOM files" in caplog.text
    with pytest.raises(InputError, match="no magnetic resonance series"):
        list(dicom.read(tmp_path / "in/ct", into=tmp_path / "none"))


def test_two_visits_are_two_sessions_of_one_subject(tmp_path: Path) -> None:
    series(tmp_path / "in/later", 2, StudyInstanceUID="1.2.9", StudyDate="20250301")
    series(tmp_path / "in/sooner", 1)
    series(tmp_path / "in/other", 3, PatientID="another", StudyInstanceUID="1.2.8")
    rows = list(dicom.read(tmp_path / "in", into=tmp_path / "out"))
    assert len({row.subject for row in rows}) == 2
    days = sorted((row.subject, row.session, row.columns["days_since_first"]) for row in rows)
    assert sorted(day for _, _, day in days) == [0, 0, 366]
    assert next(session for _, session, day in days if day == 366) == "ses-02"
    again = list(dicom.read(tmp_path / "in", into=tmp_path / "elsewhere"))
    assert not {row.subject for row in rows} & {row.subject for row in again}  # another key, another pseudonym


def texts_of(folder: Path, *besides: Path) -> list[str]:
    """Names and contents of all files below a folder, archives unpacked, but not of those in ``besides``."""
    import pandas as pd

    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(path.is_relative_to(one) for one in besides):
            continue
        content = path.read_bytes()
        found += [str(path.relative_to(folder)), content.decode("latin-1")]
        found += [gzip.decompress(content).decode("latin-1")] if path.suffix == ".gz" else []
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            found += [pd.read_parquet(path).to_csv(), str(pq.read_schema(path).metadata)]
    return found


def nobody_in(texts: list[str], tmp_path: Path) -> None:
    for word in PLANTED:
        for text in texts:
            assert word.lower() not in text.lower().replace(str(tmp_path).lower(), ""), word


def test_nobody_is_named_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series(tmp_path / "in/Zaphod BEEBLEBROX")
    series(tmp_path / "in/bad", 2, skip=(4,), SeriesDescription="Zaphod T2 19520311")
    series(tmp_path / "in/odd", 3, ScanningSequence="RM", EchoTime=50.0, RepetitionTime=1500.0, InversionTime=None,
           SeriesDescription="MRN-424242")  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        summary = index([tmp_path / "in"], tmp_path / "index.parquet", workers=1)
    assert any(p.name == "image.nii.gz" for p in tmp_path.rglob("*"))
    assert summary.bad == 2
    assert list(summary.datasets) == ["in"]
    nobody_in([caplog.text, str(summary), repr(summary), *texts_of(tmp_path, tmp_path / "in")], tmp_path)


ROOTS = (
    "Zaphod_BEEBLEBROX",
    "beeblebrox",
    "ZaphodBeeblebrox",
    "MRN424242",
    "x-424242",
    "1952-03-11",
    "Zaphod/trial2",
    "z%C3%A4phod-Zäphod",
)


@pytest.mark.parametrize("root", ROOTS)
def test_a_folder_named_after_its_patient_is_not_written_down(
    root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series(tmp_path / "dicom" / root / "a")
    with caplog.at_level(logging.DEBUG):
        summary = index([tmp_path / "dicom" / root], tmp_path / "out/index.parquet", workers=1, checks="header")
    (name,) = summary.datasets
    assert name.startswith("dicom-") == (root != "Zaphod/trial2")
    assert [shown.startswith("dicom-") for shown in summary.readers] == [True]
    (row,) = read_index(tmp_path / "out/index.parquet")
    assert (row.dataset, row.status) == (name, "ok")
    nobody_in([caplog.text, str(summary), repr(summary), *texts_of(tmp_path / "out")], tmp_path)
    if name.startswith("dicom-"):
        assert "rename the folder or give a link to it with another name" in " ".join(caplog.text.split())
    again = index([tmp_path / "dicom" / root], tmp_path / "out/index.parquet", workers=1, checks="header")
    assert (again.reused, again.datasets, again.readers) == (1, summary.datasets, summary.readers)
    (tmp_path / "trial1").symlink_to(tmp_path / "dicom" / root)
    assert list(index([tmp_path / "trial1"], tmp_path / "link.parquet", workers=1, checks="header").datasets) == ["trial1"]


def test_a_folder_that_names_nobody_keeps_its_name(tmp_path: Path) -> None:
    series(tmp_path / "trial1", PatientName="TRIAL^ONE^ANON", PatientID="7")
    (row,) = dicom.read(tmp_path / "trial1")
    assert row.scan.startswith("trial1/sub-")
    assert Path(row.path).is_relative_to(tmp_path / "dicom-converted")


@pytest.mark.parametrize(("name", "folder", "told"), [
    ("Müller^Änne", "mueller", 1), ("Müller^Änne", "MULLER_anne", 2), ("Lee^Ann", "sleeping_annals", 0), ("Lee^Ann", "annlee", 2), ("Lee^Ann", "Lee", 1),
    ("Yamada^Tarou=山田^太郎", "山田太郎", 2), ("Anonymous^Patient", "anonymous_patient", 0), ("X^Y", "x", 0), ("Beeblebrox^Zaphod", "exbeeblebroxes", 1),
    ("", "trial1", 0),
])  # fmt: skip
def test_how_much_a_folders_name_tells(name: str, folder: str, told: int) -> None:
    people = People()
    people.add({"PatientName": name, "PatientID": "12"})
    assert people.told_by(folder) == told


def test_a_studys_name_in_front_of_its_numbers_is_no_patients_name() -> None:
    people = People()
    people.add({"PatientName": "SITE-GBM-0012", "PatientID": "SITE-GBM-0012"})
    assert [people.told_by(name) for name in ("SITE-GBM", "gbm", "SITE-GBM-0012", "site_gbm_0012_x")] == [0, 0, 2, 2]


def test_an_index_below_a_patients_folder_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series(tmp_path / "Zaphod_BEEBLEBROX/a")
    with pytest.raises(InputError, match="named as a patient is") as caught:
        index([tmp_path / "Zaphod_BEEBLEBROX/a"], tmp_path / "Zaphod_BEEBLEBROX/index.parquet", workers=1)
    assert not list(tmp_path.rglob("*.nii.gz"))
    nobody_in([str(caught.value)], tmp_path)
    series(tmp_path / "zaphod/b")
    with caplog.at_level(logging.WARNING):
        index([tmp_path / "zaphod/b"], tmp_path / "zaphod/index.parquet", workers=1, checks="header")
    assert "every path will say it" in caplog.text


def test_a_patients_folder_that_cannot_be_read_is_not_written_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series(tmp_path / "all/Zaphod_BEEBLEBROX", Modality="CT")
    series(tmp_path / "all/other/deep", PatientID="another", PatientName="Dent^Arthur")
    series(tmp_path / "more/Zaphod_BEEBLEBROX", 5)
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(InputError) as caught:
            index([tmp_path / "all/Zaphod_BEEBLEBROX"], tmp_path / "out/alone.parquet", reader="dicom", workers=1)
        summary = index(sorted((tmp_path / "all").iterdir()) + sorted((tmp_path / "more").iterdir()), tmp_path / "out/index.parquet", workers=1,
                        checks="header")  # fmt: skip
    assert (summary.ok + summary.warning, summary.bad) == (2, 1)
    nobody_in([caplog.text, str(caught.value), repr(summary), *texts_of(tmp_path / "out")], tmp_path)


def test_nobody_is_named_on_the_way_to_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    roots = []
    for k, name in enumerate(("Zaphod_BEEBLEBROX", "MRN-424242", "plain")):
        series(tmp_path / "in" / name / "a", k + 1, slices=24, StudyInstanceUID=f"1.2.{k}", PixelData=lambda z, k=k: speckle(z, k),
               **({} if k < 2 else {"PatientID": "another", "PatientName": "Dent^Arthur"}))  # fmt: skip
        roots.append(tmp_path / "in" / name)
    with caplog.at_level(logging.DEBUG):
        summary = index(roots, tmp_path / "out/index.parquet", workers=1)
        made = prepare(tmp_path / "out/index.parquet", tmp_path / "out/store", workers=1)
        audited = audit([tmp_path / "out/index.parquet"], tmp_path / "out/audit.parquet")
        report([tmp_path / "out/audit.parquet"], tmp_path / "out/report.html")
    assert (made.scans, summary.bad) == (3, 0)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.html"))
    nobody_in([caplog.text, str(summary), str(made), str(audited), *texts_of(tmp_path / "out")], tmp_path)


def speckle(z: int, seed: int) -> bytes:
    """A slice of a head-like ellipse of noise."""
    rows, columns = np.mgrid[:20, :16]
    inside = ((rows - 10) / 9) ** 2 + ((columns - 8) / 7) ** 2 + ((z - 12) / 11) ** 2 < 1
    return (inside * np.random.default_rng([seed, z]).integers(300, 900, (20, 16))).astype(np.uint16).tobytes()


def test_a_patient_of_two_datasets_is_in_one_split(tmp_path: Path) -> None:
    roots = []
    for k in range(12):
        number = 2 * k + 1
        for place in range(2):
            root = tmp_path / f"site{place}" / f"set{k}-{place}"
            series(
                root,
                number + place,
                slices=8,
                PatientID=f"one{k:03d}",
                PatientName="",
                StudyInstanceUID=f"1.{k}.{place}",
                PixelData=lambda z, n=number + place: speckle(z, n),
            )
            roots.append(root)
    index(roots, tmp_path / "index.parquet", workers=1, checks="header", split="train=0.5,test=0.5", stratify="")
    table = read_table(tmp_path / "index.parquet")[0].to_pandas()
    table["patient"] = table["subject"].str.rsplit("/", n=1).str[-1]
    assert table["subject"].nunique() == 24
    assert table["patient"].nunique() == 12
    assert set(table["split"]) == {"train", "test"}
    assert (table.groupby("patient")["split"].nunique() == 1).all()
    keys = list(tmp_path.rglob("key.bin"))
    assert [key.parent.name for key in keys] == ["index.converted"]


@pytest.mark.parametrize(("tags", "contrast", "least"), [
    (T1, "T1w", 0.8),
    ({"ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 12}, "T1w", 0.6),
    ({"ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 12, "ContrastBolusAgent": "Gadovist"}, "T1ce", 0.6),
    (T1 | {"SeriesDescription": "t1_mprage +C"}, "T1ce", 0.8),
    ({"ScanningSequence": ["SE", "IR"], "RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500, "SeriesDescription": "FLAIR"}, "FLAIR", 0.8),
    ({"ScanningSequence": "SE", "RepetitionTime": 5000, "EchoTime": 100, "SeriesDescription": "t2_tse"}, "T2w", 0.8),
    ({"ScanningSequence": "SE", "RepetitionTime": 3000, "EchoTime": 15}, "PDw", 0.6),
    ({"ScanningSequence": "GR", "RepetitionTime": 700, "EchoTime": 20, "SeriesDescription": "t2star"}, "T2starw", 0.8),
    ({"ScanningSequence": "GR", "RepetitionTime": 28, "EchoTime": 20, "SeriesDescription": "SWI"}, "SWI", 0.5),
    ({"ScanningSequence": "EP", "RepetitionTime": 5000, "EchoTime": 90, "DiffusionBValue": 1000}, "DWI", 0.6),
    ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "ADC", 0.9),
    ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]}, "DWI", 0.9),
    ({"ScanningSequence": "SE", "RepetitionTime": 5000, "EchoTime": 100, "SeriesDescription": "T1 sag"}, "T1w", 0.3),
    (T1 | {"SeriesDescription": "T1 without contrast"}, "T1w", 0.8), (T1 | {"SeriesDescription": "t1_mprage pre-contrast"}, "T1w", 0.8),
    (T1 | {"SeriesDescription": "T1 w/o Gd"}, "T1w", 0.8), (T1 | {"SeriesDescription": "T1 noncontrast"}, "T1w", 0.8),
    (T1 | {"SeriesDescription": "T1", "ProtocolName": "BRAIN W/WO CONTRAST"}, "T1w", 0.8), (T1 | {"ContrastBolusAgent": "NONE"}, "T1w", 0.8),
    (T1 | {"SeriesDescription": "T1 post", "ProtocolName": "BRAIN without and with contrast"}, "T1ce", 0.8),
    (T1 | {"SeriesDescription": "T1 post contrast"}, "T1ce", 0.8),
    (MP2RAGE | {"SeriesDescription": "t1_mp2rage_INV1"}, "unknown", 0.0), (MP2RAGE | {"SeriesDescription": "mp2rage_INV2"}, "unknown", 0.0),
    (MP2RAGE | {"SeriesDescription": "t1_mp2rage_UNI_Images", "ImageType": ["DERIVED", "PRIMARY", "M", "UNI"]}, "MP2RAGE", 0.95),
    (MP2RAGE | {"SeriesDescription": "t1_mp2rage_UNI-DEN"}, "MP2RAGE", 0.5),
    (MP2RAGE | {"SeriesDescription": "t1_mp2rage_T1_Images", "ImageType": ["DERIVED", "PRIMARY", "M", "T1 MAP"]}, "T1map", 0.95),
    (T1 | {"SeriesDescription": "MP-RAGE"}, "T1w", 0.8), (T1 | {"SeriesDescription": "mp_rage"}, "T1w", 0.8),
    (LONG | {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"], "SeriesDescription": "SWI_Pha_Images"}, "unknown", 0.0),
    (LONG | {"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP"]}, "unknown", 0.0), (LONG | {"SeriesDescription": "Pha_Images"}, "unknown", 0.0),
    (LONG | {"ImageType": ["DERIVED", "PRIMARY", "MNIP", "SWI"], "SeriesDescription": "mIP_Images(SW)"}, "unknown", 0.0),
    (LONG | {"SeriesDescription": "mIP_Images(SW)"}, "unknown", 0.0), (LONG | {"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, "T2starw", 0.6),
    ({"ScanningSequence": "EP", "RepetitionTime": 2000, "EchoTime": 30, "SeriesDescription": "ep2d_bold_rest"}, "unknown", 0.0),
    ({"ScanningSequence": "EP", "RepetitionTime": 2000, "EchoTime": 37, "SeriesDescription": "rfMRI_SBRef"}, "unknown", 0.0),
    ({"ScanningSequence": ["EP", "SE"], "RepetitionTime": 5000, "EchoTime": 90, "SeriesDescription": "t2_epi"}, "unknown", 0.0),
    ({"ScanningSequence": "EP", "RepetitionTime": 5000, "EchoTime": 90, "DiffusionBValue": 0}, "unknown", 0.0),
    ({"ScanningSequence": "EP", "RepetitionTime": 5000, "EchoTime": 90, "DiffusionBValue": 0, "SeriesDescription": "ep2d_diff_b0"}, "unknown", 0.0),
    ({"ScanningSequence": "SE", "RepetitionTime": 5000, "EchoTime": 90, "DiffusionBValue": 0}, "unknown", 0.0),
    ({"ScanningSequence": "EP", "RepetitionTime": 5000, "EchoTime": 90, "SeriesDescription": "ep2d_diff_4scan_trace"}, "DWI", 0.5),
    ({"ScanningSequence": "GR", "RepetitionTime": 60, "EchoTime": 4.9, "SeriesDescription": "gre_field_mapping"}, "unknown", 0.0),
    ({"ScanningSequence": "GR", "RepetitionTime": 3.15, "EchoTime": 1.37, "SeriesDescription": "AAHead_Scout"}, "unknown", 0.0),
    ({"ScanningSequence": "GR", "RepetitionTime": 8, "EchoTime": 4, "SeriesDescription": "3-plane localizer"}, "unknown", 0.0),
    ({"ScanningSequence": ["SE", "IR"], "RepetitionTime": 2500, "EchoTime": 10, "InversionTime": 900, "SeriesDescription": "Ax T1 FLAIR"}, "T1w", 0.8),
    ({}, "unknown", 0.0), ({"RepetitionTime": "x", "EchoTime": []}, "unknown", 0.0),
])  # fmt: skip
def test_the_contrast_is_guessed_with_a_confidence(tags: dict[str, Any], contrast: str, least: float) -> None:
    found = guess(tags)
    assert found.contrast == contrast
    assert least <= found.confidence <= min(1.0, least + 0.1)
