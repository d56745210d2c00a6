"""The FOMO25 winner's plain U-Net, shared by all contrasts, with a variational split of its pooled stages.

Gordaliza, Banus et al., "From 100,000+ images to winning the first brain MRI foundation model challenges" (arXiv
2601.13166). Five levels of 32-64-128-256-512 features, two 3x3x3 convolutions a level in the encoder and one in the
decoder, 2x2x2 max pooling, InstanceNorm (affine), LeakyReLU 0.01, one input channel. All levels are average-pooled to the
bottleneck's grid and concatenated (992 channels); four 1x1x1 convolutions give mean and log-variance of an anatomy and
a contrast half of 256 channels each. While pretraining there are no skip connections: everything must pass the halves.

Departures:

- ``split="none"`` gives the bottleneck itself to the anatomy half and nothing to the contrast half (plain baselines).
- Any input size: it is padded with zeros at its far end to a multiple of the coarsest stride, and the output cut back.
- Skips are added by surgery (:func:`with_skips`): the convolution after each upsampling is widened with zero weights, so
  that the widened net first computes exactly what the pretrained one did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..core.config import Config as BaseConfig
from ..core.representation import Representation


class Config(BaseConfig):
    """Settings of the U-Net."""

    features: tuple[int, ...] = Field(default=(32, 64, 128, 256, 512), min_length=2)
    """Channels of each level, finest first."""
    convolutions: int = Field(default=2, ge=1)
    """Convolutions a level in the encoder; the decoder has one."""
    split: Literal["variational", "none"] = "variational"
    """How the representation is split."""
    latent: int = Field(default=256, ge=1)
    """Channels of each half of a variational split."""
    skips: bool = False
    """Whether the decoder's convolutions take skip connections."""


class Block(nn.Module):
    """3x3x3 convolution, InstanceNorm, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.norm = nn.InstanceNorm3d(outputs, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, x, y, z) -> (B, outputs, x, y, z)."""
        return functional.leaky_relu_(self.normalise(self.conv(x)), 0.01)

    def normalise(self, x: Tensor) -> Tensor:
        """InstanceNorm; a map of a single voxel has no spread to divide by and is only scaled and shifted."""
        if x[0, 0].numel() > 1:
            return self.norm(x)
        return x * self.norm.weight.view(1, -1, 1, 1, 1) + self.norm.bias.view(1, -1, 1, 1, 1)


class UNet(nn.Module):
    """The network; see the shelf's docstring for what it answers."""

    about = "plain U-Net; anatomy and contrast halves from all pooled levels (variational), or no split"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        f = config.features
        self.stage_channels: tuple[int, ...] = f
        self.stage_strides: tuple[int, ...] = tuple(2**level for level in range(len(f)))
        self.encoder = nn.ModuleList(
            nn.Sequential(*(Block(before if n == 0 else here, here) for n in range(config.convolutions)))
            for before, here in zip((1, *f[:-1]), f, strict=True)
        )
        if config.split == "variational":
            self.anatomy_channels, self.contrast_channels = config.latent, config.latent
            self.latent = nn.ModuleDict(
                {
                    name: nn.Conv3d(sum(f), config.latent, 1)
                    for name in ("anatomy_mean", "anatomy_logvar", "contrast_mean", "contrast_logvar")
                }
            )
        else:
            self.anatomy_channels, self.contrast_channels = f[-1], 0
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        below = self.anatomy_channels + self.contrast_channels
        for here in reversed(f[:-1]):
            self.up.append(nn.ConvTranspose3d(below, here, 2, stride=2))
            self.decoder.append(Block(here * (2 if config.skips else 1), here))
            below = here
        self.out = nn.Conv3d(f[0], 1, 1)

    def code_shape(self, size: Sequence[int]) -> tuple[int, int, int, int]:
        """(channels, x, y, z) of each half for an input of ``size`` voxels."""
        stride = self.stage_strides[-1]
        x, y, z = (-(-int(n) // stride) for n in size)
        return self.anatomy_channels, x, y, z

    def encode(self, x: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> Representation:
        """The representation of (B, 1, x, y, z) scans.

        Args:
            x: conformed intensities.
            noise: standard normal tensors for the anatomy and the contrast half; None gives the means.
        """
        stride = self.stage_strides[-1]
        pad = [(-n) % stride for n in x.shape[2:]]
        if any(pad):
            x = functional.pad(x, (0, pad[2], 0, pad[1], 0, pad[0]))
        stages: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(functional.max_pool3d(x, 2) if level else x)
            stages.append(x)
        if self.config.split == "none":
            return Representation(x, x[:, :0], tuple(stages))
        last = len(stages) - 1
        pooled = torch.cat([functional.avg_pool3d(s, 2 ** (last - n)) if n < last else s for n, s in enumerate(stages)], 1)
        am, al, cm, cl = (
            self.latent[name](pooled) for name in ("anatomy_mean", "anatomy_logvar", "contrast_mean", "contrast_logvar")
        )
        anatomy, contrast = am, cm
        if noise is not None:
            anatomy = am + torch.exp(0.5 * al) * noise[0].to(am.dtype)
            contrast = cm + torch.exp(0.5 * cl) * noise[1].to(cm.dtype)
        return Representation(anatomy, contrast, tuple(stages), am, al, cm, cl)

    def decode_features(self, stages: Sequence[Tensor], code: Tensor, skips: bool) -> Tensor:
        """The decoder's finest feature map (B, C0, x, y, z) on the padded grid of ``stages`` (see :meth:`cut`).

        Args:
            stages: the encoder's maps; only used with ``skips``.
            code: (B, Ca + Cc, x, y, z), the two halves concatenated.
            skips: whether the stages are joined in; the net must have been built or widened for them. A net with skips
                can decode without: the skip channels are then left out of its convolutions.
        """
        x = code
        for step, (up, block) in enumerate(zip(self.up, self.decoder, strict=True)):
            x = up(x)
            if skips:
                x = block(torch.cat([x, stages[-2 - step]], 1))
            elif self.config.skips:
                assert isinstance(block, Block)
                narrow = functional.conv3d(x, block.conv.weight[:, : x.shape[1]], block.conv.bias, padding=1)
                x = functional.leaky_relu_(block.normalise(narrow), 0.01)
            else:
                x = block(x)
        return x

    def decode(self, anatomy: Tensor, contrast: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The reconstruction (B, 1, x, y, z) from the two halves, without skips, cut to ``size`` where given."""
        x = self.out(self.decode_features((), torch.cat([anatomy, contrast], 1), skips=False))
        return x if size is None else cut(x, size)


def cut(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first ``size`` voxels along each spatial axis: undoes the padding of :meth:`UNet.encode`."""
    return x[..., : size[0], : size[1], : size[2]]


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
