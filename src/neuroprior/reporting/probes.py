"""The probes part of a report: what each half of a representation knows, beside what knows nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import figures
from ._rows import cell

if TYPE_CHECKING:
    import pandas as pd

TRIVIAL = ("outline", "raw_pixels", "random_weights")
"""Rows that know nothing: what counts is the margin over the best of them."""


def probes(path: Path, frame: pd.DataFrame, note: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a table of probes: a row for each half and kind of features, a column for each question."""
    columns = list(dict.fromkeys(zip(frame["target"], frame["metric"], strict=True)))
    blocks = []
    for condition, part in frame.groupby("condition", sort=False):
        here = [pair for pair in columns if ((part["target"] == pair[0]) & (part["metric"] == pair[1])).any()]
        rows = []
        for model, half in dict.fromkeys(zip(part["model"], part["region"], strict=True)):
            cells = part[(part["model"] == model) & (part["region"] == half)]
            found = {(row["target"], row["metric"]): row for row in cells.to_dict("records")}
            shown = [
                {"text": cell(found[pair]), "note": found[pair]["note"]} if pair in found else {"text": "", "note": ""}
                for pair in here
            ]
            rows.append({"model": model, "half": half, "cells": shown, "floor": model in TRIVIAL})
        blocks.append({
            "condition": condition, "rows": rows,
            "heads": [f"{target}: {metric}".replace("_", " ") for target, metric in here],
        })  # fmt: skip
    pictures = [path.parent / name for name in note.get("pictures", [])]
    return {
        "name": path.stem, "blocks": blocks, "fit": ", ".join(note.get("fit", [])), "evaluate": ", ".join(note.get("evaluate", [])),
        "subjects": note.get("subjects_evaluated"), "resamples": note.get("config", {}).get("resamples"),
        "pictures": [{"title": picture.stem, "src": figures.embed(picture)} for picture in pictures if picture.is_file()],
    }  # fmt: skip
