"""Low-rank adapters on convolutions and linear layers (LoRA, Hu et al. 2022, arXiv 2106.09685), merged into the weights when saved.

The weight W (out, ...) becomes W + (alpha / rank) U D with U (out, rank) zero at first and D (rank, ...) random, by torch's
parametrisations: the layer's own code is untouched, a resumed run finds W, U and D apart, and a saved model has one weight again.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)
"""What gets adapters."""


class LowRank(nn.Module):
    """The parametrisation of one weight.

    Args:
        weight: the weight that is adapted.
        rank: of the change.
        alpha: the change is scaled by ``alpha / rank``.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.scale = alpha / rank
        self.up = nn.Parameter(weight.new_zeros((rows, rank)))
        self.down = nn.Parameter(torch.randn((rank, columns), dtype=weight.dtype, device=weight.device) / math.sqrt(columns))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def adapt(net: nn.Module, rank: int, alpha: float) -> int:
    """Put adapters on every layer of ``net`` in place; the net first computes what it computed. Returns how many numbers they have.

    Randomness: torch's global generator, as for initial weights.
    """
    added = 0
    for module in list(net.modules()):
        if isinstance(module, LAYERS) and not parametrize.is_parametrized(module):
            change = LowRank(module.weight, rank, alpha)
            parametrize.register_parametrization(module, "weight", change)
            added += sum(p.numel() for p in change.parameters())
    return added


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is one of an adapter's."""
    return "parametrizations.weight.0." in name


def merged(net: nn.Module) -> nn.Module:
    """A copy of the net with the adapters added into its weights, or the net itself where it has none."""
    if not any(parametrize.is_parametrized(module) for module in net.modules()):
        return net
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return net
