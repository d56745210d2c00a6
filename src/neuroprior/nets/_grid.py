"""Inputs of any size on the grid that a net's strides want."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def padded(x: Tensor, stride: int) -> Tensor:
    """(B, C, x, y, z) with zeros at the far ends, each axis a multiple of ``stride``."""
    pad = [(-n) % stride for n in x.shape[2:]]
    return functional.pad(x, (0, pad[2], 0, pad[1], 0, pad[0])) if any(pad) else x


def cut(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first ``size`` voxels along each spatial axis: undoes :func:`padded`."""
    return x[..., : size[0], : size[1], : size[2]]
