"""Gradients of convolutions' weights, kept as the two maps that they are made of, where these are smaller.

The weights of a deep level have a million numbers, the maps that meet there a thousand. Their gradient is the correlation of what came
in with the gradient of what went out, so it can be computed when the optimiser gets to it, one layer at a time, instead of being held
for all layers until backward is over. A norm of the whole gradient needs each of them, or what stands for it, once more.

The same is done for linear layers in ghost clipping (Goodfellow, arXiv 1510.01799; Li et al., arXiv 2110.05679), there to know norms a
sample. Not used with DDP, which sends gradients as backward makes them, nor in bfloat16 or while compiling.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLER = 2
"""How many times smaller than the gradient the two maps have to be."""

FEW = 128
"""Voxels up to which the norm is found without the gradient: then it is quicker."""

_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar("factors", default=True)


@contextlib.contextmanager
def plain_gradients() -> Iterator[None]:
    """Within, convolutions give gradients as autograd does: for code that asks for them by ``torch.autograd.grad``, forward and backward,
    in which maps may be computed again."""
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)


class Factors:
    """What the gradient of one layer's weights is made of, in the order in which backward came by.

    Args:
        weight: the layer's.
        stride, padding: the layer's.
    """

    def __init__(self, weight: nn.Parameter, stride: Sequence[int], padding: Sequence[int]) -> None:
        self.weight, self.stride, self.padding = weight, list(stride), list(padding)
        self._parts: list[tuple[Tensor, Tensor, int]] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Factors:
        """Those of a copied layer begin empty."""
        return Factors(copy.deepcopy(self.weight, memo), self.stride, self.padding)

    def smaller(self, x: Tensor) -> bool:
        """Whether the maps rather than the gradient of the weights that meet ``x`` (B, C, x, y, z) are to be kept."""
        outputs, _, *kernel = self.weight.shape
        y = x.numel() // x.shape[1] * outputs // math.prod(self.stride)
        return (
            _wanted.get()
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.requires_grad
            and SMALLER * (x.numel() + y) <= outputs * x.shape[1] * math.prod(kernel)
            and not torch.is_autocast_enabled(x.device.type)
        )

    def add(self, x: Tensor, grad: Tensor, first: int) -> None:
        """Note what came in (B, C, x, y, z), with the gradient of what went out (B, out, x', y', z'), for input channels from ``first`` on."""
        self._parts.append((x, grad, first))

    def clear(self) -> None:
        """Let all of it go."""
        self._parts.clear()

    def norm(self) -> Tensor:
        """The norm of :meth:`gradient`, a scalar.

        Of few voxels it is found without it: a sum of products has the norm of how alike what came in is from voxel to voxel, times how
        alike what went out is.
        """
        voxels = sum(grad.numel() // grad.shape[1] for _, grad, _ in self._parts)
        if self.weight.grad is not None or voxels > FEW:
            return torch.linalg.vector_norm(self.gradient())
        squares = []
        for first in {first for _, _, first in self._parts}:
            own = [(x, grad) for x, grad, at in self._parts if at == first]
            came = torch.cat([self._seen(x) for x, _ in own])
            went = torch.cat([_columns(grad) for _, grad in own])
            squares.append(((came @ came.T) * (went @ went.T)).sum())
        return torch.stack(squares).sum().clamp(min=0).sqrt()

    def _seen(self, x: Tensor) -> Tensor:
        """(voxels that go out, numbers that each is made of)."""
        (a, b, c), kernel = self.padding, self.weight.shape[2:]
        padded = nn.functional.pad(x, (c, c, b, b, a, a))
        for axis in range(3):
            padded = padded.unfold(2 + axis, kernel[axis], self.stride[axis])
        return padded.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3)

    def gradient(self) -> Tensor:
        """The gradient of the weights, what autograd has collected beside it included; as the weights."""
        total = None if self.weight.grad is None else self.weight.grad.clone()
        for x, grad, first in self._parts:
            part = self.weight[:, first : first + x.shape[1]]
            found = _backward(grad, x, part.detach(), None, self.stride, self.padding, (False, True, False))[1]
            if part.shape == self.weight.shape:
                total = found if total is None else total.add_(found)
            else:
                total = torch.zeros_like(self.weight) if total is None else total
                total[:, first : first + x.shape[1]] += found
        assert total is not None
        return total


def convolve(x: Tensor, bias: Tensor | None, factors: Factors, first: int) -> Tensor:
    """(B, C, x, y, z) -> (B, out, x', y', z') by the layer's input channels from ``first`` on, whose weights' gradient goes to ``factors``."""
    return _Convolved.apply(x, bias, factors, first)  # type: ignore[return-value]


def _columns(x: Tensor) -> Tensor:
    """(voxels, channels)."""
    return x.movedim(1, -1).flatten(0, -2)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: list[int] | None, stride: list[int], padding: list[int], wanted: tuple[bool, ...]) -> Any:  # fmt: skip
    return torch.ops.aten.convolution_backward(
        grad, x, weight, bias, stride, padding, [1, 1, 1], False, [0, 0, 0], 1, list(wanted)
    )


class _Convolved(torch.autograd.Function):
    """A convolution whose backward notes what the weights' gradient is made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, factors: Factors, first: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.first, ctx.biased = factors, first, bias is not None
        weight = factors.weight.detach()[:, first : first + x.shape[1]]
        return nn.functional.conv3d(x, weight, bias, factors.stride, factors.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        factors: Factors = ctx.factors
        weight = factors.weight.detach()[:, ctx.first : ctx.first + x.shape[1]]
        wanted = ctx.needs_input_grad[0], False, ctx.biased and ctx.needs_input_grad[1]
        dx, _, dbias = _backward(grad, x, weight, [weight.shape[0]], factors.stride, factors.padding, wanted)
        factors.add(x.detach(), grad, ctx.first)
        return dx, dbias if wanted[2] else None, None, None
