"""The transformer: hidden tokens stay out."""

from __future__ import annotations

import pytest
import torch

from neuroprior.nets import vit
from neuroprior.objectives._masking import block_mask

SMALL = vit.Config(token=4, width=24, depth=2, heads=2, decoder_width=12, decoder_depth=1, decoder_heads=2, features=4)


def test_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        encoders = [vit.ViT(vit.Config.model_validate({"size": size})).encoder for size in "SBL"]
    # Dosovitskiy et al., table 1: B 86 M, L 307 M; Touvron et al.: S 22 M, each with an embedding of about 1 M
    for encoder, millions in zip(encoders, (21.3, 85.1, 302.3), strict=True):
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_what_is_hidden_cannot_be_seen() -> None:
    torch.manual_seed(0)
    net = vit.build(SMALL).eval()
    image = torch.randn(2, 1, 12, 16, 8)
    hidden = block_mask(torch.arange(2), (12, 16, 8), 4, 0.6, seed=0, purpose="test")
    seen = []
    net.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    code = net.encode(image, hidden=hidden)
    assert seen == [24 - round(0.6 * 24)]
    other = net.encode(torch.where(hidden, torch.randn_like(image) * 100, image), hidden=hidden)
    assert torch.equal(code.anatomy, other.anatomy)
    assert code.visible is not None
    assert torch.equal(code.visible, ~hidden[:, :, ::4, ::4, ::4])
    assert not code.anatomy[~code.visible.expand_as(code.anatomy)].any()
    assert net.reconstruct(code, (12, 16, 8)).shape == image.shape


def test_rows_of_unequal_length_equal_each_alone() -> None:
    torch.manual_seed(0)
    net = vit.build(SMALL)  # in training mode: no fast path
    image = torch.randn(2, 1, 8, 8, 8)
    hidden = torch.zeros(2, 1, 8, 8, 8, dtype=torch.bool)
    hidden[0, :, :4] = True
    hidden[1, :, :4, :4, :4] = True
    both = net.encode(image, hidden=hidden).anatomy
    for row in range(2):
        alone = net.encode(image[row : row + 1], hidden=hidden[row : row + 1]).anatomy
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_a_block_that_is_no_multiple_of_the_token_is_told() -> None:
    net = vit.build(SMALL)
    hidden = torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    hidden[..., :3] = True
    with pytest.raises(ValueError, match="multiple of net.token"):
        net.encode(torch.randn(1, 1, 8, 8, 8), hidden=hidden)
