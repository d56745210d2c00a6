"""The vectors of a table of anatomy: their forms, and that statistics come from the training subjects alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neuroprior.core.errors import ArtifactError, ConfigError, InputError
from neuroprior.data.anatomy import AnatomyTable, Quality, choose, judge, write_anatomy


def row(subject: str, volumes: dict[str, float], icv: float | None = 1400.0, **other: Any) -> dict[str, Any]:
    return {
        "dataset": "d", "subject": f"d/{subject}", "session": "", "scan": f"d/{subject}_T1w", "contrast": "T1w", "contrast_raw": "T1w",
        "source": "made", "path": None, "status": "ok", "reason": "", "icv_ml": icv, "volumes": volumes, "notes": [], "provenance": {},
        "inputs_sha256": "", **other,
    }  # fmt: skip


def made(rows: list[dict[str, Any]], tmp_path: Path) -> AnatomyTable:
    return AnatomyTable.read(write_anatomy(choose(judge(rows, Quality())), tmp_path / "anatomy.parquet", {"source": "made"}))


@pytest.fixture
def five(tmp_path: Path) -> AnatomyTable:
    rng = np.random.default_rng(0)
    return made(
        [
            row(f"sub-{i}", {"a": rng.uniform(500, 700), "b": rng.uniform(1, 2), "flat": 0.0}, rng.uniform(1200, 1600))
            for i in range(5)
        ],
        tmp_path,
    )


FIT = ("d/sub-0", "d/sub-1", "d/sub-2")


def test_raw_volumes_are_ml(five: AnatomyTable) -> None:
    targets = five.targets("raw", FIT)
    assert targets.names == ("a", "b", "flat", "icv")
    vector = targets.vector("d/sub-4")
    assert vector is not None
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, [*five.volumes_ml[4], five.icv_ml[4]], rtol=1e-6)
    assert targets.vector("d/sub-9") is None


def test_fractions_are_of_the_intracranial_volume(five: AnatomyTable) -> None:
    vector = five.targets("fraction_of_icv", FIT).vector("d/sub-3")
    np.testing.assert_allclose(vector, [*five.volumes_ml[3] / five.icv_ml[3], five.icv_ml[3] / 1000], rtol=1e-6)


def test_z_scores_are_fitted_on_the_given_subjects_alone(
    five: AnatomyTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="neuroprior"):
        targets = five.targets("z_scored", FIT)
    assert targets.names == ("a", "b", "icv")
    assert "no spread in the training subjects" in caplog.text
    assert "flat" in caplog.text
    vectors = np.stack([targets.vectors[name] for name in FIT])
    np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(vectors.std(0), 1, atol=1e-5)
    values = np.concatenate([five.volumes_ml[:, :2] / five.icv_ml[:, None], five.icv_ml[:, None]], axis=1)
    expected = (values[4] - values[:3].mean(0)) / values[:3].std(0)
    np.testing.assert_allclose(targets.vector("d/sub-4"), expected, rtol=1e-4)
    changed = AnatomyTable(five.subjects, five.regions, five.volumes_ml * np.array([1, 1, 1, 9, 9])[:, None], five.icv_ml, "made")
    again = changed.targets("z_scored", FIT)
    for name in FIT:
        np.testing.assert_array_equal(again.vectors[name], targets.vectors[name])


def test_a_subject_that_lacks_a_region_has_no_vector(tmp_path: Path) -> None:
    table = made(
        [
            row("sub-0", {"a": 1.0, "b": 2.0}),
            row("sub-1", {"a": 1.5, "b": 2.5}),
            row("sub-2", {"a": 2.0}),
            row("sub-3", {"a": 1, "c": 1}),
        ],
        tmp_path,
    )
    targets = table.targets("raw", ["d/sub-0", "d/sub-1", "d/sub-2", "d/sub-3"])
    assert targets.names == ("a", "b", "icv")  # c is known of one in four
    assert targets.vector("d/sub-0") is not None
    assert targets.vector("d/sub-2") is None


def test_without_intracranial_volumes_only_raw_is_left(tmp_path: Path) -> None:
    table = made([row(f"sub-{i}", {"a": 1.0 + i}, None) for i in range(3)], tmp_path)
    assert table.targets("raw", ["d/sub-0"]).names == ("a",)
    with pytest.raises(ConfigError, match="need an intracranial volume"):
        table.targets("z_scored", ["d/sub-0", "d/sub-1"])


def test_too_few_training_subjects_are_an_error(five: AnatomyTable) -> None:
    with pytest.raises(InputError, match="too few subjects"):
        five.targets("z_scored", ["d/sub-0", "elsewhere/sub-1"])
    with pytest.raises(ConfigError, match="unknown form"):
        five.targets("nonsense", FIT)  # type: ignore[arg-type]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no table"):
        AnatomyTable.read(tmp_path / "anatomy.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ArtifactError, match="no table of anatomy of this version"):
        AnatomyTable.read(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ArtifactError, match="cannot be read"):
        AnatomyTable.read(tmp_path / "text.parquet")
    with pytest.raises(InputError, match="no subject of the table has usable anatomy"):
        made([row("sub-0", {"a": 1.0}, 5.0)], tmp_path)


def test_negative_volumes_are_failed() -> None:
    assert judge([row("sub-0", {"a": -1.0})], Quality())[0]["status"] == "failed"
    assert judge([row("sub-0", {})], Quality())[0]["reason"] == "no volume was measured"
