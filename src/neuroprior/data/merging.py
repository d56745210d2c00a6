"""Rows of several sources in one table: datasets of one name are told apart, and no two rows bear one name.

A dataset is known by the folder or file that it came from, which an index remembers (``origins`` in its notes): two indexes of one folder hold
one dataset, and their subjects are the same people; two folders of one name hold two.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Origins = Mapping[str, Sequence[str]]
"""Dataset -> the folders or files that it came from."""
SAME_PERSON = "another subject's name differs by case only: on some file systems the two are one person"


def longer_names(name: str, origin: str) -> list[str]:
    """What a dataset may be called where its name is not enough: with its folder's parents in front, one more each time.

    A file's own name counts as a folder, and so does a folder that is not called like the dataset.
    """
    path = Path(origin).resolve()
    parts = [
        part for part in (*path.parts[:-1], path.stem if path.suffix in FILES else path.name) if part not in ("", path.anchor)
    ]
    same = [place for place, part in enumerate(parts) if part.casefold() == name.casefold()]
    if same:
        parts = parts[: same[-1]]
    return ["-".join([*parts[-count:], name]) for count in range(1, len(parts) + 1)] or [f"root-{name}"]


FILES = (".parquet", ".csv", ".tsv", ".json")


def told_apart(sources: Sequence[Origins]) -> list[dict[str, str]]:
    """For each source the datasets that must take another name, old -> new: those whose name another source has for another dataset.

    Names that differ by case only count as one: on some file systems they are.
    """
    holders: dict[str, list[tuple[int, str]]] = {}
    for place, datasets in enumerate(sources):
        for name in datasets:
            holders.setdefault(name.casefold(), []).append((place, name))
    made: list[dict[str, str]] = [{} for _ in sources]
    used = set(holders)
    for key in sorted(holders):
        groups: list[tuple[set[str], list[tuple[int, str]]]] = []
        for place, name in holders[key]:
            roots, own = set(sources[place][name]), [(place, name)]
            for group in [group for group in groups if group[0] & roots or place in {at for at, _ in group[1]}]:
                groups.remove(group)
                roots, own = roots | group[0], group[1] + own
            groups.append((roots, own))
        if len(groups) < 2:
            continue
        longer = [{name: longer_names(name, min(roots)) for _, name in own} for roots, own in groups]
        for level in range(max(len(names) for group in longer for names in group.values())):
            tried = [{name: names[min(level, len(names) - 1)] for name, names in group.items()} for group in longer]
            folded = [{new.casefold() for new in group.values()} for group in tried]
            if sum(map(len, folded)) == len(set().union(*folded)) and not used & set().union(*folded):
                break
        else:
            tried = [{name: f"{new}-{number}" for name, new in group.items()} for number, group in enumerate(tried, 1)]
        for (roots, own), names in zip(groups, tried):
            for place, name in own:
                made[place][name] = names[name]
                used.add(names[name].casefold())
                logger.warning("several datasets are called %r; that of %s is called %r", name, min(roots), names[name])
    return made


def renamed(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """The table with some datasets under other names, in ``dataset``, ``subject`` and ``scan``."""
    if not names:
        return table
    from .index import replaced

    datasets, subjects, scans = (table.column(name).to_pylist() for name in ("dataset", "subject", "scan"))
    for row, old in enumerate(datasets):
        if old in names:
            new = datasets[row] = names[old]
            subjects[row], scans[row] = (f"{new}/{text.removeprefix(f'{old}/')}" for text in (subjects[row], scans[row]))
    return replaced(table, dataset=datasets, subject=subjects, scan=scans)


def differ_by_case(names: Iterable[str]) -> set[str]:
    """Names of which another differs by case only."""
    names = set(names)
    folded = Counter(name.casefold() for name in names)
    return {name for name in names if folded[name.casefold()] > 1}


def named_once(table: pa.Table) -> tuple[pa.Table, set[str]]:
    """The table of all sources with every scan named once, and the sources whose rows were changed for it.

    Within a source this was seen to already: what comes again here is a file that two sources hold, or one name in two of them. The later row gets a
    number and is bad. Subjects whose names differ by case only are told.
    """
    from ..core.records import BAD, OK, WARNING
    from .index import replaced

    scans: list[str] = table.column("scan").to_pylist()
    subjects = table.column("subject").to_pylist()
    twice, alike = len(set(scans)) < len(scans), differ_by_case(subjects)
    if not twice and not alike:
        return table, set()
    paths, sources, status, reasons, prints, content = (
        table.column(name).to_pylist() for name in ("path", "source", "status", "reasons", "fingerprint", "content")
    )
    first: dict[str, int] = {}
    taken, changed = set(scans), set()
    for row, name in enumerate(scans):
        said = []
        if subjects[row] in alike and SAME_PERSON not in reasons[row]:
            said.append(SAME_PERSON)
            status[row] = WARNING if status[row] == OK else status[row]
        if first.setdefault(name, row) != row:
            number = 2
            while f"{name}.{number}" in taken:
                number += 1
            scans[row] = f"{name}.{number}"
            taken.add(scans[row])
            status[row], content[row] = BAD, None
            other = paths[first[name]]
            said.append(
                "the same file is indexed already"
                if other == paths[row]
                else f"another file gives a scan of the same name ({Path(other).name}): rename one"
            )
        if said:
            reasons[row] = [*reasons[row], *said]
            changed.add(sources[row])
            prints[row] = None  # it is looked at again next time: the other row may be gone
    return replaced(table, scan=scans, status=status, reasons=reasons, fingerprint=prints, content=content), changed


def origins_of(table: Any, notes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Dataset -> where it came from, of an index that is merged."""
    told = notes.get("origins")
    if isinstance(told, dict):
        return {str(name): [str(root) for root in roots] for name, roots in told.items()}
    found: dict[str, set[str]] = {}
    for row in table.select(["dataset", "source"]).group_by(["dataset", "source"]).aggregate([]).to_pylist():
        found.setdefault(row["dataset"], set()).add(str(row["source"] or ""))
    return {name: sorted(roots - {""}) for name, roots in found.items()}
