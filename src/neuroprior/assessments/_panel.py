"""Several assessments of the same answers, one after the other: what ``evaluate --assess`` runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..core import shelf
from ..core.errors import ConfigError, InputError, suggestion
from ..core.records import Score
from ._answers import Answers, Groups, not_assessed

logger = logging.getLogger(__name__)

NAMES = ("calibration", "selective", "conformal", "fairness", "domain_shift", "rare", "cost")
"""Files of the shelf with ``Config`` and ``assess(answers, groups, info, config)``, in the order of the table."""


def chosen(text: str) -> tuple[str, ...]:
    """The assessments that a comma-separated text names; ``all`` and ``none`` are understood.

    Raises:
        ConfigError: there is no such assessment.
    """
    if text in ("all", "none", ""):
        return NAMES if text == "all" else ()
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for name in wanted:
        if name not in NAMES:
            raise ConfigError(
                f"unknown assessment {name!r}", expected=f"all, none, or some of {', '.join(NAMES)}",
                next_step=suggestion(name, list(NAMES)),
            )  # fmt: skip
    return tuple(name for name in NAMES if name in wanted)


def run(
    names: Sequence[str], found: Answers, groups: Groups, info: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> list[Score]:
    """The rows of some assessments; each number stands once.

    Args:
        names: of :data:`NAMES`.
        found: answers of one model.
        groups: case -> variable -> group.
        info: of the predictions.
        settings: name -> its Config, defaults otherwise.

    Returns:
        Rows; an assessment that does not apply, or whose input is impossible, is a row ``not_assessed`` with the reason.
    """
    made: dict[tuple[str, ...], Score] = {}
    for name in names:
        try:
            rows = shelf.load("assessments", name).assess(found, groups, info, (settings or {}).get(name))
        except InputError as error:
            logger.warning("%s: %s", name, error.reason)
            rows = [not_assessed(found.context, name, error.reason)]
        for row in rows:
            made.setdefault((row.model, row.task, row.target, row.case, row.metric, row.region, row.condition), row)
    return list(made.values())
