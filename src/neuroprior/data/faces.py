"""Does a head show a face? A simple look at the middle of the volume, to flag what should be defaced before it is shared.

In RAS millimetres, in the 40 mm about the head's middle plane: ``top`` is the highest tissue, ``front`` the foremost tissue 40 to 90 mm below
it (the forehead, or the frontal lobe of a stripped brain). The face is a box that reaches from 115 to 175 mm below ``top`` and from 45 to 5 mm
behind ``front``: nose, mouth and upper jaw. Tissue is what is brighter than 12 % of the volume's 98th percentile above zero.

- the volume does not reach 145 mm below ``top``: nobody can tell;
- tissue in at least 35 % of the box: a face; in less than 15 %: none (defaced, or the brain alone); between: nobody can tell.

It is a heuristic, made for adults: on heads of children, and on volumes of unusual contrast, it may be wrong. What it says is a flag, not a
certificate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.volume import Volume

BOX_MM = (115.0, 175.0)
"""The face's box below the top."""
DEPTH_MM = (5.0, 45.0)
"""The face's box behind the front."""
REACH_MM = 145.0
"""How far below the top the volume must reach."""
FACE, NONE = 0.35, 0.15
"""Shares of tissue in the box from which there is a face, and below which there is none."""
STEP_MM = 3.0
"""Roughly how finely the volume is looked at."""


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        verdict: ``face``, ``none`` or ``cannot tell``.
        share: of the box that is tissue; NaN where the volume does not reach it.
        words: the verdict and why, on one line.
    """

    verdict: str
    share: float
    words: str


def look(volume: Volume) -> Look:
    """Whether a head shows a face.

    Args:
        volume: any orientation and contrast; oblique volumes are judged along their nearest axes.
    """
    voxels, spacing = _canonical(volume)
    sampled = voxels[tuple(slice(None, None, max(1, round(STEP_MM / mm))) for mm in spacing)]
    steps = [mm * max(1, round(STEP_MM / mm)) for mm in spacing]
    bright = sampled[sampled > 0]
    if bright.size < 100 or min(sampled.shape) < 5:
        return Look("cannot tell", float("nan"), "cannot tell: the volume is too small or empty")
    tissue = sampled > 0.12 * np.percentile(bright, 98)
    columns = tissue.sum(axis=(1, 2))
    middle = float((columns * np.arange(len(columns))).sum() / max(columns.sum(), 1))
    half = max(1, round(20.0 / steps[0]))
    slab = tissue[max(0, int(middle) - half) : int(middle) + half + 1]
    outline = slab.mean(axis=0) > 0.3  # (y, z)
    rows = np.flatnonzero(outline.sum(axis=0) * steps[1] > 25)  # a level with less than 25 mm of tissue is noise
    if not len(rows):
        return Look("cannot tell", float("nan"), "cannot tell: no head is seen")
    top = int(rows[-1])

    def level(mm: float) -> int:
        return top - round(mm / steps[2])

    if level(REACH_MM) < 0:
        return Look("cannot tell", float("nan"), "cannot tell: the field of view ends above the mouth")
    brow = np.flatnonzero(outline[:, max(level(90), 0) : max(level(40), 1)].any(axis=1))
    if not len(brow):
        return Look("cannot tell", float("nan"), "cannot tell: no forehead is seen")
    front = int(brow[-1])
    behind, before = (max(front - round(mm / steps[1]), 0) for mm in (DEPTH_MM[1], DEPTH_MM[0]))
    box = slab[:, behind : before + 1, max(level(BOX_MM[1]), 0) : level(BOX_MM[0]) + 1]
    share = float(box.mean()) if box.size else 0.0
    verdict = "face" if share >= FACE else "none" if share < NONE else "cannot tell"
    return Look(verdict, share, f"{verdict}: {share:.0%} of where a face would be is tissue")


def _canonical(volume: Volume) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The voxels with their axes nearest to right, front and up, and the spacing along them."""
    directions = volume.affine[:3, :3] / np.array(volume.spacing_mm)
    order = [int(axis) for axis in np.argmax(np.abs(directions), axis=1)]
    if sorted(order) != [0, 1, 2]:  # at 45 degrees two world axes may want the same voxel axis
        order = [0, 1, 2]
    turned = volume.voxels.transpose(order)
    flips = tuple(slice(None, None, -1 if directions[world, axis] < 0 else 1) for world, axis in enumerate(order))
    x, y, z = (volume.spacing_mm[axis] for axis in order)
    return turned[flips], (x, y, z)
