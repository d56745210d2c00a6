"""Who is learned from and who is tested: folds, sites, fixed files, few-shot draws. Always by subject, always a function of the seed.

A split maps each subject to ``train``, ``val`` or ``test``. Everything here takes a *stratum* for each subject (its class, or the
bin of its number) so that classes are spread evenly; subjects without a stratum do not take part.

The inner validation part of a fold is cut from its training subjects alone, with their strata alone: whatever is chosen on it
(best step, temperature, threshold) cannot depend on a test subject's label.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import artifacts, seeds
from ..core.errors import ConfigError, InputError, LeakageError

logger = logging.getLogger(__name__)

BINS = 5
"""A number is stratified by at most this many bins of equal count."""
NUMBER_OF_VALUES = 10
"""A column of numbers with more different values than this, or than half of its subjects, is binned; others are taken value by value."""


@dataclass(frozen=True)
class Fold:
    """One division of the subjects.

    Attributes:
        name: of the fold: its number, its site, or as the file calls it.
        split: subject -> ``train``, ``val`` or ``test``.
    """

    name: str
    split: Mapping[str, str]

    def part(self, name: str) -> tuple[str, ...]:
        """The subjects of ``train``, ``val`` or ``test``, sorted."""
        return tuple(sorted(subject for subject, part in self.split.items() if part == name))


def strata(values: Mapping[str, Any], *, bins: int = BINS) -> dict[str, str]:
    """A stratum for each subject: the class as text, or for numbers the bin of equal count.

    Args:
        values: subject -> class name or number; None, empty and not finite ones are left out.
        bins: of numbers, fewer where there are fewer than four subjects a bin.
    """
    known = {s: v for s, v in values.items() if v is not None and str(v).strip().lower() not in {"", "n/a", "nan"}}
    numbers = {s: float(v) for s, v in known.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if len(numbers) == len(known) and len(set(numbers.values())) > min(NUMBER_OF_VALUES, len(numbers) / 2):
        order = sorted(numbers, key=lambda subject: (numbers[subject], subject))
        n = max(1, min(bins, len(order) // 4))
        return {subject: f"bin {place * n // len(order) + 1} of {n}" for place, subject in enumerate(order)}
    return {subject: str(value) for subject, value in known.items()}


def _by_stratum(of: Mapping[str, str], seed: int, *purpose: seeds.Key) -> dict[str, list[str]]:
    """The subjects of each stratum in an order drawn by the seed."""
    made = {}
    for name in sorted(set(of.values())):
        members = sorted(subject for subject, stratum in of.items() if stratum == name)
        order = seeds.generator(seed, "splits", *purpose, name).permutation(len(members))
        made[name] = [members[place] for place in order]
    return made


def kfold(of: Mapping[str, str], folds: int, *, seed: int = 0, validation: float = 0.2) -> list[Fold]:
    """Every subject is tested once; every class stands in every fold where its count allows, otherwise that is told.

    Args:
        of: subject -> stratum.
        folds: at least 2.
        seed: of the draw.
        validation: share of a fold's training subjects kept for inner validation; 0 for none.

    Raises:
        InputError: fewer subjects than folds.
        ConfigError: fewer than two folds.
    """
    if folds < 2:
        raise ConfigError("cross-validation needs at least two folds", got=folds)
    if len(of) < folds:
        raise InputError(
            f"there are fewer subjects with the target than folds: {len(of)} subjects, {folds} folds",
            expected=f"at least {folds} subjects", got=", ".join(sorted(of)[:5]) or "none",
            next_step=f"use --folds {max(len(of), 2)} (leave one subject out) or label more subjects",
        )  # fmt: skip
    test: list[list[str]] = [[] for _ in range(folds)]
    place = 0
    for name, members in _by_stratum(of, seed, "kfold").items():
        if len(members) < folds:
            logger.warning("%r has %d subjects for %d folds: some folds are tested without it", name, len(members), folds)
        for subject in members:  # dealt on from where the last stratum stopped, so that folds stay of one size
            test[place % folds].append(subject)
            place += 1
    return [_fold(str(number), of, members, seed=seed, validation=validation) for number, members in enumerate(test)]


def leave_one_out(of: Mapping[str, str], sites: Mapping[str, Any], *, seed: int = 0, validation: float = 0.2) -> list[Fold]:
    """Every value of a column (site, scanner, dataset) is tested once by a model that never saw it.

    Args:
        of: subject -> stratum.
        sites: subject -> value of the column; subjects without one are told and never tested, but learned from.
        seed, validation: as in :func:`kfold`.

    Raises:
        InputError: fewer than two values.
    """
    known = {s: str(sites[s]) for s in of if sites.get(s) is not None and str(sites[s]).lower() not in {"", "n/a", "nan"}}
    names = sorted(set(known.values()))
    if len(names) < 2:
        raise InputError(
            "leaving one site out needs at least two sites", expected="a column with two or more values",
            got=", ".join(names) or "no value", next_step="choose another --by column, or --scheme kfold",
        )  # fmt: skip
    if len(known) < len(of):
        logger.warning("%d subjects have no site: they are learned from and never tested", len(of) - len(known))
    return [_fold(name, of, [s for s, site in known.items() if site == name], seed=seed, validation=validation) for name in names]


def holdout(of: Mapping[str, str], share: float, *, seed: int = 0, repeat: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(kept, held out): about ``share`` of the subjects held out, spread over the strata; another ``repeat`` is another draw.

    At least one subject is held out (where ``share`` is above 0 and there are two), and none of a stratum of one.
    """
    if not 0 <= share < 1:
        raise ConfigError("the held-out share lies in [0, 1)", got=share)
    wanted = 0 if share == 0 or len(of) < 2 else max(1, round(share * len(of)))
    groups = {name: members for name, members in _by_stratum(of, seed, "holdout", repeat).items() if len(members) > 1}
    held: list[str] = []
    taken = dict.fromkeys(groups, 0)
    for _ in range(wanted):
        free = [name for name in groups if taken[name] < len(groups[name]) - 1]
        if not free:
            break
        # the stratum that is furthest behind its share
        name = max(free, key=lambda name: (share * len(groups[name]) - taken[name], len(groups[name]), name))
        held.append(groups[name][taken[name]])
        taken[name] += 1
    return tuple(sorted(set(of) - set(held))), tuple(sorted(held))


def _fold(name: str, of: Mapping[str, str], test: Sequence[str], *, seed: int, validation: float) -> Fold:
    """A fold whose inner validation part is cut from its training subjects by their strata alone."""
    rest = {subject: stratum for subject, stratum in of.items() if subject not in set(test)}
    kept, inner = holdout(rest, validation, seed=seed)
    split = {**dict.fromkeys(kept, "train"), **dict.fromkeys(inner, "val"), **dict.fromkeys(test, "test")}
    return Fold(name, dict(sorted(split.items())))


def shots(of: Mapping[str, str], k: int | None, *, seed: int = 0, per_class: bool = False) -> tuple[str, ...]:
    """The subjects of a few-shot draw, in the order they were drawn: taken in turn from the strata.

    The draw of k is the beginning of the draw of any larger k with the same seed, so that a curve is paired.

    Args:
        of: subject -> stratum, of the training subjects only.
        k: subjects, or subjects *of each class*; None for all.
        seed: of the draw.
        per_class: count by class: a class with fewer gives all it has.

    Raises:
        InputError: there are fewer than k subjects (or no class has k).
    """
    groups = _by_stratum(of, seed, "shots")
    order: list[str] = []
    for place in range(max(map(len, groups.values()), default=0)):
        names = [name for name in groups if place < len(groups[name])]
        turn = seeds.generator(seed, "splits", "turn", place).permutation(len(names))
        order += [groups[names[n]][place] for n in turn]
    if k is None:
        return tuple(order)
    most = max(map(len, groups.values()), default=0) if per_class else len(order)
    if k > most:
        raise InputError(
            f"there are not enough training subjects for {k} shots", expected=f"at most {most}{' a class' if per_class else ''}",
            got=", ".join(f"{name}: {len(members)}" for name, members in groups.items()) or "none",
            next_step="leave that number out of --shots; 'all' takes everybody",
        )  # fmt: skip
    if not per_class:
        return tuple(order[:k])
    first = {subject for members in groups.values() for subject in members[:k]}
    return tuple(subject for subject in order if subject in first)


# ---------------------------------------------------------------------------------------------------------------- files


def linked(groups: Iterable[Sequence[str]]) -> dict[str, frozenset[str]]:
    """Each name of some groups with all that it is linked to, itself among them: groups that share a name are one."""
    of: dict[str, frozenset[str]] = {}
    for group in groups:
        whole = frozenset(group).union(*(of.get(name, ()) for name in group))
        of.update(dict.fromkeys(whole, whole))
    return of


def unparted(folds: Sequence[Fold], groups: Sequence[Sequence[str]]) -> list[Fold]:
    """The folds without what would tell their tests beforehand.

    Who must not be parted from a test subject (a copy of a scan, the same patient under two names) is not learned from in that fold; who must not be parted
    from a training subject is not validated on, but learned from. Who is tested stays as it is.

    Args:
        folds: as the functions here make them.
        groups: subjects that belong together (:meth:`neuroprior.data.store.Store.inseparable`); they may overlap.
    """
    of = linked(groups)
    made, out, moved = [], set(), set()
    for fold in folds:
        known = set().union(*(of.get(subject, ()) for subject in fold.part("test")))
        kept = {subject: part for subject, part in fold.split.items() if part == "test" or subject not in known}
        out |= fold.split.keys() - kept.keys()
        learned = set().union(*(of.get(subject, ()) for subject, part in kept.items() if part == "train"))
        moved |= {subject for subject, part in kept.items() if part == "val" and subject in learned}
        made.append(Fold(fold.name, {s: "train" if part == "val" and s in learned else part for s, part in kept.items()}))
    if out:
        logger.warning(
            "%d subjects are not learned from in folds that test their like (a copy of a scan, the same patient, or named together when the index "
            "was made), such as %s", len(out), min(out),
        )  # fmt: skip
    if moved:
        logger.info("%d subjects are learned from and not validated on, with those they belong to", len(moved))
    return made


def write(path: str | Path, folds: Sequence[Fold]) -> str:
    """Write folds as TSV (columns ``fold``, ``participant_id``, ``split``); returns their hash."""
    lines = ["fold\tparticipant_id\tsplit"]
    lines += [f"{fold.name}\t{subject}\t{part}" for fold in folds for subject, part in sorted(fold.split.items())]
    artifacts.write_text(path, "\n".join(lines) + "\n")
    return digest(folds)


def digest(folds: Sequence[Fold]) -> str:
    """The SHA-256 of some folds, independent of the order of subjects."""
    return artifacts.sha256_json([[fold.name, dict(sorted(fold.split.items()))] for fold in folds])


def read(path: str | Path, known: Sequence[str], of: Mapping[str, str], *, seed: int = 0, validation: float = 0.2) -> list[Fold]:
    """Folds from a file.

    TSV with ``participant_id`` and ``fold`` (the fold in which the subject is tested), or with ``split`` as well (as
    :func:`write` writes it). JSON: a list of ``{"train": [...], "val": [...]}`` (nnU-Net's ``splits_final.json``, where ``val`` is what
    the fold is tested on) or of ``{"name": ..., "train": [...], "val": [...], "test": [...]}``. Where a fold has no inner validation
    part, one is cut from its training subjects.

    Args:
        path: the file.
        known: subjects of the store; a subject of the file may be bare (``sub-01``) where that is unambiguous.
        of: subject -> stratum of those that carry the target; others are left out.
        seed, validation: of the inner validation part.

    Raises:
        LeakageError: a subject is tested in two folds, or stands on both sides of one; it is named.
        InputError: the file cannot be read, lacks a column, or names nobody of the store.
    """
    path = Path(path)
    table = _read_json(path) if path.suffix == ".json" else _read_tsv(path)
    bare: dict[str, list[str]] = {}
    for subject in known:
        bare.setdefault(subject.rsplit("/", 1)[-1], []).append(subject)
    absent: set[str] = set()

    def full(name: str) -> str | None:
        found = [name] if name in set(known) else bare.get(name, [])
        if len(found) > 1:
            raise InputError(
                f"{name} of the split file could be {' or '.join(found)}", file=path, next_step="write the full name"
            )
        if not found:
            absent.add(name)
        return found[0] if found else None

    made: list[Fold] = []
    for name, parts in table.items():
        split: dict[str, str] = {}
        for part, subjects in parts.items():
            for given in subjects:
                subject = full(given)
                if subject is None:
                    continue
                if split.setdefault(subject, part) != part:
                    raise LeakageError(
                        f"{subject} stands on both sides of fold {name}", file=path, got=f"{split[subject]} and {part}",
                        expected="each subject in one part", next_step="mend the split file",
                    )  # fmt: skip
        made.append(Fold(name, split))
    if absent:
        logger.warning("%d subjects of %s are not in the store: %s", len(absent), path.name, ", ".join(sorted(absent)[:5]))
    tested = Counter(subject for fold in made for subject in fold.part("test"))
    twice = sorted(subject for subject, n in tested.items() if n > 1)
    if twice:
        where = ", ".join(fold.name for fold in made if fold.split.get(twice[0]) == "test")
        raise LeakageError(
            f"{len(twice)} subjects are tested in two folds, for example {twice[0]} (folds {where})", file=path,
            expected="each subject in the test part of one fold", next_step="mend the split file",
        )  # fmt: skip
    unlabelled = sorted({subject for fold in made for subject in fold.split} - set(of))
    if unlabelled:
        logger.warning("%d subjects of %s lack the target: %s", len(unlabelled), path.name, ", ".join(unlabelled[:5]))
    out = []
    for fold in made:
        split = {subject: part for subject, part in fold.split.items() if subject in of}
        if not {"train", "test"} <= set(split.values()):
            raise InputError(
                f"fold {fold.name} has nobody to {'learn from' if 'train' not in split.values() else 'test'}", file=path,
                expected="subjects of the store that carry the target on both sides",
            )  # fmt: skip
        if "val" not in split.values() and validation > 0:
            _, inner = holdout({s: of[s] for s, part in split.items() if part == "train"}, validation, seed=seed)
            split |= dict.fromkeys(inner, "val")
        out.append(Fold(fold.name, dict(sorted(split.items()))))
    return out


def _read_tsv(path: Path) -> dict[str, dict[str, list[str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("the split file cannot be read", file=path, got=str(error)) from None
    columns = set(rows[0]) if rows else set()
    if not {"participant_id", "fold"} <= columns:
        raise InputError(
            "the split file lacks a column", file=path, expected="tab-separated participant_id and fold",
            got=", ".join(sorted(map(str, columns))) or "an empty file",
        )  # fmt: skip
    names = list(dict.fromkeys(str(row["fold"]) for row in rows))
    if "split" in columns:
        wrong = sorted({str(row["split"]) for row in rows} - {"train", "val", "test"})
        if wrong:
            raise InputError("the split file names unknown parts", file=path, expected="train, val, test", got=", ".join(wrong))
        table: dict[str, dict[str, list[str]]] = {name: {} for name in names}
        for row in rows:
            table[str(row["fold"])].setdefault(str(row["split"]), []).append(str(row["participant_id"]))
        return table
    if len(names) < 2:
        raise InputError("the split file has one fold only", file=path, expected="at least two", got=", ".join(names))
    return {
        name: {
            "test": [str(row["participant_id"]) for row in rows if row["fold"] == name],
            # a subject listed in two folds must be told as that, not as standing on both sides of one
            "train": sorted(
                {str(row["participant_id"]) for row in rows} - {str(row["participant_id"]) for row in rows if row["fold"] == name}
            ),
        }
        for name in names
    }


def _read_json(path: Path) -> dict[str, dict[str, list[str]]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("the split file cannot be read", file=path, got=str(error)) from None
    items = value.get("folds") if isinstance(value, dict) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) and "train" in item for item in items):
        raise InputError("the split file is no list of folds", file=path, expected='[{"train": [...], "val": [...]}, ...]')
    table = {}
    for number, item in enumerate(items):
        parts = {part: [str(s) for s in item[part]] for part in ("train", "val", "test") if item.get(part)}
        if "test" not in parts:
            parts["test"] = parts.pop("val", [])
        table[str(item.get("name", number))] = parts
    return table
