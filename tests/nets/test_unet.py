"""The paper's net and its surgery."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuroprior.nets import unet


def millions(*parts: nn.Module) -> float:
    return sum(p.numel() for part in parts for p in part.parameters()) / 1e6


def test_the_papers_net_has_its_parameters() -> None:
    net = unet.build(unet.Config())
    assert millions(net) == pytest.approx(18.9, rel=0.01)
    assert millions(net.encoder) == pytest.approx(14.13, rel=0.01)
    assert millions(net.up, net.decoder, net.out) == pytest.approx(3.74, rel=0.01)
    assert millions(net.latent) == pytest.approx(1.02, rel=0.01)
    assert sum(net.stage_channels) == 992


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    net = unet.build(unet.Config(features=(4, 8, 16), latent=6))
    shape = (6, *net.code_grid((8, 8, 8)))
    code = net.encode(torch.randn(2, 1, 8, 8, 8), (torch.randn(2, *shape), torch.randn(2, *shape)))
    net.decode(code.anatomy, code.contrast).square().mean().backward()
    # a bias before InstanceNorm has, by definition, no effect
    silent = [n for n, p in net.named_parameters() if p.grad is None or (not p.grad.any() and not n.endswith("conv.bias"))]
    assert not silent


def test_skips_change_nothing_at_first_and_learn_then() -> None:
    torch.manual_seed(0)
    net = unet.build(unet.Config(features=(4, 8, 16), latent=6)).eval()
    wide = unet.with_skips(net)
    code = net.encode(torch.randn(1, 1, 8, 8, 8))
    joined = torch.cat([code.anatomy, code.contrast], 1)
    torch.testing.assert_close(
        wide.decode_features(code.stages, joined, skips=True), net.decode_features((), joined, skips=False)
    )
    torch.testing.assert_close(wide.decode(code.anatomy, code.contrast), net.decode(code.anatomy, code.contrast))
    wide.decode_features(code.stages, joined, skips=True).square().mean().backward()
    first = wide.decoder[0]
    assert isinstance(first, unet.Block)
    gradient = first.conv.weight.grad
    assert gradient is not None
    assert gradient[:, 8:].any()
    assert unet.with_skips(wide) is wide
    assert not net.config.skips


def test_the_mean_is_used_without_noise_and_a_sample_with_it() -> None:
    torch.manual_seed(0)
    net = unet.build(unet.Config(features=(4, 8), latent=3))
    x = torch.randn(1, 1, 8, 8, 8)
    shape = (3, *net.code_grid((8, 8, 8)))
    plain = net.encode(x)
    assert torch.equal(plain.anatomy, plain.anatomy_mean)
    noisy = net.encode(x, (torch.ones(1, *shape), torch.zeros(1, *shape)))
    assert plain.anatomy_mean is not None
    assert plain.anatomy_logvar is not None
    torch.testing.assert_close(noisy.anatomy, plain.anatomy_mean + torch.exp(0.5 * plain.anatomy_logvar))
    torch.testing.assert_close(noisy.contrast, plain.contrast_mean)
