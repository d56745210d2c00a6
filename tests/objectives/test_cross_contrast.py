"""Every loss term of cross_contrast against plain numpy; both wirings; unpaired scans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from neuroprior.data.records import PairBatch
from neuroprior.nets import unet
from neuroprior.objectives import _piecewise, cross_contrast
from neuroprior.objectives._masking import block_mask, noise

SIZE = (8, 12, 8)


@pytest.fixture
def net() -> unet.UNet:
    torch.manual_seed(0)
    return unet.build(unet.Config(features=(4, 6, 8), latent=5))


def batch(paired: list[bool], first: int = 0) -> PairBatch:
    n = len(paired)
    generator = torch.Generator().manual_seed(7 + first)
    a, b = torch.randn(2, n, 1, *SIZE, generator=generator)
    b = torch.where(torch.tensor(paired).view(-1, 1, 1, 1, 1), b, a)
    return PairBatch(
        image_a=a, image_b=b, paired=paired, contrast_a=["T1w"] * n, contrast_b=["T2w"] * n,
        subject=[f"s{k}" for k in range(n)], sample=list(range(first, first + n)), health=-torch.ones(n, dtype=torch.int64),
        anatomy=torch.zeros(n, 0), has_anatomy=torch.zeros(n, dtype=torch.bool), has_label=torch.zeros(n, dtype=torch.bool),
    )  # fmt: skip


def by_numpy(net: unet.UNet, config: cross_contrast.Config, data: PairBatch, epoch: float, seed: int) -> dict[str, float]:
    """The published definition, one sample and one scan at a time; only the network itself is torch."""
    parts: dict[str, list[float]] = {name: [] for name in ("reconstruction", "cross", "kl", "agreement", "separation")}

    def smooth_l1(x: np.ndarray, y: np.ndarray, where: np.ndarray) -> float:
        d = np.abs(x - y)
        error = np.where(d < config.beta, 0.5 * d**2 / config.beta, d - 0.5 * config.beta)
        return float(error[where].mean())

    def cosine(u: np.ndarray, v: np.ndarray) -> float:
        return float(u.ravel() @ v.ravel() / (np.linalg.norm(u) * np.linalg.norm(v)))

    for k in range(len(data["sample"])):
        sample = data["sample"][k : k + 1]
        images = {"a": data["image_a"][k : k + 1], "b": data["image_b"][k : k + 1]}
        code: dict[str, Any] = {}
        hidden: dict[str, np.ndarray] = {}
        for name, image in images.items():
            mask = block_mask(sample, SIZE, config.block, config.ratio, seed=seed, purpose=f"mask {name}")
            hidden[name] = mask.numpy()[0, 0]
            epsilon = [
                noise(sample, (net.anatomy_channels, *net.code_grid(SIZE)), seed=seed, purpose=f"noise {half} {name}")
                for half in ("anatomy", "contrast")
            ]
            code[name] = net.encode(torch.where(mask, torch.zeros(()), image), (epsilon[0], epsilon[1]))
        shared = (code["a"].anatomy + code["b"].anatomy) / 2
        other = {"a": "b", "b": "a"}
        pair = bool(data["paired"][k])
        rec = cross = kl = 0.0
        for name, image in images.items():
            target = image.numpy()[0, 0]
            where = hidden[name] if config.region == "hidden" else np.ones(SIZE, dtype=bool)
            source = name if config.wiring == "own" else other[name]
            plain = net.decode(code[name].anatomy, code[name].contrast, SIZE).detach().numpy()[0, 0]
            crossed = net.decode(shared, code[source].contrast, SIZE).detach().numpy()[0, 0]
            if pair or name == "a":
                rec += smooth_l1(plain, target, where)
                for half in ("anatomy", "contrast"):
                    mean = getattr(code[name], f"{half}_mean").detach().numpy()
                    logvar = getattr(code[name], f"{half}_logvar").detach().numpy()
                    kl += float((-0.5 * (1 + logvar - mean**2 - np.exp(logvar))).mean())
            if pair:
                cross += smooth_l1(crossed, target, where)
        parts["reconstruction"].append(rec)
        parts["cross"].append(cross)
        parts["kl"].append(kl)
        means = {
            half: [getattr(code[name], f"{half}_mean").detach().numpy() for name in "ab"] for half in ("anatomy", "contrast")
        }
        parts["agreement"].append(1 - cosine(*means["anatomy"]) if pair else 0.0)
        parts["separation"].append(cosine(*means["contrast"]) if pair else 0.0)
    found = {name: float(np.mean(values)) for name, values in parts.items()}
    ramp = 0.001 * min(1.0, epoch / 10)
    found["loss"] = (
        3.0 * found["reconstruction"]
        + 1.0 * found["cross"]
        + ramp * found["kl"]
        + 0.5 * found["agreement"]
        + 0.5 * found["separation"]
    )
    return found


@pytest.mark.parametrize("wiring", ["own", "other"])
@pytest.mark.parametrize("region", ["volume", "hidden"])
@pytest.mark.parametrize("paired", [[True, True], [True, False], [False, False]])
def test_every_term_equals_numpy(net: unet.UNet, wiring: Any, region: Any, paired: list[bool]) -> None:
    config = cross_contrast.Config(wiring=wiring, region=region)
    objective = cross_contrast.build(net, config)
    data = batch(paired)
    got = objective(data, epoch=4.0, seed=3)
    expected = by_numpy(net, config, data, 4.0, 3)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert float(got[name].detach()) == pytest.approx(value, rel=2e-5, abs=1e-6), name


def test_the_wirings_differ(net: unet.UNet) -> None:
    data = batch([True, True])
    losses = [
        float(cross_contrast.build(net, cross_contrast.Config(wiring=wiring))(data, epoch=1.0, seed=0)["cross"])
        for wiring in ("own", "other")
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


def test_the_kl_weight_rises_over_ten_epochs_and_stays(net: unet.UNet) -> None:
    objective, data = cross_contrast.build(net, cross_contrast.Config()), batch([True])

    def weight(epoch: float) -> float:
        got = {name: float(value.detach()) for name, value in objective(data, epoch=epoch, seed=0).items()}
        rest = 3 * got["reconstruction"] + got["cross"] + 0.5 * got["agreement"] + 0.5 * got["separation"]
        return (got["loss"] - rest) / got["kl"]

    assert [weight(epoch) for epoch in (0, 5, 10, 50)] == pytest.approx([0, 0.0005, 0.001, 0.001], abs=2e-6)


def test_a_copy_is_never_pushed_from_itself(net: unet.UNet) -> None:
    """In a subject with one scan the pair terms would be a cosine of 1 with a gradient; here they are exactly absent."""
    got = cross_contrast.build(net, cross_contrast.Config())(batch([False]), epoch=1.0, seed=0)
    assert float(got["separation"]) == float(got["agreement"]) == float(got["cross"]) == 0


def test_a_net_without_a_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        cross_contrast.build(unet.build(unet.Config(features=(4, 8), split="none")), cross_contrast.Config())


@pytest.mark.parametrize("recompute", [0, 9])
def test_gradients_in_factors_are_those_without_piece_by_piece_and_computed_again(
    recompute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_piecewise.PIECE_VOXELS, "cpu", 1)
    found = []
    for wanted in (False, True):
        torch.manual_seed(0)
        net = unet.build(unet.Config(features=(4, 48, 48), latent=3))  # a kernel of the decoder is larger than its maps too
        net.lay_out(torch.device("cpu"))
        net.keep_factors(wanted)
        net.recompute = recompute
        objective = cross_contrast.build(net, cross_contrast.Config())
        objective(batch([True, True]), epoch=5.0, seed=1)["loss"].backward()
        kept = {layer.weight: layer.factors for layer in net.modules() if getattr(layer, "factors", None)}
        assert bool(kept) == wanted
        found.append([kept[p].gradient() if p in kept else p.grad for p in net.parameters()])
    for plain, ours in zip(*found, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None:
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
