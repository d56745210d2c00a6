"""Made-up lesions: where they are, what they leave alone, and that they are a function of the sample."""

from __future__ import annotations

import numpy as np
import torch

from neuroprior.objectives._altered import CHANGE, altered, cells_of

SIZE = (16, 24, 16)


def scans(n: int) -> torch.Tensor:
    image = torch.randn(2 * n, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    image[..., :3] = 0  # background
    return image


def test_only_the_head_of_some_scans_changes_and_by_as_much_as_said() -> None:
    n = 200
    image = scans(n)
    made, where, ill = altered(image, [torch.arange(n), torch.arange(n)], 0.5, seed=1)
    change = (made - image).numpy()
    assert (change[..., :3] == 0).all() and not where[..., :3].any()
    assert (change[~ill.numpy()] == 0).all() and not where[~ill].any()
    assert 0.42 < ill.float().mean() < 0.58
    peaks = np.abs(change[ill.numpy()]).reshape(int(ill.sum()), -1).max(1)
    assert peaks.max() <= CHANGE[1] and np.median(peaks) > CHANGE[0] * 0.9
    signs = np.sign(change[ill.numpy()].reshape(len(peaks), -1).sum(1))
    assert 0.35 < (signs > 0).mean() < 0.65
    first, second = ill[:n], ill[n:]
    assert (first != second).any()  # the scans of a pair are disturbed apart


def test_a_sample_has_its_lesion_in_any_batch() -> None:
    image = scans(4)
    whole = altered(image, [torch.arange(4), torch.arange(4)], 0.5, seed=3)
    rows = torch.tensor([1, 5])
    part = altered(image[rows], [torch.tensor([1]), torch.tensor([1])], 0.5, seed=3)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[rows], b)


def test_cells_hold_what_any_of_their_voxels_holds() -> None:
    where = torch.zeros(1, 1, 10, 8, 8, dtype=torch.bool)
    where[0, 0, 9, 0, 7] = where[0, 0, 3, 4, 0] = True
    cells = cells_of(where, 8)
    assert cells.shape == (1, 1, 2, 1, 1)
    assert cells.flatten().tolist() == [1.0, 1.0]
