"""Classification: one class a session, from a column of the participants table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from ..core.covariates import Covariate
from ..core.errors import ConfigError, InputError
from ..data.cases import Case
from ..data.store import SessionView, Store
from ._columns import VectorConfig, column_values, vector_head


class Config(VectorConfig):
    """Settings of the classification task."""

    positive: str | None = None
    """The class that counts as positive in binary scores; the rarer one by default."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing: this share of every target is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weighs a class by the inverse of its share among the training sessions (draws are balanced anyway)."""
    order: tuple[str, ...] = ()
    """The classes from low to high, for grades: makes the head a proportional-odds model (McCullagh 1980)."""


@dataclass(frozen=True)
class Classification:
    """A fitted classification task.

    Attributes:
        target: the column.
        classes: class names; their place is the class number.
        prior: share of each class among the training sessions, the trivial prediction.
        config: its settings.
        covariates: optional inputs of the head.
    """

    target: str
    classes: tuple[str, ...]
    prior: tuple[float, ...]
    config: Config
    covariates: tuple[Covariate, ...] = field(default=())
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
        readout = "ordered_classes" if self.config.order else "plain"
        return vector_head(self.config, net, contrasts, len(self.classes), self.covariates, readout=readout)

    def losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and accuracy from (B, classes) logits (log-probabilities where classes are ordered) and (B,) class numbers."""
        weight = None
        if self.config.class_weights == "balanced":
            weight = torch.tensor(
                [1 / (len(self.prior) * share) for share in self.prior], dtype=output.dtype, device=output.device
            )
        if self.config.order:
            loss = nll_loss(output, target, weight=weight)
        else:
            loss = cross_entropy(output, target, weight=weight, label_smoothing=self.config.smoothing)
        return {"loss": loss, "accuracy": (output.detach().argmax(1) == target).float().mean()}

    def describe(self) -> dict[str, Any]:
        """Class names in order, the positive one, the prior as the floor, and the covariates that may be given."""
        positive = self.config.positive or self.classes[min(range(len(self.classes)), key=lambda k: (self.prior[k], -k))]
        return {
            "name": self.name, "target": self.target, "classes": list(self.classes), "positive": positive,
            "floor": {"prior": dict(zip(self.classes, self.prior, strict=True))}, "ordered": bool(self.config.order),
            "covariates": [covariate.name for covariate in self.covariates],
        }  # fmt: skip


def fit(
    store: Store, sessions: Sequence[SessionView], target: str, contrasts: Sequence[str], config: Config,
    covariates: Sequence[Covariate] = (),
) -> Classification:  # fmt: skip
    """The task for a column, its classes read from the training sessions.

    Raises:
        InputError: nobody has a value, everybody has the same, or each another.
        ConfigError: the order does not name the classes, or smoothing is asked for with it.
    """
    counts = Counter(str(value) for _, value in column_values(store, sessions, target, contrasts))
    if len(counts) < 2:
        raise InputError(
            f"the column {target!r} has one class only among the training sessions",
            expected="at least two classes",
            got=", ".join(f"{name} ({n})" for name, n in counts.items()),
            next_step="choose another --target, or splits that hold both classes",
        )
    if len(counts) > 2 and max(counts.values()) == 1:
        raise InputError(
            f"every training session has a class of its own in the column {target!r}",
            expected="classes that several sessions share",
            got=", ".join(sorted(counts)[:5]),
            next_step=f"for a number, --task regression --target {target}",
        )
    if len(counts) > max(20, sum(counts.values()) // 2):
        raise InputError(
            f"the column {target!r} has {len(counts)} classes in {sum(counts.values())} training sessions",
            expected="classes that several subjects share", next_step="for numbers use --task regression",
        )  # fmt: skip
    if config.positive is not None and config.positive not in counts:
        raise InputError(f"no training session has the class {config.positive!r}", expected=", ".join(sorted(counts)))
    if config.order and set(config.order) != set(counts):
        raise ConfigError("task.order must name every class once, from low to high", expected=", ".join(sorted(counts)),
                          got=", ".join(config.order))  # fmt: skip
    if config.order and config.smoothing:
        raise ConfigError(
            "task.smoothing does not go with task.order: the probabilities of ordered classes are smooth as they are"
        )
    classes = config.order or tuple(sorted(counts))
    total = sum(counts.values())
    return Classification(target, classes, tuple(counts[name] / total for name in classes), config, tuple(covariates))
