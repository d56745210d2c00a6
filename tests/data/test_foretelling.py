"""The dry run: it ends whatever the scans do, counts only what is left to do, and writes nothing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from neuroprior.core.conforming import ConformSpec
from neuroprior.core.errors import ArtifactError, InputError
from neuroprior.data import building
from neuroprior.data.foretelling import Estimate, estimate
from neuroprior.data.preparing import PrepareConfig
from neuroprior.stages import prepare as stage
from neuroprior.stages.prepare import prepare

Balls = Callable[..., Path]
SPEC, CONFIG = ConformSpec(spacing_mm=4.0, order=3), PrepareConfig()


def test_a_session_that_hangs_is_left_out_of_the_estimate(balls: Balls, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe that nobody writes to, and a scan that is none."""
    index = balls(6)
    (tmp_path / "raw/sub-2_T1w.nii.gz").unlink()
    os.mkfifo(tmp_path / "raw/sub-2_T1w.nii.gz")
    for contrast in ("T1w", "FLAIR"):
        (tmp_path / f"raw/sub-4_{contrast}.nii.gz").write_bytes(b"no volume")
    began = time.monotonic()
    told = estimate(index, SPEC, CONFIG, building.Where(workers=2, timeout_s=5))
    assert time.monotonic() - began < 60
    assert told.sessions == 6 and told.scans == 12 and told.timed == 4
    assert told.cpu_seconds > 0 and told.megabytes > 0
    assert "d/sub-2: quarantined: it was not done after 10 s" in caplog.text
    assert "d/sub-4: no scan of the session can be read" in caplog.text


def test_where_nothing_can_be_prepared_there_is_no_estimate(balls: Balls, tmp_path: Path) -> None:
    index = balls(1, ("T1w",))
    (tmp_path / "raw/sub-0_T1w.nii.gz").write_bytes(b"no volume")
    with pytest.raises(InputError, match="none of the sessions tried"):
        estimate(index, SPEC, CONFIG, building.Where(workers=1))


def test_what_is_in_the_store_already_is_not_counted(balls: Balls, tmp_path: Path) -> None:
    out, where = tmp_path / "store", building.Where(workers=1)
    whole = estimate(balls(6), SPEC, CONFIG, where, out)
    assert not out.exists()
    building.build(balls(2, out="two.parquet"), out, SPEC, CONFIG, where)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    told = estimate(tmp_path / "index.parquet", SPEC, CONFIG, where, out)
    assert (told.sessions, told.scans) == (4, 8) and whole.sessions == 6
    assert told.megabytes == pytest.approx(whole.megabytes * 4 / 6, rel=0.1)
    assert estimate(tmp_path / "two.parquet", SPEC, CONFIG, where, out) == Estimate(0, 0, 0.0, 0.0, 0.0, 0.0, 0)
    with pytest.raises(ArtifactError, match="other settings"):
        estimate(tmp_path / "index.parquet", ConformSpec(spacing_mm=2.0), CONFIG, where, out)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


@pytest.mark.parametrize("free", [0, 10**12])
def test_too_small_a_disk_is_told(
    free: int, balls: Balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def usage(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(stage.shutil, "disk_usage", usage)
    with caplog.at_level(logging.INFO, logger="neuroprior"):
        prepare(balls(1), tmp_path / "not/there/store", spacing="4", workers=1, dry_run=True)
    assert asked == [tmp_path]
    assert ("choose another --out" in caplog.text) == (free == 0)
    assert not (tmp_path / "not").exists()
