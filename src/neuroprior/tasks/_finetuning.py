"""Fine-tuning as data: the settings, and the net, head and cases that follow from them and a store."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ..core import contrasts as vocabulary
from ..core import shelf
from ..core.config import Config as BaseConfig
from ..core.config import override, parse
from ..core.errors import ConfigError, InputError
from ..data.cases import Case
from ..data.store import SessionView, Store
from ..engine.settings import TrainingConfig
from ._covariates import fit as fit_covariates
from ._protocol import Task
from ._sides import checked
from .segmentation import side_pairs

logger = logging.getLogger(__name__)


class CaseConfig(BaseConfig):
    """How cases are drawn."""

    patch: int | tuple[int, int, int] | Literal["auto", "whole"] = "auto"
    """Box in voxels. ``whole`` holds the largest head of the store; ``auto`` is the pretraining patch for segmentation and
    ``whole`` for a class or a number."""
    foreground: float = Field(default=0.5, ge=0, le=1)
    """Share of draws whose box contains the target label."""
    balance: bool = True
    """Give every class, and every label value in these draws, an equal chance; else cases are drawn as they come."""
    weight_by: str | None = None
    """A participants column whose groups (site, scanner ...) are to be drawn more evenly than they come."""
    temperature: float = Field(default=2.0, ge=1)
    """With ``weight_by``: a group of n cases is drawn in proportion to n^(1 / temperature); 1 as they come, large all alike."""
    contrast_dropout: float = Field(default=0.25, ge=0, lt=1)
    """Probability that a contrast is left out of a draw, so that any subset can be predicted from later."""
    covariates: tuple[str, ...] = ()
    """Participants columns that the head takes beside the images (a class or a number); a missing value is allowed."""
    covariate_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a covariate is hidden in a draw, so that it can be missing later."""
    jitter: int = Field(default=2, ge=0)
    """Largest shift in voxels of a whole-head box."""
    flip: bool = True
    """Mirror at random. Left and right are left alone where labels have several values and no pairs are known."""
    mirror_axes: tuple[int, ...] = (0,)
    """Axes that may be mirrored (0 left-right, 1 back-front, 2 down-up)."""
    label_pairs: tuple[tuple[int, int], ...] | None = None
    """Label values that are each other's mirror image; by default from the labels' names, where the dataset has them."""
    augment: Literal["none", "light", "mri"] = "light"
    """``light`` is a gain and an offset; ``mri`` adds movement, contrast, resolution, noise and artefacts of MRI."""
    transforms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Changes to that: transform -> settings, ``probability`` among them."""
    intensity: float = Field(default=0.1, ge=0)
    """Spread of the random gain and offset, in standard deviations of the image."""
    shots: int | None = Field(default=None, ge=1)
    """Use only this many training subjects, drawn by the seed (balanced over classes where there are classes)."""


class FineTuneConfig(BaseConfig):
    """Settings of a fine-tuning run; ``task`` is checked by the task's own Config."""

    strategy: str | None = None
    """How the pretrained weights are taken along, in a word (``tasks/_strategies.py``); by default warmup-full, or scratch."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Factor on the learning rate from one encoder stage to the next further from the head (``llrd``)."""
    lora_rank: int = Field(default=8, ge=1)
    """Rank of the adapters (``lora``)."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """The adapters' change is scaled by alpha / rank (``lora``)."""
    data: CaseConfig = CaseConfig()
    """How cases are drawn."""
    task: dict[str, Any] = Field(default_factory=dict)
    """Settings of the task (``tasks/<name>.py``)."""
    training: TrainingConfig
    """Steps, batch, optimiser, schedule."""


DEFAULT_TRAINING: dict[str, Any] = {
    "steps": 300,
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2},
    "schedule": {"name": "cosine", "warmup_steps": 20},
    "clip_norm": 1.0,
    "validate_every": 100,
}
"""What a fine-tuning run takes where nothing is set."""

BATCH = {"segmentation": 2, "classification": 4, "regression": 4}
"""Cases a step where nothing is set. A class or a number is one value a case, and what people share is told from what they do not by
others in the batch."""

WATCH = {"segmentation": "dice", "classification": "loss", "regression": "mae"}
"""The validation score that says which weights are best, where nothing is set."""


def settings(
    assignments: Sequence[str], *, seed: int, task: str = "segmentation", changes: Mapping[str, Any] | None = None
) -> FineTuneConfig:
    """The defaults of a task with ``key=value`` assignments and then ``changes`` (nested plain data) applied.

    A length in epochs or hours takes the place of the default number of steps.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    values = override({"training": DEFAULT_TRAINING | {"batch": BATCH.get(task, 2), "seed": seed}}, assignments)
    for section, entries in (changes or {}).items():
        values[section] = {**values.get(section, {}), **entries} if isinstance(entries, Mapping) else entries
    training = values["training"]
    given = {part.partition("=")[0].strip() for part in assignments} | {
        f"training.{k}" for k in (changes or {}).get("training", {})
    }
    if "training.steps" not in given and (
        "training.epochs" in given or any(p.startswith("training.hours=") for p in assignments)
    ):
        training["steps"] = None
    elif "training.steps" not in given and values.get("strategy") == "closed-form":
        training["steps"] = 0
    return parse(FineTuneConfig, values)


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first step.

    Attributes:
        task: fitted to the training sessions.
        contrasts: in the order of the head's contrast numbers.
        train, validation: labelled cases; validation may be empty.
        patch: training box in voxels, also the prediction window.
        mirror_axes: axes that may be mirrored.
        label_pairs: label values that are each other's mirror image.
        class_pairs: the same as class numbers.
    """

    task: Task
    contrasts: tuple[str, ...]
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    patch: tuple[int, int, int]
    mirror_axes: tuple[int, ...]
    label_pairs: tuple[tuple[int, int], ...] = ()
    class_pairs: tuple[tuple[int, int], ...] = ()

    @property
    def subjects(self) -> frozenset[str]:
        """Who is learned from."""
        return frozenset(case.session.subject for case in self.train)


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
    if split is not None:
        unknown = sorted(set(split.values()) - {"train", "val", "test", "unused"})
        if unknown:
            raise ConfigError(f"a split is called {unknown[0]!r}", expected="train, val or test")
    training = [session for session in store.sessions if split_of(session, split) in ("train", "")]
    validation = [session for session in store.sessions if split_of(session, split) == "val"]
    if not training:
        raise InputError(
            "the store has no session in the training split", file=store.path,
            got=f"splits {', '.join(sorted({split_of(s, split) for s in store.sessions}))}",
        )  # fmt: skip
    covariates = fit_covariates(store, training, config.data.covariates, target) if config.data.covariates else ()
    task = module.fit(store, training, target, contrasts, parse(module.Config, config.task, where=where), covariates)
    cases = task.cases(store, training, contrasts)
    if config.data.shots is not None:
        cases = few(cases, config.data.shots, seed)
    patch = _patch(config.data.patch, task_name, store, pretraining_patch)
    values: tuple[int, ...] = getattr(task, "values", ())
    pairs: tuple[tuple[int, int], ...] = ()
    if values:
        given = config.data.label_pairs
        pairs = checked(side_pairs(task) if given is None else given, values)
    axes = mirrored(config.data, values, pairs)
    return Plan(
        task, contrasts, tuple(cases), tuple(task.cases(store, validation, contrasts)), patch, axes, pairs,
        tuple((values.index(one) + 1, values.index(other) + 1) for one, other in pairs),
    )  # fmt: skip


def mirrored(config: CaseConfig, values: Sequence[int], pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The axes that may be mirrored: left and right only where that is safe for labels of these ``values``."""
    if not config.flip:
        return ()
    wrong = [axis for axis in config.mirror_axes if axis not in (0, 1, 2)]
    if wrong:
        raise ConfigError(f"data.mirror_axes names the axis {wrong[0]}", expected="0 (left-right), 1 (back-front) or 2 (down-up)")
    axes = tuple(dict.fromkeys(config.mirror_axes))
    if 0 in axes and len(values) > 1 and not pairs and config.label_pairs is None:
        logger.info(
            "left and right are not mirrored: the label has %d values, whose sides may differ (say which belong together: "
            "--set data.label_pairs=[[1,2]], or [] where none has a side)", len(values),
        )  # fmt: skip
        return tuple(axis for axis in axes if axis != 0)
    return axes


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
