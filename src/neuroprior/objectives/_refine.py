"""A linear map of the anatomy half, in closed form: directions in which subjects differ and the scans of one subject do not.

Fisher's discriminant with within-class covariance normalisation, as speaker recognition has long ended its pipelines (Hatch et al. 2006,
WCCN; Dehak et al. 2011): of pairs (a, b) of one subject at one place of the grid, the covariance within is that of (a - b) / sqrt 2 and the
covariance between is what it leaves of the total; directions with the largest ratio are kept, each scaled to a variance within of 1. The
contrasts' means are weighed on top, towards a linear erasure of the contrast (Belrose et al. 2023, LEACE, arXiv 2306.03819): where they are
equal at every place, no linear reader finds it *in the scans the map was fitted on*. It is done after the fact and says nothing of
non-linear readers; judge it on other subjects, with several readers. The map is one for all places, a 1x1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Refinement:
    """z = weight x + offset, and x ~ inverse z + mean; directions that are not kept are rows and columns of zeros.

    Attributes:
        weight, inverse: (C, C).
        offset, mean: (C,).
        ratio: (C,) variance between over variance within of every direction, falling.
    """

    weight: Tensor
    offset: Tensor
    inverse: Tensor
    mean: Tensor
    ratio: Tensor


def fit_refinement(pairs: Tensor, names: Sequence[tuple[str, str]], keep: int, contrast_weight: float) -> Refinement:
    """The map from pairs.

    Args:
        pairs: (N, 2, C, P) features of two scans of a subject at P places, float64.
        names: N pairs of contrasts.
        keep: directions kept.
        contrast_weight: how much the scatter of the contrasts' means weighs beside the covariance within.

    Raises:
        ValueError: fewer than two pairs.
    """
    if len(pairs) < 2:
        raise ValueError(f"a refinement needs at least two pairs of scans; there are {len(pairs)}")
    c = pairs.shape[2]
    mean = pairs.mean((0, 1, 3))
    x = pairs - pairs.mean((0, 1), keepdim=True)  # each place about its own mean
    rows = x.permute(0, 1, 3, 2)  # (N, 2, P, C)
    total = _covariance(rows.reshape(-1, c))
    within = _covariance((rows[:, 0] - rows[:, 1]).reshape(-1, c)) / 2
    flat = [name for pair in names for name in pair]
    scans = rows.flatten(0, 1)  # (2N, P, C)
    means = torch.zeros(c, c, dtype=x.dtype)
    for name in sorted(set(flat)):
        mine = torch.tensor([n == name for n in flat])
        centre = scans[mine].mean(0)
        means += mine.double().mean() * centre.T @ centre / centre.shape[0]
    floor = 1e-6 * torch.trace(total) / c * torch.eye(c, dtype=x.dtype)
    against = within + contrast_weight * means + floor
    values, vectors = torch.linalg.eigh(against)
    white = vectors / values.sqrt()  # against^(-1/2), columns
    ratio, turned = torch.linalg.eigh(white.T @ (total - within) @ white)
    order = torch.argsort(ratio, descending=True)
    directions = (white @ turned)[:, order]  # columns; directions^T against directions = 1
    back = torch.linalg.inv(directions).T  # columns
    kept = (torch.arange(c) < keep).to(x.dtype)
    weight = (directions * kept).T
    return Refinement(weight, -weight @ mean, back * kept, mean, ratio[order])


def _covariance(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)
