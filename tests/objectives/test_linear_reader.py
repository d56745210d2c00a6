"""The best linear reader of the contrast: against scikit-learn's ridge, and what training with it leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from neuroprior.objectives import _linear_reader
from neuroprior.objectives._linear_reader import LEAST, RIDGE, LinearReader

NAMES = ("FLAIR", "T1w", "T2w")


def scans(n: int, draw: torch.Generator, channels: int = 6, gap: float = 1.5) -> tuple[Tensor, list[str]]:
    """Features of which some channels tell the contrast."""
    classes = torch.randint(0, 3, (n,), generator=draw)
    half = torch.randn(n, channels, 2, 2, 2, generator=draw)
    half[:, :3] += gap * torch.nn.functional.one_hot(classes, 3)[:, :, None, None, None]
    return half, [NAMES[k] for k in classes.tolist()]


@pytest.mark.parametrize("n", [60, 400])
def test_its_guesses_are_ridge_regressions(n: int) -> None:
    """60 scans are fewer than the 48 features' penalty-free need; 400 are more: both ways of solving it."""
    draw = torch.Generator().manual_seed(0)
    reader = LinearReader(12, NAMES).train()
    past, past_names = scans(n, draw, 12)
    reader(past, past_names)
    reader.eval()
    batch, names = scans(20, draw, 12)
    x, rows = past.flatten(1).numpy(), batch.flatten(1).numpy()
    mean, std = x.mean(0), x.std(0, ddof=1) + 1e-4
    y = np.eye(3)[[NAMES.index(name) for name in past_names]]
    scale = std * np.sqrt(x.shape[1])
    ridge = Ridge(alpha=RIDGE * n / x.shape[1], fit_intercept=False).fit((x - mean) / scale, y - y.mean(0))
    guess = ridge.predict((rows - mean) / scale)
    expected = (guess**2).sum(1).mean() / ((y - y.mean(0)) ** 2).sum(1).mean()
    assert float(reader(batch, names)) == pytest.approx(expected, rel=1e-3)


def test_it_waits_remembers_in_a_ring_and_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_reader, "MEMORY", 64)
    draw = torch.Generator().manual_seed(1)
    reader = LinearReader(6, NAMES).train()
    half, names = scans(LEAST - 1, draw)
    assert float(reader(half, names)) == 0.0
    reader.eval()
    reader(half, names)
    assert int(reader.filled) == LEAST - 1
    assert float(reader(half, names)) == 0.0, "too few are remembered"
    reader.train()
    more, others = scans(40, draw)
    reader(more, others)
    assert int(reader.filled) == LEAST + 39
    assert torch.equal(reader.features[: LEAST + 39 - 64], more.flatten(1)[64 - LEAST + 1 :])
    assert float(reader(half, names)) > 0.3
    unknown = reader(half, ["ADC"] * len(names))
    assert float(unknown) == 0.0


def test_training_with_it_leaves_nothing_to_a_fresh_linear_reader() -> None:
    draw = torch.Generator().manual_seed(2)
    layer = torch.nn.Conv3d(6, 4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 6, 1, 1, 1, generator=draw))
    reader = LinearReader(4, NAMES).train()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)

    def read() -> float:
        half, names = scans(600, draw)
        z = layer(half).detach().flatten(1).numpy()
        z = (z - z.mean(0)) / z.std(0)
        return float(LogisticRegression(max_iter=500).fit(z[:400], names[:400]).score(z[400:], names[400:]))

    before = read()
    for _ in range(400):
        told = reader(*_seen(layer, draw))
        optimizer.zero_grad()
        told.backward()
        optimizer.step()
    assert before > 0.8
    assert read() < 0.55


def _seen(layer: torch.nn.Module, draw: torch.Generator) -> tuple[Tensor, list[str]]:
    half, names = scans(24, draw)
    return layer(half), names
