"""Many fine-tunings of one task under different splits: cross-validation and few-shot curves are lists of them.

A run is kept by its marker: asked for again, with the same split, it is read instead of made. Nothing in a run depends on the
labels of its test subjects: they are looked at once, after the model is finished.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import artifacts
from ..core.errors import ArtifactError, ConfigError, InputError
from ..data import splits
from ..data.cases import Case
from ..data.store import SessionView, Store
from ..engine import events
from ..inference import model as models
from . import _finetuning as finetuning
from ._calibration import Answer, Look, answers
from ._running import fine_tune

logger = logging.getLogger(__name__)

ANSWERS, VOXELS = "answers.json", "answers.npz"
HIGHER_IS_BETTER = frozenset({"dice", "accuracy", "balanced_accuracy", "auroc", "r"})
"""Validation scores of which more is better; of every other less is."""


@dataclass(frozen=True)
class Run:
    """One fine-tuning to be made.

    Attributes:
        name: of its folder.
        source: model folder, or ``scratch``.
        fold: who is learned from, watched and tested.
        seed: of the run.
        tags: what the run is, in plain data, for tables (``shots``, ``condition``, ``seed`` ...).
    """

    name: str
    source: str
    fold: splits.Fold
    seed: int
    tags: Mapping[str, Any]


def settings(assignments: Sequence[str], *, seed: int, task: str = "segmentation") -> finetuning.FineTuneConfig:
    """The fine-tuning settings of ``key=value`` assignments on a task's defaults."""
    return finetuning.settings(assignments, seed=seed, task=task)


def targets(
    store: Store, task: str, target: str, contrasts: str | None, *, parts: Sequence[str] = ("train", "val", "test", "")
) -> dict[str, Any]:
    """Subject -> class name, number or labelled voxels: everybody who carries the target and one of the contrasts.

    Args:
        store: prepared.
        task, target: what is predicted.
        contrasts: comma-separated names; all of the store by default.
        parts: the store's splits that take part.

    Raises:
        InputError: nobody does.
    """
    names = finetuning.expand_contrasts(contrasts, store, ())
    found: dict[str, Any] = {}
    for session in store.sessions:
        if session.split not in parts or session.subject in found or not any(name in session.scans for name in names):
            continue
        if task == "segmentation":
            if target in session.labels:
                found[session.subject] = int(np.count_nonzero(store.read_label(session.key, target)))
            continue
        value = session.value(target)
        if value is not None and str(value).strip().lower() not in {"", "n/a", "nan"}:
            found[session.subject] = str(value) if task == "classification" else value
    if not found:
        labels = sorted({name for session in store.sessions for name in session.labels})
        columns = sorted({name for session in store.sessions for name in session.columns})
        raise InputError(
            f"no session has the target {target!r} and one of {', '.join(names)}", file=store.path,
            expected=f"one of {', '.join(labels if task == 'segmentation' else columns) or 'nothing: the store has none'}",
        )  # fmt: skip
    if task == "classification" and len({str(v) for v in found.values()}) < 2:
        raise InputError(
            f"the column {target!r} has one class only: {next(iter(found.values()))!r} for all {len(found)} subjects",
            expected="at least two classes", next_step="choose another --target",
        )  # fmt: skip
    return found


def label_values(store: Store, target: str, subjects: Sequence[str]) -> list[int]:
    """Every value above 0 that a label has among some subjects, sorted: the regions that all runs are scored on."""
    wanted = set(subjects)
    values: set[int] = set()
    for session in store.sessions:
        if session.subject in wanted and target in session.labels:
            values |= set(session.labels[target]["values"]) - {0}
    return sorted(values)


def test_cases(store: Store, info: Mapping[str, Any], subjects: Sequence[str]) -> list[Case]:
    """The cases of some subjects as a model sees them; a class that it never met cannot be told and is left out, which is said."""
    task, known = info["task"], info["contrasts"]
    wanted = set(subjects)
    made: list[Case] = []
    unmet: set[str] = set()
    for session in store.sessions:
        names = tuple(name for name in known if name in session.scans)
        if session.subject not in wanted or not names:
            continue
        target = _target(session, task, unmet)
        if target is not None:
            made.append(Case(session, names, target))
    if unmet:
        logger.warning("cases of classes that the model never met are not tested: %s", ", ".join(sorted(unmet)))
    return made


def _target(session: SessionView, task: Mapping[str, Any], unmet: set[str]) -> str | int | float | None:
    if task["name"] == "segmentation":
        return task["target"] if task["target"] in session.labels else None
    value = session.value(task["target"])
    if value is None or str(value).strip().lower() in {"", "n/a", "nan"}:
        return None
    if task["name"] == "classification":
        if str(value) not in task["classes"]:
            unmet.add(str(value))
            return None
        return task["classes"].index(str(value))
    return (float(value) - task["mean"]) / task["std"]


def make(
    store: Store,
    run: Run,
    task: str,
    target: str,
    *,
    out: Path,
    assignments: Sequence[str],
    contrasts: str | None,
    recipe: str,
    look: Callable[[Mapping[str, Any]], Look] | None = None,
) -> list[Answer] | None:
    """Fine-tune a run and ask it about its test subjects; a finished run is read.

    Args:
        store: of all cases.
        run: what is to be made.
        task, target: what is predicted.
        out: the run's folder lies in it.
        assignments: settings of fine-tuning.
        contrasts: comma-separated; all by default.
        recipe: pretraining recipe whose net is built from scratch.
        look: gives, for a model's description of its task, what is called with every segmentation.

    Returns:
        Its answers; None where the run was stopped by a signal.

    Raises:
        ConfigError: the folder holds a run of another split or other settings.
    """
    folder = out / run.name
    mark = artifacts.sha256_json([dict(run.fold.split), run.seed, list(assignments), task, target, contrasts, recipe])
    if (folder / ANSWERS).is_file():
        stored = artifacts.read_json(folder / ANSWERS)
        if stored["asked"] != mark:
            raise ConfigError(
                "this folder holds a run of another split or other settings", file=folder, next_step="choose another --out"
            )
        return _read(folder, stored)
    config = settings(assignments, seed=run.seed, task=task)
    result = fine_tune(
        store, run.source, task, target, config=config, out=folder, contrasts=contrasts, recipe=recipe, seed=run.seed,
        split=run.fold.split,
    )  # fmt: skip
    if result is None or result.status != "complete":
        return None
    model = models.load(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    # the places of voxels are drawn alike for every run, so that their probabilities can be averaged over seeds
    found = answers(
        model, store, test_cases(store, model.info, run.fold.part("test")), seed=0,
        look=None if look is None else look(model.info["task"]),
    )  # fmt: skip
    _write(folder, found, mark)
    return found


def _write(folder: Path, found: Sequence[Answer], mark: str) -> None:
    arrays: dict[str, np.ndarray] = {}
    rows = []
    for n, answer in enumerate(found):
        if answer.voxels is not None and answer.voxel_truth is not None and answer.voxel_weights is not None:
            arrays |= {f"p{n}": answer.voxels.astype(np.float16), f"t{n}": answer.voxel_truth, f"w{n}": answer.voxel_weights}
        row = {key: value for key, value in vars(answer).items() if not key.startswith("voxel")}
        rows.append(row | {key: dict(row[key]) for key in ("volumes_ml", "groups")} | {"rows": list(answer.rows)})
    if arrays:
        with artifacts.atomic(folder / VOXELS) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one of them
    artifacts.write_json(folder / ANSWERS, {"asked": mark, "answers": rows})


def _read(folder: Path, stored: Mapping[str, Any]) -> list[Answer]:
    arrays: dict[str, np.ndarray] = {}
    if (folder / VOXELS).is_file():
        try:
            with np.load(folder / VOXELS, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError) as error:
            raise ArtifactError(
                "the answers of a run are damaged", file=folder / VOXELS, got=str(error), next_step=f"delete {ANSWERS} beside it"
            ) from None
    made = []
    for n, row in enumerate(stored["answers"]):
        extra: dict[str, Any] = {}
        if f"p{n}" in arrays:
            extra = {
                "voxels": arrays[f"p{n}"].astype(np.float32),
                "voxel_truth": arrays[f"t{n}"],
                "voxel_weights": arrays[f"w{n}"],
            }
        volumes = {key: (pair[0], pair[1]) for key, pair in row["volumes_ml"].items()}
        made.append(Answer(**row | {
            "probabilities": tuple(row["probabilities"]), "rows": tuple(row["rows"]), "volumes_ml": volumes, **extra,
        }))  # fmt: skip
    return made


def average(found: Sequence[Sequence[Answer]]) -> list[Answer]:
    """The answers of an ensemble of runs that were asked about the same cases: probabilities and numbers are averaged.

    Volumes, whose masks are not kept, are averaged too; rows of every member are kept.
    """
    if len(found) == 1:
        return list(found[0])
    by_case: dict[str, list[Answer]] = {}
    for run in found:
        for answer in run:
            by_case.setdefault(answer.case, []).append(answer)
    made = []
    for members in by_case.values():
        first = members[0]
        made.append(replace(
            first,
            probabilities=tuple(np.mean([m.probabilities for m in members], axis=0).tolist()) if first.probabilities else (),
            value=None if first.value is None else float(np.mean([m.value for m in members])),
            volumes_ml={
                key: (float(np.mean([m.volumes_ml[key][0] for m in members])), pair[1]) for key, pair in first.volumes_ml.items()
            },
            confidence=None if first.confidence is None else float(np.mean([m.confidence for m in members])),
            rows=tuple(row for m in members for row in m.rows),
            voxels=None if first.voxels is None else np.mean([m.voxels for m in members if m.voxels is not None], axis=0),
        ))  # fmt: skip
    return made


def reordered(found: Sequence[Answer], classes: Sequence[str], into: Sequence[str]) -> list[Answer]:
    """Answers of a model whose classes are ``classes`` in terms of ``into``, which holds them all; unmet ones get probability 0."""
    if tuple(classes) == tuple(into):
        return list(found)
    made = []
    for answer in found:
        by_name = dict(zip(classes, answer.probabilities, strict=True))
        truth = None if answer.truth is None else float(list(into).index(classes[int(answer.truth)]))
        made.append(replace(answer, truth=truth, probabilities=tuple(by_name.get(name, 0.0) for name in into)))
    return made


@dataclass(frozen=True)
class SelectionGap:
    """How much choosing each run's best step flatters, on the inner validation parts.

    Attributes:
        metric: the watched score.
        steps: of the validations that all runs share.
        best_each: mean score when every run takes its own best step.
        best_common: mean score at the one step that is best on average over the runs.
        common_step: that step.
        last: mean score at the last step.
        runs: how many runs.
        each: per run, its best score minus its score at the common step (signed so that more is better).
    """

    metric: str
    steps: tuple[int, ...]
    best_each: float
    best_common: float
    common_step: int
    last: float
    runs: int
    each: tuple[float, ...]


def watched(task: str) -> str:
    """The validation score that says which step is best."""
    return {"segmentation": "dice", "classification": "loss", "regression": "mae"}[task]


def selection_gap(folders: Sequence[Path], metric: str) -> SelectionGap | None:
    """Compare per-run best steps with one fixed step, from the traces of finished runs; None where they share no validation."""
    curves = []
    for folder in folders:
        curve = {
            int(event["step"]): float(event[metric])
            for event in events.read(folder / "events.jsonl")
            if event["event"] == "validation" and event.get(metric) is not None
        }
        if curve:
            curves.append(curve)
    if not curves:
        return None
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not steps:
        return None
    table = np.array([[curve[step] for step in steps] for curve in curves])
    sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0
    common = int(np.argmax(sign * table.mean(0)))
    best = (sign * table).max(1)
    return SelectionGap(
        metric, tuple(steps), float((sign * best).mean()), float(table[:, common].mean()), steps[common], float(table[:, -1].mean()),
        len(curves), tuple((best - sign * table[:, common]).tolist()),
    )  # fmt: skip


class Pace:
    """How long the runs that are left will take, from those that were made in this process."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.made = total, 0, 0
        self.began = time.perf_counter()

    def step(self, what: str, *, kept: bool) -> None:
        """Say that a run is finished."""
        self.done += 1
        self.made += not kept
        left = ""
        if self.made:
            seconds = (time.perf_counter() - self.began) / self.made * (self.total - self.done)
            left = f", about {seconds // 60:.0f}:{seconds % 60:02.0f} left"
        logger.info("run %d of %d %s: %s%s", self.done, self.total, "kept from before" if kept else "finished", what, left)


def estimate_seconds(source: str, store: Store, assignments: Sequence[str], task: str) -> float | None:
    """Seconds of one run, from the ledger of the model it starts from (same net, same store grid); None where there is none."""
    ledger = Path(source) / "ledger.json"
    if source == "scratch" or not ledger.is_file():
        return None
    book = artifacts.read_json(ledger)
    config = settings(assignments, seed=0, task=task)
    if not book.get("samples") or not book.get("wall_seconds") or not config.training.steps:
        return None
    samples = config.training.steps * config.training.batch * config.training.accumulate
    return float(book["wall_seconds"] / book["samples"] * samples)
