"""Halves as vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pooled(half: Tensor, visible: Tensor | None, cells: int) -> Tensor:
    """(B, C * cells^3) adaptive average pool, flattened; cells that the net left out do not count.

    Args:
        half: (B, C, x, y, z).
        visible: (B, 1, x, y, z) bool, or None where all cells are seen.
        cells: edge of the pooled grid. A pooled cell with nothing visible is 0.
    """
    if visible is None:
        return functional.adaptive_avg_pool3d(half, cells).flatten(1)
    seen = visible.to(half.dtype)
    share = functional.adaptive_avg_pool3d(seen, cells)
    return (functional.adaptive_avg_pool3d(half * seen, cells) / torch.clamp(share, min=1e-6)).flatten(1)
