"""The audit as a person runs it: tables, page, exit codes, resuming, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from neuroprior.core import artifacts
from neuroprior.core.errors import ArtifactError, InputError
from neuroprior.data.index import read_index, write_index
from neuroprior.stages.audit import audit

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def small(index_file: Path, tmp_path: Path) -> Path:
    """The T1w rows of the ten heads."""
    return write_index([scan for scan in read_index(index_file) if scan.contrast == "T1w"], tmp_path / "small.parquet")


def test_an_honest_set_passes_and_everything_is_on_disk(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit.parquet"
    done = audit([small], out, target=["age"], permutations=999, workers=1, progress=False)
    assert done.exit_code == 0, str(done)
    table = pq.read_table(out)
    note = json.loads(table.schema.metadata[b"neuroprior"])
    assert note["artifact"] == "audit" and note["version"] == 1 and note["settings"]["targets"] == ["age"]
    frame = table.to_pandas()
    assert set(frame["target"].dropna()) == {"age"} and len(frame) == 17
    assert {"order", "background", "outline"} <= set(frame["probe"])
    page = out.with_suffix(".md").read_text()
    assert "What predicts age without a brain" in page and "Nobody and nothing was found" in page
    assert pq.read_table(tmp_path / "audit.pairs.parquet").num_rows == 0
    cache = tmp_path / "audit.fingerprints.parquet"
    before = cache.stat().st_mtime_ns
    audit([small], out, voxels=0, workers=1, progress=False)
    assert cache.stat().st_mtime_ns == before  # nothing was read again
    assert "cannot tell" in str(done) or "nothing seen" in str(done)


def test_planted_copies_and_a_planted_order_give_exit_code_3(small: Path, tmp_path: Path, run_cli: Run) -> None:
    rows = read_index(small)
    ages = sorted(float(row.age or 0) for row in rows)
    image = nibabel.nifti1.load(rows[0].path)
    copy = tmp_path / "renamed.nii"
    scaled = (np.asarray(image.dataobj, dtype=np.float32) * 0.37)[::-1]
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = image.shape[0] - 1
    nibabel.save(nibabel.Nifti1Image(scaled, image.affine @ flip), copy)
    mine = [replace(row, age=age) for row, age in zip(rows, ages, strict=True)]
    theirs = [replace(rows[0], scan="web/p7", dataset="web", subject="web/p7", path=str(copy), labels={}), rows[1]]
    evaluation = write_index(mine, tmp_path / "mine.parquet")
    pretraining = write_index(theirs, tmp_path / "theirs.parquet")
    done = run_cli(
        "audit", evaluation, "--target", "age", "--against", pretraining, "--out", tmp_path / "a.parquet", "--workers", 1
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "SHORTCUT: file order predicts age: r " in done.stdout
    assert "shuffle" in done.stdout
    frame = pd.read_parquet(tmp_path / "a.parquet")
    kinds = set(frame.loc[frame["verdict"] == "contamination", "kind"])
    assert {"near copy", "same subject", "same file"} <= kinds
    pairs = pd.read_parquet(tmp_path / "a.pairs.parquet")
    near = pairs[pairs["kind"] == "near copy"]
    assert near["left"].tolist() == ["web/p7"] and near["right"].tolist() == [rows[0].scan]
    assert float(near["similarity"].min()) > 0.95


def test_one_person_under_two_names_is_found(small: Path, tmp_path: Path) -> None:
    rows = read_index(small)
    shutil.copy(rows[0].path, tmp_path / "twin.nii.gz")
    twin = replace(rows[0], scan="heads/twin", subject="heads/twin", path=str(tmp_path / "twin.nii.gz"), split=rows[0].split)
    index = write_index([*rows, twin], tmp_path / "twins.parquet")
    done = audit([index], tmp_path / "audit.parquet", workers=1, progress=False)
    assert done.exit_code == 3
    assert [(row.kind, row.pairs) for row in done.rows] == [("same voxels", 1)]
    other = "test" if rows[0].split != "test" else "train"
    index = write_index([*rows, replace(twin, split=other)], tmp_path / "twins.parquet")
    done = audit([index], tmp_path / "audit.parquet", workers=1, progress=False)
    assert [row.kind for row in done.rows] == ["same voxels"] and {done.rows[0].left, done.rows[0].right} == {
        rows[0].split,
        other,
    }
    assert audit([index], tmp_path / "names.parquet", duplicates=False, workers=1, progress=False).exit_code == 0


def test_a_dry_run_writes_nothing(small: Path, tmp_path: Path, run_cli: Run) -> None:
    done = run_cli("audit", small, "--target", "age", "--out", tmp_path / "none/audit.parquet", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "10 of 10 scans would be read" in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_model_that_saw_test_subjects_is_told(small: Path, tmp_path: Path) -> None:
    rows = read_index(small)
    test = next(row for row in rows if row.split == "test")
    train = next(row for row in rows if row.split == "train")
    folder = tmp_path / "run/model"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "README.md"):
        (folder / name).write_text("")

    def describe(subjects: list[str], lineage: list[str]) -> None:
        def data(names: list[str]) -> dict[str, object]:
            return {"subject_hashes": [artifacts.sha256_json(name)[:12] for name in names]}

        artifacts.write_json(folder / "model.json", {"data": data(subjects), "lineage": [{"data": data(lineage)}]})

    describe([train.subject], [test.subject])
    done = audit([small], tmp_path / "a.parquet", model=[tmp_path / "run"], duplicates=False, progress=False)
    assert done.exit_code == 3
    assert {(row.right, row.sure) for row in done.rows} == {("train", False), ("test", True)}
    describe([train.subject], [])
    assert audit([small], tmp_path / "a.parquet", model=[tmp_path / "run"], duplicates=False, progress=False).exit_code == 0
    describe([], [])
    with pytest.raises(ArtifactError, match="does not say"):
        audit([small], tmp_path / "a.parquet", model=[tmp_path / "run"], duplicates=False, progress=False)


def test_bad_input_is_refused_with_a_next_step(small: Path, tmp_path: Path, run_cli: Run) -> None:
    with pytest.raises(InputError, match="'age'"):
        audit([small], tmp_path / "a.parquet", target=["aeg"], progress=False)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ArtifactError, match="no index of this version"):
        audit([tmp_path / "other.parquet"], tmp_path / "a.parquet", progress=False)
    with pytest.raises(ArtifactError, match="there is no index"):
        audit([small], tmp_path / "a.parquet", against=[tmp_path / "absent.parquet"], progress=False)
    bad = write_index([replace(row, status="bad", reasons=("broken",)) for row in read_index(small)], tmp_path / "bad.parquet")
    done = run_cli("audit", bad, "--out", tmp_path / "a.parquet")
    assert done.returncode == 2 and "issues.tsv" in done.stderr
    few = write_index(read_index(small)[:5], tmp_path / "few.parquet")
    told = audit([few], tmp_path / "a.parquet", target=["age"], duplicates=False, progress=False)
    assert told.exit_code == 0 and "too few" in str(told) and "nothing seen" not in str(told)


def test_a_scan_that_cannot_be_read_is_a_line_not_a_crash(small: Path, tmp_path: Path) -> None:
    rows = read_index(small)
    gone = [replace(rows[0], path=str(tmp_path / "gone.nii.gz")), *rows[1:]]
    done = audit(
        [write_index(gone, tmp_path / "gone.parquet")],
        tmp_path / "a.parquet",
        target=["age"],
        permutations=99,
        workers=1,
        progress=False,
    )
    assert [row.kind for row in done.rows] == ["not compared"]
    assert "gone" in done.rows[0].words or rows[0].scan in done.rows[0].words
