"""``events.jsonl``: one JSON object a line, what machines read of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core import artifacts


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a file; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events


def append(path: Path, events: Iterable[dict[str, Any]]) -> None:
    """Add events at the end, in one write."""
    text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
    if text:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def rewind(path: Path, step: int) -> None:
    """Drop every event after ``step``, so that a resumed run's trace is the one of a run that was never interrupted."""
    kept = [event for event in read(path) if event.get("step", 0) <= step]
    artifacts.write_text(path, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept))
