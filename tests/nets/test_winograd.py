"""Convolutions with half the multiplications, against torch's own in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from neuroprior.nets import _winograd
from neuroprior.nets._layout import convolved

LAST = torch.channels_last_3d


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_winograd, "FEWEST", 1)


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=LAST)


def exact(x: torch.Tensor, layer: nn.Conv3d, skip: torch.Tensor | None) -> torch.Tensor:
    joined = x if skip is None else torch.cat([x, skip], 1)
    assert layer.bias is not None
    return functional.conv3d(joined.double(), layer.weight.double(), layer.bias.double(), padding=1)


@pytest.mark.parametrize("size", [(4, 5, 7), (8, 6, 6), (16, 9, 10)])
@pytest.mark.parametrize("joined", [0, 24])
@pytest.mark.parametrize("between", [1, _winograd.BETWEEN])
def test_it_is_the_convolution(size: tuple[int, ...], joined: int, between: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_winograd, "BETWEEN", between)
    torch.manual_seed(1)
    layer = nn.Conv3d(32 + joined, 20, 3, padding=1)
    x, skip = maps(2, 32, *size), maps(2, joined, *size, seed=1) if joined else None
    with torch.no_grad():
        assert _winograd.applies(x, layer)
        got, wanted = convolved(x, layer, skip), exact(x, layer, skip)
    assert got.is_contiguous(memory_format=LAST)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-5


def test_changed_weights_are_transformed_anew() -> None:
    torch.manual_seed(1)
    layer, x = nn.Conv3d(32, 32, 3, padding=1), maps(1, 32, 4, 4, 4)
    with torch.no_grad():
        before = convolved(x, layer)
        layer.weight.mul_(2)
        assert layer.bias is not None
        layer.bias.mul_(2)
        torch.testing.assert_close(convolved(x, layer), 2 * before, rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(1)
    layer, x = nn.Conv3d(32, 32, 3, padding=1), maps(3, 32, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(convolved(x, layer)[1:2], convolved(x[1:2].contiguous(memory_format=LAST), layer))


def test_where_it_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv3d(32, 32, 3, padding=1), maps(1, 32, 8, 8, 8)
    assert not _winograd.applies(x, layer)  # gradients are wanted
    with torch.no_grad():
        assert _winograd.applies(x, layer)
        assert not _winograd.applies(x.double(), layer)
        assert not _winograd.applies(maps(1, 32, 6, 8, 8), layer)
        assert not _winograd.applies(x, nn.Conv3d(32, 32, 3, padding=1, stride=2))
        assert not _winograd.applies(x, nn.Conv3d(32, 32, 1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not _winograd.applies(x, layer)
        monkeypatch.setattr(_winograd, "FEWEST", 8**3 + 1)
        assert not _winograd.applies(x, layer)
