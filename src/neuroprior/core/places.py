"""Addresses beside paths: a folder on an object store (S3, Google Cloud, Azure, WebDAV, ...), through any driver that fsspec knows.

Who may read or write is settled as the driver says (environment, profile). A ``Place`` in a signature is a path of this machine or such an
address; a ``Path`` is a path alone, and an address given for it is refused (:mod:`neuroprior.core.paths`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import artifacts, formats
from .errors import ArtifactError, InputError, MissingDependency

Place = Path | str
"""A path of this machine, or an address as text."""

AT_ONCE = 8
"""Files that travel at once."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")


def is_address(value: Any) -> bool:
    """Whether something is the text of an address, such as ``s3://bucket/folder``."""
    return isinstance(value, str) and _ADDRESS.match(value) is not None


def on_disk(place: Place, what: str, next_step: str) -> Path:
    """A place that must be a path.

    Raises:
        InputError: it is an address.
    """
    if is_address(place):
        raise InputError(f"{what} must be a path of this machine, not an address", got=str(place), next_step=next_step)
    return Path(place).expanduser()


def kept_for(address: str) -> Path:
    """The folder of this machine that holds what was brought from an address: below ``NEUROPRIOR_CACHE`` where that is set, else below ``TMPDIR`` where that is
    (the node's own disk on most clusters), else in the user's cache folder."""
    named = os.environ.get("NEUROPRIOR_CACHE")
    if named:
        root = Path(named)
    elif os.environ.get("TMPDIR"):
        root = Path(os.environ["TMPDIR"]) / "neuroprior"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuroprior"
    tidy = address.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", tidy.rpartition("/")[2])[-40:] or "place"
    return root / f"{name}-{hashlib.blake2b(tidy.encode(), digest_size=8).hexdigest()}"


@contextlib.contextmanager
def local(place: str) -> Iterator[str]:
    """A file as a path of this machine: itself, or a copy for as long as the block runs (of a detached header with the file of its voxels).

    Raises:
        ArtifactError: it is not at the address, or the other side does not answer.
        InputError: it is a header that does not say where its voxels are.
    """
    if not is_address(place):
        yield place
        return
    url, _, name = place.rpartition("/")
    there = folder_at(url)
    with tempfile.TemporaryDirectory(prefix="neuroprior-") as folder:
        file = Path(folder, name)
        there.get(name, file)
        if (
            name.lower().endswith(formats.ITK)
            and (voxels := formats.voxel_file(file, there=False)) != file
            and voxels.parent == file.parent
        ):
            there.get(voxels.name, voxels)
        yield str(file)


@functools.lru_cache(maxsize=8)
def _folder_of(url: str, process: int) -> Folder:
    return Folder(url)


def folder_at(url: str) -> Folder:
    """The folder at an address, made once a process (drivers do not survive a fork)."""
    return _folder_of(url, os.getpid())


class Missing(ArtifactError):
    """A file is not at the address."""


class Unreachable(ArtifactError):
    """The other side does not answer as it should."""


class _Unsound(Exception):
    """A file did not arrive as it was written."""


OTHER_TROUBLES = {
    "httpx": "HTTPError",
    "httpx2": "HTTPError",
    "aiohttp": "ClientError",
    "requests": "RequestException",
    "botocore.exceptions": "BotoCoreError",
}
"""Libraries that drivers stand on -> the root of their own errors."""


def _troubles() -> tuple[type[Exception], ...]:
    """What drivers raise where something is wrong on the way: errors of the system, and those of the libraries that are in use."""
    used = ((sys.modules.get(library), name) for library, name in OTHER_TROUBLES.items())
    return (OSError, *(getattr(library, name) for library, name in used if library is not None))


class Folder:
    """A folder at an address.

    Raises:
        MissingDependency: the address needs a driver that is not installed.
        InputError: nobody knows such addresses.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self.files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise MissingDependency(
                f"{url.partition('://')[0]}:// needs a driver", got=str(error), next_step=f"pip install {_package(url)}"
            ) from None
        except ValueError as error:
            raise InputError(
                "this address cannot be opened",
                file=url,
                got=str(error),
                expected="an address such as s3://bucket/folder or file:///folder",
            ) from None
        self.root = root.rstrip("/")

    def read(self, name: str) -> bytes:
        """A small file's content.

        Raises:
            Missing: it is not there.
            Unreachable: it cannot be read.
        """
        try:
            return self.files.cat_file(f"{self.root}/{name}")
        except _troubles() as error:
            raise self._trouble(name, error) from None

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        try:
            return self.files.exists(f"{self.root}/{name}")
        except _troubles() as error:
            raise self._trouble(name, error) from None

    def get(self, name: str, target: Path, sound: Callable[[Path], bool] = lambda file: True) -> bool:
        """Copy a file to this machine; it appears whole or not at all, and not where it is not sound (then False)."""
        try:
            with artifacts.atomic(target) as temporary:
                try:
                    self.files.get_file(f"{self.root}/{name}", str(temporary))
                except FileNotFoundError as error:
                    raise self._trouble(name, error) from None
                except _troubles() as error:
                    if isinstance(error, OSError) and error.errno is not None and error.filename == str(temporary):
                        raise
                    raise self._trouble(name, error) from None
                if not sound(temporary):
                    raise _Unsound
        except _Unsound:
            return False
        return True

    def put(self, source: Path, name: str) -> None:
        """Copy a file there."""
        place = f"{self.root}/{name}"
        try:
            self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(source), place)
        except _troubles() as error:
            raise self._trouble(name, error) from None

    def remove(self, name: str) -> None:
        """Remove a file there; none is as well."""
        try:
            self.files.rm_file(f"{self.root}/{name}")
        except FileNotFoundError:
            pass
        except _troubles() as error:
            raise self._trouble(name, error) from None

    def sizes(self, under: str) -> dict[str, int]:
        """Bytes of every file under a folder, by its name from here."""
        return {name: int(facts.get("size") or 0) for name, facts in self.listing(under).items()}

    def listing(self, under: str = "") -> dict[str, dict[str, Any]]:
        """What the driver tells of every file under a folder (its size at least), by its name from here."""
        place = f"{self.root}/{under}".rstrip("/")
        try:
            self.files.invalidate_cache(place)
            if not self.files.exists(place):
                return {}
            found = self.files.find(place, detail=True)
        except _troubles() as error:
            raise self._trouble(under, error) from None
        return {name[len(self.root) + 1 :] if name.startswith(self.root) else name: facts for name, facts in found.items()}

    def _trouble(self, name: str, error: Exception) -> ArtifactError:
        missing = isinstance(error, FileNotFoundError)
        return (Missing if missing else Unreachable)(
            "a file is missing there" if missing else "the other side does not answer as it should",
            file=f"{self.url.rstrip('/')}/{name}", got=None if missing else str(error) or type(error).__name__,
            next_step="check the address, and that you may read and write there; then run the same command again: it resumes",
        )  # fmt: skip


def all_at_once(
    do: Callable[[str], object], names: Iterable[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Do something for each name, several at once, since the time goes by waiting; the first error ends it.

    Args:
        do: called with each name, in threads.
        names: of files.
        progress: told how many of how many are done.
    """
    names = list(names)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for number, _ in enumerate(pool.map(do, names), start=1):
            progress(number, len(names))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _package(url: str) -> str:
    """The package that brings the driver of an address, as fsspec names it."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(url.partition("://")[0], {})
    module = str(known.get("class", "")).partition(".")[0]
    return {"fsspec": f"'fsspec[{url.partition('://')[0]}]'", "": "fsspec"}.get(module, module)
