"""What a user may hand to ``predict``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import nifti
from neuroprior.core.errors import InputError
from neuroprior.core.volume import Volume
from neuroprior.inference.inputs import contrast_of_file, from_arguments


def scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, Volume(np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.eye(4)))
    return path


def test_pairs_are_together_one_case(tmp_path: Path) -> None:
    a, b = scan(tmp_path / "sub-07_T1w.nii.gz"), scan(tmp_path / "x.nii.gz")
    (case,) = from_arguments([f"T1={a}", f"T2-FLAIR={b}"], ["T1w", "FLAIR"])
    assert case.scans == {"T1w": a, "FLAIR": b}
    assert case.subject == "sub-07"


def test_a_file_names_its_contrast(tmp_path: Path) -> None:
    path = scan(tmp_path / "sub-01_ses-2_ce-gadolinium_T1w.nii.gz")
    (case,) = from_arguments([str(path)], ["T1w", "T1ce"])
    assert dict(case.scans) == {"T1ce": path}
    assert (case.subject, case.session) == ("sub-01", "ses-2")


def test_a_file_with_no_contrast_takes_the_models_only_one_else_asks(tmp_path: Path) -> None:
    path = scan(tmp_path / "brain.nii.gz")
    assert contrast_of_file(path) is None
    (case,) = from_arguments([str(path)], ["T1w"])
    assert list(case.scans) == ["T1w"]
    with pytest.raises(InputError, match="T1w=brain.nii.gz"):
        from_arguments([str(path)], ["T1w", "T2w"])


def test_a_bids_folder_gives_a_case_a_session(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for subject in ("sub-1", "sub-2"):
        scan(tmp_path / subject / "anat" / f"{subject}_T1w.nii.gz")
        scan(tmp_path / subject / "anat" / f"{subject}_FLAIR.nii.gz")
    cases = from_arguments([str(tmp_path)], ["T1w"])
    assert [sorted(case.scans) for case in cases] == [["FLAIR", "T1w"]] * 2


@pytest.mark.parametrize("name", ["nowhere.nii.gz", "T1w=nowhere.nii.gz"])
def test_an_absent_input_is_named(name: str) -> None:
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz"):
        from_arguments([name], ["T1w"])


def test_an_unknown_contrast_gets_suggestions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FLAIR"):
        from_arguments([f"FLARE={scan(tmp_path / 'x.nii.gz')}"], ["T1w"])
