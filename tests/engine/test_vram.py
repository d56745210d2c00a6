"""Settings with which a step fits into a given memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from neuroprior.core.errors import ConfigError
from neuroprior.engine import vram
from neuroprior.engine.settings import TrainingConfig
from neuroprior.nets import unet

CPU = torch.device("cpu")


class Made:
    """A step of 100 MiB and 50 a sample, less 10 a level; notes what is measured."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.broken = broken

    def __call__(self, batch: int, micro: int, recompute: int) -> tuple[float, float]:
        self.asked.append((batch, micro, recompute))
        if batch in self.broken:
            return float("inf"), float("inf")
        return 100 + batch * (50 - 10 * recompute), 0.5


def test_the_largest_micro_batch_that_fits_is_taken_and_the_effective_batch_stays() -> None:
    measure = Made()
    ladder = vram.Ladder(measure, 12, None, 3, certain_mb=0)
    assert ladder.fitting(10_000) == vram.Rung(12, 1, 0, 700, None)
    found = ladder.fitting(310)  # 4 samples would take 300, 6 would take 400
    assert found == vram.Rung(4, 3, 0, 300, None)
    assert ladder.fitting(150) == vram.Rung(1, 12, 0, 150, 6.0)
    assert measure.asked == [(1, 12, 0), (2, 6, 0)]  # the rest is foretold


def test_maps_are_computed_again_where_not_even_one_sample_fits() -> None:
    ladder = vram.Ladder(Made(), 4, None, 3, certain_mb=0)
    assert ladder.fitting(135) == vram.Rung(1, 4, 2, 130, 2.0)
    assert ladder.fitting(119) is None
    assert ladder.smallest() == 120


def test_samples_that_are_compared_stay_together() -> None:
    ladder = vram.Ladder(Made(), 8, 4, 2, certain_mb=0)
    assert ladder.fitting(1000) == vram.Rung(4, 2, 0, 300, 1.0)
    assert ladder.fitting(260) == vram.Rung(4, 2, 1, 260, 1.0)
    assert ladder.fitting(219) is None


def test_on_a_gpu_what_was_foretold_is_measured_before_it_is_chosen() -> None:
    measure = Made(broken=(8,))
    found = vram.Ladder(measure, 8, None, 0, certain_mb=600).fitting(600)
    assert found is not None and found.batch == 4
    assert (8, 1, 0) in measure.asked


class Toy(nn.Module):
    """Three layers, and a loss that is a mean over samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256))

    def forward(self, batch: Any, *, epoch: float, seed: int) -> dict[str, Tensor]:
        return {"loss": self.layers(batch["x"]).pow(2).mean()}


def test_the_peak_is_that_of_torchs_own_tracker() -> None:
    config = TrainingConfig(steps=1)
    batch = {"x": torch.randn(2048, 256)}
    ours, seconds = vram.step(Toy(), config, batch, CPU, micro=1, recompute=0, low=False)
    assert seconds > 0
    module = Toy().train()
    optimizer = torch.optim.AdamW(module.parameters())
    tracker = MemTracker()
    for parameter in module.parameters():  # the moments are there from the first step on
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tracker.track_external(module, optimizer, batch["x"])
    with tracker:
        module(batch, epoch=0.0, seed=0)["loss"].backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    theirs = tracker.get_tracker_snapshot("peak")[CPU]["Total"] / 2**20
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours > 2048 * (256 + 512 + 512) * 4 / 2**20  # the maps alone


def test_gradients_that_wait_for_the_next_micro_batch_count() -> None:
    config, batch = TrainingConfig(steps=1), {"x": torch.randn(512, 256)}
    alone, _ = vram.step(Toy(), config, batch, CPU, micro=1, recompute=0, low=False)
    several, _ = vram.step(Toy(), config, batch, CPU, micro=4, recompute=0, low=False)
    gradients = sum(p.numel() for p in Toy().parameters()) * 4 / 2**20
    assert several - alone == pytest.approx(gradients, rel=0.6)
    two, _ = vram.step(Toy(), config.model_copy(update={"devices": 2}), batch, CPU, micro=1, recompute=0, low=False)
    assert two - alone == pytest.approx(gradients, rel=0.01)


def test_the_module_is_left_as_it_is() -> None:
    module = Toy()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    vram.step(module, TrainingConfig(steps=1), {"x": torch.randn(8, 256)}, CPU, micro=1, recompute=0, low=False)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_no_memory_is_an_answer_and_other_errors_are_not() -> None:
    class Fails(Toy):
        def forward(self, batch: Any, *, epoch: float, seed: int) -> dict[str, Tensor]:
            raise RuntimeError(batch["why"])

    for why, expected in (("out of memory", (float("inf"), float("inf"))), ("something else", None)):
        ask = {"x": torch.zeros(1, 256), "why": why}
        if expected is None:
            with pytest.raises(RuntimeError, match="something else"):
                vram.step(Fails(), TrainingConfig(steps=1), ask, CPU, micro=1, recompute=0, low=False)
        else:
            assert vram.step(Fails(), TrainingConfig(steps=1), ask, CPU, micro=1, recompute=0, low=False) == expected


@pytest.mark.parametrize("asked", ["much", "0", "-3", "nan", "inf"])
def test_nonsense_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="--vram"):
        vram.limit_of(asked, TrainingConfig(steps=1))


def test_auto_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="has none"):
        vram.limit_of("auto", TrainingConfig(steps=1, accelerator="cpu"))


def test_a_run_that_was_begun_keeps_its_micro_batch(tmp_path: Path) -> None:
    config = TrainingConfig(steps=1, batch=8)
    seen: list[int | None] = []

    def made(couples: int | None) -> vram.Ladder:
        seen.append(couples)
        return vram.Ladder(Made(), 8, couples, 4, certain_mb=0)

    gb = (201 / vram.ROOM + vram.CONTEXT_MB) / 1024
    chosen = vram.fitted(config, tmp_path, str(gb), made, None)
    assert (chosen.batch, chosen.accumulate, chosen.recompute) == (2, 4, 0)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"training": {"batch": 4, "accumulate": 2, "recompute": 0}}))
    chosen = vram.fitted(config, tmp_path, str(gb), made, None)
    assert (chosen.batch, chosen.accumulate, chosen.recompute) == (4, 2, 3)
    assert seen == [None, 4]
    with pytest.raises(ConfigError, match="no way to take this recipe's step"):
        vram.fitted(config, tmp_path, "0.7", made, None)


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This is the second of two processes; it is quiet, which is taken back."""
    level = logging.getLogger("neuroprior").level
    monkeypatch.setenv("LOCAL_RANK", "1")
    yield
    logging.getLogger("neuroprior").setLevel(level)


@pytest.mark.usefixtures("second")
def test_other_processes_take_what_the_first_has_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """srun starts them all at once, and the memory that is free differs from card to card."""
    config = TrainingConfig(steps=1, batch=8, devices=2)
    monkeypatch.setattr(vram, "BEGUN_WITHIN_S", 0.5)
    with pytest.raises(ConfigError, match="has not begun it"):
        vram.fitted(config, tmp_path, "8", lambda couples: pytest.fail("it measured by itself"), None)
    monkeypatch.setattr(vram, "BEGUN_WITHIN_S", 60)
    begun = tmp_path / "recipe.yaml"

    def begin() -> None:
        (tmp_path / "new").write_text(yaml.safe_dump({"training": {"batch": 2, "accumulate": 4, "recompute": 1}}))
        (tmp_path / "new").rename(begun)

    first = threading.Timer(1.0, begin)
    first.start()
    chosen = vram.fitted(config, tmp_path, "8", lambda couples: pytest.fail("it measured by itself"), None)
    first.join()
    assert (chosen.batch, chosen.accumulate, chosen.recompute) == (2, 4, 1)


class Deep(nn.Module):
    """A net with kernels larger than the maps that meet them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = unet.build(unet.Config(features=(4, 8, 64, 64, 64, 64), latent=4, skips=True))

    def forward(self, batch: dict[str, Tensor], *, epoch: float, seed: int) -> dict[str, Tensor]:
        image = batch["image"]
        return {"loss": self.net.reconstruct(self.net.encode(image), image.shape[2:]).square().mean()}


def test_a_heavy_net_holds_its_gradients_on_a_card_and_not_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroprior.engine.device.HEAVY", 1)
    config = TrainingConfig.model_validate({"accelerator": "cpu", "precision": "32", "batch": 1, "optimizer": {"name": "sgd"}})
    module = Deep()
    here, card = (
        vram.ladder(module, config, lambda n: {"image": torch.zeros(n, 1, 32, 32, 32)}, precision=where).smallest()
        for where in ("here", "gpu")
    )
    held = sum(p.numel() * p.element_size() for p in module.parameters() if p.ndim > 1) / 2**20
    assert 0.3 * held < card - here < 1.1 * held
