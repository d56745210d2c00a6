"""3x3x3 convolutions on a CPU with half the multiplications: each is six 3x3 convolutions of planes where the definition has twelve.

After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308): F(4, 3), four answers along x from six
planes, with their transform matrices (points 0, 1, -1, 2, -2 and infinity).

Departures: the transform is taken along x alone, and what is left is a convolution of planes, for which torch (oneDNN) has fast code on
every CPU. Transforms of the other axes too would spare more products for more memory traffic; not tried. A few planes are taken at a time, so that what is in between stays in the cache. Answers differ from torch's own by rounding, about 5e-6 of the largest
value. Figures in ``benchmarks/README.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._packed import Packed, keepable

OUT, IN = 4, 6
"""Planes of an answer, and planes of a map that it is made of."""

BETWEEN = 1 << 22
"""Numbers at a time of all that is between the map and the answer: 16 MiB."""

SMALLEST = 1 << 9
"""Products of input and output channels, at least: with fewer, the transforms cost more than they spare."""

FEWEST = 1 << 12
"""Voxels of a map, at least: with fewer, little is gained, and most of a net's weights would be kept a second time, twice as large."""

# The matrices B^T, G and A^T of the paper: (product, plane of the map), (product, plane of the kernel), (plane of the answer, product).
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
_KERNEL = (
    torch.tensor(
        [[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
        dtype=torch.float64,
    )
    / 24
)
_ANSWER = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])

_WITH_BIAS = 1
"""The product that a bias is added to: that of point 1, whose column in ``_ANSWER`` is all ones."""

_packed: Packed[list[Tensor]] = Packed()


def applies(x: Tensor, layer: nn.Conv3d) -> bool:
    """Whether ``layer`` is to be taken of ``x`` so: channels-last on a CPU, in float32, without gradients, and where it is the quicker way."""
    return (
        x.dtype == torch.float32
        and layer.kernel_size == (3, 3, 3)
        and layer.stride == (1, 1, 1)
        and layer.padding == (1, 1, 1)
        and layer.dilation == (1, 1, 1)
        and x.shape[1] * layer.out_channels >= SMALLEST
        and x.shape[2] % OUT == 0
        and x[0, 0].numel() >= FEWEST
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and keepable(layer)
    )


def convolve(x: Tensor, layer: nn.Conv3d, skip: Tensor | None) -> Tensor:
    """What ``layer`` makes of ``x`` and ``skip`` joined.

    Args:
        x: (B, C, x, y, z) float32, channels-last, x a multiple of four.
        layer: see :func:`applies`.
        skip: (B, the layer's channels - C, x, y, z), channels-last, or None.

    Returns:
        (B, out, x, y, z) float32, channels-last.
    """
    b, c, i, j, k = x.shape
    out = layer.out_channels
    parts = [_Part(x, layer, 0)] if skip is None else [_Part(x, layer, 0), _Part(skip, layer, c)]
    answer = torch.empty(b, i, j, k, out)
    planes = answer.view(b, i, -1)
    tiles = i // OUT
    step = min(tiles, max(1, BETWEEN // (IN * j * k * (out + max(part.channels for part in parts)))))
    products = torch.empty(IN, step, j * k * out)
    for n in range(b):
        for first in range(0, tiles, step):
            taken = min(step, tiles - first)
            for part in parts:
                part.multiply(n, first, taken, products, layer.bias)
            for t in range(taken):
                at = OUT * (first + t)
                torch.mm(_ANSWER, products[:, t], out=planes[n, at : at + OUT])
    return answer.permute(0, 4, 1, 2, 3)


class _Part:
    """Some of a layer's input: a map and the weights for it."""

    def __init__(self, x: Tensor, layer: nn.Conv3d, first: int) -> None:
        b, self.channels, self.planes, self.rows, self.columns = x.shape
        self.first = first
        self.map = x.permute(0, 2, 3, 4, 1).reshape(b, self.planes, -1)
        self.weights = _packed.of(layer, first, self.channels, transformed)
        self.seen: Tensor | None = None

    def multiply(self, n: int, first: int, count: int, products: Tensor, bias: Tensor | None) -> None:
        """The products of some tiles of sample ``n``; those of a second part are added to what is there.

        Args:
            n: the sample.
            first: the first tile, of four planes each.
            count: of tiles.
            products: (6, at least ``count``, y * z * out), written.
            bias: added with the first part.
        """
        if self.seen is None:
            self.seen = torch.empty(IN, products.shape[1], self.map.shape[2])
        for t in range(count):
            start = OUT * (first + t) - 1
            low, high = max(start, 0), min(start + IN, self.planes)  # what is beyond the map is 0
            torch.mm(_MAP[:, low - start : high - start], self.map[n, low:high], out=self.seen[:, t])
        for number, weight in enumerate(self.weights):
            maps = self.seen[number, :count].view(count, self.rows, self.columns, self.channels).permute(0, 3, 1, 2)
            here = functional.conv2d(maps, weight, bias if number == _WITH_BIAS and not self.first else None, padding=1)
            here = here.permute(0, 2, 3, 1).reshape(count, -1)
            if self.first:
                products[number, :count] += here
            else:
                products[number, :count] = here


def transformed(weight: Tensor) -> list[Tensor]:
    """The six kernels (out, in, 3, 3) that stand for one of (out, in, 3, 3, 3), rounded once."""
    kernels = torch.einsum("kx,oixyz->koiyz", _KERNEL, weight.double()).float()
    return [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels]
