"""Score rows on disk: one Parquet layout for every stage that scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import artifacts
from ..core.records import Score


def write_scores(
    scores: Sequence[Score], out: Path, facts: Mapping[str, Any], *, extra: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write scores as Parquet, atomically, with how they were made in the metadata.

    Args:
        scores: the rows.
        out: the file.
        facts: plain data.
        extra: further columns, one mapping a row; none by default.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [asdict(row) for row in scores]
    if extra:
        rows = [{**row, **more} for row, more in zip(rows, extra, strict=True)]
    table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
    note = {"artifact": "scores", "version": 1, "neuroprior": __version__, **facts}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"neuroprior": json.dumps(note).encode()})
    with artifacts.atomic(out) as temporary:
        pq.write_table(table, temporary)
