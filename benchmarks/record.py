"""Where results are kept: a JSON line each in benchmarks/results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep(file: str, result: Mapping[str, Any]) -> None:
    """Append a result to ``benchmarks/results/FILE.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{file}.jsonl", "a", encoding="utf-8") as lines:
        lines.write(json.dumps(result) + "\n")
