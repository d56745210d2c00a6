"""Made-up lesions: soft ellipsoids, brighter or darker than their surroundings, and where they are. Ours.

Nothing of it is meant to look like a disease. It gives the contrast half a reason to keep what is small and local, which a
reconstruction through a coarse grid has not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core import seeds

MOST = 6
"""Ellipsoids a scan."""


def with_lesions(
    image: Tensor, sample: Sequence[int], radii: tuple[float, float], strength: tuple[float, float], *, seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Scans of which half have lesions, and how much of each voxel is lesion.

    Args:
        image: (B, 1, x, y, z), z-scored; background (0) stays 0.
        sample: B sample numbers.
        radii: smallest and largest half-axis in voxels, drawn uniformly in the logarithm.
        strength: smallest and largest difference to the surroundings, in standard deviations of the scan; the sign is drawn.
        seed, purpose: name the draw.

    Returns:
        Images, and (B, 1, x, y, z) levels in [0, 1], 1/2 at an ellipsoid's surface.
    """
    size = image.shape[2:]
    axes = [torch.arange(n, dtype=torch.float32, device=image.device) + 0.5 for n in size]
    levels, changes = [], []
    for row, number in zip(image, sample, strict=True):
        generator = seeds.torch_generator(seed, purpose, number)
        u = torch.rand((MOST, 9), generator=generator)
        count = 0 if u[0, 8] < 0.5 else 1 + int(u[1, 8] * MOST)
        level, change = torch.zeros_like(row), torch.zeros_like(row)
        spread = row.std()
        for centre, radius, (amount, sign) in zip(u[:count, :3], u[:count, 3:6], u[:count, 6:8], strict=True):
            half = radii[0] * (radii[1] / radii[0]) ** radius
            square = sum(
                ((axis - centre[k] * size[k]) / half[k]).square().view([-1 if n == k else 1 for n in range(3)])
                for k, axis in enumerate(axes)
            )
            here = torch.sigmoid(4 * (1 - torch.as_tensor(square).sqrt()))[None]
            height = (strength[0] + float(amount) * (strength[1] - strength[0])) * (1 if sign < 0.7 else -1)
            level = torch.maximum(level, here)
            change = torch.where(here >= level, height * here, change)
        levels.append(level * (row != 0))
        changes.append(row + change * spread * (row != 0))
    return torch.stack(changes), torch.stack(levels)


class LesionHead(nn.Module):
    """(B, C, x, y, z) channels -> (B, x, y, z) logits of a lesion in each cell.

    Channels are normalised over scans and cells of the batch first: without it, what all share drowns a lesion, in values and in gradients.
    """

    def __init__(self, inputs: int, hidden: int = 32) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs, affine=False)
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, part: Tensor) -> Tensor:
        """Every cell by itself."""
        rows = part.float().flatten(2).mT.flatten(0, 1)  # (B * cells, C)
        return self.mlp(self.norm(rows)).view(part.shape[0], *part.shape[2:])


def lesion_error(logits: Tensor, levels: Tensor, edge: int, least: float) -> Tensor:
    """Cross-entropy of lesion or not, cells with and without weighing alike; a scalar, 0 where one of the two is missing.

    Args:
        logits: (B, x', y', z'); cells that lie wholly beyond the scans, where a net fills up to its coarsest stride, do not count.
        levels: (B, 1, x, y, z) of :func:`with_lesions`.
        edge: of a cell in voxels.
        least: a cell holds a lesion from this many voxels; with fewer, but some, it does not count.
    """
    end = [(-extent) % edge for extent in levels.shape[2:]]
    filled = functional.pad((levels > 0.5).float(), (0, end[2], 0, end[1], 0, end[0]))
    voxels = functional.avg_pool3d(filled, edge)[:, 0] * edge**3
    x, y, z = voxels.shape[1:]
    logits = logits[:, :x, :y, :z]
    ill, well = voxels >= least, voxels == 0
    each = functional.binary_cross_entropy_with_logits(logits, ill.to(logits.dtype), reduction="none")
    means = [(each * kind).sum() / kind.sum().clamp(min=1) for kind in (ill, well)]
    return sum(means) / 2 * (ill.any() & well.any())  # as a product, since a GPU would have to be waited for to ask
