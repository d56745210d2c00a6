"""One pass over a folder: every file's name, size and time, folder by folder, and a digest that says whether anything changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

DEEPEST = 12
"""Folders below the root that are looked into; stops rings of links."""


@dataclass
class Tree:
    """What lies below a folder.

    Attributes:
        root: absolute path.
        files: absolute folder -> names of its files, sorted; hidden ones are left out.
        folders: absolute folder -> names of its folders, sorted.
        closed: folders that may not be listed, with the reason.
        dangling: links into nothing, with where they point, sorted.
        again: links to a folder that another link led into already, sorted; they are not looked into a second time.
        digest: of all names, sizes and times.
        count: of files.
    """

    root: str
    files: dict[str, list[str]] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    closed: list[tuple[str, str]] = field(default_factory=list)
    dangling: list[tuple[str, str]] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    digest: str = ""
    count: int = 0

    def has(self, path: str) -> bool:
        """Whether a file is there, without asking the disk."""
        folder, _, name = path.rpartition("/")
        return name in self.files.get(folder, ())


def walk(root: str | os.PathLike[str], tick: Callable[[int], None] | None = None) -> Tree:
    """The tree below ``root``.

    Links are followed. One that leads to a folder above itself is a ring and is cut; a folder is entered by one link only, and at most
    twelve levels deep. A dangling link is a file, and is listed as dangling too.

    Args:
        root: a folder.
        tick: called with the number of files of each folder, for a progress line.
    """
    tree = Tree(os.path.abspath(root))
    digest = hashlib.blake2b(digest_size=16)
    pending: list[tuple[str, int]] = [(tree.root, 0)]
    linked: set[tuple[int, int]] = set()
    while pending:
        folder, depth = pending.pop()
        files, folders, lines = [], [], []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):  # which of two links is followed must not be chance
                    name = entry.name
                    if name[0] == ".":
                        continue
                    if entry.is_dir():
                        if entry.is_symlink():  # only links can close a ring
                            facts = entry.stat()
                            key = (facts.st_dev, facts.st_ino)
                            if _ring(entry.path, folder, tree.root):
                                continue
                            if key in linked:
                                tree.again.append(entry.path)
                                continue
                            linked.add(key)
                        folders.append(name)
                        continue
                    files.append(name)
                    try:
                        facts = entry.stat()
                        lines.append(
                            f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n" if stat.S_ISREG(facts.st_mode) else f"{name}\0odd\n"
                        )
                    except OSError:
                        lines.append(f"{name}\0gone\n")
                        if entry.is_symlink():
                            tree.dangling.append((entry.path, os.readlink(entry.path)))
        except OSError as error:
            tree.closed.append((folder, error.strerror or str(error)))
            digest.update(f"closed {folder}\n".encode("utf-8", "surrogateescape"))
            continue
        lines.sort()
        tree.files[folder] = files
        if folders:
            tree.folders[folder] = folders
        tree.count += len(files)
        digest.update(f"{folder}\n".encode("utf-8", "surrogateescape"))
        digest.update("".join(lines).encode("utf-8", "surrogateescape"))
        if depth < DEEPEST:
            pending += [(f"{folder}/{name}", depth + 1) for name in reversed(folders)]
        if tick is not None and files:
            tick(len(files))
    tree.dangling.sort()
    tree.again.sort()
    tree.digest = digest.hexdigest()
    return tree


def _ring(link: str, folder: str, root: str) -> bool:
    """Whether a link in a folder leads to one of the folders that one came through to it, or above them."""
    target = os.path.realpath(link) + "/"
    while True:
        if f"{os.path.realpath(folder)}/".startswith(target):
            return True
        if folder == root:
            return False
        folder = os.path.dirname(folder)
