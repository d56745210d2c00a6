"""Which split each subject of an index gets: as it is given by a file, by its dataset or by an index that is merged; drawn otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import seeds
from ..core.errors import ConfigError, InputError, LeakageError, suggestion
from .splits import linked
from .splits import strata as bins_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
STRATIFY = (
    "dataset",
    "subject",
    "session",
    "contrast",
    "contrast_raw",
    "age",
    "sex",
    "health",
    "site",
    "scanner",
    "licence",
    "status",
)
"""Columns of an index that subjects can be stratified by, beside every column of the participants' tables."""


class Names:
    """What an identifier from outside (a split file, a table of pairs) may mean: a subject's name, with or without its dataset and ``sub-``.

    Args:
        subjects: of the index.
        renamed: a dataset's own name -> those it has here, where datasets of one name were told apart.
    """

    def __init__(self, subjects: Iterable[str], renamed: Mapping[str, Sequence[str]] | None = None) -> None:
        self.subjects, self.renamed = set(subjects), renamed or {}
        self.bare: dict[str, list[str]] = {}
        for subject in sorted(self.subjects):
            self.bare.setdefault(subject.rsplit("/", 1)[-1], []).append(subject)

    def meant(self, name: str) -> list[str]:
        """The subjects that a name may mean; none where nobody is called so."""
        if name in self.subjects:
            return [name]
        dataset, slash, last = name.rpartition("/")
        if not slash:
            return self.bare.get(name) or self.bare.get(f"sub-{name}", [])
        for tail in (last, f"sub-{last}"):
            found = [f"{own}/{tail}" for own in (dataset, *self.renamed.get(dataset, ())) if f"{own}/{tail}" in self.subjects]
            if found:
                return found
        return []

    def one(self, name: str, file: Path) -> str | None:
        """The subject of that name, or None.

        Raises:
            InputError: it may be several.
        """
        found = self.meant(name)
        if len(found) > 1:
            raise InputError(
                f"{name} could be {' or '.join(found[:5])}", file=file, expected="a name that one subject bears",
                next_step=f"write the full name: {found[0]}",
            )  # fmt: skip
        return found[0] if found else None


def read_splits(path: Path, names: Names) -> dict[str, str]:
    """Subject -> split from a table with the columns participant_id and split; identifiers that nobody bears are told.

    Raises:
        InputError: a column is missing, a split is none of train, val, test, an identifier may mean several subjects, or none means any.
        LeakageError: a subject is listed with two splits.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str)
    except (OSError, ValueError) as error:
        raise InputError("the split file cannot be read", file=path, got=(str(error).splitlines() or [""])[0]) from None
    if not {"participant_id", "split"} <= set(table.columns):
        raise InputError(
            "the split file lacks a column", file=path, expected="participant_id, split", got=", ".join(table.columns)
        )
    table = table.dropna(subset=["participant_id", "split"])
    wrong = sorted(set(table["split"]) - set(PARTS))
    if wrong:
        raise InputError("the split file names unknown splits", file=path, expected="train, val, test", got=", ".join(wrong))
    given: dict[str, str] = {}
    nobody: list[str] = []
    for name, part in zip(table["participant_id"].str.strip(), table["split"], strict=True):
        subject = names.one(name, path)
        if subject is None:
            nobody.append(name)
        elif given.setdefault(subject, part) != part:
            raise LeakageError("a subject is listed in two splits", file=path, got=subject)
    if nobody and not given:
        raise InputError(
            "the split file names nobody of the index", file=path, expected=f"identifiers such as {min(names.subjects)}",
            got=", ".join(nobody[:5]), next_step="write them as in the column subject of the index",
        )  # fmt: skip
    if nobody:
        logger.warning("%d identifiers of %s are nobody's here: %s", len(nobody), path.name, ", ".join(nobody[:5]))
    return given


def read_pairs(path: Path, names: Names) -> list[tuple[str, str]]:
    """Subjects that belong together, from the audit's pairs or any table with two columns of subjects; pairs of others are told.

    Raises:
        InputError: the table cannot be read or lacks the columns, or a name may mean several subjects.
    """
    import pandas as pd

    try:
        table = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str)
        )
    except (OSError, ValueError) as error:
        raise InputError("the table of pairs cannot be read", file=path, got=(str(error).splitlines() or [""])[0]) from None
    if not {"left_subject", "right_subject"} <= set(table.columns):
        raise InputError("the table of pairs lacks a column", file=path, expected="left_subject, right_subject",
                         got=", ".join(map(str, table.columns)))  # fmt: skip
    pairs, others = [], 0
    for left, right in zip(table["left_subject"], table["right_subject"]):
        if not isinstance(left, str) or not isinstance(right, str):
            continue
        a, b = names.one(left, path), names.one(right, path)
        if a is None or b is None:
            others += 1
        else:
            pairs.append((a, b))
    if others:
        logger.warning("%d pairs of %s name somebody who is not in the index", others, path.name)
    return pairs


def stated(table: pa.Table, but: Iterable[str] = ()) -> dict[str, str]:
    """Subject -> split as the datasets themselves (or the indexes that are merged) state it, but for some subjects.

    Raises:
        LeakageError: a subject's rows state two.
    """
    found: dict[str, str] = {}
    both: set[str] = set()
    others = set(but)
    for subject, part in zip(table.column("subject").to_pylist(), table.column("given_split").to_pylist()):
        if part and subject not in others and found.setdefault(subject, part) != part:
            both.add(subject)
    if both:
        raise LeakageError(
            f"{len(both)} subjects stand in two splits of their dataset", got=", ".join(sorted(both)[:5]),
            expected="each subject in one", next_step="mend the column split, or give the dataset without it",
        )  # fmt: skip
    return found


def strata_of(table: pa.Table, by: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Subject -> its values of some columns, numbers in bins.

    Raises:
        ConfigError: no row has such a column.
    """
    from .index import scans_of

    subjects = table.column("subject").to_pylist()
    named = [name for name in by if name in STRATIFY]
    values: dict[str, list[Any]] = {name: table.column(name).to_pylist() for name in named}
    if len(named) < len(by):  # other columns of the participants' tables
        rows = scans_of(table.select(["scan", "dataset", "subject", "session", "contrast", "contrast_raw", "path", "columns"]))
        known = {name for scan in rows for name in scan.columns}
        for name in by:
            if name not in named and name not in known:
                raise ConfigError(f"no row has the column {name!r}, which --stratify asks for",
                                  next_step=suggestion(name, sorted({*STRATIFY, *known})))  # fmt: skip
            values.setdefault(name, [scan.columns.get(name) for scan in rows])
    per_column: list[dict[str, str]] = []
    for name in values:  # fields first, then the tables' columns
        first: dict[str, Any] = {}
        for subject, value in zip(subjects, values[name]):
            first.setdefault(subject, value)
        per_column.append(
            bins_of(first)
            if any(isinstance(value, float) for value in first.values())
            else {s: str(v or "") for s, v in first.items()}
        )
    return {subject: tuple(column.get(subject, "") for column in per_column) for subject in dict.fromkeys(subjects)}


def parse_split(text: str) -> dict[str, float]:
    """``"train=0.8,val=0.1,test=0.1"`` as fractions that sum to one.

    Raises:
        ConfigError: it cannot be read, names another split, or does not sum to one.
    """
    try:
        fractions = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ConfigError(f"cannot read the split {text!r}", expected="train=0.8,val=0.1,test=0.1") from None
    if set(fractions) - set(PARTS) or not min(fractions.values()) >= 0 or not abs(sum(fractions.values()) - 1) <= 1e-6:
        raise ConfigError(f"the split {text!r} is impossible", expected="shares of train, val and test that sum to 1")
    return fractions


def plan_splits(
    strata: Mapping[str, tuple[str, ...]], fractions: Mapping[str, float], *, seed: int, given: Mapping[str, str] | None = None,
    together: Iterable[Sequence[str]] = (),
) -> dict[str, str]:  # fmt: skip
    """Subject -> split, in each stratum in the wanted shares.

    A stratum's remainders are handed out by a running count over all strata, so that the shares hold overall.

    Args:
        strata: subject -> stratum.
        fractions: split -> share of subjects.
        seed: of the order.
        given: subject -> split, taken as it is.
        together: groups of subjects that must not be parted (near-duplicates, one person under two names).

    Raises:
        LeakageError: a group that must stay together has members with different given splits.
    """
    given = given or {}
    of = linked([[name for name in group if name in strata] for group in together])
    members: dict[str, list[str]] = {}
    for name in strata:
        members.setdefault(min(of.get(name, (name,))), []).append(name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in members:
        groups.setdefault(strata[name], []).append(name)
    chosen: dict[str, str] = {}
    owed = dict.fromkeys(fractions, 0.0)
    for key in sorted(groups):
        names = sorted(groups[key])
        order = seeds.generator(seed, "split", *key).permutation(len(names))
        for place in order:
            unit = members[names[int(place)]]
            fixed = {given.get(name) for name in unit} - {None}
            if len(fixed) > 1:
                raise LeakageError(
                    "subjects that belong together were given different splits", got=", ".join(sorted(unit)[:5]),
                    expected="one split for all of them", next_step="mend the split file, or the splits that the dataset states",
                )  # fmt: skip
            if fixed:
                chosen |= dict.fromkeys(unit, str(fixed.pop()))
                continue
            for split, share in fractions.items():
                owed[split] += share * len(unit)
            best = max(owed, key=lambda split: owed[split])
            owed[best] -= len(unit)
            chosen |= dict.fromkeys(unit, best)
    return chosen
