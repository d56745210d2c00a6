"""Gradients kept in factors are the gradients, and a step with them is the step without."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neuroprior.engine.optimisers import OptimizerConfig, advance, build
from neuroprior.nets import _factors, _layout, resenc, unet

CPU = torch.device("cpu")
NETS = {
    "unet": lambda: unet.build(unet.Config(features=(4, 8, 48), latent=3, skips=True)),
    "resenc": lambda: resenc.build(resenc.Config(features=(4, 8, 48), blocks=(1, 1, 3))),
}


def made(name: str, wanted: bool = True) -> Any:
    torch.manual_seed(0)
    net = NETS[name]()
    net.lay_out(CPU)
    net.keep_factors(wanted)
    return net


def layers(net: nn.Module) -> list[Any]:
    """Those that keep some just now."""
    return [part for part in net.modules() if getattr(part, "factors", None)]


def loss(net: Any, x: Tensor) -> Tensor:
    return (net.reconstruct(net.encode(x), x.shape[2:]) - x).square().mean()


def boxes(seed: int, n: int = 2) -> Tensor:
    return torch.randn(n, 1, 8, 12, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("recompute", [0, 9])
def test_they_give_the_gradient_of_autograd(name: str, recompute: int) -> None:
    plain, net = made(name, wanted=False), made(name)
    net.recompute = recompute
    for seed in range(2):  # two micro-batches
        loss(plain, boxes(seed)).backward()
        loss(net, boxes(seed)).backward()
    kept = layers(net)
    assert len(kept) >= 2
    assert not layers(plain)
    for (key, a), b in zip(plain.named_parameters(), net.parameters(), strict=True):
        found = next((layer for layer in kept if layer.weight is b), None)
        if found is not None:
            assert b.grad is None, key
        gradient = b.grad if found is None else found.factors.gradient()
        if a.grad is None:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, a.grad, rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("config", [OptimizerConfig(), OptimizerConfig(name="sgd", lr=1e-2)], ids=["adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 1e6, 1e-3])
@pytest.mark.parametrize("name", NETS)
def test_steps_are_those_without(name: str, clip: float | None, config: OptimizerConfig) -> None:
    """In float64: small nets magnify float32's rounding."""
    nets = [made(name, wanted=False).double(), made(name).double()]
    optimizers = [build(net, config) for net in nets]
    for seed in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            for part in range(2):
                (loss(net, boxes(10 * seed + part).double()) / 2).backward()
            assert bool(layers(net)) == (net is nets[1])
            advance(net, optimizer, clip)
            assert not layers(net)
            assert all(p.grad is None for p in net.parameters())
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)
    for a, b in zip(*(o.state_dict()["state"].values() for o in optimizers), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(b[key], a[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("few", [0, 10**6])
@pytest.mark.parametrize("name", NETS)
def test_the_norm_is_that_of_the_gradient(name: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_factors, "FEW", few)
    net = made(name).double()
    for seed in range(2):
        loss(net, boxes(seed).double()).backward()
    for layer in layers(net):
        torch.testing.assert_close(layer.factors.norm(), layer.factors.gradient().norm(), rtol=1e-10, atol=0)


def test_a_gradient_that_is_there_beside_them_is_added() -> None:
    plain, net = made("unet", wanted=False), made("unet")
    optimizers = [build(each, OptimizerConfig(name="sgd", lr=1e-2)) for each in (plain, net)]
    for seed, how in ((0, _factors.plain_gradients), (1, None)):
        loss(plain, boxes(seed)).backward()
        if how is None:
            loss(net, boxes(seed)).backward()
        else:
            with how():
                loss(net, boxes(seed)).backward()
    kept = layers(net)
    assert kept
    assert all(layer.weight.grad is not None for layer in kept)
    for each, optimizer in zip((plain, net), optimizers, strict=True):
        advance(each, optimizer, 0.01)
    for a, b in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8)


def test_a_gradient_that_is_not_finite_is_so_as_without() -> None:
    nets = [made("unet", wanted=False), made("unet")]
    for net in nets:
        optimizer = build(net, OptimizerConfig(name="sgd", lr=1e-2))
        (loss(net, boxes(0)) * float("inf")).backward()
        advance(net, optimizer, 1.0)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


class Doubled(nn.Module):
    """Weights that are computed each time, as an adapter's."""

    def forward(self, weight: Tensor) -> Tensor:
        """Twice the weights."""
        return 2 * weight


def kept_by(layer: nn.Conv3d, x: Tensor) -> bool:
    layer.factors = _factors.Factors(layer.weight, layer.stride, [1, 1, 1])  # type: ignore[arg-type]
    y = _layout.convolved(x, layer)
    if y.requires_grad:
        y.sum().backward()
    return bool(layer.factors)  # type: ignore[arg-type]


def test_where_they_do_not_apply_autograd_does_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 48, 2, 2, 2).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    assert kept_by(nn.Conv3d(48, 48, 3, padding=1), x)
    assert not kept_by(nn.Conv3d(48, 48, 3, padding=1), x.detach())  # nothing comes before
    assert not kept_by(nn.Conv3d(48, 4, 3, padding=1), torch.randn(1, 48, 16, 16, 16, requires_grad=True))  # large maps
    frozen = nn.Conv3d(48, 48, 3, padding=1)
    frozen.weight.requires_grad_(False)
    assert not kept_by(frozen, x)
    with torch.no_grad():
        assert not kept_by(nn.Conv3d(48, 48, 3, padding=1), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not kept_by(nn.Conv3d(48, 48, 3, padding=1), x)
    layer = nn.Conv3d(48, 48, 3, padding=1)
    layer.factors = _factors.Factors(layer.weight, layer.stride, [1, 1, 1])  # type: ignore[arg-type]
    parametrize.register_parametrization(layer, "weight", Doubled())
    _layout.convolved(x, layer).sum().backward()
    assert not layer.factors
    assert layer.parametrizations.weight.original.grad is not None  # type: ignore[union-attr]


def test_a_copied_net_keeps_its_own() -> None:
    net = made("unet")
    loss(net, boxes(0)).backward()
    twin = copy.deepcopy(net)
    assert layers(net)
    assert not layers(twin)
    loss(twin, boxes(0)).backward()
    assert len(layers(twin)) == len(layers(net))
    for layer in layers(twin):
        assert layer.factors.weight is layer.weight
    assert not any("factors" in key for key in net.state_dict())
    net.keep_factors(False)
    assert not layers(net)


def sizes(held: Sequence[Any]) -> int:
    return sum(x.numel() + grad.numel() for layer in held for x, grad, _ in layer.factors._parts)


def test_what_is_kept_is_smaller() -> None:
    net = made("resenc")
    loss(net, boxes(0)).backward()
    held = layers(net)
    assert sizes(held) * _factors.SMALLER <= sum(layer.weight.numel() for layer in held)
