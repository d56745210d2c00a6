"""Every transform on the shelf: replayable, batched as one by one, of the same shape, and true to what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from neuroprior.core import shelf
from neuroprior.core.seeds import generator
from neuroprior.transforms import affine, bias, blur, flip, gamma, ghosting, gibbs, lowres, noise, spike

SHAPE, SPACING = (12, 14, 10), (2.0, 2.0, 4.0)


def images(*lead: int) -> torch.Tensor:
    rows = torch.randn(*lead, *SHAPE, generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(ndimage.gaussian_filter(rows.numpy(), [0.0] * len(lead) + [1.5] * 3)) * 10


@pytest.mark.parametrize("name", shelf.names("transforms"))
def test_a_draw_replays_and_a_batch_is_its_volumes(name: str) -> None:
    module = shelf.load("transforms", name)
    drawn = module.draw(module.Config(), generator(0, name), SHAPE, SPACING)
    assert drawn == module.draw(module.Config(), generator(0, name), SHAPE, SPACING)
    several = [module.draw(module.Config(), generator(n, name), SHAPE, SPACING) for n in range(20)]
    assert len({str(one) for one in several}) > 1, "the draw depends on the generator"
    batch = images(2, 3)
    before = batch.clone()
    once, again = module.apply(drawn, batch), module.apply(drawn, batch)
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    assert once.shape == batch.shape
    assert once.dtype == batch.dtype
    assert torch.isfinite(once).all()
    torch.testing.assert_close(batch, before, rtol=0, atol=0)
    if name != "noise":  # each volume has noise of its own
        torch.testing.assert_close(once[1, 2], module.apply(drawn, batch[1, 2]), rtol=1e-4, atol=1e-4)
    assert isinstance(module.SPATIAL, bool)
    assert hasattr(module, "apply_labels") == module.SPATIAL


def test_mirroring_swaps_the_names_of_sides_and_undoes_itself() -> None:
    labels = torch.zeros(6, 4, 4, dtype=torch.int64)
    labels[0], labels[5], labels[2:4, 1] = 1, 2, 7
    drawn = flip.Draw((0,), ((1, 2),))
    torch.testing.assert_close(flip.apply_labels(drawn, labels), labels)  # a symmetric phantom stays what it is
    labels[1, 0, 0] = 1
    out = flip.apply_labels(drawn, labels)
    assert int(out[4, 0, 0]) == 2
    torch.testing.assert_close(flip.apply_labels(drawn, out), labels)
    up_down = flip.Draw((2,), ((1, 2),))
    torch.testing.assert_close(flip.apply_labels(up_down, labels), labels.flip(-1))


def test_affine_equals_scipys_in_mm() -> None:
    volume = images().double().float()
    drawn = affine.draw(affine.Config(shear=0.1), generator(3), SHAPE, SPACING)
    got = affine.apply(drawn, volume).numpy()
    matrix, spacing = np.array(drawn.matrix).reshape(3, 3), np.array(SPACING)
    half = (np.array(SHAPE) - 1) / 2
    linear = np.diag(1 / spacing) @ matrix @ np.diag(spacing)
    offset = half + np.array(drawn.shift_mm) / spacing - linear @ half
    expected = ndimage.affine_transform(volume.numpy(), linear, offset, order=1, mode="grid-constant")
    np.testing.assert_allclose(got, expected, atol=1e-3)
    same = affine.Draw(tuple(np.eye(3).ravel()), (0.0, 0.0, 0.0), SPACING)
    torch.testing.assert_close(affine.apply(same, volume), volume, rtol=1e-4, atol=1e-4)
    labels = torch.randint(0, 4, SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(affine.apply_labels(same, labels), labels)


def test_blur_is_scipys_gaussian_in_mm() -> None:
    volume = images()
    got = blur.apply(blur.Draw(tuple(3.0 / s for s in SPACING)), volume).numpy()
    expected = ndimage.gaussian_filter(volume.numpy(), [3.0 / s for s in SPACING], mode="nearest", truncate=4.0)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_gamma_keeps_the_extremes_and_the_order() -> None:
    volume = images()
    out = gamma.apply(gamma.Draw(1.7), volume)
    assert float(out.min()) == pytest.approx(float(volume.min()))
    assert float(out.max()) == pytest.approx(float(volume.max()))
    assert (torch.argsort(out.flatten()) == torch.argsort(volume.flatten())).float().mean() > 0.99


def test_noise_is_rician() -> None:
    flat = torch.full((60, 60, 60), 5.0)
    flat[0, 0, 0] = 0.0  # no signal
    out = noise.apply(noise.Draw(0.5, 7), flat)
    assert float(out[1:].mean()) == pytest.approx(5 + 0.5**2 / (2 * 5), abs=0.005)  # the known upward shift
    assert float(out[1:].std()) == pytest.approx(0.5, rel=0.02)


def test_bias_is_a_smooth_factor_of_the_signal() -> None:
    volume = images() + 50
    low = volume.min()
    drawn = bias.draw(bias.Config(), generator(1), SHAPE, SPACING)
    field = (bias.apply(drawn, volume) - low) / (volume - low).clamp_min(1e-3)
    assert float(field[volume > low + 1].min()) > 0
    assert float(field[volume > low + 1].diff().abs().median()) < 0.05


def test_lowres_keeps_the_mean_and_loses_one_axis() -> None:
    volume = images()
    out = lowres.apply(lowres.Draw(1, 7), volume)
    assert float(out.mean()) == pytest.approx(float(volume.mean()), abs=0.05)
    assert float(out.diff(dim=1).abs().mean()) < float(volume.diff(dim=1).abs().mean())
    torch.testing.assert_close(lowres.apply(lowres.Draw(1, 14), volume), volume)


def test_artefacts_are_what_they_say_in_k_space() -> None:
    volume = images()
    space = np.fft.fftshift(np.fft.fftn(volume.numpy()))
    wave = (spike.apply(spike.Draw((0.4, -0.3, 0.2), 0.5, 1.0), volume) - volume).numpy()
    power = np.abs(np.fft.fftn(wave)) ** 2
    assert np.sort(power.ravel())[-2:].sum() / power.sum() > 0.999  # one point and its mirror
    cut = np.fft.fftshift(np.fft.fftn(gibbs.apply(gibbs.Draw(0.5), volume).numpy()))
    assert np.abs(cut[0, 0, 0]) < 1e-3
    np.testing.assert_allclose(cut[6, 7, 5], space[6, 7, 5], rtol=1e-4)
    ghosts = np.fft.fftshift(np.fft.fftn(ghosting.apply(ghosting.Draw(1, 3, 0.4, 0.05), volume).numpy()))
    np.testing.assert_allclose(ghosts[6, 7, 5], space[6, 7, 5], rtol=1e-4)
    lines = np.abs(ghosts).sum((0, 2)) / np.abs(space).sum((0, 2))
    moved = [(k % 3 == 0) and k != 0 for k in range(-7, 7)]
    np.testing.assert_allclose(lines, np.where(moved, 0.6, 1.0), atol=1e-3)
