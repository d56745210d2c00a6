"""Every objective on the shelf: finite, falling, a function of the samples, deaf to the global generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from neuroprior.core import shelf
from neuroprior.data.records import PairBatch
from neuroprior.nets import unet

DIMENSION = 5
SMALL: dict[str, dict[str, Any]] = {
    "anatomy_split": {"dimension": DIMENSION},
}


def batch(n: int) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    smooth = nn.functional.interpolate(torch.randn(2 * n, 1, 3, 3, 3, generator=generator), size=(12, 16, 12), mode="trilinear")
    return PairBatch(
        image_a=smooth[:n], image_b=smooth[n:], paired=[True] * n, contrast_a=["T1w"] * n, contrast_b=["T2w"] * n,
        subject=[f"s{k}" for k in range(n)], sample=list(range(n)), health=torch.arange(n) % 2, has_anatomy=torch.ones(n, dtype=torch.bool),
        anatomy=torch.randn(n, DIMENSION, generator=generator), has_label=torch.zeros(n, dtype=torch.bool),
    )  # fmt: skip


def part(data: PairBatch, rows: slice) -> PairBatch:
    return PairBatch(**{name: value[rows] for name, value in data.items()})  # type: ignore[arg-type]


@pytest.fixture(params=shelf.names("objectives"))
def objective(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module = shelf.load("objectives", request.param)
    net = unet.build(unet.Config(features=(4, 8, 16), latent=8))
    return module.build(net, module.Config.model_validate({"block": 4, **SMALL.get(request.param, {})}))


def test_the_loss_falls_on_a_toy_batch(objective: nn.Module) -> None:
    data = batch(2)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = objective(data, epoch=0.0, seed=0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(value == value for value in losses)
    assert losses[-1] < 0.8 * losses[0]


def test_the_mean_of_two_halves_is_the_whole(objective: nn.Module) -> None:
    if objective.couples_samples:
        pytest.skip("this objective compares the samples of a batch with each other: that is what it is for")
    data = batch(4)
    with torch.no_grad():
        whole = objective(data, epoch=3.0, seed=5)["loss"]
        halves = [objective(part(data, rows), epoch=3.0, seed=5)["loss"] for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_masks_and_noise_come_from_seed_and_sample_alone(objective: nn.Module) -> None:
    data = batch(2)
    with torch.no_grad():
        before = torch.random.get_rng_state()
        first = objective(data, epoch=3.0, seed=5)["loss"]
        assert torch.equal(before, torch.random.get_rng_state())
        torch.manual_seed(99)
        assert torch.equal(first, objective(data, epoch=3.0, seed=5)["loss"])
        assert not torch.equal(first, objective(data, epoch=3.0, seed=6)["loss"])


def test_panels_show_volumes_of_the_input_size(objective: nn.Module) -> None:
    data = batch(2)
    for name, image in objective.panels(data, seed=0).items():
        assert image.shape == (2, 12, 16, 12), name
