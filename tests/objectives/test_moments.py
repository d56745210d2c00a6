"""The discrepancy between contrasts: against its definition by loops, and what its gradient does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from neuroprior.objectives._moments import WIDTHS, contrast_gap

SUBJECTS = [str(n // 2) for n in range(24)]
NAMES = [("T1w", "T2w", "FLAIR")[(n + n // 6) % 3] for n in range(24)]


def by_definition(half: np.ndarray, names: list[str], subjects: list[str]) -> float:
    """Sums over pairs of scans of different subjects, one place at a time."""
    found = []
    flat = half.reshape(*half.shape[:2], -1)
    for place in range(flat.shape[2]):
        x = flat[:, :, place]
        x = (x - x.mean(0)) / (x.std(0, ddof=1) + 1e-3)
        pairs = [(i, j) for i, j in itertools.product(range(len(x)), repeat=2) if subjects[i] != subjects[j]]
        distance = {(i, j): ((x[i] - x[j]) ** 2).mean() for i, j in pairs}
        median = sorted(distance.values())[(len(pairs) - 1) // 2]
        kernel = {(i, j): (x[i] * x[j]).mean() + sum(np.exp(-d / (w * median)) for w in WIDTHS) for (i, j), d in distance.items()}
        for name in sorted(set(names)):
            both = [v for (i, j), v in kernel.items() if names[i] == name and names[j] == name]
            none = [v for (i, j), v in kernel.items() if names[i] != name and names[j] != name]
            one = [v for (i, j), v in kernel.items() if names[i] == name and names[j] != name]
            found.append(np.mean(both) + np.mean(none) - 2 * np.mean(one))
    return float(np.mean(found))


def test_it_is_what_the_definition_says() -> None:
    half = torch.randn(24, 5, 2, 1, 3, generator=torch.Generator().manual_seed(1))
    half[::3] += 0.7
    assert float(contrast_gap(half, NAMES, SUBJECTS)) == pytest.approx(by_definition(half.numpy(), NAMES, SUBJECTS), abs=1e-4)


def test_it_is_unbiased_and_rises_with_the_gap_but_not_with_the_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    means = []
    for gap in (0.0, 0.5, 1.0):
        values = []
        for _ in range(100):
            half = torch.randn(24, 6, 1, 1, 1, generator=draw)
            half += gap * torch.tensor([name == "T1w" for name in NAMES])[:, None, None, None, None]
            values.append(float(contrast_gap(half, NAMES, SUBJECTS)))
        means.append(float(np.mean(values)))
    assert abs(means[0]) < 0.03 < 0.1 < means[1] < means[2]
    half = torch.randn(24, 6, 1, 1, 1, generator=draw)
    assert float(contrast_gap(half, NAMES, SUBJECTS)) == pytest.approx(float(contrast_gap(half * 50, NAMES, SUBJECTS)), abs=1e-2)


def test_nothing_to_compare_is_zero_with_a_gradient() -> None:
    half = torch.randn(4, 3, 1, 1, 1, requires_grad=True)
    for names, subjects in ((["T1w"] * 4, list("abcd")), (["T1w", "T2w"] * 2, list("aaaa"))):
        gap = contrast_gap(half, names, subjects)
        assert float(gap.detach()) == 0.0
        gap.backward()


def test_its_gradient_makes_a_linear_map_forget_the_contrast_and_keep_the_subject() -> None:
    """Features of subject and contrast mixed by a matrix: after training, a linear reader cannot tell the contrast."""
    draw = torch.Generator().manual_seed(3)
    mix = torch.randn(12, 12, generator=draw)

    def scans(n: int) -> tuple[Tensor, list[str], list[str]]:
        who = torch.randn(n, 6, generator=draw).repeat_interleave(2, 0)
        names = [("T1w", "T2w", "FLAIR")[(k + k // 6) % 3] for k in range(2 * n)]
        what = torch.stack([torch.eye(3)[("T1w", "T2w", "FLAIR").index(name)] for name in names]) * 2
        rest = torch.randn(2 * n, 3, generator=draw)
        return torch.cat([who, what, rest], 1) @ mix, names, [str(k // 2) for k in range(2 * n)]

    layer = torch.nn.Linear(12, 8)
    torch.nn.init.orthogonal_(layer.weight, generator=draw)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)

    def read() -> float:
        x, names, _ = scans(300)
        z = layer(x).detach().numpy()
        z = (z - z.mean(0)) / z.std(0)
        return float(LogisticRegression(max_iter=500).fit(z[:400], names[:400]).score(z[400:], names[400:]))

    before = read()
    for _ in range(600):
        x, names, subjects = scans(12)
        loss = contrast_gap(layer(x)[:, :, None, None, None], names, subjects)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 0.95 and read() < 0.75
