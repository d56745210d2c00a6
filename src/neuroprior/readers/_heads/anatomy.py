"""A subject's anatomy: the template deformed, aged and individually folded, seen on a grid at one time point.

Age acts twice: a velocity field widens the ventricles, and the level at which the average counts as brain rises, so
that the cortex thins and the sulci open. Sex acts on the size of the head, on the cortex's thickness and, a little, on
the temporal lobes. Everything else is the subject's own: smooth deformations at three scales, and noise on the levels,
which folds every cortex differently. Every field is drawn in template millimetres, so it does not depend on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...core.seeds import generator
from .fields import flow, linear_basis, separable, sigmoid, smooth_noise
from .lesions import (
    INFARCT_LEVEL,
    TUMOUR_NECROSIS,
    TUMOUR_OEDEMA,
    TUMOUR_RIM,
    WMH_LEVEL,
    Lesion,
    draw_lesion,
    lesion_level,
    mass_effect,
)
from .options import Options
from .person import Person
from .template import EXTENT_MM, ORIGIN_MM, Template

FLOW_MM = 6.0
"""Spacing of the grid on which deformations are integrated."""

LESION_LABELS = {1: "wmh", 2: "infarct", 3: "enhancing", 4: "necrosis", 5: "oedema"}
"""What the values of a lesion map mean."""


@dataclass(frozen=True)
class Traits:
    """What is a subject's own and does not change with age.

    Attributes:
        size: (3,) size of the head relative to the template, along x, y, z.
        shape_velocity: (3, x, y, z) individual deformation on the flow grid, in mm.
        widening: (3, x, y, z) deformation that widens the ventricles by about 1 mm.
        ventricle_own_mm, cortex_own, white_own: the subject's deviation from what its age expects.
        skull_mm, fat_mm: thickness of the skull and of the fat under the skin.
        fold, fold_white, grain: (x, y, z) noise of about unit variance on the template's grid.
        lesion: the subject's lesion, if any.
    """

    size: np.ndarray
    shape_velocity: np.ndarray
    widening: np.ndarray
    ventricle_own_mm: float
    cortex_own: float
    white_own: float
    skull_mm: float
    fat_mm: float
    fold: np.ndarray
    fold_white: np.ndarray
    grain: np.ndarray
    lesion: Lesion | None


@dataclass(frozen=True)
class Anatomy:
    """A head at one time point on one grid.

    Attributes:
        inside: (x, y, z) bool, the voxels that belong to the head; the other arrays list only those, in C order.
        parts: substance (csf, grey, white, fluid, fat, muscle, bone, eye and the lesions') -> fraction of the voxel; the
            rest is air.
        texture: shared within-tissue texture, about +-0.1.
        grain: fine subject-specific noise from which contrasts make their own texture, about unit variance.
        brain_mm: signed distance to the brain's outline in mm, negative inside.
        labels: (x, y, z) uint8, exact regions (``template.REGIONS``).
        lesion: (x, y, z) uint8: 0 none, 1 wmh, 2 infarct, 3 enhancing, 4 necrosis, 5 oedema.
    """

    inside: np.ndarray
    parts: dict[str, np.ndarray]
    texture: np.ndarray
    grain: np.ndarray
    brain_mm: np.ndarray
    labels: np.ndarray
    lesion: np.ndarray


def traits(options: Options, who: Person, maps: Template) -> Traits:
    """A subject's own traits, from the seed and the subject's number."""
    rng = generator(options.seed, "head", "traits", who.number)
    male = 1.0 if who.sex == "M" else 0.0
    # The ICBM average is larger than life (1.9 l); 0.92 of it along each axis is the size of people.
    size = 0.92 * np.exp(0.03 * (2 * male - 1) + rng.normal(0, 0.022) + rng.normal(0, 0.014, size=3))
    shape = _flow_shape()
    velocity = np.zeros((3, *shape), np.float32)
    for amount_mm, scale_mm in ((3.2, 42.0), (1.9, 22.0), (0.8, 13.0)):
        velocity += amount_mm * np.stack([smooth_noise(shape, FLOW_MM, scale_mm, rng) for _ in range(3)])
    points = _flow_points()
    # A little more temporal lobe in one sex, in front of and below the deep nuclei.
    for side in (-1.0, 1.0):
        away = np.stack(np.broadcast_arrays(points[0] - 30 * side, points[1] + 8, points[2] + 22))
        velocity = velocity + 0.07 * (2 * male - 1) * away * np.exp(-(away**2).sum(0) / (2 * 14.0**2))
    own = rng.normal(0, 1, size=3)
    fold = smooth_noise(maps.shape, maps.spacing_mm, 5.0, generator(options.seed, "head", "fold", who.number))
    fold = fold * np.clip(1.1 - 0.8 * maps.white.clip(0, 1), 0.3, 1)  # folds belong to the surface, not to deep white matter
    fold_white = smooth_noise(maps.shape, maps.spacing_mm, 6.0, generator(options.seed, "head", "white", who.number))
    grain = smooth_noise(maps.shape, maps.spacing_mm, 2.5, generator(options.seed, "head", "grain", who.number))
    lesion = draw_lesion(who.health, maps, generator(options.seed, "head", "lesion", who.number))
    return Traits(
        size, velocity.astype(np.float32), _widening(maps), 0.45 * own[0], 0.022 * own[1] - 0.02 * (1 - male), 0.02 * own[2],
        rng.uniform(4.5, 7.0), rng.uniform(2.0, 5.5), fold, fold_white, grain, lesion,
    )  # fmt: skip


def _flow_shape() -> tuple[int, int, int]:
    x, y, z = (int(np.ceil(extent / FLOW_MM)) + 1 for extent in EXTENT_MM)
    return x, y, z


def _flow_points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axes = [o + FLOW_MM * np.arange(n, dtype=np.float32) for o, n in zip(ORIGIN_MM, _flow_shape(), strict=True)]
    return axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]


def _widening(maps: Template) -> np.ndarray:
    """A velocity that points out of the lateral ventricles, at most 1 mm long."""
    where = np.indices(_flow_shape(), dtype=np.float32) * (FLOW_MM / maps.spacing_mm)
    coarse = ndimage.map_coordinates(maps.near_ventricles, where, order=1, mode="nearest")
    outward = -np.stack([np.gradient(coarse, axis=axis) for axis in range(3)])
    return (outward / np.abs(outward).max()).astype(np.float32)


def displacement(subject: Traits, age: float, years: float) -> np.ndarray:
    """The displacement in mm from head points (in template size) to template points, on the flow grid.

    Args:
        subject: the subject's traits.
        age: years at this time point.
        years: since the first session.
    """
    wide_mm = 6.5 * _wear(age) + subject.ventricle_own_mm
    velocity = subject.shape_velocity + wide_mm * subject.widening
    if subject.lesion is not None and subject.lesion.kind == "tumour":
        velocity = velocity + mass_effect(subject.lesion, years, _flow_points())
    return flow(-velocity, FLOW_MM)


def _wear(age: float) -> float:
    """How far a brain has aged: 0 at 20, 1 at 85, faster as it goes."""
    t = (age - 20) / 65
    return 0.35 * t + 0.65 * np.sign(t) * abs(t) ** 2.2


def see(
    subject: Traits, maps: Template, shape: tuple[int, int, int], to_head: np.ndarray, moved_mm: np.ndarray,
    age: float, years: float,
) -> Anatomy:  # fmt: skip
    """The head on a grid.

    Args:
        subject: the subject's traits.
        maps: the template.
        shape: voxels of the grid.
        to_head: (4, 4) voxel -> head millimetres (RAS+, origin where the template's is).
        moved_mm: what :func:`displacement` returns for this time point.
        age: years at this time point.
        years: since the first session.
    """
    spacing = float(np.linalg.norm(to_head[:3, 0]))
    points = template_points(moved_mm, subject.size, maps.spacing_mm, shape, to_head)
    # Where the head is: decided on every other voxel, a little generously.
    coarse = ndimage.map_coordinates(maps.head_mm[::2, ::2, ::2], points[:, ::2, ::2, ::2] / 2, order=1, mode="nearest")
    inside = coarse < 2.0 + 2 * spacing
    inside = inside.repeat(2, 0).repeat(2, 1).repeat(2, 2)[: shape[0], : shape[1], : shape[2]]
    at = points[:, inside]

    def look(channel: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        points = at if where is None else at[:, where]
        seen = ndimage.map_coordinates(channel, points, order=1, mode="nearest", prefilter=False)
        if where is None:
            return seen
        full = np.zeros(len(where), np.float32)  # outside of the brain these maps are 0
        full[where] = seen
        return full

    nearest = tuple(np.clip(np.rint(part).astype(np.intp), 0, n - 1) for part, n in zip(at, maps.shape, strict=True))
    wear = _wear(age)
    brain_mm, grain = look(maps.brain_mm), look(subject.grain)
    blur = 0.09 * max(1.0, spacing)  # the levels rise by roughly 0.2 per mm at a border
    brain = sigmoid((0.3 - brain_mm) / (0.35 * max(1.0, spacing)))
    close = brain > 0.01
    surface = look(maps.parenchyma + 0.22 * subject.fold, close) - (0.42 + 0.36 * wear + subject.cortex_own)
    border = look(maps.white + 0.16 * subject.fold_white, close) - (0.48 + 0.12 * wear**2 + subject.white_own)
    tissue = brain * sigmoid(surface / blur)
    white = tissue * sigmoid(border / blur)
    parts = {"csf": brain - tissue, "grey": tissue - white, "white": white}
    labels = _regions(parts, brain, nearest, maps)
    parts |= _around(1 - brain, brain_mm, look(maps.head_mm), grain, maps.organ[nearest], spacing, subject)
    lesion = np.zeros(len(grain), np.uint8)
    if subject.lesion is not None:
        lesion = _injure(parts, subject.lesion, look(lesion_level(subject.lesion, years, maps), close), brain)
    return Anatomy(inside, parts, look(maps.texture, close), grain, brain_mm, _fill(inside, labels), _fill(inside, lesion))


def template_points(
    moved_mm: np.ndarray, size: np.ndarray, spacing_mm: float, shape: tuple[int, int, int], to_head: np.ndarray
) -> np.ndarray:
    """(3, x, y, z) template voxel coordinates of a grid's voxels, interpolated linearly between points FLOW_MM apart."""
    step = max(1, round(FLOW_MM / float(np.linalg.norm(to_head[:3, 0]))))
    counts = [-(-(n - 1) // step) + 1 for n in shape]
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) * step for n in counts), indexing="ij"))
    head_mm = np.tensordot(to_head[:3, :3], index, axes=1) + to_head[:3, 3, None, None, None]
    origin = np.asarray(ORIGIN_MM)[:, None, None, None]
    still = head_mm / size[:, None, None, None]
    at = (still - origin) / FLOW_MM
    shift = np.stack([ndimage.map_coordinates(part, at, order=1, mode="nearest") for part in moved_mm])
    voxels = ((still + shift - origin) / spacing_mm).astype(np.float32)
    bases = [linear_basis(n, 1 / step, k) for n, k in zip(shape, counts, strict=True)]
    return np.stack([separable(part, bases) for part in voxels])


def _regions(parts: dict[str, np.ndarray], brain: np.ndarray, nearest: tuple[np.ndarray, ...], maps: Template) -> np.ndarray:
    """The region of each voxel: that of its largest part, 0 where less than half of it is brain."""
    csf, grey, white = parts["csf"], parts["grey"], parts["white"]
    regions = np.zeros(len(brain), np.uint8)
    voxel = np.ravel_multi_index(nearest, maps.shape)
    for mine, source in (
        ((csf >= grey) & (csf >= white), maps.csf_region),
        ((grey > csf) & (grey >= white), maps.cortex_region),
        ((white > csf) & (white > grey), maps.white_region),
    ):
        where = mine & (brain > 0.5)
        regions[where] = source.ravel()[voxel[where]]
    return regions


def _around(
    outside: np.ndarray,
    brain_mm: np.ndarray,
    head_mm: np.ndarray,
    grain: np.ndarray,
    organ: np.ndarray,
    spacing: float,
    subject: Traits,
) -> dict[str, np.ndarray]:
    """What surrounds the brain: meninges' CSF, skull with marrow, fat, muscle, skin, eyes; sinuses are air."""
    width = 0.35 * max(1.0, spacing)
    head = outside * sigmoid(-head_mm / width) * (organ != 2)
    fluid = head * sigmoid((1.8 + 0.3 * grain - brain_mm) / width)
    skull_mm = 2.2 + subject.skull_mm
    skull = (head - fluid) * sigmoid((skull_mm - brain_mm) / width)
    marrow = skull * np.exp(-(((brain_mm - 1.2 - skull_mm / 2) / (0.22 * subject.skull_mm)) ** 2)) * 0.7
    soft = head - fluid - skull
    skin = sigmoid((head_mm + 1.5) / width)
    under = sigmoid((head_mm + 1.5 + subject.fat_mm) / width) * (1 - skin)
    deep = 1 - skin - under
    fat = under + deep * sigmoid((grain - 0.9) * 4) * 0.8
    eye = soft * (organ == 1)
    soft = soft - eye
    return {"fat": soft * fat + marrow, "muscle": soft * (1 - fat), "bone": skull - marrow, "eye": eye, "fluid": fluid}


def _injure(parts: dict[str, np.ndarray], lesion: Lesion, level: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Replace tissue by lesion in ``parts``; returns the lesion labels."""
    for name in LESION_LABELS.values():
        parts[name] = np.zeros_like(brain)
    if lesion.kind == "wmh":
        parts["wmh"] = sigmoid((level - WMH_LEVEL) / 0.07) * parts["white"]
        parts["white"] = parts["white"] - parts["wmh"]
    elif lesion.kind == "infarct":
        share = sigmoid((level - INFARCT_LEVEL) / 0.07)
        parts["infarct"] = share * (parts["grey"] + parts["white"])
        parts["grey"], parts["white"] = parts["grey"] * (1 - share), parts["white"] * (1 - share)
    else:
        core = sigmoid((TUMOUR_RIM - level) / 0.05)
        necrosis = sigmoid((TUMOUR_NECROSIS - level) / 0.05)
        swollen = sigmoid((TUMOUR_OEDEMA - level) / 0.08) * (1 - core) * parts["white"]
        parts["necrosis"], parts["enhancing"], parts["oedema"] = necrosis * brain, (core - necrosis) * brain, swollen
        parts["white"] = parts["white"] * (1 - core) - swollen
        parts["grey"], parts["csf"] = parts["grey"] * (1 - core), parts["csf"] * (1 - core)
    labels = np.zeros(len(brain), np.uint8)
    total, largest = np.zeros_like(brain), np.zeros_like(brain)
    for label, name in LESION_LABELS.items():
        labels[parts[name] > largest] = label
        np.maximum(largest, parts[name], out=largest)
        total += parts[name]
    return np.where(total > 0.5, labels, 0).astype(np.uint8)


def _fill(inside: np.ndarray, values: np.ndarray) -> np.ndarray:
    full = np.zeros(inside.shape, values.dtype)
    full[inside] = values
    return full
