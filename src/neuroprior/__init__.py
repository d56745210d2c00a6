"""Neuroprior: foundation models of brain MRI whose representation is split into anatomy and contrast.

The verbs (``neuroprior.index``, ``prepare``, ``pretrain``, ``finetune``, ``predict``, ``evaluate``, ``report`` ...) and
``neuroprior.load`` are imported when they are first used; importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_VERBS = ("index", "prepare", "pretrain", "finetune", "predict", "evaluate", "report", "demo", "doctor")
_NAMES = {**{verb: f"neuroprior.stages.{verb}" for verb in _VERBS}, "load": "neuroprior.inference.model"}

__all__ = ["__version__", *sorted(_NAMES)]  # noqa: PLE0604 (a list of plain strings, made from the table above)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'neuroprior' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
