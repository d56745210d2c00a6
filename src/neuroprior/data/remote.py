"""A store on an object store (S3, Google Cloud, Azure, WebDAV, ...): published there, and fetched to a disk from which it is trained.

Any address that fsspec knows will do; who may read or write is settled as its driver says (environment, profile). Both ways are resumed by
the same call, the marker of completeness is written last, and what was fetched is checked against the hash that the store had when it was
made. File names come from the sessions' keys, never from the other side, so nothing is written outside the folder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import artifacts
from ..core.errors import ArtifactError, InputError, MissingDependency
from . import sessions
from .sessions import session_file
from .store import Store, hash_store, read_description
from .table import TABLE, Table

logger = logging.getLogger(__name__)

DESCRIPTION = "store.json"
TABLES = (TABLE, "scans.parquet", "index.parquet")
AT_ONCE = 8
"""Files that travel at once: the time goes by waiting."""
TRIES = 2
"""How often a session is fetched that does not arrive as it was written."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sent:
    """What travelled.

    Attributes:
        sessions: of the store.
        copied: of them, those that were not there yet.
        megabytes: of the copied ones.
        store_hash: of the store.
    """

    sessions: int
    copied: int
    megabytes: float
    store_hash: str


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
            ArtifactError: it is not there, or cannot be read.
        """
        try:
            return self.files.cat_file(f"{self.root}/{name}")
        except OSError as error:
            raise self._trouble(name, error) from None

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        try:
            return self.files.exists(f"{self.root}/{name}")
        except OSError as error:
            raise self._trouble(name, error) from None

    def get(self, name: str, target: Path) -> None:
        """Copy a file to this machine; it appears whole or not at all."""
        with artifacts.atomic(target) as temporary:
            try:
                self.files.get_file(f"{self.root}/{name}", str(temporary))
            except FileNotFoundError as error:
                raise self._trouble(name, error) from None
            except OSError as error:
                if error.errno is not None and error.filename == str(temporary):
                    raise
                raise self._trouble(name, error) from None

    def put(self, source: Path, name: str) -> None:
        """Copy a file there."""
        place = f"{self.root}/{name}"
        try:
            self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(source), place)
        except OSError as error:
            raise self._trouble(name, error) from None

    def sizes(self, under: str) -> dict[str, int]:
        """Bytes of every file under a folder, by its name from here."""
        place = f"{self.root}/{under}"
        try:
            if not self.files.exists(place):
                return {}
            found = self.files.find(place, detail=True)
        except OSError as error:
            raise self._trouble(under, error) from None
        return {name[len(self.root) + 1 :] if name.startswith(self.root) else name: item["size"] for name, item in found.items()}

    def _trouble(self, name: str, error: OSError) -> ArtifactError:
        missing = isinstance(error, FileNotFoundError)
        return ArtifactError(
            "a file is missing there" if missing else "the other side does not answer as it should",
            file=f"{self.url.rstrip('/')}/{name}", got=None if missing else str(error) or type(error).__name__,
            next_step="check the address, and that you may read and write there; then run the same command again: it resumes",
        )  # fmt: skip


def _package(url: str) -> str:
    """The package that brings the driver of an address, as fsspec names it."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(url.partition("://")[0], {})
    module = str(known.get("class", "")).partition(".")[0]
    return {"fsspec": f"'fsspec[{url.partition('://')[0]}]'", "": "fsspec"}.get(module, module)


def publish(path: Path, url: str, *, progress: Progress = lambda done, total: None) -> Sent:
    """Copy a finished store to an address.

    Raises:
        ArtifactError: the store is not finished, another one lies there, or it cannot be written there.
        MissingDependency, InputError: see :class:`Folder`.
    """
    store, there = Store.open(path), Folder(url)
    description = (path / DESCRIPTION).read_bytes()
    if there.has(artifacts.MARKER):
        found = _json(there, artifacts.MARKER).get("store_hash")
        if found != store.store_hash:
            raise ArtifactError(
                "another store lies there", file=url, expected=store.store_hash, got=found, next_step="choose another address"
            )
    elif there.has(DESCRIPTION) and there.read(DESCRIPTION) != description:
        raise ArtifactError("another store was begun there", file=url, next_step="choose another address, or empty this one")
    else:
        there.put(path / DESCRIPTION, DESCRIPTION)
    keys = list(store.keys())
    names = {session_file(Path(), key).as_posix(): session_file(path, key) for key in keys}
    sizes = there.sizes("sessions")
    todo = {name: file for name, file in names.items() if sizes.get(name) != file.stat().st_size}
    _all_at_once(lambda name: there.put(todo[name], name), todo, progress)
    for name in TABLES:
        there.put(path / name, name)
    there.put(path / artifacts.MARKER, artifacts.MARKER)
    return Sent(len(keys), len(todo), sum(file.stat().st_size for file in todo.values()) / 1e6, store.store_hash)


def fetch(url: str, path: Path, *, progress: Progress = lambda done, total: None) -> Sent:
    """Copy a store from an address to a folder, and check it.

    Raises:
        ArtifactError: no finished store is there, another one lies here, or what came is not what was published.
        MissingDependency, InputError: see :class:`Folder`.
    """
    there = Folder(url)
    if not there.has(artifacts.MARKER):
        raise ArtifactError(
            "there is no finished store at this address", file=url, next_step="neuroprior store publish STORE --url ..."
        )
    marker = _json(there, artifacts.MARKER)
    if (path / artifacts.MARKER).exists():
        here = artifacts.read_json(path / artifacts.MARKER).get("store_hash")
        if here != marker.get("store_hash"):
            raise ArtifactError(
                "another store lies here",
                file=path,
                expected=marker.get("store_hash"),
                got=here,
                next_step="choose another folder",
            )
    elif (path / DESCRIPTION).exists() and (path / DESCRIPTION).read_bytes() != there.read(DESCRIPTION):
        raise ArtifactError("another store was begun here", file=path, next_step="choose another folder")
    (path / artifacts.MARKER).unlink(missing_ok=True)
    for name in (DESCRIPTION, *TABLES):
        there.get(name, path / name)
    description, table = read_description(path), Table(path)
    expected = dict(zip(table.column("key").to_pylist(), table.column("record_sha256").to_pylist(), strict=True))
    todo = [key for key, digest in expected.items() if _digest(session_file(path, key)) != digest]

    def one(key: str) -> None:
        name, file = session_file(Path(), key).as_posix(), session_file(path, key)
        for _ in range(TRIES):
            there.get(name, file)
            if _digest(file) == expected[key] and not sessions.check(file):
                return
        file.unlink()
        raise ArtifactError(
            "a session does not arrive as it was published", file=f"{url.rstrip('/')}/{name}",
            next_step="verify the store where it was made, and publish it again",
        )  # fmt: skip

    _all_at_once(one, todo, progress)
    whole = hashlib.sha256()
    for key in expected:
        whole.update(sessions.read(session_file(path, key))[0])
    found = hash_store(description, whole.hexdigest())
    if found != marker.get("store_hash"):
        raise ArtifactError(
            "what was fetched is not the store that was published", file=url, expected=marker.get("store_hash"), got=found
        )
    artifacts.mark_complete(path, marker)
    size = sum(session_file(path, key).stat().st_size for key in todo)
    return Sent(len(expected), len(todo), size / 1e6, found)


def _digest(file: Path) -> str | None:
    """The hash of a session file's record; None where the file is missing or damaged."""
    try:
        return hashlib.sha256(sessions.read(file)[0]).hexdigest()
    except ArtifactError:
        return None


def _json(there: Folder, name: str) -> dict[str, Any]:
    import json

    try:
        found = json.loads(there.read(name))
    except ValueError as error:
        raise ArtifactError("the file is damaged", file=f"{there.url.rstrip('/')}/{name}", got=str(error)) from None
    return found if isinstance(found, dict) else {}


def _all_at_once(do: Callable[[str], None], names: Iterable[str], progress: Progress) -> None:
    """Do something for each name, several at once; the first error ends it."""
    names = list(names)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for number, _ in enumerate(pool.map(do, names), start=1):
            progress(number, len(names))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
