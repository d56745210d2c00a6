"""Large JSON files member by member: the text is held once, and one member's objects at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import InputError

_SPACE = " \t\n\r"
_decoder = json.JSONDecoder()


class Text:
    """A JSON text with the few moves that a walk over its objects needs.

    Raises:
        InputError: from every method, where the text is no JSON (cut short, nested too deep); the message says where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        try:
            self.text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError("the file is not UTF-8 text", file=path, got=str(error)) from None
        except OSError as error:
            raise InputError("the file cannot be read", file=path, got=error.strerror) from None

    def skip(self, at: int) -> int:
        """The place of the next character that is no white space."""
        text, n = self.text, len(self.text)
        while at < n and text[at] in _SPACE:
            at += 1
        return at

    def value(self, at: int) -> tuple[Any, int]:
        """The value that begins at a place, and the place behind it."""
        try:
            return _decoder.raw_decode(self.text, self.skip(at))
        except (json.JSONDecodeError, RecursionError) as error:
            raise self.damaged(at, str(error)) from None

    def take(self, at: int) -> Any:
        """The value that begins at a place, inside a walk by :meth:`members`."""
        found, self.end = self.value(at)
        return found

    def members(self, at: int) -> Iterator[tuple[str, int]]:
        """The keys of the object that begins at a place, each with the place of its value.

        Whoever decodes a value (:meth:`take`) or walks it (with another ``members``) leaves behind where it ended; one that
        nobody looks at is stepped over.
        """
        at = self.skip(at)
        if at >= len(self.text) or self.text[at] != "{":
            raise self.damaged(at, "an object was expected")
        at = self.skip(at + 1)
        if at < len(self.text) and self.text[at] == "}":
            self.end = at + 1
            return
        while True:
            key, at = self.value(at)
            at = self.skip(at)
            if not isinstance(key, str) or at >= len(self.text) or self.text[at] != ":":
                raise self.damaged(at, "a key and a colon were expected")
            self.end = -1
            yield key, self.skip(at + 1)
            if self.end < 0:  # nobody looked at it
                _, self.end = self.value(at + 1)
            at = self.skip(self.end)
            mark = self.text[at : at + 1]
            at = self.skip(at + 1)
            if mark == "}":
                self.end = at
                return
            if mark != ",":
                raise self.damaged(at, "a comma or the end of an object was expected")

    def damaged(self, at: int, why: str) -> InputError:
        """The error that says where the text stops being JSON."""
        return InputError(
            "the file is no whole JSON", file=self.path, expected="a JSON object", got=f"{why} (at character {at} of {len(self.text)})",
            next_step="copy or download it again",
        )  # fmt: skip
