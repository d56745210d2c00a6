"""Targets that are a column of the participants table."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import InputError, suggestion
from ..data.store import SessionView, Store
from ._protocol import usable_contrasts


def column_values(
    store: Store, sessions: Sequence[SessionView], target: str, contrasts: Sequence[str]
) -> list[tuple[SessionView, object]]:
    """The sessions with a value in column ``target`` (``n/a`` and empty are none) and one of the contrasts.

    Raises:
        InputError: nobody has such a value; the message lists the columns there are.
    """
    found = []
    for session in sessions:
        value = session.value(target)
        if value is not None and str(value).strip().lower() not in {"", "n/a", "nan"} and usable_contrasts(session, contrasts):
            found.append((session, value))
    if not found:
        known = sorted({"age", "sex", "health", "site", "scanner", *(k for s in store.sessions for k in s.columns)})
        raise InputError(
            f"no training session has a value in column {target!r} and one of {', '.join(contrasts)}",
            expected=f"a column with values; there are: {', '.join(known)}",
            next_step=suggestion(target, known),
        )
    return found
