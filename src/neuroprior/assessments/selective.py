"""Selective prediction: what is risked when the least confident cases are sent to a person.

Risk-coverage curve, AURC and excess AURC as in ``metrics/selective.py``. The loss is 1 for a wrong class, 1 - DSC for a mask (mean over regions), and the
absolute error of a number. A case that failed counts with its loss and as the least sure of all; a case whose loss is not defined (both
masks empty under the ``honest`` rule) is left out and told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pydantic import field_validator

from ..core.config import Config as BaseConfig
from ..core.records import Score
from ..metrics import selective
from ._answers import Answers, Groups, not_assessed
from .accuracy import over_set

LOSS = {"classification": "wrong class", "segmentation": "1 - DSC", "regression": "absolute error"}
"""Task -> its loss in words."""


class Config(BaseConfig):
    """Where the risk is read off."""

    coverages: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9)
    """Shares of the cases that are answered."""

    @field_validator("coverages")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share <= 1 for share in value):
            raise ValueError(f"coverages are shares above 0 and up to 1, got {value}")
        return value


def risk_at(loss: np.ndarray, confidence: np.ndarray, coverage: float) -> float:
    """Mean loss of the surest ceil(coverage n) cases, ties in expectation; NaN with no case."""
    _, risk = selective.risk_coverage(loss, confidence)
    return float(risk[int(np.ceil(coverage * risk.size - 1e-9)) - 1]) if risk.size else float("nan")


def assess(found: Answers, groups: Groups, info: Mapping[str, Any], config: Config | None = None) -> list[Score]:
    """AURC, excess AURC and the risk at some coverages, each with its interval over subjects.

    Args:
        found: answers of one model.
        groups, info: not used.
        config: coverages.

    Returns:
        ``aurc``, ``excess_aurc``, ``risk`` (of all cases: the AURC of a confidence that knows nothing) in the region ``all``, and
        ``risk_at_coverage`` in regions ``coverage=0.8``; one row with the reason where nothing tells how sure the model is.
    """
    config = config or Config()
    context = found.context
    loss, sure = found.loss, found.confidence.copy()
    known = np.isfinite(sure)
    if not known.any() or np.ptp(sure[known]) == 0:
        what = "all cases are equally sure" if known.any() else "the predictions do not say how sure they are"
        return [not_assessed(context, "selective", what)]
    sure[found.failed] = sure[known].min() - 1
    kept = np.flatnonzero(np.isfinite(loss) & np.isfinite(sure))
    if kept.size < 2:
        return [not_assessed(context, "selective", f"{kept.size} cases have a loss and a confidence")]
    left, failed = len(loss) - kept.size, int(found.failed[kept].sum())
    parts = (
        f"loss: {LOSS[context.task]}", f"{failed} failed cases are the least sure" if failed else "",
        f"{left} cases without a loss or a confidence left out" if left else "",
    )  # fmt: skip
    loss, sure = loss[kept], sure[kept]
    subjects = [found.subjects[k] for k in kept]
    note = "; ".join(part for part in parts if part)
    made = over_set(
        context, subjects,
        {
            "aurc": lambda k: selective.aurc(loss[k], sure[k]), "excess_aurc": lambda k: selective.excess_aurc(loss[k], sure[k]),
            "risk": loss,
        },
        note,
    )  # fmt: skip
    for share in config.coverages:
        at: dict[str, Callable[[np.ndarray], float] | np.ndarray] = {
            "risk_at_coverage": lambda k, share=share: risk_at(loss[k], sure[k], share)
        }
        made += over_set(context, subjects, at, note, region=f"coverage={share:g}")
    return made
