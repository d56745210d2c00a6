"""Metrics of masks against MONAI, SimpleITK, scipy and plain numpy on 200 random pairs, spacing anisotropic in most."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

from neuroprior.core.errors import InputError
from neuroprior.metrics import dice, lesions, surface, volume

Pair = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


def random_pair(seed: int) -> Pair:
    """Two masks, from blobs of several voxels to scattered ones, with a spacing of 0.4 to 5 mm on each axis."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(6, 15, 3))
    smooth = rng.choice([0.0, 0.8, 1.5])
    field, other = (ndimage.gaussian_filter(rng.standard_normal(shape), smooth) for _ in range(2))
    share = rng.choice([70, 85, 95])
    mixed = field + rng.uniform(0, 0.8) * other
    r, p = field > np.percentile(field, share), mixed > np.percentile(mixed, share)
    spacing = (
        (1.0, 1.0, 1.0) if seed % 5 == 0 else tuple(float(edge) for edge in rng.choice([0.4, 0.5, 0.8, 1.0, 1.2, 3.0, 5.0], 3))
    )
    return p, r, spacing  # type: ignore[return-value]


PAIRS = [random_pair(seed) for seed in range(200)]


def by_definition(p: np.ndarray, r: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """All distances between surface voxels, by brute force."""

    def surface_points(mask: np.ndarray) -> np.ndarray:
        return np.argwhere(mask & np.logical_not(ndimage.binary_erosion(mask))) * np.array(spacing)

    all_of_them = cdist(surface_points(p), surface_points(r))
    return all_of_them.min(1), all_of_them.min(0)


def test_overlap_and_volume() -> None:
    statistics = sitk.LabelOverlapMeasuresImageFilter()
    for p, r, spacing in PAIRS:
        a, b = (sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (p, r))
        for image in (a, b):
            image.SetSpacing(spacing[::-1])
        statistics.Execute(b, a)
        assert dice.dice(p, r) == pytest.approx(statistics.GetDiceCoefficient(), abs=1e-9)
        assert dice.iou(p, r) == pytest.approx(statistics.GetJaccardCoefficient(), abs=1e-9)
        shapes = [sitk.LabelShapeStatisticsImageFilter() for _ in range(2)]
        for shape, image in zip(shapes, (a, b)):
            shape.Execute(image)
        mine, theirs = (shape.GetPhysicalSize(1) / 1000 for shape in shapes)
        assert dice.volume_difference_ml(p, r, spacing) == pytest.approx(mine - theirs, abs=1e-9)
        assert volume.absolute_error_ml(p, r, spacing) == pytest.approx(abs(mine - theirs), abs=1e-9)
        assert volume.relative_difference(p, r) == pytest.approx((mine - theirs) / theirs, abs=1e-9)


def test_surfaces_equal_the_definition() -> None:
    for p, r, spacing in PAIRS:
        there, back = by_definition(p, r, spacing)
        found = surface.measure(p, r, spacing)
        np.testing.assert_allclose(np.sort(found.there), np.sort(there), atol=1e-9)
        np.testing.assert_allclose(np.sort(found.back), np.sort(back), atol=1e-9)
        assert surface.hd(p, r, spacing) == pytest.approx(max(there.max(), back.max()), abs=1e-9)
        assert surface.hd95(p, r, spacing) == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-9)
        assert surface.assd(p, r, spacing) == pytest.approx(np.concatenate([there, back]).mean(), abs=1e-9)
        for tolerance in (0.5, 1.0, 2.7):
            within = np.concatenate([there, back]) <= tolerance + 1e-9
            assert surface.nsd(p, r, spacing, tolerance) == pytest.approx(within.mean(), abs=1e-9)


def test_surfaces_equal_monai() -> None:
    """MONAI interpolates percentiles in float32, so distances agree to 1e-4 mm; shares agree to 1e-6 away from ties at the tolerance."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice
    from monai.metrics.surface_distance import compute_average_surface_distance

    for p, r, spacing in PAIRS:
        tp, tr = (torch.tensor(mask)[None, None].float() for mask in (p, r))
        for percentile, mine in ((100, surface.hd), (95, surface.hd95)):
            theirs = compute_hausdorff_distance(tp, tr, include_background=True, percentile=percentile, spacing=spacing)
            assert mine(p, r, spacing) == pytest.approx(float(theirs), rel=1e-5, abs=1e-4)
        theirs = compute_surface_dice(tp, tr, class_thresholds=[1.013], include_background=True, spacing=spacing)
        assert surface.nsd(p, r, spacing, 1.013) == pytest.approx(float(theirs), abs=1e-6)
        found = surface.measure(p, r, spacing)
        for values, a, b in ((found.there, tp, tr), (found.back, tr, tp)):
            theirs = compute_average_surface_distance(a, b, include_background=True, symmetric=False, spacing=spacing)
            assert values.mean() == pytest.approx(float(theirs), rel=1e-5, abs=1e-4)


def test_hausdorff_of_the_masks_by_simpleitk() -> None:
    """SimpleITK measures between all voxels of the masks, not their surfaces: its number is the same where they do not nest, and
    the largest distance from a mask's voxels to the other mask is what both mean by a *directed* distance from outside."""
    filter_ = sitk.HausdorffDistanceImageFilter()
    same = 0
    for p, r, spacing in PAIRS:
        a, b = (sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (p, r))
        for image in (a, b):
            image.SetSpacing(spacing[::-1])
        filter_.Execute(a, b)
        theirs = filter_.GetHausdorffDistance()
        assert theirs <= surface.hd(p, r, spacing) + 1e-4
        same += math.isclose(theirs, surface.hd(p, r, spacing), rel_tol=1e-5)
    assert same > 100


def test_lesions_are_those_of_simpleitk() -> None:
    def components(mask: np.ndarray) -> np.ndarray:
        image = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
        return sitk.GetArrayFromImage(image)

    for p, r, spacing in PAIRS:
        voxel = float(np.prod(spacing)) / 1000
        low, high = 2 * voxel, 10 * voxel
        for overlap in (0.0, 0.3):
            for bounds in ((0.0, np.inf), (low, high)):
                found = missed = alarms = 0
                theirs, guesses = components(r), components(p)
                for k in range(1, theirs.max() + 1):
                    lesion = theirs == k
                    if bounds[0] <= lesion.sum() * voxel < bounds[1]:
                        hit = p[lesion].any() and p[lesion].mean() >= overlap
                        found, missed = found + hit, missed + (not hit)
                for k in range(1, guesses.max() + 1):
                    lesion = guesses == k
                    alarms += bounds[0] <= lesion.sum() * voxel < bounds[1] and not (
                        r[lesion].any() and r[lesion].mean() >= overlap
                    )
                got = lesions.detect(p, r, min_ml=bounds[0], max_ml=bounds[1], voxel_ml=voxel, overlap=overlap)
                assert (got.found, got.missed, got.false_alarms) == (found, missed, alarms)
                if found + alarms:
                    assert got.precision == pytest.approx(found / (found + alarms))


def test_lesions_by_size_add_up() -> None:
    bins = (("small", 0.0, 0.003), ("medium", 0.003, 0.02), ("large", 0.02, np.inf))
    for p, r, _ in PAIRS[:40]:
        parts, whole = lesions.by_size(p, r, bins, voxel_ml=0.001), lesions.detect(p, r, voxel_ml=0.001)
        for name in ("found", "missed", "false_alarms"):
            assert sum(getattr(part, name) for part in parts.values()) == getattr(whole, name)


def test_the_surface_distance_package_lays_its_surface_elsewhere() -> None:
    """Its elements lie between voxels and count by area: the differences on smooth structures are stated in docs/metrics.md."""
    import surface_distance

    gaps: dict[str, list[float]] = {"nsd": [], "hd95": [], "assd": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        field = ndimage.gaussian_filter(rng.standard_normal((30, 34, 26)), 3)
        moved = field + 0.35 * ndimage.gaussian_filter(rng.standard_normal(field.shape), 3)
        limit = np.percentile(field, 85)
        p, r, spacing = moved > limit, field > limit, [(1.0, 1.0, 1.0), (0.8, 1.2, 3.0)][seed % 2]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            theirs = surface_distance.compute_surface_distances(r, p, spacing)
        mine = surface.measure(p, r, spacing)
        gaps["nsd"].append(mine.nsd(2.0) - surface_distance.compute_surface_dice_at_tolerance(theirs, 2.0))
        gaps["hd95"].append((mine.hausdorff() - surface_distance.compute_robust_hausdorff(theirs, 95)) / max(spacing))
        gaps["assd"].append((mine.assd() - np.mean(surface_distance.compute_average_surface_distance(theirs))) / max(spacing))
    assert np.abs(gaps["nsd"]).mean() < 0.03
    assert np.abs(gaps["hd95"]).max() < 1.0  # of the longest voxel edge
    assert np.abs(gaps["assd"]).mean() < 0.15


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan")), (1.0, 1.0)])
def test_a_spacing_that_is_none_is_refused(spacing: tuple[float, ...]) -> None:
    p, r, _ = PAIRS[0]
    for metric in (surface.nsd, surface.hd, surface.hd95, surface.assd, dice.volume_difference_ml):
        with pytest.raises(InputError, match="spacing"):
            metric(p, r, spacing)  # type: ignore[arg-type]


def test_grids_that_differ_are_refused() -> None:
    p, r, spacing = PAIRS[0]
    for call in (lambda: dice.dice(p[1:], r), lambda: surface.nsd(p[1:], r, spacing), lambda: lesions.detect(p[1:], r)):
        with pytest.raises(InputError, match="different grids"):
            call()


def test_an_empty_reference_is_no_division() -> None:
    p, _, spacing = PAIRS[0]
    nothing = np.zeros_like(p)
    assert np.isnan(volume.relative_difference(p, nothing))
    assert volume.relative_difference(nothing, p) == -1
    assert dice.iou(p, nothing) == 0
    assert np.isnan(dice.iou(nothing, nothing))
    found = lesions.detect(p, nothing)
    assert found.false_alarms > 0
    assert (found.f1, found.precision) == (0, 0)
    assert np.isnan(found.recall)
    assert surface.hd(p, nothing, spacing) == pytest.approx(np.linalg.norm(np.array(p.shape) * spacing))
