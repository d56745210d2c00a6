"""A sum of losses whose graphs are used up one after the other, so that only one of them is ever held.

Four reconstructions of a pair are four graphs over the same small code. Held together they are most of a step's memory. Here each is
computed and differentiated before the next one begins; what stays is the sum's gradient to the code and to the weights, which backward
scales and hands on. The loss is an ordinary tensor: clipping, accumulation, DDP and mixed precision see nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..nets._factors import plain_gradients

PIECE_VOXELS = {"cpu": 64**3, "cuda": 32 * 64**3}
"""Voxels that are worked on together, by device: on a CPU one box of the usual size is enough work; a GPU wants more at a time."""


def pieces(rows: int, voxels: int, device: torch.device) -> list[slice]:
    """Slices of ``rows`` boxes of ``voxels`` each that are worked on together; one slice of all while compiling."""
    most = rows if torch.compiler.is_compiling() else PIECE_VOXELS.get(device.type, rows * voxels) // voxels
    step = max(1, most)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def weighted_sum(
    loss_of: Callable[[slice, Sequence[Tensor]], Tensor], inputs: Sequence[Tensor], weight: Tensor, net: nn.Module, voxels: int
) -> tuple[Tensor, Tensor]:
    """``sum(weight * losses)`` over the rows of some inputs.

    Args:
        loss_of: takes a slice of rows and these rows of all inputs, gives a loss for each; a function of the inputs and of the
            parameters of ``net``, to nothing else do gradients flow.
        inputs: tensors of N rows.
        weight: (N,) without a gradient.
        net: whose parameters take part.
        voxels: of one row's output, which says how many rows are a piece.

    Returns:
        The sum, a scalar with gradients, and the N losses without.
    """
    parts = pieces(len(weight), voxels, weight.device)
    if len(parts) == 1 or not torch.is_grad_enabled():
        losses = torch.cat([loss_of(piece, [x[piece] for x in inputs]) for piece in parts])
        return (losses * weight).sum(), losses.detach()
    leaves = [x for x in inputs if x.requires_grad]
    parameters = [p for p in net.parameters() if p.requires_grad]
    found: list[list[Tensor]] = [[] for _ in leaves]
    total: list[Tensor | None] = [None] * len(parameters)
    losses = []
    for piece in parts:
        given = [x.detach()[piece].requires_grad_(x.requires_grad) for x in inputs]
        own = [x for x in given if x.requires_grad]
        with plain_gradients():
            loss = loss_of(piece, given)
            losses.append(loss.detach())
            with torch.autocast(weight.device.type, enabled=False):
                gradients = torch.autograd.grad((loss * weight[piece]).sum(), [*own, *parameters], allow_unused=True)
        del loss
        for collected, x, gradient in zip(found, own, gradients, strict=False):
            collected.append(torch.zeros_like(x) if gradient is None else gradient)
        for k, gradient in enumerate(gradients[len(own) :]):
            if gradient is not None:
                total[k] = gradient if total[k] is None else total[k].add_(gradient)  # type: ignore[union-attr]
        del gradients
    every = torch.cat(losses)
    learned = [(p, g) for p, g in zip(parameters, total, strict=True) if g is not None]
    value = (every * weight).sum()
    gradients = [torch.cat(rows) for rows in found] + [g for _, g in learned]
    return _Attached.apply(value, len(gradients), *gradients, *leaves, *(p for p, _ in learned)), every  # type: ignore[return-value]


class _Attached(torch.autograd.Function):
    """A value with gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:count])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return None, None, *(None for _ in gradients), *(g * grad.to(g.dtype) for g in gradients)
