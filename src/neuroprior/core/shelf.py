"""Shelves: folders in which one file is one thing and the file's name is its registration.

``names("objectives")`` reads the folder and imports nothing; ``about`` reads the first line of a file's docstring
from its source; only ``load`` imports, and only the one file asked for.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

from .errors import ConfigError, suggestion

PACKAGE = Path(__file__).resolve().parent.parent

SHELVES = ("readers", "transforms", "nets", "heads", "anatomy", "metrics", "objectives", "tasks", "assessments", "recipes")
"""Every folder that is a shelf. ``recipes`` holds YAML, the others Python."""


def names(shelf: str) -> list[str]:
    """The names of the things on a shelf, sorted; a name is the file's stem.

    Raises:
        ConfigError: there is no such shelf.
    """
    if shelf not in SHELVES:
        raise ConfigError(f"there is no shelf {shelf!r}", next_step=suggestion(shelf, SHELVES))
    folder = PACKAGE / shelf
    found = (path for path in folder.iterdir() if path.suffix in {".py", ".yaml"})
    return sorted(path.stem for path in found if not path.stem.startswith("_"))


def path_of(shelf: str, name: str) -> Path:
    """The file that holds ``name``.

    Raises:
        ConfigError: nothing of that name is on the shelf; the message suggests the nearest.
    """
    known = names(shelf)
    if name not in known:
        raise ConfigError(f"unknown {shelf.removesuffix('s')} {name!r}", next_step=suggestion(name, known))
    yaml = PACKAGE / shelf / f"{name}.yaml"
    return yaml if yaml.exists() else PACKAGE / shelf / f"{name}.py"


def about(shelf: str, name: str) -> str:
    """The one-line description of a thing, read from its source without importing it."""
    path = path_of(shelf, name)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        lines = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")]
        return lines[0] if lines else ""
    return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]


def load(shelf: str, name: str) -> ModuleType:
    """Import the module that holds ``name`` and return it."""
    path_of(shelf, name)
    return importlib.import_module(f"neuroprior.{shelf}.{name}")
