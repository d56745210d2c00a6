"""Convolutions of 8-bit integers: exact sums of what was rounded, and float32 wherever they do not apply."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from neuroprior.core.precision import has_quick_int8
from neuroprior.nets import _int8, _layout, resenc, unet

LAST = torch.channels_last_3d
CPU = torch.device("cpu")

needs_vnni = pytest.mark.skipif(not has_quick_int8("cpu"), reason="this CPU does not multiply 8-bit integers (VNNI)")


def maps(*shape: int, seed: int = 0) -> Tensor:
    """What comes after an activation: a normal map whose negative numbers are small."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return functional.leaky_relu(x, 0.01).contiguous(memory_format=LAST)


def taken(x: Tensor, layer: nn.Conv3d, skip: Tensor | None = None) -> Tensor:
    """The convolution within :func:`_int8.eight_bits`."""
    with torch.no_grad(), _int8.eight_bits():
        return _layout.convolved(x, layer, skip)


def by_hand(x: Tensor, layer: nn.Conv3d, skip: Tensor | None = None) -> Tensor:
    """The same in float64, of rounded weights and of maps that a test of its own shows to be rounded well."""
    answers, at = [], 0
    for part in (x, skip):
        if part is None:
            continue
        weight = layer.weight.detach()[:, at : at + part.shape[1]]
        at += part.shape[1]
        step = weight.abs().amax((1, 2, 3, 4), keepdim=True) / 127
        weight = (weight / step).round().double() * step.double()
        for n, one in enumerate(part):
            levels, size, zero = _int8.rounded(one[None])
            assert levels is not None
            found = functional.conv3d((levels.double() - zero) * size, weight, None, layer.stride, layer.padding)
            if n < len(answers):
                answers[n] += found
            else:
                answers.append(found + (0 if layer.bias is None else layer.bias.detach().double().view(1, -1, 1, 1, 1)))
    return torch.cat(answers)


@needs_vnni
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("stride", "bias"), [(1, True), (2, False)])
@pytest.mark.parametrize("joined", [False, True])
def test_sums_are_those_of_the_rounded_numbers(batch: int, stride: int, bias: bool, joined: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(24 if joined else 16, 20, 3, stride, padding=1, bias=bias)
    x, skip = maps(batch, 16, 10, 12, 8), maps(batch, 8, 10, 12, 8, seed=1) * 5 if joined else None
    y, true = taken(x, layer, skip), by_hand(x, layer, skip)
    assert _layout.is_last(y)
    assert float((y.double() - true).abs().max()) < 1e-5 * float(true.abs().max())
    exact = _layout.convolved(x, layer, skip).detach()
    assert 1e-4 < float((y - exact).norm() / exact.norm()) < 0.03


@needs_vnni
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch() -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(16, 16, 3, padding=1)
    x = maps(3, 16, 8, 8, 8) * torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1, 1, 1)
    together = taken(x, layer)
    for n in range(3):
        assert torch.equal(together[n : n + 1], taken(x[n : n + 1], layer))


@needs_vnni
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 2), (24, 10, 6)])
def test_weights_that_were_rounded_for_one_size_serve_others(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(16, 16, 3, padding=1)
    taken(maps(1, 16, 8, 8, 8), layer)
    x = maps(1, 16, *size)
    true = by_hand(x, layer)
    assert float((taken(x, layer).double() - true).abs().max()) < 1e-5 * float(true.abs().max())


@needs_vnni
def test_changed_weights_are_rounded_anew() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv3d(16, 16, 3, padding=1), maps(1, 16, 8, 8, 8)
    before = taken(x, layer)
    with torch.no_grad():
        layer.weight *= 2
        layer.bias *= 2  # type: ignore[operator]
    assert torch.allclose(taken(x, layer), 2 * before, rtol=1e-5, atol=1e-5)
    layer.weight.data = torch.zeros_like(layer.weight)
    assert torch.equal(taken(x, layer), layer.bias.detach().view(1, -1, 1, 1, 1).expand_as(before))  # type: ignore[union-attr]


@needs_vnni
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_maps_without_a_range_are_convolved_in_float32(value: float) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv3d(16, 16, 3, padding=1), maps(2, 16, 8, 8, 8)
    x[1] *= 0
    x[1, 2, 3, 4, 5] = value
    y, exact = taken(x, layer), _layout.convolved(x, layer).detach()
    assert torch.equal(y[1].isfinite(), exact[1].isfinite())
    assert torch.equal(y[1].nan_to_num(), exact[1].nan_to_num())
    assert bool(y[0].isfinite().all())
    assert not torch.equal(y[0], exact[0])


@needs_vnni
def test_one_sided_and_tiny_maps() -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(16, 16, 3, padding=1, bias=False)
    for x in (
        maps(1, 16, 8, 8, 8).abs() + 3,
        -maps(1, 16, 8, 8, 8).abs() - 3,
        maps(1, 16, 8, 8, 8) * 1e-30,
        maps(1, 16, 8, 8, 8) * 1e30,
    ):
        exact = _layout.convolved(x, layer).detach()
        assert float((taken(x, layer) - exact).abs().max()) < 0.05 * float(exact.abs().max())


class Doubled(nn.Module):
    """Weights that are computed each time, as an adapter's."""

    def forward(self, weight: Tensor) -> Tensor:
        """Twice the weights."""
        return 2 * weight


def test_where_it_does_not_apply_the_answer_is_that_of_float32() -> None:
    torch.manual_seed(0)
    adapted = nn.Conv3d(16, 16, 3, padding=1)
    parametrize.register_parametrization(adapted, "weight", Doubled())
    with torch.inference_mode():
        untracked = nn.Conv3d(16, 16, 3, padding=1)
    cases = [
        (maps(1, 16, 8, 8, 8), adapted),
        (maps(1, 16, 8, 8, 8), untracked),
        (maps(1, 16, 8, 8, 8), nn.Conv3d(16, 16, 1)),  # pointwise
        (maps(1, 1, 8, 8, 8), nn.Conv3d(1, 16, 3, padding=1)),  # the scan
        (maps(1, 16, 8, 8, 8).double(), nn.Conv3d(16, 16, 3, padding=1).double()),
        (maps(1, 16, 8, 8, 8).contiguous(), nn.Conv3d(16, 16, 3, padding=1)),
    ]
    for x, layer in cases:
        with torch.no_grad():
            exact = _layout.convolved(x, layer)
        assert torch.equal(taken(x, layer), exact)
    layer, x = nn.Conv3d(16, 16, 3, padding=1), maps(1, 16, 8, 8, 8)
    with _int8.eight_bits():  # with gradients
        learning = _layout.convolved(x, layer)
    assert torch.equal(learning, _layout.convolved(x, layer))
    learning.sum().backward()
    assert layer.weight.grad is not None


@needs_vnni
def test_it_holds_within_its_context_and_thread_alone() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv3d(16, 16, 3, padding=1), maps(1, 16, 8, 8, 8)
    with torch.no_grad():
        exact = _layout.convolved(x, layer)
        elsewhere: list[Tensor] = []

        def look() -> None:
            with torch.no_grad():
                elsewhere.append(_layout.convolved(x, layer))

        with _int8.eight_bits():
            with pytest.raises(RuntimeError), _int8.eight_bits():
                raise RuntimeError
            assert not torch.equal(_layout.convolved(x, layer), exact)
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        assert torch.equal(_layout.convolved(x, layer), exact)
        assert torch.equal(elsewhere[0], exact)


@needs_vnni
@pytest.mark.parametrize("name", ["unet", "resenc"])
def test_a_net_answers_nearly_the_same(name: str) -> None:
    torch.manual_seed(0)
    net = {
        "unet": lambda: unet.build(unet.Config(features=(8, 16, 32), latent=16, skips=True)),
        "resenc": lambda: resenc.build(resenc.Config(features=(8, 16, 32), blocks=(1, 2, 2))),
    }[name]()
    net.lay_out(CPU)
    x = torch.randn(2, 1, 16, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = net.reconstruct(net.encode(x), x.shape[2:])
        with net.eight_bits():
            y = net.reconstruct(net.encode(x), x.shape[2:])
    assert 1e-3 < float((y - exact).norm() / exact.norm()) < 0.1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40),
    st.floats(-20, 20).map(lambda power: 10.0**power),
)
def test_rounding_is_to_the_nearest_level_and_never_beyond_a_byte(values: list[float], size: float) -> None:
    x = (torch.tensor(values) * size).float().view(1, -1, 1, 1, 1).contiguous(memory_format=LAST)
    levels, step, zero = _int8.rounded(x)
    if levels is None:
        assert float(max(x.max(), 0) - min(x.min(), 0)) < 253 * torch.finfo(torch.float32).tiny
        return
    assert levels.dtype == torch.uint8
    assert 1 <= zero <= 254
    off = ((levels.double() - zero) * step - x.double()).abs()
    assert float(off.max()) <= step * 0.50001
