"""Calibration: do probabilities mean what they say, and did the temperature help?

ECE with bins of equal width and of equal mass, class-wise and of the top label, the Brier score with its decomposition (Murphy 1973), and the
log-likelihood: definitions in ``metrics/ece.py``, ``brier.py``, ``nll.py``. Where the model has a temperature, each is given before and after with the
paired difference: one set of draws of subjects serves both. A case that failed has no probability and is left out here, and told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from ..core import seeds
from ..core.config import Config as BaseConfig
from ..core.records import Score
from ..inference.calibration import Calibration, temper
from ..metrics import _inputs, brier, ece, nll
from ..metrics._bootstrap import FEWEST, bounds
from ._answers import Answers, Groups, not_assessed
from .accuracy import Context, over_set


class Config(BaseConfig):
    """How calibration is measured."""

    bins: int = Field(default=10, ge=2)
    """Of the errors and of the Brier score's decomposition."""


def assess(found: Answers, groups: Groups, info: Mapping[str, Any], config: Config | None = None) -> list[Score]:
    """Calibration of a classification.

    Args:
        found: answers of one model.
        groups: not used here (``fairness`` gives calibration by group).
        info: of the predictions; its ``calibration`` holds the temperature that the probabilities went through.
        config: bins.

    Returns:
        ``ece_mass``, ``ece_debiased``, ``ece_class_wise``, ``ece_top_label``, the parts of the Brier score, and with more than two classes ``ece``
        and ``brier`` of each; where there is a temperature, ``ece``, ``ece_mass``, ``brier`` and ``nll`` in regions ``before temperature``,
        ``after temperature`` and ``after - before temperature``. One row with the reason where nothing can be said.

    Raises:
        InputError: probabilities that do not sum to one.
    """
    config = config or Config()
    context = found.context
    if context.task == "segmentation":
        return [not_assessed(context, "calibration", "masks hold no probabilities; crossvalidate gives those of voxels")]
    if context.task == "regression":
        return [not_assessed(context, "calibration", "a number has no probability; conformal judges its interval")]
    p = found.probabilities
    kept = np.flatnonzero(~found.failed & np.isfinite(p).all(1))
    if kept.size == 0:
        return [not_assessed(context, "calibration", "no case has a probability")]
    classes = list(found.classes)
    known = np.array([name in classes for name in found.truth[kept]])
    if not known.all():
        strange = sorted({str(name) for name in found.truth[kept][~known]})
        kept = kept[known]
        if kept.size == 0:
            return [not_assessed(context, "calibration", f"no case is of a class that the model knows: {', '.join(strange)}")]
    code = np.array([classes.index(name) for name in found.truth[kept]])
    code, p = _inputs.simplex(code, p[kept])
    subjects = [found.subjects[k] for k in kept]
    left = len(found.cases) - kept.size
    note = f"{left} cases without a probability or of an unknown class left out" if left else ""
    bins, column = config.bins, classes.index(found.positive)
    yes, q = code == column, p[:, column]

    def part(name: str) -> Callable[[np.ndarray], float]:
        return lambda k: getattr(brier.decompose(yes[k], q[k], bins), name)

    made = over_set(
        context, subjects,
        {
            "ece_class_wise": lambda k: ece.class_wise(code[k], p[k], bins), "ece_top_label": lambda k: ece.top_label(code[k], p[k], bins),
            "brier_reliability": part("reliability"), "brier_resolution": part("resolution"), "brier_uncertainty": part("uncertainty"),
        },
        note,
    )  # fmt: skip
    if len(classes) > 2:
        made += over_set(
            context, subjects,
            {
                "brier_multiclass": ((p - np.eye(len(classes))[code]) ** 2).sum(1),
                "nll_multiclass": -np.log(np.clip(p[np.arange(len(code)), code], nll.SMALLEST, 1 - nll.SMALLEST)),
            },
            note,
        )  # fmt: skip
        for number, name in enumerate(classes):
            one = code == number
            of_class: dict[str, Callable[[np.ndarray], float] | np.ndarray] = {
                "ece": lambda k, one=one, number=number: ece.ece(one[k], p[k, number], bins), "brier": (p[:, number] - one) ** 2,
            }  # fmt: skip
            made += over_set(context, subjects, of_class, note, region=f"class={name}")
    learned = Calibration.from_json(info.get("calibration"))
    if learned is not None and learned.temperature != 1:
        # tempering is undone by its reciprocal, up to the digits of the table
        before = temper(p, 1 / learned.temperature)[:, column]
        made += before_and_after(context, subjects, yes, before, q, bins=bins)
    return made


def before_and_after(
    context: Context, subjects: Sequence[str], truth: np.ndarray, before: np.ndarray, after: np.ndarray, *, bins: int = 10
) -> list[Score]:
    """Calibration of (n,) positive-class probabilities before and after, and the paired difference, with intervals over subjects."""
    made = []
    for metric, function in (
        ("ece", partial(ece.ece, bins=bins)), ("ece_mass", partial(ece.ece, scheme="mass", bins=bins)), ("brier", brier.brier),
        ("nll", nll.binary),
    ):  # fmt: skip

        def both(k: np.ndarray, f: Any = function) -> tuple[float, float]:
            return f(truth[k], before[k]), f(truth[k], after[k])

        made += compared(context, metric, "", subjects, both, context.resamples)
    return made


def compared(
    context: Context, metric: str, prefix: str, subjects: Sequence[str], both: Callable[[np.ndarray], tuple[float, float]], resamples: int
) -> list[Score]:  # fmt: skip
    """A metric before and after the temperature and their difference; one set of draws serves all three, so they are paired.

    Args:
        context: origin and seed.
        metric, prefix: of the rows; the prefix begins their region.
        subjects: (n,) whose each row is.
        both: of (k,) row numbers, the metric before and after.
        resamples: draws.
    """
    names = np.array(subjects)
    rows = [np.flatnonzero(names == name) for name in np.unique(names)]
    draw = seeds.generator(context.seed, "bootstrap")
    before, after = both(np.arange(len(names)))
    values = [("before", before), ("after", after), ("after - before", after - before)]
    drawn = np.full((resamples, 2), np.nan)
    if len(rows) >= FEWEST:
        for n in range(resamples):
            drawn[n] = both(np.concatenate([rows[k] for k in draw.integers(0, len(rows), len(rows))]))
    made = []
    for (text, value), column in zip(values, (drawn[:, 0], drawn[:, 1], drawn[:, 1] - drawn[:, 0]), strict=True):
        low, high = bounds(column, 0.95, len(rows)) if len(rows) >= FEWEST else (None, None)
        made.append(
            replace(context.row("all", "all", metric, f"{prefix}{text} temperature", value, n=len(names)), low=low, high=high)
        )
    return made
