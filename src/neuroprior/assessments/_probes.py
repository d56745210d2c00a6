"""Probes of frozen features: linear (ridge), nearest neighbours, a small perceptron. Fitted on some subjects, tried on others.

Features are standardised by the fitting scans; constant ones are dropped. The linear probe sees every dimension; its penalty is
chosen by cross-validation over the fitting subjects. All by scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from ..core import seeds
from ..core.config import Config
from ..metrics.auroc import auroc
from ..metrics.classification import balanced_accuracy


class ProbeConfig(Config):
    """How the probes are fitted."""

    alphas: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    """Penalties to choose from, rising, for features of unit length on average."""
    folds: int = Field(default=3, ge=2)
    """Of the cross-validation over the fitting subjects."""
    neighbours: int = Field(default=5, ge=1)
    """Of the nearest-neighbour probe (Euclidean)."""
    hidden: int = Field(default=64, ge=1)
    """Units of the perceptron's one layer."""
    epochs: int = Field(default=40, ge=1)
    """Of the perceptron, which looks at no more than 128 principal components."""
    nonlinear: tuple[str, ...] = ("contrast", "scanner")
    """Targets that the perceptron is also tried on."""
    max_cells: int = Field(default=3000, ge=10)
    """Cells that the lesion probe is fitted on; those with lesions are kept first."""
    seed: int = 0
    """Of the perceptron and of the choice of cells."""


@dataclass(frozen=True)
class Guess:
    """What a probe said of the evaluated rows.

    Attributes:
        rows: (M,) row numbers.
        truth, guess: (M,) class numbers, or (M, q) values.
        classes: how many there were to choose from; 0 for values.
        strata: (M,) which cell of the box a row is, for lesions.
        constant: (q,) the fitting scans' mean: the best guess that knows nothing.
        reason: why there is nothing, when there is nothing.
    """

    rows: np.ndarray
    truth: np.ndarray
    guess: np.ndarray
    classes: int = 0
    strata: np.ndarray | None = None
    constant: np.ndarray | None = None
    reason: str = ""

    @classmethod
    def none(cls, reason: str) -> Guess:
        """No guess, and why."""
        nothing = np.zeros(0)
        return cls(nothing.astype(int), nothing, nothing, reason=reason)


def standardise(features: np.ndarray, fit: np.ndarray) -> np.ndarray | None:
    """(N, D) features of mean 0 and variance 1/D over the fitting rows, constant ones left out; None when all are constant."""
    values = np.asarray(features, dtype=np.float64)
    mean, std = values[fit].mean(0), values[fit].std(0)
    varies = std > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    if not varies.any():
        return None
    return (values[:, varies] - mean[varies]) / std[varies] / np.sqrt(varies.sum())


class Linear:
    """Ridge regression on some rows, solved in whichever of feature and row space is smaller.

    Args:
        features: (N, D), standardised.
    """

    def __init__(self, features: np.ndarray) -> None:
        self.features = features
        self._kernel: np.ndarray | None = None

    def guess(
        self, fit: np.ndarray, rows: np.ndarray, targets: np.ndarray, weights: np.ndarray | None, alpha: float
    ) -> np.ndarray:
        """(len(rows), q) values.

        Args:
            fit, rows: row numbers to fit on and to guess.
            targets: (len(fit), q).
            weights: (len(fit),) of the fitted rows, or None.
            alpha: the penalty.
        """
        from sklearn.kernel_ridge import KernelRidge
        from sklearn.linear_model import Ridge

        if len(fit) >= self.features.shape[1]:
            primal = Ridge(alpha=alpha, solver="cholesky").fit(self.features[fit], targets, sample_weight=weights)
            return primal.predict(self.features[rows]).reshape(len(rows), -1)
        if self._kernel is None:
            self._kernel = self.features @ self.features.T
        mean = np.average(targets, axis=0, weights=weights)
        dual = KernelRidge(alpha=alpha, kernel="precomputed")
        # the constant is a weakly penalised intercept
        dual.fit(self._kernel[np.ix_(fit, fit)] + 10, targets - mean, sample_weight=weights)
        return dual.predict(self._kernel[np.ix_(rows, fit)] + 10).reshape(len(rows), -1) + mean


def folds_of(groups: np.ndarray, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Places to fit on and to try, by group, in at most ``folds`` parts."""
    from sklearn.model_selection import GroupKFold

    parts = GroupKFold(min(folds, len(np.unique(groups))))
    return list(parts.split(np.zeros(len(groups)), groups=groups))


def _usable(known: np.ndarray, fit: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Row numbers to fit on and to try, and what is missing."""
    a, b = np.flatnonzero(known & fit), np.flatnonzero(known & ~fit)
    reason = ""
    if len(np.unique(groups[a])) < 3:
        reason = f"{len(np.unique(groups[a]))} subjects to fit on; three are needed"
    elif b.size == 0:
        reason = "it is known of no evaluated scan"
    return a, b, reason


def classify(
    features: np.ndarray, labels: np.ndarray, fit: np.ndarray, groups: np.ndarray, config: ProbeConfig, *, nonlinear: bool
) -> dict[str, Guess]:
    """Probes of a class.

    Args:
        features: (N, D), standardised.
        labels: (N,) text, an empty string where not known.
        fit: (N,) bool.
        groups: (N,) subjects.
        config: settings.
        nonlinear: whether the perceptron is tried.

    Returns:
        ``linear``, ``knn`` and perhaps ``mlp`` -> guesses of the evaluated rows; classes that were never fitted are not counted.
    """
    from sklearn.neighbors import KNeighborsClassifier

    names = ("linear", "knn", "mlp") if nonlinear else ("linear", "knn")
    a, b, reason = _usable(labels != "", fit, groups)
    known = sorted(set(labels[a]))
    if not reason and len(known) < 2:
        reason = f"all the fitting scans are {known[0]}"
    if not reason:
        b = b[np.isin(labels[b], known)]
        reason = "" if len(set(labels[b])) > 1 else "the evaluated scans are of one class"
    if reason:
        return {name: Guess.none(reason) for name in names}
    number = {name: n for n, name in enumerate(known)}
    truth = np.array([number.get(name, -1) for name in labels])
    onehot = np.eye(len(known))[truth[a]]
    share = onehot.mean(0)
    weights = (1 / share)[truth[a]] / len(known)  # every class weighs the same
    solver, inner = Linear(features), folds_of(groups[a], config.folds)

    def score(alpha: float) -> float:
        guesses = np.empty(len(a), dtype=int)
        for left, right in inner:
            guesses[right] = solver.guess(a[left], a[right], onehot[left], weights[left], alpha).argmax(1)
        return balanced_accuracy(truth[a], guesses)

    alpha = max(config.alphas, key=lambda value: (round(score(value), 6), value))
    made = {"linear": solver.guess(a, b, onehot, weights, alpha).argmax(1)}
    near = KNeighborsClassifier(min(config.neighbours, len(a)), algorithm="brute").fit(features[a], truth[a])
    made["knn"] = near.predict(features[b])
    if nonlinear:
        made["mlp"] = _perceptron(features, a, b, truth[a], config)
    return {name: Guess(b, truth[b], np.asarray(guess), len(known)) for name, guess in made.items()}


def _perceptron(features: np.ndarray, a: np.ndarray, b: np.ndarray, truth: np.ndarray, config: ProbeConfig) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, y = features[a], features[b]
    if min(x.shape) > 128:
        reduce = PCA(128, svd_solver="randomized", iterated_power=3, random_state=config.seed).fit(x)
        x, y = reduce.transform(x), reduce.transform(y)
    scale = x.std() or 1.0
    net = MLPClassifier(
        (config.hidden,), max_iter=config.epochs, alpha=1e-3, learning_rate_init=5e-3, batch_size=min(64, len(a)), random_state=config.seed
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is what is asked for
        return np.asarray(net.fit(x / scale, truth).predict(y / scale))


def regress(
    features: np.ndarray, values: Mapping[str, np.ndarray], fit: np.ndarray, groups: np.ndarray, config: ProbeConfig
) -> dict[tuple[str, str], Guess]:
    """Probes of numbers.

    Args:
        features: (N, D), standardised.
        values: name -> (N,) or (N, q), NaN where not known.
        fit: (N,) bool.
        groups: (N,) subjects.
        config: settings.

    Returns:
        (name, ``linear`` or ``knn``) -> guesses of the evaluated rows, with those columns that vary among the fitting rows.
        Each column has its own penalty.
    """
    from sklearn.neighbors import KNeighborsRegressor

    made: dict[tuple[str, str], Guess] = {}
    solver = Linear(features)
    for name, given in values.items():
        y = given[:, None] if given.ndim == 1 else given
        a, b, reason = _usable(np.isfinite(y).all(1), fit, groups)
        if not reason:
            varies = y[a].std(0) > 0
            y = y[:, varies]
            reason = "" if varies.any() else "it is the same in all fitting scans"
        if reason:
            made |= {(name, probe): Guess.none(reason) for probe in ("linear", "knn")}
            continue
        mean, std = y[a].mean(0), y[a].std(0)
        z = (y[a] - mean) / std
        inner = folds_of(groups[a], config.folds)
        error = np.zeros((len(config.alphas), z.shape[1]))
        for n, alpha in enumerate(config.alphas):
            for left, right in inner:
                error[n] += np.square(solver.guess(a[left], a[right], z[left], None, alpha) - z[right]).sum(0)
        best = len(config.alphas) - 1 - error[::-1].argmin(0)
        guess = np.empty((len(b), z.shape[1]))
        for n in np.unique(best):
            columns = best == n
            guess[:, columns] = solver.guess(a, b, z[:, columns], None, config.alphas[n])
        near = KNeighborsRegressor(min(config.neighbours, len(a)), algorithm="brute").fit(features[a], z).predict(features[b])
        for probe, found in (("linear", guess), ("knn", near.reshape(len(b), -1))):
            made[name, probe] = Guess(b, y[b], found * std + mean, constant=mean)
    return made


def find_lesions(
    cells: np.ndarray, lesions: np.ndarray, rows: np.ndarray, fit: np.ndarray, groups: np.ndarray, config: ProbeConfig
) -> Guess:
    """A linear probe of single cells for lesions.

    Args:
        cells: (N, cells, C) features.
        lesions: (N, cells) 1, 0 or NaN.
        rows: row numbers to use (those of one contrast).
        fit: (N,) bool.
        groups: (N,) subjects.
        config: settings.

    Returns:
        A score for each cell of the evaluated rows (larger for lesions); ``rows`` repeats a row for each of its cells.
    """
    cell = np.isfinite(lesions[rows])
    row = np.broadcast_to(rows[:, None], cell.shape)[cell]
    where = np.broadcast_to(np.arange(cell.shape[1]), cell.shape)[cell]
    truth, x = lesions[rows][cell], cells[rows][cell]
    train = np.flatnonzero(fit[row])
    positive = train[truth[train] == 1]
    negative = train[truth[train] == 0]
    tried = np.flatnonzero(~fit[row])
    if len(np.unique(groups[row[positive]])) < 3:
        return Guess.none("fewer than three fitting subjects have a lesion in view")
    if len(set(truth[tried])) < 2 or negative.size == 0:
        return Guess.none("the evaluated cells are all with a lesion, or all without")
    draw = seeds.generator(config.seed, "cells")
    positive = draw.permutation(positive)[: config.max_cells // 2]
    negative = draw.permutation(negative)[: config.max_cells - len(positive)]
    a = np.sort(np.concatenate([positive, negative]))
    chosen = np.zeros(len(row), dtype=bool)
    chosen[a] = True
    values = standardise(x, chosen)
    if values is None:
        return Guess.none("the features are the same in all cells")
    target = truth[a][:, None]
    weights = np.where(truth[a] == 1, 0.5 / len(positive), 0.5 / len(negative)) * len(a)
    solver, inner = Linear(values), folds_of(groups[row[a]], config.folds)
    alphas = config.alphas[:: max(1, len(config.alphas) // 4)]

    def score(alpha: float) -> float:
        out = np.empty(len(a))
        for left, right in inner:
            out[right] = solver.guess(a[left], a[right], target[left], weights[left], alpha)[:, 0]
        return auroc(truth[a] == 1, out)

    alpha = max(alphas, key=lambda value: (round(score(value), 6), value))
    found: Any = solver.guess(a, tried, target, weights, alpha)[:, 0]
    return Guess(row[tried], truth[tried], found, strata=where[tried])
