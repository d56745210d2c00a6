"""InstanceNorm, an optional shortcut and LeakyReLU as one operation that keeps one map instead of two.

After the in-place activated batch norm of Rota Bulo, Porzi and Kontschieder (arXiv 1712.02616), here for instances and with a
shortcut. LeakyReLU can be undone and so can an affine norm, so backward needs the activated output alone, which the next convolution
keeps anyway: the convolution's own output is overwritten. Nothing is computed twice but a few products.

Departures: nothing of the function is changed to make it invertible. Where a weight of the norm is near zero against its bias, undoing
it would lose digits; then, as in low precision, while compiling and on other devices, the plain operations run (:func:`can_undo`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

SLOPE = 0.01
"""LeakyReLU's slope below zero."""

CHUNK_BYTES = 4 << 20
"""About the size of the pieces that all passes are made over before the next piece, so that they stay in the cache."""

SMALLEST = 0.01
"""Least weight of the norm, as a multiple of one plus its bias, that is undone: float32 then keeps about five digits."""


def norm_act(x: Tensor, norm: nn.InstanceNorm3d, slope: float = SLOPE, shortcut: Tensor | None = None) -> Tensor:
    """LeakyReLU(norm(x) + shortcut); x is lost and must be the fresh output of a convolution.

    A map of a single voxel has no spread to divide by and is only scaled and shifted.

    Args:
        x: (B, C, x, y, z); its memory may be taken for the result.
        norm: with weight and bias.
        slope: below zero; 1 is no activation.
        shortcut: as x, or None.

    Returns:
        (B, C, x, y, z).
    """
    if can_undo(x, norm) and (shortcut is None or (shortcut.dtype == x.dtype and shortcut.is_contiguous())):
        return _NormAct.apply(x, norm.weight, norm.bias, shortcut, norm.eps, slope)  # type: ignore[return-value]
    if x[0, 0].numel() > 1:
        x = norm(x)
    else:
        x = x * norm.weight.view(1, -1, 1, 1, 1) + norm.bias.view(1, -1, 1, 1, 1)
    if shortcut is not None:
        x = x + shortcut
    return x if slope == 1 else functional.leaky_relu_(x, slope)


def can_undo(x: Tensor, norm: nn.InstanceNorm3d) -> bool:
    """Whether the result alone is enough for backward here: full precision on a CPU, and no weight of the norm near zero."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
        return False
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.dtype != norm.weight.dtype:
        return False
    if x[0, 0].numel() < 2 or not x.is_contiguous() or (x.requires_grad and x.is_leaf):
        return False
    with torch.no_grad():
        return bool((norm.weight.abs() > SMALLEST * (1 + norm.bias.abs())).all())


def _chunks(rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices of the maps, a map a channel and sample: enough of them for every thread, and few enough for the cache."""
    step = max(torch.get_num_threads(), CHUNK_BYTES // row_bytes, 1)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


class _NormAct(torch.autograd.Function):
    """Forward overwrites x; backward undoes its own output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, slope: float) -> Tensor:
        batch, channels = x.shape[:2]
        flat = x.view(batch * channels, -1)
        added = None if shortcut is None else shortcut.view_as(flat)
        scale, shift = weight.detach().repeat(batch), bias.detach().repeat(batch)
        spread = torch.empty_like(scale)
        for part in _chunks(len(flat), flat.shape[1] * flat.element_size()):
            piece = flat[part]
            normed, _, rstd = torch.native_batch_norm(piece[None], scale[part], shift[part], None, None, True, 0.0, eps)
            spread[part] = rstd
            if added is not None:
                normed += added[part]
            if slope != 1:
                torch.ops.aten.leaky_relu.out(normed[0], slope, out=piece)
            else:
                piece.copy_(normed[0])
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, weight, bias, spread, shortcut)
        ctx.slope, ctx.eps = slope, eps
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, spread, shortcut = ctx.saved_tensors
        batch, channels = y.shape[:2]
        flat, gflat = y.view(batch * channels, -1), grad.contiguous().view(batch * channels, -1)
        added = None if shortcut is None else shortcut.view_as(flat)
        keep = added is not None and ctx.needs_input_grad[3]
        out = torch.empty_like(flat)
        passed = torch.empty_like(flat) if keep and ctx.slope != 1 else None
        # undone, the maps have the norm's bias for a mean and its weight for a spread
        shift, undo = bias.repeat(batch), (1 / weight).repeat(batch)
        scale = weight.repeat(batch) ** 2 * spread
        dweight, dbias = torch.empty_like(spread), torch.empty_like(spread)
        for part in _chunks(len(flat), flat.shape[1] * flat.element_size()):
            z, g = flat[part], gflat[part]
            if ctx.slope != 1:
                g = torch.ops.aten.leaky_relu_backward(g, z, ctx.slope, True)
                if passed is not None:
                    passed[part] = g
                z = functional.leaky_relu(z, 1 / ctx.slope)
            if added is not None:
                z = z - added[part]
            here, dweight[part], dbias[part] = torch.ops.aten.native_batch_norm_backward(
                g[None], z[None], scale[part], None, None, shift[part], undo[part], True, ctx.eps, [True, True, True]
            )  # fmt: skip
            out[part] = here[0]
        dshortcut = (gflat if passed is None else passed).view_as(y) if keep else None
        shape = (batch, channels)
        return out.view_as(y), dweight.view(shape).sum(0), dbias.view(shape).sum(0), dshortcut, None, None
