"""The head that all synthetic heads are deformed from: ICBM 2009a maps with regions, skull and scalp around them.

The grey and white matter maps and the T1-weighted average are the ICBM 152 nonlinear symmetric 2009a templates (Fonov et
al., NeuroImage 2011), read from nilearn's wheel. Regions are drawn by coordinates and by distance; they are exact by
construction, and no atlas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage

from .fields import Shape, linear_basis, separable, smooth_noise

ORIGIN_MM = (-92.0, -128.0, -100.0)
EXTENT_MM = (184.0, 228.0, 208.0)
"""The corner and the extent of the template's box, in MNI millimetres (RAS+)."""

Point = tuple[float, float, float]

REGIONS: dict[int, tuple[str, str]] = {
    1: ("csf", "CSF"),
    2: ("left-ventricle", "CSF"),
    3: ("right-ventricle", "CSF"),
    4: ("third-fourth-ventricle", "CSF"),
    5: ("left-cerebral-white-matter", "WM"),
    6: ("right-cerebral-white-matter", "WM"),
    7: ("left-deep-grey", "GM"),
    8: ("right-deep-grey", "GM"),
    9: ("left-frontal-cortex", "GM"),
    10: ("right-frontal-cortex", "GM"),
    11: ("left-parietal-cortex", "GM"),
    12: ("right-parietal-cortex", "GM"),
    13: ("left-temporal-cortex", "GM"),
    14: ("right-temporal-cortex", "GM"),
    15: ("left-occipital-cortex", "GM"),
    16: ("right-occipital-cortex", "GM"),
    17: ("left-cerebellar-grey-matter", "GM"),
    18: ("right-cerebellar-grey-matter", "GM"),
    19: ("left-cerebellar-white-matter", "WM"),
    20: ("right-cerebellar-white-matter", "WM"),
    21: ("brainstem", "WM"),
}
"""Label -> (name, tissue). Left labels come first of each pair; 0 is outside the brain."""

VENTRICLES = (2, 3, 4)


@dataclass(frozen=True)
class Template:
    """Maps on one RAS+ grid; voxel (0, 0, 0) lies at ``ORIGIN_MM``.

    Attributes:
        spacing_mm: isotropic spacing.
        parenchyma: float32, above 0.5 in grey or white matter; sulci are sharpened.
        white: float32, above 0.5 in white matter.
        texture: float32, what the T1-weighted average shows beyond its tissues (deep nuclei, myelin).
        brain_mm, head_mm: float32 signed distances to the brain's and to the head's surface, negative inside.
        cortex_region, white_region, csf_region: uint8, the label that a voxel has if it is cortex, white matter or CSF.
        organ: uint8, 1 in the eyes, 2 in the air sinuses, else 0.
    """

    spacing_mm: float
    parenchyma: np.ndarray
    white: np.ndarray
    texture: np.ndarray
    brain_mm: np.ndarray
    head_mm: np.ndarray
    cortex_region: np.ndarray
    white_region: np.ndarray
    csf_region: np.ndarray
    organ: np.ndarray

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        x, y, z = self.parenchyma.shape
        return x, y, z

    @cached_property
    def near_ventricles(self) -> np.ndarray:
        """float32, the ventricles blurred by 6 mm: high in them, falling with the distance."""
        ventricle = np.isin(self.csf_region, VENTRICLES) & (self.parenchyma < 0.5) & (self.brain_mm < -8)
        return ndimage.gaussian_filter(ventricle.astype(np.float32), 6.0 / self.spacing_mm)

    @cached_property
    def periventricular(self) -> np.ndarray:
        """float32, where white-matter hyperintensities begin: deep cerebral white matter, above all near the ventricles."""
        cerebral = np.isin(self.white_region, (5, 6)) & ~np.isin(self.cortex_region, (7, 8))
        return ((self.white > 0.8) & cerebral & (self.brain_mm < -6)) * (self.near_ventricles + np.float32(0.006))


def template(spacing_mm: float) -> Template:
    """The template fit for scans of this spacing: at 1 mm, or at 2 mm where the scans are no finer than 1.5 mm."""
    return _template(1 if spacing_mm < 1.5 else 2)


@lru_cache(maxsize=2)
def _template(spacing: int) -> Template:
    average, grey, white, mask = _maps(spacing)
    parenchyma = grey + white
    # An average of 152 brains blurs the sulci; take away what the surroundings share and they open again.
    parenchyma = parenchyma + 0.9 * (parenchyma - ndimage.gaussian_filter(parenchyma, 4.0 / spacing))
    white = white + 0.6 * (white - ndimage.gaussian_filter(white, 4.0 / spacing))
    x, y, z = coordinates(mask.shape, spacing)
    brain_mm = _signed_distance(mask, spacing)
    csf_region, cortex_region, white_region = _regions(x, y, z, grey + white, white, brain_mm)
    # Around the lateral ventricles the average mixes CSF and white matter into a rim that looks like cortex.
    near = np.isin(csf_region, VENTRICLES) & ~np.isin(cortex_region, (7, 8, 17, 18, 21))
    rim = ndimage.gaussian_filter(near.astype(np.float32), 2.0 / spacing)
    white = white + rim * 0.8 * np.clip(grey + white, 0, 1)
    return Template(
        float(spacing),
        parenchyma.astype(np.float32),
        white.astype(np.float32),
        _texture(average, grey, white, mask),
        brain_mm.astype(np.float32),
        _head_distance(x, y, z, brain_mm, spacing).astype(np.float32),
        cortex_region,
        white_region,
        csf_region,
        _organs(x, y, z, brain_mm),
    )


def coordinates(shape: tuple[int, ...], spacing_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Open (broadcastable) float32 coordinates of the template's voxels, in MNI millimetres."""
    x, y, z = ((origin + spacing_mm * np.arange(n, dtype=np.float32)) for origin, n in zip(ORIGIN_MM, shape, strict=True))
    return x[:, None, None], y[None, :, None], z[None, None, :]


def _maps(spacing: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    from nilearn import datasets

    maps = []
    for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template):
        image = load(resolution=1)
        data = np.asarray(image.dataobj, dtype=np.float32)
        start = np.rint(np.asarray(ORIGIN_MM) - image.affine[:3, 3]).astype(int)
        box = np.asarray(EXTENT_MM).astype(int)
        before = np.clip(-start, 0, None)
        after = np.clip(start + box - data.shape, 0, None)
        kept = data[tuple(slice(max(s, 0), min(s + b, n)) for s, b, n in zip(start, box, data.shape, strict=True))]
        # The maps end in the medulla; it goes on downwards as the cord.
        padded = np.pad(kept, [(int(before[0]), int(after[0])), (int(before[1]), int(after[1])), (0, int(after[2]))])
        maps.append(np.pad(padded, [(0, 0), (0, 0), (int(before[2]), 0)], mode="edge"))
    average, grey, white = maps
    mask = average > 0
    mask[:, :, : int(-74 - ORIGIN_MM[2])] = False
    mask = ndimage.gaussian_filter(mask.astype(np.float32), 2.0)
    if spacing > 1:
        average, grey, white, mask = (_shrink(part, spacing) for part in (average, grey, white, mask))
    return average, grey, white, mask > 0.5


def _shrink(array: np.ndarray, factor: int) -> np.ndarray:
    """Every ``factor``-th voxel of the smoothed array, so that voxel 0 keeps its place."""
    return ndimage.gaussian_filter(array, 0.45 * factor)[::factor, ::factor, ::factor]


def _signed_distance(mask: np.ndarray, spacing: int) -> np.ndarray:
    step = max(1, 2 // spacing)  # distances are smooth: 2 mm is fine enough
    coarse = mask[::step, ::step, ::step]
    size = spacing * step
    distance = np.asarray(ndimage.distance_transform_edt(~coarse)) - np.asarray(ndimage.distance_transform_edt(coarse))
    smooth = ndimage.gaussian_filter((distance * size).astype(np.float32), 1.5 / size)
    return _enlarge(smooth, step, mask.shape)


def _enlarge(array: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
    if factor == 1:
        return array
    bases = []
    for n, k in zip(shape, array.shape, strict=True):
        basis = linear_basis(n, 1 / factor, k)
        bases.append(basis / basis.sum(1, keepdims=True))
    return separable(array, bases)


def _texture(average: np.ndarray, grey: np.ndarray, white: np.ndarray, mask: np.ndarray) -> np.ndarray:
    fit = mask & (grey + white > 0.8)
    columns = np.stack([np.ones(fit.sum(), dtype=np.float32), white[fit].clip(0, 1)], axis=1)
    weights = np.linalg.lstsq(columns, average[fit], rcond=None)[0]
    residual = average - (weights[0] + weights[1] * white.clip(0, 1))
    residual = np.clip(residual, -0.1, 0.1) * np.clip((grey + white - 0.75) / 0.2, 0, 1) * mask
    return residual.astype(np.float32)


def _regions(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, parenchyma: np.ndarray, white: np.ndarray, brain_mm: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right = np.broadcast_to(x > 0, brain_mm.shape).astype(np.uint8)
    ax = np.abs(x)

    def ellipsoid(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> np.ndarray:
        return ((ax - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1

    tentorium = 0.0 - 0.5 * ax - 0.2 * np.clip(-68 - y, 0, None) - 0.7 * np.clip(y + 50, 0, None)
    below = (z < tentorium) & (y < -30) & ~ellipsoid(0, -20, -30, 16, 20, 22)
    stem = (ax < 18) & (z < -7) & (y > -44) & (y < -8) & (ellipsoid(0, -26, -30, 17, 17, 40) | (z < -55))
    deep = (ellipsoid(11, -17, 8, 13, 17, 12) | ellipsoid(23, 2, 1, 14, 22, 15) | ellipsoid(13, 10, 8, 9, 17, 16)) & (z > -14)

    temporal = (z < -6 + 0.35 * (-y - 20)) & (y > -62) & (y < 22) & (ax > 14) & ((ax > 30) | (z < -4))
    frontal = (y > -12 - 0.15 * (z - 30)) & ~temporal
    occipital = (y < -70 - 0.15 * (z - 10)) & ~temporal
    parietal = ~(frontal | temporal | occipital)
    cortex = np.zeros(brain_mm.shape, np.uint8)
    for where, label in ((frontal, 9), (parietal, 11), (temporal, 13), (occipital, 15)):
        np.copyto(cortex, label + right, where=np.broadcast_to(where, cortex.shape))
    whites = 5 + right
    for where, label in ((deep, 7), (below, 17)):
        np.copyto(cortex, label + right, where=np.broadcast_to(where, cortex.shape))
    np.copyto(whites, 19 + right, where=np.broadcast_to(below, cortex.shape))
    np.copyto(cortex, 21, where=np.broadcast_to(stem, cortex.shape))
    np.copyto(whites, 21, where=np.broadcast_to(stem, cortex.shape))

    # Ventricular CSF: the dark core of the average, thickened so that it still holds an aged ventricle.
    inner = brain_mm < -12
    lateral_box = (ax < 44) & (y > -58) & (y < 40) & (z > -24) & (z < 34) & ((ax < 26) | ((y < -20) & (z < 22)))
    lateral_box = lateral_box & ~((ax < 5) & (z > 20)) & ~((y > 4) & (z < -2)) & ~((y < -34) & (ax < 9))
    core = inner & lateral_box & (parenchyma < 0.6)
    core = _largest(core, 3)
    lateral = ndimage.gaussian_filter(core.astype(np.float32), 5.0 / (abs(float(x[1, 0, 0] - x[0, 0, 0])))) > 0.05
    third = (ax < 5) & (y > -24) & (y < 6) & (z < 12) & (z > -12)
    fourth = (ax < 13) & (y < -32) & (y > -52) & (z < -18) & (z > -46)
    csf = np.ones(brain_mm.shape, np.uint8)
    np.copyto(csf, 2 + right, where=lateral & (brain_mm < -8))
    np.copyto(csf, 4, where=np.broadcast_to(third | fourth, csf.shape))
    return csf, cortex, whites


def _largest(mask: np.ndarray, keep: int) -> np.ndarray:
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    if labels.max() <= keep:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.argsort(sizes)[-keep:])


def _head_distance(x: np.ndarray, y: np.ndarray, z: np.ndarray, brain_mm: np.ndarray, spacing: int) -> np.ndarray:
    """Signed distance to the skin: a shell around the brain, joined with a face and a neck."""

    def ellipsoid(centre: Point, radii: Point) -> np.ndarray:
        (cx, cy, cz), (rx, ry, rz) = centre, radii
        return (np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2) - 1) * min(radii)

    shell = brain_mm - 13
    face = ellipsoid((0, 34, -58), (60, 58, 64))
    nose = ellipsoid((0, 92, -52), (13, 18, 24))
    jaw = ellipsoid((0, 50, -100), (46, 46, 34))
    radius = np.sqrt((x / 56) ** 2 + ((y + 28) / 62) ** 2)
    neck = np.maximum((radius - 1) * 56, z + 40)
    head = shell
    for part, width in zip((face, neck, nose, jaw), (10.0, 12.0, 5.0, 8.0), strict=True):
        blend = np.clip(0.5 + 0.5 * (part - head) / width, 0, 1)  # smooth union
        head = part * (1 - blend) + head * blend - width * blend * (1 - blend)
    rng = np.random.Generator(np.random.PCG64(152))
    shape = (brain_mm.shape[0], brain_mm.shape[1], brain_mm.shape[2])
    return head + 0.8 * smooth_noise(shape, spacing, 16.0, rng)


def _organs(x: np.ndarray, y: np.ndarray, z: np.ndarray, brain_mm: np.ndarray) -> np.ndarray:
    ax = np.abs(x)
    organ = np.zeros(brain_mm.shape, np.uint8)
    eyes = (ax - 33) ** 2 + (y - 60) ** 2 + (z + 36) ** 2 < 12**2
    nasal = ((ax / 13) ** 2 + ((y - 62) / 26) ** 2 + ((z + 58) / 20) ** 2 < 1) | (
        (ax / 9) ** 2 + ((y - 10) / 14) ** 2 + ((z + 80) / 30) ** 2 < 1
    )
    maxillary = ((ax - 30) / 12) ** 2 + ((y - 48) / 15) ** 2 + ((z + 66) / 14) ** 2 < 1
    frontal_sinus = ((ax - 10) / 10) ** 2 + ((y - 80) / 5) ** 2 + ((z + 8) / 8) ** 2 < 1
    outside = brain_mm > 3
    organ[(nasal | maxillary | frontal_sinus) & outside] = 2
    organ[eyes & outside] = 1
    return organ
