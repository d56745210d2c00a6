"""Windows: the layout, the blend against its definition, streaming, mirrored copies, samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neuroprior.core.errors import ConfigError
from neuroprior.inference import layout as layouts
from neuroprior.inference import windows
from neuroprior.inference.layout import lay
from neuroprior.inference.model import load

from . import made


def collect(members, images, contrasts, layout, **options) -> torch.Tensor:
    blocks = list(windows.stream(members, images, contrasts, layout, **options))
    places = np.cumsum([0, *(block.shape[1] for _, block in blocks)])
    assert [first for first, _ in blocks] == places[:-1].tolist()
    return torch.cat([block for _, block in blocks], 1)


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(50, 16, 0.5), (16, 16, 0.5), (10, 16, 0.25), (17, 16, 0.0), (97, 32, 0.625)]
)
def test_windows_cover_everything_in_mirror_symmetry_and_weights_sum_to_one(length: int, size: int, overlap: float) -> None:
    layout = lay((length, length, length), (size, size, size), overlap)
    full = layout.shape[0]
    assert full == max(length, size)
    starts = layout.starts[0]
    assert starts[0] == 0
    assert starts[-1] == full - size
    assert max(np.diff(starts), default=0) <= max(1, int(size * (1 - overlap)))
    for k in range(len(starts) // 2):
        assert starts[k] + starts[-1 - k] == full - size
    total = np.zeros(full)
    for start, weight in zip(starts, layout.weights[0], strict=True):
        total[start : start + size] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_the_blend_is_the_gaussian_mean_of_the_windows(tmp_path: Path) -> None:
    """Against the definition: a three-dimensional Gaussian a window, summed and divided, in numpy."""
    model = load(made.segmenter(tmp_path, (1, 2)))
    images = torch.randn(2, 30, 21, 16, generator=torch.Generator().manual_seed(0))
    layout = lay(images.shape[1:], (16, 16, 16), 0.5)
    got = collect([model], images, ("FLAIR", "T1w"), layout, batch=3).numpy()
    bell = np.exp(-0.5 * ((np.arange(16) - 7.5) / 2) ** 2)
    gauss = bell[:, None, None] * bell[:, None] * bell
    total, weight = np.zeros((3, 30, 21, 16)), np.zeros((30, 21, 16))
    for sx in layout.starts[0]:
        for sy in layout.starts[1]:
            for sz in layout.starts[2]:
                box = images[:, sx : sx + 16, sy : sy + 16, sz : sz + 16]
                with torch.inference_mode():
                    p = windows.raw_outputs(model, box[None], ("FLAIR", "T1w")).softmax(1)[0].numpy()
                place = (slice(sx, sx + 16), slice(sy, sy + 16), slice(sz, sz + 16))
                total[(slice(None), *place)] += p * gauss
                weight[place] += gauss
    np.testing.assert_allclose(got, total / weight, atol=2e-5)


def test_nothing_depends_on_the_batch_nor_on_where_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(made.segmenter(tmp_path))
    images = torch.randn(1, 37, 20, 9, generator=torch.Generator().manual_seed(1))
    layout = lay(images.shape[1:], (16, 16, 16), 0.4)
    whole = collect([model], images, ("T1w",), layout, batch=4)
    assert whole.shape == (2, 37, 20, 9)
    torch.testing.assert_close(whole.sum(0), torch.ones(37, 20, 9), atol=1e-5, rtol=0)
    monkeypatch.setattr(layouts, "BLOCK_BYTES", 1)
    torch.testing.assert_close(collect([model], images, ("T1w",), layout, batch=1), whole, atol=1e-5, rtol=0)
    monkeypatch.setattr(windows, "HALF_FROM_BYTES", 0)
    torch.testing.assert_close(collect([model], images, ("T1w",), layout, batch=1), whole, atol=2e-3, rtol=0)


def test_a_missing_contrast_is_not_a_zero_volume_and_order_does_not_matter(tmp_path: Path) -> None:
    model = load(made.segmenter(tmp_path))
    images = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    both = windows.segment(model, images, ("T1w", "FLAIR"), window=(16, 16, 16))
    turned = windows.segment(model, images.flip(0), ("FLAIR", "T1w"), window=(16, 16, 16))
    torch.testing.assert_close(both, turned, atol=1e-6, rtol=0)
    alone = windows.segment(model, images[:1], ("T1w",), window=(16, 16, 16))
    zeros = windows.segment(model, torch.cat([images[:1], torch.zeros_like(images[:1])]), ("T1w", "FLAIR"), window=(16, 16, 16))
    assert (alone - zeros).abs().max() > 1e-3


def test_a_mirrored_head_gives_mirrored_labels_with_the_sides_exchanged(tmp_path: Path) -> None:
    model = load(made.segmenter(tmp_path, (3, 7, 9)))
    swap = windows.swapped_classes((3, 7, 9), [[3, 9]])
    assert swap == (0, 3, 2, 1)
    passes = windows.Passes(windows.mirrored((0,)), swap)
    assert len(passes) == 2
    images = torch.randn(1, 40, 16, 18, generator=torch.Generator().manual_seed(3))
    layout = lay(images.shape[1:], (16, 16, 16), 0.5)
    plain = collect([model], images, ("T1w",), layout, passes=passes)
    turned = collect([model], images.flip(1), ("T1w",), layout, passes=passes)
    torch.testing.assert_close(turned, plain.flip(1)[list(swap)], atol=1e-5, rtol=0)
    lone = collect([model], images, ("T1w",), layout)
    alone = collect([model], images.flip(1), ("T1w",), layout)
    assert (alone - lone.flip(1)[list(swap)]).abs().max() > 0.05, "without mirrored copies a random net is lopsided"


@pytest.mark.parametrize("pairs", [[[3, 4]], [[3, 7], [7, 9]]])
def test_pairs_that_do_not_fit_are_refused(pairs: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="label pairs do not fit"):
        windows.swapped_classes((3, 7, 9), pairs)


def test_samples_are_a_function_of_seed_case_and_number(tmp_path: Path) -> None:
    model = load(made.segmenter(tmp_path))
    images = torch.randn(1, 24, 16, 16, generator=torch.Generator().manual_seed(4))
    layout = lay(images.shape[1:], (16, 16, 16), 0.5)

    def draw(seed: int, case: str, samples: int = 2, batch: int = 1) -> torch.Tensor:
        passes = windows.Passes(samples=samples, key=(seed, case))
        return collect([model], images, ("T1w",), layout, passes=passes, batch=batch, spread=True)

    first = draw(0, "a")
    torch.testing.assert_close(draw(0, "a", batch=2), first, atol=1e-5, rtol=0)
    assert (draw(1, "a") - first).abs().max() > 1e-4
    assert (draw(0, "b") - first).abs().max() > 1e-4
    assert first.shape[0] == 3
    mean_entropy, of_mean = first[2], windows.entropy(first[:2], 0)
    assert (of_mean - mean_entropy).min() > -1e-5, "what passes disagree on is never negative"


def test_a_net_without_a_posterior_draws_no_samples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no posterior"):
        windows.require_variational(load(made.segmenter(tmp_path, split="channels")))
