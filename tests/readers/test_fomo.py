"""The FOMO layouts: 60K's flat sub_*/ses_* with a mapping, 300K's folders of sources, and both ways round."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from neuroprior.core.errors import InputError
from neuroprior.readers import bids, fomo


def put(root: Path, name: str, text: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """As FOMO-60K lies."""
    root = tmp_path / "FOMO-60K"
    for name in ("sub_1/ses_1/t1.nii.gz", "sub_1/ses_1/t1_2.nii.gz", "sub_1/ses_2/flair.nii.gz", "sub_2/ses_1/scan.nii.gz",
                 "sub_2/ses_1/t2s.nii.gz", "sub_3/ses_1.zip"):  # fmt: skip
        put(root, name)
    put(root, "participants.tsv", "participant_id\tsession_id\tdataset\tage\tsex\tgroup\n"
        "sub_1\tses_1\tOASIS\t61\tF\tcontrol\nsub_1\tses_2\tOASIS\t63\tF\tcontrol\nsub_2\tses_1\tBraTS\tn/a\tn/a\tglioma\n")  # fmt: skip
    put(
        root, "mapping.tsv", "participant_id\tdataset\toriginal_participant_id\nsub_1\tOASIS\tOAS1_0001\nsub_2\tBraTS\tDOE^JANE\n"
    )
    return root


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """As FOMO-300K lies: identifiers are unique within a source only."""
    root = tmp_path / "FOMO300K"
    for name in ("PT001_A/sub-01/ses-01/t1w.nii.gz", "PT002_B/sub-01/ses-01/anat/sub-01_ses-01_run-2_FLAIR.nii.gz",
                 "PT030_OpenNeuro/ds000001/sub-01/ses-01/anat/sub-01_ses-01_T2w.nii.gz"):  # fmt: skip
        put(root, name)
    put(root, "participants.tsv", "dataset\tparticipant_id\tage\tsex\nPT001_A\tsub-01\t20\tM\nPT002_B\tsub-01\t70\tF\n"
        "PT030_OpenNeuro/ds000001\tsub-01\t45\tF\n")  # fmt: skip
    put(root, "mapping.tsv", "dataset\tparticipant_id\toriginal_participant_id\nPT001_A\tsub-01\tx\n")
    put(root, "mri_info.tsv", "dataset\tparticipant_id\tsession_id\tfilename\tManufacturer\tMagneticFieldStrength\n"
        "PT001_A\tsub-01\tses-01\tsub-01/ses-01/t1w.nii.gz\tSiemens\t1.5\n"
        "PT002_B\tsub-01\tses-01\tsub-01/ses-01/anat/sub-01_ses-01_run-2_FLAIR.nii.gz\tPhilips\t3\n")  # fmt: skip
    return root


def test_the_small_one(small: Path) -> None:
    assert fomo.recognises(small)
    assert bids.recognises(small) is None
    rows = {Path(scan.path).relative_to(small).as_posix(): scan for scan in fomo.read(small)}
    assert len(rows) == 6
    first = rows["sub_1/ses_1/t1.nii.gz"]
    assert (first.subject, first.session, first.contrast, first.age, first.sex) == ("FOMO-60K/sub-1", "ses-1", "T1w", 61.0, "F")
    assert first.columns["source_dataset"] == "OASIS"
    assert rows["sub_1/ses_1/t1_2.nii.gz"].contrast == "T1w"
    assert rows["sub_1/ses_2/flair.nii.gz"].age == 63.0
    assert rows["sub_2/ses_1/t2s.nii.gz"].contrast == "T2starw"
    assert rows["sub_2/ses_1/t2s.nii.gz"].health == "glioma"
    assert rows["sub_2/ses_1/scan.nii.gz"].status == "bad"
    assert "unzip" in rows["sub_3/ses_1.zip"].reasons[0]
    assert len({scan.scan for scan in rows.values()}) == 6
    mapped = {scan.contrast_raw: scan.contrast for scan in fomo.read(small, contrast_map={"scan": "T1w"})}
    assert mapped["scan"] == "T1w"
    assert "DOE^JANE" not in repr(list(fomo.read(small)))


def test_the_large_one_keeps_its_sources_apart(large: Path) -> None:
    assert fomo.recognises(large)
    one, two, three = sorted(fomo.read(large), key=lambda scan: scan.dataset)
    assert [s.subject for s in (one, two, three)] == [
        "FOMO300K-PT001_A/sub-01", "FOMO300K-PT002_B/sub-01", "FOMO300K-PT030_OpenNeuro-ds000001/sub-01",
    ]  # fmt: skip
    assert [s.age for s in (one, two, three)] == [20, 70, 45]
    assert [s.contrast for s in (one, two, three)] == ["T1w", "FLAIR", "T2w"]
    assert [s.scanner for s in (one, two, three)] == ["Siemens 1.5 T", "Philips 3 T", None]


def test_a_subject_of_two_sources_is_not_guessed(small: Path) -> None:
    with open(small / "participants.tsv", "a") as file:
        file.write("sub_2\tses_1\tOther\t11\tM\tcontrol\n")
    rows = [scan for scan in fomo.read(small) if scan.subject.endswith("sub-2")]
    assert {(scan.age, scan.health) for scan in rows} == {(None, None)}


@pytest.mark.parametrize(("name", "raw"), [
    ("t1.nii.gz", "t1"), ("t1_3.nii.gz", "t1"), ("sub-01_ses-2_run-1_T1w.nii.gz", "T1w"), ("dwi_bval1000.nii.gz", "dwi_bval1000"), ("2.nii.gz", "2"),
])  # fmt: skip
def test_a_files_name_of_its_contrast(name: str, raw: str) -> None:
    assert fomo.spelling(name) == raw


def test_it_goes_round(heads: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = sorted(bids.read(heads), key=lambda scan: (scan.subject, scan.session, scan.scan))
    out = tmp_path / "laid"
    assert fomo.write(rows, out) == len(rows)
    assert fomo.recognises(out)
    with caplog.at_level(logging.INFO):
        again = list(fomo.read(out))
    assert not caplog.records
    assert len(again) == len(rows)
    content = {Path(row.path).read_bytes(): row for row in rows}
    people: dict[str, set[str]] = {}
    for scan in again:
        row = content[Path(scan.path).read_bytes()]
        assert (scan.contrast, scan.age, scan.sex, scan.health) == (row.contrast, row.age, row.sex, row.health)
        assert scan.columns["source_dataset"] == row.dataset
        people.setdefault(scan.subject, set()).add(row.subject)
    assert len(people) == len({row.subject for row in rows})
    assert all(len(who) == 1 for who in people.values())
    with pytest.raises(InputError, match="not empty"):
        fomo.write(rows, out)
    assert {p.name for p in tmp_path.iterdir()} == {"laid"}


def test_a_row_without_a_participant_is_told_and_left_out(small: Path) -> None:
    with open(small / "participants.tsv", "a") as file:
        file.write("\t\t\t50\tM\tcontrol\nn/a\t\t\t51\tM\tcontrol\n")
    told: list[str] = []
    rows = list(fomo.read(small, tell=told.append))
    assert len(rows) == 6
    assert next(row for row in rows if row.path.endswith("sub_1/ses_1/t1.nii.gz")).age == 61.0
    assert [text.rpartition(": ")[2] for text in told[:2]] == [f"row {n} has no participant_id and is left out" for n in (5, 6)]
    put(small, "participants.tsv", "participant\tage\nsub_1\t30\n")
    with pytest.raises(InputError, match="no participant_id"):
        list(fomo.read(small))


def test_endings_in_capitals_rings_and_links_into_nothing(small: Path) -> None:
    put(small, "sub_4/ses_1/T1.NII.GZ")
    put(small, "sub_5/ses_1.ZIP")
    (small / "sub_1/loop").symlink_to(small)
    (small / "sub_6").symlink_to("/gone/sub_6")
    (small / "sub_4/ses_2").symlink_to("/gone/ses_2")
    rows = list(fomo.read(small))
    assert len(rows) == 10
    found = {Path(row.path).relative_to(small).as_posix(): row for row in rows}
    assert (found["sub_4/ses_1/T1.NII.GZ"].contrast, found["sub_4/ses_1/T1.NII.GZ"].scan) == ("T1w", "FOMO-60K/sub-4_ses-1_T1")
    assert "unzip" in found["sub_5/ses_1.ZIP"].reasons[0]
    assert found["sub_6"].reasons == ("the link leads nowhere: /gone/sub_6",)
    assert (found["sub_4/ses_2"].subject, found["sub_4/ses_2"].status) == ("FOMO-60K/sub-4", "bad")
    for path in small.rglob("*.nii.gz"):
        path.unlink()
    (small / "mapping.tsv").unlink()
    assert fomo.recognises(small)
