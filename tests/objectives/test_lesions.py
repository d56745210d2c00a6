"""Made-up lesions: where they are said to be is where the scan was changed, and they teach the contrast half alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.objectives.test_anatomy_split import SIZE, batch, only

from neuroprior.core.shelf import load
from neuroprior.objectives import anatomy_split
from neuroprior.objectives._lesions import lesion_error, with_lesions

SAMPLES = range(40)


def scans() -> torch.Tensor:
    image = torch.randn(40, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    image[:, :, :3] = 0  # outside the head
    return image


def drawn(image: torch.Tensor, sample: Sequence[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return with_lesions(image, sample, (1.0, 4.0), (1.0, 3.0), seed=seed, purpose="lesions")


def test_a_scan_is_changed_where_its_level_says_so_and_nowhere_else() -> None:
    image = scans()
    changed, level = drawn(image, SAMPLES)
    difference = (changed - image).abs()
    assert float(level.min()) >= 0 and float(level.max()) <= 1
    assert float(level[:, :, :3].abs().max()) == 0 and torch.equal(changed[:, :, :3], image[:, :, :3])
    spread = image.flatten(1).std(1).view(-1, 1, 1, 1, 1)
    inside, outside = level > 0.5, level < 1e-3
    assert bool((difference > 0.49 * spread)[inside].all())  # at least half of one standard deviation at the surface
    assert float((difference / spread)[outside].max()) < 3.1e-3
    assert float((difference / spread).max()) <= 3.0 + 1e-5
    with_some = inside.flatten(1).any(1)
    assert 10 <= int(with_some.sum()) <= 30  # about half of 40
    assert torch.equal(changed[~with_some][level[~with_some] == 0], image[~with_some][level[~with_some] == 0])


def test_a_draw_depends_on_seed_and_sample_alone() -> None:
    image = scans()
    changed, level = drawn(image, SAMPLES)
    again, _ = drawn(image[10:20], SAMPLES[10:20])
    assert torch.equal(again, changed[10:20])
    assert not torch.equal(drawn(image, SAMPLES, seed=1)[1], level)


def test_the_error_equals_numpy() -> None:
    levels = torch.zeros(2, 1, 8, 8, 6)
    levels[0, 0, :2, :2, :2] = 0.9  # 8 voxels in cell (0, 0, 0)
    levels[0, 0, 4, 4, 4] = 0.9  # 1 voxel in cell (1, 1, 1): too few to count either way
    levels[1, 0, 0, 7, 5] = 0.4  # below half: nothing
    logits = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    got = float(lesion_error(logits, levels, 4, 4.0))
    z = logits.numpy().astype(np.float64)
    well = np.ones(z.shape, dtype=bool)
    well[0, 0, 0, 0] = well[0, 1, 1, 1] = False
    want = (np.log1p(np.exp(-z[0, 0, 0, 0])) + np.log1p(np.exp(z[well])).mean()) / 2
    assert got == pytest.approx(want, rel=1e-5)
    assert float(lesion_error(logits, torch.zeros_like(levels), 4, 4.0)) == 0.0


def staged(split: str) -> Any:
    torch.manual_seed(0)
    module = load("nets", "unet")
    return module.build(module.Config.model_validate({"features": (4, 8, 20), "split": split, "latent": 10}))


def test_the_term_teaches_the_contrast_half_and_not_the_encoder() -> None:
    net = staged("stages")
    objective: Any = anatomy_split.build(net, only(lesions=1.0, pathology_share=0.3))
    data = batch()
    data["sample"] = [0, 1, 2]
    got = objective(data, epoch=0.0, seed=0)
    assert float(got["lesions"]) > 0
    got["loss"].backward()
    for name, parameter in net.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == name.startswith("latent.contrast"), name
    taught = net.latent["contrast"].weight.grad.flatten(1).abs().sum(1) > 0
    assert taught.tolist() == [True] * 6 + [False] * 4  # the pathology part: 30 % of 20 channels


def test_boxes_that_are_no_multiple_of_the_coarsest_stride_are_taken() -> None:
    module = load("nets", "unet")
    torch.manual_seed(0)
    net = module.build(
        module.Config.model_validate({"features": (4, 8, 20), "split": "stages", "latent": 10, "contrast_finer": 1})
    )
    objective: Any = anatomy_split.build(net, only(lesions=1.0, pathology_share=0.3))
    data = batch()
    for name in ("image_a", "image_b"):
        data[name] = data[name][:, :, :14, :22, :13]  # type: ignore[literal-required]
    data["sample"] = [0, 1, 2]
    got = objective(data, epoch=0.0, seed=0)  # a net with cells of 2 voxels that fills up to a multiple of 4
    assert 0 < float(got["lesions"]) < 5


def test_halves_that_are_the_code_itself_are_refused() -> None:
    with pytest.raises(ValueError, match=r"net\.split=stages"):
        anatomy_split.build(staged("channels"), only(lesions=1.0))
