"""Built in: the ICBM152 template laid over the scan, which is then classified into tissues, in any contrast (needs the extra ``atlas``).

Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 2011 (the template and its grey and white matter
maps, as nilearn ships them); Dosenbach et al., Prediction of individual brain maturity using fMRI, Science 2010 (the 160 centres that the
lobes are made of); Avants et al., Symmetric diffeomorphic image registration with cross-correlation, MedIA 2008 (dipy's implementation);
Ashburner & Friston, Unified segmentation, NeuroImage 2005 (tissue priors, mixture of Gaussians, bias field).

1. The scan is brought to a grid of ``spacing_mm`` (partial volume then is alike in all scans).
2. Pose: normalised mutual information with the template, over 360 starts, then seven, then twelve parameters (Powell). dipy's affine
   registration was tried in its place: it took 8 to 15 s a scan where this takes 2, and ended at a lower mutual information.
3. Deformation: dipy's symmetric diffeomorphic registration with local cross-correlation, which needs no agreement of contrasts.
4. Classification: expectation maximisation of a mixture of Gaussians (one for CSF, grey and white matter each, three for everything else) with
   the template's maps as priors, a polynomial bias field and a Markov random field. Volumes are sums of probabilities.
5. Regions: hemispheres are the template's halves; each voxel of the brain belongs to the lobe of the nearest of the 160 centres. **These lobes are
   rough**: their borders are half-way planes, not sulci. The brain stem is a box of the template.

``brain`` is the template's brain mask on the scan: everything within the brain's surface, the fluid of sulci and ventricles included. The
intracranial volume is that mask grown by the :data:`FLUID_MM` of fluid that is taken to lie around it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from scipy import ndimage

from ..core import nifti
from ..core.config import Config as Base
from ..core.errors import ConfigError, InputError, MissingDependency
from ..core.grids import canonical_grid, grid_of
from ..core.places import local
from ..core.records import Scan
from ..core.resampling import resample
from ..core.volume import Volume
from . import Anatomy, Candidate
from ._matching import candidate

VERSION = 1

TISSUES = ("csf", "grey", "white")

LOBES = {
    "frontal": ("vmPFC", "aPFC", "mPFC", "vFC", "dFC", "dlPFC", "vent aPFC", "vlPFC", "sup frontal", "vPFC", "frontal", "mFC", "pre-SMA", "SMA",
                "precentral gyrus", "ACC", "dACC"),
    "parietal": ("parietal", "post parietal", "sup parietal", "IPL", "IPS", "precuneus", "angular gyrus", "TPJ", "post cingulate"),
    "temporal": ("temporal", "inf temporal", "sup temporal", "fusiform"),
    "occipital": ("occipital", "post occipital"),
    "insula": ("ant insula", "mid insula", "post insula"),
    "deep": ("basal ganglia", "thalamus"),
    "cerebellum": ("lat cerebellum", "med cerebellum", "inf cerebellum"),
}  # fmt: skip
"""Region -> the names of the centres (Dosenbach 2010) that it is made of."""

STEM_BOX_MM = ((-16.0, 16.0), (-45.0, -8.0), (-75.0, -10.0))
"""The brain stem in the template's RAS+ millimetres."""

CENTRE_MM = np.array([0.0, -17.0, 10.0])
"""The middle of the template's brain, about which a pose turns."""

TOP_MM = 72.0
"""From the middle of the template's brain to a little above its top, where a head's skin is."""


FLUID_MM = 2.0
"""Taken to lie between the brain's surface and the inner skull."""


class Config(Base):
    """Resolution, effort, and when a registration has failed."""

    spacing_mm: float = Field(2.0, ge=1.0, le=4.0)
    """Of the grid that the scan is measured on."""
    iterations: tuple[int, ...] = (30, 20, 10)
    """Of the deformable registration, coarse to fine; each level halves the grid."""
    min_mutual_information: float = Field(1.08, ge=1, le=2)
    """Normalised, of the pose; below it the registration has failed (whole brains of seven contrasts: 1.09 to 1.17; upside down: 1.03)."""
    min_agreement: float = Field(0.03, ge=0, le=1)
    """Share of the uncertainty about the template's tissues that the scan's intensities take away; below it the registration has failed
    (T1w: 0.12 to 0.21, T2w: 0.04 to 0.09; maps that are shifted by 14 mm: 0.02)."""
    min_filled: float = Field(0.75, ge=0, le=1)
    """Share of the template's brain on the scan that is classified as brain; below it the registration has failed."""
    bias_degree: int = Field(3, ge=0, le=5)
    """Of the polynomial that corrects the intensities; 0 corrects nothing."""
    smoothness: float = Field(0.3, ge=0)
    """Weight of the six neighbours in the classification."""


@dataclass(frozen=True)
class Template:
    """The ICBM152 maps (x, y, z) float32 on one grid, and what they are divided into.

    Attributes:
        affine: voxel -> RAS+ mm of the template's space.
        t1: intensities in 0..1 inside the brain, 0 outside.
        grey, white, brain: probabilities.
        regions: int16; k + 1 in the region ``names[k]``.
        names: ``left frontal`` ... ``brain stem``.
    """

    affine: np.ndarray
    t1: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    brain: np.ndarray
    regions: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Registered:
    """The template's maps on a scan's grid.

    Attributes:
        grey, white, brain: (x, y, z) float32 probabilities.
        regions: (x, y, z) int16, as in :class:`Template`.
        affine: (4, 4) template mm -> scan mm, before the deformation.
        mutual_information: normalised, of pose; 1 where nothing is shared.
    """

    grey: np.ndarray
    white: np.ndarray
    brain: np.ndarray
    regions: np.ndarray
    affine: np.ndarray
    mutual_information: float


def find(scans: Sequence[Scan], files: Path | None, config: Config) -> list[Candidate]:
    """Every scan itself.

    Raises:
        MissingDependency: dipy is not installed.
        ConfigError: ``files`` was given: this source reads no tool's results.
    """
    if files is not None:
        raise ConfigError(
            "the source 'atlas' measures the scans themselves", got=f"--files {files}", next_step="leave --files out"
        )
    if util.find_spec("dipy") is None:
        raise MissingDependency("the source 'atlas' needs dipy", next_step="pip install 'neuroprior[atlas]'")
    return [candidate(scan, scan.path, inputs=(scan.path,)) for scan in scans]


def measure(candidate: Candidate, config: Config) -> Anatomy:
    """Register the template to a scan and classify its tissues.

    Raises:
        InputError: the scan cannot be read, or the registration failed.
    """
    assert candidate.path is not None
    with local(candidate.path) as here:
        volume, notes = nifti.read_scan(here)
    problems = nifti.check_voxels(volume)
    if problems:
        raise InputError("; ".join(problems), file=candidate.path)
    grid = canonical_grid(grid_of(volume), config.spacing_mm)
    values, affine = resample(volume, grid), np.array(grid.affine)
    registered = register(Volume(values, affine), config)
    agreement = _agreement(values, registered)
    quality = {"mutual_information": round(registered.mutual_information, 4), "agreement": round(agreement, 4)}
    if agreement < config.min_agreement:
        raise _failed(
            "the template's tissues are not found in the scan",
            candidate.path,
            f"an agreement of at least {config.min_agreement:g}",
            agreement,
        )
    tissues = classify(values, registered, config)
    ml = float(np.prod(grid.spacing_mm)) / 1000
    filled = float((tissues.sum(0) * registered.brain).sum() / registered.brain.sum())
    quality["filled"] = round(filled, 4)
    if filled < config.min_filled:
        raise _failed(
            "much of the template's brain holds no brain here", candidate.path, f"at least {config.min_filled:g} of it", filled
        )
    names = template().names
    volumes = {tissue: float(share.sum()) * ml for tissue, share in zip(TISSUES, tissues, strict=True)}
    volumes["brain"] = float(registered.brain.sum()) * ml
    beyond = ndimage.distance_transform_edt(registered.brain < 0.5, sampling=grid.spacing_mm)
    assert isinstance(beyond, np.ndarray)
    icv = float((beyond <= FLUID_MM + 0.01).sum()) * ml
    for tissue, share in zip(TISSUES[1:], tissues[1:], strict=True):
        sums = ndimage.sum_labels(share, registered.regions, range(1, len(names) + 1))
        volumes |= {f"{name} {tissue}": float(total) * ml for name, total in zip(names, sums, strict=True)}
    return Anatomy(volumes, icv, {"tool": "neuroprior atlas", "template": "ICBM152 2009a symmetric", **quality}, notes)


def _failed(why: str, path: str | None, expected: str, got: float) -> InputError:
    return InputError(
        f"failed registration: {why}", file=path, expected=expected, got=f"{got:.3g}",
        next_step="look at the scan: is it a whole brain, and is its header right?",
    )  # fmt: skip


@functools.cache
def template() -> Template:
    """The template at 2 mm, read once a process."""
    from nilearn import datasets

    images = [
        load(resolution=2)
        for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_brain_mask)
    ]  # fmt: skip
    affine = np.asarray(images[0].affine, dtype=np.float64)
    t1, grey, white, brain = (np.clip(np.asarray(image.get_fdata(), dtype=np.float32), 0, 1) for image in images)
    regions, names = _divide(brain > 0.5, affine)
    return Template(affine, t1 * brain, grey * brain, white * brain, brain, regions, names)


def _divide(brain: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The regions of the template: the nearest centre's lobe by hemisphere, and the brain stem."""
    from nilearn import datasets
    from scipy.spatial import cKDTree

    centres = datasets.fetch_coords_dosenbach_2010(ordered_regions=False)
    lobe_of = {name: lobe for lobe, members in LOBES.items() for name in members}
    lobes = [lobe_of[str(label).rsplit(" ", 1)[0]] for label in centres.labels]
    points = centres.rois[["x", "y", "z"]].to_numpy(dtype=np.float64)
    both = np.concatenate([points, points * (-1, 1, 1)])  # the template is symmetric, and so are its lobes
    places = np.argwhere(brain)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    _, nearest = cKDTree(both).query(world)
    names = (*(f"{side} {lobe}" for side in ("left", "right") for lobe in LOBES), "brain stem")
    index = {name: k + 1 for k, name in enumerate(names)}
    code = np.array([[index[f"{side} {lobe}"] for side in ("left", "right")] for lobe in lobes])
    labels = code[nearest % len(points), (world[:, 0] > 0).astype(int)]
    in_stem = np.all([(world[:, k] >= low) & (world[:, k] <= high) for k, (low, high) in enumerate(STEM_BOX_MM)], axis=0)
    labels[in_stem] = index["brain stem"]
    regions = np.zeros(brain.shape, dtype=np.int16)
    regions[tuple(places.T)] = labels
    return regions, names


# -------------------------------------------------------------------------------------------------------- registration


def register(volume: Volume, config: Config) -> Registered:
    """The template's maps on a scan's grid.

    Args:
        volume: a scan, head or brain alone, of any contrast.
        config: how much effort to take.

    Raises:
        InputError: the scan has no head that stands out of its background, or no pose of the template fits.
    """
    from dipy.align.imaffine import AffineMap
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    model = template()
    head, anchor = _head(volume)
    values = np.minimum(volume.voxels, np.percentile(volume.voxels[head], 99.5)).astype(np.float32)
    affine, shared = _pose(Volume(values, volume.affine), anchor)
    if shared < config.min_mutual_information:
        raise _failed("no pose fits", None, f"a mutual information of at least {config.min_mutual_information:g}", shared)
    grown = ndimage.gaussian_filter(ndimage.binary_dilation(model.brain > 0.5, iterations=2).astype(np.float32), 1)
    carrier = AffineMap(
        affine, domain_grid_shape=model.t1.shape, domain_grid2world=model.affine,
        codomain_grid_shape=values.shape, codomain_grid2world=volume.affine,
    )  # fmt: skip
    moving = values * np.asarray(carrier.transform_inverse(grown), dtype=np.float32)
    solver = SymmetricDiffeomorphicRegistration(CCMetric(3, sigma_diff=2.0, radius=3), level_iters=list(config.iterations))
    solver.verbosity = 0
    warp = solver.optimize(model.t1, moving, static_grid2world=model.affine, moving_grid2world=volume.affine, prealign=affine)
    grey, white, brain = (
        np.clip(np.asarray(warp.transform_inverse(part), dtype=np.float32), 0, 1)
        for part in (model.grey, model.white, model.brain)
    )
    regions = np.asarray(warp.transform_inverse(model.regions.astype(np.float32), interpolation="nearest")).astype(np.int16)
    return Registered(grey, white, brain, _spread(regions, brain), affine, shared)


def _spread(regions: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Regions grown by 6 mm or so beyond the brain's surface, so that classified voxels there have one."""
    wanted = ndimage.binary_dilation(brain > 0.5, iterations=3)
    nearest = ndimage.distance_transform_edt(regions == 0, return_distances=False, return_indices=True)
    return np.where(wanted, regions[tuple(nearest)], 0).astype(np.int16)


def _head(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Where the head is (bool), and the world point (mm) where the middle of its brain may be."""
    values = volume.voxels - min(float(volume.voxels.min()), 0.0)
    values = np.minimum(values, np.percentile(values, 99))
    if values.max() <= 0:
        raise InputError("failed registration: the scan is empty")
    head = ndimage.gaussian_filter(values, 1) > 0.5 * _between(values)
    parts = np.empty(head.shape, dtype=np.int32)
    if ndimage.label(head, output=parts) == 0:
        raise InputError("failed registration: no head stands out of the background")
    head = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    head = ndimage.binary_fill_holes(head)
    assert head is not None
    world = np.argwhere(head) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    top = np.percentile(world[:, 2], 99.9)
    upper = world[world[:, 2] > top - 110]  # without the neck
    front_back = np.percentile(upper[:, 1], (1, 99)).mean()
    return head, np.array([upper[:, 0].mean(), front_back, top - TOP_MM])


def _between(values: np.ndarray) -> float:
    """The threshold that parts a histogram into two classes of the largest distance (Otsu)."""
    counts, edges = np.histogram(values, 256)
    middle = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * middle)
    with np.errstate(all="ignore"):
        spread = (mass[-1] * below / below[-1] - mass) ** 2 / (below * (below[-1] - below))
    return float(middle[int(np.nanargmax(spread))])


class _MutualInformation:
    """Normalised mutual information of a scan and the template's surroundings, at points ``step_mm`` apart; lower is better."""

    BINS = 24

    def __init__(self, volume: Volume, step_mm: float) -> None:
        model = template()
        stride = max(1, round(step_mm / 2))
        around = ndimage.binary_dilation(model.brain > 0.5, iterations=4)[::stride, ::stride, ::stride]
        places = np.argwhere(around)
        self.points = places * stride @ model.affine[:3, :3].T + model.affine[:3, 3]
        theirs = ndimage.gaussian_filter(model.t1, 1.5)[::stride, ::stride, ::stride][tuple(places.T)]
        self.row = np.minimum(theirs / theirs.max() * self.BINS, self.BINS - 1).astype(int) * (self.BINS + 1)
        smooth = ndimage.gaussian_filter(volume.voxels, 1.5)
        low = min(float(smooth.min()), 0.0)
        top = float(np.percentile(smooth[smooth > np.percentile(smooth, 60)], 99)) if np.ptp(smooth) > 0 else 1.0
        self.values = np.clip((smooth - low) / (top - low) * self.BINS, 0, self.BINS - 0.01).astype(np.float32)
        self.to_voxel = np.linalg.inv(volume.affine)

    def __call__(self, affine: np.ndarray) -> float:
        matrix = self.to_voxel @ affine
        places = self.points @ matrix[:3, :3].T + matrix[:3, 3]
        values = ndimage.map_coordinates(self.values, places.T, order=1, mode="constant", cval=0.0, prefilter=False)
        column = values.astype(int)
        share = values - column
        size = self.BINS * (self.BINS + 1)
        joint = np.bincount(self.row + column, 1 - share, minlength=size) + np.bincount(
            self.row + column + 1, share, minlength=size
        )
        joint = joint.reshape(self.BINS, self.BINS + 1) / joint.sum()
        return -(_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / _entropy(joint)


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return -float((share * np.log(share)).sum())


STEPS = np.array([5, 5, 5, 5, 5, 5, 0.05, 0.05, 0.05, 0.03, 0.03, 0.03])
"""Of a pose's twelve numbers: shifts in mm, turns in degrees, logarithms of scales, shears."""


def _matrix(pose: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """(4, 4) template mm -> scan mm of a pose: seven numbers (one scale) or twelve."""
    from scipy.spatial.transform import Rotation

    linear = Rotation.from_euler("xyz", pose[3:6], degrees=True).as_matrix()
    linear = linear * np.exp(pose[6] if len(pose) == 7 else pose[6:9])
    if len(pose) == 12:
        shear = np.eye(3)
        shear[0, 1], shear[0, 2], shear[1, 2] = pose[9:]
        linear = linear @ shear
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = anchor + pose[:3] - linear @ CENTRE_MM
    return matrix


def _pose(volume: Volume, anchor: np.ndarray) -> tuple[np.ndarray, float]:
    """The affine template mm -> scan mm of the highest mutual information, and that."""
    from itertools import product

    coarse = _MutualInformation(volume, 8.0)
    starts = [
        np.array([0, y, z, pitch, roll, 0, scale])
        for pitch, roll, z, y, scale in product(
            (-30, -15, 0, 15, 30), (-15, 0, 15), (-30, -15, 0, 15), (-15, 0, 15), (-0.15, -0.05)
        )
    ]
    starts.sort(key=lambda pose: coarse(_matrix(pose, anchor)))
    refined = [_descend(coarse, pose, anchor, 4, 0.05) for pose in starts[:6]]
    seven, _ = min(refined, key=lambda pair: pair[1])
    fine = _MutualInformation(volume, 4.0)
    twelve, value = _descend(fine, np.r_[seven, seven[6], seven[6], 0, 0, 0], anchor, 6, 0.02)
    return _matrix(twelve, anchor), -value


def _descend(
    cost: Callable[[np.ndarray], float], pose: np.ndarray, anchor: np.ndarray, rounds: int, tolerance: float
) -> tuple[np.ndarray, float]:
    from scipy.optimize import minimize

    steps = STEPS[: len(pose)]
    found: Any = minimize(
        lambda scaled: cost(_matrix(scaled * steps, anchor)), pose / steps, method="Powell",
        options={"maxiter": rounds, "xtol": tolerance, "ftol": tolerance / 2000},
    )  # fmt: skip
    return found.x * steps, float(found.fun)


def _agreement(values: np.ndarray, registered: Registered) -> float:
    """The share of the entropy of the template's tissues inside the brain that the scan's intensity ranks take away, in [0, 1]."""
    inside = registered.brain > 0.5
    if inside.sum() < 1000:
        return 0.0
    bins = 32
    ranks = np.argsort(np.argsort(values[inside], kind="stable"), kind="stable") * bins // int(inside.sum())
    fluid = np.clip(registered.brain - registered.grey - registered.white, 0, 1)
    tissues = np.stack([part[inside] for part in (fluid, registered.grey, registered.white)])
    tissues /= tissues.sum(0) + 1e-9
    joint = np.stack([np.bincount(ranks, part, bins) for part in tissues])
    joint /= joint.sum()
    prior = _entropy(joint.sum(1))
    return (prior + _entropy(joint.sum(0)) - _entropy(joint)) / prior


# ------------------------------------------------------------------------------------------------------ classification


def classify(values: np.ndarray, registered: Registered, config: Config) -> np.ndarray:
    """Tissue probabilities by expectation maximisation.

    Args:
        values: (x, y, z) intensities of any scale.
        registered: the template's maps on the same grid.
        config: degree of the bias field, weight of the neighbours.

    Returns:
        (3, x, y, z) float32 probabilities of CSF, grey and white matter; what remains to 1 is no brain.
    """
    others, rounds = 3, 30
    fluid = np.clip(registered.brain - registered.grey - registered.white, 0, 1)
    maps = [ndimage.gaussian_filter(part, 2.0) for part in (fluid, registered.grey, registered.white, 1 - registered.brain)]
    domain = ndimage.binary_dilation(registered.brain > 0.5, iterations=4)
    assert domain is not None
    prior = np.clip(np.stack([part[domain] for part in maps]), 1e-3, None).astype(np.float64)
    prior /= prior.sum(0)
    measured = values[domain].astype(np.float64)
    basis = _polynomials(np.argwhere(domain), config.bias_degree)
    flat = measured
    spread = measured.std()
    outside = measured[prior[3] > 0.5]
    means = np.array(
        [np.average(flat, weights=prior[k]) for k in range(3)] + [np.quantile(outside, q) for q in np.linspace(0.1, 0.9, others)]
    )
    variances = np.array(
        [np.average((flat - means[k]) ** 2, weights=np.where(prior[k] > 0.5, prior[k], 1e-9)) for k in range(3)]
        + [(spread / 3) ** 2] * others
    )
    weights = np.array([1.0, 1.0, 1.0] + [1 / others] * others)
    place = np.zeros(values.shape)
    shares = prior
    for step in range(rounds):
        classes = [min(k, 3) for k in range(3 + others)]
        logs = (
            np.log(prior[classes])
            - (flat - means[:, None]) ** 2 / (2 * variances[:, None])
            + np.log(weights / np.sqrt(variances))[:, None]
        )
        if step > 5 and config.smoothness > 0:
            logs += config.smoothness * _neighbours(shares, domain, place)[classes]
        logs -= logs.max(0)
        likely = np.exp(logs)
        likely /= likely.sum(0)
        shares = np.concatenate([likely[:3], likely[3:].sum(0, keepdims=True)])
        totals = likely.sum(1) + 1e-9
        means = likely @ flat / totals
        variances = np.maximum(
            np.array([part @ (flat - mean) ** 2 for part, mean in zip(likely, means, strict=True)]) / totals, (0.02 * spread) ** 2
        )
        weights[3:] = totals[3:] / totals[3:].sum()
        if basis.shape[1] and step > 2:
            flat = measured / _bias(measured, basis, likely[:3], means[:3], variances[:3])
    out = np.zeros((3, *values.shape), dtype=np.float32)
    out[:, domain] = shares[:3]
    return out


def _polynomials(places: np.ndarray, degree: int) -> np.ndarray:
    """(n, terms) of the polynomials of 1..degree in voxel coordinates scaled to -1..1."""
    unit = (places - places.mean(0)) / (np.ptp(places, axis=0) / 2)
    terms = [
        unit[:, 0] ** i * unit[:, 1] ** j * unit[:, 2] ** k
        for i in range(degree + 1)
        for j in range(degree + 1 - i)
        for k in range(degree + 1 - i - j)
        if i + j + k
    ]
    return np.stack(terms, axis=1) if terms else np.zeros((len(places), 0))


def _bias(measured: np.ndarray, basis: np.ndarray, likely: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """The smooth factor on the intensities by weighted least squares on every fourth brain voxel, clipped to 0.3 .. 3."""
    precision = likely / variances[:, None]
    total = precision.sum(0) + 1e-12
    expected = (precision * means[:, None]).sum(0) / total
    root = np.sqrt(total * (likely.sum(0) > 0.5))
    some = slice(None, None, 4)
    left = basis[some] * (expected * root)[some, None]
    solved = np.linalg.lstsq(left, ((measured - expected) * root)[some], rcond=None)[0]
    return np.clip(1 + basis @ solved, 0.3, 3.0)


_SIX = ndimage.generate_binary_structure(3, 1).astype(np.float64)
_SIX[1, 1, 1] = 0


def _neighbours(shares: np.ndarray, domain: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(4, n) sums of the six neighbours' probabilities; beyond the domain nothing is brain."""
    sums = np.empty_like(shares)
    for k, part in enumerate(shares):
        place[:] = 1.0 if k == 3 else 0.0
        place[domain] = part
        sums[k] = ndimage.convolve(place, _SIX, mode="nearest")[domain]
    return sums
