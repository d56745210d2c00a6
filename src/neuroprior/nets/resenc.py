"""ResEnc: the residual-encoder U-Net of nnU-Net and nnssl, with a split of its bottleneck's channels.

Isensee et al., "nnU-Net Revisited" (arXiv 2404.09556); used by the SSL3D winner (Gordaliza, Banus et al., arXiv
2601.13166). Size L: six stages of 32-64-128-256-320-320 features and 1-3-4-6-6-6 residual blocks (two 3x3x3 convolutions,
InstanceNorm affine with eps 1e-5, LeakyReLU 0.01; the first block of a stage halves the grid by a strided convolution, its
shortcut by average pooling), one convolution a decoder stage, skip connections; 102 M parameters.

Parameters bear the names of the ResidualEncoderUNet family (``encoder.stem.convs.0.conv``, ``encoder.stages.N.blocks.M.conv1.conv``,
``decoder.transpconvs.N``, ``decoder.stages.N.convs.0.conv``, ``decoder.seg_layers.N``).

Departures: only the finest ``seg_layers`` exists, as the reconstruction; input sizes that are no multiple of the coarsest
stride are padded; sizes S and M are ours, fewer features or blocks of the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.representation import Representation, both_halves
from ._fused import SLOPE, norm_act
from ._grid import cut, padded
from ._layout import LaidOut, MeanPool, alike, convolved
from ._recompute import run
from ._split import SplitConfig, represent, restored

SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "S": ((16, 32, 64, 128, 160, 160), (1, 2, 2, 3, 3, 3)),
    "M": ((32, 64, 128, 256, 320, 320), (1, 2, 2, 3, 3, 3)),
    "L": ((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)),
}
"""Size -> features and residual blocks of each stage, finest first."""


class Config(SplitConfig):
    """Settings of the residual-encoder U-Net."""

    size: Literal["S", "M", "L"] = "L"
    """Names ``features`` and ``blocks`` where they are not given."""
    features: tuple[int, ...] = Field(default=SIZES["L"][0], min_length=2)
    """Channels of each stage, finest first."""
    blocks: tuple[int, ...] = Field(default=SIZES["L"][1], min_length=2)
    """Residual blocks of each stage."""
    split: Literal["variational", "stages", "channels", "none"] = "channels"
    """How the representation is split."""
    skips: bool = True
    """Whether the decoder takes skip connections."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, dict):
            features, blocks = SIZES.get(values.get("size", "L"), SIZES["L"])
            if "features" not in values:
                values = values | {"features": features}
            if "blocks" not in values:
                values = values | {"blocks": blocks[: len(values["features"])]}
        return values

    @model_validator(mode="after")
    def _equal(self) -> Config:
        if len(self.features) != len(self.blocks):
            raise ValueError(f"features and blocks must have one number a stage, not {len(self.features)} and {len(self.blocks)}")
        return self


class ConvNorm(nn.Module):
    """Convolution, InstanceNorm and, if wanted, LeakyReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.active = active

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, C, x, y, z), and the other channels where there are some, -> (B, outputs, x', y', z')."""
        return self.after(convolved(x, self.conv, skip))

    def after(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Norm and activation of the convolution's output; a shortcut is added between the two and then always activated."""
        return norm_act(x, self.norm, SLOPE if self.active or shortcut is not None else 1.0, shortcut)


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, stride=stride)
        self.conv2 = ConvNorm(outputs, outputs, active=False)
        self.skip = nn.Sequential(MeanPool(stride) if stride > 1 else nn.Identity())
        if inputs != outputs:
            self.skip.append(ConvNorm(inputs, outputs, kernel=1, bias=False, active=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, x, y, z) -> (B, outputs, x / stride, ...)."""
        shortcut = self.skip(x)
        return self.conv2.after(convolved(self.conv1(x), self.conv2.conv), shortcut)


class Convolutions(nn.Module):
    """A named list of one convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNorm(inputs, outputs))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, C, x, y, z), and the other channels where there are some, -> (B, outputs, x, y, z)."""
        return self.convs[0](x, skip)


class Stage(nn.Module):
    """The residual blocks of one resolution."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(Residual(inputs if n == 0 else outputs, outputs, stride if n == 0 else 1) for n in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, x, y, z) -> (B, outputs, x / stride, ...)."""
        return self.blocks(x)


class Encoder(nn.Module):
    """Stem and stages."""

    def __init__(self, features: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = Convolutions(1, features[0])
        self.stages = nn.ModuleList(
            Stage(features[max(0, n - 1)], features[n], blocks[n], 1 if n == 0 else 2) for n in range(len(features))
        )

    def forward(self, x: Tensor, recompute: int = 0) -> list[Tensor]:
        """The stages' maps, finest first."""
        maps: list[Tensor] = []
        for level, stage in enumerate(self.stages):
            x = run(level < recompute, stage if level else lambda x, stage=stage: stage(self.stem(x)), x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Transposed convolutions, one convolution a stage, and the output layer."""

    def __init__(self, code: int, features: Sequence[int], skips: bool) -> None:
        super().__init__()
        below = (code, *reversed(features[1:-1]))
        here = tuple(reversed(features[:-1]))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(b, h, 2, stride=2) for b, h in zip(below, here, strict=True))
        self.stages = nn.ModuleList(Convolutions(h * (2 if skips else 1), h) for h in here)
        self.seg_layers = nn.ModuleDict({str(len(here) - 1): nn.Conv3d(here[-1], 1, 1)})

    @property
    def out(self) -> nn.Module:
        """The output layer."""
        return next(iter(self.seg_layers.values()))


class ResEnc(LaidOut):
    """The network; see the shelf's docstring for what it answers."""

    about = "residual-encoder U-Net of nnU-Net and nnssl; the bottleneck's channels are split"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.recompute = 0
        f = config.features
        self.stage_channels: tuple[int, ...] = f
        self.stage_strides: tuple[int, ...] = tuple(2**level for level in range(len(f)))
        self.feature_channels: int = f[0]
        self.anatomy_channels, self.contrast_channels = config.halves(f[-1])
        self.encoder = Encoder(f, config.blocks)
        self.latent = config.latents(sum(f))
        self.decoder = Decoder(self.anatomy_channels + self.contrast_channels, f, config.skips)

    def code_grid(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Cells of both halves for an input of ``size`` voxels."""
        x, y, z = (-(-int(n) // self.stage_strides[-1]) for n in size)
        return x, y, z

    def encode(self, x: Tensor, noise: tuple[Tensor, Tensor] | None = None, hidden: Tensor | None = None) -> Representation:
        """The representation of (B, 1, x, y, z) scans; ``hidden`` voxels are set to 0."""
        x = padded(x if hidden is None else x.masked_fill(hidden, 0.0), self.stage_strides[-1])
        x = self.laid(x)
        return represent(self.config, self.latent, self.encoder(x, self.recompute), noise, masked=hidden is not None)

    def halves(self, stages: Sequence[Tensor]) -> Representation:
        """The representation of an encoder's stages, of whole scans; running statistics stay as they are."""
        return represent(self.config, self.latent, stages, None, masked=True)

    def decode_features(self, stages: Sequence[Tensor], code: Tensor, skips: bool, maps: list[Tensor] | None = None) -> Tensor:
        """The decoder's finest feature map (B, features[0], x, y, z) on the padded grid.

        Args:
            stages: the encoder's maps; only used with ``skips``.
            code: (B, Ca + Cc, x, y, z), the two halves concatenated.
            skips: whether the stages are joined in; the net must have been built or widened for them. A net with skips
                can decode without: the skip channels are then left out of its convolutions.
            maps: takes the decoder's maps, coarsest first, where given (deep supervision).
        """
        x = self.laid(restored(self.latent, code))
        steps = len(self.decoder.stages)
        for step in range(steps):
            level = steps - 1 - step
            x = run(level < self.recompute, partial(self._up, step), x, *([stages[level]] if skips else ()))
            if maps is not None:
                maps.append(x)
        return x

    def _up(self, step: int, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """One level of the decoder."""
        return self.decoder.stages[step](alike(self.decoder.transpconvs[step](x), x), skip)

    def decode(self, anatomy: Tensor, contrast: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The reconstruction (B, 1, x, y, z) from the two halves, without skips, cut to ``size`` where given."""
        x = self.decoder.out(self.decode_features((), both_halves(anatomy, contrast), skips=False))
        return x if size is None else cut(x, size)

    def reconstruct(self, representation: Representation, size: Sequence[int]) -> Tensor:
        """The scan (B, 1, x, y, z) from its representation, with skip connections where the net has them."""
        code = both_halves(representation.anatomy, representation.contrast)
        return cut(self.decoder.out(self.decode_features(representation.stages, code, skips=self.config.skips)), size)


def build(config: Config) -> ResEnc:
    """A freshly initialised net (Kaiming normal for convolutions, biases 0, as nnU-Net does), from torch's random state."""
    net = ResEnc(config)
    for module in net.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def with_skips(net: ResEnc) -> ResEnc:
    """A net whose decoder takes skip connections and, at first, computes what ``net`` computes.

    The weights of the new channels are zero. ``net`` is left as it was; a net that has skips already is returned as it is.
    """
    if net.config.skips:
        return net
    wide = ResEnc(net.config.model_copy(update={"skips": True}))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for step in range(len(net.decoder.stages)):
        key = f"decoder.stages.{step}.convs.0.conv.weight"
        state[key] = torch.cat([state[key], torch.zeros_like(state[key])], 1)
    wide.load_state_dict(state, strict=True)
    return wide
