"""What do embeddings tell of a class? FOMO26's linear probe: a softmax layer on frozen vectors, no fine-tuning.

As its organisers define it (``protocols/fomo26.yaml``): each class is split 40 / 10 / 50 % by seed 42, the learning rate is chosen by
the validation AUROC, and the test part is scored by one-vs-rest AUROC and macro F1. What they leave open is decided here:

- the split is drawn over subjects, so that a subject's scans never stand on two sides; a subject counts for its most frequent class;
- features are standardised by the training part; the layer starts at zero and takes ``steps`` full-batch steps of gradient descent
  with momentum on the cross-entropy; with nothing random but the split, the same table gives the same number;
- of equal learning rates the smaller is taken; where the validation part cannot be ranked, the smallest cross-entropy decides.

Intervals are percentile bootstraps over the subjects of the test part, with the fitted probe held fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from ..core import seeds
from ..core.config import Config as BaseConfig
from ..core.errors import InputError, suggestion
from ..core.records import Score
from ..metrics._bootstrap import interval
from ..metrics.classification import macro_f1
from ..metrics.one_vs_rest import auroc_one_vs_rest
from ..protocols import Probe


class Config(BaseConfig):
    """Settings of the linear probe."""

    train: float = Field(default=0.4, gt=0, lt=1)
    """Share of each class's subjects that the probe is fitted on."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share that the learning rate is chosen on; the rest is scored."""
    seed: int = 42
    """Of the split."""
    learning_rates: tuple[float, ...] = Field(default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1)
    """To choose from."""
    steps: int = Field(default=500, ge=1)
    """Of gradient descent."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of gradient descent."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Half the squared weights times this is added to the mean cross-entropy; the intercept is left free."""
    resamples: int = Field(default=1000, ge=0)
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _leaves_a_test(self) -> Config:
        if self.train + self.validation >= 1:
            raise ValueError("train and validation together must leave a share to test on")
        return self

    @classmethod
    def of(cls, probe: Probe) -> Config:
        """The settings that a protocol states; everything else by default."""
        return cls(train=probe.train, validation=probe.validation, seed=probe.seed)


@dataclass(frozen=True)
class Parts:
    """Row numbers of the three parts of a split; together every row, once.

    Attributes:
        train, validation, test: (n,) int64 each, sorted.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Probed:
    """A fitted probe and what it says of the test part.

    Attributes:
        classes: names, sorted; the columns of ``probability``.
        parts: which rows were what.
        learning_rate: the one chosen.
        validation: learning rate -> validation AUROC, NaN where it is not defined.
        probability: (n, classes) of every row, training rows included.
        truth: (n,) class numbers.
        subjects: (n,) who each row is.
    """

    classes: tuple[str, ...]
    parts: Parts
    learning_rate: float
    validation: dict[float, float]
    probability: np.ndarray
    truth: np.ndarray
    subjects: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Embeddings joined to a participants table, one row a scan.

    Attributes:
        embeddings: (n, d) float32.
        labels: (n,) class of each scan's subject.
        subjects: (n,) who each scan is.
        columns: every other column of the participants table, (n,) values each; missing ones are None.
        left_out: reason -> how many scans were left out for it.
    """

    embeddings: np.ndarray
    labels: tuple[str, ...]
    subjects: tuple[str, ...]
    columns: dict[str, tuple[Any, ...]]
    left_out: dict[str, int]


def read_table(
    embeddings: Path, participants: Path, target: str, *, half: str = "whole", contrasts: Sequence[str] | None = None
) -> Table:
    """What ``neuroprior embed`` wrote, joined to who the subjects are.

    Args:
        embeddings: the folder, or its ``embeddings.parquet``.
        participants: TSV with ``participant_id`` (BIDS), and ``session_id`` where a row is a session. A subject that carries its dataset's name
            (``dataset/sub-01``) is found under either spelling.
        target: the column to probe.
        half: ``whole``, ``anatomy`` or ``contrast``.
        contrasts: canonical names; only scans of these.

    Raises:
        InputError: a file or column is missing, a participant is there twice, or no scan has a value.
    """
    import pandas as pd

    path = embeddings / "embeddings.parquet" if embeddings.is_dir() else embeddings
    for file in (path, participants):
        if not file.is_file():
            raise InputError(
                "a file is missing", file=file, next_step="make embeddings with neuroprior embed MODEL INPUTS --out DIR"
            )
    rows = pd.read_parquet(path).to_dict("records")
    people = pd.read_csv(participants, sep="\t", dtype=str, keep_default_na=False)
    for column in ("participant_id", target):
        if column not in people.columns:
            raise InputError(
                f"the table has no column {column!r}", file=participants, next_step=suggestion(column, list(people.columns))
            )
    by_session = "session_id" in people.columns
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for person in people.to_dict("records"):
        key = (str(person["participant_id"]), str(person["session_id"]) if by_session else "")
        if key in known:
            raise InputError("a participant is in the table twice", file=participants, got="/".join(filter(None, key)))
        known[key] = {
            str(name): None if str(value).strip().lower() in {"", "n/a", "nan"} else value for name, value in person.items()
        }
    kept: list[tuple[Any, str, str, dict[str, Any]]] = []
    left_out: dict[str, int] = {}
    for row in rows:
        subject, session = str(row["subject"]), str(row["session"] or "") if by_session else ""
        person = known.get((subject, session)) or known.get((subject.rsplit("/", 1)[-1], session))
        vector = row.get(f"{half}_vector")
        reason = (
            "another contrast" if contrasts is not None and row["contrast"] not in contrasts
            else "not embedded" if row["status"] != "ok" or vector is None
            else "not in the participants table" if person is None
            else f"no value in {target}" if person[target] is None
            else ""
        )  # fmt: skip
        if reason or person is None:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        kept.append((vector, str(person[target]), subject, person))
    if not kept:
        raise InputError(
            f"no scan has a vector and a value in {target!r}",
            file=participants,
            got="; ".join(f"{n} {reason}" for reason, n in left_out.items()) or "no scans",
        )
    others = [str(name) for name in people.columns if name not in ("participant_id", "session_id", target)]
    return Table(
        np.array([vector for vector, *_ in kept], dtype=np.float32), tuple(label for _, label, _, _ in kept),
        tuple(subject for _, _, subject, _ in kept), {name: tuple(person[name] for *_, person in kept) for name in others}, left_out,
    )  # fmt: skip


def split(labels: Sequence[str], subjects: Sequence[str], config: Config) -> Parts:
    """Training, validation and test rows: per class, by subject, by seed.

    Args:
        labels: (n,) class of each row.
        subjects: (n,) who each row is.
        config: shares and seed. A class of k subjects gives round(k * train) of them to training and round(k * validation) to
            validation, at least one to each part.

    Raises:
        InputError: there are fewer than two classes, or a class has fewer than three subjects; the message says which.
    """
    names, who = np.array([str(x) for x in labels]), np.array([str(x) for x in subjects])
    classes = np.unique(names)
    if len(classes) < 2:
        raise InputError("a probe needs two classes", got=", ".join(classes) or "none")
    home: dict[str, list[str]] = {name: [] for name in classes}
    for subject in np.unique(who):
        found, counts = np.unique(names[who == subject], return_counts=True)
        home[str(found[counts.argmax()])].append(str(subject))
    short = [f"{name} ({len(members)})" for name, members in home.items() if len(members) < 3]
    if short:
        raise InputError(
            "a class has too few subjects for three parts", expected="three or more of each class", got=", ".join(short),
            next_step="leave the class out, or join it with another",
        )  # fmt: skip
    part: dict[str, int] = {}
    for name, members in home.items():
        order = seeds.generator(config.seed, "linear probe", name).permutation(len(members))
        n = len(members)
        train = min(max(1, round(config.train * n)), n - 2)
        validation = min(max(1, round(config.validation * n)), n - 1 - train)
        for place, k in enumerate(order):
            part[members[k]] = 0 if place < train else 1 if place < train + validation else 2
    parts = np.array([part[subject] for subject in who])
    return Parts(*(np.flatnonzero(parts == k) for k in range(3)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """(n, classes) probabilities of (n, classes) logits."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def descend(
    features: np.ndarray, truth: np.ndarray, classes: int, *, rate: float, steps: int, momentum: float = 0.9, decay: float = 0.0
) -> np.ndarray:
    """(d + 1, classes) weights of a softmax layer, the intercept in the last row.

    Args:
        features: (n, d).
        truth: (n,) class numbers.
        classes: how many.
        rate, steps, momentum, decay: of full-batch gradient descent from zero on the mean cross-entropy.
    """
    wide = np.column_stack([features, np.ones(len(features))])
    target = np.eye(classes)[truth]
    weights, speed = np.zeros((wide.shape[1], classes)), np.zeros((wide.shape[1], classes))
    shrink = np.full((wide.shape[1], 1), decay)
    shrink[-1] = 0
    for _ in range(steps):
        gradient = wide.T @ (softmax(wide @ weights) - target) / len(wide) + shrink * weights
        speed = momentum * speed - rate * gradient
        weights = weights + speed
    return weights


def fit(embeddings: np.ndarray, labels: Sequence[str], subjects: Sequence[str], config: Config | None = None) -> Probed:
    """Split, choose a learning rate, fit.

    Args:
        embeddings: (n, d) finite.
        labels: (n,) classes.
        subjects: (n,) who each row is.
        config: by default FOMO26's.

    Raises:
        InputError: lengths differ, a vector is not finite, all are the same, or the classes cannot be split.
    """
    config = config or Config()
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2 or not len(values) == len(labels) == len(subjects):
        raise InputError(
            "embeddings, labels and subjects differ in length", expected="(n, d), (n,), (n,)",
            got=f"{values.shape}, {len(labels)}, {len(subjects)}",
        )  # fmt: skip
    if not np.isfinite(values).all():
        raise InputError(
            "embeddings hold NaN or infinity", got=f"{int((~np.isfinite(values)).any(1).sum())} of {len(values)} rows"
        )
    parts = split(labels, subjects, config)
    classes, truth = np.unique([str(x) for x in labels], return_inverse=True)
    mean, spread = values[parts.train].mean(0), values[parts.train].std(0)
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1e-9)
    if not varies.any():
        raise InputError("all embeddings of the training part are the same", next_step="check the model with neuroprior probe")
    z = (values[:, varies] - mean[varies]) / spread[varies]
    wide = np.column_stack([z, np.ones(len(z))])
    scores: dict[float, float] = {}
    best: tuple[tuple[float, float], float, np.ndarray] | None = None
    for rate in sorted(config.learning_rates):
        with np.errstate(over="ignore", invalid="ignore"):
            weights = descend(
                z[parts.train], truth[parts.train], len(classes), rate=rate, steps=config.steps, momentum=config.momentum,
                decay=config.weight_decay,
            )  # fmt: skip
        if not np.isfinite(weights).all():
            scores[rate] = float("nan")
            continue
        probability = softmax(wide @ weights)
        scores[rate] = auroc_one_vs_rest(truth[parts.validation], probability[parts.validation])
        chance = probability[parts.validation, truth[parts.validation]]
        entropy = float(-np.log(np.maximum(chance, 1e-300)).mean())
        key = (scores[rate] if np.isfinite(scores[rate]) else -1.0, -entropy if not np.isfinite(scores[rate]) else 0.0)
        if best is None or key > best[0]:
            best = (key, rate, probability)
    if best is None:
        raise InputError(
            "every learning rate diverged", got=f"{sorted(config.learning_rates)}", next_step="give smaller learning rates"
        )
    return Probed(tuple(classes.tolist()), parts, best[1], scores, best[2], truth, tuple(str(s) for s in subjects))


def assess(
    embeddings: np.ndarray,
    labels: Sequence[str],
    subjects: Sequence[str],
    *,
    model: str,
    target: str,
    config: Config | None = None,
) -> tuple[list[Score], Probed]:
    """The probe's scores on the test part, with intervals.

    Args:
        embeddings, labels, subjects: see :func:`fit`.
        model, target: names for the table.
        config: by default FOMO26's.

    Returns:
        Rows ``auroc`` (one-vs-rest), ``auroc`` of each class as its region, and ``macro_f1``; and the fitted probe.
    """
    config = config or Config()
    probed = fit(embeddings, labels, subjects, config)
    rows = probed.parts.test
    truth, probability = probed.truth[rows], probed.probability[rows]
    who = [probed.subjects[k] for k in rows]
    note = f"learning rate {probed.learning_rate:g}; {len(set(who))} subjects"

    def row(metric: str, region: str, statistic: object) -> Score:
        value = statistic(np.arange(len(rows)))  # type: ignore[operator]
        low, high = interval(who, statistic, resamples=config.resamples) if config.resamples else (None, None)  # type: ignore[arg-type]
        defined = bool(np.isfinite(value))
        return Score(
            model, "linear_probe", target, "all", "all", metric, region, "clean", float(value) if defined else None, low, high,
            len(rows), note if defined else "one class only",
        )  # fmt: skip

    made = [row("auroc", "all", lambda k: auroc_one_vs_rest(truth[k], probability[k]))]
    if len(probed.classes) > 2:
        for number, name in enumerate(probed.classes):
            pair = np.column_stack([1 - probability[:, number], probability[:, number]])
            own = (truth == number).astype(int)
            made.append(row("auroc", name, lambda k, own=own, pair=pair: auroc_one_vs_rest(own[k], pair[k])))
    guess = probability.argmax(1)
    made.append(row("macro_f1", "all", lambda k: macro_f1(truth[k], guess[k])))
    return made, probed
