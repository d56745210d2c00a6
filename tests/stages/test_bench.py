"""The bench verb: its figures hold together; steps are counted whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neuroprior.core.errors import ConfigError
from neuroprior.engine import pace, vram
from neuroprior.engine.settings import TrainingConfig
from neuroprior.stages.bench import bench

SMALL = ["net.features=[4,8]", "net.latent=4", "data.patch=16", "training.batch=2"]


def test_a_line_with_figures_that_hold_together(store_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench.jsonl"
    for _ in range(2):
        found = bench("tiny", store_path, seconds=0.1, out=out, set=SMALL)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2
    r = lines[-1]
    assert r == found.record
    assert r["steps"] >= 3
    assert r["pairs_per_s"] == pytest.approx(2 * r["steps_per_s"])
    assert r["scans_per_s"] == pytest.approx(4 * r["steps_per_s"])
    assert r["step_s_spread"][0] <= r["step_s"] <= r["step_s_spread"][1]
    assert r["eta_steps"] == 300
    assert r["eta_hours"] == pytest.approx(300 * r["step_s"] / 3600)
    assert 0 < r["data_wait_share"] < 1
    assert r["peak_memory_mb"] > 0
    assert not r["synthetic_store"]
    assert "tiny on" in str(found)


def test_the_eta_of_a_recipe_in_epochs_counts_the_subjects_asked_for(store_path: Path, tmp_path: Path) -> None:
    small = ["net.features=[4,8]", "net.latent=4", "data.patch=16"]
    r = bench("fomo25", store_path, seconds=0.1, subjects=1000, out=tmp_path / "b.jsonl", set=small).record
    assert r["eta_steps"] == 100 * 1000 // 4
    assert r["eta_of"] == 1000


def test_an_objective_with_vectors_needs_no_table_here(store_path: Path, tmp_path: Path) -> None:
    small = ["net.features=[4,8,8]", "net.blocks=[1,1,1]", "data.patch=16", "training.batch=2"]
    assert bench("ssl3d", store_path, seconds=0.1, out=tmp_path / "b.jsonl", set=small).record["steps"] >= 3


def test_how_a_step_fits_into_cards(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards small enough for a small net: more memory, larger micro-batches, always the same effective batch."""
    monkeypatch.setattr(vram, "CARDS_GB", (0.586, 0.591, 0.593, 40))
    found = bench("tiny", store_path, cards=True, out=tmp_path / "b.jsonl", set=[*SMALL, "training.batch=4"])
    assert found.record == json.loads((tmp_path / "b.jsonl").read_text())
    cards = found.record["cards"]
    assert cards["0.586"] is None
    ways = [cards[gb] for gb in ("0.591", "0.593", "40")]
    assert all(way["batch"] * way["accumulate"] == 4 for way in ways)
    assert ways[0]["batch"] <= ways[1]["batch"] <= ways[2]["batch"] == 4
    assert all(
        way["peak_mb"] <= vram.limit_of(gb, TrainingConfig(steps=1))
        for gb, way in zip(("0.591", "0.593", "40"), ways, strict=True)
    )
    assert "nothing fits" in str(found)
    assert "--set training.batch=4" in str(found)


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patsch"):
        bench("tiny", tmp_path, out=tmp_path / "b.jsonl", set=["data.patsch=16"])
    with pytest.raises(ConfigError, match="number of training subjects"):
        bench("tiny", tmp_path, out=tmp_path / "b.jsonl", subjects=0)


class Counted(nn.Module):
    """Counts what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, batch: Tensor, epoch: float, seed: int) -> dict[str, Tensor]:
        self.seen += 1
        return {"loss": (self.weight * batch).sum()}


def test_steps_are_whole_and_the_first_two_do_not_count() -> None:
    module = Counted()
    config = TrainingConfig(steps=1, accumulate=3, accelerator="cpu")
    found = pace.take(module, config, [torch.ones(1)] * 17, 60.0)
    assert len(found.step_s) == 3  # five whole steps of 17 micro-batches
    assert module.seen == 17
    assert found.energy_kwh is None
    with pytest.raises(ValueError, match="three steps"):
        pace.take(Counted(), config, [torch.ones(1)] * 6, 0.0)
