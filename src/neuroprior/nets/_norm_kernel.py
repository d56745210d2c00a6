"""InstanceNorm, an optional shortcut and LeakyReLU on a GPU: Triton kernels that read and write each map as seldom as can be.

Ours, in Triton (Tillet, Kung and Cox, MAPL 2019); means and spreads of pieces are joined as by Chan, Golub and LeVeque (COMPSTAT 1982).
Torch's InstanceNorm makes channels-last maps contiguous first; these kernels take either layout and answer in the same.

A map of one channel and sample is cut into shares, a program each. Forward: moments of each share, joined, then applied. Backward: two
sums of each share, joined, then applied. Where one program can do a whole map, all is one launch. Sums are in float32 whatever the maps
are in. Kept for backward: the norm's input, its answer (which the next convolution keeps anyway), and a mean and a spread a map.

Nothing here is imported where there is no GPU; :mod:`._fused` decides. ``TRITON_INTERPRET=1`` runs the same code on a CPU, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 2048
"""Voxels times channels that a program holds at once."""

WIDEST = 64
"""Channels in a tile of a channels-last map, at most."""

PROGRAMS = 1024
"""About how many programs keep a GPU busy; large maps are cut until there are as many."""

ALONE = 4
"""Tiles that one program does by itself in one launch."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What maps may be in."""

LAST = torch.channels_last_3d

Plain = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, float], Tensor]
"""The same operation by torch's own means: x, weight, bias, shortcut, eps, slope."""


class Plan(NamedTuple):
    """How a map is cut."""

    batch: int
    channels: int
    voxels: int
    last: bool
    """Whether channels are innermost in memory."""
    rows: int
    """Voxels of a tile."""
    width: int
    """Channels of a tile, a power of two."""
    share: int
    """Voxels of a program, a multiple of ``rows``."""

    @property
    def shares(self) -> int:
        """Programs along the voxels."""
        return -(-self.voxels // self.share)

    @property
    def blocks(self) -> int:
        """Programs along the channels."""
        return -(-self.channels // self.width)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Programs of a pass over the maps."""
        return self.shares, self.blocks, self.batch


def plan(x: Tensor) -> Plan:
    """How (B, C, x, y, z) is cut; contiguous or channels-last."""
    batch, channels = x.shape[:2]
    voxels = x[0, 0].numel()
    last = not x.is_contiguous()
    width = min(WIDEST, triton.next_power_of_2(channels)) if last else 1
    rows = min(max(1, TILE // width), triton.next_power_of_2(voxels))
    tiles = -(-voxels // rows)
    each = tiles if tiles <= ALONE else max(1, tiles * batch * -(-channels // width) // PROGRAMS)
    return Plan(batch, channels, voxels, last, rows, width, each * rows)


@triton.jit
def _places(channels, voxels, first, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr):
    """Where a tile from voxel ``first`` on lies in memory, and what of it is within the map."""
    voxel = (first + tl.arange(0, rows)).to(tl.int64)[:, None]
    channel = (tl.program_id(1) * width + tl.arange(0, width)).to(tl.int64)[None, :]
    sample = tl.program_id(2).to(tl.int64) * channels * voxels
    place = sample + (voxel * channels + channel if last else channel * voxels + voxel)
    return place, (voxel < voxels) & (channel < channels)


@triton.jit
def _of_map(values, channels, width: tl.constexpr, shared: tl.constexpr):
    """(1, width) float32 of a table a channel (``shared``), or a sample and channel."""
    channel = tl.program_id(1) * width + tl.arange(0, width)
    place = channel if shared else tl.program_id(2) * channels + channel
    return tl.load(values + place, mask=channel < channels, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _note(values, found, channels, width: tl.constexpr):
    """Writes (1, width) into a table a sample and channel, at this program's share."""
    channel = tl.program_id(1) * width + tl.arange(0, width)
    place = (tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)) * channels + channel
    tl.store(values + place[None, :], found, mask=(channel < channels)[None, :])


@triton.jit
def _moments(x, channels, voxels, share, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr):
    """Mean and sum of squares about it of a program's share, (1, width) each."""
    start = tl.program_id(0) * share
    end = tl.minimum(start + share, voxels)
    mean = tl.zeros((1, width), tl.float32)
    square = tl.zeros((1, width), tl.float32)
    for first in range(start, end, rows):
        place, within = _places(channels, voxels, first, rows, width, last)
        value = tl.load(x + place, mask=within, other=0.0).to(tl.float32)
        seen = (first - start).to(tl.float32)
        here = tl.minimum(rows, voxels - first).to(tl.float32)
        middle = tl.sum(value, 0, keep_dims=True) / here
        away = tl.where(within, value - middle, 0.0)
        apart = middle - mean
        square += tl.sum(away * away, 0, keep_dims=True) + apart * apart * (seen * here / (seen + here))
        mean += apart * (here / (seen + here))
    return mean, square


@triton.jit
def _forward_moments(x, means, squares, channels, voxels, share, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr):
    mean, square = _moments(x, channels, voxels, share, rows, width, last)
    _note(means, mean, channels, width)
    _note(squares, square, channels, width)


@triton.jit
def _join_moments(means, squares, mean, spread, maps, voxels, share, shares, eps, width: tl.constexpr):
    """Moments of whole maps from those of their shares; ``width`` maps a program."""
    at = tl.program_id(0) * width + tl.arange(0, width)
    within = at < maps
    middle = tl.zeros((width,), tl.float32)
    square = tl.zeros((width,), tl.float32)
    for number in range(shares):
        seen = (number * share).to(tl.float32)
        here = tl.minimum(share, voxels - number * share).to(tl.float32)
        apart = tl.load(means + number * maps + at, mask=within, other=0.0) - middle
        square += tl.load(squares + number * maps + at, mask=within, other=0.0) + apart * apart * (seen * here / (seen + here))
        middle += apart * (here / (seen + here))
    tl.store(mean + at, middle, mask=within)
    tl.store(spread + at, 1 / tl.sqrt(square / voxels + eps), mask=within)


@triton.jit
def _apply(
    x, y, shortcut, mean, spread, weight, bias, channels, voxels, share, slope,
    added: tl.constexpr, active: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    scale = _of_map(weight, channels, width, True) * spread
    shift = _of_map(bias, channels, width, True)
    start = tl.program_id(0) * share
    for first in range(start, tl.minimum(start + share, voxels), rows):
        place, within = _places(channels, voxels, first, rows, width, last)
        value = (tl.load(x + place, mask=within, other=0.0).to(tl.float32) - mean) * scale + shift
        if added:
            value += tl.load(shortcut + place, mask=within, other=0.0).to(tl.float32)
        if active:
            value = tl.where(value > 0, value, value * slope)
        tl.store(y + place, value.to(y.dtype.element_ty), mask=within)


@triton.jit
def _forward_apply(
    x, y, shortcut, mean, spread, weight, bias, channels, voxels, share, slope,
    added: tl.constexpr, active: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    _apply(
        x, y, shortcut, _of_map(mean, channels, width, False), _of_map(spread, channels, width, False), weight, bias,
        channels, voxels, share, slope, added, active, rows, width, last,
    )  # fmt: skip


@triton.jit
def _forward_whole(
    x, y, shortcut, mean, spread, weight, bias, channels, voxels, share, slope, eps,
    added: tl.constexpr, active: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    middle, square = _moments(x, channels, voxels, share, rows, width, last)
    inverse = 1 / tl.sqrt(square / voxels + eps)
    _note(mean, middle, channels, width)
    _note(spread, inverse, channels, width)
    _apply(
        x, y, shortcut, middle, inverse, weight, bias, channels, voxels, share, slope, added, active, rows, width, last
    )  # fmt: skip


@triton.jit
def _slopes(grad, y, place, within, slope, active: tl.constexpr):
    """The gradient before the activation, in a tile."""
    value = tl.load(grad + place, mask=within, other=0.0).to(tl.float32)
    if active:
        answer = tl.load(y + place, mask=within, other=0.0).to(tl.float32)
        value = tl.where(answer > 0, value, value * slope)
    return value


@triton.jit
def _sums(
    grad, x, y, mean, spread, channels, voxels, share, slope,
    active: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient and of its product with the normed map, of a program's share."""
    start = tl.program_id(0) * share
    plain = tl.zeros((1, width), tl.float32)
    product = tl.zeros((1, width), tl.float32)
    for first in range(start, tl.minimum(start + share, voxels), rows):
        place, within = _places(channels, voxels, first, rows, width, last)
        value = _slopes(grad, y, place, within, slope, active)
        normed = (tl.load(x + place, mask=within, other=0.0).to(tl.float32) - mean) * spread
        plain += tl.sum(value, 0, keep_dims=True)
        product += tl.sum(value * normed, 0, keep_dims=True)
    return plain, product


@triton.jit
def _backward_sums(
    grad, x, y, mean, spread, plains, products, channels, voxels, share, slope,
    active: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    middle, inverse = _of_map(mean, channels, width, False), _of_map(spread, channels, width, False)
    plain, product = _sums(grad, x, y, middle, inverse, channels, voxels, share, slope, active, rows, width, last)
    _note(plains, plain, channels, width)
    _note(products, product, channels, width)


@triton.jit
def _join_sums(plains, products, plain, product, maps, shares, width: tl.constexpr):
    """Sums of whole maps from those of their shares."""
    at = tl.program_id(0) * width + tl.arange(0, width)
    within = at < maps
    a = tl.zeros((width,), tl.float32)
    b = tl.zeros((width,), tl.float32)
    for number in range(shares):
        a += tl.load(plains + number * maps + at, mask=within, other=0.0)
        b += tl.load(products + number * maps + at, mask=within, other=0.0)
    tl.store(plain + at, a, mask=within)
    tl.store(product + at, b, mask=within)


@triton.jit
def _spread_back(
    grad, x, y, dx, dshortcut, mean, spread, plain, product, weight, channels, voxels, share, slope,
    passed: tl.constexpr, active: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    scale = _of_map(weight, channels, width, True) * spread
    plain = plain / voxels
    product = product / voxels
    start = tl.program_id(0) * share
    for first in range(start, tl.minimum(start + share, voxels), rows):
        place, within = _places(channels, voxels, first, rows, width, last)
        value = _slopes(grad, y, place, within, slope, active)
        if passed:
            tl.store(dshortcut + place, value.to(dshortcut.dtype.element_ty), mask=within)
        normed = (tl.load(x + place, mask=within, other=0.0).to(tl.float32) - mean) * spread
        tl.store(dx + place, (scale * (value - plain - normed * product)).to(dx.dtype.element_ty), mask=within)


@triton.jit
def _backward_apply(
    grad, x, y, dx, dshortcut, mean, spread, plain, product, weight, channels, voxels, share, slope,
    passed: tl.constexpr, active: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    _spread_back(
        grad, x, y, dx, dshortcut, _of_map(mean, channels, width, False), _of_map(spread, channels, width, False),
        _of_map(plain, channels, width, False), _of_map(product, channels, width, False), weight, channels, voxels, share, slope,
        passed, active, rows, width, last,
    )  # fmt: skip


@triton.jit
def _backward_whole(
    grad, x, y, dx, dshortcut, mean, spread, plain, product, weight, channels, voxels, share, slope,
    passed: tl.constexpr, active: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, last: tl.constexpr,
):  # fmt: skip
    middle, inverse = _of_map(mean, channels, width, False), _of_map(spread, channels, width, False)
    a, b = _sums(grad, x, y, middle, inverse, channels, voxels, share, slope, active, rows, width, last)
    _note(plain, a, channels, width)
    _note(product, b, channels, width)
    _spread_back(
        grad, x, y, dx, dshortcut, middle, inverse, a, b, weight, channels, voxels, share, slope, passed, active, rows, width, last
    )  # fmt: skip


class NormAct(torch.autograd.Function):
    """LeakyReLU(InstanceNorm(x) + shortcut); see :func:`norm_act`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, slope: float,
        instead: Callable[[Exception], Plain] | None,
    ) -> Tensor:  # fmt: skip
        cut = plan(x)
        y = torch.empty_like(x)
        mean, spread = torch.empty((2, cut.batch * cut.channels), dtype=torch.float32, device=x.device)
        sizes = cut.channels, cut.voxels, cut.share
        tile = {"rows": cut.rows, "width": cut.width, "last": cut.last}
        how = {"added": shortcut is not None, "active": slope != 1, **tile}
        maps = x, y, x if shortcut is None else shortcut, mean, spread, weight, bias
        if cut.shares == 1:
            _forward_whole[cut.grid](*maps, *sizes, slope, eps, **how)
        else:
            means, squares = torch.empty((2, cut.shares, len(mean)), dtype=torch.float32, device=x.device)
            _forward_moments[cut.grid](x, means, squares, *sizes, **tile)
            _join_moments[(-(-len(mean) // 64),)](
                means, squares, mean, spread, len(mean), cut.voxels, cut.share, cut.shares, eps, width=64
            )  # fmt: skip
            _forward_apply[cut.grid](*maps, *sizes, slope, **how)
        ctx.save_for_backward(x, weight, mean, spread, *([y] if slope != 1 else []))
        ctx.eps, ctx.slope, ctx.added, ctx.instead = eps, slope, shortcut is not None, instead
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        try:
            return NormAct.by_kernels(ctx, grad)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # (a compiler's or a driver's: the run goes on by torch's own operations)
            if ctx.instead is None:
                raise
            plain = ctx.instead(error)
        x, weight, _, _, *answer = ctx.saved_tensors
        if (
            answer
        ):  # before the activation; the shortcut then has the same gradient, and the norm's own does not depend on its bias
            grad = torch.where(answer[0] > 0, grad, grad * ctx.slope)
        tensors = [t.detach().requires_grad_() for t in (x, weight, torch.zeros_like(weight))]
        with torch.enable_grad():
            y = plain(tensors[0].clone(), tensors[1], tensors[2], None, ctx.eps, 1.0)
        return *torch.autograd.grad(y, tensors, grad.to(y.dtype)), grad if ctx.added else None, None, None, None

    @staticmethod
    def by_kernels(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of all arguments of ``forward``."""
        x, weight, mean, spread, *answer = ctx.saved_tensors
        cut = plan(x)
        grad = grad.to(x.dtype).contiguous(memory_format=LAST if cut.last else torch.contiguous_format)
        active = bool(answer)
        passed = ctx.added and ctx.needs_input_grad[3] and active
        dx = torch.empty_like(x)
        dshortcut = torch.empty_like(x) if passed else None
        plain, product = torch.empty((2, cut.batch * cut.channels), dtype=torch.float32, device=x.device)
        sizes = cut.channels, cut.voxels, cut.share
        tile = {"active": active, "rows": cut.rows, "width": cut.width, "last": cut.last}
        y = answer[0] if answer else x
        maps = grad, x, y, dx, dx if dshortcut is None else dshortcut, mean, spread, plain, product, weight
        if cut.shares == 1:
            _backward_whole[cut.grid](*maps, *sizes, ctx.slope, passed=passed, **tile)
        else:
            plains, products = torch.empty((2, cut.shares, len(plain)), dtype=torch.float32, device=x.device)
            _backward_sums[cut.grid](grad, x, y, mean, spread, plains, products, *sizes, ctx.slope, **tile)
            _join_sums[(-(-len(plain) // 64),)](plains, products, plain, product, len(plain), cut.shares, width=64)
            _backward_apply[cut.grid](*maps, *sizes, ctx.slope, passed=passed, **tile)
        shape = cut.batch, cut.channels
        dweight, dbias = (total.view(shape).sum(0).to(weight.dtype) for total in (product, plain))
        if ctx.added and ctx.needs_input_grad[3] and not active:
            dshortcut = grad
        return dx, dweight, dbias, dshortcut, None, None, None


def norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, slope: float,
    instead: Callable[[Exception], Plain] | None = None,
) -> Tensor:  # fmt: skip
    """LeakyReLU(InstanceNorm(x) + shortcut).

    Args:
        x: (B, C, x, y, z) of :data:`DTYPES`, at least two voxels, contiguous or channels-last.
        weight, bias: (C,), float32 or as ``x``.
        shortcut: as x, in any layout and of its dtype, or None.
        eps: added to the variance.
        slope: below zero, at least 0; 1 is no activation.
        instead: told of what the kernels raise in backward, answers with what is to be used instead; None lets them raise.

    Returns:
        (B, C, x, y, z) in the layout and dtype of ``x``.
    """
    if shortcut is not None:
        shortcut = shortcut.to(x.dtype).contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else LAST)
    return NormAct.apply(x, weight, bias, shortcut, eps, slope, instead)  # type: ignore[return-value]
