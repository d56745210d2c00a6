"""Masked autoencoding against its definition."""

from __future__ import annotations

import numpy as np
import torch

from neuroprior.data.records import PairBatch
from neuroprior.nets import unet
from neuroprior.objectives import mae
from neuroprior.objectives._masking import block_mask


def test_the_loss_is_the_squared_error_of_hidden_voxels() -> None:
    torch.manual_seed(0)
    net = unet.build(unet.Config(features=(4, 8), split="none"))
    image = torch.randn(2, 1, 8, 8, 8)
    data = PairBatch(
        image_a=image, image_b=image, paired=[True, True], contrast_a=["T1w"] * 2, contrast_b=["T2w"] * 2,
        subject=["s"] * 2, sample=[0, 1],
    )  # fmt: skip
    config = mae.Config(block=4, both=False)
    got = float(mae.build(net, config)(data, seed=4)["loss"].detach())
    mask = block_mask(data["sample"], (8, 8, 8), 4, 0.75, seed=4, purpose="mask a")
    code = net.encode(torch.where(mask, torch.zeros(()), image))
    guess = net.decode(code.anatomy, code.contrast, (8, 8, 8)).detach().numpy()
    expected = np.mean([((guess[k] - image.numpy()[k]) ** 2)[mask.numpy()[k]].mean() for k in range(2)])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_mask_hides_the_stated_share_in_whole_blocks() -> None:
    mask = block_mask(range(3), (16, 12, 9), 4, 0.75, seed=0, purpose="x")[:, 0]
    cells = mask[:, ::4, ::4, ::4]
    assert [int(cell.sum()) for cell in cells] == [27] * 3  # 0.75 of 4 x 3 x 3 blocks
    assert torch.equal(cells.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :9], mask)
    assert not torch.equal(mask[0], mask[1])
