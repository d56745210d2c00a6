"""Other tables that a report shows: audits (what predicts the label without a brain) and few-shot curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import figures
from ._rows import number

if TYPE_CHECKING:
    import pandas as pd


def audit(path: Path, frame: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of an audit: the findings in words, worst first, and the numbers of every probe.

    Args:
        path: of the table.
        frame: rows of ``neuroprior audit``.
    """
    rows = frame.to_dict("records")
    told = [row for row in rows if row["section"] == "shortcuts"]
    findings = sorted(
        (row for row in rows if row["verdict"] in ("shortcut", "check", "contamination")),
        key=lambda row: row["verdict"] == "check",
    )
    return {
        "name": path.stem,
        "findings": [{"words": row["words"], "bad": row["verdict"] != "check"} for row in findings],
        "heads": ["label", "probe", "verdict", "metric", "value", "interval", "p (Holm)", "subjects"],
        "rows": [
            [
                row["target"], row["probe"], row["verdict"], row["metric"] or "", number(row["value"]),
                "" if row["low"] is None or row["low"] != row["low"] else f"[{number(row['low'])}, {number(row['high'])}]",
                number(row["p_holm"]), "" if row["subjects"] != row["subjects"] else int(row["subjects"]),
            ]
            for row in told
        ],
    }  # fmt: skip


def curve(path: Path, note: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a few-shot curve: the picture and the sentences that the command wrote beside its table.

    Args:
        path: of the table.
        note: what the table says of itself.
    """
    picture, words = path.with_suffix(".png"), path.parent / "summary.txt"
    return {
        "name": path.parent.name, "subjects": len(note.get("test_subjects", [])),
        "src": figures.embed(picture) if picture.is_file() else None,
        "words": words.read_text(encoding="utf-8").strip() if words.is_file() else "",
    }  # fmt: skip
