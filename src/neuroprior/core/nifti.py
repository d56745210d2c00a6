"""NIfTI files: what their header says, their voxels, and writing beside an existing header bit for bit.

Read with nibabel. A header that can be repaired is repaired and the repair told as a note; one that cannot is an
:class:`~neuroprior.core.errors.InputError` that names the file, what was expected, what came and the next step.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import artifacts
from .errors import InputError
from .geometry import EXACT, Grid, corner_distance_mm, orthonormalise
from .volume import Volume, orientation

DISAGREE_VOXELS = 0.1
"""sform and qform whose corners differ by more than this many voxels are told."""

_READ_ERRORS = (EOFError, zlib.error, OSError, ValueError, IndexError, MemoryError)


@dataclass(frozen=True)
class Header:
    """What a file's header says, read without its voxels.

    Attributes:
        shape: voxels along each axis; trailing axes of length one are dropped.
        spacing_mm: along each axis.
        affine: (4, 4) voxel -> RAS+ mm, repaired where the file's axes were not orthonormal.
        orientation: axis codes.
        dtype: on disk.
        qform_code, sform_code: 0 where absent.
        notes: what was repaired or is odd, one sentence each.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    orientation: str
    dtype: str
    qform_code: int
    sform_code: int
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid that the voxels lie on."""
        return Grid(self.shape, self.affine)


def inspect_header(path: str | Path) -> Header:
    """The checked header of an image file.

    Raises:
        InputError: the file cannot be read, is no image, is not three-dimensional, or states an impossible spacing.
    """
    return _inspect(_open(path), Path(path))


def _open(path: str | Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    path = Path(path)
    if not path.exists():
        raise InputError("there is no such file", file=path)
    try:
        image = nibabel.load(path)
    except PermissionError:
        raise InputError("no permission to read the file", file=path, next_step="chmod u+r, or ask its owner") from None
    except (ImageFileError, HeaderDataError, *_READ_ERRORS) as error:
        raise InputError(
            "the file cannot be read as an image",
            file=path,
            expected="a NIfTI file",
            got=f"{path.stat().st_size} bytes: {_first_line(error)}",
            next_step="copy or convert it again",
        ) from None
    return image


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _raw_pixdim(path: Path) -> np.ndarray | None:
    """The stored voxel sizes, before nibabel mends them; None for a format other than NIfTI."""
    import nibabel
    from nibabel.openers import ImageOpener

    with ImageOpener(str(path), "rb") as file:
        block = file.read(540)
    for kind, size in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        for order in ("<", ">"):
            if len(block) >= size and int(np.frombuffer(block[:4], dtype=f"{order}i4")[0]) == size:
                return np.array(kind(block[:size], endianness=order, check=False)["pixdim"][1:4], dtype=np.float64)
    return None


def _inspect(image: Any, path: Path) -> Header:
    notes: list[str] = []
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise InputError(
            f"the image has shape {'x'.join(map(str, shape))}, which is no single volume",
            file=path,
            expected="three axes of at least 2 voxels",
            got=f"{len(shape)}-D" if len(shape) != 3 else "an axis of one voxel",
            next_step="split a 4-D series into volumes, one file each" if len(shape) > 3 else "use a 3-D scan",
        )
    pixdim = _raw_pixdim(path)
    if pixdim is not None and (not np.isfinite(pixdim).all() or (pixdim <= 0).any()):
        raise InputError(
            "the header states an impossible voxel size",
            file=path,
            expected="three positive numbers of mm",
            got=", ".join(f"{value:g}" for value in pixdim),
            next_step="convert the scan again from its source",
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(
            "the header's affine is singular", file=path, expected="an invertible voxel-to-millimetre matrix",
            got=np.round(affine[:3], 3).tolist(), next_step="convert the scan again from its source",
        )  # fmt: skip
    x, y, z = shape
    stated = Grid((x, y, z), affine)
    repaired, shift = orthonormalise(stated)
    tolerance = EXACT * min(stated.spacing_mm)
    if shift > tolerance:
        notes.append(f"the axes were not orthonormal: repaired, the corners move by up to {shift:.2f} mm")
        affine = repaired.affine
    qform_code, sform_code = _codes(image)
    if qform_code > 0 and sform_code > 0:
        apart = corner_distance_mm(Grid((x, y, z), image.header.get_qform()), stated)
        if apart > DISAGREE_VOXELS * min(stated.spacing_mm):
            notes.append(f"sform and qform disagree by up to {apart:.2f} mm: the sform is used")
    elif qform_code == 0 and sform_code == 0 and pixdim is not None:
        notes.append("neither sform nor qform is set: the voxel axes are taken for RAS or LAS as stored")
    if max(stated.spacing_mm) > 20 or min(stated.spacing_mm) < 0.05:
        notes.append(f"implausible voxel size {'x'.join(f'{v:.3g}' for v in stated.spacing_mm)} mm")
    checked = Grid((x, y, z), affine)
    return Header(
        (x, y, z), checked.spacing_mm, affine, orientation(affine), str(image.get_data_dtype()), qform_code, sform_code, tuple(notes)
    )


def _codes(image: Any) -> tuple[int, int]:
    header = image.header
    if "qform_code" not in header or "sform_code" not in header:
        return 0, 0
    return int(header["qform_code"]), int(header["sform_code"])


def _voxels(image: Any, header: Header, path: Path) -> np.ndarray:
    try:
        array = np.asanyarray(image.dataobj)
    except PermissionError:
        raise InputError("no permission to read the file", file=path, next_step="chmod u+r, or ask its owner") from None
    except _READ_ERRORS as error:
        raise InputError(
            "the voxels cannot be read: the file is truncated or damaged",
            file=path,
            expected=f"{'x'.join(map(str, header.shape))} voxels of {header.dtype}",
            got=_first_line(error),
            next_step="copy or convert it again",
        ) from None
    if np.iscomplexobj(array) or array.dtype.fields is not None:
        raise InputError("the voxels are no real numbers", file=path, expected="a magnitude image", got=str(array.dtype))
    return array.reshape(header.shape)


def check_voxels(voxels: np.ndarray) -> tuple[str, ...]:
    """What is wrong with a scan's intensities: not-finite values, or one value everywhere. Empty when nothing is."""
    problems = []
    finite = np.isfinite(voxels)
    bad = int(voxels.size - np.count_nonzero(finite))
    if bad:
        problems.append(f"{bad} of {voxels.size} voxels are NaN or infinite")
    values = voxels[finite] if bad else voxels
    if values.size == 0 or float(values.min()) == float(values.max()):
        problems.append(f"the volume is constant ({float(values.flat[0]) if values.size else 'nothing'} everywhere)")
    return tuple(problems)


def read_scan(path: str | Path, *, nonfinite: Literal["error", "zero"] = "error") -> tuple[Volume, tuple[str, ...]]:
    """A scan's intensities as float32 (scaling applied), and the notes of its header.

    Args:
        path: image file.
        nonfinite: ``error`` refuses NaN and infinities, ``zero`` sets them to 0 and tells.

    Raises:
        InputError: the file cannot be used; constant volumes are refused too.
    """
    path = Path(path)
    image = _open(path)
    header = _inspect(image, path)
    voxels = _voxels(image, header, path).astype(np.float32)
    notes = list(header.notes)
    bad = ~np.isfinite(voxels)
    if bad.any() and nonfinite == "zero" and not bad.all():
        voxels[bad] = 0
        notes.append(f"{int(bad.sum())} voxels were NaN or infinite: set to 0")
    problems = check_voxels(voxels)
    if problems:
        raise InputError(
            "; ".join(problems), file=path, expected="finite intensities that vary", next_step="export the scan again, or leave it out"
        )
    return Volume(voxels, header.affine), tuple(notes)


def read_labels(path: str | Path) -> tuple[Volume, tuple[str, ...]]:
    """A label map as integers, and notes.

    Values stored as floats are rounded when all lie within 0.001 of an integer, and that is told.

    Raises:
        InputError: the file cannot be used, or its values are no labels; the message shows the values.
    """
    path = Path(path)
    image = _open(path)
    header = _inspect(image, path)
    voxels = _voxels(image, header, path)
    notes = list(header.notes)
    if np.issubdtype(voxels.dtype, np.floating):
        if not np.isfinite(voxels).all():
            raise InputError("the label map holds NaN or infinite values", file=path, next_step="export it again as integers")
        rounded = np.rint(voxels)
        if np.abs(voxels - rounded).max() > 1e-3:
            values = np.unique(voxels)
            raise InputError(
                "the label map's values are no integers: a probability map or an image?", file=path, expected="whole numbers",
                got=f"{len(values)} values: {', '.join(f'{v:g}' for v in values[:8])}{' ...' if len(values) > 8 else ''}",
                next_step="threshold or export it as integers",
            )  # fmt: skip
        voxels = rounded.astype(np.int32)
        notes.append("labels were stored as floats: rounded")
    low, high = int(voxels.min()), int(voxels.max())
    kind = np.min_scalar_type(high) if low >= 0 else np.int32
    return Volume(voxels.astype(kind), header.affine), tuple(notes)


def write(path: str | Path, volume: Volume, *, dtype: Any = None) -> Path:
    """Write a volume as NIfTI, atomically, with sform and qform set (code 1) to its affine in mm."""
    import nibabel

    path = Path(path)
    image = nibabel.Nifti1Image(volume.voxels.astype(dtype or volume.voxels.dtype), volume.affine)
    image.set_qform(volume.affine, code=1)
    image.set_sform(volume.affine, code=1)
    image.header.set_xyzt_units("mm")
    with artifacts.atomic(path) as temporary:
        nibabel.save(image, temporary)
    return path


def write_like(path: str | Path, array: np.ndarray, *, like: str | Path, dtype: Any = None) -> Path:
    """Write an array with the header of another file: shape, affine, qform, sform and their codes stay bit for bit.

    Only the data type and what depends on it (scaling, display range) change.

    Args:
        path: where to write.
        array: (x, y, z) values on the grid of ``like``.
        like: the file whose header is taken.
        dtype: on disk; the array's own by default.

    Raises:
        InputError: ``like`` cannot be read or has another shape.
    """
    import nibabel

    path = Path(path)
    source = _open(like)
    shape = tuple(source.shape)
    if int(np.prod(shape)) != array.size or tuple(n for n in shape if n > 1) != tuple(n for n in array.shape if n > 1):
        raise InputError("the array does not lie on the grid of its header", file=like, expected=shape, got=array.shape)
    values = array.astype(dtype or array.dtype, copy=False).reshape(shape)
    header = source.header.copy()
    if not isinstance(header, nibabel.Nifti1Header):
        header = nibabel.Nifti1Header.from_header(header)
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(None, None)
    header["cal_min"], header["cal_max"] = 0, 0
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    image = kind(values, source.affine, header)
    with artifacts.atomic(path) as temporary:
        nibabel.save(image, temporary)
    return path
