"""Do two scans lie on each other by their headers, and if not, by how much?

Two measures that need no threshold on the contrasts' kinship: the overlap of the heads (voxels that are not background),
and whether a translation raises the mutual information of the intensities. Rigid alignment is dipy's (extra ``atlas``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import ConfigError

GRID_MM = 4.0
"""Spacing at which alignment is judged."""
STEPS = 3
"""Translations tried along each axis and direction, ``GRID_MM`` apart."""
BINS = 16
"""Of the joint histogram, at equal shares of voxels."""


@dataclass(frozen=True)
class Alignment:
    """What two scans have to do with each other.

    Attributes:
        overlap: Dice of the heads, 0 to 1.
        shift_mm: translation along one axis that raises mutual information most; 0 where none does by a tenth.
    """

    overlap: float
    shift_mm: float

    def reason(self, min_overlap: float, max_shift_mm: float) -> str | None:
        """Why the scans do not align, or None where they do."""
        if self.overlap < min_overlap:
            return f"the heads overlap by {self.overlap:.2f}, less than {min_overlap:g}"
        if abs(self.shift_mm) > max_shift_mm:
            return f"a shift of {self.shift_mm:.0f} mm makes them more alike, more than {max_shift_mm:g} mm"
        return None


def compare(a: np.ndarray, affine_a: np.ndarray, b: np.ndarray, affine_b: np.ndarray) -> Alignment:
    """How well ``b`` lies on ``a`` by their affines.

    Args:
        a, b: (x, y, z) intensities, background 0.
        affine_a, affine_b: (4, 4), voxel to mm.
    """
    spacing = np.linalg.norm(affine_a[:3, :3], axis=0)
    every = np.maximum(1, np.round(GRID_MM / spacing)).astype(int)
    coarse = a[:: every[0], :: every[1], :: every[2]]
    scaled = affine_a @ np.diag([*every, 1.0])
    base = resampled(b, affine_b, coarse.shape, scaled)
    head_a, head_b = coarse != 0, base != 0
    overlap = 2 * float((head_a & head_b).sum()) / max(1.0, float(head_a.sum() + head_b.sum()))
    if overlap < 0.05:
        return Alignment(overlap, 0.0)
    steps = np.linalg.norm(scaled[:3, :3], axis=0)
    here = mutual_information(coarse, base)
    best, shift = here * 1.1, 0.0
    for axis in range(3):
        for step in (*range(-STEPS, 0), *range(1, STEPS + 1)):
            moved = _shifted(base, axis, step)
            value = mutual_information(coarse, moved)
            if value > best:
                best, shift = value, float(step * steps[axis])
    return Alignment(overlap, shift)


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information in nats of two images over the union of their heads, from a histogram of equal shares."""
    where = (a != 0) | (b != 0)
    if where.sum() < 4 * BINS:
        return 0.0
    ranks = [_binned(image[where]) for image in (a, b)]
    joint = np.bincount(ranks[0] * BINS + ranks[1], minlength=BINS * BINS).reshape(BINS, BINS) / where.sum()
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    positive = joint > 0
    return float((joint[positive] * np.log(joint[positive] / product[positive])).sum())


def _binned(values: np.ndarray) -> np.ndarray:
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def _shifted(image: np.ndarray, axis: int, step: int) -> np.ndarray:
    out = np.zeros_like(image)
    length = image.shape[axis]
    to, of = [slice(None)] * 3, [slice(None)] * 3
    to[axis] = slice(max(0, step), min(length, length + step))
    of[axis] = slice(max(0, -step), min(length, length - step))
    out[tuple(to)] = image[tuple(of)]
    return out


def resampled(
    image: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, ...],
    target: np.ndarray,
    *,
    order: int = 1,
    rigid: np.ndarray | None = None,
) -> np.ndarray:
    """An image on another grid by linear (or nearest, ``order=0``) interpolation; 0 outside.

    Args:
        image: (x, y, z).
        affine: (4, 4) of the image.
        shape, target: of the wanted grid, voxels and (4, 4) affine.
        rigid: (4, 4), mm of the target's space to mm of the image's space; identity where None.
    """
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(affine) @ (np.eye(4) if rigid is None else rigid) @ target
    return affine_transform(image, matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape), order=order, mode="constant", cval=0)


def needed(
    affine: np.ndarray,
    shape: tuple[int, ...],
    wanted: tuple[int, ...],
    target: np.ndarray,
    *,
    rigid: np.ndarray | None = None,
) -> tuple[slice, slice, slice] | None:
    """The box of an image that :func:`resampled` looks at: what the corners of the wanted grid span, and a voxel around it.

    Args:
        affine, shape: of the image.
        wanted, target: of the wanted grid, voxels and (4, 4) affine.
        rigid: as there.

    Returns:
        The box, or None where the wanted grid lies outside the image.
    """
    matrix = np.linalg.inv(affine) @ (np.eye(4) if rigid is None else rigid) @ target
    corners = np.stack(np.meshgrid(*((0, length - 1) for length in wanted), indexing="ij"), -1).reshape(-1, 3)
    places = corners @ matrix[:3, :3].T + matrix[:3, 3]
    low = np.maximum(np.floor(places.min(0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(places.max(0)).astype(int) + 2, shape)
    if (low >= high).any():
        return None
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return x, y, z


def boxed(affine: np.ndarray, box: tuple[slice, slice, slice]) -> np.ndarray:
    """The (4, 4) affine of a box of an image."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ np.array([*(part.start for part in box), 1.0]))[:3]
    return moved


def rigid(a: np.ndarray, affine_a: np.ndarray, b: np.ndarray, affine_b: np.ndarray) -> np.ndarray:
    """The (4, 4) rigid transform from mm of ``a``'s space to mm of ``b``'s space that aligns them (mutual information, dipy).

    Raises:
        ConfigError: dipy is not installed.
    """
    try:
        from dipy.align import affine_registration
    except ImportError:
        raise ConfigError(
            "aligning scans needs dipy", next_step="pip install 'neuroprior[atlas]', or set data.misaligned=skip"
        ) from None
    found = affine_registration(
        b.astype(np.float64), a.astype(np.float64), moving_affine=affine_b, static_affine=affine_a, nbins=32, metric="MI",
        pipeline=["center_of_mass", "translation", "rigid"], level_iters=[200, 50, 10], sigmas=[3.0, 1.0, 0.0], factors=[4, 2, 1],
    )  # fmt: skip
    return np.asarray(found[1])
