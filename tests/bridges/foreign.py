"""Checkpoints as other frameworks write them, of small plain nets that bear their names and compute their own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Parts(nn.Module):
    """A module that only holds others."""

    stages: Any
    transpconvs: Any
    seg_layers: Any


def shaken(net: nn.Module) -> nn.Module:
    """With norms and biases away from 1 and 0."""
    torch.manual_seed(5)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval()


# ------------------------------------------------------------------------------------------------- residual-encoder U-Nets


class ListedTwice(nn.Module):
    """Convolution, norm and, at times, activation, which the library holds by name and in a sequence."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.all_modules = nn.Sequential(self.conv, self.norm, *([nn.LeakyReLU(0.01)] if active else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class Chain(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ListedTwice(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ListedTwice(inputs, outputs, stride=stride), ListedTwice(outputs, outputs, active=False)
        self.skip = nn.Sequential(nn.AvgPool3d(stride, stride) if stride > 1 else nn.Identity())
        if inputs != outputs:
            self.skip.append(ListedTwice(inputs, outputs, kernel=1, bias=False, active=False))

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), 0.01)


class ResidualStage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(ResidualBlock(outputs if n else inputs, outputs, 1 if n else stride) for n in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResidualUNet(nn.Module):
    """With or without skips; ``forward`` gives the finest output."""

    def __init__(self, features: Sequence[int], blocks: Sequence[int], skips: bool = True) -> None:
        super().__init__()
        f, self.skips = features, skips
        self.encoder, self.decoder = Parts(), Parts()
        self.encoder.stem = Chain(1, f[0])
        self.encoder.stages = nn.Sequential(
            *(ResidualStage(f[max(0, n - 1)], f[n], blocks[n], 2 if n else 1) for n in range(len(f)))
        )
        self.decoder.encoder = self.encoder
        pairs = list(zip(f[:0:-1], f[-2::-1], strict=True))
        self.decoder.transpconvs = nn.ModuleList(nn.ConvTranspose3d(below, here, 2, 2) for below, here in pairs)
        self.decoder.stages = nn.ModuleList(Chain(here * (2 if skips else 1), here) for _, here in pairs)
        if skips:
            self.decoder.seg_layers = nn.ModuleList(nn.Conv3d(here, 1, 1) for _, here in pairs)
        else:
            self.decoder.seg_layer = nn.Conv3d(f[0], 1, 1)

    def maps(self, x: Tensor) -> list[Tensor]:
        x, found = self.encoder.stem(x), []
        for stage in self.encoder.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        x = maps[-1]
        for step, (up, stage) in enumerate(zip(self.decoder.transpconvs, self.decoder.stages, strict=True)):
            x = up(x)
            x = stage(torch.cat([x, maps[-2 - step]], 1) if self.skips else x)
        return (self.decoder.seg_layers[-1] if self.skips else self.decoder.seg_layer)(x)


FEATURES, BLOCKS = (4, 8, 8), (1, 2, 1)


def nnssl_plan(**changes: Any) -> dict[str, Any]:
    """The plan of a small residual U-Net, with changes to its architecture's settings."""
    settings = {
        "n_stages": 3, "features_per_stage": list(FEATURES), "n_blocks_per_stage": list(BLOCKS), "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "n_conv_per_stage_decoder": [1, 1], "conv_bias": True,
        "conv_op": "torch.nn.modules.conv.Conv3d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": "torch.nn.modules.activation.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        "dropout_op": None, "dropout_op_kwargs": None,
    }  # fmt: skip
    return {
        "architecture_plans": {"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": settings | changes},
        "pretrain_plan": {
            "dataset_name": "Dataset745_OpenMind", "configurations": {"onemmiso": {"spacing_style": "onemmiso", "spacing": [4, 4, 4]}},
        },
        "pretrain_num_input_channels": 1, "recommended_downstream_patchsize": (16, 16, 16), "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem", "keys_to_in_proj": ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"), "key_to_lpe": None,
    }  # fmt: skip


def nnssl_checkpoint(net: nn.Module, path: Path, plan: dict[str, Any] | None = None, **changes: Any) -> Path:
    """As nnssl saves one, with a loss of numpy's in it as older versions have; what is changed to None is left out."""
    content = {
        "network_weights": net.state_dict(), "optimizer_state": {"state": {}}, "logging": {"val_losses": [np.float64(0.1), np.float32(0.2)]},
        "current_epoch": 1000, "init_args": {"device": torch.device("cpu")}, "trainer_name": "BaseMAETrainer",
        "nnssl_adaptation_plan": plan or nnssl_plan(),
    } | changes  # fmt: skip
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


# ------------------------------------------------------------------------------------------------------ the FOMO25 winner's


class Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), 0.01)


class Layers(nn.Module):
    def __init__(self, inputs: int, outputs: int, number: int) -> None:
        super().__init__()
        for n in range(number):
            self.add_module(f"conv{n + 1}", Layer(outputs if n else inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class PlainUNet(nn.Module):
    """Five levels; with halves it is the winner's, without them the organisers'."""

    def __init__(self, width: int = 2, halves: bool = True, decoder_convolutions: int = 1, skips: bool = False) -> None:
        super().__init__()
        f = [width * 2**n for n in range(5)]
        self.encoder, self.decoder = Parts(), Parts()
        self.skips = skips
        for level, here in enumerate(f):
            self.encoder.add_module(f"encoder_conv{level}" if level else "in_conv", Layers(f[level - 1] if level else 1, here, 2))
        for step, (below, here) in enumerate(zip(f[:0:-1], f[-2::-1], strict=True), 1):
            self.decoder.add_module(f"upsample{step}", nn.ConvTranspose3d(below, here, 2, 2))
            self.decoder.add_module(f"decoder_conv{step}", Layers(here * (2 if skips else 1), here, decoder_convolutions))
        self.decoder.out_conv = nn.Conv3d(width, 1, 1)
        if halves:
            for what in ("mu_shared", "logvar_shared", "mu_modality", "logvar_modality"):
                self.add_module(f"conv_{what}", nn.Conv3d(sum(f), f[-1] // 2, 1))

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for level in range(5):
            x = self.encoder.get_submodule(f"encoder_conv{level}" if level else "in_conv")(
                functional.max_pool3d(x, 2) if level else x
            )
            found.append(x)
        return found

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the shared and the other half."""
        maps = self.maps(x)
        pooled = torch.cat([functional.adaptive_avg_pool3d(m, maps[-1].shape[2:]) for m in maps], 1)
        return self.conv_mu_shared(pooled), self.conv_mu_modality(pooled)

    def decode(self, code: Tensor, maps: Sequence[Tensor] = ()) -> Tensor:
        x = code
        for step in range(1, 5):
            x = self.decoder.get_submodule(f"upsample{step}")(x)
            x = self.decoder.get_submodule(f"decoder_conv{step}")(torch.cat([x, maps[4 - step]], 1) if self.skips else x)
        return self.decoder.out_conv(x)


def fomo_checkpoint(net: nn.Module, path: Path, compiled: bool = False, **more: Tensor) -> Path:
    """As Lightning saves one."""
    prefix = "model._orig_mod." if compiled else "model."
    state = {prefix + name: value for name, value in (net.state_dict() | more).items()}
    torch.save(
        {
            "epoch": 99, "global_step": 5000, "pytorch-lightning_version": "2.5.0", "state_dict": state, "loops": {}, "callbacks": {},
            "optimizer_states": [], "lr_schedulers": [], "hparams_name": "kwargs",
            "hyper_parameters": {"model_name": "mmunetvae", "patch_size": (32, 32, 32), "config": {"batch_size": 2}},
        }, path,
    )  # fmt: skip
    return path
