"""What is written to disk: atomic writes, hashes, completeness markers, provenance.

A file appears under its name whole or not at all: it is written beside its place, flushed to the disk and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import numpy as np

MARKER = "complete.json"
"""The file whose presence says that a folder is complete; it is written last."""

LOCK = ".lock"
"""The file that :func:`held` locks."""


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes ``path`` when the block ends without an error.

    The temporary name keeps the suffixes of ``path`` (some writers choose their format by them).

    Raises:
        ArtifactError: the disk is full, fails, or the folder cannot be written; nothing is left behind.
    """
    target = Path(path)
    suffixes = "".join(target.suffixes)
    temporary: Path | None = None
    inside = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name[: -len(suffixes) or None]}-", suffix=suffixes, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        inside = True
        yield temporary
        inside = False
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        _settle(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError(
                "the disk is full", file=target, next_step="free space or choose another --out, then run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ArtifactError("no permission to write here", file=target, next_step="choose another --out") from error
        # an error of the block that names another file, or none of the system's, is not about this one
        if error.errno is None or (inside and error.filename is not None and Path(os.fsdecode(error.filename)) != temporary):
            raise
        raise ArtifactError(
            "the file cannot be written", file=target, got=error.strerror or str(error),
            next_step="look after the disk or choose another --out, then run the same command again",
        ) from error  # fmt: skip
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Flush a folder's names to the disk, so that a file renamed into it is still there after the power failed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one that may be written and not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # a file system that does not flush folders
            raise
    finally:
        os.close(handle)


SIGNS = {
    "store": "store.json", "run": "recipe.yaml", "model": "model.safetensors", "ensemble": "ensemble.json",
    "predictions": "predictions.tsv", "embeddings": "embeddings.parquet", "stress test": "stress.json",
}  # fmt: skip
"""What an artefact that is a folder is known by."""


def require_place(out: str | Path, kind: str) -> None:
    """Refuse to write one artefact into another.

    Args:
        out: the folder that is to be written.
        kind: what it will hold: a key of :data:`SIGNS`, or another word.

    Raises:
        ConfigError: it or a folder above it is a file, or it holds another kind of artefact.
    """
    place = Path(out)
    if any(part.is_file() for part in (place, *place.parents)):
        raise ConfigError("--out is a file", file=place, expected="a folder", next_step="choose another --out")
    for other, sign in SIGNS.items():
        if other != kind and (place / sign).is_file():
            raise ConfigError(
                "this folder holds something else", file=place, expected=f"a folder of its own for the {kind}", got=other,
                next_step="choose another --out",
            )  # fmt: skip


@contextlib.contextmanager
def held(folder: str | Path, wait: float = 10.0) -> Iterator[None]:
    """Makes a folder and keeps every other process that asks for it out while the block runs. The lock ends with the process,
    however it ends; its file stays.

    Args:
        folder: is made where it is not there.
        wait: seconds; a process that was just killed may leave children that end a moment later.

    Raises:
        ConfigError: another process holds it. A file system without locks holds nobody out.
    """
    import fcntl

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    # a file that can be written: a network file system takes no exclusive lock on anything else
    handle = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise ConfigError(
                        "another process is at work in this folder",
                        file=place,
                        next_step="wait for it to end, or choose another --out",
                    ) from error
                time.sleep(0.2)
                continue
            except OSError:  # no locks here
                pass
            break
        yield
    finally:
        os.close(handle)


def sweep(folder: str | Path) -> int:
    """Remove the temporary files that a killed process left in a folder; call it when nothing is writing there. Returns how many."""
    left = [path for path in Path(folder).rglob(".*-????????*") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_once(path: str | Path, value: Any) -> bool:
    """Write ``value`` as :func:`write_json` does where nothing lies yet; False, and nothing changed, where something does, however
    many processes try at once."""
    target = Path(path)
    once = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
    write_json(once, value)
    try:
        os.link(once, target)
    except FileExistsError:
        return False
    except OSError:  # no hard links here: a moment in which the file is there and not whole cannot be avoided
        try:
            with open(target, "xb") as file:
                file.write(once.read_bytes())
                os.fsync(file.fileno())
        except FileExistsError:
            return False
    finally:
        once.unlink(missing_ok=True)
    return True


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        ArtifactError: the file is missing or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError("a file is missing", file=path) from None
    except (OSError, ValueError) as error:
        raise ArtifactError("the file is damaged", file=path, got=str(error)) from None


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """The SHA-256 of an array's dtype, shape and values (C order), in hexadecimal."""
    import numpy as np

    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of plain data, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def mark_complete(folder: str | Path, facts: dict[str, Any]) -> None:
    """Write the marker that says ``folder`` is whole, with ``facts`` about it. Call it last."""
    write_json(Path(folder) / MARKER, facts)


def is_complete(folder: str | Path) -> bool:
    """Whether the folder's marker is there."""
    return (Path(folder) / MARKER).is_file()


def provenance(command: str) -> dict[str, Any]:
    """Who made an artefact: package version, command name, Python and library versions. No host, user or path."""
    versions = {}
    for name in ("neuroprior", "torch", "numpy", "scipy", "nibabel", "blosc2", "lightning", "monai", "pandas"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"command": command, "python": sys.version.split()[0], "system": platform.system(), "versions": versions}
