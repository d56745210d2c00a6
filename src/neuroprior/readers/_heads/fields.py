"""Smooth random fields, separable upsampling, and the flow of a smooth velocity field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Shape = tuple[int, int, int]


def smooth_noise(shape: Shape, spacing_mm: float, scale_mm: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field of about zero mean and unit variance.

    Args:
        shape: voxels along each axis.
        spacing_mm: distance between voxels.
        scale_mm: distance between the knots of the cubic B-spline; structures are about twice as large.
        rng: source of the knots' coefficients. The field in millimetres depends on it, on ``scale_mm`` and on the
            extent only, so that a finer grid samples the same field.

    Returns:
        float32 array of ``shape``.
    """
    knots = [int(np.floor((n - 1) * spacing_mm / scale_mm + 1e-9)) + 4 for n in shape]
    coefficients = rng.standard_normal(knots).astype(np.float32)
    bases = [_cubic_basis(n, spacing_mm / scale_mm, k) for n, k in zip(shape, knots, strict=True)]
    variance = 0.48  # the squared weights along one axis sum to 0.50 at a knot and to 0.46 between two
    return separable(coefficients, bases) * np.float32(variance**-1.5)


def _cubic_basis(n: int, step: float, knots: int) -> np.ndarray:
    position = np.arange(n) * step + 1.0
    distance = np.abs(position[:, None] - np.arange(knots)[None])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def linear_basis(n: int, step: float, knots: int) -> np.ndarray:
    """(n, knots) weights that interpolate linearly at positions ``0, step, 2 step ...`` counted in knots."""
    position = np.arange(n) * step
    return np.clip(1 - np.abs(position[:, None] - np.arange(knots)[None]), 0, None).astype(np.float32)


def separable(coefficients: np.ndarray, bases: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor product: ``coefficients`` (a, b, c) seen through bases (x, a), (y, b), (z, c) -> (x, y, z)."""
    along_z = np.tensordot(coefficients, bases[2], axes=(2, 1))  # (a, b, z)
    along_y = np.tensordot(bases[1], along_z, axes=(1, 1))  # (y, a, z)
    return np.tensordot(bases[0], along_y, axes=(1, 1))  # (x, y, z)


def flow(velocity: np.ndarray, spacing_mm: float, steps: int = 5) -> np.ndarray:
    """The displacement of the diffeomorphism that a stationary velocity field generates.

    Scaling and squaring (Arsigny et al. 2006): halve ``steps`` times, then compose with itself as often.

    Args:
        velocity: (3, x, y, z) in mm.
        spacing_mm: grid spacing.
        steps: number of squarings.

    Returns:
        (3, x, y, z) displacement in mm; the inverse map is ``flow(-velocity)``.
    """
    displacement = (velocity / 2**steps).astype(np.float32)
    identity = np.indices(velocity.shape[1:], dtype=np.float32)
    for _ in range(steps):
        where = identity + displacement / spacing_mm
        moved = [ndimage.map_coordinates(part, where, order=1, mode="nearest") for part in displacement]
        displacement = displacement + np.stack(moved)
    return displacement


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function, safe for large arguments."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def rotation(angles_deg: np.ndarray) -> np.ndarray:
    """The 3 x 3 rotation about x, then y, then z, by angles in degrees."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.deg2rad(angles_deg)), np.cos(np.deg2rad(angles_deg))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def affine(matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """A 4 x 4 affine of a 3 x 3 matrix and an offset."""
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = matrix, offset
    return result
