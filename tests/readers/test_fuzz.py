"""Mutated files through every reader and the index: our errors or rows with reasons, nothing else; the script runs ten thousand."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroprior.core import formats, nifti
from neuroprior.core.errors import InputError
from neuroprior.readers import _people, bids


def script() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks/data/fuzz.py"
    spec = importlib.util.spec_from_file_location("neuroprior_fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ = script()


@pytest.mark.parametrize("kind", [kind for kind in FUZZ.KINDS if kind != "dicom"])
def test_whole_trees(kind: str, tmp_path: Path) -> None:
    for number in range(12):
        assert FUZZ.case(tmp_path / str(number), 7, number, kind).startswith(kind)


def test_slices(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
    for number in range(2):
        assert FUZZ.case(tmp_path / str(number), 7, number, "dicom").startswith("dicom")


@pytest.mark.slow
def test_more_whole_trees(tmp_path: Path) -> None:
    for number in range(600):
        FUZZ.case(tmp_path / str(number), 8, number)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 30),
    ending=st.sampled_from((".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd")),
    packed=st.binary(max_size=4),
)
def test_headers(tmp_path: Path, seed: int, ending: str, packed: bytes) -> None:
    import gzip

    rng = random.Random(seed)
    content = FUZZ.mutate(FUZZ.nifti(rng) if ending.startswith(".nii") else gzip.decompress(FUZZ.other(rng, ".mgz")), rng)
    if ending in (".nrrd", ".mha"):
        content = FUZZ.mutate(FUZZ.other(rng, ending), rng)
    path = tmp_path / f"x{ending}"
    path.write_bytes((gzip.compress(content, 1) if ending.endswith(("gz", ".mgz")) else content) + packed)
    for call in (nifti.inspect_header, nifti.read_scan, nifti.read_labels, nifti.survey, nifti.read_surveyed):
        try:
            call(path)
        except InputError as error:
            assert error.reason
    assert formats.is_other(path) == (ending not in (".nii", ".nii.gz"))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text(max_size=80)
    | st.from_regex(r"(sub-[a-z0-9]*_)?([a-z]+-[A-Za-z0-9]*_)*[A-Za-z0-9]*(\.nii|\.nii\.gz|\.mgz)?", fullmatch=True)
)
def test_names(text: str) -> None:
    name = bids.parse_name(text)
    assert all("-" not in key for key in name.entities)
    assert text.endswith(name.extension)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.text(max_size=12), st.none() | st.text(max_size=12) | st.integers() | st.floats(), max_size=6),
    st.text(max_size=10),
)
def test_rows_of_people(row: dict[str, object], units: str) -> None:
    told: list[str] = []
    found = _people.facts(row, {"age": {"Units": units}, "sex": {"Levels": units}}, told.append)
    assert found.get("age") is None or 0 <= found["age"] <= 130
    assert found.get("sex") in (None, "F", "M")
