"""Optimisers from settings. Biases and normalisation weights carry no weight decay."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

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


def build(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser over every parameter of ``module`` that requires a gradient, each in exactly one of two groups."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=parameters[0].is_cuda)
