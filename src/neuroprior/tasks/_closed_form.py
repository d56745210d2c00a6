"""A linear head on a frozen net, fitted in closed form: ridge for a number, penalised logistic regression for classes. No step is taken.

What is fitted on is what ``heads/pooled`` makes of each training case, seen whole and unaltered: with all its contrasts, and with each
contrast alone, so that a prediction may have any of them. The head standardises the features; those of the anatomy and those of the scans
are divided by the root of their number, so that neither outweighs the other by its width. The penalty is the one with the smallest error
on cases held out in turn; scikit-learn fits. Hoerl and Kennard 1970; on why a frozen net first, Kumar et al. 2022 (arXiv 2202.10054).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.errors import ConfigError
from ..heads.pooled import PooledHead
from ._protocol import Task

logger = logging.getLogger(__name__)

PENALTIES = tuple(float(penalty) for penalty in np.logspace(3, -3, 19))
"""To choose from; of equal errors the largest is taken."""
FOLDS = 10
"""Most parts in which cases are held out."""


@dataclass(frozen=True)
class Seen:
    """One training case as the head sees it.

    Attributes:
        anatomy: (K, Da) pooled and not standardised, one row a scan.
        scans: (K, Dc) likewise; Dc may be 0.
        contrasts: (K,) number of each scan's contrast.
        target: a class number, or the standardised value.
    """

    anatomy: np.ndarray
    scans: np.ndarray
    contrasts: np.ndarray
    target: float


def check(head: object, task: Task) -> PooledHead:
    """The head, if it is linear and the task asks for nothing that no closed form has.

    Raises:
        ConfigError: a hidden layer, covariates, a readout of its own, a predicted variance, weights of classes or smoothed labels.
    """
    config: Any = getattr(task, "config", None)
    plain = isinstance(head, PooledHead) and not head.config.hidden and not head.config.covariates
    plain = plain and head.config.readout == "plain" and head.config.standardise
    plain = plain and head.config.outputs == max(1, len(getattr(task, "classes", ())))
    if not plain or getattr(config, "class_weights", "none") != "none" or getattr(config, "smoothing", 0):
        raise ConfigError(
            "the closed form needs a plain linear head",
            expected="task.head=pooled, task.hidden=0, task.standardise=true; no covariates, order, ordinal or heteroscedastic loss, class "
            "weights or smoothing",
            next_step="leave these settings out, or take --strategy linear-probe",
        )  # fmt: skip
    return head  # type: ignore[return-value]  # seen above


def fit(head: PooledHead, cases: Sequence[Seen], classes: int) -> float:
    """Set the weights of a head whose statistics are set. Nothing is random.

    Args:
        head: linear, see :func:`check`.
        cases: the training cases.
        classes: how many, or 0 for a number.

    Returns:
        The penalty that was chosen.

    Raises:
        ConfigError: there are fewer than two cases, or all are of one class.
    """
    targets = np.array([case.target for case in cases])
    if len(cases) < 2 or (classes and len(np.unique(targets)) < 2):
        raise ConfigError(
            "the closed form needs two training cases" + (" of different classes" if classes else ""), got=f"{len(cases)} cases"
        )
    found = [_rows(head, case) for case in cases]
    rows = np.concatenate(found)
    owner = np.repeat(np.arange(len(cases)), [len(one) for one in found])
    whole = np.stack([one[0] for one in found])
    fold = _folds(targets, classes)

    def error(penalty: float) -> float:
        total = 0.0
        for part in range(fold.max() + 1):
            kept = fold[owner] != part
            weight, bias = _solve(rows[kept], targets[owner][kept], classes, penalty)
            total += _error(whole[fold == part] @ weight.T + bias, targets[fold == part], classes)
        return total / len(cases)

    errors = {penalty: error(penalty) for penalty in PENALTIES} if fold.max() else {1.0: float("nan")}
    best = min(errors, key=lambda penalty: errors[penalty])
    weight, bias = _solve(rows, targets[owner], classes, best)
    wide, scan = head.anatomy.weight.shape[1], len(rows[0]) - head.anatomy.weight.shape[1]
    each = scan // max(1, len(head.contrast))
    with torch.no_grad():
        head.anatomy.weight.copy_(torch.from_numpy(weight[:, :wide] / np.sqrt(wide)))
        head.anatomy.bias.copy_(torch.from_numpy(bias))
        for number, layer in enumerate(head.contrast):
            start = wide + number * each
            layer.weight.copy_(torch.from_numpy(weight[:, start : start + each] / np.sqrt(each)))
    logger.info(
        "closed form: %d cases, %d features, penalty %.3g, held-out error %.3g", len(cases), len(rows[0]), best, errors[best]
    )
    return best


def _rows(head: PooledHead, case: Seen) -> np.ndarray:
    """(1 or 1 + K, D) features of all scans together, then of each alone, laid out as anatomy and then one block a contrast."""
    mean, std = head.anatomy_mean.numpy(), head.anatomy_std.numpy()
    scans = (case.scans - head.scan_mean.numpy()[case.contrasts]) / head.scan_std.numpy()[case.contrasts]
    together = np.arange(len(case.contrasts))
    made = []
    for chosen in (together, *(together[n : n + 1] for n in range(len(together) if len(together) > 1 else 0))):
        anatomy = (case.anatomy[chosen].mean(0) - mean) / std
        blocks = np.zeros((len(head.config.contrasts) if scans.shape[1] else 0, scans.shape[1]))
        for n in chosen:
            blocks[case.contrasts[n]] += scans[n] / len(chosen)
        made.append(np.concatenate([anatomy / np.sqrt(len(anatomy)), blocks.ravel() / np.sqrt(max(1, scans.shape[1]))]))
    return np.stack(made).astype(np.float64)


def _folds(targets: np.ndarray, classes: int) -> np.ndarray:
    """(n,) the part in which each case is held out, spread over the classes or over the range of values; zeros where none can be."""
    order = np.argsort(targets, kind="stable")
    if classes:
        parts = min(FOLDS, int(np.unique(targets, return_counts=True)[1].min()))
    else:
        parts = min(FOLDS, len(targets))
    if parts < 2 or (not classes and len(targets) < 3):
        return np.zeros(len(targets), dtype=int)
    fold = np.empty(len(targets), dtype=int)
    fold[order] = np.arange(len(targets)) % parts
    return fold


def _solve(rows: np.ndarray, targets: np.ndarray, classes: int, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """(outputs, D) weights and (outputs,) intercepts."""
    if not classes:
        from sklearn.linear_model import Ridge

        ridge = Ridge(alpha=penalty).fit(rows, targets)
        return ridge.coef_[None], np.array([ridge.intercept_])
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a weak penalty may not settle in this many steps; it is then not the best one either
        found = LogisticRegression(C=1 / penalty, max_iter=500).fit(rows, targets.astype(int))
    weight, bias = np.zeros((classes, rows.shape[1])), np.full(classes, -20.0)  # a class without a case is never answered
    coefficients, intercepts = found.coef_, found.intercept_
    if len(coefficients) == 1:
        coefficients, intercepts = (
            np.concatenate([-coefficients, coefficients]) / 2,
            np.concatenate([-intercepts, intercepts]) / 2,
        )
    weight[found.classes_], bias[found.classes_] = coefficients, intercepts
    return weight, bias


def _error(outputs: np.ndarray, targets: np.ndarray, classes: int) -> float:
    """Summed squared error, or summed cross-entropy."""
    if not classes:
        return float(((outputs[:, 0] - targets) ** 2).sum())
    shifted = outputs - outputs.max(1, keepdims=True)
    chance = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-chance[np.arange(len(targets)), targets.astype(int)].sum())
