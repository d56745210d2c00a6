"""Convolutions with a quarter of the multiplications, and their gradients, against torch's own in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from neuroprior.nets import _winograd
from neuroprior.nets._layout import convolved

LAST = torch.channels_last_3d


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_winograd, "FEWEST", 1)


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=LAST)


def conv(channels: int, out: int, bias: bool = True) -> nn.Conv3d:
    torch.manual_seed(1)
    return nn.Conv3d(channels, out, 3, padding=1, bias=bias)


def apart(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def exact(x: Tensor, layer: nn.Conv3d, skip: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """The answer in float64, and what it was computed from."""
    given = [t.detach().double().requires_grad_() for t in (layer.weight, layer.bias, x, skip) if t is not None]
    weight, *parts = given
    bias = parts.pop(0) if layer.bias is not None else None
    return functional.conv3d(torch.cat(parts, 1), weight, bias, padding=1), given


@pytest.mark.parametrize("size", [(4, 4, 1), (4, 8, 7), (8, 4, 6), (16, 12, 10)])
@pytest.mark.parametrize("joined", [0, 24])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("gradients", "between"), [(True, _winograd.BETWEEN_TRAINING), (False, 1), (False, _winograd.BETWEEN)])
def test_it_is_the_convolution(
    size: tuple[int, ...], joined: int, bias: bool, gradients: bool, between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_winograd, "BETWEEN", between)
    layer = conv(32 + joined, 40, bias)
    x, skip = maps(2, 32, *size), maps(2, joined, *size, seed=1) if joined else None
    with torch.set_grad_enabled(gradients):
        assert _winograd.applies(x, layer)
        got = convolved(x, layer, skip)
    assert got.is_contiguous(memory_format=LAST)
    assert apart(got, exact(x, layer, skip)[0]) < 2e-5


@pytest.mark.parametrize("size", [(4, 4, 1), (4, 8, 7), (8, 4, 6), (16, 12, 10)])
@pytest.mark.parametrize("joined", [0, 24])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
@pytest.mark.parametrize("between", [1, _winograd.BETWEEN_TRAINING])
def test_its_gradients_are_those_of_the_convolution(
    size: tuple[int, ...], joined: int, bias: bool, layout: torch.memory_format, between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_winograd, "BETWEEN_TRAINING", between)
    layer = conv(32 + joined, 40, bias)
    x = maps(2, 32, *size).requires_grad_()
    skip = maps(2, joined, *size, seed=1).requires_grad_() if joined else None
    grad = maps(2, 40, *size, seed=2).contiguous(memory_format=layout)
    answer, given = exact(x, layer, skip)
    wanted = torch.autograd.grad(answer, given, grad.double())
    got = torch.autograd.grad(convolved(x, layer, skip), [t for t in (layer.weight, layer.bias, x, skip) if t is not None], grad)
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        assert apart(one, other) < 1e-5
    assert all(one.is_contiguous(memory_format=LAST) for one in got[1 + bias :])


def test_what_comes_after_may_overwrite_the_answer() -> None:
    layer, x = conv(32, 40), maps(1, 32, 4, 8, 5)
    functional.leaky_relu(convolved(x, layer), 0.1, inplace=True).square().sum().backward()
    answer, given = exact(x, layer, None)
    wanted = torch.autograd.grad(functional.leaky_relu(answer, 0.1).square().sum(), given)[0]
    assert layer.weight.grad is not None and apart(layer.weight.grad, wanted) < 1e-5


def test_only_the_gradients_that_are_wanted_are_made() -> None:
    layer, x, skip = conv(56, 40), maps(2, 32, 4, 8, 5), maps(2, 24, 4, 8, 5, seed=1)
    convolved(x, layer, skip).square().sum().backward()
    assert x.grad is None and skip.grad is None and layer.weight.grad is not None
    of_weight = layer.weight.grad.clone()
    layer.zero_grad()
    layer.weight.requires_grad_(False)
    skip.requires_grad_()
    convolved(x, layer, skip).square().sum().backward()
    assert layer.weight.grad is None and x.grad is None and skip.grad is not None and of_weight.any()
    answer, given = exact(x, layer, skip)
    assert apart(skip.grad, torch.autograd.grad(answer.square().sum(), given)[-1]) < 1e-5


def test_channels_of_a_skip_that_does_not_come_are_left_out() -> None:
    layer, x = conv(56, 40), maps(1, 32, 4, 8, 5).requires_grad_()
    convolved(x, layer).square().sum().backward()
    answer, given = exact(x, layer, torch.zeros(1, 24, 4, 8, 5))
    wanted = torch.autograd.grad(answer.square().sum(), given)
    assert layer.weight.grad is not None and layer.bias is not None and layer.bias.grad is not None and x.grad is not None
    for got, one in zip((layer.weight.grad, layer.bias.grad, x.grad), wanted, strict=False):
        assert apart(got, one) < 1e-5
    assert not layer.weight.grad[:, 32:].any()


def test_a_map_that_is_computed_again_gives_the_same_gradients() -> None:
    layer, x = conv(32, 32), maps(1, 32, 8, 8, 8)
    convolved(x, layer).square().sum().backward()
    assert layer.weight.grad is not None
    wanted = layer.weight.grad.clone()
    layer.zero_grad()
    again = checkpoint(lambda z: convolved(z, layer), x, use_reentrant=False)
    again.square().sum().backward()
    assert torch.equal(layer.weight.grad, wanted)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    layer, x = conv(32, 32), maps(3, 32, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(convolved(x, layer)[1:2], convolved(x[1:2].contiguous(memory_format=LAST), layer))


def test_where_it_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = conv(32, 32), maps(1, 32, 8, 8, 8)
    assert _winograd.applies(x, layer)
    assert not _winograd.applies(x.double(), layer)
    assert not _winograd.applies(maps(1, 32, 6, 8, 8), layer)
    assert not _winograd.applies(maps(1, 32, 8, 6, 8), layer)
    assert not _winograd.applies(maps(1, 16, 8, 8, 8), conv(16, 32))
    assert not _winograd.applies(x, nn.Conv3d(32, 32, 3, padding=1, stride=2))
    assert not _winograd.applies(x, nn.Conv3d(32, 32, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not _winograd.applies(x, layer)
    monkeypatch.setattr(_winograd, "FEWEST", 8**3 + 1)
    assert not _winograd.applies(x, layer)
