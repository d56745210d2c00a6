"""What a user may hand to ``predict``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import nifti
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.volume import Volume
from neuroprior.inference import inputs
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


def test_one_of_several_takes_what_the_model_knows(tmp_path: Path) -> None:
    path = scan(tmp_path / "x.nii.gz")
    (case,) = from_arguments([f"SWI_OR_T2STAR={path}"], ["FLAIR", "T2starw"])
    assert list(case.scans) == ["T2starw"]
    assert case.notes == ("SWI_OR_T2STAR is taken as T2starw",)
    (case,) = from_arguments([f"SWI_OR_T2STAR={path}"], ["SWI", "T2starw"])
    assert list(case.scans) == ["SWI"]


def test_two_scans_of_one_contrast_are_told(tmp_path: Path) -> None:
    a, b = scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match="two scans are given for T1w"):
        from_arguments([f"T1w={a}", f"MPRAGE={b}"], ["T1w"])
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for run in (1, 2):
        scan(tmp_path / "sub-1" / "anat" / f"sub-1_run-{run}_T1w.nii.gz")
    (case,) = from_arguments([str(tmp_path)], ["T1w"])
    assert len(case.scans) == 1
    assert "of several T1w scans" in case.notes[0]


def test_a_contrast_that_the_model_never_saw_is_taken_for_one_that_it_knows(tmp_path: Path) -> None:
    known = ["T1w", "T2w"]
    a, b = scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b.nii.gz")

    def take(text: str, **scans: Path) -> inputs.CaseInput:
        return inputs.taken_as(inputs.CaseInput("c", "", "s", "", scans), known, *inputs.parse_as(text, known))

    case = take("T2w", PDw=a)
    assert case.scans == {"T2w": a}
    assert "PDw is taken as T2w (--as); the model never saw PDw" in case.notes
    case = take("T2w", PDw=a, T2w=b)
    assert case.scans == {"PDw": a, "T2w": b}
    assert "the case has one" in case.notes[0]
    case = take("T2w", PDw=a, SWI=b)
    assert case.scans == {"PDw": a, "SWI": b}
    assert "--as PDw=T2w" in case.notes[0]
    assert take("PDw=T2w", PDw=a, SWI=b).scans == {"T2w": a, "SWI": b}
    with pytest.raises(ConfigError, match="does not know ADC either"):
        inputs.parse_as("ADC", known)
    (case,) = from_arguments([str(a)], known, as_="T2w")
    assert case.scans == {"T2w": a}
    (case,) = from_arguments([f"CEST={a}"], known, as_="T2w")
    assert case.scans == {"T2w": a}
    assert "CEST is no contrast that we know" in case.notes[0]


def test_cases_that_would_write_the_same_files_are_told_apart(tmp_path: Path) -> None:
    paths = [scan(tmp_path / folder / name) for folder in "ab" for name in ("sub-1_T1w.nii.gz", "sub-1_FLAIR.nii.gz")]
    cases = inputs.told_apart(from_arguments([str(path) for path in paths], ["T1w", "FLAIR"]))
    assert len({case.case for case in cases}) == 4
    assert len({(case.subject, case.session) for case in cases}) == 4
    assert [case.subject for case in cases] == ["sub-1", "sub-sub1FLAIR", "sub-sub1T1w", "sub-sub1FLAIRx2"]
    assert cases[0].notes == ()
    assert "written as" in cases[1].notes[0]


def test_every_subset_of_what_a_case_has(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    cases = [
        inputs.CaseInput("a", "", "a", "", {"T2w": path, "T1w": path, "ADC": path}),
        inputs.CaseInput("b", "", "b", "", {"T1w": path}),
    ]
    found = inputs.subsets(cases, ["T1w", "T2w", "FLAIR"])
    assert {name: [case.case for case in chosen] for name, chosen in found.items()} == {
        "T1w": ["a", "b"], "T2w": ["a"], "T1w+T2w": ["a"],
    }  # fmt: skip
    everything = inputs.CaseInput("c", "", "c", "", dict.fromkeys(("T1w", "T1ce", "T2w", "FLAIR"), path))
    assert len(inputs.subsets([everything], ["FLAIR", "T1w", "T1ce", "T2w"])) == 15
