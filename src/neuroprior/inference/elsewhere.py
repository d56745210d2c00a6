"""Models at an address: a hub's repository, a bucket, a web server; brought to this machine once, checked, and used from there.

``hf://ORG/NAME`` is a repository of the Hugging Face hub (its driver comes with ``huggingface_hub``); what else there is depends on fsspec's drivers. The
folder there is a model folder, a run folder that holds one, or an ensemble's, as it lies on a disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from ..core import artifacts
from ..core.errors import ArtifactError
from ..core.places import Folder, Missing, Place, Unreachable, folder_at, is_address, kept_for
from .ensemble import DESCRIPTION as ENSEMBLE
from .model import CARD, DESCRIPTION, WEIGHTS

logger = logging.getLogger(__name__)

SMALL = 64 << 20
"""Bytes beyond which what is brought is told before it comes."""


def at_hand(place: Place) -> Path:
    """A model's folder on this machine: itself, or a checked copy of the one at an address.

    The copy is kept in the cache folder (:func:`neuroprior.core.places.kept_for`). Its description is asked for each time, so that new weights there are new
    weights here; where the other side does not answer, the copy is taken, and that is told.

    Raises:
        ArtifactError: no model is there, or weights do not arrive as its description says.
        MissingDependency: the address needs a driver that is not installed.
        InputError: nobody knows such addresses.
    """
    if not is_address(place):
        return Path(place).expanduser()
    url = str(place).rstrip("/")
    kept, there = kept_for(url), folder_at(url)
    try:
        described = _descriptions(there)
    except Unreachable as error:
        if not ((kept / DESCRIPTION).is_file() or (kept / ENSEMBLE).is_file()):
            raise
        logger.warning("%s does not answer (%s): the copy in %s is taken", url, error.got or error.what, kept)
        return kept
    for folder, text in described.items():
        if folder != ENSEMBLE:
            _bring(there, folder, text, kept)
    if ENSEMBLE in described and _read(kept / ENSEMBLE) != described[ENSEMBLE]:
        with artifacts.atomic(kept / ENSEMBLE) as temporary:
            temporary.write_bytes(described[ENSEMBLE])
    return kept


def name_of(place: Place) -> str:
    """What a model is called in tables: the last part of its path or address; that of the run for the ``model`` folder inside it."""
    path = Path(str(place).partition("://")[2]) if is_address(place) else Path(place).absolute()
    return path.parent.name if path.name == "model" else path.name


def _descriptions(there: Folder) -> dict[str, bytes]:
    """The description of each model below an address, by its folder there (with a slash at its end, or empty); and that of the ensemble, by its name.

    Raises:
        ArtifactError: no model is there, or the other side does not answer.
    """
    if (text := _answer(there, ENSEMBLE)) is not None:
        members = [f"{entry['folder']}/" for entry in _parsed(text, there, ENSEMBLE)["members"]]
        if any(".." in member or member.startswith("/") for member in members):
            raise ArtifactError("the members of this ensemble lie outside of it", file=there.url, got=members[0])
        return {ENSEMBLE: text} | {member: there.read(f"{member}{DESCRIPTION}") for member in members}
    for folder in ("", "model/"):
        if (text := _answer(there, f"{folder}{DESCRIPTION}")) is not None:
            return {folder: text}
    raise ArtifactError(
        "there is no model at this address", file=there.url, expected=f"{DESCRIPTION}, model/{DESCRIPTION} or {ENSEMBLE} in it",
        next_step="check the address, and that you may read there",
    )  # fmt: skip


def _bring(there: Folder, folder: str, text: bytes, kept: Path) -> None:
    """Bring a model whose description differs from that of the copy here; the description is written last."""
    target = kept / ("" if folder == "model/" else folder)
    info = _parsed(text, there, f"{folder}{DESCRIPTION}")
    if _read(target / DESCRIPTION) == text and (target / WEIGHTS).is_file():
        return
    (target / DESCRIPTION).unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    size = there.sizes(f"{folder}{WEIGHTS}").get(f"{folder}{WEIGHTS}", 0)
    if size > SMALL:
        logger.info("bringing %.0f MB from %s to %s", size / 1e6, there.url, target)

    wanted = info.get("weights_sha256")
    if not there.get(f"{folder}{WEIGHTS}", target / WEIGHTS, lambda file: artifacts.sha256_file(file) == wanted):
        raise ArtifactError(
            "the weights are not the ones that model.json describes", file=f"{there.url}/{folder}{WEIGHTS}", expected=f"sha256 {wanted}",
            next_step="try again; where it stays so, whoever keeps them has to write them again",
        )  # fmt: skip
    with contextlib.suppress(Missing):  # nothing is computed from the card
        there.get(f"{folder}{CARD}", target / CARD)
    with artifacts.atomic(target / DESCRIPTION) as temporary:
        temporary.write_bytes(text)


def _answer(there: Folder, name: str) -> bytes | None:
    """A small file's content, None where it is not there."""
    try:
        return there.read(name)
    except Missing:
        return None


def _parsed(text: bytes, there: Folder, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArtifactError("this file is not valid JSON", file=f"{there.url}/{name}", got=str(error)) from None
    if not isinstance(found, dict):
        raise ArtifactError("this is no description of a model", file=f"{there.url}/{name}", got=type(found).__name__)
    return found


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
