"""Raw datasets at an address: a folder of this machine that looks like them, so that every reader works on it unchanged.

Tables, sidecars and texts are brought; every other file is a placeholder of the same name, size and time that takes no room on the disk. Rows of an index
name the address of a scan, not the placeholder: whoever reads its voxels brings the file for as long as it is read
(:func:`neuroprior.core.places.local`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..core import artifacts
from ..core.errors import ArtifactError, InputError
from ..core.places import Folder, all_at_once, is_address, local
from ..core.records import Scan

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

MANIFEST = ".neuroprior-mirror.json"
"""What is mirrored, and of which state."""
ENDING = ".mirror"
"""Of the name of the folder beside an index that holds its mirrors."""
TEXTS = (".tsv", ".csv", ".json", ".yaml", ".yml", ".txt", ".md", ".rst", ".mhd", ".nhdr", "")
"""Endings of files that are brought: tables, texts, and headers that name the file of their voxels; the empty one is of README, LICENSE and the like."""
LARGEST = 256 << 20
"""Bytes beyond which a text is left a placeholder too."""
TELLING = ("ETag", "etag", "md5", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
"""What drivers call a tag or a time of a file."""


def mirror(url: str, folder: Path) -> Path:
    """Bring or renew the mirror of an address.

    Args:
        url: of a dataset, or of a folder of datasets.
        folder: where mirrors are kept, named ``*.mirror``; it may be removed when nothing runs.

    Returns:
        The mirror: a folder with the last names of the address, so that a dataset is called there what it is called here.

    Raises:
        InputError: nothing is there, or nobody knows such addresses.
        ArtifactError: the other side does not answer.
        MissingDependency: the address needs a driver that is not installed.
    """
    there = Folder(url)
    names = [name for name in PurePosixPath(there.root).parts if name.strip("./\\:")][-3:] or ["dataset"]
    top = Path(os.path.abspath(folder)) / hashlib.blake2b(url.rstrip("/").encode(), digest_size=6).hexdigest()
    root = top.joinpath(*names)
    found = {path: facts for path, facts in there.listing().items() if _safe(path)}
    if not found:
        raise InputError("there is nothing at this address", file=url, next_step="check the address, and that you may read there")
    manifest: dict[str, Any] = artifacts.read_json(top / MANIFEST) if (top / MANIFEST).is_file() else {}
    before: dict[str, str] = manifest.get("files", {})
    if not any(facts.get(name) for facts in found.values() for name in TELLING):
        logger.warning(
            "%s tells neither times nor tags of its files: one that changes and keeps its size is not seen to change", url
        )
    stamps = {path: _stamp(facts) for path, facts in found.items()}
    changed = [path for path, stamp in stamps.items() if before.get(path) != stamp]
    if changed != list(stamps) or before:
        logger.info("%s: %d of %d files are new or changed", url, len(changed), len(found))
    for path in before.keys() - found.keys():
        (root / path).unlink(missing_ok=True)
    texts = [path for path in changed if _is_text(path, found[path])]
    for path in set(changed) - set(texts):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with open(root / path, "wb") as file:
            file.truncate(int(found[path].get("size") or 0))
    all_at_once(lambda path: there.get(path, root / path), texts)
    for path in changed:
        when = int(hashlib.blake2b(stamps[path].encode(), digest_size=6).hexdigest(), 16)  # a time that changes with the state
        os.utime(root / path, ns=(when, when))
    _tidy(root)
    artifacts.write_json(top / MANIFEST, {"address": url.rstrip("/"), "root": "/".join(names), "files": stamps})
    _told.cache_clear()
    return root


def address_of(path: str) -> str:
    """The address of a file of a mirror; another path stays as it is."""
    folder, mark, below = path.partition(ENDING + "/")
    if not mark:
        return path
    root, url = _told(f"{folder}{mark}{below.partition('/')[0]}") or ("", "")
    return f"{url}/{path[len(root) + 1 :]}" if root and path.startswith(f"{root}/") else path


@functools.lru_cache(maxsize=64)
def _told(top: str) -> tuple[str, str] | None:
    """A mirror and its address, of the folder that holds both it and its manifest."""
    manifest = Path(top, MANIFEST)
    if not manifest.is_file():
        return None
    told = artifacts.read_json(manifest)
    return f"{top}/{told['root']}", str(told["address"])


def _mirrors(folder: Path) -> dict[str, str]:
    """Mirror -> its address, of all mirrors in a folder."""
    return dict(told for top in sorted(Path(os.path.abspath(folder)).glob("*")) if (told := _told(str(top))) is not None)


def with_addresses(table: pa.Table, folder: Path) -> pa.Table:
    """Rows of an index that name addresses where they named files of the mirrors in a folder."""
    return _replaced(table, {root + "/": url + "/" for root, url in _mirrors(folder).items()})


def with_mirrors(table: pa.Table, folder: Path) -> pa.Table:
    """The inverse of :func:`with_addresses`."""
    longest = sorted(_mirrors(folder).items(), key=lambda item: -len(item[1]))  # one address may lie below another
    return _replaced(table, {url + "/": root + "/" for root, url in longest})


def _replaced(table: pa.Table, texts: dict[str, str]) -> pa.Table:
    import pyarrow.compute as pc

    for name in ("path", "brain_mask", "labels") if texts else ():
        column = table.column(name)
        for old, new in texts.items():
            if name == "labels":  # JSON
                old, new = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
            column = pc.replace_substring(column, old, new)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


@contextlib.contextmanager
def brought(scans: Sequence[Scan]) -> Iterator[list[Scan]]:
    """The rows with their scans, labels and masks on this machine for as long as the block runs; what is on a disk stays where it is.

    A file that does not come is one that does not exist.
    """
    with contextlib.ExitStack() as stack:
        known: dict[str, str] = {}

        def here(path: str) -> str:
            address = address_of(path)
            if not is_address(address):
                return path
            if address not in known:
                try:
                    known[address] = stack.enter_context(local(address))
                except (ArtifactError, InputError) as error:
                    logger.warning("%s does not come: %s", address, error.reason)
                    known[address] = address
            return known[address]

        yield [
            replace(
                scan, path=here(scan.path), brain_mask=here(scan.brain_mask) if scan.brain_mask else scan.brain_mask,
                labels={name: here(path) for name, path in scan.labels.items()},
            )
            for scan in scans
        ]  # fmt: skip


def _safe(path: str) -> bool:
    """Whether a name from the other side stays below a folder of this one."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or "\\" in path or MANIFEST in parts:
        logger.warning("a file at the address has a name that cannot be used here and is left out: %r", path)
        return False
    return True


def _is_text(path: str, facts: dict[str, Any]) -> bool:
    return PurePosixPath(path).suffix.lower() in TEXTS and int(facts.get("size") or 0) <= LARGEST


def _stamp(facts: dict[str, Any]) -> str:
    """A file's state, as far as its driver tells it."""
    return "|".join(str(facts.get(name)) for name in ("size", *TELLING))


def _tidy(root: Path) -> None:
    """Remove folders that became empty."""
    for folder, _, _ in sorted(os.walk(root), reverse=True):
        if folder != str(root) and not any(Path(folder).iterdir()):
            shutil.rmtree(folder)
