"""Answers made up for the tests of assessments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuroprior.assessments._answers import Answers, answers
from neuroprior.assessments.accuracy import Context, classify, regress, segmentation_case, summarise
from neuroprior.core.records import Score


def context(task: str, target: str = "x", resamples: int = 300) -> Context:
    return Context("m", task, target, resamples=resamples)


def classified(
    truth: Sequence[str], probability: np.ndarray, *, subjects: Sequence[str] | None = None, positive: str = "yes", negative: str = "no",
    resamples: int = 300, notes: Sequence[str] | None = None,
) -> Answers:  # fmt: skip
    cases = [f"c{k:04}" for k in range(len(truth))]
    where = context("classification", resamples=resamples)
    guess = [positive if p >= 0.5 else negative for p in probability]
    rows = classify(where, cases, subjects or cases, truth, guess, list(probability), positive, notes)
    return answers(where, rows)


def several_classes(truth: Sequence[str], probability: np.ndarray, classes: Sequence[str], resamples: int = 300) -> Answers:
    cases = [f"c{k:04}" for k in range(len(truth))]
    where = context("classification", resamples=resamples)
    guess = [classes[k] for k in probability.argmax(1)]
    rows = classify(where, cases, cases, truth, guess, list(probability[:, -1]), classes[-1])
    rows += [
        where.row(case, case, "class_probability", name, float(p))
        for case, row in zip(cases, probability, strict=True) for name, p in zip(classes, row, strict=True)
    ]  # fmt: skip
    return answers(where, rows)


def numbers(
    truth: np.ndarray, guess: np.ndarray, *, half: np.ndarray | float | None = None, spread: np.ndarray | None = None,
    subjects: Sequence[str] | None = None, resamples: int = 300,
) -> Answers:  # fmt: skip
    cases = [f"c{k:04}" for k in range(len(truth))]
    who = subjects or cases
    where = context("regression", resamples=resamples)
    rows = regress(where, cases, who, list(truth), list(guess))
    for k, case in enumerate(cases):
        if half is not None:
            width = float(np.broadcast_to(half, len(truth))[k])
            rows.append(where.row(case, who[k], "interval_low", "all", float(guess[k]) - width))
            rows.append(where.row(case, who[k], "interval_high", "all", float(guess[k]) + width))
        if spread is not None:
            rows.append(where.row(case, who[k], "uncertainty", "all", float(spread[k])))
    return answers(where, rows)


def masks(dice: Sequence[tuple[np.ndarray, np.ndarray]], *, regions: dict[str, int] | None = None) -> tuple[Answers, list[Score]]:
    """Pairs of prediction and reference of one grid of 1 mm."""
    where = context("segmentation", "lesion")
    rows: list[Score] = []
    for k, (prediction, reference) in enumerate(dice):
        rows += segmentation_case(where, f"c{k:04}", f"s{k:04}", prediction, reference, (1.0, 1.0, 1.0), regions or {"lesion": 1})
    whole = rows + summarise(where, rows)
    return answers(where, whole), whole


def table(rows: Sequence[Score]) -> dict[tuple[str, str], Score]:
    found = {(row.metric, row.region): row for row in rows}
    assert len(found) == len(rows), "a number stands twice"
    return found
