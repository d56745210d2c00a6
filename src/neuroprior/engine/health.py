"""Is a representation alive? Measures, alarms with advice, and the rule by which a run goes back to its last good state.

The engine knows no brains: it is shown named feature matrices whose rows belong to groups (a pretraining stage shows a fixed
set of scans, grouped by subject), and predictions beside their targets.

Measures: spread (1 - the mean cosine between rows of different groups, 0 when all groups share one direction), standard
deviation relative to the root mean square, effective rank (RankMe, Garrido et al. 2023, arXiv 2210.02885), variance
between groups over variance within and over posterior variance. Thresholds look at where a run began: features of an untrained
net may be alike, but they must not become more so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core.config import Config

ADVICE = {
    "loss": "lower training.optimizer.lr or training.clip_norm, or lengthen the warm-up; look at the scans of that step for absurd values",
    "weights": "a step left weights that are not finite: lower training.optimizer.lr, or set training.clip_norm",
    "features": "features of fixed scans are not finite: lower training.optimizer.lr; if it comes again try training.precision=32",
    "explosion": "lower training.optimizer.lr or training.clip_norm, or lengthen the warm-up",
    "collapse": "every scan gets the same features: lower training.optimizer.lr; check that the inputs differ (panels/); an agreement term "
    "needs negatives or a variance term (objective.agreement_form=dense_infonce or vicreg)",
    "rank": "the features lie in a few directions: lower training.optimizer.lr, or give the agreement term negatives or a covariance term",
    "emptied": "this half tells nobody apart: a plain cosine pull is best met by one direction for all; use "
    "objective.agreement_form=dense_infonce, centred_cosine or vicreg, or lower objective.agreement",
    "constant": "the head predicts the same for everybody: use data.targets=z_scored with objective.centre=batchnorm or "
    "objective.distance=smooth_l1",
    "targets": "the targets themselves are almost the same for everybody, so a constant meets them: use data.targets=z_scored",
}
"""Kind of alarm -> what to do."""

RUINED = frozenset({"loss", "weights", "features", "explosion"})
"""Kinds after which going on is pointless: the run goes back whatever ``action`` says."""


class HealthConfig(Config):
    """When a run is looked at, and what an alarm does."""

    every: int | None = Field(default=None, ge=1)
    """Steps between two looks; by default a fortieth of the run, between 10 and 100."""
    patience: int = Field(default=2, ge=1)
    """Looks in a row that must agree before an alarm about features is given."""
    action: Literal["warn", "rollback", "stop"] = "warn"
    """What an alarm about features does. Numbers that are not finite, and a loss that explodes, always roll back. With ``warn`` a state
    with such an alarm still counts as good; otherwise only a state without one does."""
    max_rollbacks: int = Field(default=2, ge=0)
    """After so many the run stops."""
    lr_factor: float = Field(default=0.3, gt=0, le=1)
    """The learning rate is multiplied by this at every rollback."""
    min_std: float = Field(default=1e-3, ge=0)
    """Standard deviation over root mean square below which features have collapsed."""
    min_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of its value at the beginning below which spread or effective rank has collapsed."""
    min_spread: float = Field(default=0.02, ge=0)
    """Spread between groups below which a half is empty, where it began at twice this or more."""
    min_half: float = Field(default=0.1, ge=0)
    """Spread between groups, as a share of the other half's, below which a half is empty, where it has also lost half of what it began
    with. An untrained net's halves spread alike; the variance between groups over the posterior's, which is logged too, is as small in
    an untrained net as in an emptied one and tells nothing in the first tenth of a run."""
    min_prediction_ratio: float = Field(default=0.01, ge=0)
    """Variance of predictions between rows, over that of their targets, below which a head predicts one constant."""
    max_target_cosine: float = Field(default=0.98, le=1)
    """Mean cosine between targets above which they tell nobody apart (for targets whose direction counts)."""
    explosion: float = Field(default=20.0, gt=1)
    """The loss explodes when the median of the last ten steps is so many times the median of all before (and above the first)."""

    def interval(self, steps: int) -> int:
        """Steps between two looks of a run of ``steps`` steps."""
        return self.every or max(10, min(100, steps // 40))


@dataclass(frozen=True)
class Observation:
    """What a stage shows of a module.

    Attributes:
        features: name -> (N, D) rows of features.
        groups: N names; rows of one group show the same thing in other ways.
        posterior: name -> mean posterior variance of features, where there is one.
        predictions: name -> ((M, K) predictions, (M, K) targets, whether only their direction counts).
        labels: name -> N values (numbers or names, None where unknown) that a linear probe tries to read.
        fit: (N,) bool, rows that probes are fitted on; the others are read. No group is on both sides.
        identify: names of the features that ought to tell groups apart; only these can be ``emptied``.
    """

    features: Mapping[str, Tensor]
    groups: Sequence[str]
    posterior: Mapping[str, float] = field(default_factory=dict)
    predictions: Mapping[str, tuple[Tensor, Tensor, bool]] = field(default_factory=dict)
    labels: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fit: Tensor | None = None
    identify: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Alarm:
    """Something is wrong.

    Attributes:
        kind: key of :data:`ADVICE`.
        name: of the features or predictions.
        value, threshold: what was seen and what was expected at least (or at most).
    """

    kind: str
    name: str
    value: float
    threshold: float

    def __str__(self) -> str:
        return f"{self.kind} of {self.name}: {self.value:.3g}, {self.expected}; {ADVICE[self.kind]}"

    @property
    def expected(self) -> str:
        """The threshold in words."""
        return f"threshold {self.threshold:.3g}" if math.isfinite(self.threshold) else "expected a finite number"

    def event(self, step: int) -> dict[str, Any]:
        """The alarm as an event."""
        value = self.value if math.isfinite(self.value) else str(self.value)  # JSON has neither NaN nor infinity
        threshold = self.threshold if math.isfinite(self.threshold) else "finite"
        return {
            "event": "alarm", "step": step, "kind": self.kind, "name": self.name, "value": value, "threshold": threshold,
            "advice": ADVICE[self.kind],
        }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ measures


def effective_rank(features: Tensor) -> float:
    """RankMe: the exponential of the entropy of the singular values' shares; between 1 and min(N, D).

    0 for features that are all 0, NaN where one is not finite.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.double())
    total = float(values.sum())
    if total == 0:
        return 0.0
    share = values / total + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def relative_std(features: Tensor) -> float:
    """Standard deviation over rows, root mean square over columns, divided by the features' root mean square."""
    features = features.double()
    scale = features.square().mean().sqrt()
    return float(features.var(0, correction=0).mean().sqrt() / scale) if scale > 0 else 0.0


def spread(features: Tensor, groups: Sequence[str]) -> float:
    """1 - the mean cosine between rows of different groups: 0 to 2, 0 when all groups share one direction."""
    unit = functional.normalize(features.double(), dim=1)
    number = {name: k for k, name in enumerate(dict.fromkeys(groups))}
    who = torch.tensor([number[name] for name in groups])
    other = who[:, None] != who[None, :]
    if not other.any():
        return math.nan
    return float(1 - (unit @ unit.T).cpu()[other].mean())


def variances(features: Tensor, groups: Sequence[str]) -> tuple[float, float]:
    """Variance of the groups' means, and mean variance within a group, each averaged over columns.

    The first is corrected for what the second adds to it. NaN where no group has two rows.
    """
    features = features.double().cpu()
    rows: dict[str, list[int]] = {}
    for n, name in enumerate(groups):
        rows.setdefault(name, []).append(n)
    several = [features[places] for places in rows.values() if len(places) > 1]
    if len(several) < 2:
        return math.nan, math.nan
    within = torch.stack([part.var(0) for part in several]).mean(0)
    means = torch.stack([part.mean(0) for part in several])
    size = sum(len(part) for part in several) / len(several)
    between = (means.var(0) - within / size).clamp(min=0)
    return float(between.mean()), float(within.mean())


def prediction_ratio(guess: Tensor, target: Tensor, direction: bool) -> float:
    """Variance of predictions between rows over that of their targets; of unit vectors where only the direction counts."""
    guess, target = guess.double(), target.double()
    if direction:
        guess, target = functional.normalize(guess, dim=1), functional.normalize(target, dim=1)
    wanted = float(target.var(0).mean())
    return float(guess.var(0).mean()) / wanted if wanted > 0 else math.nan


def measure(seen: Observation) -> dict[str, float]:
    """Every measure of an observation, by ``features/measure``; those that are not defined are left out.

    Features and predictions that hold a number that is not finite have one measure, ``finite``: the share of those that are.
    """
    found: dict[str, float] = {}
    for name, rows in seen.features.items():
        if not rows.isfinite().all():
            found[f"{name}/finite"] = float(rows.isfinite().double().mean())
            continue
        between, within = variances(rows, seen.groups)
        values = {
            "std": relative_std(rows), "rank": effective_rank(rows), "spread": spread(rows, seen.groups),
            "between_within": between / within if within > 0 else math.nan,
        }  # fmt: skip
        if name in seen.posterior and seen.posterior[name] > 0:
            values["between_posterior"] = between / seen.posterior[name]
        found |= {f"{name}/{key}": value for key, value in values.items() if not math.isnan(value)}
    for name, (guess, target, direction) in seen.predictions.items():
        if not guess.isfinite().all():
            found[f"{name}/finite"] = float(guess.isfinite().double().mean())
            continue
        if len(guess) > 2:
            ratio = prediction_ratio(guess, target, direction)
            if not math.isnan(ratio):
                found[f"{name}/ratio"] = ratio
            if direction:
                found[f"{name}/target_cosine"] = 1 - spread(target, [str(n) for n in range(len(target))])
    return found


def probe(seen: Observation) -> dict[str, float]:
    """What ridge regression on standardised features reads of each label in rows it was not fitted on.

    R2 for numbers (not below -1), balanced accuracy for names; labels without two values on both sides are left out.
    """
    import numpy as np
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.metrics import r2_score, recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found: dict[str, float] = {}
    if seen.fit is None:
        return found
    penalties = np.logspace(-1, 4, 6)
    for name, rows in seen.features.items():
        values = rows.float().cpu().numpy()
        for label, given in seen.labels.items():
            known = np.array([value is not None and value == value for value in given])
            fit, rest = known & seen.fit.numpy(), known & ~seen.fit.numpy()
            truth = np.array([value if k else None for value, k in zip(given, known, strict=True)], dtype=object)
            if min(len(set(truth[fit])), len(set(truth[rest]))) < 2 or not np.isfinite(values).all():
                continue
            numbers = all(isinstance(value, (int, float)) for value in truth[known])
            model = make_pipeline(StandardScaler(), RidgeCV(penalties) if numbers else RidgeClassifierCV(penalties))
            kind = float if numbers else str
            model.fit(values[fit], truth[fit].astype(kind))
            guess, wanted = model.predict(values[rest]), truth[rest].astype(kind)
            if numbers:
                score = max(-1.0, float(r2_score(wanted, guess)))
            else:  # the mean recall of the classes that occur
                score = float(recall_score(wanted, guess, labels=np.unique(wanted), average="macro", zero_division=0.0))
            found[f"{name}/{label}"] = score
    return found


# -------------------------------------------------------------------------------------------------------------------- alarms


class Monitor:
    """Remembers how a run began and what was wrong at the last looks. Its state is plain data and is saved with the run's."""

    def __init__(self, config: HealthConfig, steps: int, state: Mapping[str, Any] | None = None) -> None:
        self.config, self.steps = config, steps
        state = state or {}
        self.first: dict[str, float] = dict(state.get("first", {}))
        self.counts: dict[str, int] = dict(state.get("counts", {}))
        self.given: list[str] = list(state.get("given", []))
        self.losses: list[float] = list(state.get("losses", []))
        self.rollbacks: int = int(state.get("rollbacks", 0))
        self.lr_scale: float = float(state.get("lr_scale", 1.0))
        self.healthy: bool = bool(state.get("healthy", True))

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "first": self.first, "counts": self.counts, "given": self.given, "losses": self.losses, "rollbacks": self.rollbacks,
            "lr_scale": self.lr_scale, "healthy": self.healthy,
        }  # fmt: skip

    def look(self, step: int, found: Mapping[str, float], identify: Collection[str] = ()) -> list[Alarm]:
        """The alarms that are due after a look: those that held for ``patience`` looks and were not given before.

        Args:
            step: steps done.
            found: of :func:`measure`.
            identify: of the observation.
        """
        if not self.first:
            self.first = dict(found)
        wrong = {f"{alarm.kind} {alarm.name}": alarm for alarm in self._wrong(step, found, identify)}
        self.counts = {key: self.counts.get(key, 0) + 1 for key in wrong}
        self.healthy = all(alarm.kind == "targets" for alarm in wrong.values())  # those are the data's, not the weights'
        due = [
            alarm for key, alarm in wrong.items()
            if alarm.kind in RUINED or (self.counts[key] >= self.config.patience and key not in self.given)
        ]  # fmt: skip
        self.given += [f"{alarm.kind} {alarm.name}" for alarm in due]
        return due

    def _wrong(self, step: int, found: Mapping[str, float], identify: Collection[str]) -> list[Alarm]:
        c, alarms = self.config, []
        widest = max((value for key, value in found.items() if key.endswith("/spread")), default=0.0)
        for key, value in found.items():
            name, _, what = key.rpartition("/")
            first = self.first.get(key, value)
            if what == "spread" and name not in identify:
                continue
            if what == "finite":
                alarms.append(Alarm("features", name, value, math.inf))
            elif what == "std" and not value >= c.min_std:
                alarms.append(Alarm("collapse", name, value, c.min_std))
            elif what == "rank" and not value >= max(1.05, c.min_share * first):
                alarms.append(Alarm("rank", name, value, max(1.05, c.min_share * first)))
            elif what == "spread" and first >= 2 * c.min_spread and not value >= max(c.min_spread, c.min_share * first):
                alarms.append(Alarm("emptied", name, value, max(c.min_spread, c.min_share * first)))
            elif what == "spread" and value < 0.5 * first and value < c.min_half * widest:
                alarms.append(Alarm("emptied", f"{name} against the other half", value / widest, c.min_half))
            elif what == "ratio" and step * 40 > self.steps and not value >= c.min_prediction_ratio:
                alarms.append(Alarm("constant", name, value, c.min_prediction_ratio))
            elif what == "target_cosine" and value > c.max_target_cosine:
                alarms.append(Alarm("targets", name, value, c.max_target_cosine))
        return alarms

    def loss(self, value: float) -> Alarm | None:
        """An alarm where the loss of one more step is not finite, or the last ten tower over all before."""
        if not math.isfinite(value):
            return Alarm("loss", "training", value, math.inf)
        self.losses.append(value)
        if len(self.losses) > 400:  # thin the past, keep its course
            self.losses = [*self.losses[:-100:2], *self.losses[-100:]]
        recent, limit = self._course(self.config.explosion)
        return Alarm("explosion", "training", recent, limit) if recent > limit else None

    @property
    def calm(self) -> bool:
        """Whether the loss is far from exploding: at most the square root of ``explosion`` times what it was before."""
        times = math.sqrt(self.config.explosion)
        if 0 < len(self.losses) < 30:
            return self.losses[-1] <= times * max(abs(self.losses[0]), 1e-8)
        recent, limit = self._course(times)
        return recent <= limit

    def _course(self, times: float) -> tuple[float, float]:
        """The median of the last ten losses, and the most that it may be; both 0 in the first thirty steps."""
        if len(self.losses) < 30:
            return 0.0, 0.0
        recent, before = sorted(self.losses[-10:])[5], sorted(self.losses[:-10])
        return recent, max(times * max(abs(before[len(before) // 2]), 1e-8), self.losses[0], 0.0)

    def rolled_back(self) -> None:
        """Count a rollback: the learning rate falls, and what was wrong may be told again."""
        self.rollbacks += 1
        self.lr_scale *= self.config.lr_factor
        self.counts, self.given, self.losses, self.healthy = {}, [], [], True
