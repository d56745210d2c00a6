"""The best linear reader of the contrast from the last thousand scans, and how much it still tells of a batch.

At every step the ridge regression of the contrast on the half, pooled to 2^3, is solved anew over a memory of past scans (their
features as they were then). The term is the squared distance of its guesses for the batch from their mean: the half gives up
the directions in which the contrast can be read, and the next step's reader looks for others. A reversed classifier
(``_adversary``) must first learn by gradients and lags behind; this reader is optimal at once. The idea of taking away what a linear
reader finds, again and again, is Ravfogel et al. 2020 (iterative nullspace projection, arXiv 2004.07667); here the net is trained
to it rather than its output projected, so that nothing is left to be undone in a fresh projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

MEMORY = 1024
"""Scans that the reader is fitted on."""
LEAST = 48
"""Fewer give no reader yet."""
RIDGE = 0.03
"""Penalty, for features of unit length on average."""


class LinearReader(nn.Module):
    """A memory of pooled halves and their contrasts, and the reader that follows from it.

    Args:
        channels: of the half.
        contrasts: names to be told apart; scans of others are left out.
    """

    features: Tensor
    classes: Tensor
    filled: Tensor

    def __init__(self, channels: int, contrasts: Sequence[str]) -> None:
        super().__init__()
        self.names = {name: k for k, name in enumerate(contrasts)}
        self.register_buffer("features", torch.zeros(MEMORY, channels * 8))
        self.register_buffer("classes", torch.zeros(MEMORY, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def forward(self, half: Tensor, names: Sequence[str]) -> Tensor:
        """What the reader tells of the batch: 0 nothing, about 1 everything. 0 while too few scans are remembered.

        Args:
            half: (B, C, x, y, z).
            names: B canonical contrasts.

        The batch is remembered afterwards, in training only.
        """
        known = [k for k, name in enumerate(names) if name in self.names]
        if not known:
            return half.sum() * 0.0
        rows = functional.adaptive_avg_pool3d(half[known].float(), 2).flatten(1)
        told = rows.sum() * 0.0
        n = min(int(self.filled), MEMORY)
        if n >= LEAST:
            told = self._told(rows, n)
        if self.training:
            self._remember(rows.detach(), torch.tensor([self.names[names[k]] for k in known], device=half.device))
        return told

    def _told(self, rows: Tensor, n: int) -> Tensor:
        past = self.features[:n]
        mean, std = past.mean(0), past.std(0) + 1e-4
        x = (past - mean) / std / past.shape[1] ** 0.5
        y = functional.one_hot(self.classes[:n], len(self.names)).float()
        y = y - y.mean(0)
        if n >= x.shape[1]:
            gram = x.T @ x + RIDGE * n / x.shape[1] * torch.eye(x.shape[1], device=x.device)
            weight = torch.linalg.solve(gram, x.T @ y)
        else:
            gram = x @ x.T + RIDGE * n / x.shape[1] * torch.eye(n, device=x.device)
            weight = x.T @ torch.linalg.solve(gram, y)
        guess = (rows - mean) / std / past.shape[1] ** 0.5 @ weight
        return guess.square().sum(1).mean() / y.square().sum(1).mean().clamp(min=1e-6)

    @torch.no_grad()
    def _remember(self, rows: Tensor, classes: Tensor) -> None:
        rows, classes = rows[:MEMORY], classes[:MEMORY]
        places = (int(self.filled) + torch.arange(len(rows), device=rows.device)) % MEMORY
        self.features[places] = rows.to(self.features.dtype)
        self.classes[places] = classes
        self.filled += len(rows)
