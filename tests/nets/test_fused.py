"""The fused norm and activation against the composed operations: values, gradients, and when it stands back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroprior.nets import _fused, _norm_cpu, resenc, unet

LAST = torch.channels_last_3d


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
@pytest.mark.parametrize("piece", [1, 300, 1 << 22])
@pytest.mark.parametrize("undone", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_equal_the_composed_operations_in_float64(
    slope: float,
    with_shortcut: bool,
    piece: int,
    undone: bool,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_norm_cpu, "PIECE_BYTES", piece)
    norm, exact = norm_of(6, torch.promote_types(dtype, torch.float32)), norm_of(6)
    if not undone:
        with torch.no_grad():
            norm.weight[2] = exact.weight[2] = 0
    drawn = torch.randn(3, 2, 6, 5, 4, 3).to(dtype)
    found: list[list[Tensor]] = []
    for call, n, kind in ((composed, exact, torch.float64), (_fused.norm_act, norm, dtype)):
        x, s, g = (t.to(kind).contiguous(memory_format=LAST) for t in drawn)
        shortcut = s.requires_grad_() if with_shortcut else None
        fresh = x.requires_grad_() * 2
        memory = fresh.data_ptr()
        y = call(fresh, n, slope=slope, shortcut=shortcut)
        if call is not composed:
            assert y.dtype == dtype and y.is_contiguous(memory_format=LAST)
            assert (y.data_ptr() == memory) == (undone and dtype != torch.bfloat16)
        inputs = [x, n.weight, n.bias, *([] if shortcut is None else [shortcut])]
        found.append([y, *torch.autograd.grad(y, inputs, g)])
    for a, b in zip(*found, strict=True):
        assert float((b.double() - a).detach().norm() / a.detach().norm()) < tolerance


def test_a_map_far_from_zero_and_one_of_many_voxels_lose_no_digits() -> None:
    torch.manual_seed(0)
    for x, tolerance in ((torch.randn(1, 8, 40, 40, 40) + 1000, 2e-4), (torch.randn(1, 8, 40, 40, 40), 2e-7)):
        true = composed(x.double(), nn.InstanceNorm3d(8, affine=True).double(), 0.01, None)
        y = _fused.norm_act(x.contiguous(memory_format=LAST), nn.InstanceNorm3d(8, affine=True))
        assert float((y - true).detach().norm() / true.detach().norm()) < tolerance


def test_few_voxels_many_channels_and_a_single_channel_take_the_same_way() -> None:
    for shape in ((2, 700, 1, 2, 1), (3, 1, 5, 5, 5), (1, 3, 7, 1, 1)):
        torch.manual_seed(0)
        x = torch.randn(shape)
        norm = norm_of(shape[1], torch.float32)
        laid = x.clone(memory_format=LAST)
        assert _fused.on_cpu(laid, norm)
        torch.testing.assert_close(_fused.norm_act(laid, norm), composed(x, norm, 0.01, None), rtol=1e-5, atol=2e-5)


def test_gradcheck() -> None:
    norm = norm_of(4)
    x, s = torch.randn(2, 2, 4, 2, 3, 2, dtype=torch.float64)

    def f(x: Tensor, s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _norm_cpu.norm_act(x * 1, weight, bias, s, norm.eps, 0.01)

    inputs = [t.detach().clone(memory_format=LAST).requires_grad_() for t in (x, s)]
    assert torch.autograd.gradcheck(f, [*inputs, *(t.detach().requires_grad_() for t in (norm.weight, norm.bias))])


def test_it_keeps_the_result_alone() -> None:
    norm = norm_of(4, torch.float32)
    kept: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    x = torch.randn(2, 4, 8, 8, 8).contiguous(memory_format=LAST).requires_grad_() * 1
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
    x = torch.randn(1, 4, 4, 4, 4).contiguous(memory_format=LAST).requires_grad_()
    assert not _norm_cpu.can_undo(x, norm.weight, norm.bias)
    if value == value:
        _fused.norm_act(x * 1, norm).square().sum().backward()
        assert norm.weight.grad is not None
        assert norm.weight.grad[1] != 0


def test_it_stands_back_where_it_must() -> None:
    norm = norm_of(4, torch.float32)
    x = torch.randn(1, 4, 4, 4, 4)
    laid = x.to(memory_format=LAST)
    assert _fused.on_cpu(laid, norm)
    assert _fused.on_cpu(laid.bfloat16(), norm)
    assert not _fused.on_cpu(laid.half(), norm)
    assert not _fused.on_cpu(x, norm)
    assert not _fused.on_cpu(laid[:, :, :1, :1, :1], norm)
    assert not _fused.on_cpu(laid.to("meta"), norm)
    leaf = laid.clone().requires_grad_()  # must not be overwritten
    assert _fused.norm_act(leaf, norm).data_ptr() != leaf.data_ptr()
    assert torch.equal(leaf, laid)
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
    counted: list[bool] = []
    original = _norm_cpu.norm_act

    def count(x: Tensor, *rest: Any) -> Tensor:
        counted.append(x.is_contiguous(memory_format=LAST))
        return original(x, *rest)

    monkeypatch.setattr(_norm_cpu, "norm_act", count)

    def run(low: bool = low) -> dict[str, Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            y = net.reconstruct(net.encode(x), x.shape[2:])
        y.float().square().mean().backward()
        return {"y": y.detach()} | {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    net.lay_out(torch.device("cpu"))
    fused = run()
    assert counted == [True] * sum(isinstance(part, nn.InstanceNorm3d) for part in net.modules())
    with torch.no_grad():
        quiet = net.reconstruct(net.encode(x), x.shape[2:])
    net.lay_out(torch.device("cpu"), torch.contiguous_format)
    counted.clear()
    plain = run()
    assert not counted
    assert fused.keys() == plain.keys()
    if low:  # torch keeps the maps between norm and convolution in float32, ours are bfloat16 as on a GPU
        exact = run(low=False)
        for key, value in exact.items():
            if key.endswith("conv.bias"):  # before a norm: its gradient is rounding alone
                continue
            error, theirs = (float((found[key] - value).norm()) for found in (fused, plain))
            assert error <= 3 * theirs + 0.02 * float(value.norm()) + 1e-5, key
        return
    for key, value in plain.items():
        scale = float(value.abs().max()) + 1e-6
        torch.testing.assert_close(fused[key], value, rtol=1e-4, atol=1e-4 * scale if "conv.bias" not in key else 1e-5, msg=key)
    torch.testing.assert_close(quiet, plain["y"])
