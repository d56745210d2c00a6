"""Segmentation: a class for every voxel, from the contrasts that a session has.

Loss: Dice + cross-entropy (MONAI's DiceCELoss), the Dice part over foreground classes and over the whole batch, so that
a patch with no foreground does not dominate (nnU-Net's "batch Dice", Isensee et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from ..core.config import Config as BaseConfig
from ..core.errors import InputError, suggestion
from ..data.cases import Case
from ..data.store import SessionView, Store
from ._protocol import usable_contrasts


class Config(BaseConfig):
    """Settings of the segmentation task."""

    dice_weight: float = Field(default=1.0, ge=0)
    """Weight of the Dice part."""
    ce_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy part."""
    max_classes: int = Field(default=256, ge=1)
    """More label values than this are taken for an image saved as a label."""


@dataclass(frozen=True)
class Segmentation:
    """A fitted segmentation task.

    Attributes:
        target: the label's name in the store.
        values: the label values that are classes 1, 2, ...
        config: its settings.
    """

    target: str
    values: tuple[int, ...]
    config: Config
    name: str = "segmentation"

    def cases(self, store: Store, sessions: Sequence[SessionView], contrasts: Sequence[str]) -> list[Case]:
        """Sessions that have the label and one of the contrasts."""
        found = []
        for session in sessions:
            names = usable_contrasts(session, contrasts)
            if names and self.target in session.labels:
                found.append(Case(session, names, self.target))
        return found

    def head(self, net: nn.Module, contrasts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The segmentation head on the net's finest decoder features."""
        return "segmentation", {
            "contrasts": list(contrasts), "features": net.feature_channels, "classes": len(self.values) + 1,
        }  # fmt: skip

    def losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Dice + cross-entropy from (B, classes, x, y, z) logits and a (B, x, y, z) int64 label map."""
        from monai.losses.dice import DiceLoss
        from torch.nn.functional import cross_entropy

        dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(output, target[:, None])
        entropy = cross_entropy(output, target)
        return {
            "loss": self.config.dice_weight * dice + self.config.ce_weight * entropy, "dice_loss": dice, "ce": entropy,
        }  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Label values in class order; the floor of a segmentation is the empty mask."""
        return {"name": self.name, "target": self.target, "label_values": list(self.values), "floor": {"empty_mask": True}}


def fit(store: Store, sessions: Sequence[SessionView], target: str, contrasts: Sequence[str], config: Config) -> Segmentation:
    """The task for a label of the store, its classes read from the training sessions.

    Raises:
        InputError: no session has that label, it is empty everywhere, or it has too many values to be a label.
    """
    labelled = [s for s in sessions if target in s.labels and usable_contrasts(s, contrasts)]
    if not labelled:
        known = sorted({name for session in store.sessions for name in session.labels})
        raise InputError(
            f"no training session has a label {target!r} and one of {', '.join(contrasts)}",
            expected=f"one of the labels in the store: {', '.join(known) or 'none'}",
            next_step=suggestion(target, known)
            if known
            else "index a dataset with derivatives (masks, dseg) and prepare it again",
        )
    values: set[int] = set()
    for session in labelled:
        values |= {int(value) for value in np.unique(store.read_label(session.key, target))} - {0}
    if not values:
        raise InputError(f"the label {target!r} is empty in all {len(labelled)} training sessions")
    if len(values) > config.max_classes:
        raise InputError(
            f"the label {target!r} has {len(values)} values: an image saved as a label?",
            expected=f"at most {config.max_classes} (task.max_classes)",
        )
    return Segmentation(target, tuple(sorted(values)), config)
