"""Synthetic heads: a family made by ``neuroprior synthesise``, read as BIDS with the true volumes as columns.

``make_subject`` gives one subject in memory; the stage ``synthesise`` writes whole families.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import shelf
from ..core.artifacts import read_json
from ..core.records import Scan
from ._heads.options import Options
from ._heads.subject import Sitting, SyntheticSubject, make_subject
from ._heads.writing import RECORD, RECORDS

logger = logging.getLogger(__name__)

__all__ = ["Options", "Sitting", "SyntheticSubject", "make_subject", "read", "recognises"]


def recognises(root: Path) -> str | None:
    """Why ``root`` is a family of synthetic heads, or None."""
    return f"it has {RECORD.as_posix()}" if (Path(root) / RECORD).is_file() else None


def read(root: Path, **options: Any) -> Iterator[Scan]:
    """The rows that the BIDS reader gives, with the true volumes added.

    Args:
        root: the dataset's folder.
        options: passed on to the BIDS reader.

    Yields:
        Scans whose ``columns`` also hold ``true_<name>_ml`` for every name in ``sourcedata/synthesis/volumes.tsv``: the true
        volume in millilitres of the whole head at that session.
    """
    root = Path(root)
    volumes: dict[tuple[str, str], dict[str, float]] = {}
    for path in sorted((root / RECORDS).glob("sub-*.json")):
        record = read_json(path)
        for session in record["sessions"]:
            volumes[record["participant_id"], session["session_id"]] = session["volumes_ml"]
    for scan in shelf.load("readers", "bids").read(root, **options):
        true = volumes.get((scan.subject.rsplit("/", 1)[-1], scan.session), {})
        extra = {f"true_{name.replace('-', '_')}_ml": value for name, value in true.items()}
        yield replace(scan, columns={**scan.columns, **extra})
