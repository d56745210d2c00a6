"""Block masks and noise as functions of the sample number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import seeds


def block_mask(
    sample: Sequence[int],
    size: Sequence[int],
    block: int,
    ratio: float,
    *,
    seed: int,
    purpose: str,
    device: torch.device | None = None,
) -> Tensor:
    """(B, 1, x, y, z) bool, True where hidden: exactly ``round(ratio * blocks)`` blocks of each sample.

    Args:
        sample: B sample numbers.
        size: of the image in voxels; a last, smaller block fills an axis that is no multiple.
        block: edge in voxels.
        ratio: share of blocks hidden.
        seed, purpose: name the draw.
        device: where the mask is wanted; blocks are drawn on the CPU and become voxels there.
    """
    cells = [-(-int(n) // block) for n in size]
    count = cells[0] * cells[1] * cells[2]
    hidden = round(ratio * count)
    masks = []
    for number in sample:
        order = torch.randperm(count, generator=seeds.torch_generator(seed, purpose, number))
        flat = torch.zeros(count, dtype=torch.bool)
        flat[order[:hidden]] = True
        masks.append(flat.view(1, *cells))
    mask = torch.stack(masks).to(device, non_blocking=True)
    for axis in (2, 3, 4):
        mask = mask.repeat_interleave(block, axis)
    return mask[..., : size[0], : size[1], : size[2]]


def masks(images: Sequence[Tensor], sample: Sequence[int], block: int, ratio: float, *, seed: int) -> Tensor:
    """Which voxels of scans A, B ... of a pair are hidden, each scan with a mask of its own.

    Args:
        images: (B, 1, x, y, z) each, on one device.
        sample, block, ratio, seed: of :func:`block_mask`; the draws are called ``mask a``, ``mask b``.

    Returns:
        (len(images) * B, 1, x, y, z) bool, A before B, where the images are.
    """
    return torch.cat([
        block_mask(sample, image.shape[2:], block, ratio, seed=seed, purpose=f"mask {name}", device=image.device)
        for name, image in zip("ab", images, strict=False)
    ])  # fmt: skip


def noise(sample: Sequence[int], shape: Sequence[int], *, seed: int, purpose: str) -> Tensor:
    """(B, *shape) float32 standard normal, each sample its own draw."""
    return torch.stack([
        torch.randn(tuple(shape), generator=seeds.torch_generator(seed, purpose, number)) for number in sample
    ])  # fmt: skip
