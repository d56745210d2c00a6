"""Audits and few-shot curves on the page."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroprior.core.errors import ArtifactError
from neuroprior.stages.report import report


def written(path: Path, rows: list[dict[str, object]], note: dict[str, object]) -> Path:
    table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({b"neuroprior": json.dumps(note).encode()}), path)
    return path


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    common = {"metric": "r", "low": 0.4, "high": 0.8, "subjects": 40}
    rows: list[dict[str, object]] = [
        {"section": "shortcuts", "target": "age", "probe": "site", "verdict": "none seen", "words": "site does not predict age", "value": 0.02, "p_holm": 0.9, **common},
        {"section": "shortcuts", "target": "age", "probe": "file_order", "verdict": "shortcut", "words": "file order predicts age: r 0.61", "value": 0.61, "p_holm": 0.001, **common},
        {"section": "contamination", "target": None, "probe": None, "verdict": "contamination", "words": "3 subjects stand on both sides", "value": None, "p_holm": None, **dict.fromkeys(common)},
    ]  # fmt: skip
    return written(tmp_path / "audit.parquet", rows, {"artifact": "audit"})


def test_an_audit_says_what_was_found(audit: Path, tmp_path: Path) -> None:
    page = report([audit], tmp_path / "html").read_text()
    assert "file order predicts age: r 0.61" in page
    assert "3 subjects stand on both sides" in page
    assert "[0.400, 0.800]" in page
    text = report([audit], tmp_path / "md", format="md").read_text()
    assert "- file order predicts age" in text
    content = json.loads(report([audit], tmp_path / "json", format="json").read_text())
    assert [finding["bad"] for finding in content["audits"][0]["findings"]] == [True, True]


def test_a_curve_shows_the_words_of_its_command(tmp_path: Path) -> None:
    path = written(
        tmp_path / "curve/curve.parquet",
        [{"model": "x"}],
        {"artifact": "scores", "stage": "fewshot", "test_subjects": ["a", "b"]},
    )
    (path.parent / "summary.txt").write_text("5 shots: better by 0.1\n")
    page = report([path], tmp_path / "report").read_text()
    assert "5 shots: better by 0.1" in page
    assert "The same 2 test subjects" in page


def test_any_other_table_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "index.parquet", [{"scan": "x"}], {"artifact": "index"})
    with pytest.raises(ArtifactError, match="nothing that a report shows"):
        report([path], tmp_path / "report")
