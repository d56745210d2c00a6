"""What validation cases teach about a finished model: how sure it may sound, how wide its intervals are, when to keep quiet.

Three things, all stored as ``calibration`` in ``model.json``, none of which touches a weight:

- a temperature (Guo et al. 2017): final probabilities ``p`` become ``p ** (1 / T)``, renormalised;
- split-conformal half-widths (Vovk et al. 2005; Lei et al. 2018): ``value +- half-width`` covers the truth at a stated level
  for cases drawn like the calibration cases, whatever the model; also by group and by range of the truth (Mondrian) where these
  hold enough cases;
- a confidence below which a case is better left to a person.

Fitting is pure numpy on predictions that the model did not learn from; this module imports no training code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts
from ..core.errors import ArtifactError, InputError

KEY = "calibration"
"""Where ``model.json`` holds it."""
DESCRIPTION = "model.json"
MIN_CASES = 5
"""Fewer calibration cases than this say nothing about a temperature or an interval."""
TEMPERATURES = (0.05, 20.0)
"""Bounds of the search; beyond them a model is not miscalibrated but wrong."""


@dataclass(frozen=True)
class Calibration:
    """What was learned on validation or out-of-fold cases.

    Attributes:
        n: calibration cases.
        temperature: divides the log-probabilities; above 1 the model had been too sure.
        level: coverage that the half-widths reach, in (0, 1); with few cases it is lower than ``asked``, never pretended.
        quantiles: ``"value"`` -> half-width in the target's unit; ``"volume_ml"`` -> {label value as text: half-width in ml}.
        abstain_below: confidence (of the calibrated answer) below which a case should be left to a person, or None.
        asked: coverage that was asked for.
        groups: ``{"sex": {"F": half-width, ...}}``: half-widths of ``"value"`` by group, where the group was large enough.
        ranges: half-widths of ``"value"`` by where the *truth* lies, from the lowest range to the highest and without gaps; empty
            where the cases were too few. See :func:`interval_over`.
        facts: how it was fitted and what it changed (``source``, ``nll_before``, ``nll_after``, ``ece_before`` ...), for people.
    """

    n: int
    temperature: float = 1.0
    level: float = 0.9
    quantiles: Mapping[str, Any] = field(default_factory=dict)
    abstain_below: float | None = None
    asked: float = 0.9
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ranges: tuple[Range, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data, the content of ``model.json``'s ``calibration``."""
        return {
            "n": self.n, "temperature": self.temperature, "level": self.level,
            "quantiles": {key: dict(value) if isinstance(value, Mapping) else value for key, value in self.quantiles.items()},
            "abstain_below": self.abstain_below, "asked": self.asked,
            "groups": {name: dict(widths) for name, widths in self.groups.items()},
            "ranges": [entry.to_json() for entry in self.ranges], "facts": dict(self.facts),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> Calibration | None:
        """The inverse of :meth:`to_json`; None where there is none.

        Raises:
            ArtifactError: a number is missing or impossible.
        """
        if value is None:
            return None
        try:
            made = cls(
                n=int(value["n"]), temperature=float(value.get("temperature", 1.0)), level=float(value.get("level", 0.9)),
                quantiles=dict(value.get("quantiles") or {}),
                abstain_below=None if value.get("abstain_below") is None else float(value["abstain_below"]),
                asked=float(value.get("asked", value.get("level", 0.9))),
                groups={name: dict(widths) for name, widths in (value.get("groups") or {}).items()},
                ranges=tuple(Range.from_json(entry) for entry in value.get("ranges") or ()),
                facts=dict(value.get("facts") or {}),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError("the model's calibration is damaged", got=repr(error), next_step="calibrate again") from None
        if not (math.isfinite(made.temperature) and made.temperature > 0 and 0 < made.level < 1):
            raise ArtifactError(
                "the model's calibration is impossible", expected="temperature above 0, level in (0, 1)",
                got=f"temperature {made.temperature}, level {made.level}", next_step="calibrate again",
            )  # fmt: skip
        return made

    def interval(self, value: float, groups: Mapping[str, str | None] | None = None) -> tuple[float, float] | None:
        """The conformal interval of a predicted number, in the target's unit; None where none was learned.

        Args:
            value: the prediction.
            groups: what is known of the case, for example ``{"sex": "F"}``; the widest of the matching groups' half-widths is
                taken (so that each group keeps its coverage), the common one where no group matches.
        """
        if self.ranges:
            return interval_over(
                value, [(part.low, part.high, _widest(part.half_width, part.groups, groups)) for part in self.ranges]
            )
        if self.quantiles.get("value") is None:
            return None
        return interval(value, _widest(float(self.quantiles["value"]), self.groups, groups))


@dataclass(frozen=True)
class Range:
    """The half-width for cases whose true number lies in [low, high).

    Attributes:
        low, high: in the target's unit; infinite at the ends.
        half_width: of the cases in this range.
        groups: the same by group within the range, where the group was large enough.
    """

    low: float
    high: float
    half_width: float
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data; an infinite end is None, which JSON knows."""
        low, high = (None if math.isinf(end) else end for end in (self.low, self.high))
        groups = {name: dict(widths) for name, widths in self.groups.items()}
        return {"low": low, "high": high, "half_width": self.half_width, "groups": groups}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Range:
        """The inverse of :meth:`to_json`."""
        low = -math.inf if value["low"] is None else float(value["low"])
        high = math.inf if value["high"] is None else float(value["high"])
        return cls(low, high, float(value["half_width"]), dict(value.get("groups") or {}))


def _widest(common: float, widths: Mapping[str, Mapping[str, float]], groups: Mapping[str, str | None] | None) -> float:
    known = [widths[name][of] for name, of in (groups or {}).items() if of is not None and of in widths.get(name, {})]
    return float(max(known)) if known else common


def temper(probabilities: np.ndarray, temperature: float, axis: int = -1) -> np.ndarray:
    """``p ** (1 / T)``, renormalised along ``axis``: for final probabilities, after windows and members were averaged.

    Args:
        probabilities: of any shape, in [0, 1], summing to one along ``axis``.
        temperature: above 0; 1 returns the input itself.
        axis: of the classes.

    Returns:
        An array of the same shape and floating type. The order of classes never changes.
    """
    if temperature == 1.0:
        return probabilities
    # divided by the largest first, so that a small temperature cannot make all of them underflow
    scaled = probabilities / probabilities.max(axis=axis, keepdims=True)
    np.power(scaled, 1.0 / temperature, out=scaled)
    scaled /= scaled.sum(axis=axis, keepdims=True)
    return scaled


def interval(value: float, half_width: float, *, lowest: float | None = None) -> tuple[float, float]:
    """``(value - half_width, value + half_width)``; ``lowest`` bounds the lower end (a volume is never negative)."""
    low = value - half_width
    return (low if lowest is None else max(low, lowest)), value + half_width


def interval_over(value: float, ranges: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The interval of a prediction from half-widths by range of the truth (label-conditional conformal prediction).

    A number y is among the answers where it lies within the half-width *of its own range* from the prediction; what is returned
    reaches from the lowest such number to the highest. Since a true number in a range is missed exactly where its error exceeds that
    range's half-width, every range is covered at the level, however little the model knows (Vovk, "Conditional validity of
    inductive conformal predictors", 2012). A model that says the middle to everybody so gets intervals that reach far to both sides,
    which is what it knows.

    Args:
        value: the prediction.
        ranges: (low, high, half-width), ascending and without gaps.
    """
    reached = [
        (max(low, value - half), min(high, value + half))
        for low, high, half in ranges
        if max(low, value - half) <= min(high, value + half)
    ]
    return min(low for low, _ in reached), max(high for _, high in reached)


def nll(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean negative log-likelihood in nats of (n, classes) probabilities under (n,) class numbers (clipped at 1e-12)."""
    chosen = probabilities[np.arange(len(truth)), truth]
    return float(np.average(-np.log(np.clip(chosen, 1e-12, 1.0)), weights=weights))


def fit_temperature(
    probabilities: np.ndarray,
    truth: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    prior: float | None = 0.5,
) -> float:
    """The temperature with the lowest mean negative log-likelihood.

    Args:
        probabilities: (n, classes) of cases (or voxels) that the model did not learn from.
        truth: (n,) int class numbers.
        weights: (n,) of the rows in the mean, where a stratum was sampled more densely than another; equal by default.
        prior: spread of a normal prior on log T about 0, which keeps a handful of cases that are all right (or all wrong) from
            running to a bound; None for none, as for voxels, of which there are plenty.

    Returns:
        T, within :data:`TEMPERATURES`.

    Raises:
        InputError: fewer than :data:`MIN_CASES` rows, or one class only.
    """
    from scipy.optimize import minimize_scalar

    truth = np.asarray(truth)
    if len(truth) < MIN_CASES:
        raise InputError("too few cases to fit a temperature", expected=f"at least {MIN_CASES}", got=len(truth))
    present = np.unique(truth)
    if len(present) < 2:
        raise InputError(
            "the calibration cases are of one class only, which says nothing about a temperature",
            expected="at least two classes", got=f"class number {present[0]}",
        )  # fmt: skip
    logs = np.log(np.clip(np.asarray(probabilities, dtype=float), 1e-12, 1.0))
    rows = np.arange(len(truth))
    share = np.full(len(truth), 1.0) if weights is None else np.asarray(weights, dtype=float)
    share = share / share.sum()

    def loss(log_temperature: float) -> float:
        scaled = logs * math.exp(-log_temperature)
        top = scaled.max(1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
        penalty = 0.0 if prior is None else 0.5 * (log_temperature / prior) ** 2 / len(truth)
        return float((share * (total - scaled[rows, truth])).sum()) + penalty

    low, high = (math.log(bound) for bound in TEMPERATURES)
    # the loss is not convex in log T everywhere: the best of a grid first, then its neighbourhood to the end
    grid = np.linspace(low, high, 61)
    best = int(np.argmin([loss(value) for value in grid]))
    found = minimize_scalar(
        loss, bounds=(grid[max(best - 1, 0)], grid[min(best + 1, 60)]), method="bounded", options={"xatol": 1e-6}
    )
    return float(math.exp(found.x))


@dataclass(frozen=True)
class HalfWidth:
    """A split-conformal half-width.

    Attributes:
        value: half-width in the unit of the errors.
        level: coverage that it guarantees on average: rank / (n + 1).
        n: errors it was taken from.
    """

    value: float
    level: float
    n: int


def conformal(errors: np.ndarray | Sequence[float], level: float = 0.9) -> HalfWidth:
    """The split-conformal half-width: the error of rank ``ceil((n + 1) * level)`` in ascending order.

    With exchangeable cases a new one's error is at most that with probability rank / (n + 1), at least ``level``. Where n is
    so small that the rank lies beyond n (the half-width would be infinite) the largest error is taken and the level that it
    does reach, n / (n + 1), is returned with it: the caller tells the user.

    Args:
        errors: (n,) absolute errors on cases that the model did not learn from; not finite ones are refused.
        level: coverage wanted, in (0, 1).

    Raises:
        InputError: no error at all, one that is not finite, or an impossible level.
    """
    values = np.sort(np.abs(np.asarray(errors, dtype=float)))
    if not 0 < level < 1:
        raise InputError("the coverage level is a share", expected="0 < level < 1", got=level)
    if values.size == 0 or not np.isfinite(values).all():
        raise InputError("an interval is learned from finite errors", expected="at least one", got=f"{values.size} errors")
    n = len(values)
    rank = math.ceil((n + 1) * level - 1e-9)
    return HalfWidth(float(values[min(rank, n) - 1]), level if rank <= n else n / (n + 1), n)


def conformal_by_group(
    errors: np.ndarray | Sequence[float], groups: Sequence[str | None], level: float = 0.9
) -> dict[str, HalfWidth]:
    """A half-width for each group (Mondrian conformal prediction), so that each group is covered at the level.

    Args:
        errors: (n,) absolute errors.
        groups: (n,) the group of each; None belongs to no group.
        level: coverage wanted.

    Returns:
        Group -> half-width; groups that are too small to reach the level are left out (the common half-width serves them).
    """
    values = np.abs(np.asarray(errors, dtype=float))
    made = {}
    for name in sorted({group for group in groups if group is not None}):
        mine = values[[group == name for group in groups]]
        found = conformal(mine, level)
        if found.level >= level:
            made[name] = found
    return made


def conformal_by_range(
    errors: np.ndarray | Sequence[float],
    truth: np.ndarray | Sequence[float],
    edges: Sequence[float],
    level: float = 0.9,
    groups: Mapping[str, Sequence[str | None]] | None = None,
) -> tuple[Range, ...]:
    """Half-widths by where the truth lies; a range with too few cases for the level joins its smaller neighbour.

    Args:
        errors: (n,) absolute errors on cases that the model did not learn from.
        truth: (n,) true numbers.
        edges: where ranges meet, ascending; the outer ones are open.
        level: coverage wanted, of each range.
        groups: name -> (n,) groups, for half-widths of their own within each range where they are large enough.

    Returns:
        The ranges, ascending; none where fewer than two are large enough (the common half-width is then all that can be had).
    """
    values, true = np.abs(np.asarray(errors, dtype=float)), np.asarray(truth, dtype=float)
    needed = math.ceil(level / (1 - level) - 1e-9)  # the rank (n + 1) * level must not lie beyond n
    ends = [-math.inf, *sorted(edges), math.inf]
    counts = [int(((true >= low) & (true < high)).sum()) for low, high in pairwise(ends)]
    while len(counts) > 1 and min(counts) < needed:
        k = counts.index(min(counts))
        other = k - 1 if k == len(counts) - 1 or (k > 0 and counts[k - 1] <= counts[k + 1]) else k + 1
        first = min(k, other)
        counts[first : first + 2] = [counts[first] + counts[first + 1]]
        del ends[first + 1]
    if len(counts) < 2:
        return ()
    made = []
    for low, high in pairwise(ends):
        mine = (true >= low) & (true < high)
        within: dict[str, dict[str, float]] = {}
        for name, of in (groups or {}).items():
            found = conformal_by_group(values[mine], [g for g, m in zip(of, mine, strict=True) if m], level)
            if found:
                within[name] = {value: entry.value for value, entry in found.items()}
        made.append(Range(low, high, conformal(values[mine], level).value, within))
    return tuple(made)


def abstain_threshold(
    confidence: np.ndarray | Sequence[float],
    correct: np.ndarray | Sequence[bool] | None = None,
    *,
    coverage: float | None = None,
    risk: float | None = None,
) -> float | None:
    """The confidence below which cases should be left to a person; a case with exactly the threshold is answered.

    Args:
        confidence: (n,) of validation cases, higher is surer.
        correct: (n,) whether the answer was right; needed for ``risk``.
        coverage: keep at least this share of the cases: the highest threshold that does.
        risk: keep as many cases as have at most this share of wrong answers: the lowest threshold that does.

    Returns:
        The threshold; None where no threshold keeps the risk.

    Raises:
        InputError: neither or both of coverage and risk are given, or fewer than :data:`MIN_CASES` cases.
    """
    if (coverage is None) == (risk is None):
        raise InputError("abstaining is tuned for a coverage or for a risk", expected="one of them")
    values = np.asarray(confidence, dtype=float)
    if len(values) < MIN_CASES:
        raise InputError("too few cases to tune abstaining", expected=f"at least {MIN_CASES}", got=len(values))
    order = np.sort(values)
    if coverage is not None:
        dropped = min(math.floor(len(order) * (1 - coverage) + 1e-9), len(order) - 1)
        return float(order[dropped])
    if correct is None or risk is None:
        raise InputError("a risk needs to know which answers were right")
    right = np.asarray(correct, dtype=bool)
    for threshold in np.unique(order):
        kept = values >= threshold
        if (~right[kept]).mean() <= risk:
            return float(threshold)
    return None


def attach(folder: str | Path, calibration: Calibration | None) -> Path:
    """Put a calibration into a model folder (or take it out with None), by an atomic rewrite of ``model.json`` alone.

    Weights, their hash and the forward check are not touched, so the model stays the one it was.

    Args:
        folder: a model folder, a run folder that holds one, or an ensemble's folder.
        calibration: what was learned.

    Returns:
        The folder that holds the description.

    Raises:
        ArtifactError: there is no ``model.json``.
    """
    path = _described(folder)
    info = artifacts.read_json(path / DESCRIPTION)
    info.pop(KEY, None)
    artifacts.write_json(path / DESCRIPTION, info if calibration is None else info | {KEY: calibration.to_json()})
    return path


def read(folder: str | Path) -> Calibration | None:
    """The calibration of a model folder, or None where it has none."""
    return Calibration.from_json(artifacts.read_json(_described(folder) / DESCRIPTION).get(KEY))


def _described(folder: str | Path) -> Path:
    given = Path(folder)
    path = given / "model" if (given / "model" / DESCRIPTION).is_file() else given
    if not (path / DESCRIPTION).is_file():
        raise ArtifactError(
            "there is no model here to calibrate", file=given, expected=DESCRIPTION, next_step="give a run or model folder"
        )
    return path
