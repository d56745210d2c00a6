"""Which prediction belongs to which reference, when two folders of any tool's masks are compared.

Rules, from the surest to the loosest; a rule only looks at what those before it left, and never guesses: where it finds two
candidates, none is taken and both are listed.

1. ``path``: the same relative path, ``.nii`` and ``.nii.gz`` alike;
2. ``name``: the same file name in another folder;
3. ``entities``: the same BIDS entities, from the file's name and its folders' (``sub-01/ses-1/...``), without those that say what a
   file is rather than whose (``desc``, ``label``, ``space`` ...) and without the suffix;
4. ``fewer entities``: no entity that both have differs, and both have the subject;
5. ``core name``: the same name once the endings that tools put on it are taken off (``_0000`` of nnU-Net's images, ``_seg`` and ``_trans`` of
   MONAI, ``_mask``, ``_pred`` ...), capitals aside; a name that is nothing but such an ending counts as its folder's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

_WHAT = ("desc", "label", "space", "seg", "res", "den", "hemi", "atlas", "from", "to", "mode", "model", "method", "part", "rater")
_ENDINGS = re.compile(
    r"[-_. ]?(?:0\d{3}|seg|segs|segmentation|segmentations|pred|preds|prediction|predicted|mask|masks|label|labels|gt|truth|"
    r"reference|ref|manual|trans|output|out|dseg|lesion|lesions|roi|final|postprocessed)$",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9]+)")


@dataclass(frozen=True)
class Match:
    """A pair of files, relative to their folders, and the rule that joined them."""

    reference: PurePath
    prediction: PurePath
    rule: str


@dataclass(frozen=True)
class Matching:
    """All pairs, and what was left.

    Attributes:
        pairs: in the references' order.
        references: that have no prediction, each with the reason.
        predictions: that have no reference, each with the reason.
    """

    pairs: tuple[Match, ...]
    references: Mapping[PurePath, str]
    predictions: Mapping[PurePath, str]

    def __str__(self) -> str:
        rules: dict[str, int] = defaultdict(int)
        for pair in self.pairs:
            rules[pair.rule] += 1
        lines = [f"{len(self.pairs)} pairs" + (": " + ", ".join(f"{n} by {rule}" for rule, n in rules.items()) if rules else "")]
        lines += [f"reference without a prediction: {file.as_posix()} ({reason})" for file, reason in self.references.items()]
        lines += [f"prediction without a reference: {file.as_posix()} ({reason})" for file, reason in self.predictions.items()]
        return "\n".join(lines)


def stem(file: PurePath) -> str:
    """The file's name without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?$", "", file.name, flags=re.IGNORECASE)


def entities(file: PurePath) -> dict[str, str]:
    """BIDS entities of a file's name and of its folders, those of the name first; only what says whose it is, not what it is."""
    found: dict[str, str] = {}
    for part in (*file.parts[:-1], stem(file)):
        for piece in part.split("_"):
            entity = _ENTITY.fullmatch(piece)
            if entity and entity[1].lower() not in _WHAT:
                found[entity[1].lower()] = entity[2]
    return found


def subject(file: PurePath) -> str:
    """Whose mask it is: ``sub-01`` where a name says so, otherwise the file's own path, so that each file is a subject."""
    who = entities(file).get("sub")
    return f"sub-{who}" if who else file.as_posix()


def core(file: PurePath) -> str:
    """The file's name without the endings that tools put on it, in small letters; its folder's where nothing is left."""
    for name in (stem(file), *reversed(file.parts[:-1])):
        before = None
        while name != before:
            before, name = name, _ENDINGS.sub("", name)
        if name:
            return name.lower()
    return stem(file).lower()


def match(references: Iterable[PurePath], predictions: Iterable[PurePath]) -> Matching:
    """Join references and predictions by the rules above.

    Args:
        references, predictions: paths relative to their folders.
    """
    wanted, offered = sorted(set(references)), sorted(set(predictions))
    pairs: dict[PurePath, Match] = {}
    taken: set[PurePath] = set()
    why: dict[PurePath, str] = {}

    def left() -> tuple[list[PurePath], list[PurePath]]:
        return [file for file in wanted if file not in pairs], [file for file in offered if file not in taken]

    def join(rule: str, candidates: Mapping[PurePath, list[PurePath]]) -> None:
        """Take the pairs in which each side has only the other."""
        backwards: dict[PurePath, list[PurePath]] = defaultdict(list)
        for reference, found in candidates.items():
            for prediction in found:
                backwards[prediction].append(reference)
        for reference, found in candidates.items():
            if len(found) == 1 and len(backwards[found[0]]) == 1:
                pairs[reference] = Match(reference, found[0], rule)
                taken.add(found[0])
            elif found:
                rivals = found if len(found) > 1 else backwards[found[0]]
                reason = f"several files fit by {rule}: " + ", ".join(file.as_posix() for file in rivals[:3])
                for file in (reference, *found):
                    why.setdefault(file, reason)

    def by_key(rule: str, key: Callable[[PurePath], Hashable | None]) -> None:
        here, there = left()
        places: dict[Hashable, list[PurePath]] = defaultdict(list)
        for prediction in there:
            name = key(prediction)
            if name is not None:
                places[name].append(prediction)
        keys = {reference: key(reference) for reference in here}
        join(rule, {reference: places.get(name, []) if name is not None else [] for reference, name in keys.items()})

    def whose(file: PurePath) -> Hashable | None:
        found = entities(file)
        return tuple(sorted(found.items())) if "sub" in found else None

    by_key("path", lambda file: (*file.parts[:-1], stem(file)))
    by_key("name", stem)
    by_key("entities", whose)
    here, there = left()
    offered_entities = {file: found for file in there if "sub" in (found := entities(file))}
    loose = {}
    for reference in here:
        own = entities(reference)
        loose[reference] = (
            [file for file, found in offered_entities.items() if all(own[key] == found[key] for key in own.keys() & found.keys())]
            if "sub" in own
            else []
        )
    join("fewer entities", loose)
    by_key("core name", core)
    here, there = left()
    return Matching(
        tuple(pairs[file] for file in wanted if file in pairs),
        {file: why.get(file, "no file of that name or subject") for file in here},
        {file: why.get(file, "no file of that name or subject") for file in there},
    )
