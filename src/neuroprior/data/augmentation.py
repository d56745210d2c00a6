"""Which transforms a case goes through while training: words for usual choices, any transform by name, draws by (seed, sample)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import shelf
from ..core.config import parse
from ..core.errors import ConfigError

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "none": {},
    "light": {"gain": {"probability": 1.0}},
    "mri": {
        "affine": {"probability": 0.3}, "gain": {"probability": 1.0}, "gamma": {"probability": 0.3}, "bias": {"probability": 0.3},
        "blur": {"probability": 0.15}, "lowres": {"probability": 0.15}, "noise": {"probability": 0.3}, "ghosting": {"probability": 0.1},
        "spike": {"probability": 0.05}, "gibbs": {"probability": 0.1},
    },
}  # fmt: skip
"""Word -> transforms in the order of their doing. Mirroring is apart: it depends on the labels."""


@dataclass(frozen=True)
class Step:
    """One transform with its chance: of a case where voxels move, of each contrast otherwise."""

    name: str
    module: ModuleType
    config: Any
    probability: float


def steps(word: str, changes: Mapping[str, Mapping[str, Any]], intensity: float) -> tuple[Step, ...]:
    """The transforms of a preset with changes.

    Args:
        word: a key of ``PRESETS``.
        changes: transform -> settings that differ, ``probability`` among them; a transform that the preset lacks is added at the end.
        intensity: spread of the gain and the offset.

    Raises:
        ConfigError: the word, a transform or a setting is unknown.
    """
    if word not in PRESETS:
        raise ConfigError(f"unknown augmentation {word!r}", expected=", ".join(PRESETS))
    wanted = {name: dict(values) for name, values in PRESETS[word].items()}
    if "gain" in wanted:
        wanted["gain"] |= {"gain": intensity, "shift": intensity}
    for name, values in changes.items():
        if name == "flip":
            raise ConfigError("mirroring is set by data.flip, data.mirror_axes and data.label_pairs, not among data.transforms")
        wanted[name] = wanted.get(name, {"probability": 0.2}) | dict(values)
    made = []
    for name, values in wanted.items():
        module = shelf.load("transforms", name)
        probability = float(values.pop("probability"))
        if not 0 <= probability <= 1:
            raise ConfigError(f"data.transforms.{name}.probability must lie in [0, 1]", got=probability)
        made.append(Step(name, module, parse(module.Config, values), probability))
    return tuple(made)


class Augmentation:
    """Mirroring and transforms of one case.

    Args:
        steps: see :func:`steps`.
        mirror_axes: axes that may be mirrored, each with a chance of one half.
        class_pairs: class numbers that are each other's mirror image (left and right).
        spacing_mm: of the grid, for transforms in physical units.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        mirror_axes: Sequence[int],
        class_pairs: Sequence[tuple[int, int]] = (),
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        self.steps, self.spacing_mm = tuple(steps), tuple(spacing_mm)
        module = shelf.load("transforms", "flip")
        self.flip = Step("flip", module, module.Config(axes=tuple(mirror_axes), label_pairs=tuple(class_pairs)), 1.0)

    def __call__(self, draw: np.random.Generator, images: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A case after drawing and doing.

        Args:
            draw: gives all parameters.
            images: (K, x, y, z) float32, 0 outside the field of view, which stays 0.
            target: (x, y, z) int64 class numbers, (classes, x, y, z) float32 shares with the background first, or None.
        """
        for step in (self.flip, *(step for step in self.steps if step.module.SPATIAL)):
            if step.probability < 1 and draw.random() >= step.probability:
                continue
            drawn = step.module.draw(step.config, draw, images.shape[-3:], self.spacing_mm)
            images = step.module.apply(drawn, images)
            if target is None:
                continue
            if step.name == "flip" and target.ndim == 4:
                target = _mirrored(step.module.apply(drawn, target), drawn)
            else:
                target = step.module.apply_labels(drawn, target)
        if target is not None and target.ndim == 4:  # what came in from outside the box is background
            target = torch.cat([1 - target[1:].sum(0, keepdim=True).clamp(0, 1), target[1:]])
        inside = images != 0
        for step in self.steps:
            if step.module.SPATIAL:
                continue
            rows = []
            for row in images:
                if draw.random() < step.probability:
                    row = step.module.apply(step.module.draw(step.config, draw, row.shape, self.spacing_mm), row)
                rows.append(row)
            images = torch.stack(rows)
        return torch.where(inside, images, torch.zeros_like(images)), target


def _mirrored(shares: Tensor, drawn: Any) -> Tensor:
    """(classes, x, y, z) mirrored shares with the classes of paired sides swapped, where left and right changed places."""
    order = list(range(shares.shape[0]))
    if 0 in drawn.axes:
        for one, other in drawn.label_pairs:
            order[one], order[other] = other, one
    return shares[order]
