"""Raw datasets at an address: a folder of this machine that looks like them, so that every reader works on it unchanged.

Tables, sidecars and texts are brought; every other file is a placeholder of the same name, size and time that takes no room on the disk. Rows of an index
name the address of a scan, not the placeholder: whoever reads its voxels brings the file for as long as it is read
(:func:`neuroprior.core.places.local`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ..core import artifacts
from ..core.errors import InputError
from ..core.places import Folder

logger = logging.getLogger(__name__)

MANIFEST = ".neuroprior-mirror.json"
"""What is mirrored, and of which state."""
TEXTS = (".tsv", ".csv", ".json", ".yaml", ".yml", ".txt", ".md", ".rst", "")
"""Endings of files that are brought; the empty one is of README, LICENSE and the like."""
LARGEST = 256 << 20
"""Bytes beyond which a text is left a placeholder too."""
AT_ONCE = 16


def mirror(url: str, folder: Path) -> Path:
    """Bring or renew the mirror of an address.

    Args:
        url: of a dataset, or of a folder of datasets.
        folder: where mirrors are kept; it may be removed at any time.

    Returns:
        The mirror: a folder with the last name of the address.

    Raises:
        InputError: nothing is there, or nobody knows such addresses.
        ArtifactError: the other side does not answer.
        MissingDependency: the address needs a driver that is not installed.
    """
    there = Folder(url)
    name = PurePosixPath(there.root).name or "dataset"
    root = folder / hashlib.blake2b(url.rstrip("/").encode(), digest_size=6).hexdigest() / name
    found = {path: facts for path, facts in there.listing().items() if _safe(path)}
    if not found:
        raise InputError("there is nothing at this address", file=url, next_step="check the address, and that you may read there")
    manifest: dict[str, Any] = artifacts.read_json(root / MANIFEST) if (root / MANIFEST).is_file() else {}
    before: dict[str, str] = manifest.get("files", {})
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
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda path: there.get(path, root / path), texts):
            pass
    for path in changed:
        when = int(hashlib.blake2b(stamps[path].encode(), digest_size=6).hexdigest(), 16)  # a time that changes with the state
        os.utime(root / path, ns=(when, when))
    _tidy(root)
    artifacts.write_json(root / MANIFEST, {"address": url, "files": stamps})
    return root


def address_of(path: str, roots: dict[str, str]) -> str:
    """The address of a file of a mirror; another path stays as it is.

    Args:
        path: absolute.
        roots: mirror -> address.
    """
    for root, url in roots.items():
        if path.startswith(root + "/"):
            return f"{url.rstrip('/')}/{path[len(root) + 1 :]}"
    return path


def _safe(path: str) -> bool:
    """Whether a name from the other side stays below a folder of this one."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or "\\" in path or parts == (MANIFEST,):
        logger.warning("a file at the address has a name that cannot be used here and is left out: %r", path)
        return False
    return True


def _is_text(path: str, facts: dict[str, Any]) -> bool:
    return PurePosixPath(path).suffix.lower() in TEXTS and int(facts.get("size") or 0) <= LARGEST


def _stamp(facts: dict[str, Any]) -> str:
    """A file's state, as far as its driver tells it."""
    known = (
        facts.get(name)
        for name in ("size", "ETag", "etag", "md5", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
    )
    return "|".join(str(value) for value in known)


def _tidy(root: Path) -> None:
    """Remove folders that became empty."""
    for folder, _, _ in sorted(os.walk(root), reverse=True):
        if folder != str(root) and not any(Path(folder).iterdir()):
            shutil.rmtree(folder)
