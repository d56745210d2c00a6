"""Neuroprior: foundation models of brain MRI whose representation is split into anatomy and contrast.

The verbs (``neuroprior.index``, ``prepare``, ``pretrain``, ``finetune``, ``predict``, ``evaluate``, ``probe``, ``report`` ...) and
``neuroprior.load`` are imported when they are first used; importing the package imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "anatomy",
    "audit",
    "bench",
    "convert",
    "crossvalidate",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "fewshot",
    "finetune",
    "index",
    "load",
    "predict",
    "prepare",
    "pretrain",
    "probe",
    "report",
    "store",
    "stress",
    "synthesise",
]

_ELSEWHERE = {"load": "neuroprior.inference.model"}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    if name in __all__:
        from .core.paths import accept_text

        verb = accept_text(getattr(importlib.import_module(f"neuroprior.stages.{name}"), name))
        globals()[name] = verb
        return verb
    raise AttributeError(f"module 'neuroprior' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _VerbsFirst(ModuleType):
    """Keeps ``neuroprior.anatomy`` the verb when the shelf of that name is imported (``from neuroprior.anatomy import ...``)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _VerbsFirst
