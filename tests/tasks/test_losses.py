"""The tasks' losses against scikit-learn and plain numpy."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import log_loss

from neuroprior.tasks import classification, regression, segmentation


def test_segmentation_loss_is_dice_plus_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator)
    truth = torch.randint(0, 3, (2, 4, 5, 6), generator=generator)
    got = segmentation.Segmentation("lesion", (1, 2), segmentation.Config()).losses(logits, truth)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    onehot = np.stack([truth.numpy() == k for k in range(3)], 1)
    overlap, total = (p * onehot).sum((0, 2, 3, 4)), (p + onehot).sum((0, 2, 3, 4))
    dice = 1 - ((2 * overlap + 1e-5) / (total + 1e-5))[1:].mean()
    entropy = log_loss(truth.numpy().ravel(), p.transpose(0, 2, 3, 4, 1).reshape(-1, 3), labels=[0, 1, 2])
    np.testing.assert_allclose(float(got["dice_loss"]), dice, rtol=1e-5)
    np.testing.assert_allclose(float(got["ce"]), entropy, rtol=1e-5)
    np.testing.assert_allclose(float(got["loss"]), dice + entropy, rtol=1e-5)


def test_classification_loss_is_cross_entropy() -> None:
    logits, truth = torch.tensor([[2.0, -1.0], [0.5, 0.1], [-1.0, 3.0]]), torch.tensor([0, 1, 1])
    task = classification.Classification("health", ("a", "b"), (0.3, 0.7), classification.Config())
    got = task.losses(logits, truth)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    np.testing.assert_allclose(float(got["loss"]), log_loss(truth.numpy(), p), rtol=1e-6)
    np.testing.assert_allclose(float(got["accuracy"]), 2 / 3)


def test_the_positive_class_is_the_rarer_one_unless_told() -> None:
    task = classification.Classification("health", ("healthy", "ms"), (0.8, 0.2), classification.Config())
    assert task.describe()["positive"] == "ms"
    told = classification.Classification("health", ("healthy", "ms"), (0.8, 0.2), classification.Config(positive="healthy"))
    assert told.describe()["positive"] == "healthy"


def test_regression_mae_is_in_the_targets_unit() -> None:
    task = regression.Regression("age", mean=50.0, std=10.0, config=regression.Config(beta=0.5))
    got = task.losses(torch.tensor([[0.5], [-1.0]]), torch.tensor([0.25, 1.0]))
    np.testing.assert_allclose(float(got["mae"]), (2.5 + 20) / 2, rtol=1e-6)
    np.testing.assert_allclose(float(got["loss"]), (0.25**2 / (2 * 0.5) + (2 - 0.25)) / 2, rtol=1e-6)
