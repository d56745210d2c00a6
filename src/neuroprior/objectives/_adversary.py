"""A classifier of the contrast whose gradient is reversed, so that the features before it forget the contrast.

Ganin et al. 2016, "Domain-adversarial training of neural networks" (arXiv 1505.07818). Departures: the classifier sees the
half pooled to 2^3 and each of its cells by itself, each by a linear and a one-layer network at once, and the features are
normalised over the batch first, so that shrinking them does not help.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return -grad[0]


class Adversary(nn.Module):
    """Cross-entropy of the contrast from a half; the gradient that reaches the half has its sign turned."""

    def __init__(self, channels: int, contrasts: Sequence[str], hidden: int = 128) -> None:
        super().__init__()
        self.names = {name: k for k, name in enumerate(contrasts)}
        n = len(contrasts)
        self.readers = nn.ModuleDict({
            name: nn.ModuleList([nn.Linear(width, n), nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, n))])
            for name, width in (("pooled", channels * 8), ("cells", channels))
        })  # fmt: skip

    def forward(self, half: Tensor, names: Sequence[str]) -> Tensor:
        """The mean cross-entropy of the four readers over the scans whose contrast is known; 0 where none is.

        Args:
            half: (B, C, x, y, z).
            names: B canonical contrasts.
        """
        known = [k for k, name in enumerate(names) if name in self.names]
        if len(known) < 2:
            return half.sum() * 0.0
        x = _Reverse.apply(half[known].float())
        assert isinstance(x, Tensor)
        target = torch.tensor([self.names[names[k]] for k in known], device=half.device)
        cells = x.flatten(2).transpose(1, 2).flatten(0, 1)  # (B * cells, C)
        inputs = {
            "pooled": (functional.adaptive_avg_pool3d(x, 2).flatten(1), target),
            "cells": (cells, target.repeat_interleave(cells.shape[0] // len(known))),
        }
        losses = []
        for name, (rows, wanted) in inputs.items():
            rows = (rows - rows.mean(0)) / (rows.std(0) + 1e-3)
            readers = self.readers[name]
            assert isinstance(readers, nn.ModuleList)
            losses += [functional.cross_entropy(reader(rows), wanted) for reader in readers]
        return torch.stack(losses).mean()
