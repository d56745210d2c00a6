"""A subject from end to end: who, what anatomy, which sessions, which scans, with the truth beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...core.seeds import generator
from .anatomy import LESION_LABELS, Anatomy, Traits, displacement, see, template_points, traits
from .contrasts import ideal
from .fields import affine
from .options import Options
from .person import Person, person
from .scanners import FLAT_CONTRASTS, SCANNERS, Acquired, Protocol, Scanner, acquire, copy_box, head_pose, plan, store
from .template import EXTENT_MM, ORIGIN_MM, REGIONS, VENTRICLES, Template, template

REFERENCE_ORDER = ("T1w", "T2w", "FLAIR", "T1ce", "PDw")
"""Which contrast is a session's reference, best first; its grid carries the labels."""

COARSER = 1.1
"""How much coarser the voxels of the ill are with the shortcut ``spacing``."""

AIR_NOISE = 0.02
"""Noise in the air of the ill with the shortcut ``background``, as a fraction of bright tissue."""


@dataclass(frozen=True)
class Sitting:
    """One session's outcome.

    Attributes:
        session: ``ses-01``.
        age: years.
        scanner: the machine.
        reference: the contrast on whose grid the truth lies.
        scans: contrast -> scan as stored.
        labels: regions on the reference's grid (``template.REGIONS``), uint8.
        lesion: lesion labels (``anatomy.LESION_LABELS``) on the same grid, uint8.
        brain_mask: uint8 on the same grid.
        volumes_ml: name -> volume of every region, tissue and lesion part, of the whole head.
    """

    session: str
    age: float
    scanner: Scanner
    reference: str
    scans: dict[str, Acquired]
    labels: Acquired
    lesion: Acquired
    brain_mask: Acquired
    volumes_ml: dict[str, float]


@dataclass(frozen=True)
class SyntheticSubject:
    """A person and the sessions.

    Attributes:
        person: age, sex, health, name.
        sittings: in the order of the session labels.
    """

    person: Person
    sittings: tuple[Sitting, ...]


def choose_reference(contrasts: tuple[str, ...]) -> str:
    """The contrast whose grid carries the labels."""
    rank = {name: place for place, name in enumerate(REFERENCE_ORDER)}
    return min(contrasts, key=lambda name: (rank.get(name, len(rank)), name))


def scanners_of(options: Options, who: Person) -> list[list[Scanner]]:
    """The scanners of each time point: one, drawn; or all in a drawn order for travelling subjects."""
    rng = generator(options.seed, "head", "scanner", who.number)
    chosen = []
    for _ in who.session_ages:
        order = [SCANNERS[i] for i in rng.permutation(len(SCANNERS))]
        if options.shortcut == "site":
            half = len(SCANNERS) // 2
            group = SCANNERS[:half] if who.health == "healthy" else SCANNERS[half:]
            order = [scanner for scanner in order if scanner in group]
        chosen.append(order if options.travelling else order[:1])
    return chosen


def make_subject(options: Options, number: int) -> SyntheticSubject:
    """The subject of this number in memory; see :func:`sittings` for one session at a time."""
    who = person(options, number)
    return SyntheticSubject(who, tuple(sittings(options, who)))


def sittings(options: Options, who: Person) -> Iterator[Sitting]:
    """The sessions of a subject, one at a time, so that a long series needs the memory of one."""
    maps = template(options.spacing_mm)
    own = traits(options, who, maps)
    place = 0
    for point, (age, machines) in enumerate(zip(who.session_ages, scanners_of(options, who), strict=True)):
        years = age - who.session_ages[0]
        for scanner in machines:
            place += 1
            rng = generator(options.seed, "head", "session", who.number, point, scanner.name)
            yield _sit(options, who, own, maps, f"ses-{place:02d}", age, years, scanner, head_pose(rng), rng)


def _sit(
    options: Options, who: Person, own: Traits, maps: Template, session: str, age: float, years: float,
    scanner: Scanner, pose: np.ndarray, rng: np.random.Generator,
) -> Sitting:  # fmt: skip
    reference = choose_reference(options.contrasts)
    ill = who.health != "healthy"
    enlarge = 16.0 if options.shortcut == "fov" and ill else 0.0
    spacing_mm = options.spacing_mm * (COARSER if options.shortcut == "spacing" and ill else 1.0)
    stripped = not options.skull or (options.shortcut == "skull" and ill)
    air_noise = AIR_NOISE if options.shortcut == "background" and ill else 0.0
    plans = {
        name: plan(scanner, name, spacing_mm, pose, child, reference=name == reference, skull=options.skull, enlarge_mm=enlarge)
        for name, child in zip(options.contrasts, rng.spawn(len(options.contrasts)), strict=True)
    }
    moved = displacement(own, age, years)
    to_head = np.linalg.inv(pose) @ plans[reference].affine
    low, shape = _box(own, moved, maps, plans, reference, to_head)
    here = affine(np.eye(3), low)
    head = see(own, maps, shape, to_head @ here, moved, age, years)
    placed = plans[reference].affine @ here
    outline = None
    if stripped:
        outline = np.full(shape, 50.0, np.float32)
        outline[head.inside] = head.brain_mm
    scans = {}
    for name in options.contrasts:
        draws = generator(options.seed, "head", "scan", who.number, session, name)
        voxels, _ = acquire(ideal(head, name), placed, plans[name], scanner, name, draws, outline_mm=outline, air_noise=air_noise)
        axes = scanner.axes[name in FLAT_CONTRASTS and name != reference]
        dtype = scanner.dtype
        if options.shortcut == "header":
            axes, dtype = ("RAS", "int16") if who.health == "healthy" else ("LPS", "float32")
        if np.issubdtype(np.dtype(dtype), np.integer) and scanner.scale < 100 and name != "ADC":
            voxels = voxels * np.float32(1000 / scanner.scale)
        scans[name] = store(voxels, plans[name].affine, axes, dtype)
    target = plans[reference]
    axes = scanner.axes[0] if options.shortcut != "header" else ("RAS" if who.health == "healthy" else "LPS")
    labels, lesion, mask = (
        store(place_labels(array, placed, target), target.affine, axes, "uint8")
        for array in (head.labels, head.lesion, (head.labels > 0).astype(np.uint8))
    )
    return Sitting(session, age, scanner, reference, scans, labels, lesion, mask, volumes_ml(head, spacing_mm))


def place_labels(array: np.ndarray, placed: np.ndarray, target: Protocol) -> np.ndarray:
    """Labels copied to the reference's grid, which is a whole-voxel shift away."""
    shift = np.rint(np.linalg.inv(placed) @ target.affine)[:3, 3].astype(int)
    return copy_box(array, shift, target.shape, 0)


def _box(
    own: Traits, moved: np.ndarray, maps: Template, plans: dict[str, Protocol], reference: str, to_head: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The box, in whole voxels of the reference's grid, that holds what any of the scans sees of the head."""
    corners = []
    back = np.linalg.inv(plans[reference].affine)
    for protocol in plans.values():
        index = np.stack(np.meshgrid(*((0, n - 1) for n in protocol.shape), indexing="ij")).reshape(3, -1)
        world = protocol.affine[:3, :3] @ index + protocol.affine[:3, 3:]
        corners.append(back[:3, :3] @ world + back[:3, 3:])
    every = np.concatenate(corners, axis=1)
    low, high = np.floor(every.min(1)).astype(int) - 2, np.ceil(every.max(1)).astype(int) + 3
    step = max(1, round(8.0 / float(np.linalg.norm(to_head[:3, 0]))))
    counts = -(-(high - low) // step) + 1
    coarse = to_head @ affine(np.eye(3) * step, low)
    at = template_points(moved, own.size, maps.spacing_mm, (int(counts[0]), int(counts[1]), int(counts[2])), coarse)
    found = np.argwhere(ndimage.map_coordinates(maps.head_mm, at, order=1, mode="nearest") < 4.0)
    first = np.maximum(low, low + step * (found.min(0) - 1))
    last = np.minimum(high, low + step * (found.max(0) + 2))
    x, y, z = (int(n) for n in last - first)
    return first, (x, y, z)


def volumes_ml(head: Anatomy, spacing_mm: float) -> dict[str, float]:
    """The true volumes in millilitres: counted voxels of every region, tissue and lesion part, in a fixed order."""
    ml = spacing_mm**3 / 1000
    counts = np.bincount(head.labels.ravel(), minlength=max(REGIONS) + 1) * ml
    volumes = {"intracranial": float(counts[1:].sum())}
    for tissue in ("CSF", "GM", "WM"):
        volumes[tissue.lower()] = float(sum(counts[k] for k, (_, kind) in REGIONS.items() if kind == tissue))
    volumes["ventricles"] = float(sum(counts[k] for k in VENTRICLES))
    volumes |= {name: float(counts[k]) for k, (name, _) in REGIONS.items() if name != "csf"}
    lesion = np.bincount(head.lesion.ravel(), minlength=max(LESION_LABELS) + 1) * ml
    volumes["lesion"] = float(lesion[1:].sum())
    volumes |= {f"lesion-{name}": float(lesion[k]) for k, name in LESION_LABELS.items()}
    return {name: round(value, 4) for name, value in volumes.items()}


def true_volumes(options: Options, number: int) -> dict[str, float]:
    """The volumes in ml of a subject's head at the first session, without making any scan.

    The head is seen upright on a grid of ``options.spacing_mm``, so they differ from a sitting's by how voxels fall.
    """
    who = person(options, number)
    maps = template(options.spacing_mm)
    own = traits(options, who, maps)
    moved = displacement(own, who.age, 0.0)
    step = options.spacing_mm
    shape = tuple(int(extent / step) for extent in EXTENT_MM)
    to_head = affine(np.eye(3) * step, np.asarray(ORIGIN_MM))
    return volumes_ml(see(own, maps, (shape[0], shape[1], shape[2]), to_head, moved, who.age, 0.0), step)
