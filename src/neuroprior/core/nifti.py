"""NIfTI files: headers judged and repaired with a note, voxels and labels read, results written in their input's grid.

Affines follow the header's sform where its code is above 0, else its qform, else the voxel sizes alone (told). Every
departure from what the file says is returned as a note, so that an index row can carry it.
"""

from __future__ import annotations

import errno
import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import formats
from .artifacts import atomic
from .errors import InputError
from .grids import Grid, corner_distance_mm
from .volume import Volume, orientation, spacing_mm

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

SUFFIXES = (".nii", ".nii.gz")
"""What this module writes."""

READABLE = (*SUFFIXES, *formats.SUFFIXES)
"""What this module reads."""

SILENT_VOXELS = 1e-3
"""Repairs that move no corner by more than this fraction of a voxel are rounding and are not told."""

DISAGREE_VOXELS = 0.1
"""Corner distance, in voxels, from which an sform and a qform are told to disagree."""

INTEGER_TOLERANCE = 1e-3
"""How far a stored label may lie from a whole number."""

COMPRESSION = 4
"""gzip level of written files."""

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
    path = _checked(path, reading=True)
    with _readable(path):
        if formats.is_other(path):
            return _judge_other(formats.inspect(path), path)
        start, length = _start(path)
        plain = _plain(start)
        if plain is not None and plain[1] == length:
            return plain[0]
        header = _parse(start, path)
        facts = _judge(header, path)
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


def _plain(start: bytes) -> tuple[Header, int] | None:
    """The header of a NIfTI-1 file about which there is nothing to say, and the bytes that the file must have; None for any other.

    It repeats what :func:`_judge` decides for such a header, in plain arithmetic, some twenty times faster.
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


_AXES = str.maketrans("LRPAIS", "xxyyzz")


def read_scan(path: str | Path, *, nonfinite: Literal["error", "zero"] = "error") -> tuple[Volume, tuple[str, ...]]:
    """A scan's voxels, with the header's scaling applied, and what was repaired on the way.

    Args:
        path: ``.nii``, ``.nii.gz``, or another format (:mod:`neuroprior.core.formats`).
        nonfinite: what to do with NaN and infinite voxels: refuse the file, or set them to 0 and tell.

    Returns:
        float32 volume in the stored orientation with its repaired affine, and notes, one sentence each.

    Raises:
        InputError: as :func:`inspect_header`, and for voxels that are not finite.
    """
    path = _checked(path, reading=True)
    facts, (slope, intercept), stored = _load(path)
    voxels = _scaled(stored, slope, intercept)
    notes = facts.notes
    bad = _count_nonfinite(voxels)
    if bad:
        told = f"{bad} of {voxels.size} voxels are NaN or infinite"
        if nonfinite == "error":
            raise InputError(
                "the scan holds voxels that are no numbers", file=path, expected="finite voxels", got=told,
                next_step="repair the scan, or read it with nonfinite='zero'",
            )  # fmt: skip
        voxels = np.nan_to_num(voxels, copy=True, nan=0.0, posinf=0.0, neginf=0.0)
        notes += (f"{told}; they were set to 0",)
    return Volume(voxels, facts.affine), notes


def read_labels(path: str | Path) -> tuple[Volume, tuple[str, ...]]:
    """A label map's voxels as integers, and what was repaired on the way.

    Returns:
        Volume of the stored integer dtype (native byte order), or, where the file stores or scales to floats, of the
        smallest integer dtype that holds the values.

    Raises:
        InputError: as :func:`inspect_header`, and for values further than 0.001 from a whole number (with a table).
    """
    path = _checked(path, reading=True)
    facts, (slope, intercept), stored = _load(path)
    if stored.dtype.kind in "iu" and slope == 1 and intercept == 0:
        return Volume(stored.astype(stored.dtype.newbyteorder("="), copy=False), facts.affine), facts.notes
    with np.errstate(invalid="ignore"):  # a signalling NaN; it is counted below
        values = stored.astype(np.float64)
    if stored.dtype.kind in "iu":
        values = values * slope + intercept
    elif slope != 1 or intercept != 0:
        values = values * slope + intercept
    whole = np.rint(values)
    far = ~(np.abs(values - whole) <= INTEGER_TOLERANCE)
    if far.any():
        found, counts = np.unique(values[far], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:5]
        table = ", ".join(f"{found[i]:g} ({counts[i]} voxels)" for i in order)
        more = f" and {len(found) - 5} other values" if len(found) > 5 else ""
        raise InputError(
            "the label map holds values that are no whole numbers", file=path, expected="integer labels", got=table + more,
            next_step="threshold a probability map first, or check that this is the label file and not the image",
        )  # fmt: skip
    low, high = float(whole.min()), float(whole.max())
    if low < np.iinfo(np.int64).min or high > np.iinfo(np.int64).max:
        raise InputError("the label map holds values beyond 64-bit integers", file=path, got=f"{low:g} to {high:g}")
    kind = np.result_type(np.min_scalar_type(int(low)), np.min_scalar_type(int(high)))
    if kind.kind not in "iu":
        kind = np.dtype(np.int64)
    moved = float(np.abs(values - whole).max())
    notes = facts.notes
    if moved > 0:
        notes += (f"labels stored as {facts.dtype} were rounded to whole numbers, by at most {moved:.2g}",)
    elif stored.dtype.kind == "f":
        notes += (f"labels stored as {facts.dtype} were read as {kind}",)
    return Volume(whole.astype(kind), facts.affine), notes


def check_voxels(volume: Volume) -> tuple[str, ...]:
    """What is wrong with a volume's voxels: NaN or infinite values, or one value everywhere. Empty when nothing is."""
    voxels, problems = volume.voxels, []
    if _count_nonfinite(voxels):
        n_nan = int(np.count_nonzero(np.isnan(voxels)))
        n_infinite = int(np.count_nonzero(np.isinf(voxels)))
        problems.append(f"{n_nan} NaN and {n_infinite} infinite voxels of {voxels.size}")
    elif voxels.min() == voxels.max():
        problems.append(f"the volume is constant: every voxel is {voxels.flat[0]:g}")
    return tuple(problems)


@dataclass(frozen=True)
class Survey:
    """A scan's intensities in numbers.

    Attributes:
        voxels: how many.
        n_nan, n_infinite: how many are no numbers.
        low, high: of the finite ones, with the header's scaling; NaN where there is none.
        scaled: whether the file stores other numbers than these.
    """

    voxels: int
    n_nan: int
    n_infinite: int
    low: float
    high: float
    scaled: bool = False

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, in the words of :func:`check_voxels`."""
        if self.n_nan or self.n_infinite:
            return (f"{self.n_nan} NaN and {self.n_infinite} infinite voxels of {self.voxels}",)
        return (f"the volume is constant: every voxel is {self.low:g}",) if self.low == self.high else ()


def read_surveyed(path: str | Path) -> tuple[Volume, Survey]:
    """A scan's voxels as :func:`read_scan` gives them, those that are no numbers set to 0, and its intensities in numbers."""
    path = _checked(path, reading=True)
    facts, (slope, intercept), stored = _load(path)
    found = _count([stored.ravel(order="K")], slope, intercept)
    voxels = _scaled(stored, slope, intercept)
    if _count_nonfinite(voxels):
        voxels = np.nan_to_num(voxels, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return Volume(voxels, facts.affine), found


def survey(path: str | Path, *, block: int = 1 << 24) -> Survey:
    """A scan's intensities, read block by block: memory does not grow with the file.

    Args:
        path: any readable volume; other formats than NIfTI are read whole.
        block: bytes read at a time, and at least one row of voxels.

    Raises:
        InputError: as :func:`inspect_header`, and for a stream that is damaged.
    """
    return read_coarse(path, math.inf, block=block)[1]


def read_coarse(path: str | Path, step_mm: float, *, block: int = 1 << 24) -> tuple[Volume, Survey]:
    """Every n-th voxel of a scan along each axis, and the intensities of all: memory does not grow with the file.

    Args:
        path: any readable volume; other formats than NIfTI are read whole.
        step_mm: about how far the voxels that are kept lie apart; the first of each axis is kept.
        block: bytes read at a time, and at least one row of voxels.

    Returns:
        float32 volume of the voxels that were kept, those that are no numbers set to 0, and what :func:`survey` says of all.

    Raises:
        InputError: as :func:`inspect_header`, and for a stream that is damaged.
    """
    path = _checked(path, reading=True)
    if formats.is_other(path):
        facts, scaling, stored = _load(path)
        steps = _steps(facts, step_mm)
        kept = stored[tuple(slice(None, None, step) for step in steps)]
        return _coarse(_scaled(kept, *scaling), facts, steps), _count([stored.ravel(order="K")], *scaling)
    with _readable(path):
        with _open(path) as file:
            header = _parse(file.read(544), path)
        facts = _judge(header, path)
        dtype = header.get_data_dtype()
        needed, start, got = _length(header), _offset(header), 0
        nx, ny, nz = facts.shape
        steps = _steps(facts, step_mm)
        kept_rows: list[np.ndarray] = []

        def blocks() -> Iterator[np.ndarray]:
            nonlocal got
            at, rows = 0, ny * nz  # a row is a line of voxels along x, as they lie in the file
            with _open(path) as file:
                file.seek(start)
                while at < rows:
                    count = min(rows - at, max(1, block // (nx * dtype.itemsize)))
                    wanted = count * nx * dtype.itemsize
                    content = file.read(wanted)
                    while len(content) < wanted and (more := file.read(wanted - len(content))):
                        content += more
                    got += len(content)
                    if len(content) < wanted:
                        raise _cut_short(path, needed, start + got)
                    stored = np.frombuffer(content, dtype)
                    row = np.arange(at, at + count)
                    kept_rows.append(
                        stored.reshape(count, nx)[(row % ny % steps[1] == 0) & (row // ny % steps[2] == 0), :: steps[0]]
                    )
                    at += count
                    yield stored
                if path.name.lower().endswith(".gz"):
                    file.read(1)  # the checksum is compared at the end of the stream

        scaling = _scaling(header)
        found = _count(blocks(), *scaling)
    sizes = [len(range(0, n, step)) for n, step in zip(facts.shape, steps)]
    kept = np.concatenate(kept_rows).reshape(sizes[2], sizes[1], sizes[0]).transpose()
    return _coarse(_scaled(kept, *scaling), facts, steps), found


def _steps(facts: Header, step_mm: float) -> tuple[int, int, int]:
    x, y, z = (n if mm * n <= step_mm else max(1, round(step_mm / mm)) for mm, n in zip(facts.spacing_mm, facts.shape))
    return x, y, z


def _coarse(voxels: np.ndarray, facts: Header, steps: tuple[int, int, int]) -> Volume:
    return Volume(np.nan_to_num(voxels, nan=0.0, posinf=0.0, neginf=0.0), facts.affine @ np.diag([*map(float, steps), 1.0]))


def _count(blocks: Iterable[np.ndarray], slope: float, intercept: float) -> Survey:
    total, n_nan, n_infinite, low, high = 0, 0, 0, math.inf, -math.inf
    for stored in blocks:
        total += stored.size
        if stored.dtype.kind == "f":
            least, most = float(stored.min()), float(stored.max())
            if not (math.isfinite(least) and math.isfinite(most)):  # a NaN makes both NaN
                good = np.isfinite(stored)
                nans = int(np.count_nonzero(np.isnan(stored)))
                n_nan += nans
                n_infinite += stored.size - int(np.count_nonzero(good)) - nans
                if not good.any():
                    continue
                least, most = float(stored[good].min()), float(stored[good].max())
        else:
            least, most = float(stored.min()), float(stored.max())
        low, high = min(low, least), max(high, most)
    ends = (low * slope + intercept, high * slope + intercept) if low <= high else (math.nan, math.nan)
    return Survey(total, n_nan, n_infinite, min(ends), max(ends), (slope, intercept) != (1.0, 0.0))


def write_like(
    path: str | Path, array: np.ndarray, *, like: str | Path, dtype: np.typing.DTypeLike | None = None, slope: float = 1.0
) -> None:  # fmt: skip
    """Write an array that lies on another file's grid, with that file's header.

    Shape (trailing axes of one included), pixdim, qform, sform, their codes and the units are the other file's, bit for
    bit, even where they disagree with each other; data type, scaling and display range are the array's. Of a file that is no NIfTI
    the affine is taken, as sform and qform.

    Args:
        path: ``.nii`` or ``.nii.gz``; appears whole or not at all.
        array: (x, y, z) of the other file's shape.
        like: the file whose grid the array lies on.
        dtype: on disk; by default the array's (``bool`` becomes uint8, ``float16`` float32).
        slope: what readers multiply the stored values with (``scl_slope``).

    Raises:
        InputError: ``like`` cannot be read, or has another shape, or a value does not fit ``dtype``.
        ArtifactError: the disk is full or the folder cannot be written.
    """
    like = _checked(like, reading=True)
    if formats.is_other(like):
        facts = inspect_header(like)
        if array.shape != facts.shape:
            raise InputError("the array does not lie on this file's grid", file=like, expected=f"shape {facts.shape}",
                             got=f"shape {array.shape}", next_step="bring the array to the file's native grid first")  # fmt: skip
        _write(Path(path), _as_stored(array, dtype, path), _fresh(Volume(array, facts.affine)), slope)
        return
    with _readable(like), _open(like) as file:
        header = _parse(file.read(544), like)
    stored = tuple(int(n) for n in header.get_data_shape())
    kept = stored[:3] if all(n == 1 for n in stored[3:]) else stored
    if array.shape != kept:
        raise InputError(
            "the array does not lie on this file's grid", file=like, expected=f"shape {kept}", got=f"shape {array.shape}",
            next_step="bring the array to the file's native grid first",
        )  # fmt: skip
    _write(Path(path), _as_stored(array, dtype, path), header.copy(), slope)


def write(path: str | Path, volume: Volume, *, dtype: np.typing.DTypeLike | None = None) -> None:
    """Write a volume as NIfTI-1 in millimetres; sform and qform both hold its affine, with code 1 (scanner).

    Args:
        path: ``.nii`` or ``.nii.gz``; appears whole or not at all.
        volume: what to write.
        dtype: on disk; by default the voxels' (``bool`` becomes uint8, ``float16`` float32).

    Raises:
        InputError: a value does not fit ``dtype``.
        ArtifactError: the disk is full or the folder cannot be written.
    """
    _write(Path(path), _as_stored(volume.voxels, dtype, path), _fresh(volume))


def _fresh(volume: Volume) -> Nifti1Header:
    """A header in millimetres whose sform and qform both hold the volume's affine."""
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_shape(volume.shape)
    header.set_zooms(volume.spacing_mm)
    header.set_sform(volume.affine, code=1)
    header.set_qform(volume.affine, code=1)
    header.set_xyzt_units("mm")
    return header


# -------------------------------------------------------------------------------------------------------------- reading


def _checked(path: str | Path, *, reading: bool = False) -> Path:
    path = Path(path)
    known = READABLE if reading else SUFFIXES
    if not path.name.lower().endswith(known):
        raise InputError("this is no volume by its name" if reading else "this is no NIfTI file by its name", file=path,
                         expected=" or ".join(known), got=path.suffix or "no suffix",
                         next_step="convert it (DICOM: neuroprior index FOLDER --reader dicom)")  # fmt: skip
    return path


@contextmanager
def _readable(path: Path) -> Iterator[None]:
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


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")


def _parse(start: bytes, path: Path) -> Nifti1Header:
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


def _load(path: Path) -> tuple[Header, tuple[float, float], np.ndarray]:
    """The judged header, slope and intercept, and the stored values (x, y, z), before scaling."""
    with _readable(path):
        if formats.is_other(path):
            facts = _judge_other(formats.inspect(path), path)
            return facts, (1.0, 0.0), formats.load(path)[1]
        content = path.read_bytes()
        packed = path.name.lower().endswith(".gz")
        header = _parse(_unpack(content, 544) if packed else content[:544], path)
        facts = _judge(header, path)
        needed = _length(header)
        if packed:
            content = _unpack(content, needed)
    if len(content) < needed:
        raise _cut_short(path, needed, len(content))
    dtype = header.get_data_dtype()
    n_voxels = int(np.prod(facts.shape))
    flat = np.frombuffer(content, dtype=dtype, count=n_voxels, offset=_offset(header))
    return facts, _scaling(header), flat.reshape(facts.shape, order="F")


def _unpack(content: bytes, most: int) -> bytes:
    """At most so many bytes of a gzip stream: a file may promise more than its header needs. A stream that ends is checked whole."""
    unpacker = zlib.decompressobj(wbits=31)
    start = unpacker.decompress(content, max(most, 1))
    if len(start) < most:
        if not unpacker.eof:
            raise EOFError("the stream ends before its end mark")
        if unpacker.unused_data.strip(b"\0"):  # several members, as bgzip writes
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                return file.read(most)
    elif not unpacker.eof and unpacker.unconsumed_tail:
        unpacker.decompress(unpacker.unconsumed_tail, 1 << 16)  # to the end mark, where the checksum is compared
    return start


def _offset(header: Nifti1Header) -> int:
    return int(header["vox_offset"]) or (352 if int(header["sizeof_hdr"]) == 348 else 544)


def _length(header: Nifti1Header) -> int:
    """Bytes that the uncompressed file must have."""
    return _offset(header) + math.prod(int(n) for n in header.get_data_shape()) * header.get_data_dtype().itemsize


def _cut_short(path: Path, needed: int, got: int) -> InputError:
    return InputError(
        "the file is cut short", file=path, expected=f"{needed} bytes of header and voxels", got=f"{got} bytes",
        next_step="copy or download it again",
    )  # fmt: skip


def _check_length(header: Nifti1Header, path: Path) -> None:
    """Refuses a file that cannot hold the voxels its header promises; a gzip file's last bytes tell its length."""
    needed = _length(header)
    if not path.name.lower().endswith(".gz"):
        if path.stat().st_size < needed:
            raise _cut_short(path, needed, path.stat().st_size)
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
        raise _cut_short(path, needed, got)


def _scaling(header: Nifti1Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0


def _scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if stored.dtype.kind == "f" and stored.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            return (stored * slope + intercept).astype(np.float32)
    with np.errstate(invalid="ignore"):
        voxels = stored.astype(np.float32)  # a copy: the file's bytes are read-only
    if slope != 1:
        voxels *= np.float32(slope)
    if intercept != 0:
        voxels += np.float32(intercept)
    return voxels


def _count_nonfinite(voxels: np.ndarray) -> int:
    if voxels.dtype.kind != "f":
        return 0
    with np.errstate(invalid="ignore", over="ignore"):
        total = voxels.sum(dtype=np.float64)
    if np.isfinite(total):
        return 0
    return int(voxels.size - np.count_nonzero(np.isfinite(voxels)))


# -------------------------------------------------------------------------------------------------------------- judging


def _judge(header: Nifti1Header, path: Path) -> Header:
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


def _judge_other(stated: formats.Facts, path: Path) -> Header:
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


# -------------------------------------------------------------------------------------------------------------- writing


def _as_stored(array: np.ndarray, dtype: np.typing.DTypeLike | None, path: str | Path) -> np.ndarray:
    """The array in the dtype that goes to disk; no value may be lost."""
    kind = np.dtype(array.dtype if dtype is None else dtype)
    kind = {"bool": np.dtype(np.uint8), "float16": np.dtype(np.float32)}.get(kind.name, kind)
    if kind.kind not in "iuf":
        raise InputError("NIfTI cannot hold this data type", file=path, expected="integers or floats", got=str(kind))
    if kind.kind in "iu" and array.dtype != kind and array.size:
        limits = np.iinfo(kind)
        whole = array.dtype.kind in "iub" or bool((array == np.rint(array)).all())
        if not whole or array.min() < limits.min or array.max() > limits.max:
            raise InputError(
                f"values do not fit {kind}", file=path, expected=f"whole numbers in {limits.min}..{limits.max}",
                got=f"{array.dtype} in {array.min():g}..{array.max():g}", next_step="choose a wider dtype",
            )  # fmt: skip
    return array.astype(kind, copy=False)


def _write(path: Path, array: np.ndarray, header: Nifti1Header, slope: float = 1.0) -> None:
    """Header and voxels as one file; the same content gives the same bytes."""
    path = _checked(path)
    header.set_data_dtype(array.dtype)
    header["vox_offset"] = 352 if int(header["sizeof_hdr"]) == 348 else 544
    header["scl_slope"], header["scl_inter"] = slope, 0
    header["cal_min"], header["cal_max"] = 0, 0
    ordered = array.astype(header.get_data_dtype(), copy=False)
    content = bytes(header.structarr.tobytes()) + b"\0\0\0\0" + ordered.tobytes(order="F")
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=COMPRESSION, mtime=0)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
