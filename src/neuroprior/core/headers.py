"""Headers of volumes: parsed, judged, and repaired with a note; and the errors of files that cannot be read.

Affines follow the header's sform where its code is above 0, else its qform, else the voxel sizes alone (told). Every
departure from what the file says is returned as a note, so that an index row can carry it.
"""

from __future__ import annotations

import errno
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import formats
from .errors import InputError
from .grids import Grid, corner_distance_mm
from .volume import orientation, spacing_mm

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

SUFFIXES = (".nii", ".nii.gz")
"""What is written."""

READABLE = (*SUFFIXES, *formats.SUFFIXES)
"""What is read."""

SILENT_VOXELS = 1e-3
"""Repairs that move no corner by more than this fraction of a voxel are rounding and are not told."""

DISAGREE_VOXELS = 0.1
"""Corner distance, in voxels, from which an sform and a qform are told to disagree."""

MISSING = "the file does not exist"
"""What is wrong with a file that is not there, and ..."""
UNREADABLE_NOW = "the file cannot be read at the moment"
"""... with one whose disk or server does not answer (:data:`PASSING`): another time it may."""
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)
"""Error numbers that say nothing of the file itself."""

_MM_PER_UNIT = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}


@dataclass(frozen=True)
class Header:
    """What a file says about its voxels, without reading them.

    Attributes:
        shape: voxels along each axis; trailing axes of one are dropped.
        spacing_mm: along each axis.
        affine: (4, 4) float64 voxel -> RAS+ mm, repaired where it was not orthonormal.
        orientation: axis codes such as ``LAS``.
        dtype: on disk, for example ``uint8``.
        qform_code, sform_code: as stored.
        notes: what was repaired or assumed, one sentence each.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    orientation: str
    dtype: str
    qform_code: int
    sform_code: int
    notes: tuple[str, ...] = ()


def inspect_header(path: str | Path) -> Header:
    """A scan's header, checked; no voxel is decoded.

    Raises:
        InputError: the file is missing, unreadable, cut short or no NIfTI; has other than three axes; or states a zero,
            negative or non-finite spacing or an affine without a place for its voxels.
    """
    path = checked(path, reading=True)
    with readable(path):
        if formats.is_other(path):
            return judge_other(formats.inspect(path), path)
        start, length = _start(path)
        plain = _plain(start)
        if plain is not None and plain[1] == length:
            return plain[0]
        header = parse(start, path)
        facts = judge(header, path)
        _check_length(header, path)
    return facts


def _start(path: Path) -> tuple[bytes, int]:
    """The first 544 bytes, and the length that the file says it has (modulo 2^32 for gzip); one opening, no voxel read."""
    if not path.name.lower().endswith(".gz"):
        with open(path, "rb", buffering=0) as file:
            return file.read(544), os.fstat(file.fileno()).st_size
    with open(path, "rb", buffering=0) as file:
        first = file.read(2048)
        size = os.fstat(file.fileno()).st_size
        if size > 2048:
            file.seek(-4, 2)
            tail = file.read(4)
        else:
            tail = first[-4:]
    unpacker = zlib.decompressobj(wbits=31)
    start = unpacker.decompress(first, 544)
    if len(start) < 544 and not unpacker.eof and size > 2048:  # extra fields in the gzip header, or poor luck
        with gzip.open(path, "rb") as file:
            start = file.read(544)
    elif len(start) < 544 and not unpacker.eof:
        raise EOFError("the stream ends before its end mark")
    return start, int.from_bytes(tail, "little")


_PLAIN_TYPES = {2: ("uint8", 1), 4: ("int16", 2), 8: ("int32", 4), 16: ("float32", 4), 64: ("float64", 8), 256: ("int8", 1), 512: ("uint16", 2),
                768: ("uint32", 4)}  # fmt: skip


_AXES = str.maketrans("LRPAIS", "xxyyzz")


def _plain(start: bytes) -> tuple[Header, int] | None:
    """The header of a NIfTI-1 file about which there is nothing to say, and the bytes that the file must have; None for any other.

    It repeats what :func:`judge` decides for such a header, in plain arithmetic, some twenty times faster.
    """
    if len(start) < 352 or start[344:348] != b"n+1\0":
        return None
    order = "<" if start[:4] == b"\x5c\x01\0\0" else ">" if start[:4] == b"\0\0\x01\x5c" else None
    if order is None:
        return None
    dim = struct.unpack_from(f"{order}8h", start, 40)
    (code,) = struct.unpack_from(f"{order}h", start, 70)
    pixdim = struct.unpack_from(f"{order}8f", start, 76)
    (offset,) = struct.unpack_from(f"{order}f", start, 108)
    q, s = struct.unpack_from(f"{order}2h", start, 252)
    *quatern, qx, qy, qz = struct.unpack_from(f"{order}6f", start, 256)
    rows = struct.unpack_from(f"{order}12f", start, 280)
    if not 3 <= dim[0] <= 7 or any(n != 1 for n in dim[4 : dim[0] + 1]) or min(dim[1:4]) < 2 or code not in _PLAIN_TYPES:
        return None
    if s <= 0 or start[123] & 7 not in (0, 2) or not 0 <= offset < 1 << 30:
        return None
    zooms = pixdim[1:4]
    if not all(math.isfinite(number) for number in (*rows, *zooms)) or min(zooms) <= 0:
        return None
    columns = [(rows[i], rows[4 + i], rows[8 + i]) for i in range(3)]
    spacing = [math.sqrt(x * x + y * y + z * z) for x, y, z in columns]
    if min(spacing) <= 1e-6 or any(abs(told / zoom - 1) > 0.009 for told, zoom in zip(spacing, zooms)):
        return None
    unit = [tuple(number / length for number in column) for column, length in zip(columns, spacing)]
    # so close to orthogonal that a repair could move no corner by a thousandth of a voxel
    reach = SILENT_VOXELS * min(spacing) / max(n * mm for n, mm in zip(dim[1:4], spacing)) / 4
    if any(abs(sum(a * b for a, b in zip(unit[i], unit[j]))) > reach for i, j in ((0, 1), (0, 2), (1, 2))):
        return None
    place = (rows[3], rows[7], rows[11])
    if q > 0:
        b, c, d = quatern
        rest = 1.0 - (b * b + c * c + d * d)
        if not math.isfinite(rest) or rest < -3e-7 or not all(math.isfinite(number) for number in (qx, qy, qz)):
            return None
        if 3e-7 < rest < 4.2e-7:  # nibabel takes what is below three times the float32 epsilon as 0
            return None
        a = math.sqrt(rest) if rest > 3e-7 else 0.0
        face = -1.0 if pixdim[0] == -1.0 else 1.0  # 0 counts as 1, as the standard says
        turned = (
            (a * a + b * b - c * c - d * d, 2 * (b * c + a * d), 2 * (b * d - a * c)),
            (2 * (b * c - a * d), a * a + c * c - b * b - d * d, 2 * (c * d + a * b)),
            tuple(face * number for number in (2 * (b * d + a * c), 2 * (c * d - a * b), a * a + d * d - b * b - c * c)),
        )
        apart = max(abs(x - y) for x, y in zip(place, (qx, qy, qz)))
        for column, direction, mm, n in zip(columns, turned, zooms, dim[1:4]):
            apart += max(abs(x - y * mm) for x, y in zip(column, direction)) * n
        if apart > DISAGREE_VOXELS * min(spacing) / 2:
            return None
    letters = ""
    for column in unit:
        axis = max(range(3), key=lambda k, column=column: abs(column[k]))
        if abs(column[axis]) < 0.8:  # near a diagonal: which axis is nearest needs all three
            return None
        letters += "LR"[column[axis] > 0] if axis == 0 else "PA"[column[axis] > 0] if axis == 1 else "IS"[column[axis] > 0]
    if len(set(letters.translate(_AXES))) < 3:
        return None
    affine = np.array([*rows, 0.0, 0.0, 0.0, 1.0]).reshape(4, 4)
    name, itemsize = _PLAIN_TYPES[code]
    needed = (int(offset) or 352) + dim[1] * dim[2] * dim[3] * itemsize
    shape = (dim[1], dim[2], dim[3])
    return Header(shape, (spacing[0], spacing[1], spacing[2]), affine, letters, name, q, s), needed


def checked(path: str | Path, *, reading: bool = False) -> Path:
    """The path of a volume by its name: of one that is read, or of one that is to be written.

    Raises:
        InputError: it has another ending.
    """
    path = Path(path)
    known = READABLE if reading else SUFFIXES
    if not path.name.lower().endswith(known):
        raise InputError("this is no volume by its name" if reading else "this is no NIfTI file by its name", file=path,
                         expected=" or ".join(known), got=path.suffix or "no suffix",
                         next_step="convert it (DICOM: neuroprior index FOLDER --reader dicom)")  # fmt: skip
    return path


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever keeps a file from being read into an InputError that says what to do."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(MISSING, file=path, next_step="check the path") from None
    except PermissionError:
        raise InputError(
            "no permission to read the file", file=path, expected="a file that you may read", got="permission denied",
            next_step="ask its owner, or chmod u+r",
        ) from None  # fmt: skip
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            "the file is cut short or damaged", file=path, expected="a whole gzip stream", got=str(error),
            next_step="copy or download it again",
        ) from None  # fmt: skip
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: str | Path, error: OSError) -> InputError:
    """The error for a file that the system does not let be read; it says whether that may pass."""
    said = error.strerror or str(error)
    if error.errno in PASSING:
        return InputError(UNREADABLE_NOW, file=path, got=said, next_step="look after the disk, then run the same command again")
    return InputError("the file cannot be read", file=path, got=said, next_step="copy it again")


def opened(path: Path) -> Any:
    """The file's bytes, unpacked where they are packed."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")


def parse(start: bytes, path: Path) -> Nifti1Header:
    """The NIfTI-1 or NIfTI-2 header in the first bytes of a file."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")} if len(start) >= 4 else set()
    kind = Nifti1Header if 348 in sizes else Nifti2Header if 540 in sizes else None
    if kind is None:
        raise InputError(
            "this is no NIfTI file", file=path, expected="a header of 348 or 540 bytes",
            got=f"{len(start)} bytes" if len(start) < 348 else "other content", next_step="convert or download it again",
        )  # fmt: skip
    needed = 348 if kind is Nifti1Header else 540
    if len(start) < needed:
        raise InputError(
            "the file is cut short", file=path, expected=f"a header of {needed} bytes", got=f"{len(start)} bytes",
            next_step="copy or download it again",
        )  # fmt: skip
    magic = bytes(start[344:348] if kind is Nifti1Header else start[4:8]).rstrip(b"\0")
    if magic not in (b"n+1", b"n+2"):
        raise InputError(
            "the file is not a single-file NIfTI", file=path, expected="magic n+1 or n+2", got=repr(magic),
            next_step="convert .hdr/.img pairs and Analyze files to .nii.gz",
        )  # fmt: skip
    return kind(start[:needed], check=False)


def offset(header: Nifti1Header) -> int:
    """Where the voxels begin, in bytes of the uncompressed file."""
    return int(header["vox_offset"]) or (352 if int(header["sizeof_hdr"]) == 348 else 544)


def length(header: Nifti1Header) -> int:
    """Bytes that the uncompressed file must have."""
    return offset(header) + math.prod(int(n) for n in header.get_data_shape()) * header.get_data_dtype().itemsize


def cut_short(path: Path, needed: int, got: int) -> InputError:
    """The error for a file that holds fewer bytes than its header promises."""
    return InputError(
        "the file is cut short", file=path, expected=f"{needed} bytes of header and voxels", got=f"{got} bytes",
        next_step="copy or download it again",
    )  # fmt: skip


def _check_length(header: Nifti1Header, path: Path) -> None:
    """Refuses a file that cannot hold the voxels its header promises; a gzip file's last bytes tell its length."""
    needed = length(header)
    if not path.name.lower().endswith(".gz"):
        if path.stat().st_size < needed:
            raise cut_short(path, needed, path.stat().st_size)
        return
    with open(path, "rb") as file:
        file.seek(-4, 2)
        told = int.from_bytes(file.read(4), "little")
    if told == needed % 2**32:
        return
    got = 0  # a longer file, several gzip members, or a stream that was cut: only reading it tells
    with gzip.open(path, "rb") as file:
        while got < needed and (chunk := file.read(1 << 22)):
            got += len(chunk)
    if got < needed:
        raise cut_short(path, needed, got)


def scaling(header: Nifti1Header) -> tuple[float, float]:
    """Slope and intercept of the stored values; 1 and 0 where the header's mean nothing."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0


def judge(header: Nifti1Header, path: Path) -> Header:
    """The facts in a header, with its affine repaired, or an InputError."""
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise InputError("unknown data type", file=path, got=f"datatype code {int(header['datatype'])}",
                         expected="a NIfTI data type", next_step="convert it again") from None  # fmt: skip
    if dtype.kind not in "iuf":
        raise InputError(
            "the voxels are no single numbers", file=path, expected="integers or floats", got=str(header.get_value_label("datatype")),
            next_step="convert colour or complex images to one real channel",
        )  # fmt: skip
    shape = _shape(header, path)
    offset = float(header["vox_offset"])
    if not 0 <= offset < 1 << 40:
        raise InputError("the header is damaged", file=path, expected="the place of the voxels in the file", got=f"vox_offset {offset:g}",
                         next_step="convert it again")  # fmt: skip
    zooms = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        raise InputError(
            "the voxel spacing is impossible", file=path, expected="three positive numbers of millimetres",
            got=", ".join(f"{mm:g}" for mm in zooms), next_step="correct pixdim in the header, or convert the scan again",
        )  # fmt: skip
    affine, notes = _affine(header, shape, zooms, path)
    q, s = int(header["qform_code"]), int(header["sform_code"])
    return Header(shape, spacing_mm(affine), affine, orientation(affine), dtype.name, q, s, tuple(notes))


def judge_other(stated: formats.Facts, path: Path) -> Header:
    """The facts in another format's header, with its affine repaired, or an InputError."""
    shape = _three_axes(stated.shape, path)
    if not _invertible(stated.affine):
        raise InputError(
            "the affine gives the voxels no place", file=path, expected="an invertible affine",
            got=str(np.round(stated.affine, 4).tolist()), next_step="copy the geometry from the original scan",
        )  # fmt: skip
    notes = [] if stated.placed else ["the header states no place in the world; FreeSurfer's default orientation is taken"]
    affine, shift = orthonormal(stated.affine, shape)
    if shift <= SILENT_VOXELS * min(spacing_mm(affine)):
        affine = stated.affine
    else:
        notes.append(f"the affine's axes were not orthogonal and were repaired, which moves a corner by up to {shift:.2f} mm")
    return Header(shape, spacing_mm(affine), affine, orientation(affine), stated.dtype.name, 0, 1, tuple(notes))


def _shape(header: Nifti1Header, path: Path) -> tuple[int, int, int]:
    n_axes = int(header["dim"][0])
    if not 1 <= n_axes <= 7:
        raise InputError(
            "the header is damaged", file=path, expected="1 to 7 axes", got=f"{n_axes} axes", next_step="convert it again"
        )
    return _three_axes(tuple(int(n) for n in header["dim"][1 : n_axes + 1]), path)


def _three_axes(stored: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    if min(stored) < 1:
        raise InputError("the header is damaged", file=path, expected="positive axis lengths", got=f"shape {stored}",
                         next_step="convert it again")  # fmt: skip
    shape = stored
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise InputError(
            f"the scan has {len(shape)} axes", file=path, expected="one volume, three axes", got=f"shape {stored}",
            next_step="split the series, or take its mean, and give one volume",
        )  # fmt: skip
    if len(shape) < 3 or min(shape) < 2:
        raise InputError(
            "the scan is a slice or a line, no volume", file=path, expected="three axes of at least 2 voxels", got=f"shape {stored}",
            next_step="give a three-dimensional scan",
        )  # fmt: skip
    x, y, z = shape
    return x, y, z


def _affine(header: Nifti1Header, shape: tuple[int, int, int], zooms: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    q, s = int(header["qform_code"]), int(header["sform_code"])
    sform = header.get_sform() if s > 0 else None
    qform, q_problem = None, ""
    if q > 0:
        qform, q_problem = _qform(header)
    if sform is not None and not _invertible(sform):
        if qform is None:
            raise InputError(
                "the affine gives the voxels no place", file=path, expected="an invertible sform or qform",
                got=f"sform {np.round(sform, 4).tolist()}", next_step="copy the geometry from the original scan",
            )  # fmt: skip
        notes.append("the sform is not invertible; the qform is used")
        sform = None
    if sform is None and qform is None:
        if q > 0:
            raise InputError(
                "the affine gives the voxels no place", file=path, expected="a valid qform", got=q_problem,
                next_step="copy the geometry from the original scan",
            )  # fmt: skip
        notes.append("neither sform nor qform is set; the orientation is unknown and taken as LAS from the voxel sizes")
    chosen = (
        sform if sform is not None else qform if qform is not None else np.asarray(header.get_base_affine(), dtype=np.float64)
    )
    chosen = np.array(chosen, dtype=np.float64)
    if sform is not None and q > 0:
        if qform is None:
            notes.append(f"the qform is not valid ({q_problem}); the sform is used")
        else:
            apart = corner_distance_mm(Grid(shape, sform), Grid(shape, qform))
            if apart > DISAGREE_VOXELS * min(spacing_mm(sform)):
                notes.append(f"sform and qform disagree by up to {apart:.2f} mm; the sform is used")
    if sform is not None:
        told = np.array(spacing_mm(sform))
        if np.abs(told / zooms - 1).max() > 1e-2:
            a, b = (" x ".join(f"{mm:.4g}" for mm in x) for x in (told, zooms))
            notes.append(f"the sform's spacing ({a} mm) differs from the header's ({b} mm); the sform is used")
    unit = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7)
    if unit is not None:
        notes.append(f"the header's unit is {unit[0]}; the numbers were taken as millimetres")
    repaired, shift = orthonormal(chosen, shape)
    if shift <= SILENT_VOXELS * min(spacing_mm(repaired)):
        return chosen, notes
    notes.append(f"the affine's axes were not orthogonal and were repaired, which moves a corner by up to {shift:.2f} mm")
    return repaired, notes


def _qform(header: Nifti1Header) -> tuple[np.ndarray | None, str]:
    """The qform's affine, or None and why not."""
    from nibabel.spatialimages import HeaderDataError

    if abs(float(header["pixdim"][0])) != 1:  # the standard takes 0 as 1; some converters leave other numbers there
        header = header.copy()
        header["pixdim"][0] = 1
    try:
        qform = header.get_qform()
    except (ValueError, ArithmeticError, HeaderDataError) as error:
        return None, str(error)
    if qform is None or not _invertible(qform):
        return None, "it is not invertible"
    return np.asarray(qform, dtype=np.float64), ""


def _invertible(affine: np.ndarray) -> bool:
    linear = np.asarray(affine, dtype=np.float64)[:3, :3]
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(linear, axis=0)
    return bool((lengths > 1e-6).all() and abs(np.linalg.det(linear / lengths)) > 1e-3)


def orthonormal(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """The nearest affine whose axes are orthogonal (polar decomposition of its directions), about the volume's centre.

    Args:
        affine: (4, 4) invertible, voxel -> mm.
        shape: of the volume.

    Returns:
        The repaired affine, spacing and centre kept, and the largest distance that a corner voxel moves, in millimetres.
    """
    affine = np.asarray(affine, dtype=np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / lengths)
    repaired = np.eye(4)
    repaired[:3, :3] = (left @ right) * lengths
    half = (np.asarray(shape) - 1) / 2
    repaired[:3, 3] = affine[:3, 3] + (affine[:3, :3] - repaired[:3, :3]) @ half
    return repaired, corner_distance_mm(Grid(shape, affine), Grid(shape, repaired))
