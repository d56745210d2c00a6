"""Scanners of fixed character, and what one acquisition makes of an ideal image.

Every scan draws its own field of view, slice angle and head movement. The field of view stands in the header; the
movement, a millimetre or so, does not, as in any real session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .fields import affine, rotation, smooth_noise


@dataclass(frozen=True)
class Scanner:
    """A machine with its habits.

    Attributes:
        name, site, manufacturer, tesla: as they stand in tables and sidecars.
        noise: standard deviation of the noise in each channel, as a fraction of bright tissue, at 1 mm.
        bias: strength of the receive field's unevenness (standard deviation of its logarithm).
        gamma: exponent on the brightness.
        scale: stored value of brightness 1.
        thick_mm: slice thickness of 2-D contrasts.
        axes: voxel axes of the stored 3-D and 2-D scans.
        dtype: on disk.
        masks_air: whether the reconstruction sets the background to zero.
    """

    name: str
    site: str
    manufacturer: str
    tesla: float
    noise: float
    bias: float
    gamma: float
    scale: float
    thick_mm: float
    axes: tuple[str, str]
    dtype: str
    masks_air: bool = False


SCANNERS = (
    Scanner("Aurora3T", "north", "Synthetic Aurora", 3.0, 0.020, 0.14, 1.00, 900.0, 3.0, ("PIR", "LPS"), "int16"),
    Scanner("Boreal15T", "south", "Synthetic Boreal", 1.5, 0.038, 0.07, 1.12, 420.0, 4.0, ("RAS", "RAS"), "int16"),
    Scanner("Cirrus3T", "east", "Synthetic Cirrus", 3.0, 0.026, 0.18, 0.90, 2100.0, 3.0, ("LAS", "LAS"), "uint16", True),
    Scanner("Dune7T", "west", "Synthetic Dune", 7.0, 0.016, 0.28, 0.96, 1.0, 2.0, ("RAS", "RPS"), "float32"),
)
"""The machines; their site names and their characters are fixed."""

FLAT_CONTRASTS = ("T2w", "FLAIR", "PDw", "DWI", "ADC", "SWI")
"""Contrasts that are acquired in thick slices, unless they serve as the session's reference."""


@dataclass(frozen=True)
class Protocol:
    """One acquisition's geometry.

    Attributes:
        shape: voxels along x, y, z (RAS order).
        affine: (4, 4) voxel -> scanner millimetres, as the header will say.
        motion: (4, 4) rigid movement of the head in scanner millimetres, in no header.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    motion: np.ndarray


@dataclass(frozen=True)
class Acquired:
    """A scan as it leaves the scanner: voxels in stored order and type, and the affine of its header."""

    voxels: np.ndarray
    affine: np.ndarray


def head_pose(rng: np.random.Generator) -> np.ndarray:
    """Where a head lies in the scanner at a session: (4, 4) head mm -> scanner mm."""
    return affine(rotation(rng.normal(0, (3.0, 2.0, 2.5))), rng.normal(0, (3.0, 4.0, 9.0)))


def plan(
    scanner: Scanner, contrast: str, spacing_mm: float, pose: np.ndarray, rng: np.random.Generator, *,
    reference: bool, skull: bool, enlarge_mm: float = 0.0,
) -> Protocol:  # fmt: skip
    """The geometry of one acquisition. Its size depends on no head: boxes are drawn large enough for all.

    Args:
        scanner: the machine.
        contrast: canonical name.
        spacing_mm: in-plane spacing, and the slice thickness of 3-D scans.
        pose: head mm -> scanner mm.
        rng: source of the draws.
        reference: whether this is the session's reference (3-D, isotropic, holds the whole brain, not moved).
        skull: whether the head, not only the brain, should fit.
        enlarge_mm: added to every side of the box.
    """
    flat = contrast in FLAT_CONTRASTS and not reference
    thick = max(spacing_mm, scanner.thick_mm) if flat else spacing_mm
    spacing = np.array([spacing_mm, spacing_mm, thick])
    least = np.array([176.0, 212.0, 186.0 if not flat else 162.0]) + (8.0 if skull else 0.0)
    extent = least + rng.uniform(0, (24.0, 24.0, 26.0)) + enlarge_mm
    shape = np.ceil(extent / spacing).astype(int)
    centre = pose[:3, :3] @ np.array([0.0, -17.0, 2.0]) + pose[:3, 3]  # of the brain's box
    centre = centre + rng.normal(0, 1.5, size=3).clip(-3, 3) + np.array([0, 0, rng.uniform(-6, 4)])
    turned = rotation(rng.normal(0, 2.0 if reference else 4.0, size=3) * (1.0, 0.5, 0.5))
    matrix = turned * spacing
    offset = centre - matrix @ ((shape - 1) / 2)
    moved = np.eye(4)
    if not reference:
        angles, shift = rng.normal(0, 0.5, size=3).clip(-1.2, 1.2), rng.normal(0, 0.6, size=3).clip(-1.5, 1.5)
        moved = affine(rotation(angles), centre - rotation(angles) @ centre + shift)
    return Protocol((int(shape[0]), int(shape[1]), int(shape[2])), affine(matrix, offset), moved)


def acquire(
    image: np.ndarray, image_affine: np.ndarray, protocol: Protocol, scanner: Scanner, contrast: str,
    rng: np.random.Generator, *, outline_mm: np.ndarray | None = None, air_noise: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What the scanner measures: resampled, uneven, noisy, non-negative.

    Args:
        image: ideal image (x, y, z).
        image_affine: its voxels -> scanner mm.
        protocol: geometry of the acquisition.
        scanner: the machine.
        contrast: canonical name.
        rng: source of the receive field and the noise.
        outline_mm: signed distance to the brain on the image's grid; where given, the scan is stripped along it, a
            little off, as every stripping is.
        air_noise: standard deviation of noise added to the air last, as a fraction of bright tissue.

    Returns:
        float32 voxels in RAS order where brightness 1 is about ``scanner.scale`` (for ADC 3000, in 1e-6 mm2/s), and bool
        where the head is not air.
    """
    spacing = np.linalg.norm(protocol.affine[:3, :3], axis=0)
    fine = float(np.linalg.norm(image_affine[:3, 0]))
    sigmas = [0.42 * s / fine if s > 1.2 * fine else 0.0 for s in spacing]
    if any(sigmas):
        image = ndimage.gaussian_filter(image, sigmas)
    to_image = np.linalg.inv(image_affine) @ np.linalg.inv(protocol.motion) @ protocol.affine
    seen = _move(image, to_image, protocol.shape, 0.0)
    mean_spacing = float(spacing.prod() ** (1 / 3))
    inside = seen > 0.01
    if outline_mm is not None:
        away = _move(outline_mm, to_image, protocol.shape, 50.0)
        wobble = smooth_noise(protocol.shape, mean_spacing, 14.0, rng)
        inside = away + 0.8 * wobble < rng.uniform(0.2, 3.0)
    seen = seen * np.exp(scanner.bias * smooth_noise(protocol.shape, mean_spacing, 90.0, rng))
    if contrast != "ADC":
        seen = np.power(seen, np.float32(scanner.gamma), out=seen)
    sigma = np.float32(scanner.noise * (0.5 if mean_spacing > 1.5 else 0.8))
    first, second = (rng.standard_normal(protocol.shape, dtype=np.float32) for _ in range(2))
    seen = np.sqrt((seen + sigma * first) ** 2 + (sigma * second) ** 2)
    if outline_mm is not None or scanner.masks_air or contrast == "ADC":
        seen *= inside
    if air_noise > 0:
        seen += ~inside * np.abs(np.float32(air_noise) * rng.spawn(1)[0].standard_normal(protocol.shape, dtype=np.float32))
    gain = rng.uniform(0.85, 1.15)
    return seen * np.float32(3000.0 if contrast == "ADC" else scanner.scale * gain), inside


def _move(image: np.ndarray, to_image: np.ndarray, shape: tuple[int, int, int], fill: float) -> np.ndarray:
    """The image on another grid, linearly; an exact copy where the grids differ by whole voxels."""
    shift = np.rint(to_image[:3, 3])
    if np.allclose(to_image[:3, :3], np.eye(3), atol=1e-6) and np.allclose(to_image[:3, 3], shift, atol=1e-4):
        return copy_box(image, shift.astype(int), shape, fill)
    return ndimage.affine_transform(image, to_image, output_shape=shape, order=1, mode="constant", cval=fill)


def copy_box(image: np.ndarray, shift: np.ndarray, shape: tuple[int, int, int], fill: float) -> np.ndarray:
    """The box of ``shape`` that begins at voxel ``shift`` of the image; ``fill`` where the image does not reach."""
    result = np.full(shape, fill, image.dtype)
    to, of = [], []
    for s, n, m in zip((int(k) for k in shift), shape, image.shape, strict=True):
        to.append(slice(min(n, max(0, -s)), max(0, min(n, m - s))))
        of.append(slice(min(m, max(0, s)), max(0, min(m, n + s))))
    result[tuple(to)] = image[tuple(of)]
    return result


def store(voxels: np.ndarray, where: np.ndarray, axes: str, dtype: str) -> Acquired:
    """Voxels in RAS order turned to the stored axes and type; ``where`` is their affine."""
    import nibabel

    start = nibabel.orientations.axcodes2ornt("RAS")
    turn = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(axes))
    turned = np.ascontiguousarray(nibabel.orientations.apply_orientation(voxels, turn))
    placed = where @ nibabel.orientations.inv_ornt_aff(turn, voxels.shape)
    if np.issubdtype(np.dtype(dtype), np.integer) and not np.issubdtype(turned.dtype, np.integer):
        turned = np.rint(turned)
    return Acquired(turned.astype(dtype), placed)
