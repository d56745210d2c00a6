"""3x3x3 convolutions on a CPU with a quarter of the multiplications: products of small matrices where the definition has 27 of each.

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308): F(4 x 4, 3 x 3), sixteen answers from 36
products where the definition has 144, with their transform matrices (points 0, 1, -1, 2, -2 and infinity). Gradients are taken of the
transformed maps and weights too, so that they cost as little.

Departures: transforms are taken along x and y alone; along z the three taps are three products of matrices, shifted by a row. Four planes
of the answer are made at a time, so that what is in between stays in the cache, and nearly all of it is matrix products, for which torch
has fast code on every CPU. Answers and gradients differ from torch's own by rounding, about 1e-5 of the largest value. Figures in
``benchmarks/README.md``.

Within, a plane (y, z, C) is cut into ``cells`` of four rows along y. Six overlapping rows of a cell are transformed together, and lie in
memory as (6, cells, z + 2, C) with a zero before and after each row, which is also what the shifts along z run into.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

OUT, IN, TAPS = 4, 6, 3
"""Answers along an axis that are made at a time, what they are made of, and taps of a kernel."""

BETWEEN, BETWEEN_TRAINING = 1 << 22, 1 << 20
"""Numbers of the products at a time, at most: 16 MiB of the map's, and as much of the answer's. With gradients less: there is more of it,
and what lies between the maps that are kept stays in the heap."""

SMALLEST = 1 << 10
"""Products of input and output channels, at least: with fewer, the transforms cost more than they spare."""

FEWEST = 1 << 12
"""Voxels of a map, at least: with fewer, little is gained, and transforming most of a net's weights would cost it."""

# The matrices B^T, G and A^T of the paper: (product, row of the map), (product, row of the kernel), (row of the answer, product).
_MAP = torch.tensor(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL = torch.tensor([[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_ANSWER = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])

_KERNELS = torch.kron(_KERNEL, _KERNEL)
"""(product, tap along x and y)."""

_WITH_BIAS = IN + 1
"""The product that a bias is added to: that of point 1 along both axes, which all answers have once."""


def applies(x: Tensor, layer: nn.Conv3d) -> bool:
    """Whether ``layer`` is to be taken of ``x`` so: channels-last on a CPU, in float32, and where it is the quicker way."""
    return (
        x.dtype == torch.float32
        and layer.kernel_size == (TAPS, TAPS, TAPS)
        and layer.stride == (1, 1, 1)
        and layer.padding == (1, 1, 1)
        and layer.dilation == (1, 1, 1)
        and x.shape[1] * layer.out_channels >= SMALLEST
        and x.shape[2] % OUT == 0
        and x.shape[3] % OUT == 0
        and x[0, 0].numel() >= FEWEST
        and not torch.is_autocast_enabled("cpu")
    )


def convolve(x: Tensor, layer: nn.Conv3d, weight: Tensor, skip: Tensor | None) -> Tensor:
    """What ``layer`` makes of ``x`` and ``skip`` joined.

    Args:
        x: (B, C, x, y, z) float32, channels-last, x and y multiples of four.
        layer: see :func:`applies`.
        weight: the layer's.
        skip: (B, the layer's channels - C, x, y, z), channels-last, or None: what the layer has more than C is left out then.

    Returns:
        (B, out, x, y, z) float32, channels-last.
    """
    maps = [x] if skip is None else [x, skip]
    weight = weight[:, : sum(part.shape[1] for part in maps)]
    if torch.is_grad_enabled():
        return _Convolution.apply(weight, layer.bias, *maps)
    return _convolved(maps, weight, layer.bias, BETWEEN)


def _transformed(weight: Tensor) -> Tensor:
    """The kernels (36, 3, in, out) that stand for those of a convolution (out, in, 3, 3, 3)."""
    out, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 4, 1, 0).reshape(TAPS * TAPS, -1)
    return (_KERNELS @ taps).view(IN * IN, TAPS, channels, out)


def _kernels_for(maps: list[Tensor], weight: Tensor) -> list[Tensor]:
    """The transformed kernels for each of ``maps`` (B, C, x, y, z), whose channels come one after the other in ``weight`` (out, in, 3, 3, 3)."""
    return [_transformed(part) for part in weight.split([part.shape[1] for part in maps], 1)]


def _convolved(maps: list[Tensor], weight: Tensor, bias: Tensor | None, between: int) -> Tensor:
    """(B, out, x, y, z): the convolution of ``maps``, each (B, C, x, y, z), whose channels come one after the other in ``weight``."""
    b, _, x, y, z = maps[0].shape
    out, kernels = weight.shape[0], _kernels_for(maps, weight)
    answer = torch.empty(b, out, x, y, z, memory_format=torch.channels_last_3d)
    cells = _cells(between, *maps, answer)
    sources, answers = [_Source(part, cells) for part in maps], _Answers(answer, cells)
    for n, cell in itertools.product(range(b), range(0, y // OUT, cells)):
        for tile in range(x // OUT):
            for number, (source, kernel) in enumerate(zip(sources, kernels, strict=True)):
                seen = source.read(n, cell, tile)
                for tap in range(TAPS):
                    rows = seen[:, tap : tap + answers.products.shape[1]]
                    torch.baddbmm(answers.products, rows, kernel[:, tap], beta=int(number + tap > 0), out=answers.products)
            if bias is not None:
                answers.products[_WITH_BIAS] += bias
            answers.write(n, cell, tile)
    return answer


class _Convolution(torch.autograd.Function):
    """The convolution with its gradients; transformed maps and weights are made again for these rather than kept."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, *maps: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See :func:`convolve`."""
        ctx.save_for_backward(weight, *maps)
        return _convolved(list(maps), weight, bias, BETWEEN_TRAINING)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of the weights (out, in, 3, 3, 3), the bias (out,) and each map, channels-last, as far as they are wanted."""
        weight, *maps = ctx.saved_tensors
        for_weight, for_bias, *for_maps = ctx.needs_input_grad
        b, out, x, y = grad.shape[:4]
        cells = _cells(BETWEEN_TRAINING, *maps, grad)
        grads = _Gradients(grad, cells)
        sources = [_Source(part, cells) for part in maps] if for_weight else []
        kernels = _kernels_for(maps, weight)
        sinks = [_Sink(part, cells) if wanted else None for part, wanted in zip(maps, for_maps, strict=True)]
        sums = [grad.new_zeros(TAPS, IN * IN, part.shape[1], out) for part in maps] if for_weight else []
        for n, cell in itertools.product(range(b), range(0, y // OUT, cells)):
            for tile in range(x // OUT):
                padded = grads.read(n, cell, tile)
                products = padded[:, TAPS - 1 : 1 - TAPS]
                for source, total in zip(sources, sums, strict=True):
                    seen = source.read(n, cell, tile)
                    for tap in range(TAPS):
                        total[tap].baddbmm_(seen[:, tap : tap + products.shape[1]].mT, products)
                for sink, kernel in zip(sinks, kernels, strict=True):
                    if sink is not None:
                        for tap in range(TAPS):
                            rows = padded[:, TAPS - 1 - tap :][:, : sink.products.shape[1]]
                            torch.baddbmm(sink.products, rows, kernel[:, tap].mT, beta=int(tap > 0), out=sink.products)
                        sink.write(n, cell, tile)
        taps = [torch.einsum("kt,zkio->oitz", _KERNELS, total) for total in sums]
        of_weight = torch.cat(taps, 1).reshape(weight.shape) if for_weight else None
        of_bias = grad.sum((0, 2, 3, 4)) if for_bias else None
        return of_weight, of_bias, *(None if sink is None else sink.map.permute(0, 4, 1, 2, 3) for sink in sinks)


def _cells(between: int, *maps: Tensor) -> int:
    """Cells of a plane that are taken at a time, of the y / 4 that ``maps`` (B, C, x, y, z) have: a divisor of how many there are."""
    _, _, _, y, z = maps[0].shape
    most = between // (IN * IN * (z + 2) * max(part.shape[1] for part in maps))
    return max(n for n in range(1, y // OUT + 1) if (y // OUT) % n == 0 and n <= max(1, most))


def _last(x: Tensor) -> Tensor:
    """(B, C, x, y, z) as (B, x, y, z, C), contiguous."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


class _Source:
    """A map, read in tiles of six planes and some cells, transformed along x and y."""

    def __init__(self, x: Tensor, cells: int) -> None:
        self.map, self.cells = _last(x).unflatten(2, (-1, OUT)), cells
        _, self.planes, _, _, z, channels = self.map.shape
        self.cut = x.new_zeros(IN - 1, IN, cells, z + 2, channels)
        self.along_y = x.new_empty(IN, IN, cells * (z + 2) * channels)
        self.products = x.new_empty(IN * IN, cells * (z + 2), channels)

    def read(self, n: int, cell: int, tile: int) -> Tensor:
        """(36, cells * (z + 2), C) of one tile of the cells from ``cell`` on of sample ``n``; tiles are asked for in their order."""
        start = OUT * tile - 1
        if tile:  # what two tiles share
            self.along_y[: IN - OUT] = self.along_y[OUT:]
            low = start + IN - OUT
        else:
            self.along_y[0] = 0  # what is beyond the map is 0
            low = 0
        high = min(start + IN, self.planes)
        count = high - low
        planes, end = self.map[n, low:high], cell + self.cells
        cut = self.cut[:count]
        cut[:, 1 : 1 + OUT, :, 1:-1] = planes[:, cell:end].transpose(1, 2)
        cut[:, 0, 1:, 1:-1] = planes[:, cell : end - 1, -1]
        cut[:, 0, 0, 1:-1] = planes[:, cell - 1, -1] if cell else 0
        cut[:, -1, :-1, 1:-1] = planes[:, cell + 1 : end, 0]
        cut[:, -1, -1, 1:-1] = planes[:, end, 0] if end < planes.shape[1] else 0
        torch.bmm(_MAP.expand(count, IN, IN), cut.view(count, IN, -1), out=self.along_y[low - start : high - start])
        self.along_y[high - start :] = 0
        torch.mm(_MAP, self.along_y.view(IN, -1), out=self.products.view(IN, -1))
        return self.products


class _Answers:
    """A map, written in tiles of four planes and some cells from their ``products`` (36, cells * (z + 2) - 2, C)."""

    def __init__(self, to: Tensor, cells: int) -> None:
        self.map = to.permute(0, 2, 3, 4, 1)
        _, _, _, z, channels = self.map.shape
        self.cells = cells
        rows = cells * (z + 2) - 2  # the last row's own zeros are never made
        self.products = to.new_empty(IN * IN, rows, channels)
        self.along_x = to.new_empty(OUT, IN, rows * channels)
        self.along_both = to.new_empty(OUT, OUT, rows * channels)
        size, one = rows * channels, (z + 2) * channels
        self.cut = self.along_both.as_strided((OUT, cells, OUT, z * channels), (OUT * size, one, size, 1))

    def write(self, n: int, cell: int, tile: int) -> None:
        """One tile of the cells from ``cell`` on of sample ``n``."""
        torch.mm(_ANSWER, self.products.view(IN, -1), out=self.along_x.view(OUT, -1))
        torch.bmm(_ANSWER.expand(OUT, OUT, IN), self.along_x, out=self.along_both)
        rows = self.map[n, OUT * tile : OUT * (tile + 1), OUT * cell : OUT * (cell + self.cells)]
        rows.view(self.cut.shape).copy_(self.cut)


class _Gradients:
    """The gradient of an answer, read as those of its products: what :class:`_Answers` does, transposed."""

    def __init__(self, grad: Tensor, cells: int) -> None:
        self.map = _last(grad)
        _, _, _, z, channels = self.map.shape
        self.cells = cells
        before, rows = TAPS - 1, cells * (z + 2)
        self.along_both = grad.new_zeros(OUT, OUT, before + rows, channels)
        self.cut = self.along_both[:, :, before:].unflatten(2, (cells, z + 2))[..., :z, :]
        self.along_x = grad.new_empty(OUT, IN, (before + rows) * channels)
        self.products = grad.new_empty(IN * IN, before + rows, channels)

    def read(self, n: int, cell: int, tile: int) -> Tensor:
        """(36, 2 + cells * (z + 2), C) of one tile of the cells from ``cell`` on of sample ``n``, with two rows of zeros before and after."""
        rows = self.map[n, OUT * tile : OUT * (tile + 1), OUT * cell : OUT * (cell + self.cells)]
        self.cut.copy_(rows.unflatten(1, (self.cells, OUT)).transpose(1, 2))
        torch.bmm(_ANSWER.T.expand(OUT, IN, OUT), self.along_both.view(OUT, OUT, -1), out=self.along_x)
        torch.mm(_ANSWER.T, self.along_x.view(OUT, -1), out=self.products.view(IN, -1))
        return self.products


class _Sink:
    """The gradient of a map, written from that of its ``products`` (36, cells * (z + 2), C): what :class:`_Source` does, transposed."""

    def __init__(self, x: Tensor, cells: int) -> None:
        b, channels, self.planes, y, z = x.shape
        self.map = x.new_empty(b, self.planes, y, z, channels)
        self.cells = cells
        self.products = x.new_empty(IN * IN, cells * (z + 2), channels)
        self.along_y = x.new_empty(IN, IN, self.products.shape[1] * channels)
        self.cut = x.new_empty(IN - 1, IN, cells, z + 2, channels)

    def write(self, n: int, cell: int, tile: int) -> None:
        """What one tile of the cells from ``cell`` on of sample ``n`` gives; they come in their order, and planes are written once no
        other tile gives to them."""
        start = OUT * tile - 1
        if tile:
            self.along_y[: IN - OUT] = self.along_y[OUT:]
            self.along_y[IN - OUT :] = 0
        else:
            self.along_y.zero_()
        self.along_y.view(IN, -1).addmm_(_MAP.T, self.products.view(IN, -1))
        low, high = max(start, 0), start + OUT
        if high + 1 == self.planes:
            high += 1
        count = high - low
        cut = self.cut[:count]
        torch.bmm(_MAP.T.expand(count, IN, IN), self.along_y[low - start : high - start], out=cut.view(count, IN, -1))
        planes, end = self.map[n, low:high].unflatten(1, (-1, OUT)), cell + self.cells
        if cell:  # the cells before have given to these
            planes[:, cell - 1, -1] += cut[:, 0, 0, 1:-1]
            cut[:, 1, 0, 1:-1] += planes[:, cell, 0]
        if end < planes.shape[1]:
            planes[:, end, 0] = cut[:, -1, -1, 1:-1]
        planes[:, cell:end] = cut[:, 1 : 1 + OUT, :, 1:-1].transpose(1, 2)
        planes[:, cell : end - 1, -1] += cut[:, 0, 1:, 1:-1]
        planes[:, cell + 1 : end, 0] += cut[:, -1, :-1, 1:-1]
