"""How far apart the contrasts lie in a half: squared distances of their means, and a kernel's view of the rest.

The maximum mean discrepancy (Gretton et al. 2012, JMLR 13:723) between the scans of each contrast and all others, unbiased (a
scan is never compared with its own subject's), place by place, on features standardised over the batch so that shrinking them does not
help. Kernels: the product (means alone: what a linear reader needs) and Gaussians of three widths around the median distance
(after Long et al. 2015, arXiv 1502.02791). Against a classifier whose gradient is reversed, there is nothing that must learn
first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDTHS = (0.5, 1.0, 2.0)
"""Of the Gaussians, in medians of the squared distances."""


def contrast_gap(half: Tensor, names: Sequence[str], subjects: Sequence[str]) -> Tensor:
    """The mean over contrasts of the discrepancy between its scans and the others; about 0 where they are told apart by nothing.

    Args:
        half: (B, C, x, y, z) features.
        subjects: B names; two scans of one subject are never compared, for they are alike whatever the contrast.
        names: B contrasts; one with fewer than two scans, or that leaves fewer than two others, is not compared.

    Returns:
        A scalar, at least about minus 1 by chance (the estimate is unbiased, so it may be negative); 0 where nothing is compared.
    """
    rows = half.float().flatten(2).permute(2, 0, 1)  # (places, B, C)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-3)
    product = rows @ rows.transpose(1, 2) / rows.shape[2]  # (places, B, B)
    square = product.diagonal(dim1=1, dim2=2)
    distance = (square[:, :, None] + square[:, None, :] - 2 * product).clamp(min=0)
    other = torch.tensor([[a != b for b in subjects] for a in subjects], device=half.device)
    if not bool(other.any()):
        return half.sum() * 0.0
    median = distance.detach()[:, other].median(1).values.clamp(min=1e-6)[:, None, None]
    kernel = product + torch.stack([torch.exp(-distance / (width * median)) for width in WIDTHS]).sum(0)
    found = []
    for name in sorted(set(names)):
        mine = torch.tensor([n == name for n in names], device=half.device)
        sides = (mine[:, None] & mine[None], ~mine[:, None] & ~mine[None], mine[:, None] & ~mine[None])
        pairs = [(side & other).float() for side in sides]
        if all(bool(pair.any()) for pair in pairs):
            within, rest, across = ((kernel * pair).sum((1, 2)) / pair.sum() for pair in pairs)
            found.append((within + rest - 2 * across).mean())
    return torch.stack(found).mean() if found else half.sum() * 0.0
