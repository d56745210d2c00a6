"""Left and right: which label values are each other's mirror image, from pairs given or from the labels' names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..core.errors import ConfigError

_SIDES = re.compile(r"(?i)(?<![a-z])(left|right|lh|rh|l|r)(?![a-z])")
_SIDE = {"left": "left", "lh": "left", "l": "left", "right": "right", "rh": "right", "r": "right"}


def pairs_from_names(names: Mapping[int, str]) -> tuple[tuple[int, int], ...]:
    """(left value, right value) of names that differ in their side alone: ``Left-Hippocampus`` and ``right hippocampus``."""
    found: dict[str, dict[str, int]] = {}
    for value, name in names.items():
        spaced = re.sub(r"[_\-.\s]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).strip()
        sides = _SIDES.findall(spaced)
        if len(sides) == 1:
            rest = " ".join(_SIDES.sub(" ", spaced).casefold().split())
            found.setdefault(rest, {})[_SIDE[sides[0].casefold()]] = value
    return tuple(sorted((sides["left"], sides["right"]) for sides in found.values() if len(sides) == 2))


def checked(pairs: Sequence[Sequence[int]], values: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The pairs, each value in one of them and known.

    Raises:
        ConfigError: a value stands twice, or a label of one side is there without the other.
    """
    flat = [int(value) for pair in pairs for value in pair]
    if any(len(pair) != 2 for pair in pairs) or len(set(flat)) != len(flat):
        raise ConfigError(
            "data.label_pairs must be pairs of different label values", expected="[[1, 2], [3, 4]]", got=list(pairs)
        )
    kept = []
    for one, other in pairs:
        if (one in values) != (other in values):
            raise ConfigError(
                f"data.label_pairs pairs {one} and {other}, but only one of them is in the training labels",
                got=", ".join(map(str, values)),
            )
        if one in values:
            kept.append((int(one), int(other)))
    return tuple(kept)
