"""Fine-tuning as data: the settings, and the net, head and cases that follow from them and a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ..core import contrasts as vocabulary
from ..core import shelf
from ..core.config import Config as BaseConfig
from ..core.config import parse
from ..core.errors import ConfigError, InputError
from ..data.cases import Case
from ..data.store import SessionView, Store
from ..engine.training import TrainingConfig
from ._protocol import Task


class CaseConfig(BaseConfig):
    """How cases are drawn."""

    patch: int | tuple[int, int, int] | Literal["auto", "whole"] = "auto"
    """Box in voxels. ``whole`` holds the largest head of the store; ``auto`` is the pretraining patch for segmentation and
    ``whole`` for a class or a number."""
    foreground: float = Field(default=0.5, ge=0, le=1)
    """Share of draws whose box contains the target label."""
    contrast_dropout: float = Field(default=0.25, ge=0, lt=1)
    """Probability that a contrast is left out of a draw, so that any subset can be predicted from later."""
    jitter: int = Field(default=2, ge=0)
    """Largest shift in voxels of a whole-head box."""
    flip: bool = True
    """Mirror left and right at random. Switched off by itself for labels with more than one value, whose sides may differ."""
    intensity: float = Field(default=0.1, ge=0)
    """Spread of the random gain and offset, in standard deviations of the image."""
    shots: int | None = Field(default=None, ge=1)
    """Use only this many training subjects, drawn by the seed (balanced over classes where there are classes)."""


class FineTuneConfig(BaseConfig):
    """Settings of a fine-tuning run; ``task`` is checked by the task's own Config."""

    data: CaseConfig = CaseConfig()
    """How cases are drawn."""
    task: dict[str, Any] = Field(default_factory=dict)
    """Settings of the task (``tasks/<name>.py``)."""
    training: TrainingConfig
    """Steps, batch, optimiser, schedule."""


DEFAULT_TRAINING: dict[str, Any] = {
    "steps": 300,
    "batch": 2,
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2},
    "schedule": {"name": "cosine", "warmup_steps": 20},
    "clip_norm": 1.0,
    "validate_every": 100,
}
"""What a fine-tuning run takes where nothing is set."""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first step.

    Attributes:
        task: fitted to the training sessions.
        contrasts: in the order of the head's contrast numbers.
        train, validation: labelled cases; validation may be empty.
        patch: training box in voxels, also the prediction window.
        flip_axes: axes that may be mirrored.
    """

    task: Task
    contrasts: tuple[str, ...]
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    patch: tuple[int, int, int]
    flip_axes: tuple[int, ...]


def expand_contrasts(text: str | None, store: Store, model_contrasts: Sequence[str]) -> tuple[str, ...]:
    """The canonical contrasts of ``"T1w,FLAIR,SWI_OR_T2STAR"``; without a text all of the store, the model's first.

    Raises:
        InputError: a name is unknown or no session of the store has it.
    """
    there = sorted({name for session in store.sessions for name in session.scans if "." not in name})
    if not text:
        return tuple([name for name in model_contrasts if name in there] + [n for n in there if n not in model_contrasts])
    wanted: list[str] = []
    for part in text.split(","):
        found = [name for name in vocabulary.accepts(part.strip()) if name in there]
        if not found:
            raise InputError(
                f"no session of the store has the contrast {part.strip()!r}",
                file=store.path, expected=f"some of {', '.join(there)}",
            )  # fmt: skip
        wanted += [name for name in found if name not in wanted]
    return tuple(wanted)


def plan(
    store: Store,
    task_name: str,
    target: str,
    contrasts: tuple[str, ...],
    config: FineTuneConfig,
    *,
    seed: int,
    pretraining_patch: Sequence[int] | int | None,
    split: Mapping[str, str] | None = None,
    where: Path | None = None,
) -> Plan:
    """Decide classes, cases and boxes from the training split of a store. The test split is never looked at.

    ``split`` (subject -> train, val or test) stands in for the store's own where it is given.

    Raises:
        InputError: no training session carries the target.
        ConfigError: a setting of the task is unknown or impossible.
    """
    module = shelf.load("tasks", task_name)
    training = [session for session in store.sessions if split_of(session, split) in ("train", "")]
    validation = [session for session in store.sessions if split_of(session, split) == "val"]
    if not training:
        raise InputError(
            "the store has no session in the training split", file=store.path,
            got=f"splits {', '.join(sorted({s.split for s in store.sessions}))}",
        )  # fmt: skip
    task = module.fit(store, training, target, contrasts, parse(module.Config, config.task, where=where))
    cases = task.cases(store, training, contrasts)
    if config.data.shots is not None:
        cases = few(cases, config.data.shots, seed)
    patch = _patch(config.data.patch, task_name, store, pretraining_patch)
    one_label = len(getattr(task, "values", (1,))) == 1
    return Plan(
        task, contrasts, tuple(cases), tuple(task.cases(store, validation, contrasts)), patch,
        (0,) if config.data.flip and one_label else (),
    )  # fmt: skip


def split_of(session: SessionView, split: Mapping[str, str] | None) -> str:
    """The split that a session's subject stands in; ``unused`` where ``split`` is given and does not name the subject."""
    return session.split if split is None else split.get(session.subject, "unused")


def few(cases: Sequence[Case], shots: int, seed: int) -> list[Case]:
    """The cases of ``shots`` subjects, taken in turn from the classes in an order drawn by the seed.

    Raises:
        ConfigError: there are fewer subjects.
    """
    from ..core import seeds

    subjects: dict[str, int] = {}
    for case in cases:
        subjects.setdefault(case.session.subject, case.group)
    if shots > len(subjects):
        raise ConfigError(f"data.shots is {shots}, but only {len(subjects)} training subjects carry the target")
    queues: dict[int, list[str]] = {}
    order = seeds.generator(seed, "shots").permutation(len(subjects))
    names = sorted(subjects)
    for place in order:
        queues.setdefault(subjects[names[place]], []).append(names[place])
    chosen: set[str] = set()
    while len(chosen) < shots:
        for group in sorted(queues):
            if queues[group] and len(chosen) < shots:
                chosen.add(queues[group].pop(0))
    return [case for case in cases if case.session.subject in chosen]


def _patch(
    setting: int | tuple[int, int, int] | str, task_name: str, store: Store, pretraining: Sequence[int] | int | None
) -> tuple[int, int, int]:
    if setting == "auto":
        setting = "whole" if task_name != "segmentation" else (pretraining if pretraining is not None else 64)  # type: ignore[assignment]
    if setting == "whole":
        largest = np.max([session.shape for session in store.sessions], axis=0)
        x, y, z = (int(-(-length // 16) * 16) for length in largest)
        return x, y, z
    if isinstance(setting, int):
        return setting, setting, setting
    x, y, z = (int(length) for length in setting)
    return x, y, z


def sessions_of(cases: Sequence[Case]) -> list[SessionView]:
    """The sessions of some cases."""
    return [case.session for case in cases]
