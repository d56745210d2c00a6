"""Places in a challenge: each metric ranked, ranks averaged within a task and then over tasks, by a protocol's rules.

Ties share the mean of the places they take (the protocols do not say how ties are broken; ``ties="min"`` gives all of them the best
of these places). A missing or non-finite score becomes the metric's worst value where the protocol states one, and is last, together
with every other missing one, where it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..core.errors import InputError, suggestion
from ..protocols import Metric, Protocol


@dataclass(frozen=True)
class Place:
    """How a team stands.

    Attributes:
        team: its name.
        place: 1 for the best; teams of one mean rank share a place.
        mean_rank: over tasks, by the protocol's rule.
        tasks: task name -> mean rank over the task's metrics.
        ranks: (task name, metric name) -> rank.
    """

    team: str
    place: int
    mean_rank: float
    tasks: Mapping[str, float]
    ranks: Mapping[tuple[str, str], float]


def ranks(values: Iterable[float | None], metric: Metric, ties: Literal["average", "min"] = "average") -> np.ndarray:
    """(n,) ranks of (n,) scores, 1 for the best.

    Args:
        values: scores; None and non-finite ones are failures.
        metric: which way is better and what a failure gets.
        ties: equal scores get the mean of the places they take, or the best of them.
    """
    from scipy.stats import rankdata

    worst = metric.worst if metric.worst is not None else (-np.inf if metric.better == "higher" else np.inf)
    scores = np.array([worst if value is None or not np.isfinite(value) else float(value) for value in values])
    return rankdata(-scores if metric.better == "higher" else scores, method=ties).astype(float)


def rank_teams(
    protocol: Protocol, scores: Iterable[Mapping[str, object]], *, ties: Literal["average", "min"] = "average"
) -> list[Place]:
    """The table of places.

    Args:
        protocol: with a ``ranking``; only tasks that appear in the scores count, their weights rescaled to sum to 1.
        scores: rows with ``team``, ``task`` (number or name), ``metric`` and ``value`` (None for a failure). A team without a row for
            a task that others have has failed there.
        ties: see :func:`ranks`.

    Returns:
        The teams, best first; equal teams by name.

    Raises:
        InputError: no rows, a metric that the task has not, a row twice, or a protocol without ranking rules.
        ConfigError: a task that the protocol has not.
    """
    if protocol.ranking is None:
        raise InputError(f"the rules of {protocol.title} for ranking are not known", next_step="rank by fomo25 or fomo26")
    found: dict[tuple[str, str, str], float | None] = {}
    for row in scores:
        task = protocol.task(str(row["task"]))
        team, metric, value = str(row["team"]), str(row["metric"]), row["value"]
        names = [entry.name for entry in task.metrics]
        if metric not in names:
            raise InputError(f"task {task.number} ({task.name}) has no metric {metric!r}", next_step=suggestion(metric, names))
        if (team, task.name, metric) in found:
            raise InputError("a score is there twice", got=f"{team}, {task.name}, {metric}", next_step="average repeats first")
        found[team, task.name, metric] = None if value is None else float(value)  # type: ignore[arg-type]
    if not found:
        raise InputError("there are no scores to rank", expected="rows with team, task, metric and value")
    teams = sorted({team for team, _, _ in found})
    used = [task for task in protocol.tasks if any(name == task.name for _, name, _ in found)]
    by: dict[tuple[str, str], np.ndarray] = {}
    for task in used:
        for metric in task.metrics:
            by[task.name, metric.name] = ranks((found.get((team, task.name, metric.name)) for team in teams), metric, ties)
    within = {task.name: np.mean([by[task.name, metric.name] for metric in task.metrics], axis=0) for task in used}
    weights = [task.weight if protocol.ranking.over_tasks == "weighted" and task.weight is not None else 1.0 for task in used]
    total = np.average([within[task.name] for task in used], axis=0, weights=weights)
    places = [
        Place(
            team, 1 + int(np.sum(total < total[k] - 1e-9)), float(total[k]), {name: float(value[k]) for name, value in within.items()},
            {key: float(value[k]) for key, value in by.items()},
        )
        for k, team in enumerate(teams)
    ]  # fmt: skip
    return sorted(places, key=lambda place: (place.place, place.team))
