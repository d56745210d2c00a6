"""Channels-last maps stay so, and the operations that see to it equal torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from neuroprior.nets import _fused, _layout, resenc, unet

LAST = torch.channels_last_3d
CPU = torch.device("cpu")

NETS = {
    "unet": (unet, unet.Config(features=(4, 8, 12), latent=3, skips=True)),
    "unet, all stages": (unet, unet.Config(features=(4, 8, 12), latent=3, split="stages", contrast_finer=1)),
    "resenc": (resenc, resenc.Config(features=(4, 8, 12), blocks=(1, 2, 2))),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_map_of_a_net_lies_channels_last(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, config = NETS[name]
    net = module.build(config)
    net.lay_out(CPU)
    seen: list[bool] = []
    original = _fused.norm_act

    def look(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        seen.append(_layout.is_last(x))
        return original(x, *rest, **named)

    monkeypatch.setattr(module, "norm_act", look)
    representation = net.encode(torch.randn(batch, 1, 8, 12, 8))
    assert all(_layout.is_last(stage) for stage in representation.stages)
    net.reconstruct(representation, (8, 12, 8)).sum().backward()
    assert len(seen) == sum(isinstance(part, nn.InstanceNorm3d) for part in net.modules())
    assert all(seen)
    assert all(p.is_contiguous() for p in net.parameters())
    assert all(p.grad is None or p.grad.is_contiguous() for p in net.parameters())


def test_a_layout_is_chosen_and_taken_back() -> None:
    net = unet.build(NETS["unet"][1])
    x = torch.randn(1, 1, 8, 8, 8)
    assert not _layout.is_last(net.laid(x))
    net.lay_out(CPU)
    laid = net.laid(x)
    assert _layout.is_last(laid)
    assert torch.equal(laid, x)
    assert laid.data_ptr() == x.data_ptr()
    assert torch.equal(net.laid(x[..., ::2]), x[..., ::2])
    net.lay_out(CPU, torch.contiguous_format)
    assert net.laid(x) is x


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_two_inputs_is_that_of_the_two_joined(last: bool, stride: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(12, 4, 3, stride, padding=1).double()
    x, skip = torch.randn(2, 5, 4, 4, 4).double(), torch.randn(2, 7, 4, 4, 4).double()
    if last:
        x, skip = x.contiguous(memory_format=LAST), skip.contiguous(memory_format=LAST)
    x.requires_grad_()
    skip.requires_grad_()
    inputs = [x, skip, layer.weight, layer.bias]
    true = functional.conv3d(torch.cat([x, skip], 1), layer.weight, layer.bias, stride, 1)
    y = _layout.convolved(x, layer, skip)
    direction = torch.randn_like(true)
    for a, b in zip(torch.autograd.grad(y, inputs, direction), torch.autograd.grad(true, inputs, direction), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(y, true)
    assert _layout.is_last(y) == last
    alone = _layout.convolved(x, layer)
    torch.testing.assert_close(alone, functional.conv3d(x, layer.weight[:, :5], layer.bias, stride, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "grid"), [((8, 12, 4), (2, 3, 1)), ((8, 8, 8), (8, 4, 2))])
def test_cells_have_the_mean_of_their_voxels(size: tuple[int, ...], grid: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size).to(dtype).contiguous(memory_format=LAST).requires_grad_()
    true = functional.adaptive_avg_pool3d(x.double(), grid)
    y = _layout.mean_pooled(x, grid)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), true, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(y.float().square().sum(), [x])
    (exact,) = torch.autograd.grad(true.square().sum(), [x])
    torch.testing.assert_close(gradient, exact, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    assert _layout.is_last(gradient)


@pytest.mark.parametrize("size", [(8, 4, 6), (7, 4, 6)])
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
def test_a_pool_is_torchs_average_pool(size: tuple[int, ...], layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    torch.testing.assert_close(_layout.MeanPool(2)(x), nn.AvgPool3d(2)(x))


def test_a_weight_that_an_adapter_computes_is_computed_once() -> None:
    class Doubled(nn.Module):
        calls = 0

        def forward(self, weight: Tensor) -> Tensor:
            self.calls += 1
            return 2 * weight

    layer, adapter = nn.Conv3d(6, 2, 3, padding=1), Doubled()
    x, skip = (t.contiguous(memory_format=LAST) for t in torch.randn(2, 1, 3, 4, 4, 4))
    true = functional.conv3d(torch.cat([x, skip], 1), 2 * layer.weight, layer.bias, padding=1)
    parametrize.register_parametrization(layer, "weight", adapter)
    adapter.calls = 0
    torch.testing.assert_close(_layout.convolved(x, layer, skip), true, rtol=1e-4, atol=1e-5)
    assert adapter.calls == 1
