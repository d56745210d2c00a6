"""Shortcuts: how well what is not the brain predicts the label, asked before any training.

Each probe is a handful of features that know nothing of the brain (``_nuisance``); a ridge model predicts the label of held-out
subjects from them, and a permutation test over subjects says whether it could be chance (``_permutation``). p-values of all
probes and labels of one audit are adjusted together (Holm), so that an honest data set is called suspicious with probability
at most ``alpha``. What was found is said in words, and so is what could not have been seen.

A subject is one row: its label is the mean over its sessions (numbers) or the most frequent one (classes).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from ..core import seeds
from ..core.config import Config as Settings
from ..core.errors import InputError, suggestion
from ..core.records import BAD, Scan
from . import _nuisance as nuisance
from . import _permutation as permutation

SHORTCUT, CHECK, HINT, WEAK, NONE, UNKNOWN, CONSTANT = "shortcut", "check", "hint", "weak", "none seen", "cannot tell", "constant"
"""What a finding may say: a shortcut; a relation that may be harmless; p between ``alpha`` and 0.05; a relation too small to
matter; nothing; too little data; nothing that varies."""

SOFT = {
    "outline": "part of it may be anatomy",
    "file_size": "part of it may be anatomy",
    "file_time": "no model sees it, but groups were made or copied at different times",
}
"""Probes that are never called a shortcut outright, because the head itself shows in them or no model sees them, and why."""

ADVICE = {
    "order": "shuffle the rows, and draw splits by chance, before anything reads them in order",
    "name": "rename the files and folders, and never let a name, or what is sorted by it, reach the split or the model",
    "header": "store all scans alike (type, axis order, suffix), or prepare them, before comparing groups",
    "scans": "use only contrasts and masks that all groups have",
    "shape": "prepare all scans to one grid and one box, drawn without the label",
    "spacing": "resample all scans to one spacing, at least as coarse as the coarsest group's, and check that blur no longer tells",
    "fov": "crop all scans to the head, drawn alike for all, and check the outline again",
    "position": "do not give the scanner's coordinates to the model; centre every scan on the head",
    "site": "balance or match sites between groups, evaluate by leaving sites out, and report results within each site",
    "acquisition": "groups were scanned at different times: check what changed with it, and match or report it",
    "file_time": "ask how they were made, and whether by one tool",
    "file_size": "look at noise, stripping and compression of the groups",
    "background": "set the air to zero in all scans (a mask drawn alike for all), or crop to the head",
    "skull": "strip all scans or none, with one tool",
    "intensity": "scale all scans alike from the raw data",
    "stored": "convert all scans with one tool, then prepare them",
    "outline": "compare with one mask tool; if it stays, it may be anatomy: report it as a baseline",
}


class Config(Settings):
    """How the audit asks."""

    permutations: int = Field(default=4999, ge=99)
    """Least number of shuffles of the label over subjects; more where many labels are asked, so that ``alpha`` can be reached."""
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Chance that an honest data set is called suspicious, over all probes and labels of the audit."""
    hint: float = Field(default=0.05, gt=0, lt=1)
    """Adjusted p below which a relation is mentioned."""
    min_subjects: int = Field(default=10, ge=4)
    """With fewer subjects nothing is said."""
    min_class: int = Field(default=3, ge=2)
    """Classes of fewer subjects are left out."""
    min_statistic: float = Field(default=0.1, ge=0, lt=1)
    """Correlation of held-out prediction and truth below which a relation is too small to matter."""
    blind: float = Field(default=0.8, gt=0, le=1)
    """When only a correlation above this would have been found, the audit cannot tell."""
    max_subjects: int = Field(default=2000, ge=50)
    """Subjects in the test; of more, this many are drawn by chance."""
    folds: int = Field(default=5, ge=2)
    """Of the cross-validation."""
    repeats: int = Field(default=2, ge=1)
    """Of the cross-validation."""
    resamples: int = Field(default=1000, ge=100)
    """Of the bootstrap over subjects."""
    within: str | None = None
    """Column (``dataset``, ``site`` ...) within which labels are shuffled and compared: what is found holds within its groups."""
    seed: int = 0
    """Of every draw."""


@dataclass(frozen=True)
class Finding:
    """What one probe says of one label.

    Attributes:
        target, probe: which.
        verdict: one of ``SHORTCUT``, ``CHECK``, ``HINT``, ``WEAK``, ``NONE``, ``UNKNOWN``, ``CONSTANT``.
        words: the verdict as a sentence, with what to do.
        subjects: tested.
        sample: what was looked at, where it was not everything.
        metric, value, low, high: ``r`` or ``auroc`` on held-out subjects with its 95 % interval.
        second_metric, second: ``r2`` or ``balanced_accuracy``.
        statistic: correlation of held-out prediction and truth.
        p, p_holm: permutation p, alone and adjusted over the audit.
        detectable: the least statistic that the audit would have called a shortcut.
    """

    target: str
    probe: str
    verdict: str
    words: str
    subjects: int
    sample: str = ""
    metric: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    second_metric: str | None = None
    second: float | None = None
    statistic: float | None = None
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None


@dataclass(frozen=True)
class Label:
    """A label over subjects.

    Attributes:
        target: the column.
        subjects: namespaced names, in the order of ``values``.
        values: (n,) numbers, or class numbers.
        classes: class names, or None for numbers.
        strata: (n,) the groups within which is compared, or None.
        note: what was left out or merged.
        reason: why nothing can be asked of it; empty where it can.
    """

    target: str
    subjects: tuple[str, ...]
    values: np.ndarray
    classes: tuple[str, ...] | None
    strata: np.ndarray | None = None
    note: str = ""
    reason: str = ""


def audit(
    scans: Sequence[Scan], targets: Sequence[str], *, voxels: int = 0, contrast: str | None = None, config: Config | None = None,
    workers: int = 1, progress: bool = False,
) -> list[Finding]:  # fmt: skip
    """Ask every probe about every label.

    Args:
        scans: rows of one or more indexes, in their order; bad rows are left out.
        targets: columns; ``NAME:class`` or ``NAME:number`` where the kind should not be guessed.
        voxels: scans whose voxels are read, one a subject; 0 for the index alone.
        contrast: the contrast whose voxels are read; the most frequent one by default.
        config: how.
        workers, progress: of reading voxels.

    Returns:
        A finding for each label and probe; for a label of which nothing can be asked one with the probe ``all``.

    Raises:
        InputError: no row has such a column.
    """
    config = config or Config()
    usable = [scan for scan in scans if scan.status != BAD]
    if config.within is not None and all(scan.value(config.within) is None for scan in usable):
        raise InputError(
            f"no row has a value in column {config.within!r}", expected="a column to compare within, such as dataset or site",
            next_step=suggestion(config.within, _columns(usable)),
        )  # fmt: skip
    labels = [label_of(usable, target, config) for target in targets]
    sampled = _voxel_sample(usable, labels, voxels, contrast, config) if voxels else []
    found = nuisance.measure([scan.path for scan in sampled], workers=workers, progress=progress)
    read = {scan.subject: facts for scan, facts in zip(sampled, found, strict=True) if facts is not None}
    seen = f"{len(read)} {sampled[0].contrast} scans, one a subject" if sampled else ""
    made: list[tuple[Label, str, str, int, permutation.Outcome | str]] = []
    tests = len(labels) * (len(nuisance.FROM_INDEX) + (len(nuisance.FROM_VOXELS) if read else 0))
    shuffles = max(config.permutations, math.ceil(2 * tests / config.alpha))
    for label in labels:
        if label.reason:
            made.append((label, "all", "", len(label.subjects), label.reason))
            continue
        small = _draw(label, config)
        where = set(small.subjects)
        rows = [scan for scan in usable if scan.subject in where]
        orders = permutation.shuffles(len(small.subjects), shuffles, config.seed, small.strata)
        sample = (
            f"{len(small.subjects)} of {len(label.subjects)} subjects, drawn by chance"
            if len(small.subjects) < len(label.subjects)
            else ""
        )
        target = label.target
        for probe, features in nuisance.FROM_INDEX.items():
            if probe == "order":  # the places are those in the whole index
                whole = list(dict.fromkeys(scan.subject for scan in usable))
                table = features(usable, whole, frozenset())
                place = {name: k for k, name in enumerate(whole)}
                table = permutation.standardised(table[[place[name] for name in small.subjects]]) if table.size else table
            else:
                table = features(rows, small.subjects, frozenset({target}))
            made.append((label, probe, sample, len(small.subjects), _ask(table, small, orders, config, tests)))
        if read:
            fewer = _only(small, read)
            orders = permutation.shuffles(len(fewer.subjects), shuffles, config.seed, fewer.strata)
            for probe in nuisance.FROM_VOXELS:
                if fewer.reason:
                    made.append((label, probe, seen, len(fewer.subjects), fewer.reason))
                    continue
                table = nuisance.voxel_features(probe, [read[name] for name in fewer.subjects])
                made.append((label, probe, seen, len(fewer.subjects), _ask(table, fewer, orders, config, tests)))
    return _judge(made, config)


def _ask(table: np.ndarray, label: Label, orders: np.ndarray, config: Config, tests: int) -> permutation.Outcome | str:
    if table.shape[1] == 0:
        return CONSTANT
    return permutation.test(
        table, label.values, orders, classes=label.classes, strata=label.strata, level=1 - config.alpha / tests, folds=config.folds,
        repeats=config.repeats, resamples=config.resamples, seed=config.seed,
    )  # fmt: skip


def _judge(made: Sequence[tuple[Label, str, str, int, permutation.Outcome | str]], config: Config) -> list[Finding]:
    asked = [k for k, entry in enumerate(made) if isinstance(entry[-1], permutation.Outcome)]
    adjusted = dict(zip(asked, permutation.holm([made[k][-1].p for k in asked]), strict=True))  # type: ignore[union-attr]  # outcomes
    findings = []
    for k, (label, probe, sample, n, outcome) in enumerate(made):
        bare = Finding(label.target, probe, UNKNOWN, "", n, sample)
        spoken = probe.replace("_", " ")
        if outcome == CONSTANT:
            findings.append(
                replace(bare, verdict=CONSTANT, words=f"{spoken}: the same for all, or not in the index: it predicts nothing")
            )
        elif isinstance(outcome, str):
            subject = "nothing can be said of" if probe == "all" else f"{spoken} cannot be judged for"
            findings.append(replace(bare, words=f"{subject} {label.target}: {outcome}"))
        else:
            verdict, words = _verdict(label, probe, outcome, adjusted[k], config)
            findings.append(replace(bare, verdict=verdict, words=words, **vars(outcome), p_holm=adjusted[k]))
    return findings


def _verdict(label: Label, probe: str, found: permutation.Outcome, p: float, config: Config) -> tuple[str, str]:
    spoken = {
        "order": "file order",
        "name": "the name",
        "header": "the header",
        "scans": "which scans there are",
        "fov": "the field of view",
    }
    what = spoken.get(probe, probe.replace("_", " "))
    name = "r" if found.metric == "r" else "AUROC"
    between = "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    size = f"{name} {found.value:.2f}{between}, p {p:.2g}" + (f", {label.note}" if label.note else "")
    if found.statistic > 0 and p < config.hint:
        if found.statistic < config.min_statistic:
            return WEAK, f"{what} predicts {label.target}, but hardly: {size}"
        if p >= config.alpha:
            return HINT, f"{what} may predict {label.target}: {size}: look at it before you train"
        if probe in SOFT:
            return CHECK, f"{what} predicts {label.target}: {size}: {SOFT[probe]}; {ADVICE[probe]}"
        return SHORTCUT, f"{what} predicts {label.target}: {size}: {ADVICE[probe]}"
    chance = size if found.statistic > 0 else f"no better than chance, p {p:.2g}" + (f", {label.note}" if label.note else "")
    if found.detectable > config.blind:
        return (
            UNKNOWN,
            f"{what}: too few subjects: only a correlation above {found.detectable:.2f} would have been found ({chance})",
        )
    return NONE, f"{what}: nothing seen ({chance}); a correlation above {found.detectable:.2f} would have been"


# ---------------------------------------------------------------------------------------------------------------------
# Labels


def label_of(scans: Sequence[Scan], target: str, config: Config) -> Label:
    """A column as a label over subjects.

    Args:
        scans: usable rows.
        target: column, with ``:class`` or ``:number`` where the kind should not be guessed: numbers of more than six values,
            or that are not whole, are numbers, everything else is classes.
        config: least sizes.

    Raises:
        InputError: no row has such a column.
    """
    column, _, kind = target.partition(":")
    if kind not in ("", "class", "number"):
        raise InputError(f"unknown kind of label {kind!r}", expected=f"{column}:class or {column}:number", got=target)
    known = sorted(
        {"age", "sex", "health", "site", "scanner", "dataset", "split", *(key for scan in scans for key in scan.columns)}
    )
    if column not in known:
        raise InputError(
            f"no row of the index has a column {column!r}", expected=f"one of {', '.join(known)}", next_step=suggestion(column, known)
        )  # fmt: skip
    given: dict[str, list[str | float]] = {}
    for scan in scans:
        value = scan.value(column)
        if value is None or str(value).strip().lower() in {"", "n/a", "nan", "none", "null"}:
            continue
        given.setdefault(scan.subject, []).append(value)
    notes = []
    absent = len({scan.subject for scan in scans}) - len(given)
    if absent:
        notes.append(f"{absent} subjects without a value left out")
    nothing = Label(column, tuple(given), np.empty(0), None)
    if not given:
        return replace(nothing, reason="no subject has a value")
    few = f"subjects are too few (at least {config.min_subjects}): this does not mean that it is clean"
    if len(given) < config.min_subjects:
        return replace(nothing, reason=f"{len(given)} {few}")
    numbers = {subject: [_number(value) for value in values] for subject, values in given.items()}
    all_numbers = all(np.isfinite(values).all() for values in numbers.values())
    if kind == "number" and not all_numbers:
        odd = next(v for values in given.values() for v in values if not np.isfinite(_number(v)))
        raise InputError(
            f"column {column!r} does not hold numbers only",
            expected="numbers",
            got=repr(odd),
            next_step=f"--target {column}:class",
        )
    every = {value for values in numbers.values() for value in values}
    as_number = kind == "number" or (kind == "" and all_numbers and (len(every) > 6 or any(v != round(v) for v in every)))
    strata = _strata(scans, list(given), config.within)
    if as_number:
        values = np.array([float(np.mean(numbers[subject])) for subject in given])
        made = Label(column, tuple(given), values, None, strata)
        if np.ptp(values) == 0:
            return replace(made, reason="all subjects have one value")
    else:
        chosen = {subject: Counter(str(v).strip() for v in values).most_common(1)[0][0] for subject, values in given.items()}
        mixed = sum(len({str(v).strip() for v in values}) > 1 for values in given.values())
        if mixed:
            notes.append(f"{mixed} subjects change class between scans: the most frequent one was taken")
        sizes = Counter(chosen.values())
        rare = sorted(name for name, n in sizes.items() if n < config.min_class)
        classes = tuple(sorted(name for name, n in sizes.items() if n >= config.min_class))
        kept = [subject for subject in given if chosen[subject] in classes]
        if rare:
            notes.append(f"classes of fewer than {config.min_class} subjects left out: {', '.join(rare[:5])}")
        numbered = np.array([float(classes.index(chosen[subject])) for subject in kept])
        made = Label(column, tuple(kept), numbered, classes, _strata(scans, kept, config.within))
        if len(classes) < 2:
            return replace(
                made,
                reason="there is one class only"
                if len(sizes) == 1
                else f"fewer than two classes have {config.min_class} subjects",
            )
        if len(classes) > 20:
            return replace(made, reason=f"{len(classes)} classes are too many: is it a name? For a number say {column}:number")
    if len(made.subjects) < config.min_subjects:
        return replace(
            made,
            reason=f"{len(made.subjects)} {few}",
        )
    return replace(made, note="; ".join(notes))


def _columns(scans: Sequence[Scan]) -> list[str]:
    """The columns that a label or a stratum may be."""
    return sorted(
        {"age", "sex", "health", "site", "scanner", "dataset", "split", *(key for scan in scans for key in scan.columns)}
    )


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # texts that are numbers count
    except (TypeError, ValueError):
        return float("nan")


def _strata(scans: Sequence[Scan], subjects: Sequence[str], within: str | None) -> np.ndarray | None:
    if within is None:
        return None
    first: dict[str, str] = {}
    for scan in scans:
        first.setdefault(scan.subject, str(scan.value(within)))
    return np.array([first[subject] for subject in subjects])


def _draw(label: Label, config: Config) -> Label:
    n = len(label.subjects)
    if n <= config.max_subjects:
        return label
    rows = np.sort(seeds.generator(config.seed, "audit subjects").choice(n, config.max_subjects, replace=False))
    return _rows(label, rows)


def _only(label: Label, there: Mapping[str, object]) -> Label:
    """The label over the subjects that are there, or with the reason why that is too few."""
    made = _rows(label, np.array([k for k, name in enumerate(label.subjects) if name in there], dtype=int))
    n = len(made.subjects)
    if n < 10:
        return replace(made, reason=f"voxels of {n} labelled subjects were read, which is too few")
    if (made.classes is not None and len(np.unique(made.values)) < 2) or np.ptp(made.values) == 0:
        return replace(made, reason="the subjects whose voxels were read all have one value")
    return made


def _rows(label: Label, rows: np.ndarray) -> Label:
    subjects, values = tuple(label.subjects[k] for k in rows), label.values[rows]
    classes = label.classes
    if classes is not None:  # classes of which nobody is left vanish
        left = np.unique(values).astype(int)
        values = np.searchsorted(left, values).astype(float)
        classes = tuple(classes[k] for k in left)
    return replace(
        label, subjects=subjects, values=values, classes=classes, strata=None if label.strata is None else label.strata[rows]
    )


def _voxel_sample(scans: Sequence[Scan], labels: Sequence[Label], most: int, contrast: str | None, config: Config) -> list[Scan]:
    """One scan a labelled subject, at most ``most``, of one contrast."""
    labelled = {subject for label in labels if not label.reason for subject in label.subjects}
    if not labelled:
        return []
    if contrast is None:
        count: Counter[str] = Counter()
        for name, subject in {(scan.contrast, scan.subject) for scan in scans if scan.subject in labelled}:
            count[name] += int(bool(subject))
        contrast = max(sorted(count), key=lambda name: count[name])
    first: dict[str, Scan] = {}
    for scan in scans:
        if scan.contrast == contrast and scan.subject in labelled:
            first.setdefault(scan.subject, scan)
    chosen = list(first.values())
    if not chosen:
        known = sorted({scan.contrast for scan in scans})
        raise InputError(
            f"no labelled subject has a {contrast}", expected=f"one of {', '.join(known)}", next_step=suggestion(contrast, known)
        )
    if len(chosen) > most:
        rows = np.sort(seeds.generator(config.seed, "audit voxels").choice(len(chosen), most, replace=False))
        chosen = [chosen[k] for k in rows]
    return chosen
