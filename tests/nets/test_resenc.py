"""The residual-encoder U-Net against the library that checkpoints come from."""

from __future__ import annotations

import pytest
import torch

from neuroprior.nets import resenc

L = resenc.Config(split="channels")


def test_size_l_has_102_million_parameters() -> None:
    with torch.device("meta"):
        net = resenc.ResEnc(L)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(102, rel=0.01)


def test_a_size_names_values_that_can_be_overridden() -> None:
    assert resenc.Config(size="S").features == (16, 32, 64, 128, 160, 160)
    assert resenc.Config.model_validate({"size": "M", "blocks": (1, 1, 1, 1, 1, 1)}).blocks == (1,) * 6
    with pytest.raises(ValueError, match="one number a stage"):
        resenc.Config.model_validate({"features": (4, 8), "blocks": (1, 1, 1)})


@pytest.mark.parametrize("size", [(32, 32, 64), (64, 32, 96), (33, 40, 57)])
@pytest.mark.parametrize("features", [(32, 64, 128, 256, 320, 320), (8, 16, 24, 24, 40, 40)])
def test_outputs_equal_the_librarys_with_the_same_weights(features: tuple[int, ...], size: tuple[int, int, int]) -> None:
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet",
        reason="dynamic-network-architectures is not installed (pip install --no-deps dynamic-network-architectures==0.4.4)",
    )
    torch.manual_seed(0)
    blocks = (1, 3, 4, 6, 6, 6)
    other = unet.ResidualEncoderUNet(
        1, 6, features, torch.nn.Conv3d, 3, (1, 2, 2, 2, 2, 2), blocks, 1, (1,) * 5, conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    ).eval()  # fmt: skip
    for parameter in other.parameters():  # norms and biases away from 1 and 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours = resenc.build(resenc.Config(features=features, blocks=blocks)).eval()
    theirs = other.state_dict()
    ours.load_state_dict({name: theirs[name] for name in ours.state_dict()}, strict=True)
    image = torch.randn(1, 1, *size)
    full = torch.nn.functional.pad(image, [side for n in reversed(size) for side in (0, -n % 32)])
    with torch.no_grad():
        expected = other(full)[..., : size[0], : size[1], : size[2]]
        got = ours.reconstruct(ours.encode(image), size)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        # channels-last sums run in another order, and where a deep map has two voxels the net magnifies any rounding: in float64
        ours.double().lay_out(torch.device("cpu"), torch.channels_last_3d)
        expected = other.double()(full.double())[..., : size[0], : size[1], : size[2]]
        got = ours.reconstruct(ours.encode(image.double()), size)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-8)
