"""Every net on the shelf, with every split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from neuroprior.core import shelf

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"features": (4, 8, 16)},
    "resenc": {"features": (4, 8, 16), "blocks": (1, 2, 1)},
    "vit": {"token": 4, "width": 24, "depth": 2, "heads": 2, "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2, "features": 4},
}  # fmt: skip


@pytest.fixture(params=shelf.names("nets"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, split: str) -> nn.Module:
    torch.manual_seed(0)
    module = shelf.load("nets", name)
    return module.build(module.Config.model_validate({**SMALL.get(name, {}), "split": split, "latent": 6}))


@pytest.mark.parametrize("split", ["variational", "stages", "channels", "none"])
@pytest.mark.parametrize("size", [(16, 16, 16), (13, 16, 9), (5, 24, 7), (4, 4, 4)])
def test_any_size_is_encoded_and_decoded(name: str, split: str, size: tuple[int, int, int]) -> None:
    net: Any = build(name, split)
    code = net.encode(torch.randn(2, 1, *size))
    assert code.anatomy.shape == (2, net.anatomy_channels, *net.code_grid(size))
    assert code.contrast.shape == (2, net.contrast_channels, *net.code_grid(size))
    assert (net.contrast_channels == 0) == (split == "none")
    assert net.decode(code.anatomy, code.contrast, size).shape == (2, 1, *size)
    assert net.reconstruct(code, size).shape == (2, 1, *size)
    joined = torch.cat([code.anatomy, code.contrast], 1)
    assert net.decode_features(code.stages, joined, skips=net.config.skips if hasattr(net.config, "skips") else False).shape[
        1
    ] == (net.feature_channels)
    for stage, channels in zip(code.stages, net.stage_channels, strict=True):
        assert stage.shape[1] == channels


def test_a_split_by_channels_is_a_cut_of_the_code(name: str) -> None:
    net: Any = build(name, "channels")
    code = net.encode(torch.randn(1, 1, 8, 8, 8))
    assert torch.equal(torch.cat([code.anatomy, code.contrast], 1), code.stages[-1])
    assert net.anatomy_channels == net.stage_channels[-1] // 2


def test_every_parameter_learns(name: str) -> None:
    net: Any = build(name, "variational")
    half = (2, 6, *net.code_grid((8, 8, 8)))
    hidden = torch.zeros(2, 1, 8, 8, 8, dtype=torch.bool)
    hidden[:, :, :4] = True
    code = net.encode(torch.randn(2, 1, 8, 8, 8), (torch.randn(half), torch.randn(half)), hidden)
    features = net.decode_features(
        code.stages, torch.cat([code.anatomy, code.contrast], 1), skips=getattr(net.config, "skips", False)
    )
    (net.reconstruct(code, (8, 8, 8)).square().mean() + (features * torch.randn_like(features)).mean()).backward()
    # a bias before InstanceNorm has, by definition, no effect; nor has what adds the same to every key of an attention
    exempt = (".conv.bias", "up.0.bias", "up.3.bias", "in_proj_bias")
    silent = [n for n, p in net.named_parameters() if p.grad is None or (not p.grad.any() and not n.endswith(exempt))]
    assert not silent


def test_hidden_voxels_do_not_matter(name: str) -> None:
    net: Any = build(name, "channels")
    image, hidden = torch.randn(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    hidden[..., 4:] = True
    a = net.reconstruct(net.encode(image, hidden=hidden), (8, 8, 8))
    b = net.reconstruct(net.encode(image + hidden * 50, hidden=hidden), (8, 8, 8))
    assert torch.equal(a, b)


def test_skips_change_nothing_at_first(name: str) -> None:
    module, net = shelf.load("nets", name), build(name, "channels")
    small: Any = module.build(net.config.model_copy(update={"skips": False})) if hasattr(net.config, "skips") else net
    wide = module.with_skips(small)
    code = small.encode(torch.randn(1, 1, 8, 8, 8))
    joined = torch.cat([code.anatomy, code.contrast], 1)
    torch.testing.assert_close(
        wide.decode_features(code.stages, joined, skips=True), small.decode_features(code.stages, joined, skips=False)
    )
    assert module.with_skips(wide) is wide
