"""InstanceNorm, an optional shortcut and LeakyReLU on a CPU: one operation over channels-last maps that keeps one map instead of two.

After the in-place activated batch norm of Rota Bulo, Porzi and Kontschieder (arXiv 1712.02616), here for instances and with a
shortcut. LeakyReLU can be undone and so can an affine norm, so backward needs the activated output alone, which the next convolution
keeps anyway: the convolution's own output is overwritten. Means and spreads of pieces are joined as by Chan, Golub and LeVeque
(COMPSTAT 1982).

Departures: nothing of the function is changed to make it invertible. Where a weight of the norm is near zero against its bias, undoing
it would lose digits, and so would bfloat16; then the norm's input is kept, as torch's own operations keep it.

In bfloat16 torch's own kernels do the norm, a sample at a time, and backward keeps its input and its result.

Channels-last because oneDNN's convolutions are up to twice as fast there (``benchmarks/README.md``), while torch's own InstanceNorm
makes such maps contiguous first. Maps are gone over in pieces that stay in the cache. Sums are float32 within a piece and float64 over
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

PIECE_BYTES = 4 << 20
"""About the size of the pieces."""

WIDTH = 128
"""Numbers in a row of a map of few channels, at least where its voxels can be divided so."""

SMALLEST = 0.01
"""Least weight of the norm, as a multiple of one plus its bias, that is undone: float32 then keeps about five digits."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""What maps may be in."""

LAST = torch.channels_last_3d

leaky_relu_backward = torch.ops.aten.leaky_relu_backward


def norm_act(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, slope: float) -> Tensor:
    """LeakyReLU(norm(x) + shortcut); where that can be undone, or no gradient is wanted, x is overwritten.

    Args:
        x: (B, C, x, y, z), channels-last, of one of :data:`DTYPES`, more than a voxel a map.
        weight, bias: (C,) float32, or float64 as x.
        shortcut: as x, or None.
        eps: added to the variance.
        slope: below zero; 1 is no activation.

    Returns:
        As x.
    """
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, shortcut))
    over = not (x.requires_grad and x.is_leaf) and (not learns or can_undo(x, weight, bias))
    way = _NormAct if x.dtype == weight.dtype else _LowNormAct
    return way.apply(x, weight, bias, shortcut, eps, slope, over)  # type: ignore[return-value]


def can_undo(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether backward could do with the result alone: in full precision, where no weight of the norm is near zero."""
    with torch.no_grad():
        return x.dtype != torch.bfloat16 and bool((weight.abs() > SMALLEST * (1 + bias.abs())).all())


class _Plan(NamedTuple):
    """How the memory of channels-last maps is gone over: as rows of several voxels, since sums and products of few channels are slow."""

    batch: int
    channels: int
    side: int
    """Voxels in a row."""
    rows: int

    @classmethod
    def of(cls, x: Tensor) -> _Plan:
        """That of a map (B, C, x, y, z)."""
        voxels = math.prod(x.shape[2:])
        side = math.gcd(voxels, max(1, WIDTH // x.shape[1]))
        return cls(x.shape[0], x.shape[1], side, voxels // side)

    @property
    def voxels(self) -> int:
        """Of a map."""
        return self.rows * self.side

    def flat(self, x: Tensor) -> Tensor:
        """(B, rows, side x C), the map's memory as it lies."""
        return x.permute(0, 2, 3, 4, 1).view(self.batch, self.rows, self.side * self.channels)

    def wide(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(b, 1, C) once for every voxel of a row: (b, 1, side x C)."""
        return values.to(dtype).repeat(1, 1, self.side)

    def groups(self, itemsize: int) -> Iterator[tuple[slice, list[slice]]]:
        """Samples that are gone over together, and the ranges of their rows: several small maps at once, or a large one in pieces."""
        row = self.side * self.channels * itemsize
        together = max(1, PIECE_BYTES // (self.rows * row))
        step = self.rows if together > 1 else max(1, PIECE_BYTES // row)
        ranges = [slice(first, min(first + step, self.rows)) for first in range(0, self.rows, step)]
        for first in range(0, self.batch, together):
            yield slice(first, min(first + together, self.batch)), ranges

    def sum(self, piece: Tensor) -> Tensor:
        """(b, 1, C) float64, over the voxels of a piece (b, r, side x C)."""
        return self.columns(piece).double().view(len(piece), self.side, self.channels).sum(1, keepdim=True)

    def columns(self, piece: Tensor) -> Tensor:
        """(b, 1, side x C), over the rows of a piece; as a product, which is the quickest sum there is."""
        return torch.bmm(piece.new_ones(()).expand(len(piece), 1, piece.shape[1]), piece)


class _NormAct(torch.autograd.Function):
    """Forward overwrites x and backward undoes its own output (``over``), or x is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, slope: float, over: bool
    ) -> Tensor:
        plan = _Plan.of(x)
        y = x if over else torch.empty_like(x)
        flat, out, added = plan.flat(x), plan.flat(y), None if shortcut is None else plan.flat(shortcut)
        mean, spread = x.new_empty((2, plan.batch, 1, plan.channels), dtype=torch.float64)
        for some, ranges in plan.groups(x.element_size()):
            moments = []
            for part in ranges:
                piece, n = flat[some, part], part.stop - part.start
                here = plan.columns(piece) / n
                away = piece - here
                here, square = (t.double().view(len(piece), plan.side, -1) for t in (here, plan.columns(away.mul_(away))))
                moments.append((n, here, square))
            mean[some] = sum(n * here for n, here, _ in moments).sum(1, keepdim=True) / plan.voxels
            about = sum(square + n * (here - mean[some]) ** 2 for n, here, square in moments).sum(1, keepdim=True)
            spread[some] = (about / plan.voxels + eps).rsqrt()
            scale = spread[some] * weight
            shift, scale = plan.wide(bias - mean[some] * scale, x.dtype), plan.wide(scale, x.dtype)
            for part in ranges:
                piece = torch.addcmul(shift, flat[some, part], scale, out=out[some, part])
                if added is not None:
                    piece += added[some, part]
                if slope != 1:
                    functional.leaky_relu_(piece, slope)
        if over:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y if over else x, weight, bias, mean, spread, shortcut)
        ctx.slope, ctx.over = slope, over
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, bias, mean, spread, shortcut = ctx.saved_tensors
        plan, slope = _Plan.of(kept), ctx.slope
        grad = grad.contiguous(memory_format=LAST)
        dx = torch.empty_like(kept)
        passed = torch.empty_like(grad) if shortcut is not None and ctx.needs_input_grad[3] and slope != 1 else dx
        flat, gflat, added = plan.flat(kept), plan.flat(grad), None if shortcut is None else plan.flat(shortcut)
        out, below = plan.flat(dx), gflat if slope == 1 else plan.flat(passed)  # the gradient below the activation
        scale64 = spread * weight
        if ctx.over:  # undone, a map has the norm's bias for a mean and its weight for a spread
            centre, width = bias.double().expand_as(mean), weight.double().expand_as(mean)
        else:
            centre, width = mean, 1 / spread
            shift, scale = plan.wide(bias - mean * scale64, kept.dtype), plan.wide(scale64, kept.dtype)
        first, second = torch.zeros_like(mean), torch.zeros_like(mean)

        def through(some: slice, part: slice) -> None:
            """The gradient goes through the activation."""
            x = flat[some, part]
            if not ctx.over:
                x = torch.addcmul(shift[some], x, scale[some])
                if added is not None:
                    x += added[some, part]
            leaky_relu_backward.grad_input(gflat[some, part], x, slope, ctx.over, grad_input=below[some, part])

        def normed(some: slice, part: slice) -> Tensor:
            """What is normed, or what the norm made of it."""
            x = flat[some, part]
            if ctx.over and slope != 1:
                x = functional.leaky_relu(x, 1 / slope)
            return x - added[some, part] if ctx.over and added is not None else x

        for some, ranges in plan.groups(kept.element_size()):
            for part in ranges:
                if slope != 1:
                    through(some, part)
                g, x = below[some, part], normed(some, part)
                first[some] += plan.sum(g)
                second[some] += plan.sum(g * x)
            second[some] = (second[some] - centre[some] * first[some]) / width[some]
            if not ctx.needs_input_grad[0]:
                continue
            tilt = -scale64[some] * second[some] / plan.voxels / width[some]
            level = -scale64[some] * first[some] / plan.voxels - tilt * centre[some]
            tilt, level, by = (plan.wide(t, kept.dtype) for t in (tilt, level, scale64[some]))
            for part in ranges:
                g, x = below[some, part], normed(some, part)
                torch.addcmul(torch.addcmul(level, x, tilt), g, by, out=out[some, part])
        dweight, dbias = second.sum((0, 1)).to(weight), first.sum((0, 1)).to(bias)
        dshortcut = (grad if slope == 1 else passed) if shortcut is not None and ctx.needs_input_grad[3] else None
        return dx if ctx.needs_input_grad[0] else None, dweight, dbias, dshortcut, None, None, None


class _LowNormAct(torch.autograd.Function):
    """The same in bfloat16, with weight and bias in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, slope: float, over: bool
    ) -> Tensor:
        y = x if over else torch.empty_like(x)
        mean, spread = weight.new_empty((2, *x.shape[:2]))
        for n in range(len(x)):  # reads each value before it writes it, so the two may be one
            moments = (mean[n], spread[n])
            torch.native_batch_norm(x[n : n + 1], weight, bias, None, None, True, 0.0, eps, out=(y[n : n + 1], *moments))
        if shortcut is not None:
            y += shortcut
        if slope != 1:
            functional.leaky_relu_(y, slope)
        if over:
            ctx.mark_dirty(x)
        else:
            ctx.save_for_backward(x, y, weight, mean, spread)
        ctx.slope, ctx.eps = slope, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, spread = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        if ctx.slope != 1:
            grad = leaky_relu_backward(grad, y, ctx.slope, True)
        dx = torch.empty_like(x)
        dweight, dbias = torch.zeros(2, len(weight))
        for n in range(len(x)):
            dx[n : n + 1], *sums = torch.ops.aten.native_batch_norm_backward(
                grad[n : n + 1], x[n : n + 1], weight, None, None, mean[n], spread[n], True, ctx.eps, [True, True, True]
            )
            dweight += sums[0]
            dbias += sums[1]
        return dx, dweight, dbias, grad if ctx.needs_input_grad[3] else None, None, None, None
