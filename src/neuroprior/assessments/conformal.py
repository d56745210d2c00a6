"""Conformal: how often predicted intervals hold the truth, and how wide they are, over all cases and by group.

The interval of a coverage is binomial: Wilson's (1927), or Clopper and Pearson's (1934), which is never below its level. It also says what coverage at the
promised level looks like with as few cases. A subject with several cases counts once in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..core.config import Config as BaseConfig
from ..core.records import Score
from ..inference.calibration import Calibration
from ..metrics import intervals
from ..metrics._bootstrap import clopper_pearson, wilson
from ._answers import Answers, Groups, not_assessed
from .accuracy import Context, mean_of


class Config(BaseConfig):
    """How coverage is judged."""

    binomial: Literal["wilson", "exact"] = "wilson"
    """Interval of a coverage: Wilson's, or Clopper and Pearson's."""
    few: int = 10
    """Cases of a group below which its row says that the interval is wide."""


@dataclass(frozen=True)
class Person:
    """Whose an interval is, and the groups that the person belongs to."""

    subject: str
    groups: Mapping[str, str] = field(default_factory=dict)


def assess(found: Answers, groups: Groups, info: Mapping[str, Any], config: Config | None = None) -> list[Score]:
    """Coverage and width of the intervals of numbers, or of a mask's volumes.

    Args:
        found: answers of one model.
        groups: case -> variable -> group.
        info: of the predictions; its ``calibration`` holds the promised level.
        config: kind of interval.

    Returns:
        ``coverage`` and ``interval_width`` (and ``interval_score`` over all) in the regions ``all`` and ``variable=group``; for a segmentation the region
        begins with the structure's. One row with the reason where there are no intervals.
    """
    config = config or Config()
    context = found.context
    if context.task == "classification":
        return [not_assessed(context, "conformal", "a class has no interval; calibration judges its probability")]
    learned = Calibration.from_json(info.get("calibration"))
    people = [Person(s, dict(groups.get(case, {}))) for case, s in zip(found.cases, found.subjects, strict=True)]
    made: list[Score] = []
    for region in found.regions("interval_low"):
        truth = found.values("true_volume_ml" if context.task == "segmentation" else "truth", region)
        low, high = found.values("interval_low", region), found.values("interval_high", region)
        prefix = f"{region}, " if context.task == "segmentation" else ""
        made += interval_scores(
            context, people, truth, low, high, 0.9 if learned is None else learned.level, config=config, prefix=prefix
        )
    reason = "the predictions hold no intervals: neuroprior crossvalidate, or five validation cases in finetune, teach some"
    return made or [not_assessed(context, "conformal", reason)]


def interval_scores(
    context: Context, found: Sequence[Any], truth: np.ndarray, low: np.ndarray, high: np.ndarray, level: float, *,
    config: Config | None = None, prefix: str = "",
) -> list[Score]:  # fmt: skip
    """Coverage and mean width of (n,) intervals over all cases and by group.

    Args:
        context: origin.
        found: things with ``subject`` and ``groups`` (name -> value).
        truth, low, high: in the target's unit; NaN ends are cases without an interval.
        level: that was promised.
        config: kind of interval.
        prefix: of the regions.
    """
    config = config or Config()
    groups: dict[str, np.ndarray] = {"all": np.ones(len(truth), dtype=bool)}
    for name in sorted({key for one in found for key in one.groups}):
        values = np.array([one.groups.get(name, "") for one in found])
        groups |= {f"{name}={value}": values == value for value in sorted({*values.tolist()} - {""})}
    inside = np.isfinite(low) & np.isfinite(high) & np.isfinite(truth)
    made = []
    for region, mask in groups.items():
        mine = mask & inside
        n = int(mine.sum())
        if n == 0:
            continue
        who = [found[k].subject for k in np.flatnonzero(mine)]
        subjects = len(set(who))
        share = intervals.coverage(truth[mine], low[mine], high[mine])
        bottom, top = wilson(share, subjects) if config.binomial == "wilson" else _exact(share, subjects)
        note = f"promised {level:.3g}"
        if bottom > level or top < level:
            note += "; too wide" if bottom > level else "; the promise is not kept"
        elif n < config.few and region != "all":
            note += f"; {n} case{'' if n == 1 else 's'}: the interval says how little that tells"
        if subjects < n:
            note += f"; the interval counts {subjects} subjects"
        row = context.row("all", "all", "coverage", prefix + region, share, note, n=n)
        made.append(replace(row, low=bottom, high=top))
        ends = mean_of(context, "interval_width", who, (high - low)[mine])
        wide = context.row("all", "all", "interval_width", prefix + region, intervals.width(low[mine], high[mine]), n=n)
        made.append(replace(wide, low=ends[0], high=ends[1]))
        if region == "all":
            whole = intervals.interval_score(truth[mine], low[mine], high[mine], level)
            made.append(context.row("all", "all", "interval_score", prefix + region, whole, f"promised {level:.3g}", n=n))
    return made


def _exact(share: float, n: int) -> tuple[float, float]:
    """Clopper and Pearson's ends; a share that is no whole number of subjects widens to the next on either side."""
    return clopper_pearson(int(np.floor(share * n + 1e-9)), n)[0], clopper_pearson(int(np.ceil(share * n - 1e-9)), n)[1]
