"""Optimisers from settings. Biases and normalisation weights carry no weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config


class OptimizerConfig(Config):
    """Which optimiser, with what."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019) or SGD with momentum."""
    lr: float = Field(default=1e-4, gt=0)
    """Full learning rate, reached after the warm-up."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Of matrices and kernels."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """SGD's momentum."""
    nesterov: bool = True
    """SGD's Nesterov form."""


def build(module: nn.Module, config: OptimizerConfig, group_of: Callable[[str], str] | None = None) -> torch.optim.Optimizer:
    """The optimiser over every parameter of ``module`` that requires a gradient, each in exactly one group.

    Args:
        module: what is trained.
        config: which optimiser.
        group_of: the group of a parameter by its name; with it there are two groups (with and without weight decay) for each of
            these, which bear the name under ``group``. Without it there are two in all.
    """
    by_group: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            by_group.setdefault("" if group_of is None else group_of(name), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for name, parameters in by_group.items():
        tag = {} if group_of is None else {"group": name}
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay, **tag},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, **tag},
        ]
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if group_of is None:  # in phases, what never learns needs no memory
        allocate(optimizer)
    return optimizer


def allocate(optimizer: torch.optim.Optimizer) -> None:
    """Make what the optimiser remembers, all zeros, before the first step instead of in it.

    What lives through the whole run then lies together, and the memory of a step, which is freed at its end, is never cut into pieces
    by it. The first step computes what it would have.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if isinstance(optimizer, torch.optim.AdamW):
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            elif group["momentum"]:
                state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def advance(module: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
    """An optimiser's step: clip the gradient's norm, step, let the gradients go.

    Layers with ``factors``, what the gradient of their weights is made of (``nets/_factors``), are stepped one by one after all others, so
    that one such gradient is there at a time; what comes out is the same.

    Args:
        module: what is trained.
        optimizer: of its parameters.
        clip_norm: largest norm of the whole gradient, or None.
    """
    keeping: list[Any] = [part for part in module.modules() if getattr(part, "factors", None)]
    factors: dict[nn.Parameter, Any] = {part.weight: part.factors for part in keeping}
    share: Tensor | float = 1.0
    if clip_norm is not None and factors:
        share = _share(module, factors, clip_norm)
    elif clip_norm is not None:
        nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    beside = {parameter: parameter.grad for parameter in factors}
    for parameter in factors:
        parameter.grad = None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter, found in factors.items():
        parameter.grad = beside.pop(parameter)
        parameter.grad = found.gradient().mul_(share)
        found.clear()
        optimizer.step()
        parameter.grad = None


def _share(module: nn.Module, factors: Mapping[nn.Parameter, Any], clip_norm: float) -> Tensor:
    """What gradients are multiplied by for the norm of all of them to be at most ``clip_norm``; those that are there already are."""
    there = [parameter for parameter in module.parameters() if parameter.grad is not None or parameter in factors]
    norms = [factors[p].norm() if p in factors else torch.linalg.vector_norm(p.grad) for p in there]
    share = (clip_norm / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0)
    for parameter in there:
        if parameter not in factors:
            parameter.grad.mul_(share)  # type: ignore[union-attr]
    return share
