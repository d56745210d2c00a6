"""How a module is set up for the device that it is trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.precision import has_quick_bfloat16
from .allocator import KEPT, KEPT_PREDICTING, keep_freed_memory
from .settings import TrainingConfig

logger = logging.getLogger(__name__)

HEAVY = 50_000_000
"""Parameters from which on a net is heavy: the paper's has 19 million, ResEnc-L 102."""

KEPT_HEAVY = 12 << 20
"""Bytes of a block that a heavy net keeps when it is freed: one of its kernels. Of larger ones there is too little use for what they cost."""


def device_of(config: TrainingConfig) -> torch.device:
    """Where this process trains: its own GPU of those that there are, or the CPU."""
    if config.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def predicting_device(wanted: str) -> str:
    """Where this process predicts: ``wanted``, or for "auto" a GPU where there is one. On a CPU it keeps freed memory from now on.

    Raises:
        ConfigError: there is no such device, or torch cannot use it here.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ConfigError("there is no such --device", expected="auto, cpu, cuda, or a GPU by its number: cuda:1", got=wanted)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= gpus:
        raise ConfigError(
            "torch cannot use this --device here", expected=f"one of {gpus} GPUs, counted from 0" if gpus else "auto or cpu: it sees no GPU", got=wanted,
            next_step="neuroprior doctor tells what this machine has",
        )  # fmt: skip
    if kind == "cpu":
        keep_freed_memory(KEPT_PREDICTING)
    return device


def tune_convolutions(device: torch.device) -> None:
    """Have cuDNN try its algorithms on each new shape and keep the fastest, in this process; boxes of a training have one shape."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def moved(batch: Any, device: torch.device) -> Any:
    """A tensor, or the tensors of nested mappings, on ``device``; pinned ones are copied while it still works. What is no tensor stays."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    return batch


def set_recompute(module: nn.Module, levels: int) -> None:
    """Tell the nets in ``module`` of how many levels to compute maps again.

    Raises:
        ConfigError: none of them can.
    """
    nets: list[Any] = [part for part in module.modules() if hasattr(part, "recompute")]
    if levels and not nets:
        raise ConfigError("this net keeps all its maps", expected="training.recompute=0, or a unet or resenc", got=levels)
    for net in nets:
        net.recompute = levels


def set_layout(module: nn.Module, config: TrainingConfig, device: torch.device) -> None:
    """Tell the nets in ``module`` to lay out their maps as ``training.layout`` says. A compiler chooses for itself."""
    nets: list[Any] = [part for part in module.modules() if hasattr(part, "lay_out")]
    named = {"auto": torch.contiguous_format if config.compile else None}
    named |= {"channels_last": torch.channels_last_3d, "contiguous": torch.contiguous_format}
    for net in nets:
        net.lay_out(device, named[config.layout])


def is_heavy(module: nn.Module) -> bool:
    """Whether the weights of a module rather than its maps fill a step's memory; see :data:`HEAVY`."""
    return sum(parameter.numel() for parameter in module.parameters()) >= HEAVY


def set_factors(module: nn.Module, config: TrainingConfig, device: torch.device) -> None:
    """Tell the nets in a heavy module to keep gradients of large kernels in factors: on a CPU, in one process, without a compiler.

    It takes a tenth of a step's time, and of a lighter net's memory it saves nothing.
    """
    wanted = device.type == "cpu" and config.devices == 1 and not config.compile and is_heavy(module)
    for net in module.modules():
        if hasattr(net, "keep_factors"):
            net.keep_factors(wanted)


def kept_bytes(module: nn.Module) -> int:
    """The largest block of freed memory that a training of ``module`` on a CPU keeps for reuse (:func:`.allocator.keep_freed_memory`)."""
    return KEPT_HEAVY if is_heavy(module) else KEPT


def takes_bf16(config: TrainingConfig, cpu: bool) -> bool:
    """Whether steps are taken in bfloat16; a device that gains nothing by it is told of, once, where it was asked for."""
    if config.precision == "32" or (cpu and config.precision == "auto"):
        return False
    quick = has_quick_bfloat16("cpu" if cpu else "cuda")
    if config.precision == "bf16" and not quick:
        logger.warning(
            "this CPU has no AMX: bfloat16 saves no time here (training.precision=32)" if cpu
            else "this GPU has no bfloat16: training in float32 (training.precision=32 says the same)"
        )  # fmt: skip
    return cpu or quick


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; on a CPU torch says so in words alone."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("can't allocate memory", "out of memory"))
