"""A store that lies at an address, read from this machine: its tables are brought at once, each session when it is first drawn.

The folder that they are kept in is a store like any other, but for the sessions that nobody asked for yet. Several processes may share it: the ranks of one
machine bring each session once, those of several machines only what they draw. A session that arrives is checked against its own checksum before it is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core import artifacts
from ..core.errors import ArtifactError
from ..core.places import Folder, folder_at, kept_for

logger = logging.getLogger(__name__)

DESCRIPTION = "store.json"
TABLES = ("sessions.parquet", "scans.parquet", "index.parquet")
SOURCE = "source.json"
"""The file that says where the sessions come from which are not here."""
TRIES = 2
"""How often a session is brought that does not arrive as it was written."""


def opened(address: str) -> Path:
    """The folder of this machine through which a store at an address is read.

    Raises:
        ArtifactError: no finished store is there, or the other side does not answer.
        MissingDependency, InputError: see :class:`~neuroprior.core.places.Folder`.
    """
    there = folder_at(address)
    marker = marker_at(there)
    here = kept_for(address) / "".join(c for c in str(marker["store_hash"])[:16] if c.isalnum())
    if not artifacts.is_complete(here):
        for name in (DESCRIPTION, *TABLES):
            there.get(name, here / name)
        artifacts.write_json(here / SOURCE, {"address": address})
        artifacts.mark_complete(here, marker)
    logger.info("%s: sessions are kept in %s as they are drawn", address, here)
    return here


def marker_at(there: Folder) -> dict[str, Any]:
    """What the marker of a finished store at an address says, its ``store_hash`` at least.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    if not there.has(artifacts.MARKER):
        raise ArtifactError(
            "there is no finished store at this address", file=there.url, next_step="neuroprior store publish STORE --url ..."
        )
    try:
        found = json.loads(there.read(artifacts.MARKER))
        return {**found, "store_hash": str(found["store_hash"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError("the file is damaged", file=f"{there.url.rstrip('/')}/{artifacts.MARKER}", got=str(error)) from None


def get_session(there: Folder, name: str, file: Path, sound: Callable[[Path], bool]) -> None:
    """Copy a session from an address, again where it does not arrive as it was written.

    Raises:
        ArtifactError: it is not there, or never arrives as it was written.
    """
    for _ in range(TRIES):
        if there.get(name, file, sound):
            return
    raise ArtifactError(
        "a session does not arrive as it was published", file=f"{there.url.rstrip('/')}/{name}",
        next_step="verify the store where it was made, and publish it again: neuroprior store publish STORE --url ... --again",
    )  # fmt: skip


def bring(file: Path, sound: Callable[[Path], bool]) -> bool:
    """Bring a session file that is not here; False where its store lies nowhere else.

    Args:
        file: where it belongs, ``STORE/sessions/3f/NAME``.
        sound: whether a file is as it was written.

    Raises:
        ArtifactError: it is not there either, or does not arrive as it was written.
    """
    root = file.parents[2]
    address = _source(root)
    if address is None:
        return False
    get_session(folder_at(address), file.relative_to(root).as_posix(), file, sound)
    return True


@lru_cache(maxsize=64)
def _source(root: Path) -> str | None:
    if not (root / SOURCE).is_file():
        return None
    return str(artifacts.read_json(root / SOURCE)["address"])
