"""The closed-form map of the anatomy half against scikit-learn and against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from neuroprior.objectives._refine import fit_refinement

CHANNELS, PLACES = 6, 3
NAMES = ("T1w", "T2w", "FLAIR")


def pairs(n: int, seed: int = 0) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Channels 0 and 1 are the subject's, 2 and 3 the contrast's (by place), 4 and 5 noise; all mixed by one fixed matrix."""
    draw = np.random.default_rng(seed)
    names = [tuple(draw.permutation(NAMES)[:2]) for _ in range(n)]
    shift = np.random.default_rng(99).normal(size=(3, 2, PLACES)) * 2
    x = 0.5 * draw.normal(size=(n, 2, CHANNELS, PLACES))
    x[:, :, :2] += 2 * draw.normal(size=(n, 1, 2, PLACES))
    for k, pair in enumerate(names):
        for scan, name in enumerate(pair):
            x[k, scan, 2:4] += shift[NAMES.index(name)]
    mix = np.random.default_rng(98).normal(size=(CHANNELS, CHANNELS))
    place = np.random.default_rng(97).normal(size=(CHANNELS, PLACES))
    return torch.from_numpy(np.einsum("ij,nsjp->nsip", mix, x) + place), [(a, b) for a, b in names]


def mapped(x: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,nsjp->nsip", weight, x) + offset[:, None]


def test_directions_are_fishers_and_the_inverse_inverts() -> None:
    x, names = pairs(400)
    made = fit_refinement(x, names, CHANNELS, 0.0)
    z = mapped(x, made.weight, made.offset)
    rows = (z - z.mean((0, 1), keepdim=True)).permute(0, 1, 3, 2).numpy()
    within = np.einsum("npi,npj->ij", rows[:, 0] - rows[:, 1], rows[:, 0] - rows[:, 1]) / (2 * len(x) * PLACES)
    total = np.einsum("nspi,nspj->ij", rows, rows) / (2 * len(x) * PLACES)
    np.testing.assert_allclose(within, np.eye(CHANNELS), atol=1e-3)
    np.testing.assert_allclose(total - within, np.diag(made.ratio.numpy()), atol=2e-2)
    assert (np.diff(made.ratio.numpy()) <= 0).all() and made.ratio[1] > 10 > 1 > made.ratio[2]
    back = torch.einsum("ij,nsjp->nsip", made.inverse, z) + made.mean[:, None]
    np.testing.assert_allclose(back.numpy(), x.numpy(), atol=1e-8)


def test_what_is_not_kept_is_zero_and_the_rest_is_decoded_to_a_projection() -> None:
    x, names = pairs(300)
    made = fit_refinement(x, names, 2, 10.0)
    z = mapped(x, made.weight, made.offset)
    assert (z[:, :, 2:] == 0).all()
    project = (made.inverse @ made.weight).numpy()
    np.testing.assert_allclose(project @ project, project, atol=1e-8)
    assert np.linalg.matrix_rank(project, tol=1e-6) == 2


def test_held_out_scans_keep_the_subject_and_lose_the_contrast() -> None:
    x, names = pairs(600)
    made = fit_refinement(x, names, 2, 10.0)
    other, other_names = pairs(600, seed=1)
    labels = np.array([name for pair in other_names for name in pair])
    scores = []
    for features in (other, mapped(other, made.weight, made.offset)[:, :, :2]):
        flat = features.flatten(0, 1).flatten(1).numpy()
        flat = (flat - flat.mean(0)) / flat.std(0)
        scores.append(LogisticRegression(max_iter=500).fit(flat[:600], labels[:600]).score(flat[600:], labels[600:]))
    assert scores[0] > 0.95 and scores[1] < 0.45  # chance is a third
    z = mapped(other, made.weight, made.offset)[:, :, :2].numpy()
    r = np.corrcoef(z[:, 0].reshape(len(z), -1)[:, 0], z[:, 1].reshape(len(z), -1)[:, 0])[0, 1]
    assert r > 0.8


def test_one_pair_is_not_enough() -> None:
    x, names = pairs(1)
    with pytest.raises(ValueError, match="two pairs"):
        fit_refinement(x, names, 2, 1.0)
