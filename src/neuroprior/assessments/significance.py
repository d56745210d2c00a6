"""Significance: which differences between models are more than chance, on the same subjects.

Each pair of models is compared on the cases that both (and all others) score, one value a subject: sessions of a subject are
averaged first. A metric that each case has by itself (DSC, absolute error) is tested by Wilcoxon's signed ranks; a metric
of the whole set (AUROC, correlation) by randomisation. p-values are corrected by Holm over all pairs of a map. Beside each
stands the difference with its paired bootstrap interval, and effect sizes.

Cases on which a metric is not defined for one of the models (empty masks under the ``honest`` rule) are left out for all
and counted: what the models do on them is told by ``empty_specificity``, not here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path

import numpy as np

from ..core import seeds
from ..core.errors import InputError
from ..core.records import Score
from ..metrics import auroc, errors, operating, paired
from ..metrics._bootstrap import FEWEST, OF_MEANS, bounds, mean_interval

LOWER_IS_BETTER = frozenset((
    "hd95_mm", "hd_mm", "assd_mm", "volume_error_ml", "volume_error_relative", "absolute_error", "mae", "rmse", "ece", "ece_mass", "ece_debiased",
    "brier", "brier_reliability", "nll", "aurc", "excess_aurc", "crps", "interval_score", "ece_class_wise", "ece_top_label", "brier_multiclass",
    "nll_multiclass", "risk", "risk_at_coverage", "interval_width", "parameters", "seconds_per_case", "peak_memory_mb", "peak_gpu_memory_mb",
    "device_hours", "training_flops", "flops_per_window", "energy_kwh",
))  # fmt: skip
"""Metrics of which less is better; of all others more is."""

OF_A_SET = {
    "auroc": lambda truth, value: auroc.auroc(truth > 0, value),
    "auprc": lambda truth, value: auroc.auprc(truth > 0, value),
    "sensitivity_at_specificity_90": lambda truth, value: operating.sensitivity_at_specificity(truth > 0, value, 0.9),
    "brier": lambda truth, value: float(((value - truth) ** 2).mean()) if truth.size else float("nan"),
    "mae": errors.mae,
    "rmse": errors.rmse,
    "pearson_r": errors.pearson,
    "spearman_r": errors.spearman,
}
"""Metrics of a whole set that follow from the rows of its cases: (n,) truth and (n,) predicted numbers."""

_PROBABILITIES = ("auroc", "auprc", "sensitivity_at_specificity_90", "brier")


def read_scores(path: Path) -> list[Score]:
    """The rows of a table of scores (Parquet, as ``neuroprior evaluate`` writes it).

    Raises:
        InputError: there is no such table, or it is none of scores.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    names = [item.name for item in fields(Score)]
    try:
        rows = pq.read_table(path, columns=names).to_pylist()
    except (OSError, ArrowInvalid) as error:
        raise InputError(
            "this table of scores cannot be read", file=path, expected="scores.parquet of neuroprior evaluate", got=str(error)
        ) from None
    if not rows or set(rows[0]) != set(names):
        raise InputError("this is no table of scores", file=path, expected=", ".join(names))
    nothing = ("value", "low", "high")  # pandas writes a missing number as NaN
    return [Score(**{k: None if k in nothing and v is not None and np.isnan(v) else v for k, v in row.items()}) for row in rows]


@dataclass(frozen=True)
class Measure:
    """One metric of several models on the same cases.

    Attributes:
        task: task and target, as in ``segmentation of lesion``.
        metric: its name.
        models: (m,) in the order of the rows of ``values``.
        subjects: (n,) who each case belongs to.
        values: (m, n) the metric of each case, or, for a metric of a set, each case's output.
        truth: (n,) for a metric of a set (1 is positive), otherwise None.
        left_out: cases that not all models have a defined value of.
    """

    task: str
    metric: str
    models: tuple[str, ...]
    subjects: tuple[str, ...]
    values: np.ndarray
    truth: np.ndarray | None = None
    left_out: int = 0

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""
        return self.metric not in LOWER_IS_BETTER

    def of(self, rows: np.ndarray) -> np.ndarray:
        """(m,) the metric of each model on these (k,) case numbers, with repeats."""
        if self.truth is None:
            return self.values[:, rows].mean(1)
        truth = self.truth[rows]
        return np.array([OF_A_SET[self.metric](truth, value[rows]) for value in self.values])

    def rows_of_subjects(self) -> list[np.ndarray]:
        """The case numbers of each subject, subjects in sorted order."""
        names = np.array(self.subjects)
        return [np.flatnonzero(names == name) for name in np.unique(names)]


def measure(scores: Sequence[Score], metric: str, *, region: str | None = None, condition: str = "clean") -> Measure:
    """The rows of one task as a :class:`Measure`.

    Args:
        scores: rows of one task and target, of all models.
        metric: one that each case has a row of, or one of :data:`OF_A_SET`.
        region: of a segmentation; by default the mean over all regions (size bins aside), each where all models have it.
        condition: of the inputs.

    Raises:
        InputError: fewer than two models, several tasks, no common case, or no row of this metric.
    """
    rows = [row for row in scores if row.condition == condition]
    tasks = sorted({(row.task, row.target) for row in rows})
    if len(tasks) > 1:
        raise InputError(
            "these scores are of several tasks", expected="one task and target", got="; ".join(" of ".join(t) for t in tasks)
        )
    of_a_set = metric in OF_A_SET and not any(row.metric == metric and row.case != "all" for row in rows)
    value_name = metric if not of_a_set else "probability" if metric in _PROBABILITIES else "predicted"
    wanted = [row for row in rows if row.case != "all" and row.metric == value_name and "," not in row.region]
    wanted = [row for row in wanted if region is None or row.region == region]
    models = tuple(dict.fromkeys(row.model for row in wanted))
    if len(models) < 2:
        raise InputError(f"a comparison by {metric} needs two models", got=", ".join(models) or "no row of it")
    cells: dict[tuple[str, str], dict[str, float | None]] = defaultdict(dict)
    subject: dict[str, str] = {}
    for row in wanted:
        cells[row.case, row.region][row.model] = row.value
        subject[row.case] = row.subject
    by_case: dict[str, list[list[float]]] = {case: [] for case in subject}
    for (case, _), found in cells.items():
        numbers = [found.get(model) for model in models]
        if all(number is not None for number in numbers):
            by_case[case].append([float(number) for number in numbers if number is not None])
    truths = _truths(rows, metric) if of_a_set else {}
    cases = [case for case, found in sorted(by_case.items()) if found and (not of_a_set or case in truths)]
    if not cases:
        raise InputError(f"no case has a defined {metric} of every model", got=", ".join(models))
    return Measure(
        " of ".join(tasks[0]), metric, models, tuple(subject[case] for case in cases),
        np.array([np.mean(by_case[case], 0) for case in cases]).T,
        np.array([truths[case] for case in cases]) if of_a_set else None, len(by_case) - len(cases),
    )  # fmt: skip


def _truths(rows: Sequence[Score], metric: str) -> dict[str, float]:
    if metric not in _PROBABILITIES:
        return {row.case: float(row.value) for row in rows if row.metric == "truth" and row.value is not None}
    found = (re.match(r"positive class (.*?), \d+ of \d+(?:;|$)", row.note) for row in rows if row.case == "all")
    positive = next((said[1] for said in found if said), None)
    if positive is None:
        raise InputError(f"no row says which class is positive, so {metric} cannot be computed again")
    return {row.case: float(row.note == f"truth {positive}") for row in rows if row.metric == "probability"}


@dataclass(frozen=True)
class Comparison:
    """The first model against the second.

    Attributes:
        first, second: models.
        difference: mean (or metric) of the first less that of the second.
        low, high: its 95 % paired bootstrap interval; None with fewer than three subjects.
        p, adjusted: two-sided, and after Holm over the map.
        cohen_dz, rank_biserial, superiority: effect sizes of the first over the second, in the metric's own direction;
            NaN for metrics of a set.
        n: subjects.
    """

    first: str
    second: str
    difference: float
    low: float | None
    high: float | None
    p: float
    adjusted: float
    cohen_dz: float
    rank_biserial: float
    superiority: float
    n: int


@dataclass(frozen=True)
class Significance:
    """All pairs of one metric: the significance map.

    Attributes:
        task, metric: what was measured.
        models: from best to worst by the metric.
        values: (m,) the metric of each.
        p: (m, m) symmetric, adjusted by Holm; 1 on the diagonal.
        pairs: each pair once, the better model first.
        n: subjects.
        left_out: cases without a defined value of every model.
        level: above which a difference is not called one.
    """

    task: str
    metric: str
    models: tuple[str, ...]
    values: np.ndarray
    p: np.ndarray
    pairs: tuple[Comparison, ...]
    n: int
    left_out: int
    level: float = 0.05

    @property
    def supported(self) -> bool:
        """Whether each model differs from the next one."""
        return all(self.p[k, k + 1] < self.level for k in range(len(self.models) - 1))

    @property
    def sentence(self) -> str:
        """What the map says of the order, in words."""
        by = f"by {self.metric} on {self.n} subjects" + (
            f", {self.left_out} cases not defined for all left out" if self.left_out else ""
        )
        if self.n < FEWEST:
            return f"Nothing can be said of the order {by}: at least {FEWEST} subjects are needed."
        doubtful = [k for k in range(len(self.models) - 1) if not self.p[k, k + 1] < self.level]
        if not doubtful:
            return f"The order {' > '.join(self.models)} is supported by the data {by} (every neighbour differs, Holm-adjusted p < {self.level:g})."
        said = "; ".join(f"{self.models[k]} is not told from {self.models[k + 1]} (p = {self.p[k, k + 1]:.2g})" for k in doubtful)
        apart = [pair for pair in self.pairs if pair.adjusted < self.level]
        but = f" What the data do support: {', '.join(f'{pair.first} > {pair.second}' for pair in apart)}." if apart else ""
        return f"The order {' > '.join(self.models)} is not supported by the data {by}: {said}.{but}"


def compare(
    found: Measure, *, resamples: int = 2000, permutations: int = 2000, level: float = 0.05, seed: int = 0
) -> Significance:
    """The significance map of one metric.

    Args:
        found: of :func:`measure`.
        resamples: of the bootstrap.
        permutations: of the randomisation, for metrics of a set.
        level: above which a difference is not called one.
        seed: of both.
    """
    m = len(found.models)
    every = np.arange(found.values.shape[1])
    values = found.of(every)
    sign = 1 if found.higher_is_better else -1
    order = np.argsort(np.where(np.isfinite(values), -sign * values, np.inf), kind="stable")
    groups = found.rows_of_subjects()
    each = np.array([found.values[:, rows].mean(1) for rows in groups]).T
    names = [str(k) for k in range(len(groups))]
    made, p = [], []
    for a, b in combinations(order.tolist(), 2):
        if found.truth is None:
            x, y = each[a], each[b]
            p.append(paired.wilcoxon(x, y))
            low, high = mean_interval(names, x - y, resamples=resamples, seed=seed, method=OF_MEANS)
            made.append(
                (
                    a,
                    b,
                    float(x.mean() - y.mean()),
                    low,
                    high,
                    paired.cohen_dz(x, y),
                    paired.rank_biserial(x, y),
                    paired.superiority(x, y),
                )
            )
        else:
            low, high = _set_interval(found, (a, b), groups, resamples, seed)
            p.append(_set_p(found, (a, b), groups, permutations, seed))
            made.append((a, b, float(values[a] - values[b]), low, high, *[float("nan")] * 3))
    adjusted = paired.holm(np.array(p))
    matrix = np.ones((m, m))
    place = {k: spot for spot, k in enumerate(order.tolist())}
    pairs = []
    for (a, b, difference, low, high, dz, biserial, better), raw, corrected in zip(made, p, adjusted, strict=True):
        matrix[place[a], place[b]] = matrix[place[b], place[a]] = corrected
        pairs.append(
            Comparison(
                found.models[a],
                found.models[b],
                difference,
                low,
                high,
                float(raw),
                float(corrected),
                dz,
                biserial,
                better,
                len(groups),
            )
        )
    return Significance(
        found.task, found.metric, tuple(found.models[k] for k in order), values[order], matrix, tuple(pairs), len(groups),
        found.left_out, level,
    )  # fmt: skip


def _set_interval(
    found: Measure, pair: tuple[int, int], groups: Sequence[np.ndarray], resamples: int, seed: int
) -> tuple[float | None, float | None]:
    n = len(groups)
    if n < FEWEST or found.truth is None:
        return None, None
    draw = seeds.generator(seed, "bootstrap")
    statistic = OF_A_SET[found.metric]
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([groups[k] for k in draw.integers(0, n, n)])
        a, b = (statistic(found.truth[rows], found.values[k, rows]) for k in pair)
        drawn.append(a - b)
    return bounds(np.array(drawn), 0.95, n)


def _set_p(found: Measure, pair: tuple[int, int], groups: Sequence[np.ndarray], permutations: int, seed: int) -> float:
    """Randomisation in which all cases of a subject change places together."""
    truth, (a, b) = found.truth, (found.values[k] for k in pair)
    assert truth is not None
    statistic = OF_A_SET[found.metric]
    who = np.empty(truth.size, dtype=int)
    for k, rows in enumerate(groups):
        who[rows] = k
    if len(groups) == truth.size:
        return paired.randomisation(a, b, lambda value: statistic(truth, value), permutations=permutations, seed=seed)
    seen = abs(statistic(truth, a) - statistic(truth, b))
    if not np.isfinite(seen):
        return float("nan")
    coins = seeds.generator(seed, "randomisation").random((permutations, len(groups)))[:, who] < 0.5
    as_far = sum(abs(statistic(truth, np.where(c, b, a)) - statistic(truth, np.where(c, a, b))) >= seen - 1e-12 for c in coins)
    return float((1 + as_far) / (1 + permutations))


def table(found: Significance) -> list[Mapping[str, object]]:
    """The pairs as plain rows, for a table or a file."""
    return [
        {
            "task": found.task, "metric": found.metric, "first": pair.first, "second": pair.second, "difference": pair.difference,
            "low": pair.low, "high": pair.high, "p": pair.p, "p_holm": pair.adjusted, "cohen_dz": pair.cohen_dz,
            "rank_biserial": pair.rank_biserial, "superiority": pair.superiority, "n": pair.n,
        }
        for pair in found.pairs
    ]  # fmt: skip
