"""Paths as text: what a person types in a notebook becomes what a stage expects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def accept_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which now also takes text where its signature says ``Path`` (alone, optional, or a list of them).

    Annotations are read as they are written, so the function's module must not rename ``Path``. ``~`` is the home folder.
    """
    parameters = inspect.signature(function).parameters
    wanted = {
        name for name, one in parameters.items() if "Path" in str(one.annotation).replace("[", " ").replace("]", " ").split()
    }

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(function).bind(*args, **kwargs)
        for name in wanted & given.arguments.keys():
            given.arguments[name] = _as_path(given.arguments[name])
        return function(*given.args, **given.kwargs)

    return call


def _as_path(value: Any) -> Any:
    if isinstance(value, str):
        return Path(value).expanduser()
    if isinstance(value, (list, tuple)):
        return [_as_path(item) for item in value]
    return value
