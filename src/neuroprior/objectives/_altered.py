"""Made-up lesions: a soft ellipsoid in a scan whose intensities are raised or lowered, and where it is.

After the idea of self-supervised lesion finding (Tan et al. 2020, foreign patch interpolation, arXiv 2011.04197): what was put in is
known, so finding it needs no label. A function of (seed, sample, scan of the pair).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..core import seeds

RADIUS = (1.0, 3.5)
"""Voxels, of each axis of the ellipsoid: the distance at which the change is 0.6 of its greatest."""
CHANGE = (1.0, 3.0)
"""Greatest change, in standard deviations of the scan (conformed scans have about 1), up or down."""


def altered(image: Tensor, samples: Sequence[Tensor], share: float, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scans, some with a made-up lesion; where it is, (N, 1, x, y, z) bool; and which have one, (N,) bool.

    Args:
        image: (N, 1, x, y, z), background 0, which is left as it is; the scans of ``samples`` one after the other.
        samples: for each scan of a pair, (B,) sample numbers on the CPU; N is their total.
        share: of scans that get one.
        seed: of the draws.
    """
    size = image.shape[2:]
    grid = [torch.arange(n, dtype=torch.float32) for n in size]
    changes, ill = [], []
    for which, numbers in enumerate(samples):
        for number in numbers.tolist():
            draw = seeds.torch_generator(seed, f"altered {which}", int(number))
            u = torch.rand(9, generator=draw)
            radii = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * u[:3]
            middle = u[3:6] * torch.tensor(size)
            axes = [torch.square((g - m) / r) for g, m, r in zip(grid, middle, radii, strict=True)]
            soft = torch.exp(-0.5 * (axes[0][:, None, None] + axes[1][:, None] + axes[2]))
            change = (CHANGE[0] + (CHANGE[1] - CHANGE[0]) * u[6]) * (1 if u[7] < 0.5 else -1)
            ill.append(bool(u[8] < share))
            changes.append(soft * change * ill[-1])
    change = torch.stack(changes)[:, None].to(image.device, image.dtype)
    peak = change.abs().amax((1, 2, 3, 4), keepdim=True).clamp(min=1e-6)
    head = image != 0
    where = (change.abs() > 0.5 * peak) & head
    return image + change * head, where, torch.tensor(ill)


def cells_of(where: Tensor, edge: int) -> Tensor:
    """(N, 1, x', y', z') float, 1 where any voxel of a cell of ``edge`` voxels is set; a last, smaller cell counts too."""
    return functional.max_pool3d(where.float(), edge, ceil_mode=True)
