"""The slices of a DICOM series: whether they are one volume, and what is missing, doubled, turned or tilted.

Two witnesses say that slices are missing: places (a wide step among narrow ones) and what the files state (``InstanceNumber``,
``ImagesInAcquisition``, ``SpacingBetweenSlices``). A statement alone is told and no fault: series may be numbered from anywhere, an
acquisition may make several series, and some scanners write the gap between slices where the distance of their middles belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FEWEST_SLICES = 8
"""A series of fewer slices is a localiser or a planning image, no volume."""
GAP = 1.5
"""A step between slices above this many median steps is a gap."""
SHEAR = 0.02
"""Slices that shift sideways by more than this share of their distance are tilted (about 1.1 degrees)."""
_VOLUME_TAGS = (
    "EchoTime",
    "EchoNumbers",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "ImageType",
    "TriggerTime",
)
"""What tells two slices at one place apart as members of two volumes."""


@dataclass
class Series:
    """One series: every file and its tags; a file of several frames holds their tags under ``frames``."""

    uid: str
    slices: list[tuple[Path, Mapping[str, Any]]] = field(default_factory=list)
    copies: int = 0

    @property
    def first(self) -> Mapping[str, Any]:
        """The tags of the file that comes first."""
        return self.slices[0][1]

    @property
    def looks(self) -> list[Mapping[str, Any]]:
        """The tags of every slice, whether it is a file or a frame of one."""
        return [look for _, tags in self.slices for look in ([{**tags, **frame} for frame in tags.get("frames") or []] or [tags])]


@dataclass(frozen=True)
class Checked:
    """What is wrong with a series.

    Attributes:
        problems: reasons not to convert it.
        notes: what is told of a series that is converted.
        volumes: how many volumes it holds.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    volumes: int = 1


def check_slices(series: Series) -> Checked:
    """What is wrong with a series' slices: missing, doubled, turned, tilted, too few; and what is worth telling."""
    problems: list[str] = []
    notes = [f"{series.copies} copies of slices are left out"] if series.copies else []
    first = series.first
    kinds = {str(word).upper() for word in first.get("ImageType") or [] if isinstance(first.get("ImageType"), list)}
    if "LOCALIZER" in kinds:
        return Checked(("a localiser, no volume",), tuple(notes))
    stated = [int(number(tags.get("NumberOfFrames")) or 1) for _, tags in series.slices]
    described = [len(tags.get("frames") or [tags]) for _, tags in series.slices]
    if max(stated) > 1 and not any(tags.get("frames") for _, tags in series.slices):
        notes.append(f"the places of its {sum(stated)} frames are not stated: whether slices are missing was not checked")
        return Checked((), tuple(notes))
    if stated != described:
        return Checked((f"the files state {sum(stated)} frames and describe {sum(described)}",), tuple(notes))
    looks = series.looks
    if len(looks) < FEWEST_SLICES:
        return Checked((f"{len(looks)} slices are no volume (at least {FEWEST_SLICES})",), tuple(notes))
    sizes = {(str(tags.get("Rows")), str(tags.get("Columns"))) for tags in looks}  # damaged ones are lists
    if len(sizes) > 1:
        problems.append(f"slices of {len(sizes)} sizes in one series")
    places = [vector(tags.get("ImagePositionPatient"), 3) for tags in looks]
    turns = [vector(tags.get("ImageOrientationPatient"), 6) for tags in looks]
    lost = sum(place is None or turn is None for place, turn in zip(places, turns))
    if lost:
        return Checked((*problems, f"{lost} of {len(places)} slices state no position"), tuple(notes))
    positions, orientations = np.array(places), np.array(turns)
    if np.abs(orientations - orientations[0]).max() > 1e-2:
        return Checked((*problems, "slices of several orientations in one series"), tuple(notes))
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    if np.linalg.norm(normal) < 0.5:
        return Checked((*problems, "the orientation is no orientation"), tuple(notes))
    normal /= np.linalg.norm(normal)
    along = positions @ normal
    levels, owner, counts = np.unique(np.round(along, 2), return_inverse=True, return_counts=True)
    if len(levels) < FEWEST_SLICES:
        return Checked((*problems, f"slices at {len(levels)} places are no volume (at least {FEWEST_SLICES})"), tuple(notes))
    steps = np.diff(levels)
    step = float(np.median(steps))
    wide = steps > GAP * step
    if wide.any():
        missing = int(np.rint(steps[wide] / step - 1).sum())
        problems.append(
            f"about {max(missing, 1)} slices are missing: a step of {steps.max():.1f} mm among steps of {step:.1f} mm"
        )
    elif np.abs(steps - step).max() > 0.1 * step:
        notes.append(f"slices lie {steps.min():.2f} to {steps.max():.2f} mm apart; they are taken as {step:.2f} mm")
    volumes = 1
    if counts.max() > 1:
        volumes = int(counts.max())
        told_apart = all(_told_apart([tags for tags, n in zip(looks, owner) if n == level]) for level in range(len(levels)))
        if counts.min() != counts.max() or not told_apart:
            doubled = int((counts > np.median(counts)).sum()) if counts.min() != counts.max() else len(levels)
            problems.append(
                f"{doubled} places hold more slices than the others or slices that nothing tells apart: duplicate positions"
            )
    if volumes == 1 and not wide.any():
        faults, told = _missing(looks, step)
        problems, notes = problems + faults, notes + told
    tilt = number(first.get("GantryDetectorTilt")) or 0.0
    middle = np.array([positions[owner == level].mean(axis=0) for level in range(len(levels))])
    aside = middle - middle[0] - np.outer((middle - middle[0]) @ normal, normal)
    shear = float(np.linalg.norm(aside[-1]) / max(levels[-1] - levels[0], 1e-6))
    if shear > SHEAR or abs(tilt) > 0.5:
        angle = np.degrees(np.arctan(shear)) if shear > SHEAR else abs(tilt)
        problems.append(f"the slices are tilted by {angle:.1f} degrees (gantry tilt): resample it before")
    return Checked(tuple(problems), tuple(notes), volumes)


def _told_apart(tags: list[Mapping[str, Any]]) -> bool:
    return len({tuple(str(one.get(tag)) for tag in _VOLUME_TAGS) for one in tags}) == len(tags)


def _missing(looks: list[Mapping[str, Any]], step: float) -> tuple[list[str], list[str]]:
    """Faults and notes about slices that places alone do not miss: the first, the last, every second.

    Args:
        looks: the tags of the slices of one volume.
        step: between slices, in mm.
    """
    faults, notes = [], []
    numbers = sorted({int(n) for n in (number(tags.get("InstanceNumber")) for tags in looks) if n is not None})
    numbers = numbers if len(numbers) == len(looks) else []  # without them, or with one twice, they say nothing
    before = max(numbers[0] - 1, 0) if numbers else 0
    between = numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0
    counts = {int(n) for n in (number(tags.get("ImagesInAcquisition")) for tags in looks) if n is not None and n > 0}
    stated = counts.pop() if len(counts) == 1 else 0
    absent = stated - len(looks)
    if absent > 0 and (before or between or stated % len(looks)):
        faults.append(
            f"{absent} slices are missing: the files state {stated} images in the acquisition and {len(looks)} are here"
        )
    elif absent > 0:
        notes.append(
            f"the files state {stated} images in the acquisition and {len(looks)} are here: other series may hold the others"
        )
    spacing, thickness = (number(looks[0].get(tag)) for tag in ("SpacingBetweenSlices", "SliceThickness"))
    if spacing is not None and spacing > 0:
        times, near = round(step / spacing), 0.05 * step
        said = f"the files state a step of {spacing:.1f} mm, and slices lie {step:.1f} mm apart"
        a_gap = thickness is not None and thickness > spacing + near and abs(step - spacing - thickness) < near
        if times >= 2 and abs(step - times * spacing) < near and between and not faults:
            faults.append(f"{between} slices are missing: {said}")
        elif abs(step - spacing) > near and not a_gap and not faults:
            notes.append(f"{said}: slices may be missing")
    if (before or between) and not faults and absent:
        where = [f"begin at {numbers[0]}"] * bool(before) + [f"leave out {between}"] * bool(between)
        notes.append(f"the numbers of the images {' and '.join(where)}: slices may be missing")
    return faults, notes


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def vector(value: Any, n: int) -> np.ndarray | None:
    """``n`` finite numbers as an array of shape (n,), or None."""
    numbers = [number(item) for item in value] if isinstance(value, list) else []
    return np.array(numbers, dtype=np.float64) if len(numbers) == n and None not in numbers else None
