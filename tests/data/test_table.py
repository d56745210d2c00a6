"""The store's table by column, and sessions that are made when they are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from neuroprior.core.errors import ArtifactError
from neuroprior.data.pairs import PairConfig, PairDataset
from neuroprior.data.store import Store
from neuroprior.data.table import Table


def test_a_session_is_the_same_by_place_by_key_and_in_a_walk(store_path: Path) -> None:
    store = Store.open(store_path)
    walked = list(store.sessions)
    assert len(walked) == len(store.sessions) == len(store.keys())
    for number, session in enumerate(walked):
        for other in (store.sessions[number], store.sessions[number - len(walked)], store[session.key]):
            assert (other.key, other.split, other.shape, tuple(other.scans)) == (
                session.key, session.split, session.shape, tuple(session.scans),
            )  # fmt: skip
            np.testing.assert_array_equal(other.affine, session.affine)
            assert dict(other.columns) == dict(session.columns)
    assert [s.key for s in store.sessions[:2]] == store.keys()[:2]
    with pytest.raises(IndexError):
        store.sessions[len(walked)]


@pytest.mark.parametrize("name", ["dataset", "subject", "split", "scans", "labels"])
def test_columns_say_what_the_sessions_say(store_path: Path, name: str) -> None:
    store = Store.open(store_path)
    numbers, values = store.coded(name)  # type: ignore[arg-type]
    altered = store.with_sessions(tuple(store.sessions))
    again, others = altered.coded(name)  # type: ignore[arg-type]
    said = [tuple(found) if name in ("scans", "labels") else found for found in (getattr(s, name) for s in store.sessions)]
    assert [values[n] for n in numbers] == said == [others[n] for n in again]


def test_altered_sessions_are_drawn_from(store_path: Path) -> None:
    """A store seen with other splits draws from those, and a sample of it is the one of the store's own session."""
    store = Store.open(store_path)
    mine = store.sessions[0].subject
    altered = store.with_sessions([replace(s, split="train" if s.subject == mine else "test") for s in store.sessions])
    drawn = PairDataset(altered, ("train",), PairConfig(patch=8), seed=0)
    assert len(drawn) == 1
    assert drawn[0]["subject"] == mine


def test_a_column_that_lacks_values_is_damaged(store_path: Path, tmp_path: Path) -> None:
    table = pq.read_table(store_path / "sessions.parquet")
    rows = table.to_pylist()
    rows[0]["layout"] = None
    pq.write_table(table.from_pylist(rows, table.schema), tmp_path / "sessions.parquet")
    found = Table(tmp_path)
    assert len(found.coded("subject")[0]) == table.num_rows
    with pytest.raises(ArtifactError, match="damaged"):
        found.layout(1)
