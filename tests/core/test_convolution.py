"""Fast convolutions against torch's in float64: values, gradients, and when they stand back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroprior.core import convolution
from neuroprior.core.convolution import Pointwise, convolve


def gradients(y: Tensor, inputs: list[Tensor], direction: Tensor) -> list[Tensor]:
    return [y, *torch.autograd.grad(y, inputs, direction.to(y.dtype))]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(1, 8), (8, 8), (3, 40), (40, 3), (20, 24)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_values_and_gradients_equal_those_of_float64(channels: tuple[int, int], kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(*channels, kernel, stride, padding=kernel // 2)
    exact = nn.Conv3d(*channels, kernel, stride, padding=kernel // 2).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, channels[0], 7, 5, 6, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    y = convolve(x, layer)
    direction = torch.randn(y.shape)
    assert layer.bias is not None and exact.bias is not None
    found = gradients(y, [x, layer.weight, layer.bias], direction)
    true = gradients(exact(wide), [wide, exact.weight, exact.bias], direction)
    for a, b in zip(found, true, strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=2e-4)


def test_some_channels_alone_and_parts_that_need_no_gradient() -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(12, 4, 3, padding=1)
    layer.bias.requires_grad_(False)  # type: ignore[union-attr]
    x = torch.randn(2, 5, 4, 4, 4)
    y = convolve(x, layer, layer.weight[:, :5])
    (gradient,) = torch.autograd.grad(y.square().sum(), [layer.weight])
    plain = functional.conv3d(x, layer.weight[:, :5], layer.bias, padding=1)
    (true,) = torch.autograd.grad(plain.square().sum(), [layer.weight])
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(gradient, true, rtol=1e-4, atol=1e-4)
    assert not gradient[:, 5:].any()


def test_a_pointwise_layer_is_a_convolution_by_name_and_takes_cut_maps() -> None:
    torch.manual_seed(0)
    layer, plain = Pointwise(6, 2), nn.Conv3d(6, 2, 1)
    plain.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(3, 6, 8, 8, 8)[..., :5, :6, :7]
    torch.testing.assert_close(layer(x), plain(x))


def test_which_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(convolution, "_pointwise", lambda *a: taken.append("product"))
    monkeypatch.setattr(convolution._Convolution, "apply", lambda *a: taken.append("last"))
    narrow, wide, point = nn.Conv3d(8, 8, 3), nn.Conv3d(32, 32, 3), nn.Conv3d(8, 8, 1)
    maps = {layer: torch.randn(1, layer.in_channels, 4, 4, 4) for layer in (narrow, wide, point)}
    for layer, x in maps.items():
        convolve(x, layer)
    assert taken == ["last", "product"]
    taken.clear()
    with torch.no_grad():
        convolve(maps[narrow], narrow)
    with torch.autocast("cpu", torch.bfloat16):
        convolve(maps[narrow], narrow)
        convolve(maps[point], point)
    convolve(maps[narrow].double(), nn.Conv3d(8, 8, 3).double())
    assert taken == []
