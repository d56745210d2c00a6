"""The FOMO25 winner's plain U-Net, shared by all contrasts, with a variational split of its pooled stages.

Gordaliza, Banus et al., "From 100,000+ images to winning the first brain MRI foundation model challenges" (arXiv
2601.13166). Five levels of 32-64-128-256-512 features, two 3x3x3 convolutions a level in the encoder and one in the
decoder, 2x2x2 max pooling, InstanceNorm (affine), LeakyReLU 0.01, one input channel. All levels are average-pooled to the
bottleneck's grid and concatenated (992 channels); four 1x1x1 convolutions give mean and log-variance of an anatomy and
a contrast half of 256 channels each. While pretraining there are no skip connections: everything must pass the halves.

Departures:

- Other splits are offered beside the variational one (``nets/_split``).
- Any input size: it is padded with zeros at its far end to a multiple of the coarsest stride, and the output cut back.
- Skips are added by surgery (:func:`with_skips`): the convolution after each upsampling is widened with zero weights, so
  that the widened net first computes exactly what the pretrained one did.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..core.representation import Representation, both_halves
from ._fused import norm_act
from ._grid import cut, padded
from ._layout import LaidOut, alike, convolved
from ._recompute import run
from ._split import SplitConfig, represent, restored


class Config(SplitConfig):
    """Settings of the U-Net."""

    features: tuple[int, ...] = Field(default=(32, 64, 128, 256, 512), min_length=2)
    """Channels of each level, finest first."""
    convolutions: int = Field(default=2, ge=1)
    """Convolutions a level in the encoder; the decoder has one."""
    skips: bool = False
    """Whether the decoder's convolutions take skip connections."""


class Block(nn.Module):
    """3x3x3 convolution, InstanceNorm, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.norm = nn.InstanceNorm3d(outputs, affine=True)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, C, x, y, z), and the other channels where there are some, -> (B, outputs, x, y, z)."""
        return norm_act(convolved(x, self.conv, skip), self.norm)


class UNet(LaidOut):
    """The network; see the shelf's docstring for what it answers."""

    about = "plain U-Net; anatomy and contrast halves from all pooled levels (variational), or no split"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.recompute = 0
        f = config.features
        self.stage_channels: tuple[int, ...] = f
        self.stage_strides: tuple[int, ...] = tuple(2**level for level in range(len(f)))
        self.feature_channels: int = f[0]
        self.encoder = nn.ModuleList(
            nn.Sequential(*(Block(before if n == 0 else here, here) for n in range(config.convolutions)))
            for before, here in zip((1, *f[:-1]), f, strict=True)
        )
        self.anatomy_channels, self.contrast_channels = config.halves(f[-1])
        self.latent = config.latents(sum(f))
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        below = self.anatomy_channels + self.contrast_channels
        for here in reversed(f[:-1]):
            self.up.append(nn.ConvTranspose3d(below, here, 2, stride=2))
            self.decoder.append(Block(here * (2 if config.skips else 1), here))
            below = here
        self.out = nn.Conv3d(f[0], 1, 1)

    def code_grid(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Cells of both halves for an input of ``size`` voxels."""
        stride = self.stage_strides[-1]
        x, y, z = (-(-int(n) // stride) for n in size)
        return x, y, z

    def encode(self, x: Tensor, noise: tuple[Tensor, Tensor] | None = None, hidden: Tensor | None = None) -> Representation:
        """The representation of (B, 1, x, y, z) scans.

        Args:
            x: conformed intensities.
            noise: standard normal tensors for the anatomy and the contrast half; None gives the means.
            hidden: (B, 1, x, y, z) bool, voxels that the net must not see: they are set to 0.
        """
        x = padded(x if hidden is None else x.masked_fill(hidden, 0.0), self.stage_strides[-1])
        x = self.laid(x)
        stages: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = run(
                level < self.recompute, lambda x, level=level, block=block: block(functional.max_pool3d(x, 2) if level else x), x
            )
            stages.append(x)
        return represent(self.config, self.latent, stages, noise, masked=hidden is not None)

    def halves(self, stages: Sequence[Tensor]) -> Representation:
        """The representation of an encoder's stages, of whole scans; running statistics stay as they are."""
        return represent(self.config, self.latent, stages, None, masked=True)

    def decode_features(self, stages: Sequence[Tensor], code: Tensor, skips: bool, maps: list[Tensor] | None = None) -> Tensor:
        """The decoder's finest feature map (B, C0, x, y, z) on the padded grid of ``stages``.

        Args:
            stages: the encoder's maps; only used with ``skips``.
            code: (B, Ca + Cc, x, y, z), the two halves concatenated.
            skips: whether the stages are joined in; the net must have been built or widened for them. A net with skips
                can decode without: the skip channels are then left out of its convolutions.
            maps: takes the decoder's maps, coarsest first, where given (deep supervision).
        """
        x = self.laid(restored(self.latent, code))
        for step in range(len(self.up)):
            level = len(self.up) - 1 - step
            x = run(level < self.recompute, partial(self._up, step), x, *([stages[level]] if skips else ()))
            if maps is not None:
                maps.append(x)
        return x

    def _up(self, step: int, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """One level of the decoder."""
        return self.decoder[step](alike(self.up[step](x), x), skip)

    def decode(self, anatomy: Tensor, contrast: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The reconstruction (B, 1, x, y, z) from the two halves, without skips, cut to ``size`` where given."""
        x = self.out(self.decode_features((), both_halves(anatomy, contrast), skips=False))
        return x if size is None else cut(x, size)

    def reconstruct(self, representation: Representation, size: Sequence[int]) -> Tensor:
        """The scan (B, 1, x, y, z) from its representation, with skip connections where the net has them."""
        code = both_halves(representation.anatomy, representation.contrast)
        return cut(self.out(self.decode_features(representation.stages, code, skips=self.config.skips)), size)


def build(config: Config) -> UNet:
    """A freshly initialised net (PyTorch's default initialisation, from torch's current random state)."""
    return UNet(config)


def with_skips(net: UNet) -> UNet:
    """A net whose decoder takes skip connections and, at first, computes what ``net`` computes.

    The weights of the new channels are zero. ``net`` is left as it was; a net that has skips already is returned as it is.
    """
    if net.config.skips:
        return net
    wide = UNet(net.config.model_copy(update={"skips": True}))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for step in range(len(net.decoder)):
        key = f"decoder.{step}.conv.weight"
        state[key] = torch.cat([state[key], torch.zeros_like(state[key])], 1)
    wide.load_state_dict(state, strict=True)
    return wide
