"""Volumes that are no NIfTI: FreeSurfer ``.mgz``/``.mgh``, MetaImage ``.mha``/``.mhd``, ``.nrrd``/``.nhdr``; headers and voxels.

Called by :mod:`neuroprior.core.nifti` and :mod:`neuroprior.core.headers`, whose functions take any of these paths. The three formats are a short header and plain or zlib-packed
voxels, so they are read here: nibabel reads an ``.mgz`` to its end to know its header, and SimpleITK ends the whole process on some damaged
headers (four times in some thousand mutated ones), which no index of other people's files may. The tests compare with both. The LPS world
of ITK becomes RAS. A header that keeps its voxels in another file may only name one in its own folder: a file that came by download must not
make us read elsewhere.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

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
    """
    return _mgh_header(path)[0] if path.name.lower().endswith(FREESURFER) else _texts(path)[0]


def load(path: Path) -> tuple[Facts, np.ndarray]:
    """A file's header, and its voxels (x, y, z) in native byte order.

    Raises:
        InputError: as :func:`inspect`.
    """
    return _mgh(path) if path.name.lower().endswith(FREESURFER) else _text_volume(path)


def voxel_file(path: str | Path, *, there: bool = True) -> Path:
    """The file that holds a volume's voxels: the one that a MetaImage or NRRD header names, otherwise the path itself.

    Args:
        path: of the volume.
        there: whether that file must be there.

    Raises:
        InputError: as :func:`inspect`, for those headers.
        OSError: the header cannot be opened.
    """
    path = Path(path)
    return _texts(path, there=there)[1].file if path.name.lower().endswith(ITK) else path


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


# ------------------------------------------------------------------------------------- MetaImage and NRRD: a text, then voxels


_LONGEST_HEADER = 1 << 16
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"), **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"), **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t"), "i8"), **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4", "double": "f8",
}  # fmt: skip
_NRRD_SPACES = {
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1), "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class _Voxels:
    """Where a text header's voxels are: file, first byte (-1: as many as there are, from the end), type on disk, packed or not."""

    file: Path
    start: int
    dtype: np.dtype[Any]
    packed: bool


def _texts(path: Path, *, there: bool = True) -> tuple[Facts, _Voxels]:
    """The facts of a MetaImage or NRRD header, and where its voxels are; whether they are ``there`` is looked at too."""
    with open(path, "rb") as file:
        start = file.read(_LONGEST_HEADER)
    facts, voxels = _meta(start, path) if path.suffix.lower() in (".mha", ".mhd") else _nrrd(start, path)
    if there and not voxels.file.is_file():
        raise InputError("the voxels that the header names are not there", file=path, expected=voxels.file.name)
    if voxels.packed or not there:
        return facts, voxels
    needed = math.prod(facts.shape) * facts.dtype.itemsize + max(voxels.start, 0)
    size = voxels.file.stat().st_size
    if size < needed:
        raise InputError("the file is cut short", file=voxels.file, expected=f"{needed} bytes", got=f"{size} bytes")
    return facts, voxels


def _text_volume(path: Path) -> tuple[Facts, np.ndarray]:
    facts, voxels = _texts(path)
    needed = math.prod(facts.shape) * facts.dtype.itemsize
    with open(voxels.file, "rb") as file:
        file.seek(max(voxels.start, 0) if voxels.start >= 0 or voxels.packed else voxels.file.stat().st_size - needed)
        content = file.read() if voxels.packed else file.read(needed)
    if voxels.packed:
        try:
            content = zlib.decompressobj(wbits=47).decompress(content, max(needed, 1))
        except zlib.error as error:
            raise InputError("the file is cut short or damaged", file=path, expected="a whole stream", got=str(error)) from None
    if len(content) < needed:
        raise InputError("the file is cut short", file=path, expected=f"{needed} bytes of voxels", got=f"{len(content)} bytes")
    return facts, np.frombuffer(content[:needed], voxels.dtype).reshape(facts.shape, order="F").astype(facts.dtype)


def _odd(path: Path, key: str, expected: str, got: object) -> InputError:
    return InputError(
        f"the header's {key} cannot be understood",
        file=path,
        expected=expected,
        got=str(got)[:80] or "nothing",
        next_step="convert it again",
    )


def _numbers(text: str, n: int, path: Path, key: str) -> np.ndarray:
    try:
        numbers = np.array([float(word) for word in text.split()], dtype=np.float64)
    except ValueError:
        raise _odd(path, key, f"{n} numbers", text) from None
    if len(numbers) != n or not np.isfinite(numbers).all():
        raise _odd(path, key, f"{n} finite numbers", text)
    return numbers


def _sizes(text: str, n: int, path: Path, key: str) -> tuple[int, ...]:
    words = text.split()
    if len(words) != n or not all(word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 0 for word in words):
        raise _odd(path, key, f"{n} lengths above 0", text)
    return tuple(int(word) for word in words)


def _three(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    if len(shape) < 3:
        raise InputError("the scan is a slice or a line, no volume", file=path, expected="three axes", got=f"shape {shape}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _data_file(path: Path, where: str) -> Path:
    """The file that holds the voxels; it must lie in the header's folder."""
    if where.upper().startswith("LIST") or "%" in where:
        raise InputError(
            "the voxels lie in a list of files",
            file=path,
            expected="one file",
            got=where[:80],
            next_step="convert it to one file",
        )
    if not where or "\0" in where or not (path.parent / where).resolve().is_relative_to(path.parent.resolve()):
        raise InputError("the header names voxels outside its folder", file=path, expected="a file beside it", got=where[:80])
    return path.parent / where


def _axes(text: str, path: Path, key: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= 7):
        raise _odd(path, key, "1 to 7 axes", text)
    return int(text)


def _meta(start: bytes, path: Path) -> tuple[Facts, _Voxels]:
    """MetaImage: ``Key = value`` lines, the last of which is ElementDataFile (Insight Software Consortium, MetaIO)."""
    keys: dict[str, str] = {}
    at = 0
    while "elementdatafile" not in keys:
        end = start.find(b"\n", at)
        if end < 0:
            raise InputError(
                "this is no MetaImage", file=path, expected="lines that end with ElementDataFile", got=f"{len(keys)} keys"
            )
        name, equals, text = start[at:end].decode("latin-1").partition("=")
        if not equals:
            raise _odd(path, "line", "Key = value", name)
        keys[name.strip().lower()] = text.strip()
        at = end + 1
    n = _axes(keys.get("ndims", ""), path, "NDims")
    if keys.get("binarydata", "true").lower() != "true":
        raise InputError("the voxels are written as text", file=path, expected="BinaryData = True", next_step="convert it")
    if keys.get("elementnumberofchannels", "1") != "1":
        raise InputError(
            "the voxels are no single numbers", file=path, expected="one channel", got=keys["elementnumberofchannels"][:20]
        )
    if keys.get("elementtype", "") not in _META_TYPES:
        raise _odd(path, "ElementType", "one of integers and floats", keys.get("elementtype", ""))
    sizes = _sizes(keys.get("dimsize", ""), n, path, "DimSize")
    shape = _three(sizes, path)
    spacing = _numbers(keys.get("elementspacing", " ".join(["1"] * n)), n, path, "ElementSpacing")[:3]
    unit = " ".join(str(float(number)) for number in np.eye(n).ravel())
    turn = _numbers(
        next((keys[k] for k in ("transformmatrix", "rotation", "orientation") if k in keys), unit), n * n, path, "TransformMatrix"
    )
    origin = _numbers(
        next((keys[k] for k in ("offset", "position", "origin") if k in keys), " ".join(["0"] * n)), n, path, "Offset"
    )[:3]
    order = next((keys[k] for k in ("binarydatabyteordermsb", "elementbyteordermsb") if k in keys), "False").lower()
    affine = np.eye(4)
    affine[:3, :3] = turn.reshape(n, n)[:3, :3].T * spacing  # a row of the matrix is the direction of an axis
    affine[:3, 3] = origin
    affine[:2] *= -1  # LPS to RAS
    dtype = np.dtype(_META_TYPES[keys["elementtype"]])
    where, skip = keys["elementdatafile"], keys.get("headersize", "0")
    if skip != "-1" and not (skip.isascii() and skip.isdigit() and len(skip) < 15):
        raise _odd(path, "HeaderSize", "a number of bytes", skip)
    local = where.upper() == "LOCAL"
    return Facts(shape, affine, dtype), _Voxels(
        path if local else _data_file(path, where), at if local else int(skip), dtype.newbyteorder(">" if order == "true" else "<"),
        keys.get("compresseddata", "false").lower() == "true",
    )  # fmt: skip


def _nrrd(start: bytes, path: Path) -> tuple[Facts, _Voxels]:
    """NRRD: ``field: value`` lines, then a blank line and the voxels (G. Kindlmann, Definition of the NRRD file format)."""
    if not start.startswith(b"NRRD000"):
        raise InputError("this is no NRRD file", file=path, expected="NRRD000x", got=repr(start[:8]))
    fields: dict[str, str] = {}
    at = start.find(b"\n") + 1
    detached = False
    while True:
        end = start.find(b"\n", at)
        if end < 0:
            if "data file" in fields or "datafile" in fields:
                detached = True  # a header by itself needs no blank line
                break
            raise InputError(
                "the file is cut short", file=path, expected="a blank line behind the header", got=f"{len(fields)} fields"
            )
        line = start[at:end].rstrip(b"\r")
        at = end + 1
        if not line:
            break
        if line.startswith(b"#") or b":=" in line:
            continue
        name, colon, text = line.decode("latin-1").partition(":")
        if not colon:
            raise _odd(path, "line", "field: value", name)
        fields[name.strip().lower()] = text.strip()
    n = _axes(fields.get("dimension", ""), path, "dimension")
    kind = _NRRD_TYPES.get(fields.get("type", "").lower())
    if kind is None:
        raise _odd(path, "type", "one of integers and floats", fields.get("type", ""))
    sizes = _sizes(fields.get("sizes", ""), n, path, "sizes")
    shape = _three(sizes, path)
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InputError(
            "the voxels are packed in an unusual way",
            file=path,
            expected="encoding raw or gzip",
            got=encoding[:20],
            next_step="convert it",
        )
    affine, placed = np.eye(4), True
    if "space directions" in fields:
        vectors = re.findall(r"\([^()]*\)|none", fields["space directions"])
        if len(vectors) != n or "none" in vectors[:3]:
            raise _odd(path, "space directions", "a vector for each of three axes first", fields["space directions"])
        for axis, vector in enumerate(vectors[:3]):
            affine[:3, axis] = _numbers(vector.strip("()").replace(",", " "), 3, path, "space directions")
    else:
        placed = False
        spacing = [word for word in fields.get("spacings", "1 1 1").split() if word.lower() != "nan"]
        affine[:3, :3] = np.diag(_numbers(" ".join(spacing[:3]), 3, path, "spacings"))
    if "space origin" in fields:
        affine[:3, 3] = _numbers(fields["space origin"].strip("() ").replace(",", " "), 3, path, "space origin")
    space = fields.get("space", "left-posterior-superior").lower()
    if space not in _NRRD_SPACES:
        raise _odd(path, "space", ", ".join(sorted(name for name in _NRRD_SPACES if "-" in name)), space)
    affine[:3] *= np.array(_NRRD_SPACES[space])[:, None]
    skip, lines = fields.get("byte skip", fields.get("byteskip", "0")), fields.get("line skip", fields.get("lineskip", "0"))
    if lines != "0" or (skip != "-1" and not (skip.isascii() and skip.isdigit() and len(skip) < 15)):
        raise _odd(path, "byte skip", "bytes, and no lines", f"{skip}, {lines}")
    dtype = np.dtype(kind)
    where = fields.get("data file", fields.get("datafile"))
    if where is None and detached:
        raise InputError("the file holds no voxels", file=path)
    file = path if where is None else _data_file(path, where)
    first = int(skip) if skip == "-1" else (at if where is None else 0) + int(skip)
    big = fields.get("endian", "little").lower() == "big"
    return Facts(shape, affine, dtype, placed), _Voxels(file, first, dtype.newbyteorder(">" if big else "<"), encoding != "raw")
