"""Changes of intensity, each a function of the sample number; nothing moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..core import seeds


def disturbed(image: Tensor, sample: Sequence[int], strength: float, *, seed: int, purpose: str) -> Tensor:
    """Scans with a random smooth gain, contrast curve, blur and noise; background (0) stays 0.

    Args:
        image: (B, 1, x, y, z), z-scored.
        sample: B sample numbers.
        strength: standard deviation of the log gain; the rest scales with it. 0 changes nothing.
        seed, purpose: name the draw.
    """
    if not strength:
        return image
    out = []
    for row, number in zip(image, sample, strict=True):
        generator = seeds.torch_generator(seed, purpose, number)
        coarse = torch.randn((1, 1, 3, 3, 3), generator=generator) * strength
        field = functional.interpolate(coarse, size=row.shape[1:], mode="trilinear", align_corners=True)[0].to(
            row.device, non_blocking=True
        )
        power, blur, noise, offset = torch.rand(4, generator=generator).tolist()
        x = row * field.exp()
        x = x.sign() * x.abs().clamp(min=1e-6) ** (1 + strength * (2 * power - 1))
        smooth = functional.avg_pool3d(x[None], 3, stride=1, padding=1)[0]
        share = min(1.0, 2 * strength * blur)
        x = (1 - share) * x + share * smooth + strength * (2 * offset - 1)
        x = x + 0.5 * strength * noise * torch.randn(row.shape, generator=generator).to(row.device, non_blocking=True)
        out.append(torch.where(row == 0, torch.zeros_like(x), x))
    return torch.stack(out)
