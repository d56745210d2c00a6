"""Every source on the anatomy shelf: a candidate a scan, volumes in ml, and a reason where there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from neuroprior.anatomy import FAILED, MISSING, OK, Candidate, rank
from neuroprior.core import shelf
from neuroprior.core.config import parse
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.records import Scan

from . import made

NAMES = shelf.names("anatomy")


@pytest.fixture
def scans(tmp_path: Path) -> list[Scan]:
    return made.people(tmp_path, 3)


def results(name: str, scans: Sequence[Scan], folder: Path) -> Path | None:
    """A tool's results for the first two of three subjects."""
    makers = {"labelmap": made.label_maps, "synthseg": made.synthseg_table, "freesurfer": made.freesurfer_folders}
    return makers[name](scans[:2], folder) if name in makers else None


def candidates(name: str, scans: Sequence[Scan], folder: Path) -> list[Candidate]:
    module = shelf.load("anatomy", name)
    return module.find(scans, results(name, scans, folder), module.Config())


@pytest.mark.parametrize("name", NAMES)
def test_every_scan_has_one_candidate(name: str, scans: list[Scan], tmp_path: Path) -> None:
    if name == "atlas":
        pytest.importorskip("dipy", reason="the extra 'atlas' is not installed")
    found = candidates(name, scans, tmp_path / "results")
    assert [candidate.scan for candidate in found] == [scan.scan for scan in scans]
    assert [candidate.subject for candidate in found] == [scan.subject for scan in scans]
    for candidate in found:
        assert candidate.status in (OK, MISSING)
        assert (candidate.path is None) == (candidate.status == MISSING)
        assert candidate.status == OK or candidate.reason
    if name != "atlas":
        assert [candidate.status for candidate in found] == [OK, OK, MISSING]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "atlas"])
def test_volumes_are_in_ml(name: str, scans: list[Scan], tmp_path: Path) -> None:
    module = shelf.load("anatomy", name)
    for candidate in candidates(name, scans, tmp_path / "results")[:2]:
        found = module.measure(candidate, module.Config())
        assert all(math.isfinite(ml) and ml >= 0 for ml in found.volumes_ml.values())
        assert 900 < found.icv_ml < 2200
        assert all(isinstance(note, str) for note in found.notes)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_refused_when_unknown(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        parse(shelf.load("anatomy", name).Config, {"nonsense": 1})


@pytest.mark.parametrize("name", NAMES)
def test_a_version_says_when_figures_change(name: str) -> None:
    assert shelf.load("anatomy", name).VERSION >= 1


def test_the_preference_of_contrasts() -> None:
    order = [("T1w", "T1w"), ("T2w", "T2w"), ("T1w", "MPRAGE"), ("MP2RAGE", "UNIT1"), ("FLAIR", "FLAIR"), ("SWI", "swi")]
    ranks = [rank(*names) for names in order]
    assert ranks == sorted(set(ranks))
    assert rank("PDw") == rank("unknown")


@pytest.mark.parametrize("name", ["synthseg", "labelmap", "freesurfer"])
def test_results_that_are_not_there_are_an_error(name: str, scans: list[Scan], tmp_path: Path) -> None:
    module = shelf.load("anatomy", name)
    with pytest.raises(InputError):
        module.find(scans, tmp_path / "nowhere", module.Config())


@pytest.mark.parametrize("name", ["labelmap", "freesurfer", "synthseg"])
def test_without_files_the_source_looks_where_the_index_points(name: str, scans: list[Scan]) -> None:
    module = shelf.load("anatomy", name)
    assert {candidate.status for candidate in module.find(scans, None, module.Config())} == {MISSING}


def test_a_second_session_takes_no_result_that_could_be_either(scans: list[Scan], tmp_path: Path) -> None:
    module = shelf.load("anatomy", "freesurfer")
    folder = made.freesurfer_folders(scans[:1], tmp_path / "results")
    two = [replace(scans[0], session="ses-1"), replace(scans[0], session="ses-2", scan=f"{scans[0].scan}-2")]
    found = module.find(two, folder, module.Config())
    assert [candidate.status for candidate in found] == [MISSING, MISSING, FAILED]
    assert "no scan of the index belongs" in found[2].reason
