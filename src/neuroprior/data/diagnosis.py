"""Healthy or not, from the many spellings of a health column."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

logger = logging.getLogger(__name__)

HEALTHY = {
    "healthy", "healthy control", "healthy controls", "healthy subject", "control", "controls", "hc", "nc", "cn", "normal", "normal control",
    "cognitively normal", "td", "typically developing", "none", "no", "false", "0", "0.0", "negative", "unaffected",
}  # fmt: skip
UNKNOWN = {"", "n/a", "na", "nan", "unknown", "missing", "other", "not stated", "?", "-"}
NOT_HEALTHY = {
    "patient", "patients", "not healthy", "unhealthy", "ill", "sick", "disease", "diseased", "pathological", "pathology", "yes", "true", "1",
    "1.0", "positive", "affected", "case",
}  # fmt: skip


def health_class(value: Any) -> int:
    """0 healthy, 1 not healthy, -1 unknown.

    Case, ``_`` and ``-`` do not matter. Any text that is neither a known spelling of health nor of ignorance is a
    diagnosis, and so not healthy; a number other than 0 and 1 says nothing.
    """
    if value is None or (isinstance(value, float) and value != value):
        return -1
    raw = str(value).strip().lower()
    text = " ".join(raw.replace("_", " ").replace("-", " ").split())
    if raw in UNKNOWN or text in UNKNOWN:
        return -1
    if raw in HEALTHY or text in HEALTHY:
        return 0
    if text in NOT_HEALTHY:
        return 1
    try:
        float(raw)
    except ValueError:
        return 1
    return -1


def describe(values: Iterable[Any]) -> str:
    """One line that says how each spelling was taken, so that a person can see a mistake."""
    names = {0: "healthy", 1: "not healthy", -1: "unknown"}
    counts = Counter(str(value) for value in values)
    return ", ".join(f"{spelling!r} ({n}) as {names[health_class(spelling)]}" for spelling, n in sorted(counts.items()))
