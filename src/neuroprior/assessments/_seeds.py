"""Models that were trained with several seeds, ranked and compared: seeds and subjects are both drawn again.

A run's name says its seed at the end (``mae seed 2``, ``mae/seed-2``); what stands before is the model. A metric of a model is the mean over
its runs. In each bootstrap draw every model draws as many of its seeds, with replacement, as it has (the same ones in all tasks, for a seed is
usually one pretraining), and the subjects of each task are drawn once for all models, as in ``comparison``. With one run a model
this is ``comparison.rank``, number by number.

Three seeds show their own spread and little of a fourth's: intervals from so few are still too narrow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from ..core import seeds
from ..core.errors import InputError
from ..core.records import Score
from ..metrics import paired
from ..metrics._bootstrap import FEWEST, bounds, counts
from . import comparison, significance
from .comparison import Ranking
from .significance import OF_A_SET, Comparison, Measure, Significance

_SEED = re.compile(r"^(?P<model>.+?)[\s_/,-]*\bseed[\s_-]?(?P<seed>\d+)$", re.IGNORECASE)


def name_and_seed(run: str) -> tuple[str, int | None]:
    """``mae seed 2`` -> (``mae``, 2); the seed is None where the name says none."""
    found = _SEED.match(run)
    return (found["model"], int(found["seed"])) if found else (run, None)


def runs_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Model -> the places of its runs, in the order of their seeds; models in order of first appearance."""
    made: dict[str, list[int]] = {}
    for place in sorted(range(len(names)), key=lambda k: name_and_seed(names[k])[1] or 0):
        made.setdefault(name_and_seed(names[place])[0], []).append(place)
    return {model: made[model] for model in dict.fromkeys(name_and_seed(name)[0] for name in names)}


def evened(scores: Sequence[Score]) -> tuple[list[Score], str]:
    """The rows of as many seeds as every model has in every task (the lowest ones), and a sentence on what is left out.

    Args:
        scores: rows of runs; floors are kept.
    """
    seen: dict[str, dict[tuple[str, str], set[str]]] = {}
    for row in scores:
        if not row.model.startswith("floor"):
            seen.setdefault(name_and_seed(row.model)[0], {}).setdefault((row.task, row.target), set()).add(row.model)
    fewest = min((len(runs) for tasks in seen.values() for runs in tasks.values()), default=0)
    kept = {
        (*task, run)
        for tasks in seen.values()
        for task, runs in tasks.items()
        for run in sorted(runs, key=lambda run: name_and_seed(run)[1] or 0)[:fewest]
    }
    dropped = sorted({run for tasks in seen.values() for task, runs in tasks.items() for run in runs if (*task, run) not in kept})
    rows = [row for row in scores if row.model.startswith("floor") or (row.task, row.target, row.model) in kept]
    told = f"Left out, so that every model has {fewest} runs: {', '.join(dropped)}." if dropped else ""
    return rows, told


@dataclass(frozen=True)
class Ranked:
    """Models in one order, over all tasks and for each alone, with the draws behind it.

    Attributes:
        over_all: the ranking over tasks.
        by_task: task -> the ranking by its metrics alone.
        drawn: (draws, m) final rank in each draw, the models in the order of ``over_all``.
        drawn_by_task: task -> (draws, m), the models in the order of ``by_task[task]``.
        runs: model -> how many runs.
    """

    over_all: Ranking
    by_task: Mapping[str, Ranking]
    drawn: np.ndarray
    drawn_by_task: Mapping[str, np.ndarray]
    runs: Mapping[str, int]


def rank(
    found: Sequence[Measure],
    *,
    weights: Mapping[str, float] | None = None,
    resamples: int = 1000,
    level: float = 0.975,
    seed: int = 0,
) -> Ranked:
    """Models in one order with its support, over seeds and subjects.

    Args:
        found: measures of the same runs in the same order; metrics of one task share its draws of subjects.
        weights: task -> weight of its mean rank; equal by default.
        resamples: draws.
        level: share of draws in which a model must be ahead for its place to be supported.
        seed: of the draws.

    Raises:
        InputError: no measure, runs that differ, or weights that do not name the tasks.
    """
    share = comparison.shares(found, weights)
    runs = runs_of(found[0].models)
    names = list(runs)
    picks = _seed_weights(runs, len(found[0].models), resamples, seed)
    mean_of = np.array([np.bincount(places, minlength=len(found[0].models)) / len(places) for places in runs.values()])
    values = [mean_of @ one.of(np.arange(one.values.shape[1])) for one in found]
    drawn = [np.einsum("rmk,rk->rm", picks, comparison._draws(one, resamples, seed)) for one in found]
    over_all, again = comparison.placed(names, found, values, drawn, share, level)
    each = {}
    for task in share:
        mine = [k for k, one in enumerate(found) if one.task == task]
        measured, values_of, drawn_of = ([part[k] for k in mine] for part in (found, values, drawn))
        each[task] = comparison.placed(names, measured, values_of, drawn_of, {task: 1.0}, level)
    return Ranked(
        over_all, {task: one for task, (one, _) in each.items()}, again, {task: draws for task, (_, draws) in each.items()},
        {model: len(places) for model, places in runs.items()},
    )  # fmt: skip


def _seed_weights(runs: Mapping[str, Sequence[int]], width: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, models, runs): the share of each run in its model's mean, its seeds drawn with replacement."""
    made = np.zeros((resamples, len(runs), width))
    draw = seeds.generator(seed, "bootstrap", "seeds")
    for k, places in enumerate(runs.values()):
        picked = draw.integers(0, len(places), (resamples, len(places)))
        for column in range(len(places)):
            made[np.arange(resamples), k, np.asarray(places)[picked[:, column]]] += 1 / len(places)
    return made


def mean_interval(runs: Sequence[Sequence[Score]], *, resamples: int = 1000, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % interval of the mean over runs of each run's mean over its cases, seeds and subjects drawn again.

    Other than ``comparison.over_seeds`` it keeps cases that only some runs have a defined value of (a run that finds nothing in an empty
    reference has none), so that it belongs to the mean of the runs' own means.

    Args:
        runs: rows of single cases of one metric and region, a list a run.
        resamples, seed: of the bootstrap.

    Returns:
        (low, high), or (None, None) with fewer than two runs or three subjects.
    """
    subjects = sorted({row.subject for one in runs for row in one if row.value is not None})
    if len(subjects) < FEWEST or len(runs) < 2:
        return None, None
    place = {name: k for k, name in enumerate(subjects)}
    total, number = (np.zeros((len(subjects), len(runs))) for _ in range(2))
    for k, one in enumerate(runs):
        for row in one:
            if row.value is not None:
                total[place[row.subject], k] += row.value
                number[place[row.subject], k] += 1
    weights = counts(len(subjects), resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ total) / (weights @ number)
    picks = _seed_weights({"": range(len(runs))}, len(runs), resamples, seed)[:, 0]
    return bounds(np.where(picks > 0, picks * means, 0.0).sum(1), 0.95, len(subjects))


def compare(
    found: Measure, *, resamples: int = 1000, permutations: int = 1000, level: float = 0.05, seed: int = 0
) -> Significance:
    """The significance map of one metric between models, each the mean over its runs.

    The test changes the outputs of two models of a subject in all seeds together (a metric of single cases: Wilcoxon on the means over seeds), so
    that it speaks of these runs; the intervals draw seeds as well. Of a metric of a set, models need equally many runs (:func:`evened`).

    Args:
        found: of runs.
        resamples: of the bootstrap.
        permutations: of the randomisation, for metrics of a set.
        level: above which a difference is not called one.
        seed: of both.

    Raises:
        InputError: models with different numbers of runs.
    """
    runs = runs_of(found.models)
    if all(len(places) == 1 for places in runs.values()):
        one = replace(found, models=tuple(runs), values=found.values[[places[0] for places in runs.values()]])
        return significance.compare(one, resamples=resamples, permutations=permutations, level=level, seed=seed)
    if len({len(places) for places in runs.values()}) > 1:
        raise InputError(
            "the models have different numbers of runs", got={name: len(p) for name, p in runs.items()},
            next_step="compare as many seeds of each",
        )  # fmt: skip
    if found.truth is None:
        means = np.array([found.values[places].mean(0) for places in runs.values()])
        one = replace(found, models=tuple(runs), values=means)
        return significance.compare(one, resamples=resamples, level=level, seed=seed)
    statistic, truth = OF_A_SET[found.metric], found.truth
    each = found.of(np.arange(truth.size))
    values = np.array([each[places].mean() for places in runs.values()])
    sign = 1 if found.higher_is_better else -1
    order = np.argsort(np.where(np.isfinite(values), -sign * values, np.inf), kind="stable")
    names = [list(runs)[k] for k in order]
    groups = found.rows_of_subjects()
    n = len(groups)
    again = np.einsum("rmk,rk->rm", _seed_weights(runs, len(each), resamples, seed), comparison._draws(found, resamples, seed))
    place = {name: k for k, name in enumerate(runs)}
    pairs, p = [], []
    for a, b in combinations(names, 2):
        first, second = found.values[runs[a]], found.values[runs[b]]
        p.append(_swapped(truth, first, second, groups, statistic, permutations, seed))
        difference = again[:, place[a]] - again[:, place[b]]
        low, high = bounds(difference, 0.95, n) if n >= FEWEST else (None, None)
        pairs.append((a, b, float(values[place[a]] - values[place[b]]), low, high))
    adjusted = paired.holm(np.array(p))
    matrix = np.ones((len(names), len(names)))
    made = []
    for (a, b, difference, low, high), raw, corrected in zip(pairs, p, adjusted, strict=True):
        matrix[names.index(a), names.index(b)] = matrix[names.index(b), names.index(a)] = corrected
        made.append(
            Comparison(a, b, difference, low, high, float(raw), float(corrected), float("nan"), float("nan"), float("nan"), n)
        )
    return Significance(found.task, found.metric, tuple(names), values[order], matrix, tuple(made), n, found.left_out, level)


def _swapped(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, groups: Sequence[np.ndarray], statistic: Callable[[np.ndarray, np.ndarray], float],
    permutations: int, seed: int,
) -> float:  # fmt: skip
    """Randomisation of (s, n) outputs: for each subject the two models change places by one coin, in all seeds together."""

    def mean(outputs: np.ndarray) -> float:
        return float(np.mean([statistic(truth, one) for one in outputs]))

    seen = abs(mean(first) - mean(second))
    if not np.isfinite(seen):
        return float("nan")
    who = np.empty(truth.size, dtype=int)
    for k, rows in enumerate(groups):
        who[rows] = k
    coins = seeds.generator(seed, "randomisation").random((permutations, len(groups)))[:, who] < 0.5
    as_far = sum(abs(mean(np.where(c, second, first)) - mean(np.where(c, first, second))) >= seen - 1e-12 for c in coins)
    return float((1 + as_far) / (1 + permutations))
