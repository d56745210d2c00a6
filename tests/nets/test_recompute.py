"""Computing maps again changes nothing but what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuroprior.core.errors import ConfigError
from neuroprior.engine.device import set_recompute
from neuroprior.nets import resenc, unet, vit
from neuroprior.objectives import cross_contrast, mae


def nets(name: str, skips: bool) -> Any:
    torch.manual_seed(0)
    if name == "unet":
        return unet.build(unet.Config(features=(8, 8, 16), convolutions=2, latent=4, skips=skips))
    return resenc.build(resenc.Config(features=(8, 8, 16), blocks=(1, 2, 1), split="variational", latent=4, skips=skips))


def learned(net: Any, x: Tensor, levels: int) -> tuple[list[Tensor], int]:
    """Reconstruction and all gradients, and how often the finest level was computed."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    finest = net.encoder[0] if isinstance(net, unet.UNet) else net.encoder.stages[0]
    hook = finest.register_forward_pre_hook(count)
    set_recompute(nn.ModuleList([net]), levels)
    y = net.reconstruct(net.encode(x), x.shape[2:])
    found = torch.autograd.grad(y.square().sum(), list(net.parameters()), allow_unused=True)
    hook.remove()
    return [y, *(torch.zeros(()) if g is None else g for g in found)], calls


@pytest.mark.parametrize("name", ["unet", "resenc"])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("levels", [1, 9])
def test_the_same_numbers_bit_for_bit(name: str, skips: bool, levels: int) -> None:
    net, x = nets(name, skips), torch.randn(2, 1, 12, 8, 9)
    kept, once = learned(net, x, 0)
    again, twice = learned(net, x, levels)
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    with torch.no_grad():
        assert torch.equal(net.reconstruct(net.encode(x), x.shape[2:]), kept[0])


def test_less_is_kept() -> None:
    """Bytes that autograd holds after a forward pass, each storage once."""

    def held(levels: int) -> int:
        net, x = nets("resenc", True), torch.randn(1, 1, 32, 32, 32)
        set_recompute(net, levels)
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net.reconstruct(net.encode(x), x.shape[2:]).square().sum()
        found = sum(seen.values())
        del loss
        return found

    assert held(2) < 0.6 * held(0)


def test_objectives_and_nets_that_cannot() -> None:
    for objective in (
        mae.build(nets("resenc", True), mae.Config(block=4)),
        cross_contrast.build(nets("unet", False), cross_contrast.Config(block=4)),
    ):
        set_recompute(objective, 3)
        assert objective.net.recompute == 3
    transformer = vit.build(vit.Config(token=4, width=24, depth=1, heads=2, decoder_width=24, decoder_depth=1, decoder_heads=2))
    set_recompute(transformer, 0)
    with pytest.raises(ConfigError, match="keeps all its maps"):
        set_recompute(transformer, 1)
