"""Volumes read and written: voxels and labels of NIfTI and other formats in, results in their input's grid out.

What a header says is judged in :mod:`neuroprior.core.headers`. Every departure from what the file says is returned as a note, so that an index row can carry it.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from . import formats, headers
from .artifacts import atomic
from .errors import InputError
from .volume import Volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header


INTEGER_TOLERANCE = 1e-3
"""How far a stored label may lie from a whole number."""

COMPRESSION = 4
"""gzip level of written files."""


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
    path = headers.checked(path, reading=True)
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
    path = headers.checked(path, reading=True)
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
    path = headers.checked(path, reading=True)
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
    path = headers.checked(path, reading=True)
    if formats.is_other(path):
        facts, scaling, stored = _load(path)
        steps = _steps(facts, step_mm)
        kept = stored[tuple(slice(None, None, step) for step in steps)]
        return _coarse(_scaled(kept, *scaling), facts, steps), _count([stored.ravel(order="K")], *scaling)
    with headers.readable(path):
        with headers.opened(path) as file:
            header = headers.parse(file.read(544), path)
        facts = headers.judge(header, path)
        dtype = header.get_data_dtype()
        needed, start, got = headers.length(header), headers.offset(header), 0
        nx, ny, nz = facts.shape
        steps = _steps(facts, step_mm)
        kept_rows: list[np.ndarray] = []

        def blocks() -> Iterator[np.ndarray]:
            nonlocal got
            at, rows = 0, ny * nz  # a row is a line of voxels along x, as they lie in the file
            with headers.opened(path) as file:
                file.seek(start)
                while at < rows:
                    count = min(rows - at, max(1, block // (nx * dtype.itemsize)))
                    wanted = count * nx * dtype.itemsize
                    content = file.read(wanted)
                    while len(content) < wanted and (more := file.read(wanted - len(content))):
                        content += more
                    got += len(content)
                    if len(content) < wanted:
                        raise headers.cut_short(path, needed, start + got)
                    stored = np.frombuffer(content, dtype)
                    row = np.arange(at, at + count)
                    kept_rows.append(
                        stored.reshape(count, nx)[(row % ny % steps[1] == 0) & (row // ny % steps[2] == 0), :: steps[0]]
                    )
                    at += count
                    yield stored
                if path.name.lower().endswith(".gz"):
                    file.read(1)  # the checksum is compared at the end of the stream

        scaling = headers.scaling(header)
        found = _count(blocks(), *scaling)
    sizes = [len(range(0, n, step)) for n, step in zip(facts.shape, steps)]
    kept = np.concatenate(kept_rows).reshape(sizes[2], sizes[1], sizes[0]).transpose()
    return _coarse(_scaled(kept, *scaling), facts, steps), found


def _steps(facts: headers.Header, step_mm: float) -> tuple[int, int, int]:
    x, y, z = (n if mm * n <= step_mm else max(1, round(step_mm / mm)) for mm, n in zip(facts.spacing_mm, facts.shape))
    return x, y, z


def _coarse(voxels: np.ndarray, facts: headers.Header, steps: tuple[int, int, int]) -> Volume:
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
    like = headers.checked(like, reading=True)
    if formats.is_other(like):
        facts = headers.inspect_header(like)
        if array.shape != facts.shape:
            raise InputError("the array does not lie on this file's grid", file=like, expected=f"shape {facts.shape}",
                             got=f"shape {array.shape}", next_step="bring the array to the file's native grid first")  # fmt: skip
        _write(Path(path), _as_stored(array, dtype, path), _fresh(Volume(array, facts.affine)), slope)
        return
    with headers.readable(like), headers.opened(like) as file:
        header = headers.parse(file.read(544), like)
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


def _load(path: Path) -> tuple[headers.Header, tuple[float, float], np.ndarray]:
    """The judged header, slope and intercept, and the stored values (x, y, z), before scaling."""
    with headers.readable(path):
        if formats.is_other(path):
            facts = headers.judge_other(formats.inspect(path), path)
            return facts, (1.0, 0.0), formats.load(path)[1]
        content = path.read_bytes()
        packed = path.name.lower().endswith(".gz")
        header = headers.parse(_unpack(content, 544) if packed else content[:544], path)
        facts = headers.judge(header, path)
        needed = headers.length(header)
        if packed:
            content = _unpack(content, needed)
    if len(content) < needed:
        raise headers.cut_short(path, needed, len(content))
    dtype = header.get_data_dtype()
    n_voxels = int(np.prod(facts.shape))
    flat = np.frombuffer(content, dtype=dtype, count=n_voxels, offset=headers.offset(header))
    return facts, headers.scaling(header), flat.reshape(facts.shape, order="F")


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
    path = headers.checked(path)
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
