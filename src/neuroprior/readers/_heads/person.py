"""Who is scanned: age, sex and health of a subject, drawn from the seed and the subject's number alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.seeds import generator
from .options import Options


@dataclass(frozen=True)
class Person:
    """A subject.

    Attributes:
        number: counts from 1.
        name: ``sub-0001``; says nothing but the number, unless the shortcut ``name`` is built in (``sub-C0001``, ``sub-P0001``).
        age: years at the first session.
        sex: ``F`` or ``M``.
        health: ``healthy`` or the kind of lesion.
        session_ages: years at each time point.
    """

    number: int
    name: str
    age: float
    sex: str
    health: str
    session_ages: tuple[float, ...]


def person(options: Options, number: int) -> Person:
    """The subject of this number. Age, sex and health are independent of one another and of the number."""
    rng = generator(options.seed, "head", "person", number)
    low, high = options.age_range
    place, sex_draw, health_draw, kind_draw = rng.random(4)
    if options.shortcut == "order":
        place = (number - 1 + place) / max(options.subjects_for_order or number, number)
    age = round(float(low + (high - low) * place), 1)
    ill = bool(options.lesions) and health_draw >= options.healthy
    health = options.lesions[int(kind_draw * len(options.lesions))] if ill else "healthy"
    gaps = np.round(rng.uniform(1, 3, size=20), 1)[: options.sessions - 1]
    ages = tuple(round(float(age + gap), 1) for gap in (0.0, *np.cumsum(gaps)))
    group = "" if options.shortcut != "name" else "C" if health == "healthy" else "P"
    return Person(number, f"sub-{group}{number:04d}", age, "F" if sex_draw < 0.5 else "M", health, ages)
