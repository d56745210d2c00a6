"""What verify finds, and what repair does: nothing healthy is ever lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroprior.core import artifacts
from neuroprior.core.errors import ArtifactError
from neuroprior.data import building, verifying
from neuroprior.data.building import Where
from neuroprior.data.sessions import session_file
from neuroprior.data.store import Store
from neuroprior.stages.prepare import prepare
from neuroprior.stages.store import store

Balls = Callable[..., Path]


@pytest.fixture
def path(balls: Balls, tmp_path: Path) -> Path:
    prepare(balls(3), tmp_path / "store", spacing="4", workers=1)
    return tmp_path / "store"


def flip(path: Path, key: str, array: str) -> None:
    file, frame = Store.open(path).frame(key, array)
    content = bytearray(file.read_bytes())
    content[frame.offset + frame.header + frame.chunks // 2] ^= 4
    file.write_bytes(content)


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("gone", ["all", "one scan", "the label", "the mask"])
def test_a_repair_without_sources_loses_nothing(gone: str, balls: Balls, tmp_path: Path) -> None:
    """One flipped bit: what was healthy stays byte for byte, the damage stays told, and it heals when the sources are back."""
    prepare(balls(3), tmp_path / "store", spacing="4", workers=1, mask="index")
    path = tmp_path / "store"
    whole = bytes_of(path)
    flip(path, "d/sub-1", "T1w")
    harmed = bytes_of(path)
    moved = {"all": "*", "one scan": "sub-1_FLAIR*", "the label": "sub-1_label*", "the mask": "sub-1_mask*"}[gone]
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in sorted((tmp_path / "raw").glob(moved)):
        file.rename(aside / file.name)
    told = store("repair", path, workers=1)
    assert told.exit_code == 3
    assert any("T1w" in what for what in told.problems["d/sub-1"])
    assert any("was not made again" in what for what in told.problems["d/sub-1"])
    assert bytes_of(path) == harmed
    opened = Store.open(path)
    assert len(opened.sessions) == 3
    assert opened.read("d/sub-1", "FLAIR").any() and opened.read_label("d/sub-1", "lesion").any()
    assert set(store("verify", path).problems) == {"d/sub-1"}
    for file in aside.iterdir():
        file.rename(tmp_path / "raw" / file.name)
    assert store("repair", path, workers=1).exit_code == 0
    healed = bytes_of(path)
    assert {n: c for n, c in healed.items() if n.endswith(".nps")} == {n: c for n, c in whole.items() if n.endswith(".nps")}
    assert not list(path.glob(f"{building.REPAIR}*"))


@pytest.mark.parametrize("table", ["whole", "damaged"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_session_that_cannot_be_made_again_stays_missed(harm: str, table: str, path: Path, tmp_path: Path) -> None:
    """Whatever the tables say after the repair; the sessions that could be made again are."""
    before = Store.open(path).store_hash
    for key in ("d/sub-0", "d/sub-1"):
        file = session_file(path, key)
        file.write_bytes(file.read_bytes()[:-7]) if harm == "cut" else file.unlink()
    if table == "damaged":
        (path / "sessions.parquet").write_bytes(b"no table")
    (tmp_path / "raw").rename(tmp_path / "aside")
    for file in [f for f in (tmp_path / "aside").iterdir() if f.name.startswith("sub-0")]:
        (tmp_path / "raw").mkdir(exist_ok=True)
        file.rename(tmp_path / "raw" / file.name)
    told = store("repair", path, workers=1)
    assert told.exit_code == 3 and "d/sub-1" in told.problems and "d/sub-0" not in told.problems
    for _ in range(2):
        assert "d/sub-1" in store("verify", path).problems
    opened = Store.open(path)
    assert opened.read("d/sub-0", "T1w").any() and opened.read("d/sub-2", "T1w").any()
    if table == "whole":
        assert opened.keys() == ["d/sub-0", "d/sub-1", "d/sub-2"]
    for file in (tmp_path / "aside").iterdir():
        file.rename(tmp_path / "raw" / file.name)
    assert store("repair", path, workers=1).exit_code == 0
    assert store("verify", path).exit_code == 0
    assert Store.open(path).store_hash == before


def rewritten(path: Path, change: Callable[[list[dict]], None]) -> None:
    table = pq.read_table(path / "sessions.parquet")
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path / "sessions.parquet")


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[0].update(split="val"),
        lambda rows: rows[1].update(columns=json.dumps({**json.loads(rows[1]["columns"]), "age": 99.0})),
        lambda rows: rows[0].update(layout=rows[1]["layout"].replace("64", "128", 1)),
        lambda rows: rows[0].update(layout='{"T1w": [1e999, 1, 0, 0, 0, 1.0]}'),
        lambda rows: rows[0].update(layout="[" * 100_000),
        lambda rows: rows[0].update(affine=[1.0] * 16),
        lambda rows: rows[0].update(source="other"),
        lambda rows: rows.pop(),
        lambda rows: rows.append(rows[0]),
        lambda rows: rows.append({**rows[0], "key": "d/stranger"}),
    ],
    ids=["split", "age", "layout of another", "infinite layout", "deep layout", "affine", "source", "row gone", "row twice", "stranger"],
)  # fmt: skip
def test_a_table_that_is_not_of_its_sessions_is_found_and_made_again(change: Callable[[list[dict]], None], path: Path) -> None:
    before = (path / "sessions.parquet").read_bytes()
    rewritten(path, change)
    assert "sessions.parquet" in store("verify", path).problems
    store("repair", path, workers=1)
    assert store("verify", path).exit_code == 0
    assert (path / "sessions.parquet").read_bytes() == before


def test_an_infinite_layout_is_an_error_of_ours(path: Path) -> None:
    rewritten(path, lambda rows: rows[0].update(layout='{"T1w": [1e999, 1, 0, 0, 0, 1.0]}'))
    with pytest.raises(ArtifactError, match="damaged"):
        Store.open(path).read("d/sub-0", "T1w")


@pytest.mark.parametrize("marked", [True, False], ids=["", "of an older store"])
def test_a_table_of_scans_that_is_cut_off(marked: bool, path: Path) -> None:
    facts = artifacts.read_json(path / artifacts.MARKER)
    if not marked:
        artifacts.write_json(path / artifacts.MARKER, {name: value for name, value in facts.items() if name != "tables"})
    file = path / "scans.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    with pytest.raises(ArtifactError, match=r"(?s)damaged.*scans.parquet.*repair"):
        store("stats", path)
    assert set(store("verify", path).problems) == {"scans.parquet"}
    assert store("repair", path, workers=1).exit_code == 0
    assert file.read_bytes() == whole


@pytest.mark.parametrize("harm", ["cut", "altered", "gone"])
def test_a_damaged_index_is_told_and_prepare_brings_it_back(harm: str, path: Path, tmp_path: Path) -> None:
    file = path / "index.parquet"
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:300])
    elif harm == "gone":
        file.unlink()
    else:
        table = pq.read_table(file)
        pq.write_table(table.slice(0, table.num_rows - 1), file)
    flip(path, "d/sub-2", "T1w")
    told = store("verify", path)
    assert told.exit_code == 3 and set(told.problems) == {"index.parquet", "d/sub-2"}
    assert "neuroprior prepare" in told.problems["index.parquet"][0]
    assert set(store("repair", path, workers=1).problems) == {"index.parquet", "d/sub-2"}
    prepare(tmp_path / "index.parquet", path, spacing="4", workers=1)
    assert set(store("verify", path).problems) == {"d/sub-2"}
    assert store("repair", path, workers=1).exit_code == 0


def test_a_damaged_table_and_index_leave_the_files_to_be_checked(path: Path) -> None:
    flip(path, "d/sub-2", "T1w")
    for name in ("index.parquet", "sessions.parquet"):
        (path / name).write_bytes(b"no table")
    found = verifying.damages(path)
    assert set(found) == {"index.parquet", "sessions.parquet", "d/sub-2"}


def test_older_stores_are_verified_and_read_as_they_are(path: Path) -> None:
    """Made before tables named their sessions' sources and the marker its tables."""
    table = pq.read_table(path / "sessions.parquet")
    pq.write_table(table.drop_columns("source"), path / "sessions.parquet")
    facts = artifacts.read_json(path / artifacts.MARKER)
    artifacts.write_json(path / artifacts.MARKER, {name: value for name, value in facts.items() if name != "tables"})
    assert verifying.damages(path) == {}
    assert np.isfinite(Store.open(path).read("d/sub-0", "T1w")).all()


def test_repair_of_a_session_that_is_not_in_the_index_stays_told(path: Path) -> None:
    left = building.repair(path, {"d/stranger": ["?"]}, Where(1), progress=lambda done, total: None).left
    assert set(left) == {"d/stranger"}
