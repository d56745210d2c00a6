"""Volumes that are no NIfTI: FreeSurfer ``.mgz``/``.mgh``, MetaImage ``.mha``/``.mhd``, ``.nrrd``/``.nhdr``; headers and voxels.

Called by :mod:`neuroprior.core.nifti`, whose functions take any of these paths. FreeSurfer's files go through nibabel, the others through
SimpleITK (the extra ``itk``), whose LPS world becomes RAS here. A header that keeps its voxels in another file may only name one in its own
folder: a file that came by download must not make us read elsewhere.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, MissingDependency

FREESURFER = (".mgz", ".mgh")
ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
SUFFIXES = (*FREESURFER, *ITK)
"""What this module reads."""

_MGH_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


@dataclass(frozen=True)
class Facts:
    """What a header says.

    Attributes:
        shape: as stored, trailing axes of one dropped; the first axis runs fastest.
        affine: (4, 4) float64, voxel -> RAS+ mm, as the file states it.
        dtype: of a voxel.
        placed: False where the file states no place in the world.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype[Any]
    placed: bool = True


def is_other(path: str | Path) -> bool:
    """Whether a path's suffix is one of this module's."""
    return str(path).lower().endswith(SUFFIXES)


def inspect(path: Path) -> Facts:
    """A file's header; no voxel is decoded.

    Raises:
        InputError: missing, damaged, cut short, or its voxels lie outside its folder.
        MissingDependency: SimpleITK is needed and absent.
    """
    return _mgh_header(path)[0] if path.name.lower().endswith(FREESURFER) else _itk(path, voxels=False)[0]


def load(path: Path) -> tuple[Facts, np.ndarray]:
    """A file's header, and its voxels (x, y, z) in native byte order.

    Raises:
        InputError, MissingDependency: as :func:`inspect`.
    """
    if path.name.lower().endswith(FREESURFER):
        return _mgh(path)
    facts, voxels = _itk(path, voxels=True)
    if voxels is None:  # pragma: no cover - _itk gives them when asked
        raise InputError("the file holds no voxels", file=path)
    return facts, voxels


# ------------------------------------------------------------------------------------------------------------ FreeSurfer


def _mgh_open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".mgz") else open(path, "rb")


def _mgh_header(path: Path) -> tuple[Facts, int]:
    """The facts, and the bytes that the voxels take. The layout is FreeSurfer's: 284 bytes, big-endian."""
    try:
        with _mgh_open(path) as file:
            start = file.read(284)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError("the file is cut short or damaged", file=path, expected="a whole gzip stream", got=str(error)) from None
    if len(start) < 284:
        raise InputError("the file is cut short", file=path, expected="a header of 284 bytes", got=f"{len(start)} bytes")
    version, *sizes, code = (int(n) for n in np.frombuffer(start, ">i4", 6))
    if version != 1 or code not in _MGH_TYPES:
        raise InputError("this is no FreeSurfer volume", file=path, expected=f"version 1 and a type of {sorted(_MGH_TYPES)}",
                         got=f"version {version}, type {code}")  # fmt: skip
    if min(sizes) < 1:
        raise InputError("the header is damaged", file=path, expected="positive axis lengths", got=f"shape {tuple(sizes)}")
    shape = tuple(sizes)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    good = int(np.frombuffer(start, ">i2", 1, 28)[0]) == 1
    numbers = np.frombuffer(start, ">f4", 15, 30).astype(np.float64)
    spacing = numbers[:3] if good else np.ones(3)
    # without a valid RAS flag FreeSurfer takes a coronal volume of 1 mm: x to the left, y down, z to the front
    directions = numbers[3:12].reshape(3, 3).T if good else np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    centre = numbers[12:15] if good else np.zeros(3)
    affine = np.eye(4)
    with np.errstate(all="ignore"):
        affine[:3, :3] = directions * spacing
        affine[:3, 3] = centre - affine[:3, :3] @ (np.array(sizes[:3]) / 2)
    dtype = np.dtype(_MGH_TYPES[code])
    return Facts(shape, affine, dtype.newbyteorder("="), placed=good), int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize


def _mgh(path: Path) -> tuple[Facts, np.ndarray]:
    facts, needed = _mgh_header(path)
    try:
        with _mgh_open(path) as file:
            file.seek(284)
            content = file.read(needed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError("the file is cut short or damaged", file=path, expected="a whole gzip stream", got=str(error)) from None
    if len(content) < needed:
        raise InputError("the file is cut short", file=path, expected=f"{needed} bytes of voxels", got=f"{len(content)} bytes")
    voxels = np.frombuffer(content, facts.dtype.newbyteorder(">")).reshape(facts.shape, order="F")
    return facts, voxels.astype(facts.dtype)


# ------------------------------------------------------------------------------------------------------------------- ITK


def _itk(path: Path, *, voxels: bool) -> tuple[Facts, np.ndarray | None]:
    try:
        import SimpleITK as sitk
    except ImportError:
        raise MissingDependency(
            f"{path.suffix} files need SimpleITK", file=path, next_step='install the extra: pip install "neuroprior[itk]"'
        ) from None
    _stays_at_home(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if path.suffix.lower() in (".mha", ".mhd") else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
        size, spacing = reader.GetSize(), np.array(reader.GetSpacing(), dtype=np.float64)
        n = len(size)
        if reader.GetNumberOfComponents() != 1:
            raise InputError("the voxels are no single numbers", file=path, expected="one number a voxel",
                             got=f"{reader.GetNumberOfComponents()}")  # fmt: skip
        kind = _itk_type(sitk, reader.GetPixelIDValue(), path)
        origin = np.array(reader.GetOrigin(), dtype=np.float64)
        directions = np.array(reader.GetDirection(), dtype=np.float64).reshape(n, n)
        expected = int(np.prod([int(length) for length in size], dtype=object)) * kind.itemsize
        if expected > 1 << 40:
            raise InputError("the header is damaged", file=path, expected="a volume", got=f"shape {tuple(size)}")
        array = None
        if voxels:
            array = np.ascontiguousarray(sitk.GetArrayFromImage(reader.Execute()).T)
    except RuntimeError as error:  # ITK's only kind of error
        text = str(error).strip().splitlines()
        raise InputError("the file cannot be read", file=path, got=text[-1].strip() if text else "ITK's error",
                         next_step="copy or convert it again") from None  # fmt: skip
    if n < 3:
        raise InputError("the scan is a slice or a line, no volume", file=path, expected="three axes", got=f"shape {tuple(size)}")
    shape = tuple(int(length) for length in size)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
        array = array[..., 0] if array is not None else None
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3] * spacing[:3]
    affine[:3, 3] = origin[:3]
    affine[:2] *= -1  # LPS to RAS
    return Facts(shape, affine, kind), array


def _itk_type(sitk: Any, value: int, path: Path) -> np.dtype[Any]:
    known = {
        sitk.sitkUInt8: "u1", sitk.sitkInt8: "i1", sitk.sitkUInt16: "u2", sitk.sitkInt16: "i2", sitk.sitkUInt32: "u4", sitk.sitkInt32: "i4",
        sitk.sitkUInt64: "u8", sitk.sitkInt64: "i8", sitk.sitkFloat32: "f4", sitk.sitkFloat64: "f8",
    }  # fmt: skip
    if value not in known:
        raise InputError("the voxels are no single numbers", file=path, expected="integers or floats",
                         got=sitk.GetPixelIDValueAsString(value))  # fmt: skip
    return np.dtype(known[value])


def _stays_at_home(path: Path) -> None:
    """Refuses a header whose voxels lie in a file outside its folder, or that is missing."""
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    key = b"elementdatafile" if path.suffix.lower() in (".mha", ".mhd") else b"data file"
    for line in start.splitlines():
        name, _, text = line.partition(b"=" if key == b"elementdatafile" else b":")
        if name.strip().lower().replace(b"datafile", b"data file" if key == b"data file" else b"datafile") != key:
            continue
        where = text.strip().decode("utf-8", errors="replace")
        if where.upper().startswith("LOCAL"):
            return
        data = path.parent / where
        if "\0" in where or not data.resolve().is_relative_to(path.parent.resolve()):
            raise InputError("the header names voxels outside its folder", file=path, expected="a file beside it", got=where)
        if not data.is_file():
            raise InputError("the voxels that the header names are not there", file=path, expected=where)
        return
