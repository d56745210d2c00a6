"""Granted memory is the least of all limits above this process, less what is in use and cannot be given back."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroprior.engine.memory import granted_memory_mb

MB = 1_000_000


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)


def group(place: Path, limit: str, used: int, idle: int, *, old: bool = False) -> None:
    place.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file") if old else ("memory.max", "memory.current", "inactive_file")  # fmt: skip
    (place / names[0]).write_text(f"{limit}\n")
    (place / names[1]).write_text(f"{used}\n")
    (place / "memory.stat").write_text(f"anon {used - idle}\n{names[2]} {idle}\n")


def test_the_limit_of_a_nested_group_holds_less_what_is_used(tmp_path: Path) -> None:
    """As in a SLURM job: the root has no limit, the job has one, and the step below it none of its own."""
    (tmp_path / "own").write_text("0::/system.slice/job_7/step_0\n")
    (tmp_path / "cpu.max").touch()
    group(tmp_path / "system.slice/job_7", str(300 * MB), 150 * MB, 90 * MB)
    group(tmp_path / "system.slice/job_7/step_0", "max", 150 * MB, 90 * MB)
    assert granted_memory_mb(tmp_path, tmp_path / "own") == pytest.approx(300 - (150 - 90))
    group(tmp_path / "system.slice", str(100 * MB), 95 * MB, 0)
    assert granted_memory_mb(tmp_path, tmp_path / "own") == pytest.approx(5)
    group(tmp_path / "system.slice", str(100 * MB), 120 * MB, 0)
    assert granted_memory_mb(tmp_path, tmp_path / "own") == 0


def test_groups_of_the_first_version_are_read(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("9:cpu,cpuacct:/elsewhere\n4:memory:/slurm/uid_1/job_7\n0::/\n")
    group(tmp_path / "memory/slurm/uid_1/job_7", str(200 * MB), 50 * MB, 30 * MB, old=True)
    group(tmp_path / "memory", str(2**63 - 4096), 50 * MB, 30 * MB, old=True)
    assert granted_memory_mb(tmp_path, tmp_path / "own") == pytest.approx(180)


def test_inside_a_container_the_limit_lies_at_the_root(tmp_path: Path) -> None:
    """The file names the group as it is called outside, where no folder is."""
    (tmp_path / "own").write_text("0::/docker/abcdef\n")
    group(tmp_path, str(250 * MB), 100 * MB, 0)
    assert granted_memory_mb(tmp_path, tmp_path / "own") == pytest.approx(150)


def test_what_slurm_granted_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = granted_memory_mb(tmp_path, tmp_path / "none")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "200")
    assert granted_memory_mb(tmp_path, tmp_path / "none") == pytest.approx(200 * 2**20 / 1e6)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all that the node has
    assert granted_memory_mb(tmp_path, tmp_path / "none") == pytest.approx(machine, rel=0.2)
