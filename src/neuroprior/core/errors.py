"""Every error this package raises on purpose, as one small tree.

::

    NeuropriorError
    ├── InputError            (ValueError)   a scan, a table, a label or an argument is not usable
    ├── ConfigError           (ValueError)   a recipe or a setting is unknown or impossible
    ├── ArtifactError         (RuntimeError) an index, store, run, model or prediction folder is damaged or foreign
    ├── LeakageError          (ValueError)   a subject stands on both sides of a split
    ├── DivergenceError       (ArithmeticError) training left the finite numbers or collapsed
    └── MissingDependency     (ImportError)  an optional package is needed for what was asked
"""

from __future__ import annotations

import os


class NeuropriorError(Exception):
    """An error that names the thing, the file, what was expected, what came and the next step.

    Args:
        what: one sentence naming the thing that is wrong.
        file: the file or folder concerned.
        expected: what would have been right.
        got: what was found.
        next_step: what the user can do now.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        expected: object = None,
        got: object = None,
        next_step: str | None = None,
    ) -> None:
        self.what, self.file, self.expected, self.got, self.next_step = what, file, expected, got, next_step
        parts = [what]
        if file is not None:
            parts.append(f"file: {os.fspath(file)}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if got is not None:
            parts.append(f"got: {got}")
        if next_step is not None:
            parts.append(f"next step: {next_step}")
        super().__init__("\n  ".join(parts))

    @property
    def reason(self) -> str:
        """The error on one line, for a table's ``reason`` column (no file name: the row has it)."""
        text = self.what
        if self.expected is not None:
            text += f" (expected {self.expected}"
            text += f", got {self.got})" if self.got is not None else ")"
        elif self.got is not None:
            text += f" (got {self.got})"
        return " ".join(text.split())


class InputError(NeuropriorError, ValueError):
    """A scan, table, label or argument that cannot be used."""


class ConfigError(NeuropriorError, ValueError):
    """A recipe or a setting that is unknown or impossible."""


class ArtifactError(NeuropriorError, RuntimeError):
    """An artefact on disk that is damaged, incomplete, or made by another version."""


class LeakageError(NeuropriorError, ValueError):
    """A subject that stands on both sides of a split."""


class DivergenceError(NeuropriorError, ArithmeticError):
    """Training that left the finite numbers or collapsed."""


class MissingDependency(NeuropriorError, ImportError):
    """An optional package that is needed for what was asked."""


def suggestion(word: str, known: list[str] | tuple[str, ...]) -> str:
    """``"did you mean 'mae'?"`` for the nearest known words, or the list of them when none is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "choose one of: " + ", ".join(known)
