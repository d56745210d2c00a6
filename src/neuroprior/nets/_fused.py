"""InstanceNorm, an optional shortcut and LeakyReLU as one operation that keeps one map instead of two.

After the in-place activated batch norm of Rota Bulo, Porzi and Kontschieder (arXiv 1712.02616), here for instances and with a
shortcut. LeakyReLU can be undone and so can an affine norm, so backward needs the activated output alone, which the next convolution
keeps anyway: the convolution's own output is overwritten. Nothing is computed twice but a few products.

Departures: nothing of the function is changed to make it invertible. Where a weight of the norm is near zero against its bias, undoing
it would lose digits; then, as in low precision and while compiling, the plain operations run (:func:`can_undo`).

On a GPU it is kernels of our own that do it (:mod:`._norm_kernel`), once they have been tried there against the plain operations
(:func:`kernels`); where they fail, the plain operations run, and that is told once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

logger = logging.getLogger(__name__)

SLOPE = 0.01
"""LeakyReLU's slope below zero."""

CHUNK_BYTES = 4 << 20
"""About the size of the pieces that all passes are made over before the next piece, so that they stay in the cache."""

SMALLEST = 0.01
"""Least weight of the norm, as a multiple of one plus its bias, that is undone: float32 then keeps about five digits."""


GPUS = ("cuda",)
"""Kinds of devices that the kernels are for."""


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
    y = _by_kernels(x, norm, slope, shortcut)
    if y is not None:
        return y
    return composed(x, norm.weight, norm.bias, shortcut, norm.eps, slope)


def composed(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, slope: float) -> Tensor:
    """What :func:`norm_act` stands for, by torch's own operations."""
    if x[0, 0].numel() > 1:
        x = functional.instance_norm(x, weight=weight, bias=bias, eps=eps)
    else:
        x = x * weight.view(1, -1, 1, 1, 1) + bias.view(1, -1, 1, 1, 1)
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


def fast_layout(device: torch.device) -> torch.memory_format:
    """How a net's maps should lie on ``device``: channels-last on a GPU whose norms do not undo it, else contiguous."""
    return (
        torch.channels_last_3d if device.type in GPUS and not _failed and kernels(device) is not None else torch.contiguous_format
    )


@functools.cache
def kernels(device: torch.device) -> ModuleType | None:
    """The module of the kernels where they work on ``device``, found out by trying; else None, and a warning says why."""
    try:
        from . import _norm_kernel

        _try(_norm_kernel, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a compiler or a driver raises, the run goes on without)
        _go_without(error)
        return None
    return _norm_kernel


_failed: list[str] = []
"""Why the kernels are not used any more in this process."""


def _by_kernels(x: Tensor, norm: nn.InstanceNorm3d, slope: float, shortcut: Tensor | None) -> Tensor | None:
    """The answer of the kernels, or None where they do not apply."""
    if x.device.type not in GPUS or x[0, 0].numel() < 2 or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    found = None if _failed else kernels(x.device)
    if found is None or x.dtype not in found.DTYPES or not (x.is_contiguous() or x.is_contiguous(memory_format=found.LAST)):
        return None
    try:
        return found.norm_act(x, norm.weight, norm.bias, shortcut, norm.eps, slope, _go_without)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        _go_without(error)
        return None


def _go_without(error: Exception) -> Callable[..., Tensor]:
    """What to do instead; says so the first time."""
    reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    if not _failed:
        logger.warning("the fused norm does not work on this GPU, going on without it: %s", reason)
    _failed.append(reason)
    return composed


def trouble(device: torch.device) -> str:
    """Why the kernels are not used on a GPU; an empty string where they are."""
    if not _failed:
        kernels(device)
    return _failed[0] if _failed else ""


def _try(module: ModuleType, device: torch.device) -> None:
    """Values and gradients of the kernels on small maps, against torch's own in float64.

    Raises:
        ArithmeticError: they are not the same.
    """
    draws = torch.Generator().manual_seed(0)
    for size in ((3, 4, 5), (16, 17, 19)):  # one launch, and several
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
                x, shortcut, grad = torch.randn(3, 2, 32, *size, generator=draws).to(device, dtype).unbind()
                weight, bias = torch.randn(2, 32, generator=draws).to(device).unbind()
                answers = []
                for call, exact in ((module.norm_act, False), (composed, True)):
                    inputs = [x.contiguous(memory_format=layout), weight, bias, shortcut.contiguous(memory_format=layout)]
                    inputs = [(t.double() if exact else t).detach().requires_grad_() for t in inputs]
                    with torch.enable_grad():
                        y = call(*inputs, 1e-5, SLOPE)
                    answers.append([y.detach(), *torch.autograd.grad(y, inputs, grad.to(y.dtype))])
                for ours, theirs in zip(*answers, strict=True):
                    error = float((ours.double() - theirs).norm() / theirs.norm())
                    if not error <= tolerance:
                        raise ArithmeticError(f"off by {error:.1e} on maps of {size} in {dtype}, {layout}")


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
