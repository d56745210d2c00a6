"""Convolutions of 8-bit integers on a CPU that has instructions for them (VNNI): predictions at half the time, and nearly the same answers.

After Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (arXiv 1712.05877):
weights are rounded to 255 levels an output channel, maps to 254 levels from their least to their largest value, products are summed
exactly.

Departures: nothing is trained or calibrated for it. A map's range is taken when the map comes, a sample at a time, so that an answer
does not depend on what else is in the batch. Convolutions answer in float32, and norms, activations, transposed and pointwise
convolutions, the split and the head stay in it. So does the first convolution: it has one channel, the scan, and is cheap. Figures in
``benchmarks/README.md``.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

LAST = torch.channels_last_3d

PIECE = 1 << 18
"""Numbers that are rounded at a time: they stay in the cache."""

STEPS = 253
"""Between the least and the largest level of a map; rounding may go one beyond either and still fits eight bits."""

LOW_BYTE = 1.5 * 2**23
"""Added to a float32 near zero, it leaves the nearest integer in the lowest byte: quicker than torch's conversion to uint8."""

_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar("int8", default=False)


@contextlib.contextmanager
def eight_bits() -> Iterator[None]:
    """Within, convolutions of nets are taken in integers where that applies. For a CPU of ``core.precision.has_quick_int8``."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def applies(x: Tensor, layer: nn.Conv3d) -> bool:
    """Whether ``layer`` is to be taken of ``x`` in integers.

    Weights that an adapter computes anew each time would have to be rounded each time; pointwise convolutions gain nothing.
    """
    return (
        _wanted.get()
        and x.dtype == torch.float32
        and x.shape[1] > 1
        and layer.kernel_size != (1, 1, 1)
        and isinstance(layer.weight, nn.Parameter)
        and not layer.weight.is_inference()
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
    )


class _Rounded(NamedTuple):
    """Weights of a layer, or of a part of its input channels, as oneDNN wants them."""

    weight: Tensor
    scale: Tensor
    zero: Tensor
    source: tuple[int, int]
    """Where they came from: the memory of the layer's weights, and how often that was changed."""


_kept: weakref.WeakKeyDictionary[nn.Conv3d, dict[int, _Rounded]] = weakref.WeakKeyDictionary()


def convolve(x: Tensor, layer: nn.Conv3d, skip: Tensor | None) -> Tensor:
    """What ``layer`` makes of ``x`` and ``skip`` joined.

    Args:
        x: (B, C, x, y, z) float32, channels-last.
        layer: see :func:`applies`.
        skip: (B, the layer's channels - C, x, y, z), or None.

    Returns:
        (B, out, x', y', z') float32, channels-last. A map that is not finite, or a single value, is convolved in float32.
    """
    parts = [(x, 0)] if skip is None else [(x, 0), (skip, x.shape[1])]
    answer: Tensor | None = None
    for n in range(len(x)):
        total: Tensor | None = None
        for maps, first in parts:
            one = _convolved(maps[n : n + 1], layer, first)
            total = one if total is None else total.add_(one)
        assert total is not None
        if len(x) == 1:
            return total
        if answer is None:
            answer = torch.empty((len(x), *total.shape[1:]), memory_format=LAST)
        answer[n : n + 1] = total
    assert answer is not None
    return answer


def _convolved(x: Tensor, layer: nn.Conv3d, first: int) -> Tensor:
    """The convolution of one sample with the weights of the layer's input channels from ``first`` on; the bias goes with the first."""
    bias = None if first else layer.bias
    stride, padding, dilation = list(layer.stride), [int(n) for n in layer.padding], list(layer.dilation)
    levels, scale, zero = rounded(x)
    if levels is None:
        weight = layer.weight[:, first : first + x.shape[1]]
        return nn.functional.conv3d(x, weight, bias, stride, padding, dilation).contiguous(memory_format=LAST)
    weights = _weights(layer, first, x)
    return torch.ops.onednn.qconv_pointwise(
        levels, scale, zero, weights.weight, weights.scale, weights.zero, bias, stride, padding, dilation, 1,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


def rounded(x: Tensor) -> tuple[Tensor | None, float, int]:
    """A map in eight bits.

    Args:
        x: (1, C, x, y, z) float32, channels-last.

    Returns:
        uint8 levels like ``x``, the value of a step, and the level of 0; None in the levels' place where the map has no finite range.
    """
    flat = x.permute(0, 2, 3, 4, 1).reshape(-1)
    low, high = (float(bound) for bound in torch.aminmax(flat))
    low, high = min(low, 0.0), max(high, 0.0)  # what is padded is 0
    step = (high - low) / STEPS
    if not math.isfinite(step) or step < torch.finfo(torch.float32).tiny:
        return None, 1.0, 0
    zero = 1 + round(-low / step)
    levels = torch.empty(flat.shape, dtype=torch.uint8)
    start, room = torch.tensor(zero + LOW_BYTE), torch.empty(min(PIECE, len(flat)))
    for at in range(0, len(flat), PIECE):
        piece = flat[at : at + PIECE]
        moved = torch.add(start, piece, alpha=1 / step, out=room[: len(piece)])
        levels[at : at + PIECE] = moved.view(torch.int32)
    b, c, i, j, k = x.shape
    return levels.view(b, i, j, k, c).permute(0, 4, 1, 2, 3), step, zero


def _weights(layer: nn.Conv3d, first: int, x: Tensor) -> _Rounded:
    """The rounded weights of a layer's input channels from ``first`` on, made once."""
    source = layer.weight.data_ptr(), layer.weight._version
    kept = _kept.setdefault(layer, {})
    found = kept.get(first)
    if found is None or found.source != source:
        weight = layer.weight.detach()[:, first : first + x.shape[1]]
        scale = weight.abs().amax((1, 2, 3, 4)).clamp(min=torch.finfo(torch.float32).tiny) / 127
        whole = (weight / scale.view(-1, 1, 1, 1, 1)).round().to(torch.int8).contiguous()
        packed = torch.ops.onednn.qconv_prepack(
            whole, scale, 1.0, 1, list(layer.stride), [int(n) for n in layer.padding], list(layer.dilation), 1, [1, *x.shape[1:]]
        )
        found = kept[first] = _Rounded(packed, scale, torch.zeros(len(scale), dtype=torch.int64), source)
    return found
