"""Mutated files through every reader and the index: our errors or rows with reasons, nothing else; the script runs ten thousand."""

from __future__ import annotations

import importlib.util
import random
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroprior.core import formats, headers, nifti
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


TREES = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", [kind for kind in FUZZ.KINDS if kind != "dicom"])
def test_whole_trees(kind: str, tmp_path: Path) -> None:
    @settings(TREES, max_examples=12)
    @given(rng=st.randoms(use_true_random=False))
    def run(rng: random.Random) -> None:
        assert FUZZ.case(Path(tempfile.mkdtemp(dir=tmp_path)), rng, kind).startswith(kind)

    run()


def test_slices(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
    for number in range(2):
        assert FUZZ.case(tmp_path / str(number), random.Random(number), "dicom").startswith("dicom")


@pytest.mark.slow
def test_more_whole_trees(tmp_path: Path) -> None:
    for number in range(600):
        FUZZ.case(tmp_path / str(number), random.Random(8_000_024 + number))


def test_a_write_outside_is_seen(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    with FUZZ.watched(inside) as seen:
        inside.mkdir()
        (inside / "a").write_text("x")
        (inside / "../b").write_text("x")
        (tmp_path / "b").rename(inside / "b")
        (inside / "b").read_text()
    assert [told.partition(" ")[0] for told in seen] == ["open", "os.rename"]
    (tmp_path / "b").write_text("x")
    assert len(seen) == 2


def test_a_reader_that_writes_beside_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bids.read

    def writing(root: Path, **said: Any) -> Any:
        (root.parent / "neighbour.txt").write_bytes(b"of nobody else")
        return first(root, **said)

    monkeypatch.setattr(bids, "read", writing)
    with pytest.raises(AssertionError, match=r"outside the output folder"):
        for number in range(5):
            FUZZ.case(tmp_path / str(number), random.Random(number), "bids")


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 30),
    ending=st.sampled_from((".nii", ".nii.gz", ".mgz", ".mgh", ".mha", ".nrrd")),
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
    for call in (headers.inspect_header, nifti.read_scan, nifti.read_labels, nifti.survey, nifti.read_surveyed):
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
