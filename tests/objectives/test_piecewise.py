"""Losses used up piece by piece give the sum and the gradients of all at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from neuroprior.objectives import _piecewise


class Net(nn.Module):
    """A parameter that is used, one that is not, one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 2)
        self.other = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def loss(self, rows: slice, given: Sequence[Tensor]) -> Tensor:
        return (self.used(given[0]) * self.frozen + given[1]).square().mean(1)


def taken(step: int | None, frozen_input: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    torch.manual_seed(0)
    net = Net()
    a = torch.randn(5, 3, requires_grad=not frozen_input)
    b = torch.randn(5, 2, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0, 0.5])
    monkeypatch.setitem(_piecewise.PIECE_VOXELS, "cpu", 5 if step is None else step)
    total, losses = _piecewise.weighted_sum(net.loss, [a * 2, b * 3], weight, net, 1)
    assert not losses.requires_grad
    (total * 0.7 + b.sum()).backward()
    assert net.other.weight.grad is None
    assert (a.grad is None) == frozen_input
    assert b.grad is not None
    assert net.used.weight.grad is not None
    return [total.detach(), losses, *([] if a.grad is None else [a.grad]), b.grad, net.used.weight.grad]


@pytest.mark.parametrize("frozen_input", [False, True])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_piece_by_piece_is_the_same(step: int, frozen_input: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for got, expected in zip(taken(step, frozen_input, monkeypatch), taken(None, frozen_input, monkeypatch), strict=True):
        torch.testing.assert_close(got, expected)


def test_only_one_graph_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_piecewise.PIECE_VOXELS, "cpu", 1)
    net, alive = Net(), []
    held: list[int] = []

    def note(t: Tensor) -> list[Tensor]:
        box = [t]
        alive.append(_Watched(box))
        held.append(sum(w.there for w in alive))
        return alive[-1].box()

    def loss(rows: slice, given: Sequence[Tensor]) -> Tensor:
        return net.loss(rows, given)

    x = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda box: box[0]):
        _piecewise.weighted_sum(loss, x, torch.ones(6), net, 1)
    first = len(held) // 6
    assert max(held) <= first + 12  # what one piece keeps, and the known gradients at the end


class _Held(list):  # type: ignore[type-arg]
    """A list that can be referred to weakly."""


class _Watched:
    """Whether a saved tensor is still held by the graph."""

    def __init__(self, box: list[Tensor]) -> None:
        import weakref

        self._box: _Held | None = _Held(box)
        self._weak = weakref.ref(self._box)

    def box(self) -> _Held:
        box, self._box = self._box, None
        assert box is not None
        return box

    @property
    def there(self) -> bool:
        return self._weak() is not None


def test_nothing_is_differentiated_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_piecewise.PIECE_VOXELS, "cpu", 1)
    net = Net()
    with torch.no_grad():
        total, losses = _piecewise.weighted_sum(net.loss, [torch.ones(3, 3), torch.ones(3, 2)], torch.ones(3), net, 1)
    assert not total.requires_grad
    torch.testing.assert_close(total, losses.sum())


def test_low_precision_takes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Net()
    inputs = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    found = []
    for step in (1, 4):
        monkeypatch.setitem(_piecewise.PIECE_VOXELS, "cpu", step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total, _ = _piecewise.weighted_sum(net.loss, inputs, torch.ones(4), net, 1)
        found.append(torch.autograd.grad(total, [*inputs, net.used.weight]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
