"""InstanceNorm, an optional shortcut and LeakyReLU as one operation.

On a CPU it is done over channels-last maps, keeping one map instead of two (:mod:`._norm_cpu`); on a GPU by kernels of our own
(:mod:`._norm_kernel`), once they have been tried there against the plain operations (:func:`kernels`). Where neither applies (contiguous
maps on a CPU, a compiler, a trace) the plain operations run; where kernels fail too, and that is told once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import _norm_cpu

logger = logging.getLogger(__name__)

SLOPE = 0.01
"""LeakyReLU's slope below zero."""

LAST = torch.channels_last_3d

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
    if on_cpu(x, norm) and (shortcut is None or shortcut.dtype == x.dtype):
        shortcut = None if shortcut is None else shortcut.contiguous(memory_format=LAST)
        return _norm_cpu.norm_act(x, norm.weight, norm.bias, shortcut, norm.eps, slope)
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


def on_cpu(x: Tensor, norm: nn.InstanceNorm3d) -> bool:
    """Whether the way of a CPU is taken."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
        return False
    if x.device.type != "cpu" or x.device.type in GPUS:
        return False
    if x.dtype not in _norm_cpu.DTYPES or norm.weight.dtype != torch.promote_types(x.dtype, torch.float32):
        return False
    return x[0, 0].numel() > 1 and x.is_contiguous(memory_format=LAST)


def fast_layout(device: torch.device) -> torch.memory_format:
    """How a net's maps should lie on ``device``: channels-last on a CPU and on a GPU whose norms do not undo it, else contiguous."""
    good = not _failed and kernels(device) is not None if device.type in GPUS else device.type == "cpu"
    return LAST if good else torch.contiguous_format


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
