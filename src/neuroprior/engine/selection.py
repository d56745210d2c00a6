"""Which step's weights a run keeps, and when it has seen enough: decided by validation scores alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

HIGHER_IS_BETTER = frozenset({"dice", "accuracy", "balanced_accuracy", "auroc", "r"})
"""Scores of which more is better; of every other less is."""


@dataclass
class Selection:
    """The best validation so far.

    Attributes:
        metric: name of the watched score.
        ema: share of the past in the smoothed score, in [0, 1); 0 takes each score as it is.
        step: of the best validation; None before the first.
        score: its smoothed score.
        raw: its score as measured.
        smoothed: the smoothed score of the last validation.
        stale: validations since the best.
    """

    metric: str
    ema: float = 0.0
    step: int | None = None
    score: float | None = None
    raw: float | None = None
    smoothed: float | None = None
    stale: int = 0

    def update(self, step: int, value: float) -> bool:
        """Take a validation's score; True when it is the best so far. A tie keeps the earlier one."""
        self.smoothed = value if self.smoothed is None else self.ema * self.smoothed + (1 - self.ema) * value
        sign = 1.0 if self.metric in HIGHER_IS_BETTER else -1.0
        if self.score is not None and not sign * self.smoothed > sign * self.score:
            self.stale += 1
            return False
        self.step, self.score, self.raw, self.stale = step, self.smoothed, value, 0
        return True

    def state(self) -> dict[str, Any]:
        """Plain values, for the run's state."""
        return asdict(self)
