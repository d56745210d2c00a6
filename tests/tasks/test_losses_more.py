"""Losses by words against definitions written out with numpy, scipy and scikit-learn; whole classes and shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import log_loss

from neuroprior.data.cases import as_shares
from neuroprior.tasks import classification, regression, segmentation
from neuroprior.tasks._losses import coarser, deep, region_loss, voxel_loss

G = torch.Generator().manual_seed(0)
LOGITS, TRUTH = torch.randn(2, 3, 4, 5, 6, generator=G), torch.randint(0, 3, (2, 4, 5, 6), generator=G)
P = LOGITS.softmax(1).numpy().astype(float)
T = as_shares(TRUTH, 3).numpy().astype(float)
SUM, ALL = (2, 3, 4), (0, 2, 3, 4)


def test_dice_of_the_batch_and_of_each_sample() -> None:
    def dice(axes: tuple[int, ...]) -> np.ndarray:
        return 1 - (2 * (P * T).sum(axes) + 1e-5) / ((P + T).sum(axes) + 1e-5)

    for batch, axes in ((True, ALL), (False, SUM)):
        got = region_loss(LOGITS, TRUTH, kind="dice", batch=batch)
        np.testing.assert_allclose(float(got), dice(axes)[..., 1:].mean(), rtol=1e-5)


def test_tversky_weighs_misses_and_false_alarms() -> None:
    hit, alarm, miss = (P * T).sum(ALL), (P * (1 - T)).sum(ALL), ((1 - P) * T).sum(ALL)
    expected = (1 - (hit + 1e-5) / (hit + 0.3 * alarm + 0.7 * miss + 1e-5))[1:].mean()
    np.testing.assert_allclose(
        float(region_loss(LOGITS, TRUTH, kind="tversky", batch=True, alpha=0.3, beta=0.7)), expected, rtol=1e-5
    )


def test_focal_is_cross_entropy_weighed_down_where_it_is_easy() -> None:
    chosen = (P * T).sum(1)
    np.testing.assert_allclose(
        float(voxel_loss(LOGITS, TRUTH, kind="focal", gamma=2.0)), (-((1 - chosen) ** 2) * np.log(chosen)).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        float(voxel_loss(LOGITS, TRUTH, kind="focal", gamma=0.0)), float(voxel_loss(LOGITS, TRUTH, kind="ce")), rtol=1e-5
    )


@pytest.mark.parametrize("region", ["dice", "tversky"])
@pytest.mark.parametrize("voxel", ["ce", "focal"])
def test_whole_shares_are_classes_and_the_right_shares_are_the_optimum(region: str, voxel: str) -> None:
    task = segmentation.Segmentation("x", (1, 2), segmentation.Config.model_validate({"region": region, "voxel": voxel}))
    hard, soft = task.losses(LOGITS, TRUTH), task.losses(LOGITS, as_shares(TRUTH, 3))
    np.testing.assert_allclose(float(hard["loss"]), float(soft["loss"]), rtol=1e-4)
    shares = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1, 1).expand(2, 3, 4, 4, 4)
    right = float(region_loss(shares.log(), shares, kind=region, batch=True))  # type: ignore[arg-type]
    assert right == pytest.approx(0, abs=1e-4), "predicting the shares themselves costs nothing"
    for wrong in ([0.9, 0.05, 0.05], [0.2, 0.6, 0.2]):
        logits = torch.tensor(wrong).log().view(1, 3, 1, 1, 1).expand(2, 3, 4, 4, 4)
        assert float(region_loss(logits, shares, kind=region, batch=True)) > 0.05  # type: ignore[arg-type]
        assert float(voxel_loss(logits, shares, kind="ce")) > float(voxel_loss(shares.log(), shares, kind="ce"))


def test_deep_supervision_is_the_weighted_mean_over_levels_of_averaged_targets() -> None:
    truth = torch.randint(0, 3, (1, 5, 4, 4), generator=torch.Generator().manual_seed(1))
    coarse = coarser(truth, 3, 1, torch.Size((3, 2, 2)))
    padded = np.zeros((3, 6, 4, 4))
    padded[:, :5] = as_shares(truth, 3)[0].numpy()
    padded[0, 5] = 1  # what the net pads is background
    np.testing.assert_allclose(coarse[0], padded.reshape(3, 3, 2, 2, 2, 2, 2).mean((2, 4, 6)), atol=1e-6)
    fine, low = torch.randn(1, 3, 5, 4, 4), torch.randn(1, 3, 3, 2, 2)
    task = segmentation.Segmentation("x", (1, 2), segmentation.Config())
    got = deep([fine, low], truth, task.losses)
    expected = (float(task.losses(fine, truth)["loss"]) + 0.5 * float(task.losses(low, coarse)["loss"])) / 1.5
    np.testing.assert_allclose(float(got["loss"]), expected, rtol=1e-5)
    np.testing.assert_allclose(float(got["ce"]), float(task.losses(fine, truth)["ce"]), rtol=1e-6)


def test_regression_losses_by_definition() -> None:
    output, target = torch.tensor([[0.5, -1.0], [-1.0, 0.4], [2.0, 0.0]]), torch.tensor([0.25, 1.0, 1.8])

    def loss(word: str, levels: tuple[float, ...] = ()) -> float:
        config = regression.Config.model_validate({"loss": word, "beta": 0.5})
        return float(regression.Regression("age", 50.0, 10.0, config, levels=levels).losses(output, target)["loss"])

    away = (output[:, 0] - target).numpy()
    assert loss("mse") == pytest.approx((away**2).mean())
    assert loss("mae") == pytest.approx(np.abs(away).mean())
    huber = np.where(np.abs(away) < 0.5, away**2 / 2, 0.5 * (np.abs(away) - 0.25))
    assert loss("huber") == pytest.approx(huber.mean())
    likelihood = -stats.norm(output[:, 0].numpy(), np.exp(output[:, 1].numpy() / 2)).logpdf(target.numpy()) - 0.5 * np.log(
        2 * np.pi
    )
    assert loss("heteroscedastic") == pytest.approx(likelihood.mean(), rel=1e-5)
    logits = output[:, 1:].numpy()
    above = (target.numpy()[:, None] > 0.5).astype(int)
    assert loss("ordinal", (0.0, 1.0)) == pytest.approx(log_loss(above.ravel(), 1 / (1 + np.exp(-logits.ravel()))), rel=1e-5)


def test_what_regression_tells_of_its_spread() -> None:
    def spread(word: str) -> object:
        config = regression.Config.model_validate({"loss": word})
        return regression.Regression("age", 50.0, 10.0, config, levels=(0.0, 1.0)).describe()["spread"]

    assert spread("mse") is None
    assert spread("heteroscedastic") == {"kind": "log_variance", "output": 1, "clamp": [-7.0, 5.0]}
    assert spread("ordinal") == {"kind": "cumulative", "levels": [0.0, 1.0]}


def test_classification_with_weights_smoothing_and_order() -> None:
    logits, truth = torch.tensor([[2.0, -1.0], [0.5, 0.1], [-1.0, 3.0]]), torch.tensor([0, 1, 1])
    p = logits.softmax(1).numpy()

    def loss(**settings: object) -> float:
        config = classification.Config.model_validate(settings)
        return float(classification.Classification("x", ("a", "b"), (0.25, 0.75), config).losses(logits, truth)["loss"])

    weights = np.array([2.0, 2 / 3])[truth.numpy()]
    chosen = p[np.arange(3), truth.numpy()]
    assert loss(class_weights="balanced") == pytest.approx((weights * -np.log(chosen)).sum() / weights.sum())
    smooth = np.full((3, 2), 0.1)
    smooth[np.arange(3), truth.numpy()] = 0.9
    assert loss(smoothing=0.2) == pytest.approx((-smooth * np.log(p)).sum(1).mean(), rel=1e-5)
    assert loss(order=("a", "b")) == pytest.approx(-logits.numpy()[np.arange(3), truth.numpy()].mean())
