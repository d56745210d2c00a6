"""The tables of a BIDS dataset: participants, sessions and scans, and what they say of one image."""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ..core.errors import InputError, LeakageError
from . import _people
from ._tree import Tree

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Participants:
    present: bool
    rows: Mapping[str, Mapping[str, str]]  # subject -> row
    visits: Mapping[tuple[str, str], Mapping[str, str]]  # (subject, session) -> row
    dictionary: Mapping[str, Any]


def _bare(identifier: object, prefix: str) -> str:
    return unicodedata.normalize("NFC", str(identifier or "").strip().removeprefix(prefix))


def participants(root: Path, tell: Tell) -> Participants:
    """``participants.tsv`` and its data dictionary. A table with a ``session_id`` column has a row a visit.

    Raises:
        LeakageError: two rows for one subject that disagree: it is then unknown whether they are one person.
    """
    path = root / "participants.tsv"
    if not path.is_file():
        return Participants(False, {}, {}, {})
    rows: dict[str, Mapping[str, str]] = {}
    visits: dict[tuple[str, str], Mapping[str, str]] = {}
    table = _people.read_table(path)
    if table and "participant_id" not in table[0]:
        raise InputError(
            "a participants table has no participant_id", file=path, expected="participant_id", got=", ".join(table[0])
        )
    lines: dict[tuple[str, str], int] = {}
    for line, row in enumerate(table, start=2):
        subject = _bare(row.pop("participant_id"), "sub-")
        session = _bare(row.pop("session_id", ""), "ses-")
        if not subject:
            tell(f"{path}: a row without a participant_id is left out")
            continue
        key = (subject, session)
        if key in visits and dict(visits[key]) != row:
            differing = [name for name in row if row[name] != visits[key].get(name)]
            raise LeakageError(
                f"two participants rows for one subject, sub-{subject}, disagree in {', '.join(differing)}",
                file=path,
                expected="one row a subject (or a session_id column), so that a split by subject is one by person",
                got=f"rows {lines[key]} and {line}: "
                + " and ".join(
                    f"{name} (not shown)" if _people.identifying(name) else f"{name}={visits[key].get(name)!r} / {row[name]!r}"
                    for name in differing
                ),
                next_step="remove the wrong row, or give the second person another participant_id",
            )
        if key in visits:
            tell(f"{path}: sub-{subject} is listed twice with the same values")
        visits[key] = row
        lines.setdefault(key, line)
        rows.setdefault(subject, row)
        splits = {visit.get("split") for (who, _), visit in visits.items() if who == subject}
        if len(splits) > 1:
            raise LeakageError(f"sub-{subject} stands in more than one split", file=path, got=splits)
    dictionary = _people.distrusted(table, _people.read_description(path.with_suffix(".json"), tell), tell)
    return Participants(True, rows, visits, dictionary)


def metadata(
    root: Path,
    subject: str,
    session: str,
    path: Path,
    people: Participants,
    tables: Tables,
    tell: Tell,
) -> tuple[dict[str, Any], date | None]:
    """Fields from the participants row, overridden by the sessions row, overridden by the scans row; and the day of the scan."""
    person = dict(people.visits.get((subject, session)) or people.rows.get(subject, {}))
    folder = f"{root}/sub-{subject}"
    visit = tables.get(f"{folder}/sub-{subject}_sessions.tsv", "session_id").get(session, {}) if session else {}
    stem = f"sub-{subject}_ses-{session}" if session else f"sub-{subject}"
    scan_folder = f"{folder}/ses-{session}" if session else folder
    scans = tables.get(f"{scan_folder}/{stem}_scans.tsv", "filename")
    relative = str(path).removeprefix(f"{scan_folder}/") if scans else ""
    specific = {**visit, **scans.get(relative, {})}
    merged = {**person, **{key: cell for key, cell in specific.items() if _people.value(cell) is not None or key not in person}}
    time = _people.raw(merged.pop("acq_time", None))
    day = _people.day(time) if time else None
    if time and day is None:
        tell(f"sub-{subject}: an acq_time cannot be read and is left out: expected YYYY-MM-DDThh:mm:ss")
    return _people.facts(merged, people.dictionary, lambda text: tell(f"sub-{subject}: {text}"), of_columns=tell), day


class Tables:
    """Tables that are there, each read once, by a key column."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.read: dict[str, dict[str, dict[str, str]]] = {}

    def get(self, path: str, key: str) -> dict[str, dict[str, str]]:
        """Key -> row without it; empty where there is no such table."""
        if path not in self.read:
            if not self.tree.has(path):
                return {}
            rows = _people.read_table(Path(path))
            self.read[path] = {_bare(row.get(key), "ses-"): {k: v for k, v in row.items() if k != key} for row in rows}
        return self.read[path]


def _said(row: Mapping[str, str], dictionary: Mapping[str, Any]) -> dict[str, str]:
    """Age (years, to a hundredth) and sex as a row tells them; what is not understood as it stands there."""
    understood = _people.facts(row, dictionary, lambda _: None)  # told of where the rows are made
    found = {
        name: str(cell).casefold()
        for name, cell in understood["columns"].items()
        if name.casefold() in ("age", "sex") and cell is not None
    }
    found = {name.casefold(): cell for name, cell in found.items()}
    if (age := understood.get("age")) is not None:
        found["age"] = f"{age:.2f}".rstrip("0").rstrip(".")
    return found | ({"sex": understood["sex"]} if "sex" in understood else {})


def second_tables(tree: Tree, root: Path, people: Participants) -> dict[str, list[str]]:
    """Subject -> where a derivative's participants table disagrees with the dataset's about age or sex."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in tree.folders.get(f"{root}/derivatives", ()) if people.present else ():
        path = f"{root}/derivatives/{name}/participants.tsv"
        if not tree.has(path):
            continue
        try:
            rows = _people.read_table(Path(path))
        except InputError:
            logger.warning("%s cannot be read and is not compared", path)
            continue
        theirs = _people.read_description(Path(path).with_suffix(".json"), logger.warning) or people.dictionary
        theirs = _people.distrusted(rows, theirs, logger.warning)
        for row in rows:
            subject = _bare(row.get("participant_id"), "sub-")
            said = [
                _said(table, dictionary)
                for table, dictionary in ((people.rows.get(subject, {}), people.dictionary), (row, theirs))
            ]
            for field_name in ("age", "sex"):
                one, other = (facts.get(field_name) for facts in said)
                if one is not None and other is not None and one != other:
                    found[subject].append(
                        f"participants.tsv says {field_name} {one}, that of derivatives/{name} {other}; the first is used"
                    )
    return {subject: list(dict.fromkeys(notes)) for subject, notes in found.items()}
