"""Segmentation: a class for every voxel, from the contrasts that a session has.

Loss: Dice + cross-entropy by default, the Dice part over foreground classes and over the whole batch, so that a patch with no
foreground does not dominate (nnU-Net's "batch Dice", Isensee et al. 2021). Targets may be shares of a voxel: a small lesion of a
store that is coarser than its labels does not vanish.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig
from ..core.covariates import Covariate
from ..core.errors import ConfigError, InputError, suggestion
from ..data.cases import Case, Source
from ..data.store import SessionView, Store
from ._losses import region_loss, voxel_loss
from ._protocol import usable_contrasts
from ._sides import pairs_from_names

logger = logging.getLogger(__name__)

SOFT_CLASSES = 32
"""With more classes than this, targets are whole classes where ``shares`` is ``auto``: shares would fill the memory."""


class Config(BaseConfig):
    """Settings of the segmentation task."""

    region: Literal["dice", "tversky", "none"] = "dice"
    """The part of the loss that measures overlap."""
    voxel: Literal["ce", "focal", "none"] = "ce"
    """The part of the loss that judges every voxel."""
    dice_weight: float = Field(default=1.0, ge=0)
    """Weight of the overlap part."""
    ce_weight: float = Field(default=1.0, ge=0)
    """Weight of the voxels' part."""
    batch_dice: bool = True
    """Overlap over all samples of a batch together; else of each sample by itself."""
    false_positives: float = Field(default=0.3, ge=0)
    """Weight of false positives in ``tversky``."""
    false_negatives: float = Field(default=0.7, ge=0)
    """Weight of false negatives in ``tversky``; more than the other finds more of small lesions."""
    focus: float = Field(default=2.0, ge=0)
    """The exponent of ``focal``."""
    deep_supervision: int = Field(default=0, ge=0)
    """Coarser levels of the decoder that are supervised too."""
    shares: Literal["auto", "soft", "hard"] = "auto"
    """Whether targets are the shares that classes fill of a voxel; ``auto`` does so up to 32 classes."""
    label_map: dict[int, int] = Field(default_factory=dict)
    """Label value in the files -> value to learn and predict; 0 makes it background. Values that are not named stay."""
    max_classes: int = Field(default=256, ge=1)
    """More label values than this are taken for an image saved as a label."""


@dataclass(frozen=True)
class Segmentation:
    """A fitted segmentation task.

    Attributes:
        target: the label's name in the store.
        values: the label values that are classes 1, 2, ...
        config: its settings.
        sources: the values in the label files that make each class; empty where they are the ``values``.
        names: label value -> name, as far as the dataset tells.
    """

    target: str
    values: tuple[int, ...]
    config: Config
    sources: tuple[Source, ...] = ()
    names: tuple[tuple[int, str], ...] = ()
    name: str = "segmentation"

    @property
    def label_values(self) -> tuple[Source, ...]:
        """What the files hold for classes 1, 2, ..."""
        return self.sources or self.values

    @property
    def soft(self) -> bool:
        """Whether targets may be shares."""
        return self.config.shares == "soft" or (self.config.shares == "auto" and len(self.values) <= SOFT_CLASSES)

    def cases(self, store: Store, sessions: Sequence[SessionView], contrasts: Sequence[str]) -> list[Case]:
        """Sessions that have the label and one of the contrasts."""
        found = []
        for session in sessions:
            names = usable_contrasts(session, contrasts)
            if names and self.target in session.labels:
                found.append(Case(session, names, self.target))
        return found

    def head(self, net: nn.Module, contrasts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The segmentation head on the net's finest decoder features.

        Raises:
            ConfigError: deep supervision of more levels than the decoder has.
        """
        levels: list[int] = []
        if self.config.deep_supervision:
            there = [int(n) for n in tuple(net.stage_channels)[1:-1]]  # type: ignore[arg-type]  # a tuple of the net
            if self.config.deep_supervision > len(there):
                raise ConfigError(
                    "task.deep_supervision asks for more coarser levels than the decoder has", expected=f"at most {len(there)}",
                    got=self.config.deep_supervision,
                )  # fmt: skip
            levels = there[: self.config.deep_supervision]
        return "segmentation", {
            "contrasts": list(contrasts), "features": net.feature_channels, "classes": len(self.values) + 1, "levels": levels,
        }  # fmt: skip

    def losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss and its parts from (B, classes, x, y, z) logits and (B, x, y, z) int64 classes or (B, classes, x, y, z) shares."""
        c = self.config
        found: dict[str, Tensor] = {}
        loss = output.new_zeros(())
        if c.region != "none":
            found["dice_loss"] = region_loss(
                output, target, kind=c.region, batch=c.batch_dice, alpha=c.false_positives, beta=c.false_negatives
            )
            loss = loss + c.dice_weight * found["dice_loss"]
        if c.voxel != "none":
            found["ce"] = voxel_loss(output, target, kind=c.voxel, gamma=c.focus)
            loss = loss + c.ce_weight * found["ce"]
        return {"loss": loss, **found}

    def describe(self) -> dict[str, Any]:
        """Label values in class order; the floor of a segmentation is the empty mask.

        With a label map, ``label_sources`` has the values of each class in the files, to compare with references that are not mapped.
        """
        described: dict[str, Any] = {
            "name": self.name, "target": self.target, "label_values": list(self.values), "floor": {"empty_mask": True},
        }  # fmt: skip
        if self.config.label_map:
            described["label_map"] = {str(k): v for k, v in sorted(self.config.label_map.items())}
            described["label_sources"] = [list(source) if isinstance(source, tuple) else [source] for source in self.label_values]
        if self.names:
            described["label_names"] = {str(value): name for value, name in self.names}
        return described


def fit(
    store: Store, sessions: Sequence[SessionView], target: str, contrasts: Sequence[str], config: Config,
    covariates: Sequence[Covariate] = (),
) -> Segmentation:  # fmt: skip
    """The task for a label of the store, its classes read from the training sessions.

    Raises:
        InputError: no session has that label, it is empty everywhere, has too many values to be a label, values that the dataset
            does not declare, or 255 beside other values.
        ConfigError: covariates are asked for, or both parts of the loss are off.
    """
    if covariates:
        raise ConfigError("covariates go into the pooled head: a segmentation takes none")
    if config.region == "none" and config.voxel == "none":
        raise ConfigError("task.region and task.voxel are both none: nothing would be learned")
    labelled = [s for s in sessions if target in s.labels and usable_contrasts(s, contrasts)]
    if not labelled:
        known = sorted({name for session in store.sessions for name in session.labels})
        reasons = _left_out(store, sessions, target)
        raise InputError(
            f"no training session has a label {target!r} and one of {', '.join(contrasts)}",
            expected=f"one of the labels in the store: {', '.join(known) or 'none'}", got=reasons,
            next_step=suggestion(target, known)
            if known
            else "index a dataset with derivatives (masks, dseg) and prepare it again",
        )  # fmt: skip
    unlabelled = [s.key for s in sessions if target not in s.labels]
    if unlabelled:
        logger.warning("%d of %d training sessions left out, they have no label %r: %s%s", len(unlabelled), len(sessions), target,
                       ", ".join(unlabelled[:5]), " ..." if len(unlabelled) > 5 else "")  # fmt: skip
    counts: dict[int, list[int]] = {}  # value -> sessions, voxels
    for session in labelled:
        found, voxels = np.unique(store.read_label(session.key, target), return_counts=True)
        for value, n in zip(found.tolist(), voxels.tolist(), strict=True):
            entry = counts.setdefault(int(value), [0, 0])
            entry[0], entry[1] = entry[0] + 1, entry[1] + n
        for value in session.labels[target]["values"]:  # some are nowhere the most of a voxel, only a share of it
            counts.setdefault(int(value), [0, 0])
    if len(counts) > config.max_classes + 1:
        raise InputError(
            f"the label {target!r} has {len(counts) - 1} values: an image saved as a label?",
            expected=f"at most {config.max_classes} (task.max_classes)",
        )
    absent = sorted(set(config.label_map) - set(counts))
    if absent:
        raise InputError(
            f"--label-map names {absent[0]}, which is in no training label {target!r}", got=_table(counts, len(labelled))
        )
    _check_values(target, counts, config, _names(labelled, target), len(labelled))
    by_class: dict[int, list[int]] = {}
    for value in sorted(counts):
        learned = config.label_map.get(value, value)
        if learned != 0:
            by_class.setdefault(learned, []).append(value)
    if not by_class:
        raise InputError(
            f"the label {target!r} is empty in all {len(labelled)} training sessions", got=_table(counts, len(labelled))
        )
    values = tuple(sorted(by_class))
    names = _names(labelled, target)
    if config.label_map:
        names = {config.label_map.get(value, value): name for value, name in names.items()}
    sources = tuple(tuple(by_class[value]) for value in values)
    plain = all(source == (value,) for source, value in zip(sources, values, strict=True))
    return Segmentation(
        target, values, config, () if plain else sources, tuple((value, names[value]) for value in values if value in names)
    )


def side_pairs(task: Segmentation) -> tuple[tuple[int, int], ...]:
    """The left and right values that the labels' names tell."""
    return pairs_from_names(dict(task.names))


def _check_values(target: str, counts: dict[int, list[int]], config: Config, names: dict[int, str], sessions: int) -> None:
    """Values that the dataset does not declare, or 255 beside others, are mistakes until the user has mapped them.

    Raises:
        InputError: with the table of values and the option that mends them.
    """
    there = set(counts) - {0} - set(config.label_map)
    foreign = sorted(there - set(names)) if names else sorted(there & {255}) if len(there) > 1 else []
    if foreign:
        known = sorted(set(names) - {0}) or sorted(there - set(foreign))
        free = sorted(set(known) - there) or known
        raise InputError(
            f"the label {target!r} holds values that should not be there: {', '.join(map(str, foreign))}",
            expected=", ".join(f"{v} {names[v]}" if v in names else str(v) for v in known), got=_table(counts, sessions),
            next_step="say what they are: --label-map " + ",".join(f"{v}:{free[min(n, len(free) - 1)]}" for n, v in enumerate(foreign))
            + " (0 is background)",
        )  # fmt: skip
    positive = sorted(there)
    if positive and positive != list(range(1, len(positive) + 1)):
        logger.info(
            "label values of %r have gaps (%s); they are kept and predicted as they are (other numbers: --label-map %s)", target,
            _table(counts, sessions), ",".join(f"{v}:{n}" for n, v in enumerate(positive, start=1) if v != n),
        )  # fmt: skip


def _table(counts: dict[int, list[int]], sessions: int) -> str:
    rows = [f"{value}: {n} voxels in {where} of {sessions} sessions" for value, (where, n) in sorted(counts.items())[:12]]
    return "; ".join(rows) + (f"; {len(counts) - 12} more values" if len(counts) > 12 else "")


def _names(sessions: Sequence[SessionView], target: str) -> dict[int, str]:
    """Label value -> name, from the label's entry in the store or from a column ``label_names_<target>`` (``1=left;2=right``)."""
    for session in sessions:
        entry = session.labels[target].get("names") or {}
        text = session.value(f"label_names_{target}")
        if not entry and text:
            entry = dict(part.split("=", 1) for part in str(text).split(";") if "=" in part)
        if entry:
            return {int(value): str(name) for value, name in entry.items() if str(value).lstrip("-").isdigit()}
    return {}


def _left_out(store: Store, sessions: Sequence[SessionView], target: str) -> str | None:
    """Why indexing or preparing left a label out, for the first few sessions."""
    keys = {session.key for session in sessions}
    notes = [
        f"{row['key']}: {row['reason']}"
        for row in store.table.to_dict("records")
        if row["key"] in keys and f"label {target}" in str(row["reason"])
    ]
    for session in sessions if not notes else ():
        notes += [f"{session.key}: {note}" for note in session.notes if note.startswith(f"label {target} left out")]
    return "; ".join(dict.fromkeys(notes[:3])) or None
