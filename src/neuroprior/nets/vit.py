"""ViT: a 3-D vision transformer for masked autoencoding, in which hidden tokens never enter the encoder.

Dosovitskiy et al. 2021 (arXiv 2010.11929); He et al. 2022 (arXiv 2111.06377). The scan is cut into tokens of ``token``^3
voxels, each gets a linear embedding and a fixed sine-cosine code of its place; the visible ones pass through pre-norm
transformer blocks. Reconstruction: hidden places are filled with one learned token, a light transformer sees all, and a
linear layer gives each token's voxels.

Departures: places are coded in three dimensions and for any grid; the encoder's output is laid back on the grid (zeros where
hidden, see ``Representation.visible``) and split into halves like every other net's code; a sample may hide another number of
tokens than its neighbour (short rows are filled up and masked in attention); segmentation decodes the grid by transposed
convolutions, since a plain transformer has no finer stages to skip from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ..core.representation import Representation
from ._grid import cut, padded
from ._split import SplitConfig, represent

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
"""Size -> width, depth, heads."""


class Config(SplitConfig):
    """Settings of the vision transformer."""

    size: Literal["S", "B", "L"] = "B"
    """Names ``width``, ``depth`` and ``heads`` where they are not given."""
    token: int = Field(default=16, ge=2)
    """Edge of a token in voxels; a power of two."""
    width: int = Field(default=768, ge=6)
    """Channels of a token."""
    depth: int = Field(default=12, ge=1)
    """Blocks of the encoder."""
    heads: int = Field(default=12, ge=1)
    """Attention heads of the encoder; a divisor of ``width``."""
    decoder_width: int = Field(default=192, ge=6)
    """Channels of the reconstructing transformer."""
    decoder_depth: int = Field(default=4, ge=1)
    """Blocks of the reconstructing transformer."""
    decoder_heads: int = Field(default=6, ge=1)
    """Attention heads of the reconstructing transformer."""
    features: int = Field(default=32, ge=1)
    """Channels of the finest map that segmentation decodes; they double with each coarser one."""
    split: Literal["variational", "stages", "channels", "none"] = "none"
    """How the representation is split."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, dict):
            sizes = SIZES.get(values.get("size", "B"), SIZES["B"])
            values = dict(zip(("width", "depth", "heads"), sizes, strict=True)) | values
        return values

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if self.token & (self.token - 1):
            raise ValueError(f"token must be a power of two, not {self.token}")
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % heads:
                raise ValueError(f"a width of {width} cannot be shared by {heads} heads")
        if self.summary or self.contrast_pool != "mean" or self.refined:
            raise ValueError(
                "net.summary, net.contrast_pool and net.refined need a net with several stages: net.name=unet or resenc"
            )
        return self


class ViT(nn.Module):
    """The network; see the shelf's docstring for what it answers."""

    about = "vision transformer on tokens; hidden tokens never enter the encoder"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.stage_channels: tuple[int, ...] = (config.width,)
        self.stage_strides: tuple[int, ...] = (config.token,)
        self.feature_channels: int = config.features
        self.anatomy_channels, self.contrast_channels = config.halves(config.width)
        code = self.anatomy_channels + self.contrast_channels
        self.embed = nn.Conv3d(1, config.width, config.token, stride=config.token)
        self.encoder = _blocks(config.width, config.depth, config.heads)
        self.latent = config.latents(config.width)
        self.widen = nn.Linear(code, config.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(config.decoder_width))
        self.decoder = _blocks(config.decoder_width, config.decoder_depth, config.decoder_heads)
        self.voxels = nn.Linear(config.decoder_width, config.token**3)
        ups: list[nn.Module] = []
        below = code
        for level in reversed(range(config.token.bit_length() - 1)):
            here = config.features * 2**level
            ups += [nn.ConvTranspose3d(below, here, 2, stride=2), nn.InstanceNorm3d(here, affine=True), nn.LeakyReLU(0.01)]
            below = here
        self.up = nn.Sequential(*ups)

    def code_grid(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Cells of both halves for an input of ``size`` voxels: the tokens."""
        x, y, z = (-(-int(n) // self.config.token) for n in size)
        return x, y, z

    def encode(self, x: Tensor, noise: tuple[Tensor, Tensor] | None = None, hidden: Tensor | None = None) -> Representation:
        """The representation of (B, 1, x, y, z) scans on the grid of tokens.

        Args:
            x: conformed intensities.
            noise: standard normal tensors for the anatomy and the contrast half; None gives the means.
            hidden: (B, 1, x, y, z) bool, voxels that the net must not see: their tokens are left out.

        Raises:
            ValueError: a token is hidden in part, or a sample has no visible token.
        """
        if hidden is not None:
            x = x.masked_fill(hidden, 0.0)
        tokens = self.embed(padded(x, self.config.token))  # (B, W, gx, gy, gz)
        grid = tokens.shape[2:]
        rows = tokens.flatten(2).transpose(1, 2) + positions(grid, self.config.width, tokens)
        if hidden is None:
            visible, rows = None, self.encoder(rows)
        else:
            visible, in_part = self._visible(hidden)
            seen = visible.flatten(1)  # (B, T)
            # how many rows are kept is a shape: a GPU is waited for here, once
            torn, least, most = torch.stack([in_part.to(torch.int64), *seen.sum(1).aminmax()]).tolist()
            if torn:
                raise ValueError(
                    f"a token is hidden in part: objective.block must be a multiple of net.token ({self.config.token})"
                )
            if least == 0:
                raise ValueError("a sample has no visible token: lower objective.ratio")
            order = torch.argsort(seen.to(torch.uint8), dim=1, descending=True, stable=True)[:, :most]
            index = order.unsqueeze(2).expand(-1, -1, rows.shape[2])
            absent = ~torch.gather(seen, 1, order)  # what fills up the short rows
            out = self.encoder(torch.gather(rows, 1, index), src_key_padding_mask=absent if least < most else None)
            out = out.masked_fill(absent.unsqueeze(2), 0.0)
            rows = torch.zeros(rows.shape, dtype=out.dtype, device=out.device).scatter(1, index, out)
        code = rows.transpose(1, 2).reshape(tokens.shape)
        return represent(self.config, self.latent, [code], noise, visible)

    def _visible(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, gx, gy, gz) bool from the voxels' mask, and whether any token is hidden in part."""
        token = self.config.token
        filled = [(-n) % token for n in hidden.shape[2:]]
        edge = (0, filled[2], 0, filled[1], 0, filled[0])
        share = functional.avg_pool3d(functional.pad(hidden.float(), edge), token)
        inside = functional.avg_pool3d(functional.pad(torch.ones_like(hidden, dtype=torch.float32), edge), token)
        share = share / inside
        return share < 0.5, ((share > 1e-4) & (share < 1 - 1e-4)).any()

    def halves(self, stages: Sequence[Tensor]) -> Representation:
        """The representation of an encoder's stages, of whole scans; running statistics stay as they are."""
        return represent(self.config, self.latent, stages, None, masked=True)

    def decode_features(self, stages: Sequence[Tensor], code: Tensor, skips: bool) -> Tensor:
        """A finest feature map (B, features, x, y, z) from the code by transposed convolutions; there are no stages to skip from."""
        return self.up(code)

    def decode(self, anatomy: Tensor, contrast: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The reconstruction (B, 1, x, y, z) from two halves without hidden cells, cut to ``size`` where given."""
        return self._voxels(torch.cat([anatomy, contrast], 1), None, size)

    def reconstruct(self, representation: Representation, size: Sequence[int]) -> Tensor:
        """The scan (B, 1, x, y, z) from its representation; hidden cells get the mask token."""
        return self._voxels(torch.cat([representation.anatomy, representation.contrast], 1), representation.visible, size)

    def _voxels(self, code: Tensor, visible: Tensor | None, size: Sequence[int] | None) -> Tensor:
        c, grid = self.config, code.shape[2:]
        rows = self.widen(code.flatten(2).transpose(1, 2))
        if visible is not None:
            rows = torch.where(visible.flatten(1).unsqueeze(2), rows, self.mask_token.to(rows.dtype))
        rows = self.decoder(rows + positions(grid, c.decoder_width, rows))
        blocks = self.voxels(rows).view(-1, *grid, c.token, c.token, c.token)
        out = blocks.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, 1, *(n * c.token for n in grid))
        return out if size is None else cut(out, size)


def positions(grid: Sequence[int], width: int, like: Tensor) -> Tensor:
    """(1, x*y*z, width) sine and cosine of each cell's place, a third of the channels an axis; the last few may be 0."""
    per_axis = width // 6
    frequency = torch.exp(-math.log(10000.0) * torch.arange(per_axis, device=like.device) / max(1, per_axis))
    axes = torch.meshgrid(*(torch.arange(n, device=like.device, dtype=torch.float32) for n in grid), indexing="ij")
    parts = [wave(axis.flatten()[:, None] * frequency) for axis in axes for wave in (torch.sin, torch.cos)]
    table = torch.cat(parts, 1)
    return functional.pad(table, (0, width - table.shape[1])).to(like.dtype).unsqueeze(0)


def _blocks(width: int, depth: int, heads: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)


def build(config: Config) -> ViT:
    """A freshly initialised net (linear weights truncated normal 0.02, biases 0), from torch's current random state."""
    net = ViT(config)
    for module in (net.encoder, net.decoder, net.widen, net.voxels):
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
    nn.init.normal_(net.mask_token, std=0.02)
    return net


def with_skips(net: ViT) -> ViT:
    """The net itself: it has no finer stages to skip from."""
    return net
