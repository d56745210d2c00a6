"""How much the anatomy halves of two scans of one subject agree: four published forms, one number a batch or a sample.

- ``cosine``: 1 - cos of the flattened halves (Gordaliza, Banus et al., arXiv 2601.13166). Its optimum is reached by one
  direction for all subjects, and it goes there.
- ``centred_cosine``: the same after the batch's mean has been taken off, so that a direction common to all subjects counts
  for nothing.
- ``dense_infonce``: at each cell of the aligned grid, the partner's cell against the same place in other subjects' scans
  (van den Oord et al. 2018, arXiv 1807.03748; the place-wise form after O. Pinheiro et al. 2020, arXiv 2011.05499).
- ``vicreg``: squared distance of the pair, a hinge on each channel's standard deviation, squared covariances of channels
  (Bardes et al. 2022, arXiv 2105.04906, weights 25, 25, 1).

All but ``cosine`` compare subjects within the batch: scans of one subject are never each other's negatives, a scan without a
partner carries no term, and with fewer than two subjects that have a pair the term is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Agreement = Literal["cosine", "centred_cosine", "dense_infonce", "vicreg"]
"""The forms of the term."""


def agreement(
    form: Agreement, a: Tensor, b: Tensor, paired: Sequence[bool], subject: Sequence[str], *, temperature: float = 0.1
) -> Tensor:
    """The term over a batch, a scalar; lower is more alike.

    Args:
        form: which.
        a, b: (B, C, x, y, z) halves of the two scans, any real values.
        paired: B times whether ``b`` is another scan than ``a``.
        subject: B names; equal names are never contrasted.
        temperature: of ``dense_infonce``.
    """
    a, b = a.float(), b.float()
    if form == "cosine":
        return ((1 - flat_cosine(a, b)) * torch.tensor(paired).to(a.device, a.dtype, non_blocking=True)).sum() / a.shape[0]
    numbers = [n for n, other in enumerate(paired) if other]
    names = [subject[n] for n in numbers]
    if len(set(names)) < 2:
        return (a.sum() + b.sum()) * 0.0
    chosen = torch.tensor(numbers).to(a.device, non_blocking=True)
    a, b = a[chosen], b[chosen]
    if form == "vicreg":
        return vicreg(a.mean((2, 3, 4)), b.mean((2, 3, 4)))
    mean = torch.cat([a, b]).mean(0, keepdim=True)
    a, b = a - mean, b - mean
    if form == "centred_cosine":
        return (1 - flat_cosine(a, b)).mean()
    return dense_infonce(a, b, names, temperature)


def flat_cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,) cosine similarity of flattened halves."""
    return functional.cosine_similarity(a.float().flatten(1), b.float().flatten(1), dim=1)


def dense_infonce(a: Tensor, b: Tensor, names: Sequence[str], temperature: float) -> Tensor:
    """Mean over cells and over both directions of -log of the partner's softmax share among same-place cells.

    Args:
        a, b: (B, C, x, y, z), centred.
        names: B subjects.
        temperature: divides the cosines.
    """
    rows = functional.normalize(torch.cat([a, b]).flatten(2), dim=1)  # (2B, C, cells)
    similarity = torch.einsum("ncp,mcp->pnm", rows, rows) / temperature  # (cells, 2B, 2B)
    n = a.shape[0]
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    who = torch.tensor([number[name] for name in (*names, *names)]).to(a.device, non_blocking=True)
    rank = torch.arange(2 * n, device=a.device)
    partner = rank.roll(n)
    allowed = (who[:, None] != who[None, :]) | (partner[:, None] == rank[None, :])
    similarity = similarity.masked_fill(~allowed, float("-inf"))
    target = partner.expand(similarity.shape[0], -1)
    return functional.cross_entropy(similarity.flatten(0, 1), target.flatten())


def vicreg(a: Tensor, b: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Tensor:
    """The VICReg loss of two (B, D) views, B of 2 or more."""

    def spread(x: Tensor) -> Tensor:
        return functional.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()

    def mixed(x: Tensor) -> Tensor:
        x = x - x.mean(0)
        c = x.T @ x / (x.shape[0] - 1)
        return (c - torch.diag(torch.diagonal(c))).square().sum() / x.shape[1]

    same = functional.mse_loss(a, b)
    return invariance * same + variance * (spread(a) + spread(b)) / 2 + covariance * (mixed(a) + mixed(b))
