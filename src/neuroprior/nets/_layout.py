"""How maps lie in memory, and operations that leave them lying so: channels-last maps stay channels-last from the scan to the last layer.

Torch's convolutions of few voxels, and its average pooling, would answer with contiguous maps on a CPU, and the next layer would turn
them round again. Figures in ``benchmarks/README.md``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import _fused, _int8, _winograd
from ._factors import Factors, convolve
from ._fused import LAST


class LaidOut(nn.Module):
    """A net that knows how its maps lie; contiguous at first."""

    layout: torch.memory_format = torch.contiguous_format

    def lay_out(self, device: torch.device, layout: torch.memory_format | None = None) -> None:
        """Choose how maps lie from now on.

        Args:
            device: where the net is. On a GPU the weights are laid out so too, as cuDNN wants them; oneDNN makes copies in formats of
                its own, from contiguous weights the sooner.
            layout: the memory format; None is the one in which the net is fastest there.
        """
        self.layout = _fused.fast_layout(device) if layout is None else layout
        self.to(memory_format=self.layout if device.type in _fused.GPUS else torch.contiguous_format)

    def keep_factors(self, wanted: bool) -> None:
        """Whether gradients of weights are kept as what they are made of (:mod:`._factors`), in ``factors`` of a layer."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d) and isinstance(layer.weight, nn.Parameter) and layer.kernel_size != (1, 1, 1):
                layer.factors = Factors(layer.weight, layer.stride, [int(n) for n in layer.padding]) if wanted else None

    def eight_bits(self) -> contextlib.AbstractContextManager[None]:
        """Within, this thread's convolutions are of 8-bit integers where that applies (:mod:`._int8`); without gradients alone."""
        return _int8.eight_bits()

    def laid(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) in the net's layout: with one channel both are the same memory, and the strides alone tell which is meant."""
        if self.layout != LAST or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return x
        if x.shape[1] > 1:
            return x.contiguous(memory_format=LAST)
        return x.contiguous().as_strided(x.shape, (math.prod(x.shape[2:]), 1, x.shape[3] * x.shape[4], x.shape[4], 1))


def is_last(x: Tensor) -> bool:
    """Whether channels are the innermost in memory, by the strides, so that one channel can be so too."""
    return x.ndim == 5 and x.stride(1) == 1 and x.is_contiguous(memory_format=LAST)


def convolved(x: Tensor, layer: nn.Conv3d, skip: Tensor | None = None) -> Tensor:
    """What ``layer`` makes of ``x`` and ``skip`` joined, in the memory format of ``x``.

    Channels-last on a CPU the two are not joined: the convolution is taken of each and the two are added, which spares a copy of both,
    and one of their gradients.

    Args:
        x: (B, C, x, y, z).
        layer: an ungrouped convolution with zero padding, of C channels or more. What it has more is for ``skip``, and left out without.
        skip: (B, the layer's channels - C, x, y, z), or None.

    Returns:
        (B, out, x', y', z').
    """
    n, weight = x.shape[1], layer.weight  # the weight once: an adapter may compute it
    if skip is not None and not (_on_cpu(x) and is_last(x)):
        x, n = torch.cat([x, skip], 1), layer.in_channels
    if is_last(x) and _int8.applies(x, layer):
        return _int8.convolve(x, layer, skip)
    if _on_cpu(x) and is_last(x) and _winograd.applies(x, layer):
        return _winograd.convolve(x, layer, weight, skip)
    y = alike(_part(x, layer, weight, 0, layer.bias), x)
    if skip is not None and n < layer.in_channels:
        y += _part(skip, layer, weight, n, None)
    return y


def _part(x: Tensor, layer: nn.Conv3d, weight: Tensor, first: int, bias: Tensor | None) -> Tensor:
    """The convolution of ``x`` by the layer's input channels from ``first`` on."""
    factors: Factors | None = getattr(layer, "factors", None)
    if factors is not None and factors.weight is weight and _on_cpu(x) and factors.smaller(x):
        return convolve(x, bias, factors, first)
    return functional.conv3d(x, weight[:, first : first + x.shape[1]], bias, layer.stride, layer.padding)


def _on_cpu(x: Tensor) -> bool:
    """Whether torch's operations run on a CPU as they stand here."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def alike(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in the memory format of ``x``, where that is channels-last."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not is_last(x):
        return y
    return y.contiguous(memory_format=LAST)


def mean_pooled(x: Tensor, grid: Sequence[int]) -> Tensor:
    """The mean over equal cells, (B, C, *grid), in the memory format and precision of ``x``.

    Args:
        x: (B, C, x, y, z), each axis a multiple of the grid's.
        grid: cells along each axis.
    """
    if not _on_cpu(x) or not is_last(x):
        return functional.adaptive_avg_pool3d(x, tuple(grid))
    batch, channels, *size = x.shape
    (a, b, c), (i, j, k) = grid, (n // g for n, g in zip(size, grid, strict=True))
    cells = x.permute(0, 2, 3, 4, 1).view(batch, a, i, b, j, c, k, channels)
    total = cells.sum(6, dtype=torch.promote_types(x.dtype, torch.float32)).sum(4).sum(2)
    return (total / (i * j * k)).to(x.dtype).permute(0, 4, 1, 2, 3)


class MeanPool(nn.Module):
    """Average pooling by a factor, in the memory format of what comes; without weights."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) -> (B, C, x / factor, ...)."""
        if _on_cpu(x) and is_last(x) and not any(n % self.factor for n in x.shape[2:]):
            return mean_pooled(x, [n // self.factor for n in x.shape[2:]])
        return functional.avg_pool3d(x, self.factor)
