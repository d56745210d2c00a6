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

from ..core import artifacts
from ..core.errors import ArtifactError
from ..core.places import folder_at, kept_for

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
    if not there.has(artifacts.MARKER):
        raise ArtifactError(
            "there is no finished store at this address", file=address, next_step="neuroprior store publish STORE --url ..."
        )
    content = there.read(artifacts.MARKER)
    try:
        store_hash = str(json.loads(content)["store_hash"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError("the file is damaged", file=f"{address}/{artifacts.MARKER}", got=str(error)) from None
    here = kept_for(address) / "".join(c for c in store_hash[:16] if c.isalnum())
    if not artifacts.is_complete(here):
        for name in (DESCRIPTION, *TABLES):
            there.get(name, here / name)
        artifacts.write_json(here / SOURCE, {"address": address})
        artifacts.write_text(here / artifacts.MARKER, content.decode())
    logger.info("%s: sessions are kept in %s as they are drawn", address, here)
    return here


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
    name = file.relative_to(root).as_posix()
    for _ in range(TRIES):
        if folder_at(address).get(name, file, sound):
            return True
    raise ArtifactError(
        "a session does not arrive as it was published", file=f"{address.rstrip('/')}/{name}",
        next_step="verify the store where it was made, and publish it again: neuroprior store publish STORE --url ... --again",
    )  # fmt: skip


@lru_cache(maxsize=64)
def _source(root: Path) -> str | None:
    if not (root / SOURCE).is_file():
        return None
    return str(artifacts.read_json(root / SOURCE)["address"])
