"""The pooled head's options: stages, standardisation, ordered read-outs against scipy, covariates that may be missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import special
from torch import nn

from neuroprior.core.covariates import Covariate, encode
from neuroprior.core.representation import Representation
from neuroprior.heads import pooled, segmentation
from neuroprior.nets import resenc, unet

BASE: dict[str, Any] = {"contrasts": ("T1w", "T2w"), "anatomy_channels": 3, "contrast_channels": 2, "outputs": 4, "hidden": 8}


def rows(n: int, seed: int = 0, offset: float = 0.0) -> Representation:
    g = torch.Generator().manual_seed(seed)
    return Representation(
        torch.randn(n, 3, 2, 2, 2, generator=g) + offset, torch.randn(n, 2, 2, 2, 2, generator=g) + offset,
        (torch.randn(n, 5, 4, 4, 4, generator=g) + offset,),
    )  # fmt: skip


def run(head: nn.Module, representation: Representation, *more: Any) -> torch.Tensor:
    n = representation.anatomy.shape[0]
    return head.eval()(nn.Identity(), representation, torch.arange(n), torch.zeros(n, dtype=torch.int64), n, *more)


def test_standardised_features_have_mean_0_and_spread_1_over_the_training_cases() -> None:
    head = pooled.build(pooled.Config(**BASE, stage_channels=(5,), standardise=True, pool="mean_std"))
    seen = rows(40, offset=7.0)
    case, contrast = torch.arange(40), torch.arange(40) % 2
    anatomy, scans = head.vectors(seen, case, 40)
    assert anatomy.shape == (40, 6)
    assert scans.shape == (40, 4 + 10)
    np.testing.assert_allclose(scans[:, 4:9], seen.stages[0].mean((2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(anatomy[:, 3:], seen.anatomy.numpy().reshape(40, 3, -1).std(2), rtol=1e-3)
    head.standardise_by(anatomy, scans, contrast)
    np.testing.assert_allclose(head.anatomy_mean, anatomy.mean(0), rtol=1e-5)
    for k in (0, 1):
        np.testing.assert_allclose(head.scan_std[k], scans[contrast == k].numpy().std(0), rtol=1e-4)
    assert {"anatomy_mean", "scan_std"} <= set(head.state_dict()), "they are saved with the weights"


def test_a_linear_head_is_linear() -> None:
    head = pooled.build(pooled.Config(**(BASE | {"hidden": 0, "contrast_channels": 0})))
    got = run(head, rows(2))
    torch.testing.assert_close(got, rows(2).anatomy.mean((2, 3, 4)) @ head.anatomy.weight.T + head.anatomy.bias)


def test_ordered_classes_are_a_proportional_odds_model() -> None:
    head = pooled.build(pooled.Config(**BASE, readout="ordered_classes"))
    score = torch.tensor([[-2.0], [0.3], [5.0]])
    got = head.readout(score).exp().detach().numpy()
    thresholds = np.array([-1.0, 0.0, 1.0])  # one apart at first, and centred
    above = special.expit(score.numpy() - thresholds)
    expected = np.concatenate([1 - above[:, :1], above[:, :-1] - above[:, 1:], above[:, -1:]], 1)
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
    assert run(head, rows(3)).shape == (3, 4)
    np.testing.assert_allclose(run(head, rows(3)).softmax(1).detach(), run(head, rows(3)).exp().detach(), rtol=1e-4)


def test_ordered_values_put_the_expected_value_first() -> None:
    head = pooled.build(pooled.Config(**(BASE | {"outputs": 2}), readout="ordered_values", levels=(-1.0, 0.5, 2.5)))
    logits = torch.tensor([[20.0, 20.0], [20.0, -20.0], [-20.0, -20.0], [0.0, -20.0]])
    np.testing.assert_allclose(head.readout(logits)[:, 0], [2.5, 0.5, -1.0, -0.25], atol=1e-5)
    assert run(head, rows(3)).shape == (3, 3)


def test_a_missing_covariate_has_a_value_of_its_own_and_none_given_means_all_missing() -> None:
    covariates = (
        Covariate(name="age", kind="number", mean=50, std=10),
        Covariate(name="sex", kind="category", levels=("F", "M")),
    )
    assert encode({"age": 60, "sex": "M"}, covariates) == [1.0, 1.0]
    assert np.isnan(encode({"age": "n/a", "sex": "X"}, covariates)).all()
    torch.manual_seed(0)
    head = pooled.build(pooled.Config(**BASE, covariates=covariates))
    known = torch.tensor([encode({"age": 60, "sex": "F"}, covariates)] * 2)
    absent = torch.full((2, 2), torch.nan)
    x = rows(2)
    torch.testing.assert_close(run(head, x), run(head, x, absent))
    assert not torch.allclose(run(head, x, known), run(head, x))
    assert not torch.allclose(run(head, x, torch.zeros(2, 2)), run(head, x)), "missing is not the mean age of a woman"
    run(head, x, torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]])).sum().backward()
    assert head.covariates is not None
    assert all(table.grad is not None and torch.isfinite(table.grad).all() for table in head.covariates.parameters())
    restored = pooled.build(pooled.Config.model_validate(head.config.model_dump(mode="json")))
    restored.load_state_dict(head.state_dict(), strict=True)


def test_deep_supervision_shows_every_level_and_inference_the_finest() -> None:
    for module, config in ((unet, {"features": (4, 8, 16), "latent": 4, "skips": True}),
                           (resenc, {"features": (4, 8, 16), "blocks": (1, 1, 1)})):  # fmt: skip
        torch.manual_seed(0)
        net = module.build(module.Config(**config)).eval()
        head = segmentation.build(segmentation.Config(contrasts=("T1w",), features=4, classes=3, levels=(8,)))
        representation = net.encode(torch.randn(1, 1, 16, 16, 16))
        zero = torch.zeros(1, dtype=torch.int64)
        outputs = head.deep(net, representation, zero, zero, 1)
        assert [tuple(o.shape) for o in outputs] == [(1, 3, 16, 16, 16), (1, 3, 8, 8, 8)]
        torch.testing.assert_close(outputs[0], head(net, representation, zero, zero, 1))
