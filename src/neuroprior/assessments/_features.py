"""What the assessments look at: boxes of a store's scans, and the frozen features that nets and trivial rows make of them.

The default view is free of outline: one box size for every scan, small enough to lie inside the head, about the centre of the
session's head, shifted by a draw of its own for each scan. Where a head ends says who it is; such a box cannot see it, and the
contrasts of a session do not lie voxel on voxel in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..core import seeds
from ..core.config import Config
from ..core.conforming import denormalise
from ..core.errors import ConfigError, InputError, LeakageError
from ..core.headmask import head_mask
from ..data.cases import box_slices, crop
from ..data.store import SessionView, Store

IMAGE = "image"
"""The ``half`` of the trivial rows that look at voxels."""
CLASSES = ("contrast", "scanner", "sex", "health")
"""Classes that are read from the features where the scans have them."""


class ViewConfig(Config):
    """What of each scan is seen."""

    outline_free: bool = True
    """A box inside the head, without any background; otherwise the whole volume."""
    misalignment_mm: float = Field(default=2.5, ge=0)
    """Largest shift of a scan's box along each axis, drawn uniformly and independently for every scan."""
    box: tuple[int, int, int] | None = None
    """Voxels of the box; by default the largest inside the head, of the head's proportions (or the largest volume's shape)."""
    margin_mm: float = Field(default=10.0, ge=0)
    """How far inside the head's surface the chosen box stays: about scalp and skull."""
    contrasts: tuple[str, ...] | None = None
    """Only these contrasts; all by default."""
    grid: int = Field(default=2, ge=1)
    """Blocks along each axis of the spatial features."""
    cells: int = Field(default=4, ge=1)
    """Cells along each axis in which lesions are looked for."""
    raw: int = Field(default=10, ge=1)
    """Blocks along each axis to which the trivial rows reduce the voxels."""
    smooth_mm: float = Field(default=3.0, ge=0)
    """Standard deviation of the smoothing before the trivial lesion detector takes a cell's largest and smallest value."""
    lesion_ml: float = Field(default=0.3, ge=0)
    """A cell with at least this much of a lesion holds one; a cell with less, but some, is not counted."""
    lesion: str = "lesion"
    """The store's label that marks lesions."""
    stages: bool = False
    """Whether the encoder's stages, concatenated, are assessed beside the halves."""
    batch: int = Field(default=16, ge=1)
    """Boxes encoded at once."""
    cache_mb: float = Field(default=1500, ge=0)
    """Memory for boxes that several nets look at; beyond it they are read again."""
    seed: int = 0
    """Of the shifts and of the untrained weights."""


@dataclass(frozen=True)
class Scans:
    """Who and what each of N scans is; the rows of every feature array.

    Attributes:
        cases: (N,) unique names.
        subjects, sessions, contrasts: (N,) names; a session's name is unique over subjects.
        fit: (N,) bool, whether the scan is for fitting probes; the others are for evaluation.
        scanners: (N,) names, an empty string where not known.
        times: (N,) what tells a subject's time points apart (age, or the session's name).
        classes: name -> (N,) text, an empty string where not known.
        numbers: name -> (N,) or (N, q) float, NaN where not known.
        lesions: (N, cells) float: 1 where a cell holds a lesion, 0 where not, NaN where not known, not
            clear, or mostly outside the head.
    """

    cases: np.ndarray
    subjects: np.ndarray
    sessions: np.ndarray
    contrasts: np.ndarray
    fit: np.ndarray
    scanners: np.ndarray
    times: np.ndarray
    classes: Mapping[str, np.ndarray] = field(default_factory=dict)
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    lesions: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.cases)
        named = {name: getattr(self, name) for name in ("subjects", "sessions", "contrasts", "fit", "scanners", "times")}
        for name, values in {**named, **self.classes, **self.numbers}.items():
            if len(values) != n:
                raise InputError(f"{name} does not fit the scans", expected=f"{n} values", got=len(values))
        both = sorted(set(self.subjects[self.fit]) & set(self.subjects[~self.fit]))
        if both:
            raise LeakageError(
                f"{len(both)} subjects are both fitted on and evaluated", got=", ".join(map(str, both[:5])),
                next_step="give splits that are disjoint by subject",
            )  # fmt: skip
        if self.fit.all():
            raise InputError(
                "there is no scan to evaluate on", expected="scans that are not fitted on", got=f"{n} of {n} fitted on"
            )

    @classmethod
    def of(
        cls, subjects: Sequence[str], contrasts: Sequence[str], fit: Sequence[bool], *, sessions: Sequence[str] | None = None,
        scanners: Sequence[str] | None = None, times: Sequence[Any] | None = None,
        classes: Mapping[str, Sequence[Any]] | None = None, numbers: Mapping[str, Any] | None = None, lesions: Any = None,
    ) -> Scans:  # fmt: skip
        """The record from plain lists; ``contrast`` and ``scanner`` are added to the classes.

        Args:
            subjects, contrasts: (N,) names.
            fit: (N,) whether a scan is for fitting.
            sessions: (N,) names; by default one session for each subject, scanner and time.
            scanners: (N,) names; by default not known.
            times: (N,) anything that tells time points apart; by default there is one.
            classes: further classes; None or an empty string is not known.
            numbers: (N,) or (N, q) further numbers; NaN is not known.
            lesions: (N, cells), see the class.

        Raises:
            InputError: the lengths differ, or nothing is left to evaluate on.
            LeakageError: a subject is both fitted on and evaluated.
        """
        n = len(subjects)
        machine = _text(scanners if scanners is not None else [""] * n)
        time = _text(times if times is not None else [""] * n)
        who, what = _text(subjects), _text(contrasts)
        if not len(who) == len(what) == len(machine) == len(time) == len(fit):
            raise InputError("the lists of scans differ in length", got=[len(x) for x in (who, what, fit, machine, time)])
        names = sessions if sessions is not None else ["/".join(parts) for parts in zip(who, machine, time, strict=True)]
        session = _text(names)
        known = {"contrast": what, "scanner": machine} | {name: _text(values) for name, values in (classes or {}).items()}
        return cls(
            _text([f"{s}:{c}" for s, c in zip(session, what, strict=True)]), who, session, what, np.asarray(fit, dtype=bool), machine,
            time, known, {name: np.asarray(values, dtype=float) for name, values in (numbers or {}).items()},
            None if lesions is None else np.asarray(lesions, dtype=float),
        )  # fmt: skip


@dataclass(frozen=True)
class Features:
    """What one half of one model says of N scans.

    Attributes:
        model: the row's name.
        half: ``anatomy``, ``contrast``, ``stages`` or ``image``.
        pooled: (N, D) means over the box.
        spatial: (N, D') means over a coarse grid, flattened.
        cells: (N, cells, C) of each cell, or None.
        sampled: (N, P) values at fixed places of the half's own map, or None.
        posterior_variance: (N,) mean posterior variance at the same places, or None where the half has none.
        reason: why there is nothing, when there is nothing.
    """

    model: str
    half: str
    pooled: np.ndarray | None = None
    spatial: np.ndarray | None = None
    cells: np.ndarray | None = None
    sampled: np.ndarray | None = None
    posterior_variance: np.ndarray | None = None
    reason: str = ""


def _text(values: Sequence[Any]) -> np.ndarray:
    return np.array(["" if v is None or v != v else str(v) for v in values], dtype=object)


# ------------------------------------------------------------------------------------------------------------ boxes of scans


@dataclass(frozen=True)
class View:
    """A scan's box: ``image`` (x, y, z) float32, ``head`` bool, ``lesion`` bool or None where the session has no such label."""

    image: np.ndarray
    head: np.ndarray
    lesion: np.ndarray | None


class Views:
    """The boxes of a store's scans, read when asked for; a function of the store, the settings and the seed.

    Args:
        store: the store.
        fit: names of the splits that probes are fitted on; sessions with no split count as ``train``.
        evaluate: names of the splits that are evaluated.
        config: what is seen.

    Attributes:
        rows: (session, contrast) of each scan: those for fitting first, then by session.
        fit: (N,) bool.
        box: voxels of every box.
        spacing_mm: of the voxels.

    Raises:
        InputError: there is no scan in one of the splits, the spacings differ, or no box lies inside the heads.
        LeakageError: a split is on both sides.
    """

    def __init__(self, store: Store, fit: Sequence[str], evaluate: Sequence[str], config: ViewConfig) -> None:
        self.store, self.config = store, config
        both = sorted(set(fit) & set(evaluate))
        if both:
            raise LeakageError(
                f"probes cannot be fitted and evaluated on the same split {', '.join(both)}", file=store.path,
                next_step="name two splits; neuroprior index --split divides by subject",
            )  # fmt: skip
        self.rows: list[tuple[SessionView, str]] = []
        places = []
        for names in (fit, evaluate):
            before = len(self.rows)
            for session in store.sessions:
                if (session.split or "train") in names:
                    wanted = [n for n in sorted(session.scans) if config.contrasts is None or n in config.contrasts]
                    self.rows += [(session, name) for name in wanted if "." not in name]  # a second scan is no second contrast
            if len(self.rows) == before:
                raise InputError(
                    f"no session of split {' or '.join(names)} has a scan to look at", file=store.path,
                    expected="splits " + ", ".join(sorted({s.split or "train" for s in store.sessions})),
                    got=f"contrasts {', '.join(config.contrasts or ('all',))}",
                )  # fmt: skip
            places += [names is fit] * (len(self.rows) - before)
        self.fit = np.array(places)
        spacings = {tuple(np.round(np.linalg.norm(session.affine[:3, :3], axis=0), 3).tolist()) for session, _ in self.rows}
        if len(spacings) != 1:
            raise InputError(
                "the sessions differ in voxel spacing", file=store.path, expected="one spacing", got=sorted(spacings)[:3],
                next_step="prepare the index with --spacing in mm",
            )  # fmt: skip
        a, b, c = next(iter(spacings))
        self.spacing_mm = (float(a), float(b), float(c))
        self._centres: dict[str, np.ndarray] = {}
        self._heads: dict[tuple[str, str], tuple[np.ndarray, tuple[int, ...]]] = {}
        self._cache: dict[tuple[int, bool], View] = {}
        self._held = 0.0
        self.box = config.box or (self._inside() if config.outline_free else self._largest())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> View:
        """The scan's box, shifted by its own draw."""
        return self._view(row, shifted=True)

    def aligned(self, row: int) -> View:
        """The scan's box without the shift: the contrasts of a session lie on one another."""
        return self._view(row, shifted=False)

    def batches(self, rows: Sequence[int] | None = None) -> Iterator[tuple[np.ndarray, list[View]]]:
        """Row numbers and boxes, ``config.batch`` at a time."""
        every = np.arange(len(self)) if rows is None else np.asarray(rows)
        for first in range(0, len(every), self.config.batch):
            here = every[first : first + self.config.batch]
            yield here, [self[int(row)] for row in here]

    def _view(self, row: int, shifted: bool) -> View:
        if (row, shifted) in self._cache:
            return self._cache[row, shifted]
        session, name = self.rows[row]
        draw = seeds.generator(self.config.seed, "misalignment", session.key, name)
        shift = draw.uniform(-1, 1, 3) * self.config.misalignment_mm / np.array(self.spacing_mm) * shifted
        first = self._centre(session) - np.array(self.box) / 2 + shift
        if not shifted:
            first = np.round(first)
        start = np.floor(first).astype(int)
        part = first - start
        size = [n + 1 for n in self.box]
        image, head = self._whole(session, name)
        boxes = [crop(image, start, size), crop(head.astype(np.float32), start, size)]
        if self.config.lesion in session.labels:
            box, offset = box_slices(start, size, session.shape)
            lesion = self.store.read_label(session.key, self.config.lesion, box) > 0
            boxes.append(crop(lesion.astype(np.float32), offset, size))
        moved = [_shift(array, part) for array in boxes]
        view = View(moved[0].astype(np.float32), moved[1] >= 0.5, moved[2] >= 0.5 if len(moved) > 2 else None)
        needed = view.image.nbytes * 1.5 / 1e6
        if self._held + needed <= self.config.cache_mb:
            self._cache[row, shifted] = view
            self._held += needed
        return view

    def _whole(self, session: SessionView, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The conformed volume, and where its head is."""
        image = self.store.read(session.key, name)
        if (session.key, name) not in self._heads:
            native = denormalise(image, self.store.conformed(session.key, name))
            native[image == 0] = 0  # outside the field of view
            self._heads[session.key, name] = np.packbits(head_mask(native, self.spacing_mm) & (image != 0)), image.shape
        bits, shape = self._heads[session.key, name]
        return image, np.unpackbits(bits, count=image.size).reshape(shape).astype(bool)

    def _centre(self, session: SessionView) -> np.ndarray:
        """The middle of the session's box: of the volume, or of the head in its reference scan when only the inside is seen."""
        if not self.config.outline_free:
            return np.array(session.shape) / 2
        if session.key not in self._centres:
            name = session.reference if session.reference in session.scans else sorted(session.scans)[0]
            head = self._whole(session, name)[1]
            self._centres[session.key] = (
                np.array([float(np.average(np.arange(n) + 0.5, weights=head.sum(_others(axis)))) for axis, n in enumerate(head.shape)])
                if head.any() else np.array(session.shape) / 2
            )  # fmt: skip
        return self._centres[session.key]

    def _largest(self) -> tuple[int, int, int]:
        x, y, z = np.max([session.shape for session, _ in self.rows], axis=0)
        return int(x), int(y), int(z)

    def _inside(self) -> tuple[int, int, int]:
        """The largest box, of the heads' proportions, of which 95 % is deep in the head in 95 % of the scans, wherever the
        shift puts it.

        Chosen on at most 96 scans, evenly spread.
        """
        from scipy import ndimage

        chosen = np.unique(np.linspace(0, len(self) - 1, 96).astype(int))
        spacing = np.array(self.spacing_mm)
        reach = np.ceil(self.config.misalignment_mm / spacing).astype(int)
        sums, centres, extents = [], [], []
        for row in chosen:
            session, name = self.rows[row]
            head = self._whole(session, name)[1]
            deep = ndimage.distance_transform_edt(np.pad(head, 1), sampling=self.spacing_mm)[1:-1, 1:-1, 1:-1]  # pyright: ignore
            extents.append([np.count_nonzero(head.any(_others(axis))) for axis in range(3)])
            sums.append(np.pad((deep > self.config.margin_mm).cumsum(0).cumsum(1).cumsum(2), ((1, 0),) * 3))
            centres.append(self._centre(session))
        extent = np.median(extents, axis=0)
        for scale in np.arange(1.0, 0.2, -0.04):
            size = np.maximum(2, np.round(scale * extent)).astype(int)
            shares = [
                _count(total, np.round(centre - size / 2).astype(int) - reach, size + 2 * reach)
                for total, centre in zip(sums, centres, strict=True)
            ]
            if np.quantile(shares, 0.05) >= 0.95:
                x, y, z = (int(n) for n in size)
                return x, y, z
        raise InputError(
            "no box lies inside the heads of these scans", file=self.store.path, got=f"heads of about {extent.tolist()} voxels",
            next_step="give views.box, or look at whole volumes with outline_free=False",
        )  # fmt: skip


def _others(axis: int) -> tuple[int, int]:
    a, b = (k for k in range(3) if k != axis)
    return a, b


def _shift(array: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The array read ``part`` of a voxel further along each axis (linear), one voxel shorter."""
    for axis, f in enumerate(part):
        here, there = np.take(array, range(array.shape[axis] - 1), axis), np.take(array, range(1, array.shape[axis]), axis)
        array = here if f == 0 else here * np.float32(1 - f) + there * np.float32(f)
    return array


def _count(total: np.ndarray, start: np.ndarray, size: np.ndarray) -> float:
    """The share of a box that is set, from cumulative sums with a leading zero; outside the volume nothing is."""
    shape = np.array(total.shape) - 1
    (x0, y0, z0), (x1, y1, z1) = np.clip(start, 0, shape), np.clip(start + size, 0, shape)
    inside = (
        total[x1, y1, z1] - total[x0, y1, z1] - total[x1, y0, z1] - total[x1, y1, z0]
        + total[x0, y0, z1] + total[x0, y1, z0] + total[x1, y0, z0] - total[x0, y0, z0]
    )  # fmt: skip
    return float(inside / np.prod(size))


def describe(views: Views, targets: Mapping[str, Mapping[str, Any]] | None = None) -> Scans:
    """Who and what the scans of some views are, from the store's columns and labels.

    Read are contrast, scanner, sex, health, and ``ill`` (healthy or not, where health has more than two values); age in years; the lesion load as log(1 + ml) of the whole label; ``volumes``, every
    column that ends in ``_ml`` and does not speak of lesions; and the lesions in each cell.

    Args:
        views: the boxes.
        targets: name -> (session key or subject -> number or vector): further numbers, or others in place of ``volumes``.

    Raises:
        InputError: a target names none of the subjects, or its vectors differ in length.
    """
    sessions = [session for session, _ in views.rows]
    classes = {name: [session.value(name) for session in sessions] for name in CLASSES if name != "contrast"}
    if "healthy" in classes["health"] and len(set(classes["health"]) - {None}) > 2:
        classes["ill"] = [None if value is None else "no" if value == "healthy" else "yes" for value in classes["health"]]
    names = sorted({c for s in sessions for c in s.columns if c.endswith("_ml") and "lesion" not in c})
    numbers: dict[str, Any] = {"age": [_number(session.value("age")) for session in sessions]}
    load = _loads(views)
    if np.isfinite(load).any():
        numbers["lesion_load"] = load
    if names:
        numbers["volumes"] = [[_number(session.value(name)) for name in names] for session in sessions]
    for name, values in (targets or {}).items():
        numbers[name] = _given(name, values, sessions)
    lesions = np.stack([_lesion_cells(views, row) for row in range(len(views))])
    return Scans.of(
        [s.subject for s in sessions], [name for _, name in views.rows], views.fit.tolist(), sessions=[s.key for s in sessions],
        scanners=[s.value("scanner") for s in sessions],
        times=[s.value("age") if s.value("age") is not None else s.session for s in sessions],
        classes={k: v for k, v in classes.items() if k != "scanner"}, numbers=numbers,
        lesions=lesions if np.isfinite(lesions).any() else None,
    )  # fmt: skip


def _number(value: Any) -> float:
    try:
        return float(value) if value is not None else float("nan")
    except (TypeError, ValueError):
        return float("nan")


def _given(name: str, values: Mapping[str, Any], sessions: Sequence[SessionView]) -> np.ndarray:
    found = [values.get(session.key, values.get(session.subject)) for session in sessions]
    lengths = {np.size(value) for value in found if value is not None}
    if len(lengths) != 1:
        raise InputError(
            f"the target {name!r} cannot be read" if lengths else f"the target {name!r} names none of the sessions",
            expected="numbers, or vectors of one length, by session key or subject",
            got=f"lengths {sorted(lengths)}" if lengths else ", ".join(list(values)[:3]), next_step=f"a key is for example {sessions[0].key}",
        )  # fmt: skip
    width = lengths.pop()
    return np.array([np.full(width, np.nan) if value is None else np.ravel(np.asarray(value, dtype=float)) for value in found])


def _loads(views: Views) -> np.ndarray:
    """log(1 + ml) of each scan's session's lesion label; NaN without the label."""
    ml = float(np.prod(views.spacing_mm)) / 1000
    known: dict[str, float] = {}
    for session, _ in views.rows:
        if session.key not in known:
            label = views.config.lesion
            has = label in session.labels
            known[session.key] = np.log1p(ml * float((views.store.read_label(session.key, label) > 0).sum())) if has else np.nan
    return np.array([known[session.key] for session, _ in views.rows])


# ------------------------------------------------------------------------------------------------------------------ features


def edges(n: int, parts: int) -> np.ndarray:
    """Where ``parts`` nearly equal parts of ``n`` voxels begin and end: (parts + 1,) rising integers."""
    return np.round(np.linspace(0, n, min(parts, n) + 1)).astype(int)


def _blocks(array: np.ndarray, parts: int, ufunc: np.ufunc) -> np.ndarray:
    """A reduction over a grid of blocks of (x, y, z)."""
    for axis in range(3):
        array = ufunc.reduceat(array, edges(array.shape[axis], parts)[:-1], axis=axis)
    return array


def _means(array: np.ndarray, parts: int) -> np.ndarray:
    total = _blocks(np.asarray(array, dtype=np.float64), parts, np.add)
    return (total / _blocks(np.ones(array.shape), parts, np.add)).ravel()


def _lesion_cells(views: Views, row: int) -> np.ndarray:
    view, parts = views[row], views.config.cells
    if view.lesion is None:
        return np.full(np.prod([min(parts, n) for n in views.box]), np.nan)
    ml = _blocks(view.lesion.astype(float), parts, np.add).ravel() * float(np.prod(views.spacing_mm)) / 1000
    found = np.where(ml == 0, 0.0, np.where(ml >= views.config.lesion_ml - 1e-9, 1.0, np.nan))
    return np.where(_means(view.head, parts) > 0.5, found, np.nan)


def raw_pixels(views: Views) -> Features:
    """The trivial row of intensities: no network.

    Pooled: mean, spread and deciles. Spatial: means of blocks. Cells: largest and smallest value after smoothing, which
    finds bright and dark lesions.
    """
    from scipy import ndimage

    sigma = [views.config.smooth_mm / mm for mm in views.spacing_mm]
    pooled, spatial, cells = [], [], []
    for row in range(len(views)):
        image = views[row].image
        pooled.append([image.mean(), image.std(), *np.quantile(image, np.linspace(0.05, 0.95, 10))])
        spatial.append(_means(image, views.config.raw))
        smooth = ndimage.gaussian_filter(image, sigma)
        extremes = [_blocks(smooth, views.config.cells, ufunc).ravel() for ufunc in (np.maximum, np.minimum)]
        cells.append(np.stack(extremes, -1))
    values = np.array(spatial, dtype=np.float32)
    return Features("raw_pixels", IMAGE, np.array(pooled), values, np.array(cells), values)


def outline(views: Views) -> Features:
    """The trivial row of shape: where the head and the field of view end, and nothing else.

    Pooled: the share and the extent of the head. Spatial: the share of head in blocks. In a box inside the head there is
    nothing to see, and its rows say so. Cells: the share of head, and which cell of the box it is, for lesions have their
    places.
    """
    pooled, spatial, cells = [], [], []
    for row in range(len(views)):
        head = views[row].head
        pooled.append([head.mean(), *(head.any(_others(axis)).mean() for axis in range(3))])
        spatial.append(_means(head, views.config.raw))
        share = _means(head, views.config.cells)
        cells.append(np.column_stack([share, np.eye(len(share))]))
    values = np.array(spatial, dtype=np.float32)
    return Features("outline", IMAGE, np.array(pooled), values, np.array(cells), values)


def untrained(net: nn.Module, seed: int) -> nn.Module:
    """A freshly initialised net of the same architecture; torch's random state is left as it was.

    Raises:
        ConfigError: the net's module has no ``build`` or the net no ``config``.
    """
    import sys

    build, config = getattr(sys.modules[type(net).__module__], "build", None), getattr(net, "config", None)
    if build is None or config is None:
        raise ConfigError(
            f"{type(net).__name__} cannot be built afresh for the row random_weights", expected="a net of the nets shelf",
            next_step="leave random_weights out of trivial, or give an untrained net as one of the nets",
        )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.entropy(seed, "untrained") & 0x7FFF_FFFF_FFFF_FFFF)
        made: nn.Module = build(config)
    device = next(net.parameters()).device
    return made.to(device)


@torch.inference_mode()
def extract(model: str, net: nn.Module, views: Views) -> list[Features]:
    """The frozen features of every half (and of the stages, where asked for) of one net; means, never samples.

    Args:
        model: the row's name.
        net: with ``encode``.
        views: the boxes.

    Returns:
        One record a half; a half without channels has only a reason.
    """
    device, was_training = next(net.parameters()).device, net.training
    net.eval()
    kept: dict[str, dict[str, list[np.ndarray]]] = {}
    for _, boxes in views.batches():
        x = torch.from_numpy(np.stack([view.image for view in boxes]))[:, None].to(device)
        code = net.encode(x)
        halves = {
            "anatomy": ((code.anatomy,), code.anatomy_logvar),
            "contrast": ((code.contrast,), code.contrast_logvar),
        }
        if views.config.stages:
            halves["stages"] = (tuple(code.stages), None)
        for half, (maps, logvar) in halves.items():
            store = kept.setdefault(half, {})
            if sum(m.shape[1] for m in maps) == 0:
                continue
            for name, value in _reduce(maps, logvar, net, views).items():
                store.setdefault(name, []).append(value)
    net.train(was_training)
    made = []
    for half, parts in kept.items():
        if not parts:
            made.append(Features(model, half, reason=f"this net has no {half} half"))
            continue
        joined = {name: np.concatenate(values) for name, values in parts.items()}
        broken = not all(np.isfinite(values).all() for values in joined.values())
        made.append(Features(model, half, reason="the features are not finite") if broken else Features(model, half, **joined))
    return made


SAMPLES = 2048
"""Most places of a half's map that variances are taken at."""


def _reduce(maps: Sequence[Tensor], logvar: Tensor | None, net: nn.Module, views: Views) -> dict[str, np.ndarray]:
    """Everything kept of a batch of maps, each (B, C, x, y, z)."""
    out: dict[str, list[Tensor]] = {"pooled": [], "spatial": [], "cells": []}
    for m in maps:
        m = m.float()
        out["pooled"].append(_pool(m, net, views.box, 1).flatten(1))
        out["spatial"].append(_pool(m, net, views.box, views.config.grid).flatten(1))
        near = [_pool(m, net, views.box, views.config.cells, largest=flag).flatten(2).mT for flag in (False, True)]
        out["cells"] += near  # (B, cells, C) each
    made = {name: torch.cat(parts, -1).cpu().numpy() for name, parts in out.items()}
    flat = maps[-1].float().flatten(1)
    places = torch.from_numpy(_places(flat.shape[1], views.config.seed)).to(flat.device)
    made["sampled"] = flat[:, places].cpu().numpy()
    if logvar is not None:
        made["posterior_variance"] = logvar.float().flatten(1)[:, places].exp().mean(1).cpu().numpy()
    return made


def _places(n: int, seed: int) -> np.ndarray:
    if n <= SAMPLES:
        return np.arange(n)
    return np.sort(seeds.generator(seed, "places", n).choice(n, SAMPLES, replace=False))


def _pool(m: Tensor, net: nn.Module, box: Sequence[int], parts: int, *, largest: bool = False) -> Tensor:
    """Means (or largest values) of a map over a grid of ``parts`` cells of the box, (B, C, parts, parts, parts).

    A place of the map counts for a cell by how much of the cell it covers; what a net pads beyond the box does not count.
    """
    strides = getattr(net, "stage_strides", ())
    for axis in (2, 3, 4):
        length, places = box[axis - 2], m.shape[axis]
        stride = next((float(s) for s in strides if -(-length // s) == places), length / places)
        bounds, starts = edges(length, parts), np.arange(places) * stride
        cover = np.minimum(bounds[1:, None], starts + stride) - np.maximum(bounds[:-1, None], starts)
        cover = np.maximum(cover, 0)  # (parts, places), voxels that a cell and a place share
        if largest:
            m = torch.stack(
                [m.index_select(axis, torch.from_numpy(np.flatnonzero(row)).to(m.device)).amax(axis) for row in cover], axis
            )
        else:
            weights = torch.from_numpy(cover / cover.sum(1, keepdims=True)).to(m.device, m.dtype)
            m = torch.tensordot(m, weights, dims=([axis], [1])).movedim(-1, axis)
    return m
