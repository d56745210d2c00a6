"""Mutated session files and tables: an error of ours or right voxels, never a crash, a hang or a file elsewhere."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroprior.core.errors import NeuropriorError
from neuroprior.data import building, sessions
from neuroprior.data.store import Store

CASES = 200
"""In CI; ten thousand with ``python benchmarks/data/faults.py --fuzz 10000``."""


@pytest.fixture(scope="module")
def victim(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(store_path, tmp_path_factory.mktemp("fuzz") / "store"))


def mutated(content: bytes, changes: list[tuple[float, int]], cut: float) -> bytes:
    """Bytes overwritten at relative places, and the end cut off."""
    changed = bytearray(content)
    for place, value in changes:
        changed[min(int(place * len(changed)), len(changed) - 1)] = value
    return bytes(changed[: max(1, int(cut * len(changed)))])


PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.01), st.floats(0.98, 1))
CHANGES = st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=20)
CUT = st.one_of(st.just(1.0), st.floats(0, 1))


@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES, cut=CUT)
def test_session_files(victim: Path, changes: list[tuple[float, int]], cut: float) -> None:
    opened = Store.open(victim)
    session = opened.sessions[0]
    whole = session.file.read_bytes()
    right = {name: opened.read(session.key, name) for name in session.scans}
    try:
        session.file.write_bytes(mutated(whole, changes, cut))
        damaged = sessions.check(session.file)
        assert damaged or session.file.read_bytes() == whole
        for name, voxels in right.items():
            try:
                read = opened.read(session.key, name, (slice(2, 30),) * 3)
            except NeuropriorError:
                continue
            assert read.dtype == np.float32
            if not damaged:
                np.testing.assert_array_equal(read, voxels[2:30, 2:30, 2:30])
    finally:
        session.file.write_bytes(whole)


@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES, cut=CUT, name=st.sampled_from(["sessions.parquet", "store.json", "complete.json"]))
def test_tables(victim: Path, changes: list[tuple[float, int]], cut: float, name: str) -> None:
    before = sorted(path for path in victim.parent.rglob("*"))
    file = victim / name
    whole = file.read_bytes()
    try:
        file.write_bytes(mutated(whole, changes, cut))
        with contextlib.suppress(NeuropriorError):
            opened = Store.open(victim)
            for session in opened.sessions[:2]:
                for contrast in session.scans:
                    opened.read(session.key, contrast, (slice(0, 8),) * 3)
        with contextlib.suppress(NeuropriorError):
            building.damages(victim)
    finally:
        file.write_bytes(whole)
    assert sorted(path for path in victim.parent.rglob("*")) == before
