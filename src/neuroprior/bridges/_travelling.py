"""The part of this package that travels in an exported folder, and what it needs installed where it arrives."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from ..core import artifacts, shelf

TRAINING = ("engine", "objectives", "tasks", "data", "assessments", "stages", "readers", "cli")
"""Parts of the package that never travel with a model."""

WITH_TORCH = ("torch",)
"""Distributions that the size does not count, with everything that is only reached through them."""

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Of the image: the one that the requirements' versions are known to work with."""


def copy_code(roots: Iterable[str], app: Path) -> None:
    """Write the modules that some modules import (:func:`closure`) below ``app``, in place of what is there."""
    shutil.rmtree(app, ignore_errors=True)
    for path in closure(roots).values():
        target = app / path.relative_to(shelf.PACKAGE.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def closure(roots: Iterable[str]) -> dict[str, Path]:
    """The package's modules that some modules import, at any depth and in any function, training code left out.

    Args:
        roots: full module names.

    Returns:
        Module name -> file, packages with their ``__init__``.
    """
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name.split(".")[0] != "neuroprior" or (name.split(".") + [""])[1] in TRAINING:
            continue
        path = _file_of(name)
        if path is None:
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0]] if "." in name else []
        if name != "neuroprior":  # its __init__ names every verb, and imports none until it is asked for
            waiting += [imported for imported in _imports(name, path) if imported.split(".")[0] == "neuroprior"]
    return found


def _file_of(name: str) -> Path | None:
    base = shelf.PACKAGE.parent.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _imports(name: str, path: Path) -> set[str]:
    """Full names of everything a file imports, ``from x import y`` both as ``x`` and as ``x.y``."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
                if node.level
                else node.module
            )
            assert base is not None
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def requirements(app: Path, loaded: Mapping[str, str]) -> list[str]:
    """The lines of ``requirements.txt``: what the travelling code imports itself and a real prediction loaded, as installed here.

    Args:
        app: the folder with the travelling package.
        loaded: module name -> file, of a process that answered a case.
    """
    direct: set[str] = set()
    for path in (app / "neuroprior").rglob("*.py"):
        relative = path.relative_to(app).with_suffix("").parts
        name = ".".join(relative[:-1] if relative[-1] == "__init__" else relative)
        direct |= {imported.split(".")[0] for imported in _imports(name, path)}
    tops = {name.split(".")[0] for name in loaded}
    providers = metadata.packages_distributions()
    lines = set()
    for module in sorted((direct & tops) - {"neuroprior"}):
        for distribution in providers.get(module, ()):
            lines.add(f"{distribution.lower().replace('_', '-')}=={metadata.version(distribution).split('+')[0]}")
    return sorted(lines)


def package_bytes(lines: Sequence[str]) -> dict[str, int]:
    """Installed size of the required distributions and all that they need, torch and what only torch brings left out.

    Args:
        lines: of ``requirements.txt``.
    """
    sizes: dict[str, int] = {}
    waiting = [re.split(r"[=<>!~ \[;]", line)[0] for line in lines]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in sizes or name in WITH_TORCH:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system or Python
        sizes[name] = sum(
            Path(str(file.locate())).stat().st_size for file in found.files or () if Path(str(file.locate())).is_file()
        )
        waiting += [re.split(r"[=<>!~ \[;(]", text)[0] for text in found.requires or () if "extra ==" not in text]
    return sizes


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_licence(folder: Path) -> None:
    """The licence of the package, where its text can be found."""
    text = _licence()
    if text is not None:
        artifacts.write_text(folder / "LICENSE", text)


def _licence() -> str | None:
    """The text of the package's licence, from the installed distribution or the source tree."""
    for path in (shelf.PACKAGE.parent.parent / "LICENSE",):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    if importlib.util.find_spec("neuroprior") is not None:
        try:
            for file in metadata.files("neuroprior") or ():
                if file.name == "LICENSE":
                    return file.read_text(encoding="utf-8")
        except metadata.PackageNotFoundError:
            pass
    return None
