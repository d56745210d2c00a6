"""A store on an object store (S3, Google Cloud, Azure, WebDAV, ...): published there, and fetched to a disk; or prepared here and sent there as it is made.

Any address that fsspec knows will do; who may read or write is settled as its driver says (environment, profile). Both ways are resumed by
the same call, the marker of completeness is written last, and what was fetched is checked against the hash that the store had when it was
made. File names come from the sessions' keys, or are of their form, so nothing is written outside the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core import artifacts
from ..core.errors import ArtifactError
from ..core.places import Folder, all_at_once
from . import sessions
from .sessions import AGAIN, WHOLE, session_file
from .shards import DESCRIPTION, TABLES, get_session, marker_at
from .store import Store, hash_store, read_description
from .table import Table

logger = logging.getLogger(__name__)

OURS = re.compile(r"sessions/[0-9a-f]{2}/(?=[A-Za-z0-9_.-]+$)" + WHOLE.pattern)
"""Names of files that may come from the other side."""
SENT = "sent.json"
"""What was sent of a store that is made here, with the time of each file's last change; without it (a killed run) files are sent once more."""
EVERY_S = 3.0
"""Seconds between two looks for sessions that are to be sent."""
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


class Outbox:
    """A store that is prepared here and lies at an address: what is there already is brought first, finished sessions are sent while others are made.

    The local folder is the store until it is finished, so that a run that was cut off goes on from it; on another machine it goes on from what was sent.

    Args:
        path: the local folder.
        url: the address.

    Raises:
        ArtifactError: another store was begun here or there, or the other side does not answer.
        MissingDependency, InputError: see :class:`~neuroprior.core.places.Folder`.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url, self.there = path, url, Folder(url)
        self._sent: dict[str, int] = {}
        self._stop, self._trouble = threading.Event(), ""
        self._thread = threading.Thread(target=self._send_on, name="outbox", daemon=True)

    def __enter__(self) -> Outbox:
        if self.there.has(DESCRIPTION):
            description = self.there.read(DESCRIPTION)
            if not (self.path / DESCRIPTION).exists():
                artifacts.write_text(self.path / DESCRIPTION, description.decode())
            elif not _alike((self.path / DESCRIPTION).read_bytes(), description):
                raise ArtifactError(
                    "another store was begun there", file=self.url, next_step=f"choose another address, or remove {self.path}"
                )
        brought, sizes, here = set(self._bring()), self.there.sizes("sessions"), self._here()
        before = artifacts.read_json(self.path / SENT) if (self.path / SENT).is_file() else {}
        # the size alone would not tell: a corrected age leaves it as it was
        self._sent = {
            name: changed
            for name, changed in here.items()
            if name in sizes
            and (name in brought or before.get(name) == changed)
            and sizes[name] == (self.path / name).stat().st_size
        }
        self.there.remove(artifacts.MARKER)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        artifacts.write_json(self.path / SENT, self._sent)

    def _here(self) -> dict[str, int]:
        """Session files (and those that say that one is to be made again), with the time of their last change."""
        found = {}
        for file in (self.path / "sessions").glob("*/*"):
            if OURS.fullmatch(name := file.relative_to(self.path).as_posix()):
                with contextlib.suppress(FileNotFoundError):
                    found[name] = file.stat().st_mtime_ns
        return found

    def _bring(self) -> list[str]:
        here = self._here()
        wanted = [name for name in self.there.sizes("sessions") if OURS.fullmatch(name) and name not in here]
        if wanted:
            logger.info("%s: %d sessions are there already and are brought here", self.url, len(wanted))

        def one(name: str) -> None:
            if not self.there.get(name, self.path / name, lambda file: name.endswith(AGAIN) or sessions.sound(file)):
                logger.warning("%s/%s is damaged there and is made again", self.url, name)

        all_at_once(one, wanted)
        return wanted

    def _send_on(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.send()
            except ArtifactError as error:  # it is tried again, and at the end for good
                if not self._trouble:
                    logger.warning("sessions wait to be sent: %s", error)
                self._trouble = error.what

    def send(self) -> int:
        """Send what was finished or changed since the last time; returns how many sessions."""
        here = self._here()
        todo = [name for name, changed in here.items() if self._sent.get(name) != changed]

        def one(name: str) -> None:
            self.there.put(self.path / name, name)
            self._sent[name] = here[name]

        if todo and not self.there.has(DESCRIPTION):
            self.there.put(self.path / DESCRIPTION, DESCRIPTION)
        all_at_once(one, todo)
        for name in [name for name in self._sent if name not in here]:
            self.there.remove(name)
            del self._sent[name]
        self._trouble = ""
        return len(todo)

    def finish(self) -> None:
        """Send what is left, then the tables and the marker.

        Raises:
            ArtifactError: the other side does not answer; the store is whole in the local folder, and the same command sends it.
        """
        self._stop.set()
        self._thread.join()
        self.send()
        publish(self.path, self.url)


def publish(path: Path, url: str, *, again: bool = False, progress: Progress = lambda done, total: None) -> Sent:
    """Copy a finished store to an address.

    Args:
        path: the store.
        url: the address.
        again: also copy the sessions that are there in the right size: one of them may be damaged.
        progress: told how many of how many sessions are copied.

    Raises:
        ArtifactError: the store is not finished, another one lies there, or it cannot be written there.
        MissingDependency, InputError: see :class:`Folder`.
    """
    store, there = Store.open(path), Folder(url)
    description = (path / DESCRIPTION).read_bytes()
    if there.has(artifacts.MARKER):
        found = marker_at(there)["store_hash"]
        if found != store.store_hash:
            raise ArtifactError(
                "another store lies there", file=url, expected=store.store_hash, got=found, next_step="choose another address"
            )
    elif there.has(DESCRIPTION) and not _alike(there.read(DESCRIPTION), description):
        raise ArtifactError("another store was begun there", file=url, next_step="choose another address, or empty this one")
    else:
        there.put(path / DESCRIPTION, DESCRIPTION)
    keys = list(store.keys())
    names = {session_file(Path(), key).as_posix(): session_file(path, key) for key in keys}
    sizes = there.sizes("sessions")
    todo = {name: file for name, file in names.items() if again or sizes.get(name) != file.stat().st_size}
    all_at_once(lambda name: there.put(todo[name], name), todo, progress)
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
    marker = marker_at(there)
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
    elif (path / DESCRIPTION).exists() and not _alike((path / DESCRIPTION).read_bytes(), there.read(DESCRIPTION)):
        raise ArtifactError("another store was begun here", file=path, next_step="choose another folder")
    (path / artifacts.MARKER).unlink(missing_ok=True)
    for name in (DESCRIPTION, *TABLES):
        there.get(name, path / name)
    description, table = read_description(path), Table(path)
    expected = dict(zip(table.column("key").to_pylist(), table.column("record_sha256").to_pylist(), strict=True))
    todo = [key for key, digest in expected.items() if not _arrived(session_file(path, key), digest)]

    def one(key: str) -> None:
        name, file = session_file(Path(), key).as_posix(), session_file(path, key)
        get_session(there, name, file, lambda came: _arrived(came, expected[key]))

    all_at_once(one, todo, progress)
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


def _alike(one: bytes, other: bytes) -> bool:
    """Whether two descriptions are of stores prepared alike, by whatever version."""
    try:
        return {**json.loads(one), "neuroprior": ""} == {**json.loads(other), "neuroprior": ""}
    except (ValueError, TypeError):
        return False


def _arrived(file: Path, digest: str) -> bool:
    """Whether a session file is there, byte for byte as it was written, with this record."""
    return sessions.sound(file) and hashlib.sha256(sessions.read(file)[0]).hexdigest() == digest
