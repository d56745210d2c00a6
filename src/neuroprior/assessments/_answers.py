"""The rows of single cases as arrays: what every assessment of finished predictions is computed from.

Rows come from ``evaluate``, ``crossvalidate`` or any tool that writes a table of scores, so a number of an assessment can be computed again from
``scores.parquet`` alone. What a case's rows hold, by task:

- segmentation: ``dice`` and others by region, ``confidence``; ``volume_ml``, ``true_volume_ml``, ``interval_low``, ``interval_high`` by region;
- classification: ``correct`` and ``probability`` (their notes name the truth), ``class_probability`` by class where there are more than two;
- regression: ``truth``, ``predicted``, ``uncertainty``, ``interval_low``, ``interval_high``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..core.records import Score
from ..metrics import auroc, classification, ece, errors
from .accuracy import Context, caution, mean_of, set_interval

NOT_ASSESSED = "not_assessed"
"""Metric of the row that says why an assessment does not apply; its region is the assessment's name."""

MASKS = ("dice", "nsd", "lesion_f1", "hd95_mm")
"""Metrics of a mask that groups are compared by, the mean over regions."""

OF_GROUPS = 1000
"""Most draws for a metric of a set in one group: there are many groups."""

Groups = Mapping[str, Mapping[str, str]]
"""Case -> variable (``sex``, ``site`` ...) -> its group."""


@dataclass(frozen=True)
class Answers:
    """The clean cases of one model, one task and one condition.

    Attributes:
        context: origin, for rows.
        rows: of single cases, not of the set.
        positive: the positive class of a classification.
    """

    context: Context
    rows: tuple[Score, ...]
    positive: str = ""

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """In the order of the rows; those that were not scored are not among them."""
        return tuple(dict.fromkeys(row.case for row in self.rows if row.metric != "not_scored"))

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Whose each case is."""
        found = {row.case: row.subject for row in self.rows}
        return tuple(found[case] for case in self.cases)

    @cached_property
    def failed(self) -> np.ndarray:
        """(n,) bool: cases without an answer."""
        bad = {row.case for row in self.rows if re.search(r"(^|; )failed\b", row.note)}
        return np.array([case in bad for case in self.cases], dtype=bool)

    def values(self, metric: str, region: str | None = None) -> np.ndarray:
        """(n,) a metric of each case, NaN where it has none; the mean over regions (size bins aside) where no region is named."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            here = row.region == region if region is not None else "," not in row.region
            if row.metric == metric and here and row.value is not None:
                found.setdefault(row.case, []).append(row.value)
        return np.array([np.mean(found[case]) if case in found else np.nan for case in self.cases], dtype=float)

    def regions(self, metric: str) -> tuple[str, ...]:
        """The regions that a metric has rows of, in their order."""
        return tuple(dict.fromkeys(row.region for row in self.rows if row.metric == metric))

    @cached_property
    def truth(self) -> np.ndarray:
        """(n,) class names, or numbers of a regression."""
        if self.context.task != "classification":
            return self.values("truth")
        named = {row.case: row.note.removeprefix("truth ") for row in self.rows if row.metric == "probability"}
        return np.array([named.get(case, "") for case in self.cases], dtype=object)

    @cached_property
    def guess(self) -> np.ndarray:
        """(n,) predicted class names; ``failed`` where there is none."""
        found = {row.case: _predicted(row.note) for row in self.rows if row.metric == "correct"}
        return np.array([found.get(case, "failed") for case in self.cases], dtype=object)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All class names; of two, the positive one comes last."""
        several = self.regions("class_probability")
        if several:
            return several
        seen = {str(name) for name in (*self.truth, *self.guess)} - {"failed", "", self.positive}
        return (*sorted(seen), self.positive)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(n, c) of the classes; of two, the positive one's and the rest."""
        if self.regions("class_probability"):
            return np.stack([self.values("class_probability", name) for name in self.classes], 1)
        p = self.values("probability")
        return np.stack([1 - p, p], 1)

    @cached_property
    def loss(self) -> np.ndarray:
        """(n,) what an answer costs: 1 where the class is wrong, 1 - DSC, or the absolute error; NaN where it is not defined."""
        if self.context.task == "classification":
            return 1 - self.values("correct")
        if self.context.task == "regression":
            return self.values("absolute_error")
        return 1 - self.values("dice")

    @cached_property
    def confidence(self) -> np.ndarray:
        """(n,) larger is surer; NaN where nothing tells. Of a class its largest probability, of a number minus its uncertainty."""
        given = self.values("confidence")
        if np.isfinite(given).any():
            return given
        if self.context.task == "classification":
            return np.where(self.failed, np.nan, self.probabilities.max(1))
        spread = self.values("uncertainty")
        if np.isfinite(spread).any():
            return -spread
        return self.values("interval_low") - self.values("interval_high")

    def of(self, groups: Groups, variable: str) -> np.ndarray:
        """(n,) the group of each case, empty where it is not known."""
        return np.array([groups.get(case, {}).get(variable, "") for case in self.cases], dtype=object)

    @cached_property
    def measures(self) -> dict[str, Callable[[np.ndarray], float] | np.ndarray]:
        """Metric -> (n,) values whose mean it is, with NaN where a case has none, or a function of (k,) row numbers."""
        task = self.context.task
        if task == "segmentation":
            found = {name: self.values(name) for name in MASKS}
            return {name: values for name, values in found.items() if np.isfinite(values).any()}
        if task == "regression":
            truth, value = self.truth, self.values("predicted")
            made: dict[str, Callable[[np.ndarray], float] | np.ndarray] = {
                "mae": self.values("absolute_error"), "mean_error": value - truth,
                "pearson_r": lambda k: errors.pearson(truth[k], value[k]),
            }  # fmt: skip
            low, high = self.values("interval_low"), self.values("interval_high")
            if np.isfinite(low).any():
                made["coverage"] = np.where(np.isfinite(low + high), (truth >= low) & (truth <= high), np.nan)
            return made
        yes, p = self.truth == self.positive, self.values("probability")
        _, code = np.unique(np.concatenate([self.truth, self.guess]).astype(str), return_inverse=True)
        t, g = code[: len(yes)], code[len(yes) :]
        return {
            "auroc": lambda k: auroc.auroc(yes[k], p[k]),
            "balanced_accuracy": lambda k: classification.balanced_accuracy(t[k], g[k]),
            "accuracy": (t == g).astype(float),
            "brier": (p - yes) ** 2,
            "ece": lambda k: ece.ece(yes[k], p[k]),
        }

    def measured(self, metric: str, mask: np.ndarray, region: str, note: str = "") -> Score:
        """A metric over some cases, with its interval over subjects.

        Args:
            metric: a name of :attr:`measures`.
            mask: (n,) bool.
            region, note: of the row.
        """
        statistic = self.measures[metric]
        if isinstance(statistic, np.ndarray):
            mask = mask & np.isfinite(statistic)
        rows = np.flatnonzero(mask)
        who = [self.subjects[k] for k in rows]
        if isinstance(statistic, np.ndarray):
            value = float(statistic[rows].mean()) if rows.size else float("nan")
            low, high = mean_of(self.context, metric, who, statistic[rows]) if rows.size else (None, None)
        else:
            value = statistic(rows) if rows.size else float("nan")
            fewer = replace(self.context, resamples=min(self.context.resamples, OF_GROUPS))
            low, high = set_interval(fewer, who, lambda k: statistic(rows[k])) if np.isfinite(value) else (None, None)
        missing = (
            "no case" if not rows.size else "not defined: one class only, or too few cases" if not np.isfinite(value) else ""
        )
        text = "; ".join(
            part for part in (note, missing or caution(who, (low, high) if self.context.resamples else None)) if part
        )
        return replace(self.context.row("all", "all", metric, region, value, text, n=int(rows.size)), low=low, high=high)


def answers(context: Context, rows: Sequence[Score]) -> Answers:
    """The rows of one model as :class:`Answers`.

    Args:
        context: model, task, target and condition; rows of others are left out.
        rows: of single cases and of the set; the note of a set's row names the positive class.
    """
    mine = [
        row for row in rows
        if (row.model, row.task, row.target, row.condition) == (context.model, context.task, context.target, context.condition)
    ]  # fmt: skip
    named = (re.match(r"positive class (.*?), \d+ of \d+(?:;|$)", row.note) for row in mine if row.case == "all")
    positive = next((found[1] for found in named if found), "")
    return Answers(context, tuple(row for row in mine if row.case != "all"), positive)


def not_assessed(context: Context, assessment: str, reason: str) -> Score:
    """The row that says why an assessment has no numbers."""
    return context.row("all", "all", NOT_ASSESSED, assessment, float("nan"), reason, n=0)


def _predicted(note: str) -> str:
    found = re.match(r"truth .*, predicted (.*?)(?:; |$)", note)
    return found[1] if found else "failed"
