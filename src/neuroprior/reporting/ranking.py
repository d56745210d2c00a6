"""The ranking part of a report: several models in one order by a protocol's rule, and how far the data support it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assessments import _seeds, comparison
from ..assessments.comparison import Ranking
from ..assessments.significance import LOWER_IS_BETTER, OF_A_SET, Significance
from ..core.errors import ConfigError, InputError
from ..core.records import Score
from ..metrics._bootstrap import mean_interval
from . import figures
from ._rows import FLOOR, is_floor, number, records, stem
from .scores import over_runs

if TYPE_CHECKING:
    import pandas as pd

    from ..protocols import Protocol

METRICS = {"dsc": "dice", "mae": "absolute_error"}
"""Names in protocols -> names in tables, where they differ: an error is ranked by its mean over cases either way."""
RESAMPLES = 1000


def ranking(scores: pd.DataFrame, protocol: Protocol | None = None, *, seed: int = 0) -> dict[str, Any] | None:
    """What the page shows of the models' order; None where there is nothing to order.

    Args:
        scores: rows of all models, of the condition ``clean``; names that end in ``seed N`` are runs of one model.
        protocol: whose metrics and weights rank; without it each task counts the same, by ``comparison.BY_TASK``.
        seed: of the draws.

    Returns:
        Plain numbers and sentences, and ``figures``; ``rows`` has a row a model, ``tasks`` a block a task.

    Raises:
        ConfigError: a task of the scores fits none of the protocol.
    """
    rows = records(scores[(scores["condition"] == "clean") & ~scores["model"].str.startswith(FLOOR)])
    rows, told = _shared(rows)
    tasks = list(dict.fromkeys((row.task, row.target) for row in rows))
    models = list(dict.fromkeys(_seeds.name_and_seed(row.model)[0] for row in rows))
    if len(models) < 2 or not tasks:
        return None
    rows, uneven = _seeds.evened(rows)
    told += [uneven] if uneven else []
    metrics, weights, rule = _rules(tasks, protocol)
    found = []
    for (task, target), names in metrics.items():
        here = [row for row in rows if (row.task, row.target) == (task, target)]
        for name in names:
            try:
                found += comparison.measures(here, {task: (name,)})
            except InputError as error:
                told.append(f"{task} of {target} is not ranked by {name}: {error.reason}.")
    if not found:
        return None
    order = next(one.models for one in found)
    if any(one.models != order for one in found):
        found = [_reordered(one, order) for one in found]
    used = list(dict.fromkeys(one.task for one in found))
    share = {task: weights[task] for task in used}
    result = _seeds.rank(found, weights=share, resamples=RESAMPLES, seed=seed)
    maps = [_seeds.compare(one, resamples=RESAMPLES, permutations=RESAMPLES, seed=seed) for one in found]
    total = sum(share.values())
    main = result.over_all
    clean = scores[scores["condition"] == "clean"]
    blocks = [
        _task(result.by_task[task], [m for m in maps if m.task == task], share[task] / total)
        | {
            "left_out": _left_out([m for m in maps if m.task == task]),
            "floor": floor_words(clean[(clean["task"] + " of " + clean["target"]) == task], result.by_task[task].models),
        }
        for task in used
    ]
    many = max(result.runs.values())
    return {
        "models": list(main.models), "sentence": main.sentence, "supported": main.supported, "rule": rule, "told": told,
        "resamples": RESAMPLES, "tau": _float(main.mean_tau), "level": main.level, "runs": dict(result.runs), "seeds": many if many > 1 else 0,
        "subjects": dict(main.subjects),
        "heads": ["model", "rank", "95 % interval", "mean rank", *(f"rank in {task}" for task in used)],
        "rows": [
            {
                "model": model, "rank": _float(main.rank[k]), "low": _float(main.low[k]), "high": _float(main.high[k]),
                "mean_rank": _float(main.mean_rank[k]), "by_task": {task: _float(main.by_task[task][k]) for task in used},
            }
            for k, model in enumerate(main.models)
        ],
        "ahead": {
            model: {other: _float(main.ahead[k, j]) for j, other in enumerate(main.models) if j != k}
            for k, model in enumerate(main.models)
        },
        "tasks": blocks,
        "figures": _figures(result, maps),
    }  # fmt: skip


def _left_out(maps: Sequence[Significance]) -> str:
    """That models are ranked on the cases that all runs have a value of, where some are left out."""
    left = max(one.left_out for one in maps)
    if not left:
        return ""
    return (
        f"Left out here, because the metric is not defined for every run: {left} of the cases. So the values are others than under Scores, where "
        "a false alarm on a case without the structure counts; look at the empty specificity too."
    )


def floor_words(frame: pd.DataFrame, models: Sequence[str]) -> str:
    """Which models are told from the trivial prediction, in words; empty where the table has no floor.

    By the paired difference over subjects of the metric of single cases, or, of a classification, by an AUROC above 0.5.

    Args:
        frame: rows of one task under one condition, floors among them.
        models: names without seeds, in order.
    """
    task = str(frame["task"].iloc[0])
    floors = [name for name in dict.fromkeys(frame["model"]) if is_floor(name)]
    if not floors:
        return ""
    metric = {"segmentation": "dice", "regression": "absolute_error", "classification": "auroc"}.get(task)
    if metric is None:
        return ""
    above = [model for model in models if _above_floor(frame, model, floors[0], metric)]
    rest = [model for model in models if model not in above]
    what = f"{floors[0].removeprefix('floor: ')}, by {metric.replace('_', ' ')}"
    if not above:
        return f"No model is told from the trivial floor ({what}): an order among them says little."
    if not rest:
        return f"Every model is better than the trivial floor ({what})."
    return f"Better than the trivial floor ({what}): {', '.join(above)}. Not told from it: {', '.join(rest)}."


def _above_floor(frame: pd.DataFrame, model: str, floor: str, metric: str) -> bool:
    runs = [name for name in dict.fromkeys(frame["model"]) if not is_floor(name) and stem(name) == model]
    if metric == "auroc":
        (row,) = over_runs(frame[frame["model"].isin(runs)], runs, "auroc", "all") or [{"low": None}]
        return row["low"] is not None and row["low"] > 0.5
    cases = frame[
        (frame["case"] != "all") & (frame["metric"] == metric) & ~frame["region"].str.contains(",") & frame["value"].notna()
    ]
    sums: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for row in cases.itertuples():
        mine, theirs = sums.setdefault((str(row.subject), str(row.case)), ([], []))
        if row.model in runs:
            mine.append(float(row.value))
        elif row.model == floor:
            theirs.append(float(row.value))
    gains = {key: float(np.mean(mine) - np.mean(theirs)) for key, (mine, theirs) in sums.items() if mine and theirs}
    sign = -1 if metric in LOWER_IS_BETTER else 1
    low, _ = mean_interval([subject for subject, _ in gains], sign * np.array(list(gains.values())), method="expanded")
    return low is not None and low > 0


def _shared(rows: Sequence[Score]) -> tuple[list[Score], list[str]]:
    """The rows of models that were tried on every task (or, where fewer than two were, of every task that all models share)."""
    tried: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        tried.setdefault(_seeds.name_and_seed(row.model)[0], set()).add((row.task, row.target))
    every = set().union(*tried.values()) if tried else set()
    whole = [model for model, tasks in tried.items() if tasks == every]
    if len(whole) >= 2:
        left = [
            f"{model} is not ranked: it was not tried on {_names(every - tasks)}."
            for model, tasks in tried.items()
            if tasks != every
        ]
        return [row for row in rows if _seeds.name_and_seed(row.model)[0] in whole], left
    shared = set.intersection(*tried.values()) if tried else set()
    left = [f"Not ranked, because not every model was tried on it: {_names(every - shared)}."] if every - shared else []
    return [row for row in rows if (row.task, row.target) in shared], left


def _names(tasks: set[tuple[str, str]]) -> str:
    return ", ".join(" of ".join(task) for task in sorted(tasks))


def _rules(
    tasks: Sequence[tuple[str, str]], protocol: Protocol | None
) -> tuple[dict[tuple[str, str], tuple[str, ...]], dict[str, float], str]:
    """Metrics of each task, weight of each task's name, and the rule in words.

    A task of the scores is the protocol's task whose name is its target, or the protocol's rule for its kind where all tasks of that kind
    have one rule.
    """
    if protocol is None:
        unknown = [task for task, _ in tasks if task not in comparison.BY_TASK]
        metrics = {(task, target): comparison.BY_TASK[task] for task, target in tasks if task not in unknown}
        words = "; ".join(f"{task} by {', '.join(comparison.BY_TASK[task])}" for task in dict.fromkeys(t for t, _ in metrics))
        return metrics, {f"{task} of {target}": 1.0 for task, target in tasks}, f"each metric ranked, ranks averaged within a task and over tasks, every task the same ({words})"  # fmt: skip
    if protocol.ranking is None:
        raise ConfigError(f"the rules of {protocol.title} for ranking are not known", expected="--protocol fomo25 or fomo26")
    metrics, weights = {}, {}
    for task, target in tasks:
        fits = [one for one in protocol.tasks if (one.kind, one.name) == (task, target)] or [
            one for one in protocol.tasks if one.kind == task
        ]
        rules = {(tuple(m.name for m in one.metrics), one.weight) for one in fits}
        if len(rules) != 1:
            raise ConfigError(
                f"{task} of {target} fits {'several tasks' if fits else 'no task'} of {protocol.title}",
                expected=", ".join(f"{one.name} ({one.kind})" for one in protocol.tasks),
            )
        ((names, weight),) = rules
        metrics[task, target] = tuple(METRICS.get(name, name) for name in names)
        weights[f"{task} of {target}"] = weight if protocol.ranking.over_tasks == "weighted" and weight is not None else 1.0
    total = sum(weights.values())
    words = "; ".join(
        f"{name} by {', '.join(metrics[key])}, weight {weights[name] / total:.0%}"
        for key in metrics
        for name in [" of ".join(key)]
    )
    return (
        metrics,
        weights,
        f"as in {protocol.title}: each metric ranked, ranks averaged within a task, then weighted over tasks ({words})",
    )


def _reordered(one: Any, order: Sequence[str]) -> Any:
    from dataclasses import replace

    return replace(one, models=tuple(order), values=one.values[[one.models.index(name) for name in order]])


def _task(ranked: Ranking, maps: Sequence[Significance], weight: float) -> dict[str, Any]:
    (name,) = ranked.subjects
    metrics = [metric for _, metric in ranked.values]
    return {
        "name": name, "weight": weight, "subjects": ranked.subjects[name], "sentence": ranked.sentence, "supported": ranked.supported,
        "tau": _float(ranked.mean_tau),
        "heads": ["model", "rank", "95 % interval", *(words for m in metrics for words in (m.replace("_", " "), f"rank by {m.replace('_', ' ')}"))],
        "rows": [
            {
                "model": model, "rank": _float(ranked.rank[k]), "low": _float(ranked.low[k]), "high": _float(ranked.high[k]),
                "values": {m: _float(ranked.values[name, m][k]) for m in metrics},
                "ranks": {m: _float(ranked.by_measure[name, m][k]) for m in metrics},
            }
            for k, model in enumerate(ranked.models)
        ],
        "maps": [_map(one) for one in maps],
    }  # fmt: skip


def _map(one: Significance) -> dict[str, Any]:
    test = "randomisation" if one.metric in OF_A_SET else "Wilcoxon"
    return {
        "metric": one.metric, "test": test, "sentence": one.sentence, "supported": one.supported, "models": list(one.models),
        "values": [_float(v) for v in one.values], "p_holm": [[_float(p) for p in row] for row in one.p], "subjects": one.n, "left_out": one.left_out,
        "pairs": [
            {
                "first": pair.first, "second": pair.second, "difference": _float(pair.difference), "low": pair.low, "high": pair.high,
                "p": _float(pair.p), "p_holm": _float(pair.adjusted), "effect": _float(pair.cohen_dz),
                "interval": "too few subjects" if pair.low is None or pair.high is None else f"[{pair.low:+.3f}, {pair.high:+.3f}]",
                "verdict": f"{pair.first} better" if pair.adjusted < one.level else "not told apart",
                "text": f"{pair.difference:+.3f}", "p_text": _p(pair.adjusted), "effect_text": number(_float(pair.cohen_dz)),
            }
            for pair in one.pairs
        ],
    }  # fmt: skip


def _p(value: float) -> str:
    return "–" if not np.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _float(value: Any) -> float | None:
    """A plain number for pages and files; None where there is none."""
    return float(value) if np.isfinite(value) else None


def _figures(result: _seeds.Ranked, maps: Sequence[Significance]) -> list[dict[str, str]]:
    main = result.over_all
    panels: dict[str, tuple[Sequence[str], np.ndarray]] = {}
    if len(result.by_task) > 1:
        panels["all tasks"] = (main.models, result.drawn)
    panels |= {task: (one.models, result.drawn_by_task[task]) for task, one in result.by_task.items()}
    intervals: dict[str, Mapping[str, tuple[float, float, float]]] = {}
    for title, one in (*((("all tasks", main),) if len(result.by_task) > 1 else ()), *result.by_task.items()):
        intervals[title] = {
            model: (float(one.rank[k]), float(one.low[k]), float(one.high[k])) for k, model in enumerate(one.models)
        }
    said = "; ".join(
        f"{model} rank {main.rank[k]:g} ({main.low[k]:g} to {main.high[k]:g})" for k, model in enumerate(main.models)
    )
    made = [
        {
            "title": "Ranks with their 95 % bootstrap intervals", "src": figures.rank_intervals(intervals), "wide": len(intervals) > 1,
            "alt": f"Ranks of the models with intervals, over all tasks: {said}",
        },
        {
            "title": "In which share of the draws a model takes which rank (area of the blob)", "src": figures.blobs(panels), "wide": len(panels) > 1,
            "alt": "Blob plot of ranks: " + "; ".join(
                f"{model} is first in {float((result.drawn[:, k] < 1.5).mean()):.0%} of the draws" for k, model in enumerate(main.models)
            ),
        },
    ]  # fmt: skip
    for one in maps:
        title = f"Significance map: {one.metric.replace('_', ' ')}, {one.task}"
        made.append({
            "title": f"{title} (p after Holm; coloured: told apart)",
            "src": figures.significance_map(list(one.models), one.p, one.level), "wide": False, "alt": f"{title}. {one.sentence}",
        })  # fmt: skip
    return made
