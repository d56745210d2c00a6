"""A volume: voxels and the affine that places them.

The one axis convention of the house: an array of voxels is ``(x, y, z)``; ``affine`` takes voxel indices to
millimetres in RAS+ (x grows to the right, y to the front, z up, as in nibabel). Batches are ``(B, C, x, y, z)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Volume:
    """Voxels with their place in the world.

    Attributes:
        voxels: (x, y, z) array of any numeric dtype.
        affine: (4, 4) float64, voxel index -> RAS+ millimetres.
    """

    voxels: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3:
            raise ValueError(f"a volume has three axes, got shape {self.voxels.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise ValueError(f"an affine is 4 x 4, got shape {affine.shape}")
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        x, y, z = self.voxels.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, in millimetres."""
        return spacing_mm(self.affine)

    @property
    def orientation(self) -> str:
        """The axis codes nearest to the voxel axes, for example ``"RAS"`` or ``"LIA"``."""
        return orientation(self.affine)


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """The voxel spacing that an affine states, in millimetres."""
    x, y, z = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return float(x), float(y), float(z)


def orientation(affine: np.ndarray) -> str:
    """The axis codes nearest to an affine's voxel axes (``"RAS"``, ``"LPS"`` ...)."""
    import nibabel

    return "".join(code or "?" for code in nibabel.orientations.aff2axcodes(np.asarray(affine)))
