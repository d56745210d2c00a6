"""Contamination: who and what stands on both sides, between pretraining and evaluation, between splits, or twice in one set.

By name: the same namespaced subject; the same bare identifier in two datasets (a hint: ``sub-01`` is common). By content: the
same voxels, the same voxels in another axis order, or a copy that was rescaled, noised, cropped or resampled
(``data/fingerprint``). Two sessions of one person look alike enough to be found as near copies, too, and are meant to be: they
must not be parted by a split. Two contrasts of one session are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..core import artifacts
from ..core.records import BAD, Scan
from ..data.fingerprint import SAME, Fingerprint, similar

SUBJECT, BARE, FILE, EXACT, TURNED, NEAR = (
    "same subject", "same identifier", "same file", "same voxels", "same voxels, reordered", "near copy",
)  # fmt: skip
"""Kinds of pairs, surest first but for ``BARE``, which is a hint."""
SURE = (SUBJECT, FILE, EXACT, TURNED, NEAR)


@dataclass(frozen=True)
class Pair:
    """Two scans, or two subjects, that should not both be there.

    Attributes:
        kind: one of the kinds above.
        left_group, right_group: the sides; equal for a double within one.
        left, right: scan names; subject names for ``SUBJECT`` and ``BARE``.
        left_subject, right_subject: namespaced.
        similarity: correlation of the perceptual vectors, or None.
    """

    kind: str
    left_group: str
    right_group: str
    left: str
    right: str
    left_subject: str
    right_subject: str
    similarity: float | None = None


def compare(
    groups: Mapping[str, Sequence[Scan]], sides: Iterable[tuple[str, str]] | None = None, *,
    fingerprints: Mapping[str, Fingerprint] | None = None, threshold: float = SAME, limit: int = 100_000,
) -> list[Pair]:  # fmt: skip
    """Pairs that stand on both sides.

    Args:
        groups: name -> rows.
        sides: pairs of group names; a group with itself looks for one person under two names. All pairs by default.
        fingerprints: path -> fingerprint; None compares names only.
        threshold: correlation from which a scan counts as a near copy.
        limit: most pairs of one kind and pair of groups that are listed.

    Returns:
        The surest kind of each pair of scans; within one group, pairs of one subject are left out.
    """
    if sides is None:
        sides = [*combinations(groups, 2), *((name, name) for name in groups)]
    made: list[Pair] = []
    for a, b in sides:
        made += _names(a, groups[a], b, groups[b])[:limit]
        made += _contents(a, groups[a], b, groups[b], fingerprints, threshold, limit)
    return made


def _names(a: str, left: Sequence[Scan], b: str, right: Sequence[Scan]) -> list[Pair]:
    if a == b:
        return []
    ours, theirs = sorted({scan.subject for scan in left}), {scan.subject for scan in right}
    made = [Pair(SUBJECT, a, b, name, name, name, name) for name in ours if name in theirs]
    bare: dict[str, list[str]] = {}
    for name in sorted(theirs):
        bare.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    return made + [
        Pair(BARE, a, b, name, other, name, other)
        for name in ours
        if name not in theirs
        for other in bare.get(name.rsplit("/", 1)[-1], ())
    ]


def _contents(
    a: str, left: Sequence[Scan], b: str, right: Sequence[Scan], prints: Mapping[str, Fingerprint] | None, threshold: float, limit: int
) -> list[Pair]:  # fmt: skip
    within = a == b
    found: dict[tuple[int, int], tuple[str, float | None]] = {}
    number: Counter[str] = Counter()

    def add(i: int, j: int, kind: str, similarity: float | None = None) -> None:
        if within and (i >= j or left[i].subject == right[j].subject):
            return
        if (i, j) in found:
            found[i, j] = (found[i, j][0], similarity)
        elif number[kind] < limit:
            found[i, j] = (kind, similarity)
            number[kind] += 1

    def match(kind: str, keys_left: Sequence[str | None], keys_right: Sequence[str | None]) -> None:
        where: dict[str, list[int]] = {}
        for j, key in enumerate(keys_right):
            if key:
                where.setdefault(key, []).append(j)
        for i, key in enumerate(keys_left):
            for j in where.get(key or "", ()):
                add(i, j, kind)

    match(FILE, [scan.path for scan in left], [scan.path for scan in right])
    if prints is None:
        return _pairs(a, left, b, right, found)
    ours = [prints.get(scan.path) for scan in left]
    theirs = [prints.get(scan.path) for scan in right]
    # a scan of one value everywhere equals any other such scan, which says nothing
    for kind, key in ((EXACT, "content"), (TURNED, "oriented"), (TURNED, "values")):
        match(
            kind,
            [getattr(f, key) if f and f.vector is not None else None for f in ours],
            [getattr(f, key) if f and f.vector is not None else None for f in theirs],
        )
    rows = [k for k, f in enumerate(ours) if f and f.vector is not None]
    columns = [k for k, f in enumerate(theirs) if f and f.vector is not None]
    if rows and columns:
        u = np.stack([ours[k].vector for k in rows])  # type: ignore[union-attr]  # those that have a vector
        v = np.stack([theirs[k].vector for k in columns])  # type: ignore[union-attr]
        for i, j, value in similar(u, v, threshold=threshold):
            add(rows[i], columns[j], NEAR, value)
    return _pairs(a, left, b, right, found)


def _pairs(
    a: str, left: Sequence[Scan], b: str, right: Sequence[Scan], found: Mapping[tuple[int, int], tuple[str, float | None]]
) -> list[Pair]:  # fmt: skip
    return [
        Pair(kind, a, b, left[i].scan, right[j].scan, left[i].subject, right[j].subject, similarity)
        for (i, j), (kind, similarity) in sorted(found.items())
    ]


def summary(pairs: Sequence[Pair], groups: Mapping[str, Sequence[Scan]]) -> list[tuple[str, str, str, int, int, str]]:
    """One row for each kind and pair of groups: kind, left, right, pairs, scans or subjects of the right side, words."""
    counted: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in pairs:
        counted.setdefault((pair.kind, pair.left_group, pair.right_group), []).append(pair)
    made = []
    for (kind, a, b), members in counted.items():
        right = {pair.right for pair in members}
        whole = len({s.subject for s in groups[b]} if kind in (SUBJECT, BARE) else groups[b])
        what = "subjects" if kind in (SUBJECT, BARE) else "scans"
        example = f"{members[0].left} = {members[0].right}" if members[0].left != members[0].right else members[0].left
        if a == b:
            words = f"{len(members)} pairs of {what} of different subjects in {a} are one: {kind} (for example {example}): merge those subjects before splitting"
        elif kind == BARE:
            words = f"{len(right)} of {whole} subjects of {b} bear an identifier of {a} (for example {example}): different datasets? if they are the same people, take them out of one side"
        else:
            words = f"{len(right)} of {whole} {what} of {b} are also in {a}: {kind} (for example {example}): take them out of one side"
        made.append((kind, a, b, len(members), len(right), words))
    return made


def seen_by_model(hashes: Iterable[str], scans: Sequence[Scan]) -> dict[str, list[str]]:
    """The subjects whose hash is among those that a model keeps of its training data, by split.

    Args:
        hashes: ``data.subject_hashes`` of a model.json.
        scans: rows of an index.
    """
    seen = set(hashes)
    made: dict[str, set[str]] = {}
    for subject, split in {(scan.subject, scan.split) for scan in scans if scan.status != BAD}:
        if artifacts.sha256_json(subject)[:12] in seen:
            made.setdefault(split, set()).add(subject)
    return {split: sorted(names) for split, names in sorted(made.items())}
