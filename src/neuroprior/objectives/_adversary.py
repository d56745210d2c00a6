"""A classifier of the contrast whose gradient is reversed, so that the features before it forget the contrast.

Ganin et al. 2016, "Domain-adversarial training of neural networks" (arXiv 1505.07818). Departures: the classifier sees the
half's mean and each of its cells (one linear map each), and the features are normalised over the batch first, so that
shrinking them does not help.
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

    def __init__(self, channels: int, contrasts: Sequence[str], hidden: int = 64) -> None:
        super().__init__()
        self.names = {name: k for k, name in enumerate(contrasts)}
        self.pooled = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, len(contrasts)))
        self.cells = nn.Sequential(nn.Conv3d(channels, hidden, 1), nn.ReLU(), nn.Conv3d(hidden, len(contrasts), 1))

    def forward(self, half: Tensor, names: Sequence[str]) -> Tensor:
        """The mean of the pooled and the cell-wise cross-entropy over the scans whose contrast is known; 0 where none is.

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
        flat = x.mean((2, 3, 4))
        flat = (flat - flat.mean(0)) / (flat.std(0) + 1e-3)
        each = (x - x.mean((0, 2, 3, 4), keepdim=True)) / (x.std((0, 2, 3, 4), keepdim=True) + 1e-3)
        cells = self.cells(each)
        wanted = target.view(-1, 1, 1, 1).expand(-1, *cells.shape[2:])
        return (functional.cross_entropy(self.pooled(flat), target) + functional.cross_entropy(cells, wanted)) / 2
