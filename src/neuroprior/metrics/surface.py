"""Distances between the surfaces of two masks, in millimetres.

A mask's surface is its voxels that touch the outside through a face (the mask minus its 6-neighbour erosion); distances
run between voxel centres. HD95: the larger of the two directed 95th percentiles (Huttenlocher et al. 1993, as commonly
made robust). ASSD: mean over both surfaces together. NSD: share of both surfaces within a tolerance of the other
(Nikolov et al. 2021, arXiv 1809.04430; there on surface elements weighted by area, here on surface voxels).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) distances from each surface voxel of the prediction to the reference's surface, and (m,) the other way, in mm.

    Both empty arrays when a mask is empty.
    """
    if not prediction.any() or not reference.any():
        return np.empty(0), np.empty(0)
    (box,) = ndimage.find_objects((prediction | reference).astype(np.int8))
    assert box is not None
    padded = [np.pad(mask[box], 1) for mask in (prediction, reference)]
    surfaces = [np.logical_and(mask, np.logical_not(ndimage.binary_erosion(mask))) for mask in padded]
    distances = []
    for own, other in (surfaces, surfaces[::-1]):
        distances.append(np.asarray(ndimage.distance_transform_edt(np.logical_not(other), sampling=spacing_mm))[own])
    return distances[0], distances[1]


def nsd(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float], tolerance_mm: float = 1.0
) -> float:
    """Normalised surface Dice in [0, 1]; 0 when one mask is empty, NaN when both are."""
    there, back = surface_distances(prediction, reference, spacing_mm)
    if there.size == 0:
        return 0.0 if prediction.any() or reference.any() else float("nan")
    return float(((there <= tolerance_mm).sum() + (back <= tolerance_mm).sum()) / (there.size + back.size))


def hd95(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """95th percentile Hausdorff distance in mm; the image's diagonal when one mask is empty, NaN when both are."""
    there, back = surface_distances(prediction, reference, spacing_mm)
    if there.size == 0:
        missed = prediction.any() or reference.any()
        return float(np.linalg.norm(np.array(prediction.shape) * spacing_mm)) if missed else float("nan")
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def assd(prediction: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Average symmetric surface distance in mm; the image's diagonal when one mask is empty, NaN when both are."""
    there, back = surface_distances(prediction, reference, spacing_mm)
    if there.size == 0:
        missed = prediction.any() or reference.any()
        return float(np.linalg.norm(np.array(prediction.shape) * spacing_mm)) if missed else float("nan")
    return float((there.sum() + back.sum()) / (there.size + back.size))
