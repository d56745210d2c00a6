"""What can be known of a scan without looking at the brain: the features that shortcuts are made of.

From the index alone: order, name, header, which scans there are, shape, spacing, field of view, position, site, acquisition,
when files were written, their size. From the voxels of a sample: the air around the head, stripping, units, the stored header, the head's outline.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import nifti
from ..core.errors import ArtifactError, InputError
from ..core.headmask import head_mask
from ..core.places import local
from ..core.records import Scan
from ..engine import jobs, pools
from ..engine.pools import Where
from ._permutation import basis, standardised

logger = logging.getLogger(__name__)

LEVELS = 24
"""Most frequent values of a category that get an indicator of their own."""
GRAMS = 64
"""Pieces of names that are looked at."""
SKULL_ML = 2200.0
"""A head of more millilitres than this has a skull around its brain."""
TIMES = (
    "acq_time",
    "acquisition_time",
    "acquisition_date",
    "acq_date",
    "scan_date",
    "scan_time",
    "date",
    "StudyDate",
    "AcquisitionTime",
    "acquisition_year",
)

Table = Callable[[Sequence[Scan], Sequence[str], frozenset[str]], np.ndarray]


# ---------------------------------------------------------------------------------------------------------------------
# From scans to subjects


def per_subject(values: np.ndarray, place: np.ndarray, n: int) -> np.ndarray:
    """(n, k) mean of each subject's scans, missing values left out; NaN where all are missing."""
    there = np.isfinite(values)
    total, size = np.zeros((n, values.shape[1])), np.zeros((n, values.shape[1]))
    np.add.at(total, place, np.where(there, values, 0))
    np.add.at(size, place, there)
    return np.where(size > 0, total / np.maximum(size, 1), np.nan)


def _within_contrast(values: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
    """Each scan's values less the median over the scans of its contrast, so that which contrasts a subject has does not matter."""
    made = values.astype(float)
    for contrast in np.unique(contrasts):
        rows = contrasts == contrast
        there = np.isfinite(made[rows]).any(axis=0)
        middle = np.zeros(made.shape[1])
        middle[there] = np.nanmedian(made[rows][:, there], axis=0)
        made[rows] -= middle
    return made


def _places(scans: Sequence[Scan], subjects: Sequence[str]) -> np.ndarray:
    where = {name: k for k, name in enumerate(subjects)}
    return np.array([where[scan.subject] for scan in scans])


def _numeric(rows: Sequence[Sequence[float]], scans: Sequence[Scan], subjects: Sequence[str]) -> np.ndarray:
    values = np.round(np.array(rows, dtype=float), 4)
    values = _within_contrast(values, np.array([scan.contrast for scan in scans]))
    return basis(np.round(per_subject(values, _places(scans, subjects), len(subjects)), 6))


def _categories(columns: Sequence[Sequence[str]], scans: Sequence[Scan], subjects: Sequence[str]) -> np.ndarray:
    """Indicators of the frequent levels of each category, less their share in the scan's contrast, averaged over a subject."""
    contrasts = np.array([scan.contrast for scan in scans])
    place = _places(scans, subjects)
    made = []
    for column in columns:
        values = np.array(column, dtype=object).astype(str)
        for level, count in Counter(values.tolist()).most_common(LEVELS):
            if count == len(values):
                continue
            shown = (values == level).astype(float)
            for contrast in np.unique(contrasts):
                shown[contrasts == contrast] -= shown[contrasts == contrast].mean()
            made.append(per_subject(shown[:, None], place, len(subjects))[:, 0])
    if not made:
        return np.empty((len(subjects), 0))
    return standardised(np.round(np.stack(made, axis=1), 9))


def _beside(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# From the index alone. Every function: rows of the index in its order, the subjects, the columns that must not be used.


def order(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Where a subject's first scan stands in the index, and whether at an odd or an even place."""
    first: dict[str, int] = {}
    for number, scan in enumerate(scans):
        first.setdefault(scan.subject, number)
    rank = {name: k for k, name in enumerate(sorted(first, key=lambda name: first[name]))}
    place = np.array([float(rank[name]) for name in subjects])
    return basis(np.stack([place, place % 2], axis=1))


def name(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Pieces of one to three characters of file names, folders and subject names; the numbers in them; their length."""
    texts: dict[str, set[str]] = {subject: set() for subject in subjects}
    depth = _common_depth([scan.path for scan in scans])
    for scan in scans:
        parts = Path(scan.path).parts[depth:]
        texts[scan.subject].update(part.replace(scan.contrast_raw, "") if scan.contrast_raw else part for part in parts)
        texts[scan.subject].add(scan.subject.rsplit("/", 1)[-1])
    whole = ["|".join(sorted(texts[subject])) for subject in subjects]
    numbers = [
        [float(digits[:15]) if (digits := "".join(re.findall(r"\d+", s.rsplit("/", 1)[-1]))) else np.nan, float(len(s))]
        for s in subjects
    ]
    found = Counter(gram for text in whole for gram in _grams(text))
    useful = [gram for gram, n in found.most_common(20 * GRAMS) if 2 <= n <= len(subjects) - 2]
    # pieces that stand in the same subjects say the same: one of each is kept
    columns: dict[bytes, np.ndarray] = {}
    for gram in useful:
        shown = np.array([gram in text for text in whole])
        columns.setdefault(shown.tobytes(), shown)
        if len(columns) == GRAMS:
            break
    shown = np.stack(list(columns.values()), axis=1).astype(float) if columns else np.empty((len(subjects), 0))
    return _beside(standardised(shown), basis(np.array(numbers, dtype=float)))


def _grams(text: str) -> set[str]:
    return {text[k : k + n] for n in (1, 2, 3) for k in range(len(text) - n + 1)}


def _common_depth(paths: Sequence[str]) -> int:
    """How many leading folders all paths share."""
    first, *others = {Path(path).parent.parts for path in paths}
    depth = len(first)
    for parts in others:
        while first[:depth] != parts[:depth]:
            depth -= 1
    return depth


def header(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Stored type, axis order, repairs, spelling of the contrast, file suffix: not the geometry."""
    reasons = ["; ".join(sorted(re.sub(r"[\d.e+-]+", "#", reason) for reason in scan.reasons)) for scan in scans]
    suffixes = ["".join(Path(scan.path).suffixes[-2:]) for scan in scans]
    columns: list[list[str]] = [
        [str(scan.dtype) for scan in scans], [str(scan.orientation) for scan in scans], reasons, suffixes,
        [scan.contrast_raw for scan in scans],
    ]  # fmt: skip
    return _categories(
        [c for c, key in zip(columns, ("dtype", "orientation", "reasons", "", "contrast_raw")) if key not in without],
        scans,
        subjects,
    )


def scans_there(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Which contrasts a subject has, how many scans and sessions, and whether a mask or a label lies beside them."""
    contrasts = [c for c, _ in Counter(scan.contrast for scan in scans).most_common(LEVELS)]
    place = _places(scans, subjects)
    found = np.zeros((len(subjects), len(contrasts) + 3))
    sessions: list[set[str]] = [set() for _ in subjects]
    for k, scan in zip(place, scans, strict=True):
        found[k, contrasts.index(scan.contrast) if scan.contrast in contrasts else -3] = 1
        found[k, -2] += 1
        found[k, -1] = max(found[k, -1], float(scan.brain_mask is not None))
        sessions[k].add(scan.session)
    return basis(np.concatenate([found, [[len(s)] for s in sessions]], axis=1))


def shape(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Voxels along each stored axis."""
    return _numeric([(scan.shape or (np.nan,) * 3)[:3] for scan in scans], scans, subjects)


def spacing(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Millimetres between voxels along each stored axis."""
    return _numeric([(scan.spacing_mm or (np.nan,) * 3)[:3] for scan in scans], scans, subjects)


def fov(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Millimetres seen to the right, front and top."""
    rows = []
    for scan in scans:
        if scan.affine is None or scan.shape is None:
            rows.append((np.nan,) * 3)
            continue
        linear = np.abs(np.array(scan.affine, dtype=float).reshape(4, 4)[:3, :3])
        size = np.array(scan.shape[:3]) * np.linalg.norm(linear, axis=0)
        along = linear.argmax(axis=0)
        rows.append(tuple(size[np.argsort(along, kind="stable")]))
    return _numeric(rows, scans, subjects)


def position(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Where the field of view's centre lies in the scanner, in mm, and how far its axes are turned, in degrees."""
    rows = []
    for scan in scans:
        if scan.affine is None or scan.shape is None:
            rows.append((np.nan,) * 4)
            continue
        affine = np.array(scan.affine, dtype=float).reshape(4, 4)
        centre = affine @ np.append((np.array(scan.shape[:3]) - 1) / 2, 1)
        unit = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-9)
        turned = math.degrees(math.acos(min(1.0, float(np.abs(unit).max(axis=0).min()))))
        rows.append((*centre[:3], turned))
    return _numeric(np.round(np.array(rows), 1).tolist(), scans, subjects)


def site(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Dataset, site, scanner, and the columns that name a maker, a model or a field strength."""
    names = ["dataset", "site", "scanner"]
    names += sorted(
        {
            k
            for scan in scans[:2000]
            for k in scan.columns
            if re.search(r"scanner|manufactur|vendor|field_?strength|institution|center|centre", k, re.I)
        }
    )
    return _categories([[str(scan.value(key)) for scan in scans] for key in names if key not in without], scans, subjects)


def acquisition(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """When it was scanned, by a column that says so."""
    import pandas as pd

    columns: list[list[float]] = []
    for key in TIMES:
        texts = [scan.value(key) for scan in scans]
        if key in without or all(text is None for text in texts):
            continue
        when = pd.to_datetime(
            pd.Series([None if t is None else str(t) for t in texts]), errors="coerce", format="mixed", utc=True
        )
        columns.append(np.where(when.isna(), np.nan, when.astype("int64") / 1e9).tolist())
    if not columns:
        return np.empty((len(subjects), 0))
    return basis(per_subject(np.array(columns, dtype=float).T, _places(scans, subjects), len(subjects)))


def file_time(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """When the file was written."""
    values = np.array([[float(scan.mtime_ns) / 1e9 if scan.mtime_ns else np.nan] for scan in scans])
    return basis(per_subject(values, _places(scans, subjects), len(subjects)))


def file_size(scans: Sequence[Scan], subjects: Sequence[str], without: frozenset[str]) -> np.ndarray:
    """Bytes a voxel: how well the scan compresses."""
    rows = [(scan.size_bytes / np.prod(scan.shape),) if scan.size_bytes and scan.shape else (np.nan,) for scan in scans]
    return _numeric(rows, scans, subjects)


FROM_INDEX: dict[str, Table] = {
    "order": order, "name": name, "header": header, "scans": scans_there, "shape": shape, "spacing": spacing, "fov": fov,
    "position": position, "site": site, "acquisition": acquisition, "file_time": file_time, "file_size": file_size,
}  # fmt: skip
"""The probes that read no voxel."""


# ---------------------------------------------------------------------------------------------------------------------
# From voxels


def facts(path: str) -> dict[str, list[float | str]] | None:
    """What one scan's voxels say beside the brain; None where it cannot be read.

    Returns:
        probe -> numbers (NaN where there is no air or no head) or, for ``stored``, texts.
    """
    import nibabel

    try:
        with local(path) as here:
            volume, _ = nifti.read_scan(here, nonfinite="zero")
            raw = nibabel.loadsave.load(here).header
    except (InputError, ArtifactError, OSError):
        return None
    voxels = volume.voxels
    mask = head_mask(voxels, volume.spacing_mm)
    made: dict[str, list[float | str]] = {
        "background": _air(voxels, mask, volume.spacing_mm), "skull": _stripping(voxels, mask, volume.spacing_mm),
        "intensity": _units(voxels, mask), "outline": _outline(mask, volume.affine),
    }  # fmt: skip
    keys = (
        "qform_code",
        "sform_code",
        "xyzt_units",
        "intent_code",
        "descrip",
        "aux_file",
        "cal_max",
        "vox_offset",
        "sizeof_hdr",
        "scl_slope",
        "toffset",
    )
    made["stored"] = [str(np.asarray(raw[key]).item() if key in raw else "") for key in keys]
    return made


def _air(voxels: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...]) -> list[float | str]:
    """Noise of the air well outside the head: mean, deviation and quantiles, as logarithms, alone and over the head's brightness."""
    from scipy import ndimage

    # every second or third voxel of a fine grid: noise needs no more, and the distance takes long
    steps = tuple(slice(None, None, max(1, int(3.0 / mm))) for mm in spacing)
    seen, head_there = voxels[steps], mask[steps]
    sampling = [mm * (part.step or 1) for mm, part in zip(spacing, steps, strict=True)]
    away = np.ones(seen.shape, dtype=bool)
    if head_there.any():
        away = np.asarray(ndimage.distance_transform_edt(~head_there, sampling=sampling)) > 10.0
    air = seen[away]
    if air.size < 500:
        return [np.nan] * 8
    head = float(np.median(voxels[mask])) if mask.any() else 1.0
    spread, middle = float(air.std()), float(np.abs(air).mean())
    tops = np.quantile(np.abs(air), [0.5, 0.95])
    small = 1e-4 * max(abs(head), 1e-6)
    return [
        float(np.log(spread + small)), float(np.log(middle + small)), float(np.log(spread + small) - np.log(abs(head) + small)),
        float(np.log(middle + small) - np.log(abs(head) + small)), *(float(np.log(t + small) - np.log(abs(head) + small)) for t in tops),
        float(np.log(tops[1] + small) - np.log(tops[0] + small)), float(np.mean(air == air.flat[0]) > 0.5),
    ]  # fmt: skip


def _stripping(voxels: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...]) -> list[float | str]:
    """Coarse on purpose, so that the size of a brain does not show: is there a skull, is the air one value?"""
    volume = float(mask.sum() * np.prod(spacing) / 1000)
    return [float(volume > SKULL_ML), float(np.mean(voxels == voxels.flat[0]) > 0.2)]


def _units(voxels: np.ndarray, mask: np.ndarray) -> list[float | str]:
    """Coarse on purpose: order of magnitude to half a decade, sign, whole numbers, z-scores."""
    inside = voxels[mask] if mask.any() else voxels.ravel()
    top = float(np.percentile(np.abs(inside), 99))
    return [
        round(2 * float(np.log10(top + 1e-9))) / 2, float((voxels < 0).mean() > 0.001), float(np.array_equal(voxels, np.rint(voxels))),
        float(abs(float(inside.mean())) < 0.3 * float(inside.std())),
    ]  # fmt: skip


def _outline(mask: np.ndarray, affine: np.ndarray) -> list[float | str]:
    """The head's box, volume and place in the field of view, in mm to the right, front and top."""
    if not mask.any():
        return [np.nan] * 7
    linear = affine[:3, :3]
    size = np.linalg.norm(linear, axis=0)
    along = np.argsort(np.abs(linear).argmax(axis=0), kind="stable")
    box, place = [], []
    for axis in range(3):
        profile = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        hit = np.flatnonzero(profile)
        box.append(float((hit[-1] - hit[0] + 1) * size[axis]))
        place.append(
            float(
                ((profile * np.arange(len(profile))).sum() / profile.sum() - (len(profile) - 1) / 2)
                * size[axis]
                * np.sign(linear[np.abs(linear[:, axis]).argmax(), axis])
            )
        )
    return [*(box[k] for k in along), *(place[k] for k in along), float(mask.sum() * np.prod(size) / 1000)]


FROM_VOXELS = ("background", "skull", "intensity", "stored", "outline")
"""The probes that read voxels."""


def measure(paths: Sequence[str], *, workers: int = 1, progress: bool = True) -> list[dict[str, list[float | str]] | None]:
    """:func:`facts` of many files, in their order; None too for one that killed its worker, which is told."""
    from rich.progress import track

    bar: dict[str, Any] = {"description": "voxel probes", "total": len(paths), "disable": not progress or len(paths) < 20}
    pool, budget = pools.pool(facts, Where(workers if len(paths) >= 20 else 1))
    found: dict[str, dict[str, list[float | str]] | None] = {}
    for outcome in track(jobs.run(pool, (jobs.Job(path, (path,)) for path in dict.fromkeys(paths)), budget), **bar):
        if outcome.error is not None:
            logger.warning("%s: %s", outcome.name, outcome.error)
        found[outcome.name] = outcome.value
    return [found[path] for path in paths]


def voxel_features(probe: str, found: Sequence[dict[str, list[float | str]]]) -> np.ndarray:
    """(n, d) features of a voxel probe for one scan a subject."""
    rows = [one[probe] for one in found]
    if probe != "stored":
        return basis(np.round(np.array(rows, dtype=float), 4))
    made = []
    for column in np.array(rows, dtype=str).T:
        for level, count in Counter(column.tolist()).most_common(LEVELS):
            if count < len(column):
                made.append((column == level).astype(float))
    return standardised(np.stack(made, axis=1)) if made else np.empty((len(rows), 0))
