"""The fused norm and activation against the composed operations: values, gradients, and when it stands back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroprior.nets import _fused, resenc, unet


def norm_of(channels: int, dtype: torch.dtype = torch.float64) -> nn.InstanceNorm3d:
    """Weights of both signs, none near zero (an even number of channels)."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(channels, affine=True).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1.5, 1.5, channels)).add_(norm.weight.sign() * 0.2)
        norm.bias.normal_()
    return norm


def composed(x: Tensor, norm: nn.InstanceNorm3d, slope: float, shortcut: Tensor | None) -> Tensor:
    x = norm(x)
    return functional.leaky_relu(x if shortcut is None else x + shortcut, slope)


@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_equal_the_composed_operations(
    slope: float, with_shortcut: bool, chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fused, "CHUNK_BYTES", chunk)
    norm = norm_of(6, dtype)
    x, s, g = torch.randn(3, 2, 6, 5, 4, 3, dtype=dtype)
    x.requires_grad_()
    shortcut = s.requires_grad_() if with_shortcut else None
    found: list[list[Tensor]] = []
    for call in (composed, _fused.norm_act):
        fresh = x * 2
        assert _fused.can_undo(fresh, norm)
        y = call(fresh, norm, slope=slope, shortcut=shortcut)
        inputs = [x, norm.weight, norm.bias, *([] if shortcut is None else [shortcut])]
        found.append([y, *torch.autograd.grad(y, inputs, g)])
    tolerance: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, **tolerance)


def test_gradcheck() -> None:
    norm = norm_of(4)
    x, s = torch.randn(2, 2, 4, 2, 3, 2, dtype=torch.float64)

    def f(x: Tensor, s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _fused._NormAct.apply(x * 1, weight, bias, s, norm.eps, 0.01)  # type: ignore[return-value]

    inputs = [t.detach().requires_grad_() for t in (x, s, norm.weight, norm.bias)]
    assert torch.autograd.gradcheck(f, inputs)


def test_it_keeps_the_result_alone() -> None:
    norm = norm_of(4, torch.float32)
    kept: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    x = torch.randn(2, 4, 8, 8, 8, requires_grad=True) * 1
    memory = x.data_ptr()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = _fused.norm_act(x, norm)
    assert y.data_ptr() == memory
    maps = {t.data_ptr() for t in kept if t.numel() == y.numel()}
    assert maps == {memory}


@pytest.mark.parametrize("value", [0.0, 1e-4, float("nan")])
def test_a_weight_near_zero_is_not_undone_and_still_learns(value: float) -> None:
    norm = norm_of(4, torch.float32)
    with torch.no_grad():
        norm.weight[1] = value
    x = torch.randn(1, 4, 4, 4, 4, requires_grad=True)
    assert not _fused.can_undo(x * 1, norm)
    if value == value:
        _fused.norm_act(x * 1, norm).square().sum().backward()
        assert norm.weight.grad is not None
        assert norm.weight.grad[1] != 0


def test_it_stands_back_where_it_must() -> None:
    norm = norm_of(4, torch.float32)
    x = torch.randn(1, 4, 4, 4, 4)
    assert _fused.can_undo(x, norm)
    assert not _fused.can_undo(x.bfloat16(), norm)
    assert not _fused.can_undo(x.to(memory_format=torch.channels_last_3d), norm)
    assert not _fused.can_undo(x[:, :, :1, :1, :1], norm)
    assert not _fused.can_undo(x.clone().requires_grad_(), norm)  # a leaf would be overwritten
    assert not _fused.can_undo(x.to("meta"), norm)
    single = _fused.norm_act(x[:, :, :1, :1, :1].clone(), norm)
    expected = x[:, :, :1, :1, :1] * norm.weight.view(1, -1, 1, 1, 1) + norm.bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(single, functional.leaky_relu(expected, 0.01))


NETS = {
    "unet": (unet, unet.Config(features=(4, 8, 12), latent=3)),
    "unet with skips": (unet, unet.Config(features=(4, 8, 12), latent=3, skips=True)),
    "resenc": (resenc, resenc.Config(features=(4, 8, 12), blocks=(1, 2, 2))),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("low", [False, True])
def test_a_net_computes_and_learns_what_it_does_without(
    name: str, training: bool, low: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, config = NETS[name]
    torch.manual_seed(0)
    net = module.build(config).train(training)
    x = torch.randn(2, 1, 8, 12, 8)

    def run() -> dict[str, Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            y = net.reconstruct(net.encode(x), x.shape[2:])
        y.float().square().mean().backward()
        return {"y": y.detach()} | {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    fused = run()
    with torch.no_grad():
        quiet = net.reconstruct(net.encode(x), x.shape[2:])
    monkeypatch.setattr(_fused, "can_undo", lambda *_: False)
    plain = run()
    assert fused.keys() == plain.keys()
    for key, value in plain.items():
        scale = float(value.float().abs().max()) + 1e-6
        torch.testing.assert_close(fused[key], value, rtol=1e-4, atol=1e-4 * scale if "conv.bias" not in key else 1e-5, msg=key)
    if not low:
        torch.testing.assert_close(quiet, plain["y"])
