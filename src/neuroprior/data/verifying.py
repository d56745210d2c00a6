"""What is wrong with a store: every array against its checksum, every row of its tables against the session files, the whole against its
hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core import artifacts
from ..core.errors import ArtifactError, NeuropriorError
from . import sessions
from .rows import INDEX, Rows, there
from .sessions import SUFFIX, WHOLE, session_file
from .store import SCANS, hash_store, read_description
from .table import TABLE, Table, row_of

TABLES = (TABLE, SCANS, INDEX, artifacts.MARKER)
"""Names under which something may be wrong that is no session."""


def damages(
    out: Path, *, wanted: Collection[str] = (), progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, list[str]]:
    """What is wrong with a store: session key (or table) -> problems. Files are read whole and compared with their checksums.

    Args:
        out: the store.
        wanted: keys that must be there whatever the tables say, such as those of a repair.
        progress: told how many of how many sessions were read.

    Raises:
        ArtifactError: there is no store, or another version made it.
    """
    description = read_description(out)
    if not (out / INDEX).is_file() and not artifacts.is_complete(out):
        raise ArtifactError(
            "the store is not finished", file=out, next_step="run the same neuroprior prepare command again: it resumes"
        )
    problems: dict[str, list[str]] = {}
    marker = _marker(out, problems)
    stated = marker.get("tables") if isinstance(marker.get("tables"), dict) else {}
    rows = _index(out, stated, problems)
    _scans(out, stated, problems)
    table, listed = _table(out, problems)
    done, again = there(out)
    known = rows.keys if rows is not None else list(listed) if listed is not None else _named(out, problems)
    foreign = set(listed or ()) - set(known)
    strange = sorted({key for key in foreign if session_file(out, key).name in done} | set(wanted) - set(known) - set(TABLES))
    whole = hashlib.sha256()
    other = [f"{key} (not in the index)" for key in sorted(foreign)]
    sound = True
    for number, key in enumerate([*known, *strange], start=1):
        file, found = session_file(out, key), []
        if file.name not in done:
            if listed is None or key in listed or key in wanted:
                found.append("the session file is missing")
        elif not (found := sessions.check(file)):
            content, frames, source = sessions.read_all(file)
            if number <= len(known):
                whole.update(content)
            if table is not None and listed is not None:
                try:
                    wrong = [] if key in listed else ["no row"]
                    wrong = wrong or table.differs(listed[key], row_of(content, json.loads(content), frames, source))
                except ArtifactError as error:
                    problems[TABLE], table = [_told(error)], None
                else:
                    other += [f"{key} ({', '.join(wrong)})"] if wrong else []
        sound &= not found
        if file.name in again:
            found.append("a scan, a label or a mask could not be read when it was prepared")
        if key in strange and rows is not None:
            found.append("the session is not in the store's index")
        if found:
            problems[key] = found
        progress(number, len(known) + len(strange))
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        problems.setdefault(TABLE, []).append(f"its rows are not those of the sessions: {', '.join(other[:3])}{more}")
    judged = sound and rows is not None and artifacts.MARKER not in problems
    if judged and marker.get("store_hash") != hash_store(description, whole.hexdigest()):
        problems[artifacts.MARKER] = ["the store's hash is not that of its sessions"]
    return problems


def _told(error: NeuropriorError) -> str:
    return f"{error.what} (got {error.got})" if error.got else error.what


def _marker(out: Path, problems: dict[str, list[str]]) -> Mapping[str, Any]:
    try:
        found = artifacts.read_json(out / artifacts.MARKER)
    except (ArtifactError, RecursionError):
        found = None
    if not isinstance(found, dict):
        problems[artifacts.MARKER] = ["it is missing or damaged"]
        return {}
    return found


def _altered(file: Path, stated: Mapping[str, Any]) -> bool:
    """Whether a table is another one than the marker of completeness names; a store made before they were named says nothing."""
    with contextlib.suppress(OSError):
        return file.name in stated and artifacts.sha256_file(file) != stated[file.name]
    return True


def _index(out: Path, stated: Mapping[str, Any], problems: dict[str, list[str]]) -> Rows | None:
    import pyarrow as pa

    advice = "run neuroprior prepare with the index that the store was made from"
    if _altered(out / INDEX, stated):
        problems[INDEX] = [f"the index is missing or not the one that was written: {advice}"]
        return None
    try:
        return Rows(out / INDEX)
    except (NeuropriorError, KeyError, ValueError, TypeError, OSError, pa.ArrowException) as error:
        told = _told(error) if isinstance(error, NeuropriorError) else type(error).__name__
        problems[INDEX] = [f"{told}: {advice}"]
        return None


def _scans(out: Path, stated: Mapping[str, Any], problems: dict[str, list[str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = out / SCANS
    if _altered(file, stated):
        problems[SCANS] = ["the table is missing or not the one that was written"]
    elif SCANS not in stated:
        try:
            pq.read_table(file)
        except (OSError, ValueError, pa.ArrowException):
            problems[SCANS] = ["the table is missing or damaged"]


def _table(out: Path, problems: dict[str, list[str]]) -> tuple[Table | None, dict[str, int] | None]:
    """The table of sessions and its keys -> rows, or None where it is damaged."""
    try:
        table = Table(out)
        listed = table.numbers
    except ArtifactError as error:
        problems[TABLE] = [_told(error)]
        return None, None
    if len(listed) != len(table):
        problems[TABLE] = ["a session stands in it twice"]
    return table, listed


def _named(out: Path, problems: dict[str, list[str]]) -> list[str]:
    """Keys that the session files themselves name, where neither index nor table can be read."""

    def found() -> Iterator[str]:
        for file in sorted(one for one in (out / "sessions").glob(f"*/*{SUFFIX}") if WHOLE.fullmatch(one.name)):
            try:
                yield str(json.loads(sessions.read(file)[0])["key"])
            except ArtifactError as error:
                problems[file.name] = [_told(error)]

    return sorted(found())
