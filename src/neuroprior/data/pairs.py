"""Which scans of a subject are shown together, and where the box lies: a function of (seed, sample number).

An epoch is every subject once, in an order drawn anew; of the subject a random session, and of the session a random pair
of its scans (FOMO25 winner, arXiv 2601.13166). A subject's other pairs can be drawn too, each kind with a weight: the same contrast
at another time, another contrast at another time, the same contrast on another scanner. A scan without a partner is shown
alone, marked as no pair. The box lies anywhere in the head, at a place that a whole batch shares, or in the middle.

Scans of one session share a grid; those of two sessions are laid on each other by their headers. Pairs of two sessions that
do not align are found when first drawn, and left out with a reason or aligned rigidly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, overload

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset

from ..core import seeds
from ..core.config import Config
from ..core.errors import ConfigError, InputError
from . import alignment
from .cases import box_slices, centred, crop
from .diagnosis import health_class
from .records import PairBatch
from .sessions import scaled
from .store import SessionView, Store

logger = logging.getLogger(__name__)

Kind = Literal["session", "time", "both", "scanner"]
"""What a pair's scans share: the session; the contrast; only the subject; the contrast, on two scanners."""
Scan = tuple[SessionView, str]
Patch = tuple[np.ndarray, float]
"""A box as it is stored: (x, y, z) voxels, and what they are multiplied with."""
TRIES = 4
"""How often a box is drawn again that shows too little of the head."""


class PairConfig(Config):
    """How pairs are drawn."""

    patch: int | tuple[int, int, int] = 64
    """Box in voxels, the same for both scans of a pair."""
    contrasts: tuple[str, ...] | None = None
    """Only these contrasts; all by default."""
    kinds: dict[Kind, float] = Field(default={"session": 1.0}, min_length=1)
    """Weight of each kind of pair: ``session`` (other contrast), ``time`` (other session, same contrast), ``both`` (other session,
    other contrast), ``scanner`` (as ``time``, on another scanner). A scan draws among the kinds that it has a partner for."""
    misaligned: Literal["skip", "rigid", "keep"] = "skip"
    """What becomes of pairs of two sessions that do not align by header; ``rigid`` needs the extra ``atlas``."""
    min_overlap: float = Field(default=0.7, ge=0, le=1)
    """Dice of two heads below which they count as misaligned."""
    max_shift_mm: float = Field(default=6.0, ge=0)
    """Misalignment (mm) beyond which two scans count as misaligned."""
    balance: str | None = None
    """Column by which subjects are drawn evenly (dataset, site, ...); by default an epoch is every subject once."""
    temperature: float = Field(default=1.0, gt=0)
    """With ``balance``: a group of n subjects has weight n^(1 / temperature); 1 is as it lies, large is even."""
    repeat: int = Field(default=1, ge=1)
    """Consecutive samples of one subject (subject-constant batches where it equals the batch)."""
    label: str | None = None
    """Label map of the store that is shown beside the scans, for objectives that learn from one."""
    targets: Literal["raw", "fraction_of_icv", "z_scored"] = "z_scored"
    """Form of the anatomical vectors, where a table of them is given: ml, shares of the intracranial volume, or these z-scored over
    the training subjects. Raw volumes of any two subjects have a cosine of almost 1."""
    place: Literal["anywhere", "shared", "centre"] = "anywhere"
    """Where a box lies in the head: anywhere; at a place that all subjects of a batch share, as a share of each head's extent; or in its
    middle. Terms that tell subjects apart place by place, and vectors of volumes that a box cannot show from everywhere, need one of the
    latter two: with boxes from anywhere, where a box lies tells two subjects apart."""
    jitter: int = Field(default=0, ge=0)
    """Largest random displacement (voxels along each axis, each pair its own) from a shared place or the middle."""
    shift: int = Field(default=0, ge=0)
    """Largest random displacement (voxels along each axis) of the second scan's box: misalignment of purpose."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability that left and right are mirrored, in both scans alike. Leave at 0 where a target knows left from right."""
    intensity: float = Field(default=0.0, ge=0)
    """Spread of a random gain and offset of each scan, in standard deviations of the image."""
    remap: float = Field(default=0.0, ge=0, le=1)
    """Probability, for each scan, that its intensities pass a random curve which need not rise: another, made-up contrast
    (after the idea of SynthSeg, Billot et al. 2023, that a net which has seen any contrast depends on none)."""
    min_head: float = Field(default=0.3, ge=0, le=1)
    """A box with a smaller share of voxels that are not background is drawn again, up to four times."""

    @property
    def size(self) -> tuple[int, int, int]:
        """The patch as three numbers."""
        return (self.patch, self.patch, self.patch) if isinstance(self.patch, int) else self.patch


class Subjects(Sequence[list[SessionView]]):
    """The sessions of each subject, subjects by name; made when they are asked for.

    Args:
        store: the store.
        rows: which of its sessions, rising.
    """

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self._store = store
        codes, names = store.coded("subject")
        used, codes = np.unique(codes[rows], return_inverse=True)
        self.names = sorted(names[number] for number in used.tolist())
        place = {name: number for number, name in enumerate(self.names)}
        codes = np.array([place[names[number]] for number in used.tolist()])[codes]
        self._rows = rows[np.argsort(codes, kind="stable")]
        self._ends = np.cumsum(np.bincount(codes))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> list[SessionView]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[list[SessionView]]: ...
    def __getitem__(self, place: int | slice) -> list[SessionView] | Sequence[list[SessionView]]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        rows = self._rows[self._ends[number - 1] if number else 0 : self._ends[number]]
        return [self._store.sessions[row] for row in rows.tolist()]


TOO_LARGE = 4
"""A box of more than so many times the largest scan is a mistake; what lies beyond a scan is filled with zeros."""


class PairDataset(Dataset[dict[str, Any]]):
    """Map from a global sample number to one pair.

    Args:
        store: the store.
        splits: the splits that are drawn from; sessions with no split count as ``train``.
        config: box, contrasts, kinds of pairs, augmentation.
        seed: of every draw.
        augment: False draws boxes as ever, but neither mirrors nor changes intensities nor displaces.
        anatomy: anatomical vectors by subject, all of one length.
        batch: consecutive samples that are compared with each other; with ``place=shared`` their boxes share a place.

    Raises:
        InputError: no session of these splits has a usable scan, or none has the wanted label.
        ConfigError: no weight of a kind of pair is positive, nobody has the column to balance by, or the box is far larger than the scans.
    """

    def __init__(
        self,
        store: Store,
        splits: Sequence[str],
        config: PairConfig,
        *,
        seed: int,
        augment: bool = True,
        anatomy: Mapping[str, np.ndarray] | None = None,
        batch: int = 1,
    ) -> None:
        self.store, self.config, self.seed, self.augment, self.batch = store, config, seed, augment, batch
        self.anatomy = dict(anatomy or {})
        self.dimension = len(next(iter(self.anatomy.values()))) if self.anatomy else 0
        self.skipped: dict[tuple[str, str, str, str], str] = {}
        self._fits: dict[tuple[str, str, str, str], tuple[bool, np.ndarray | None]] = {}
        self._places: dict[int, np.ndarray] = {}
        self._drawable: dict[tuple[str, ...], list[str]] = {}
        if not any(weight > 0 for weight in config.kinds.values()):
            raise ConfigError("no kind of pair has a weight", got=f"data.kinds={dict(config.kinds)}")
        self.subjects = self._subjects(splits)
        largest = store.largest()
        if any(size > TOO_LARGE * extent for size, extent in zip(config.size, largest, strict=True)):
            raise ConfigError(
                "data.patch is far larger than the scans", expected=f"voxels of a box within scans of up to {largest}", got=config.size,
                next_step=f"--set data.patch={min(64, 8 * max(1, min(largest) // 8))}",
            )  # fmt: skip
        self._shares = self._balanced()

    def _subjects(self, splits: Sequence[str]) -> Subjects:
        """The subjects of some splits, column by column: nothing is done for each of a hundred thousand sessions."""
        store, config = self.store, self.config
        split, split_names = store.coded("split")
        scans, scan_names = store.coded("scans")
        allowed = np.array([(name or "train") in splits for name in split_names], dtype=bool)
        drawable = np.array([bool(self._drawn(names)) for names in scan_names], dtype=bool)
        rows = np.flatnonzero(allowed[split] & drawable[scans])
        if not rows.size:
            raise InputError(
                f"no session of split {' or '.join(splits)} has a scan to train on", file=store.path,
                expected="some of " + ", ".join(sorted({name for names in scan_names for name in names})),
                got=f"contrasts {', '.join(config.contrasts or ('all',))}",
            )  # fmt: skip
        labels, label_names = store.coded("labels")
        if config.label is not None and not any(config.label in label_names[number] for number in np.unique(labels[rows])):
            raise InputError(
                f"no session of split {' or '.join(splits)} has the label {config.label!r}", file=store.path,
                expected=", ".join(sorted({name for names in label_names for name in names})) or "a store with labels",
            )  # fmt: skip
        return Subjects(store, rows)

    def scans_of(self, session: SessionView) -> list[str]:
        """The session's scans that may be drawn."""
        return self._drawn(tuple(session.scans))

    def _drawn(self, names: tuple[str, ...]) -> list[str]:
        if names not in self._drawable:
            wanted = self.config.contrasts
            self._drawable[names] = [name for name in sorted(names) if wanted is None or name.split(".")[0] in wanted]
        return self._drawable[names]

    def _balanced(self) -> np.ndarray | None:
        """Each subject's probability where drawing is balanced, else None."""
        column = self.config.balance
        if column is None:
            return None
        values = [str(getattr(group[0], column, None) or group[0].value(column)) for group in self.subjects]
        if set(values) == {"None"}:
            known = sorted({"dataset", *(key for group in self.subjects for key in group[0].columns)})
            raise ConfigError(f"no subject has the column {column!r}", expected=", ".join(known), got=f"data.balance={column}")
        names, number, counts = np.unique(values, return_inverse=True, return_counts=True)
        weight = counts ** (1 / self.config.temperature)
        logger.info(
            "drawn by %s: %s", column, ", ".join(f"{n} {w:.0%}" for n, w in zip(names, weight / weight.sum(), strict=True))
        )
        share = (weight / counts)[number]
        return share / share.sum()

    def __len__(self) -> int:
        """Samples of an epoch: the number of subjects. Sample numbers may be any non-negative integer."""
        return len(self.subjects)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """One pair: the fields of :class:`~neuroprior.data.records.PairBatch` without the batch axis (and without channels)."""
        c = self.config
        draw = seeds.generator(self.seed, "pair", sample)
        first, sessions = self._first(sample, draw)
        session = first[0]
        second, transform = self._partner(first, sessions, draw)
        start, patch = self._box(first, draw) if c.place == "anywhere" else self._placed(first, draw, sample // self.batch)
        slip = np.zeros(3, int)
        patches = [patch]
        if second is not None:
            if c.shift and self.augment:
                slip = draw.integers(-c.shift, c.shift + 1, 3)
            patches.append(self._scan(second, first, _moved(start, slip), transform))
        labels: list[np.ndarray] = []
        if c.label is not None:
            for scan in (first, second or first)[: len(patches)]:
                labels.append(
                    self._label(
                        scan, first, start if scan is first else _moved(start, slip), None if scan is first else transform
                    )
                )
        images, labels = self._augment(patches, labels, draw)
        vector = self.anatomy.get(session.subject)
        found = {
            "image_a": images[0], "image_b": images[-1], "paired": second is not None, "contrast_a": first[1].split(".")[0],
            "contrast_b": (second or first)[1].split(".")[0], "subject": session.subject, "sample": sample,
            "health": health_class(session.value("health")), "has_anatomy": vector is not None,
            "anatomy": np.zeros(self.dimension, np.float32) if vector is None else vector.astype(np.float32), "has_label": False,
        }  # fmt: skip
        if labels:
            has = all(c.label in scan[0].labels for scan in (first, second or first))
            found |= {"label_a": labels[0], "label_b": labels[-1], "has_label": has}
        return found

    def name(self, sample: int) -> str:
        """The two scans that a sample shows, as sessions and contrasts. Nothing is read: where it is not known whether the first partner
        that is drawn aligns, the pair may be another one."""
        draw = seeds.generator(self.seed, "pair", sample)
        first, sessions = self._first(sample, draw)
        second = next(self._candidates(first, sessions, draw), None)
        beside = f" beside {second[0].key} {second[1]}" if second is not None else ""
        return f"{first[0].key} {first[1]}{beside}"

    def _first(self, sample: int, draw: np.random.Generator) -> tuple[Scan, list[SessionView]]:
        """A sample's first scan, and all sessions of its subject."""
        turn = sample // self.config.repeat
        if self._shares is None:
            epoch, place = divmod(turn, len(self.subjects))
            who = int(_order(self.seed, epoch, len(self.subjects))[place])
        else:
            who = int(seeds.generator(self.seed, "subject", turn).choice(len(self.subjects), p=self._shares))
        sessions = self.subjects[who]
        session = sessions[int(draw.integers(len(sessions)))]
        names = self.scans_of(session)
        return (session, names[int(draw.integers(len(names)))]), sessions

    def partners(self, scan: Scan, sessions: Sequence[SessionView]) -> dict[Kind, list[Scan]]:
        """The scans that may be paired with one, by kind; kinds without weight or without a partner are left out."""
        session, name = scan
        contrast, scanner = name.split(".")[0], session.value("scanner")
        found: dict[Kind, list[Scan]] = {kind: [] for kind, weight in self.config.kinds.items() if weight > 0}
        for other in sessions:
            for candidate in self.scans_of(other):
                same = candidate.split(".")[0] == contrast
                if other.key == session.key:
                    kinds: list[Kind] = ["session"] if candidate != name else []
                elif same:
                    machines = scanner is not None and other.value("scanner") is not None and other.value("scanner") != scanner
                    kinds = ["time", "scanner"] if machines else ["time"]
                else:
                    kinds = ["both"]
                for kind in kinds:
                    if kind in found:
                        found[kind].append((other, candidate))
        return {kind: scans for kind, scans in found.items() if scans}

    def _partner(
        self, first: Scan, sessions: Sequence[SessionView], draw: np.random.Generator
    ) -> tuple[Scan | None, np.ndarray | None]:
        """A partner that aligns, and the rigid transform to its space where one is needed; None where there is no partner."""
        for second in self._candidates(first, sessions, draw):
            fits, transform = self._fit(first, second)
            if fits:
                return second, transform
        return None, None

    def _candidates(self, first: Scan, sessions: Sequence[SessionView], draw: np.random.Generator) -> Iterator[Scan]:
        """Partners in the order in which they are drawn."""
        found = self.partners(first, sessions)
        while found:
            kinds = sorted(found)
            weights = np.array([self.config.kinds[kind] for kind in kinds])
            edges = np.cumsum(weights / weights.sum())
            kind = kinds[int(np.searchsorted(edges / edges[-1], draw.random(), side="right"))]
            place = int(draw.integers(len(found[kind])))
            second = found[kind].pop(place)
            if not found[kind]:
                del found[kind]
            yield second

    def _fit(self, first: Scan, second: Scan) -> tuple[bool, np.ndarray | None]:
        """Whether a pair may be shown, and the rigid transform where one is needed; judged once a pair and process."""
        if first[0].key == second[0].key or self.config.misaligned == "keep":
            return True, None
        name = (first[0].key, first[1], second[0].key, second[1])
        if name not in self._fits:
            volumes = [self.store.read(session.key, contrast) for session, contrast in (first, second)]
            sides = (volumes[0], first[0].affine, volumes[1], second[0].affine)
            reason = alignment.compare(*sides).reason(self.config.min_overlap, self.config.max_shift_mm)
            transform = None
            if reason is not None and self.config.misaligned == "rigid":
                transform = alignment.rigid(*sides)
                moved = alignment.resampled(volumes[1], second[0].affine, volumes[0].shape, first[0].affine, rigid=transform)
                after = alignment.compare(volumes[0], first[0].affine, moved, first[0].affine)
                left = after.reason(self.config.min_overlap, self.config.max_shift_mm)
                reason = None if left is None else f"{reason}; rigid alignment did not help: {left}"
            if reason is not None:
                self.skipped[name] = reason
                logger.warning("%s %s and %s %s are not paired: %s", *name, reason)
            self._fits[name] = (reason is None, transform)
        return self._fits[name]

    def _scan(self, scan: Scan, first: Scan, start: Sequence[int], transform: np.ndarray | None) -> Patch:
        """The box of ``first``'s grid that begins at ``start``, of another scan of the subject."""
        session, name = scan
        place = self._start(session, first, start) if transform is None else None
        if place is not None:
            return self._at(session, name, place)
        corner = self._corner(first, start)
        box = alignment.needed(session.affine, session.shape, self.config.size, corner, rigid=transform)
        if box is None:
            return np.zeros(self.config.size, np.float32), 1.0
        voxels = self.store.read(session.key, name, box)
        affine = alignment.boxed(session.affine, box)
        return alignment.resampled(voxels, affine, self.config.size, corner, order=1, rigid=transform), 1.0

    def _start(self, session: SessionView, first: Scan, start: Sequence[int]) -> Sequence[int] | None:
        """Where the box of ``first``'s grid begins in a session's own; None where their axes differ."""
        if session.key == first[0].key:
            return start
        if not np.allclose(session.affine[:3, :3], first[0].affine[:3, :3], atol=1e-4):
            return None
        offset = np.linalg.inv(session.affine) @ first[0].affine
        return np.round(offset[:3, 3] + np.asarray(start)).astype(int).tolist()

    def _corner(self, first: Scan, start: Sequence[int]) -> np.ndarray:
        """(4, 4) of the box of ``first``'s grid that begins at ``start``."""
        corner = first[0].affine.copy()
        corner[:3, 3] = (first[0].affine @ np.array([*start, 1.0]))[:3]
        return corner

    def _label(self, scan: Scan, first: Scan, start: Sequence[int], transform: np.ndarray | None) -> np.ndarray:
        name = self.config.label
        if name is None or name not in scan[0].labels:
            return np.zeros(self.config.size, np.int64)
        session = scan[0]
        place = self._start(session, first, start) if transform is None else None
        if place is not None:
            box, offset = box_slices(place, self.config.size, session.shape)
            return crop(self.store.read_label(session.key, name, box), offset, self.config.size).astype(np.int64)
        corner = self._corner(first, start)
        box = alignment.needed(session.affine, session.shape, self.config.size, corner, rigid=transform)
        if box is None:
            return np.zeros(self.config.size, np.int64)
        affine = alignment.boxed(session.affine, box)
        voxels = self.store.read_label(session.key, name, box)
        return alignment.resampled(voxels, affine, self.config.size, corner, order=0, rigid=transform).astype(np.int64)

    def _box(self, scan: Scan, draw: np.random.Generator) -> tuple[list[int], Patch]:
        """A box from anywhere, drawn again where it shows too little of the head: its first voxel and its content."""
        session, name = scan
        size = self.config.size
        best: tuple[float, list[int], Patch] | None = None
        for _ in range(TRIES):
            start = [
                int(draw.integers(0, extent - length + 1)) if extent > length else centred([extent], [length])[0]
                for extent, length in zip(session.shape, size, strict=True)
            ]
            image = self._at(session, name, start)
            share = _head(image)
            if best is None or share > best[0]:
                best = (share, start, image)
            if share >= self.config.min_head or all(e <= n for e, n in zip(session.shape, size, strict=True)):
                break
        assert best is not None
        return best[1], best[2]

    def _placed(self, scan: Scan, draw: np.random.Generator, group: int) -> tuple[list[int], Patch]:
        """The box at a batch's place, or in the middle, displaced by the pair's own jitter: its first voxel and its content."""
        session, name = scan
        place = np.full(3, 0.5) if self.config.place == "centre" else self._place(group)
        room = np.array(session.shape) - np.array(self.config.size)
        jitter = self.config.jitter
        start = np.where(room > 0, np.round(place * room), room // 2).astype(int) + draw.integers(-jitter, jitter + 1, 3)
        return start.tolist(), self._at(session, name, start.tolist())

    def _place(self, group: int) -> np.ndarray:
        """(3,) shares of the room between box and head: where the boxes of a batch begin. Judged on the first subject of the batch."""
        if group not in self._places:
            draw = seeds.generator(self.seed, "place", group)
            sample = group * self.batch
            (session, name), _ = self._first(sample, seeds.generator(self.seed, "pair", sample))
            room = np.array(session.shape) - np.array(self.config.size)
            shares: list[float] = []
            places = draw.random((TRIES, 3))
            for place in places:
                start = np.where(room > 0, np.round(place * room), room // 2).astype(int)
                shares.append(_head(self._at(session, name, start.tolist())))
                if shares[-1] >= self.config.min_head:
                    break
            if len(self._places) > 64:
                self._places.clear()
            self._places[group] = places[int(np.argmax(shares))]
        return self._places[group]

    def _at(self, session: SessionView, name: str, start: Sequence[int]) -> Patch:
        box, offset = box_slices(start, self.config.size, session.shape)
        voxels, scale = self.store.read_stored(session.key, name, box)
        return crop(voxels, offset, self.config.size), scale

    def _augment(
        self, patches: list[Patch], labels: list[np.ndarray], draw: np.random.Generator
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        mirrored = self.augment and draw.random() < self.config.flip
        images = [scaled(voxels[::-1] if mirrored else voxels, scale) for voxels, scale in patches]
        if not self.augment:
            return images, labels
        if mirrored:
            labels = [np.ascontiguousarray(label[::-1]) for label in labels]
        if self.config.intensity:
            for number, image in enumerate(images):
                gain, shift = 1 + self.config.intensity * draw.standard_normal(), self.config.intensity * draw.standard_normal()
                images[number] = np.where(image != 0, image * gain + shift, 0).astype(np.float32)
        if self.config.remap:
            images = [remapped(image, draw) if draw.random() < self.config.remap else image for image in images]
        return images, labels


def remapped(image: np.ndarray, draw: np.random.Generator, knots: int = 6) -> np.ndarray:
    """A scan whose intensities pass a random piecewise-linear curve between quantiles; z-scored over the head, background 0.

    Args:
        image: (x, y, z), background 0.
        draw: of the curve's heights, standard normal at each knot.
        knots: corners of the curve, at equal shares of the head's voxels.
    """
    head = image != 0
    if head.sum() < knots:
        return image
    values = image[head]
    places = np.unique(np.quantile(values, np.linspace(0, 1, knots)))
    bent = np.interp(values, places, draw.standard_normal(len(places)))
    out = np.zeros_like(image)
    out[head] = (bent - bent.mean()) / (bent.std() + 1e-6)
    return out


def _head(patch: Patch) -> float:
    """The share of a box's voxels that are not background."""
    return np.count_nonzero(patch[0]) / patch[0].size


def _moved(start: Sequence[int], slip: np.ndarray) -> list[int]:
    return [int(s + d) for s, d in zip(start, slip, strict=True)]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return seeds.generator(seed, "epoch", epoch).permutation(n)


def collate_pairs(samples: Sequence[dict[str, Any]]) -> PairBatch:
    """Samples of :class:`PairDataset` as one batch."""

    def stacked(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([sample[name] for sample in samples]))

    batch = PairBatch(
        image_a=stacked("image_a")[:, None],
        image_b=stacked("image_b")[:, None],
        paired=[bool(sample["paired"]) for sample in samples],
        contrast_a=[sample["contrast_a"] for sample in samples],
        contrast_b=[sample["contrast_b"] for sample in samples],
        subject=[sample["subject"] for sample in samples],
        sample=[int(sample["sample"]) for sample in samples],
        health=torch.tensor([sample["health"] for sample in samples], dtype=torch.int64),
        anatomy=stacked("anatomy"),
        has_anatomy=torch.tensor([sample["has_anatomy"] for sample in samples]),
        has_label=torch.tensor([sample["has_label"] for sample in samples]),
    )
    if "label_a" in samples[0]:
        batch["label_a"], batch["label_b"] = stacked("label_a"), stacked("label_b")
    return batch
