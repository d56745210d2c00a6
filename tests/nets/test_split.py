"""Halves read from all stages: on which grid each lies, what a cell sees, and that everything downstream takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from neuroprior.core.representation import Representation, both_halves
from neuroprior.core.shelf import load
from neuroprior.heads import cellwise, pooled, segmentation

NETS: dict[str, dict[str, Any]] = {
    "unet": {"features": (4, 6, 8), "convolutions": 1},
    "resenc": {"features": (4, 6, 8), "blocks": (1, 1, 1)},
}
SPLIT = {"split": "stages", "latent": 5, "contrast_pool": "both"}


def made(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    module = load("nets", name)
    return module.build(module.Config.model_validate({**NETS[name], **SPLIT, **settings})).eval()


def image(n: int = 1) -> torch.Tensor:
    return torch.randn(n, 1, 16, 20, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_contrast_half_may_have_smaller_cells(name: str) -> None:
    code = made(name).encode(image())
    assert code.anatomy.shape[2:] == code.contrast.shape[2:] == (4, 5, 3)
    finer = made(name, contrast_finer=1).encode(image())
    assert finer.anatomy.shape == code.anatomy.shape
    assert finer.contrast.shape == (1, 5, 8, 10, 6)
    torch.testing.assert_close(finer.anatomy, code.anatomy)  # the same weights: only the contrast half's grid differs


def test_a_cell_sees_means_and_largest_values_of_finer_stages_and_its_place_in_coarser_ones() -> None:
    net = made("unet", contrast_finer=1)
    code = net.encode(image())
    stages = [stage[0].detach().numpy() for stage in code.stages]
    weight, bias = (p.detach().numpy() for p in (net.latent["contrast"].weight, net.latent["contrast"].bias))
    for x, y, z in ((0, 0, 0), (3, 7, 5), (7, 9, 1)):
        block = stages[0][:, 2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
        same, coarse = stages[1][:, x, y, z], stages[2][:, x // 2, y // 2, z // 2]
        seen = np.concatenate([block.mean((1, 2, 3)), same, coarse, block.max((1, 2, 3)), same, coarse])
        expected = weight[:, :, 0, 0, 0] @ seen + bias
        np.testing.assert_allclose(code.contrast[0, :, x, y, z].detach().numpy(), expected, atol=1e-5)


def test_joined_halves_lie_on_the_anatomys_grid() -> None:
    anatomy, contrast = torch.randn(2, 3, 2, 3, 2), torch.randn(2, 4, 4, 6, 4)
    got = both_halves(anatomy, contrast)
    assert torch.equal(got[:, :3], anatomy)
    np.testing.assert_allclose(got[1, 5, 1, 2, 0].numpy(), contrast[1, 2, 2:4, 4:6, 0:2].mean().numpy(), rtol=1e-5)
    assert torch.equal(both_halves(anatomy, contrast[:, :, :2, :3, :2]), torch.cat([anatomy, contrast[:, :, :2, :3, :2]], 1))


@pytest.mark.parametrize("name", sorted(NETS))
def test_nets_and_heads_take_a_finer_contrast_half(name: str) -> None:
    net = made(name, contrast_finer=1)
    module = load("nets", name)
    code = net.encode(image(3))
    assert (
        net.reconstruct(code, (16, 20, 12)).shape
        == net.decode(code.anatomy, code.contrast, (16, 20, 12)).shape
        == (3, 1, 16, 20, 12)
    )
    case, contrast = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    common: Any = {
        "contrasts": ("T1w", "FLAIR"),
        "anatomy_channels": net.anatomy_channels,
        "contrast_channels": net.contrast_channels,
    }
    for head, settings in ((cellwise, {"stage_channels": net.stage_channels}), (pooled, {})):
        built: Any = head.build(head.Config.model_validate({**common, "outputs": 2, **settings})).eval()
        assert built(net, code, case, contrast, 2).shape == (2, 2)
    wide = module.with_skips(net)
    masks: Any = segmentation.build(
        segmentation.Config.model_validate({"contrasts": ("T1w", "FLAIR"), "features": net.feature_channels, "classes": 2})
    )
    assert masks(wide, wide.encode(image(3)), case, contrast, 2).shape == (2, 2, 16, 20, 12)


def test_halves_of_given_stages_are_those_of_the_scan() -> None:
    net = made("unet", contrast_finer=1, summary=3)
    code: Representation = net.encode(image(2))
    again = net.halves(code.stages)
    torch.testing.assert_close(again.anatomy, code.anatomy)
    torch.testing.assert_close(again.contrast, code.contrast)
    before = net.latent["summary"].norm.running_mean.clone()
    net.train().halves(code.stages)
    assert torch.equal(before, net.latent["summary"].norm.running_mean)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"net\.split=stages"):
        made("unet", split="channels", contrast_pool="mean", contrast_finer=1)
    with pytest.raises(ValueError, match="3 stages"):
        made("unet", contrast_finer=3).encode(image())
