"""Convolutions that torch computes slowly on a CPU, computed faster. Ours; figures in ``benchmarks/README.md``.

- Gradients with fewer than 16 channels: oneDNN's kernels for contiguous maps are several times slower than those for channels-last
  ones, while its forward kernels are not. Backward takes its maps channels-last.
- A 1 x 1 x 1 kernel: a product of matrices, which oneDNN hides behind two changes of layout.

The products are the same and sums may be taken in another order. Everything else (a GPU, low precision, compiling, tracing) takes the
plain way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

FEW = 16
"""Channels, of the side that has fewer, below which gradients are taken channels-last."""

LAST = torch.channels_last_3d


def convolve(x: Tensor, layer: nn.Conv3d, weight: Tensor | None = None) -> Tensor:
    """What ``layer`` makes of ``x``.

    Args:
        x: (B, C, x, y, z).
        layer: an ungrouped convolution with zero padding.
        weight: instead of the layer's own, for the first channels alone.

    Returns:
        (B, out, x', y', z').
    """
    weight = layer.weight if weight is None else weight
    stride, padding = layer.stride, layer.padding
    assert isinstance(padding, tuple)
    if _plain(x, weight):
        return functional.conv3d(x, weight, layer.bias, stride, padding)
    if set(layer.kernel_size) | set(stride) == {1} and not any(padding):
        return _pointwise(x, weight, layer.bias)
    if weight.shape[1] > 1 and min(weight.shape[:2]) < FEW and torch.is_grad_enabled():
        return _Convolution.apply(x, weight, layer.bias, stride, padding)  # type: ignore[return-value]
    return functional.conv3d(x, weight, layer.bias, stride, padding)


class Pointwise(nn.Conv3d):
    """A convolution whose kernel is one voxel: channels are mixed and space is left alone."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, inputs, x, y, z) -> (B, outputs, x, y, z)."""
        return convolve(input, self)


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's own way is the only one, or known to be good."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
        return True
    return x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != x.dtype or torch.is_autocast_enabled("cpu")


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    batch, outputs = len(x), len(weight)
    matrix, cells = weight.flatten(1).expand(batch, -1, -1), x.flatten(2)
    flat = torch.bmm(matrix, cells) if bias is None else torch.baddbmm(bias.view(1, -1, 1), matrix, cells)
    return flat.view(batch, outputs, *x.shape[2:])


class _Convolution(torch.autograd.Function):
    """Forward as it is; backward with all three maps channels-last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        return functional.conv3d(x, weight, bias, stride, padding)  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2]]
        grad, x, weight = (tensor.contiguous(memory_format=LAST) for tensor in (grad, x, weight))
        dx, dweight, dbias = torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.shape[0]], ctx.stride, ctx.padding, [1, 1, 1], False, [0, 0, 0], 1, wanted
        )  # fmt: skip
        dx, dweight = (None if tensor is None else tensor.contiguous() for tensor in (dx, dweight))
        return dx, dweight, dbias, None, None
