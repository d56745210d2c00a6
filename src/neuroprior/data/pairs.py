"""Which scans of a subject are shown together, and where the box lies: a function of (seed, sample number).

An epoch is every subject once, in an order drawn anew; of the subject a random session, and of the session a random pair
of its scans (FOMO25 winner, arXiv 2601.13166). A session with one scan gives the scan alone, marked as no pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset

from ..core import seeds
from ..core.config import Config
from ..core.errors import InputError
from .cases import box_slices, centred, crop
from .records import PairBatch
from .store import SessionView, Store


class PairConfig(Config):
    """How pairs are drawn."""

    patch: int | tuple[int, int, int] = 64
    """Box in voxels, the same for both scans of a pair."""
    contrasts: tuple[str, ...] | None = None
    """Only these contrasts; all by default."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability that left and right are mirrored, in both scans alike."""
    intensity: float = Field(default=0.0, ge=0)
    """Spread of a random gain and offset of each scan, in standard deviations of the image."""
    min_head: float = Field(default=0.3, ge=0, le=1)
    """A box with a smaller share of voxels that are not background is drawn again, up to four times."""

    @property
    def size(self) -> tuple[int, int, int]:
        """The patch as three numbers."""
        return (self.patch, self.patch, self.patch) if isinstance(self.patch, int) else self.patch


class PairDataset(Dataset[dict[str, Any]]):
    """Map from a global sample number to one pair.

    Args:
        store: the store.
        splits: the splits that are drawn from; sessions with no split count as ``train``.
        config: box, contrasts, augmentation.
        seed: of every draw.
        augment: False draws boxes as ever, but neither mirrors nor changes intensities.

    Raises:
        InputError: no session of these splits has a usable scan.
    """

    def __init__(self, store: Store, splits: Sequence[str], config: PairConfig, *, seed: int, augment: bool = True) -> None:
        self.store, self.config, self.seed, self.augment = store, config, seed, augment
        by_subject: dict[str, list[SessionView]] = {}
        for session in store.sessions:
            if (session.split or "train") in splits and self.scans_of(session):
                by_subject.setdefault(session.subject, []).append(session)
        if not by_subject:
            raise InputError(
                f"no session of split {' or '.join(splits)} has a scan to train on", file=store.path,
                expected="some of " + ", ".join(sorted({name for s in store.sessions for name in s.scans})),
                got=f"contrasts {', '.join(config.contrasts or ('all',))}",
            )  # fmt: skip
        self.subjects = [by_subject[name] for name in sorted(by_subject)]

    def scans_of(self, session: SessionView) -> list[str]:
        """The session's scans that may be drawn."""
        wanted = self.config.contrasts
        return [name for name in sorted(session.scans) if wanted is None or name.split(".")[0] in wanted]

    def __len__(self) -> int:
        """Samples of an epoch: the number of subjects. Sample numbers may be any non-negative integer."""
        return len(self.subjects)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """One pair: ``image_a``, ``image_b`` (x, y, z) float32, ``paired``, ``contrast_a``, ``contrast_b``, ``subject``, ``sample``."""
        epoch, place = divmod(sample, len(self.subjects))
        sessions = self.subjects[int(_order(self.seed, epoch, len(self.subjects))[place])]
        draw = seeds.generator(self.seed, "pair", sample)
        session = sessions[int(draw.integers(len(sessions)))]
        names = self.scans_of(session)
        first = int(draw.integers(len(names)))
        chosen = [names[first]]
        if len(names) > 1:
            chosen.append(names[(first + 1 + int(draw.integers(len(names) - 1))) % len(names)])
        size = self.config.size
        start, image = self._box(session, chosen[0], draw, size)
        images = [image]
        for name in chosen[1:]:
            box, offset = box_slices(start, size, session.shape)
            images.append(crop(self.store.read(session.key, name, box), offset, size))
        if self.augment:
            images = self._augment(images, draw)
        a, b = images[0], images[-1]
        return {
            "image_a": a, "image_b": b, "paired": len(chosen) > 1, "contrast_a": chosen[0].split(".")[0],
            "contrast_b": chosen[-1].split(".")[0], "subject": session.subject, "sample": sample,
        }  # fmt: skip

    def _box(
        self, session: SessionView, name: str, draw: np.random.Generator, size: tuple[int, int, int]
    ) -> tuple[list[int], np.ndarray]:
        best: tuple[float, list[int], np.ndarray] | None = None
        for _ in range(4):
            start = [
                int(draw.integers(0, extent - length + 1)) if extent > length else centred([extent], [length])[0]
                for extent, length in zip(session.shape, size, strict=True)
            ]
            box, offset = box_slices(start, size, session.shape)
            image = crop(self.store.read(session.key, name, box), offset, size)
            share = float((image != 0).mean())
            if best is None or share > best[0]:
                best = (share, start, image)
            if share >= self.config.min_head or all(e <= n for e, n in zip(session.shape, size, strict=True)):
                break
        assert best is not None
        return best[1], best[2]

    def _augment(self, images: list[np.ndarray], draw: np.random.Generator) -> list[np.ndarray]:
        if draw.random() < self.config.flip:
            images = [np.ascontiguousarray(image[::-1]) for image in images]
        if self.config.intensity:
            for number, image in enumerate(images):
                gain, shift = 1 + self.config.intensity * draw.standard_normal(), self.config.intensity * draw.standard_normal()
                images[number] = np.where(image != 0, image * gain + shift, 0).astype(np.float32)
        return images


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return seeds.generator(seed, "epoch", epoch).permutation(n)


def collate_pairs(samples: Sequence[dict[str, Any]]) -> PairBatch:
    """Samples of :class:`PairDataset` as one batch."""

    def images(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([sample[name] for sample in samples]))[:, None]

    return PairBatch(
        image_a=images("image_a"),
        image_b=images("image_b"),
        paired=torch.tensor([sample["paired"] for sample in samples]),
        contrast_a=[sample["contrast_a"] for sample in samples],
        contrast_b=[sample["contrast_b"] for sample in samples],
        subject=[sample["subject"] for sample in samples],
        sample=torch.tensor([sample["sample"] for sample in samples], dtype=torch.int64),
    )
