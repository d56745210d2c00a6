"""Classification: one class a session, from a column of the participants table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..core.config import Config as BaseConfig
from ..core.errors import InputError
from ..data.cases import Case
from ..data.store import SessionView, Store
from ._columns import column_values


class Config(BaseConfig):
    """Settings of the classification task."""

    pool: Literal["mean", "mean_max"] = "mean_max"
    """How each half becomes a vector; the paper's is ``mean``."""
    hidden: int = Field(default=128, ge=1)
    """Width of the head's hidden layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of hidden units dropped while training."""
    positive: str | None = None
    """The class that counts as positive in binary scores; the rarer one by default."""


@dataclass(frozen=True)
class Classification:
    """A fitted classification task.

    Attributes:
        target: the column.
        classes: class names; their place is the class number.
        prior: share of each class among the training sessions, the trivial prediction.
        config: its settings.
    """

    target: str
    classes: tuple[str, ...]
    prior: tuple[float, ...]
    config: Config
    name: str = "classification"

    def cases(self, store: Store, sessions: Sequence[SessionView], contrasts: Sequence[str]) -> list[Case]:
        """Sessions whose class was seen while fitting, balanced by class when drawn."""
        found = []
        for session in sessions:
            value = session.value(self.target)
            names = tuple(name for name in contrasts if name in session.scans)
            if names and value is not None and str(value) in self.classes:
                number = self.classes.index(str(value))
                found.append(Case(session, names, number, group=number))
        return found

    def head(self, net: nn.Module, contrasts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The pooled head with an output a class."""
        return "pooled", {
            "contrasts": list(contrasts), "anatomy_channels": net.anatomy_channels, "contrast_channels": net.contrast_channels,
            "outputs": len(self.classes), "hidden": self.config.hidden, "dropout": self.config.dropout, "pool": self.config.pool,
        }  # fmt: skip

    def losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and accuracy from (B, classes) logits and (B,) class numbers."""
        return {
            "loss": cross_entropy(output, target),
            "accuracy": (output.detach().argmax(1) == target).float().mean(),
        }

    def describe(self) -> dict[str, Any]:
        """Class names in order, the positive one, and the prior as the floor."""
        positive = self.config.positive or self.classes[min(range(len(self.classes)), key=lambda k: (self.prior[k], -k))]
        return {
            "name": self.name, "target": self.target, "classes": list(self.classes), "positive": positive,
            "floor": {"prior": dict(zip(self.classes, self.prior, strict=True))},
        }  # fmt: skip


def fit(store: Store, sessions: Sequence[SessionView], target: str, contrasts: Sequence[str], config: Config) -> Classification:
    """The task for a column, its classes read from the training sessions.

    Raises:
        InputError: nobody has a value, or everybody has the same.
    """
    counts = Counter(str(value) for _, value in column_values(store, sessions, target, contrasts))
    if len(counts) < 2:
        raise InputError(
            f"the column {target!r} has one class only among the training sessions",
            expected="at least two classes",
            got=", ".join(f"{name} ({n})" for name, n in counts.items()),
            next_step="choose another --target, or splits that hold both classes",
        )
    if config.positive is not None and config.positive not in counts:
        raise InputError(f"no training session has the class {config.positive!r}", expected=", ".join(sorted(counts)))
    classes = tuple(sorted(counts))
    total = sum(counts.values())
    return Classification(target, classes, tuple(counts[name] / total for name in classes), config)
