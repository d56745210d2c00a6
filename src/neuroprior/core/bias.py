"""Slow intensity drifts (the bias field of a coil) removed from a scan: N4 (Tustison et al., IEEE TMI 2010), by SimpleITK."""

from __future__ import annotations

import numpy as np

from .errors import InputError, MissingDependency
from .volume import Volume


def need_n4(why: str) -> None:
    """Refuse early where SimpleITK is missing.

    Raises:
        MissingDependency: it is.
    """
    try:
        import SimpleITK  # noqa: F401
    except ImportError:
        raise MissingDependency(f"{why} needs SimpleITK", next_step="pip install SimpleITK") from None


def without_bias(volume: Volume) -> Volume:
    """A volume divided by its bias field: N4 on every fourth voxel inside Otsu's threshold; values below 0 are left alone.

    Raises:
        InputError: N4 finds no field.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels.T))
    image.SetSpacing([float(mm) for mm in volume.spacing_mm])
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    shrink = [max(1, min(4, n // 16)) for n in volume.shape]
    small = sitk.Shrink(image, shrink)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([50, 50, 30])
    try:
        corrector.Execute(small, sitk.OtsuThreshold(small, 0, 1, 200))
        field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)).T
    except RuntimeError as error:
        raise InputError("N4 found no bias field", got=str(error).splitlines()[-1]) from None
    return Volume((volume.voxels / np.exp(field)).astype(np.float32), volume.affine)
