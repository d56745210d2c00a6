"""The forms of agreement against plain numpy and against what they are known to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroprior.objectives._adversary import Adversary
from neuroprior.objectives._agreement import agreement
from neuroprior.objectives._pooling import pooled

NAMES = ["p", "q", "r", "q"]  # two samples of one subject
PAIRED = [True, True, False, True]


@pytest.fixture
def halves() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 6, 2, 3, 2, generator=generator)
    return a, a + 0.5 * torch.randn(a.shape, generator=generator)


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(u.ravel() @ v.ravel() / np.linalg.norm(u) / np.linalg.norm(v))


def test_cosine_is_the_papers(halves: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (half.numpy() for half in halves)
    expected = sum(1 - cosine(a[k], b[k]) for k in (0, 1, 3)) / 4
    assert float(agreement("cosine", *halves, PAIRED, NAMES)) == pytest.approx(expected, rel=1e-5)


def test_centred_cosine_takes_off_what_all_share(halves: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (half.numpy()[[0, 1, 3]] for half in halves)
    mean = np.concatenate([a, b]).mean(0)
    expected = np.mean([1 - cosine(a[k] - mean, b[k] - mean) for k in range(3)])
    assert float(agreement("centred_cosine", *halves, PAIRED, NAMES)) == pytest.approx(expected, rel=1e-5)
    common = 100 * torch.randn(1, 6, 2, 3, 2)
    moved = agreement("centred_cosine", halves[0] + common, halves[1] + common, PAIRED, NAMES)
    assert float(moved) == pytest.approx(expected, rel=1e-3)


def test_dense_infonce_is_its_definition(halves: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = np.concatenate([half.numpy()[[0, 1, 3]] for half in halves])
    rows = (rows - rows.mean(0)).reshape(6, 6, -1)
    who = ["p", "q", "q"] * 2
    losses = []
    for place in range(rows.shape[2]):
        for n in range(6):
            partner = (n + 3) % 6
            score = {m: cosine(rows[n, :, place], rows[m, :, place]) / 0.2 for m in range(6) if who[m] != who[n] or m == partner}
            losses.append(-score[partner] + np.log(sum(np.exp(value) for value in score.values())))
    got = agreement("dense_infonce", *halves, PAIRED, NAMES, temperature=0.2)
    assert float(got) == pytest.approx(np.mean(losses), rel=1e-4)


def test_vicreg_is_its_definition(halves: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (half.numpy()[[0, 1, 3]].mean((2, 3, 4)) for half in halves)
    hinge = sum(np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean() for x in (a, b)) / 2
    off = sum((np.cov(x.T) ** 2)[~np.eye(6, dtype=bool)].sum() / 6 for x in (a, b))
    expected = 25 * ((a - b) ** 2).mean() + 25 * hinge + off
    assert float(agreement("vicreg", *halves, PAIRED, NAMES)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["centred_cosine", "dense_infonce", "vicreg"])
def test_without_two_subjects_there_is_nothing_to_compare(form, halves) -> None:  # type: ignore[no-untyped-def]
    a = halves[0].requires_grad_()
    for paired, names in (([False] * 4, NAMES), (PAIRED, ["p"] * 4)):
        got = agreement(form, a, halves[1], paired, names)
        assert float(got.detach()) == 0.0
        got.backward()
    assert a.grad is not None
    assert not a.grad.any()


def test_one_direction_for_all_pleases_the_plain_cosine_only() -> None:
    """What METHODS say of the plain pull: its optimum needs no anatomy."""
    constant = torch.ones(4, 6, 2, 2, 2) + 1e-3 * torch.randn(4, 6, 2, 2, 2)
    other = torch.ones(4, 6, 2, 2, 2) + 1e-3 * torch.randn(4, 6, 2, 2, 2)
    everyone = [True] * 4
    names = ["a", "b", "c", "d"]
    assert float(agreement("cosine", constant, other, everyone, names)) < 0.01
    assert float(agreement("centred_cosine", constant, other, everyone, names)) > 0.5
    assert float(agreement("dense_infonce", constant, other, everyone, names)) > 1.0
    assert float(agreement("vicreg", constant, other, everyone, names)) > 20


def test_the_adversary_learns_and_its_features_unlearn() -> None:
    torch.manual_seed(0)
    adversary = Adversary(4, ("T1w", "T2w"))
    features = torch.randn(16, 4, 2, 2, 2)
    features[::2, 0] += 3.0
    features.requires_grad_()
    names = ["T1w", "T2w"] * 8
    optimizer = torch.optim.Adam(adversary.parameters(), lr=0.02)
    first = float(adversary(features, names).detach())
    for _ in range(100):
        optimizer.zero_grad()
        adversary(features, names).backward()
        optimizer.step()
    learned = adversary(features, names)
    assert float(learned.detach()) < 0.2 < first
    features.grad = None
    adversary(features, names).backward()
    assert features.grad is not None
    worse = adversary((features - 20 * features.grad).detach(), names)  # a step of descent on what reaches the features
    assert float(worse.detach()) > float(learned.detach())
    assert float(adversary(features, ["PDw"] * 16).detach()) == 0.0


def test_pooling_leaves_hidden_cells_out() -> None:
    half, visible = torch.randn(2, 3, 4, 4, 4), torch.rand(2, 1, 4, 4, 4) > 0.4
    got = pooled(half, visible, 2).view(2, 3, 2, 2, 2)
    block, seen = half[1, 2, 2:, :2, 2:], visible[1, 0, 2:, :2, 2:]
    assert float(got[1, 2, 1, 0, 1]) == pytest.approx(float(block[seen].mean()), rel=1e-4)
    torch.testing.assert_close(pooled(half, None, 1), half.mean((2, 3, 4)))
