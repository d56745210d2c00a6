"""Metrics against libraries that we did not write."""

from __future__ import annotations

import numpy as np
import pytest
import surface_distance
import torch
from scipy import ndimage
from scipy.stats import pearsonr
from sklearn import metrics as sk

from neuroprior.metrics import auroc, brier, classification, dice, ece, errors, lesions, surface
from neuroprior.metrics._bootstrap import interval

SPACINGS = [(1.0, 1.0, 1.0), (0.8, 1.2, 3.0)]


def masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((30, 34, 26)), 3)
    moved = field + 0.35 * ndimage.gaussian_filter(rng.standard_normal(field.shape), 3)
    limit = np.percentile(field, 85)
    return moved > limit, field > limit


@pytest.mark.parametrize("seed", range(3))
def test_dice_equals_monai_and_sklearn(seed: int) -> None:
    from monai.metrics.meandice import compute_dice

    p, r = masks(seed)
    got = dice.dice(p, r)
    assert got == pytest.approx(sk.f1_score(r.ravel(), p.ravel()))
    assert got == pytest.approx(float(compute_dice(torch.tensor(p)[None, None].float(), torch.tensor(r)[None, None].float())))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_surface_metrics_equal_monai(seed: int, spacing: tuple[float, float, float]) -> None:
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    p, r = masks(seed)
    tp, tr = torch.tensor(p)[None, None].float(), torch.tensor(r)[None, None].float()
    for tolerance in (1.0, 2.0):
        theirs = compute_surface_dice(tp, tr, class_thresholds=[tolerance], include_background=True, spacing=spacing)
        assert surface.nsd(p, r, spacing, tolerance) == pytest.approx(float(theirs), abs=1e-6)
    theirs = compute_hausdorff_distance(tp, tr, include_background=True, percentile=95, spacing=spacing)
    assert surface.hd95(p, r, spacing) == pytest.approx(float(theirs), rel=1e-5)
    there, back = surface.surface_distances(p, r, spacing)
    theirs = compute_average_surface_distance(tp, tr, include_background=True, symmetric=False, spacing=spacing)
    assert there.mean() == pytest.approx(float(theirs), rel=1e-5)
    assert surface.assd(p, r, spacing) == pytest.approx((there.sum() + back.sum()) / (there.size + back.size))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_nsd_is_near_the_area_weighted_one(spacing: tuple[float, float, float]) -> None:
    """DeepMind's weighs surface elements by area and lays them between voxels: close, not equal."""
    p, r = masks(7)
    theirs = surface_distance.compute_surface_distances(r, p, spacing)
    assert surface.nsd(p, r, spacing, 2.0) == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(theirs, 2.0), abs=0.06
    )
    assert surface.hd95(p, r, spacing) == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95), abs=1.0)


def test_a_missed_structure_is_never_better() -> None:
    _, r = masks(0)
    nothing = np.zeros_like(r)
    assert dice.dice(nothing, r) == 0
    assert surface.nsd(nothing, r, (1, 1, 1)) == 0
    diagonal = float(np.linalg.norm(r.shape))
    assert surface.hd95(nothing, r, (1, 1, 1)) == pytest.approx(diagonal)
    assert surface.hd95(r, nothing, (1, 1, 1)) == pytest.approx(diagonal)
    assert all(np.isnan(f(nothing, nothing, (1, 1, 1))) for f in (surface.nsd, surface.hd95, surface.assd))
    assert np.isnan(dice.dice(nothing, nothing))


def test_lesions_are_counted_one_by_one() -> None:
    reference, prediction = np.zeros((20, 20, 20), dtype=bool), np.zeros((20, 20, 20), dtype=bool)
    reference[1:3, 1:3, 1:3] = True  # found by a single voxel
    prediction[2, 2, 2] = True
    reference[8:12, 8:12, 8:12] = True  # missed
    reference[15, 15, 15] = reference[16, 16, 16] = True  # touching by a corner: one lesion, found
    prediction[15, 15, 15] = True
    prediction[5, 18, 18] = True  # a false alarm
    found = lesions.detect(prediction, reference)
    assert (found.found, found.missed, found.false_alarms) == (2, 1, 1)
    assert found.f1 == pytest.approx(2 * 2 / (4 + 1 + 1))
    assert found.recall == pytest.approx(2 / 3)
    large = lesions.detect(prediction, reference, min_ml=0.05, voxel_ml=0.001)
    assert (large.found, large.missed, large.false_alarms) == (0, 1, 0)
    assert np.isnan(lesions.detect(np.zeros_like(reference), np.zeros_like(reference)).f1)


def test_classification_equals_sklearn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60).astype(bool)
    probability = np.clip(0.3 * truth + rng.uniform(0, 0.7, 60), 0, 1)
    guess = probability > 0.5
    assert auroc.auroc(truth, probability) == pytest.approx(sk.roc_auc_score(truth, probability))
    assert auroc.auprc(truth, probability) == pytest.approx(sk.average_precision_score(truth, probability))
    assert classification.balanced_accuracy(truth, guess) == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert classification.f1(truth, guess, True) == pytest.approx(sk.f1_score(truth, guess))
    assert classification.macro_f1(truth, guess) == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert classification.sensitivity(truth, guess, True) == pytest.approx(sk.recall_score(truth, guess))
    assert classification.specificity(truth, guess, True) == pytest.approx(sk.recall_score(~truth, ~guess))
    assert brier.brier(truth, probability) == pytest.approx(sk.brier_score_loss(truth, probability))
    assert np.isnan(auroc.auroc(np.ones(3, dtype=bool), np.arange(3)))


def test_errors_equal_sklearn_and_scipy() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(50, 15, 40)
    guess = truth + rng.normal(0, 5, 40)
    assert errors.mae(truth, guess) == pytest.approx(sk.mean_absolute_error(truth, guess))
    assert errors.rmse(truth, guess) == pytest.approx(sk.root_mean_squared_error(truth, guess))
    assert errors.pearson(truth, guess) == pytest.approx(pearsonr(truth, guess).statistic)
    assert np.isnan(errors.pearson(truth, np.full(40, 3.0)))


def test_calibration_by_hand_and_with_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_calibration_error

    rng = np.random.default_rng(2)
    probability = rng.uniform(0, 1, 500)
    truth = rng.uniform(0, 1, 500) < probability**2
    # torchmetrics bins the confidence of the positive class as given, with equal widths
    theirs = binary_calibration_error(torch.tensor(probability), torch.tensor(truth).int(), n_bins=10, norm="l1")
    assert ece.ece(truth, probability) == pytest.approx(float(theirs), abs=1e-3)
    assert ece.ece(np.array([True, False]), np.array([0.75, 0.75])) == pytest.approx(0.25)


def test_the_bootstrap_covers_and_resamples_subjects() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(60):
        values = rng.normal(0, 1, 30)
        low, high = interval([str(k) for k in range(30)], lambda k, v=values: float(v[k].mean()), resamples=400, seed=trial)
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
    assert covered >= 50
    twice = np.repeat(rng.normal(0, 1, 10), 20)
    names = [str(k // 20) for k in range(200)]
    low, high = interval(names, lambda k: float(twice[k].mean()))
    assert low is not None
    assert high is not None
    assert high - low > 0.5, "200 rows of ten subjects are ten observations"
    assert interval(["a", "b"], lambda k: 1.0) == (None, None)
