"""Paths as text: what a person types in a notebook becomes what a stage expects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from .places import is_address, on_disk


def accept_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which now also takes text where its signature says ``Path`` or ``Place`` (alone, optional, or a list of them).

    Annotations are read as they are written, so the function's module must not rename them. ``~`` is the home folder. An address, such as
    ``s3://bucket/store``, stays as it is where ``Place`` is wanted.

    Raises:
        InputError: when the function is called with an address where ``Path`` is wanted.
    """
    parameters = inspect.signature(function).parameters
    words = {
        name: set(str(one.annotation).replace("[", " ").replace("]", " ").replace("|", " ").split())
        for name, one in parameters.items()
    }

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(function).bind(*args, **kwargs)
        for name in given.arguments:
            if "Place" in words[name]:
                given.arguments[name] = _as_path(given.arguments[name], name, addresses=True)
            elif "Path" in words[name]:
                given.arguments[name] = _as_path(given.arguments[name], name, addresses=False)
        return function(*given.args, **given.kwargs)

    return call


def _as_path(value: Any, name: str, *, addresses: bool) -> Any:
    if isinstance(value, str):
        if addresses and is_address(value):
            return value
        return on_disk(value, name.rstrip("_"), ELSEWHERE)
    if isinstance(value, (list, tuple)):
        return [_as_path(item, name, addresses=addresses) for item in value]
    return value


ELSEWHERE = (
    "copy it to a disk first; at an address can be read models (hf://ORG/NAME, s3://bucket/folder), and stores by pretrain, finetune, crossvalidate, fewshot, "
    "probe, bench and store stats or view; stores are also written there by prepare --out, and copied by neuroprior store publish and fetch"
)
"""What to do where an address is no use."""
