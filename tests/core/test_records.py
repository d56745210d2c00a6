"""Records, seeds, artefacts, contrasts, config, errors: the alphabet."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from neuroprior.core import artifacts, contrasts, seeds
from neuroprior.core.config import Config, override, parse, read_yaml
from neuroprior.core.errors import ArtifactError, ConfigError, InputError, NeuropriorError
from neuroprior.core.records import Scan
from neuroprior.core.shelf import load, names


def test_a_scan_survives_its_table_row() -> None:
    scan = Scan(
        "d/x", "d", "d/sub-1", "ses-1", "T1w", "T1w", "/x.nii.gz", labels={"lesion": "/l.nii.gz"}, age=31.5, columns={"iq": 101, "name": "ä"},
        shape=(3, 4, 5), spacing_mm=(1.0, 2.0, 3.0), affine=tuple(float(v) for v in range(16)), reasons=("one", "two"), split="train",
    )  # fmt: skip
    assert Scan.from_row(scan.row()) == scan
    assert scan.value("iq") == 101
    assert scan.value("age") == 31.5
    assert scan.value("nothing") is None


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("T2FLAIR", "FLAIR"),
        ("t2-flair", "FLAIR"),
        ("T1Gd", "T1ce"),
        ("ce-gadolinium_T1w", None),
        ("T2*", "T2starw"),
        ("tof", "angio"),
        ("xyz", None),
    ],
)
def test_spellings_of_contrasts(spelling: str, name: str | None) -> None:
    assert contrasts.find(spelling) == name


def test_bids_entities_make_a_contrast() -> None:
    assert contrasts.from_bids("T1w", {"ce": "gadolinium"}) == "T1ce"
    assert contrasts.from_bids("T1w", {"acq": "MPRAGE"}) == "T1w"
    assert contrasts.from_bids("T2starw", {"part": "phase"}) is None
    assert contrasts.accepts("swi_or_t2star") == ("SWI", "T2starw")
    with pytest.raises(InputError, match="did you mean 'FLAIR'"):
        contrasts.canonical("FLARE")


def test_no_spelling_means_two_things() -> None:
    seen: dict[str, str] = {}
    for entry in contrasts.VOCABULARY:
        for spelling in (entry.name, *entry.aliases):
            key = contrasts._key(spelling)
            assert seen.setdefault(key, entry.name) == entry.name


@given(st.lists(st.one_of(st.integers(), st.text()), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_draw_depends_on_every_part_of_its_name(key: list[int | str]) -> None:
    first = seeds.generator(*key).integers(2**62)
    assert first == seeds.generator(*key).integers(2**62)
    assert first != seeds.generator(*key, 0).integers(2**62)
    assert seeds.entropy("1") != seeds.entropy(1)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    artifacts.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), artifacts.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError):
        artifacts.write_json(path, {"a": math.nan})


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission")])
def test_a_full_or_closed_disk_is_told(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(ArtifactError, match=message), artifacts.atomic(tmp_path / "x"):
        raise OSError(number, "x")
    assert not list(tmp_path.iterdir())


def test_hashes_see_values_shape_and_type() -> None:
    a = np.arange(6, dtype=np.int16)
    assert len({artifacts.sha256_array(x) for x in (a, a.reshape(2, 3), a.astype(np.int32), a + 1)}) == 4
    assert artifacts.sha256_array(a.reshape(2, 3).T) == artifacts.sha256_array(np.ascontiguousarray(a.reshape(2, 3).T))


def test_sweep_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / ".x-abcdefgh.json").write_text("half")
    (tmp_path / "x.json").write_text("whole")
    assert artifacts.sweep(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


class Inner(Config):
    """Inner settings."""

    rate: float = Field(default=1.0, gt=0)
    """A rate."""


class Outer(Config):
    """Outer settings."""

    inner: Inner = Inner()
    """Nested."""
    steps: int = 3
    """A number."""


def test_settings_are_checked_in_the_users_spelling(tmp_path: Path) -> None:
    assert parse(Outer, override({}, ["inner.rate=2.5", "steps=7"])) == Outer(inner=Inner(rate=2.5), steps=7)
    with pytest.raises(ConfigError, match=r"unknown key 'inner\.rtae': did you mean 'rate'"):
        parse(Outer, {"inner": {"rtae": 1}})
    with pytest.raises(ConfigError, match=r"inner\.rate.*greater than 0.*-1"):
        parse(Outer, {"inner": {"rate": -1}})
    with pytest.raises(ConfigError, match="holds no mapping"):
        (tmp_path / "x.yaml").write_text("- 1")
        read_yaml(tmp_path / "x.yaml")


def test_an_error_says_what_where_expected_got_and_next() -> None:
    error = InputError("bad thing", file="/a/b", expected="x", got="y", next_step="z")
    assert str(error).splitlines() == ["bad thing", "  file: /a/b", "  expected: x", "  got: y", "  next step: z"]
    assert error.reason == "bad thing (expected x, got y)"
    assert isinstance(error, ValueError)
    assert isinstance(error, NeuropriorError)


def test_unknown_things_are_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'unet'"):
        load("nets", "unett")
    with pytest.raises(ConfigError, match="did you mean 'nets'"):
        names("net")
