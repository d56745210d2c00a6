"""Segmentation head: each contrast is decoded with skip connections, then the contrasts are fused by learned weights.

After the FOMO25 winner's fine-tuning (Gordaliza, Banus et al., arXiv 2601.13166): the decoder is shared by all
contrasts, and logits are summed with softmax weights learned a contrast. The weights are normalised over the contrasts
that a case has, so any subset can be trained on and predicted from. The net's decoder must take skips
(``nets.<name>.with_skips``).

Deep supervision (``levels``): each coarser map of the decoder gets a 1x1x1 convolution of its own while training; a prediction uses
the finest alone.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig
from ..core.representation import Representation, both_halves
from ._ragged import mean_by_case, softmax_by_case, sum_by_case


class Config(BaseConfig):
    """Settings of the segmentation head."""

    contrasts: tuple[str, ...] = Field(min_length=1)
    """Canonical names the head knows, in the order of their numbers."""
    features: int = Field(ge=1)
    """Channels of the decoder's finest feature map."""
    classes: int = Field(ge=2)
    """Number of classes, background (class 0) included."""
    levels: tuple[int, ...] = ()
    """Channels of the decoder's coarser maps that are supervised too, finest first; empty for none."""


class SegmentationHead(nn.Module):
    """(B, classes, x, y, z) logits on the input grid."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Conv3d(config.features, config.classes, 1)
        self.fusion = nn.Parameter(torch.zeros(len(config.contrasts)))
        self.coarser = nn.ModuleList(nn.Conv3d(channels, config.classes, 1) for channels in config.levels)

    def forward(self, net: nn.Module, representation: Representation, case: Tensor, contrast: Tensor, n_cases: int) -> Tensor:
        """(n_cases, classes, x, y, z); the shelf's docstring explains the ragged batch."""
        features = net.decode_features(representation.stages, self._code(representation, case, n_cases), skips=True)
        return self._fused(self.logits(features), case, contrast, n_cases)

    def deep(self, net: nn.Module, representation: Representation, case: Tensor, contrast: Tensor, n_cases: int) -> list[Tensor]:
        """The output of :meth:`forward`, then of every coarser level: (n_cases, classes, x / 2^k, y / 2^k, z / 2^k)."""
        maps: list[Tensor] = []
        net.decode_features(representation.stages, self._code(representation, case, n_cases), skips=True, maps=maps)
        finest, *coarser = reversed(maps)
        layers = zip((self.logits, *self.coarser), (finest, *coarser), strict=False)
        return [self._fused(layer(features), case, contrast, n_cases) for layer, features in layers]

    def _code(self, representation: Representation, case: Tensor, n_cases: int) -> Tensor:
        anatomy = mean_by_case(representation.anatomy, case, n_cases)[case]
        return both_halves(anatomy, representation.contrast)

    def _fused(self, logits: Tensor, case: Tensor, contrast: Tensor, n_cases: int) -> Tensor:
        weight = softmax_by_case(self.fusion[contrast], case, n_cases).to(logits.dtype)
        return sum_by_case(logits * weight.view(-1, 1, 1, 1, 1), case, n_cases)


def build(config: Config) -> SegmentationHead:
    """The head of a config."""
    return SegmentationHead(config)
