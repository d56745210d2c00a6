"""Protocols: the rules of challenges as data. One YAML file is one challenge; what its organisers do not say is left out.

``read("fomo26")`` gives the frozen record. Contrasts are canonical names (``core.contrasts``); ``any`` is a scan of no stated contrast.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..core import contrasts as vocabulary
from ..core import shelf
from ..core.config import Config, parse, read_yaml
from ..core.errors import ConfigError

ANY = "any"
"""An input of no stated contrast."""

OUTPUTS = {"classification": "probability", "regression": "number", "segmentation": "mask", "embedding": "embedding"}
"""What ``predict`` writes for a kind of task: one probability in [0, 1] as text, one number as text, a NIfTI, a 1-D ``.npy``."""


class Input(Config):
    """One image that ``predict`` is given."""

    contrasts: tuple[str, ...] = Field(min_length=1)
    """Canonical names; with several, a case has one of them."""
    flags: tuple[str, ...] = Field(min_length=1)
    """Command-line flag of each contrast."""
    required: bool = True
    """Whether every case has it."""

    @model_validator(mode="after")
    def _known(self) -> Input:
        if len(self.flags) != len(self.contrasts):
            raise ValueError(f"one flag for each contrast is needed, got {self.flags} for {self.contrasts}")
        for name in self.contrasts:
            if name != ANY and name not in vocabulary.NAMES:
                raise ValueError(f"contrasts are canonical names, got {name!r}")
        return self

    @property
    def one_of(self) -> bool:
        """Whether a case has one of several contrasts here."""
        return len(self.contrasts) > 1


class Metric(Config):
    """How a task is scored."""

    name: str
    """``auroc``, ``dsc``, ``nsd``, ``mae``, ``pearson_r``, ``macro_f1``, ``fairness`` ..."""
    better: Literal["higher", "lower"]
    """Which way is better."""
    worst: float | None = None
    """What a failed submission gets."""


class Task(Config):
    """One task, or ``count`` tasks of one kind."""

    number: int = Field(ge=1)
    """As the organisers count."""
    name: str
    """A short word for it."""
    kind: Literal["classification", "segmentation", "regression", "embedding"]
    """What is predicted."""
    metrics: tuple[Metric, ...]
    """Each is ranked by itself."""
    inputs: tuple[Input, ...] = ()
    """Images of a case; a mask lies on the grid of the first that a case has. Empty where the organisers run the model themselves."""
    labels: tuple[int, ...] | None = None
    """Values that a mask may hold, background included."""
    cases: int | None = None
    """Labelled cases for fine-tuning."""
    weight: float | None = None
    """Of the task's rank, in a weighted mean over tasks."""
    count: int = Field(default=1, ge=1)
    """How many tasks of this kind there are."""

    @property
    def output(self) -> str:
        """What ``predict`` writes (``OUTPUTS``)."""
        return OUTPUTS[self.kind]


class EmptyMasks(Config):
    """Scores where a mask is empty."""

    both: dict[str, float]
    """Metric -> value when prediction and reference are both empty."""
    one: dict[str, float]
    """Metric -> value when exactly one is."""
    background_counted: bool
    """Whether the background is a class of its own in the mean."""


class Limits(Config):
    """What a submission may use."""

    seconds: float | None = None
    """For a case."""


class Ranking(Config):
    """How scores become a place: each metric is ranked, ranks are averaged within a task, then over tasks."""

    within_task: Literal["mean"]
    """Over a task's metrics."""
    over_tasks: Literal["mean", "weighted"]
    """Over tasks; ``weighted`` by ``Task.weight``."""


class Probe(Config):
    """How the organisers probe embeddings."""

    train: float
    """Share of each class that the probe is fitted on."""
    validation: float
    """Share of each class that the learning rate is chosen on."""
    test: float
    """Share of each class that is scored."""
    seed: int
    """Of the split."""
    select: Literal["auroc"]
    """Validation score that chooses the learning rate."""


class Fairness(Config):
    """How the organisers score fairness."""

    gap: Literal["best - worst"]
    """Between the groups of one variable."""
    score: Literal["mean of 1 - gap"]
    """Over variables."""


class Checkpoint(Config):
    """What a submitted checkpoint must be, where the organisers fine-tune."""

    networks: tuple[str, ...]
    """Architectures to choose from."""
    keys: tuple[str, ...]
    """Entries of the file."""
    adaptation: dict[str, str]
    """Keys of the weights that the organisers' code looks for."""
    classification_spacing_mm: float
    """Voxel size of the classification input."""
    classification_crop: tuple[int, int, int]
    """Its centre crop in voxels."""


class Protocol(Config):
    """A challenge."""

    name: str
    """The file's name."""
    title: str
    """In full."""
    submission: Literal["container", "checkpoint"]
    """Whether the organisers run ``predict`` or fine-tune a checkpoint themselves."""
    tasks: tuple[Task, ...] = Field(min_length=1)
    """What is asked."""
    one_checkpoint: bool | None = None
    """Whether all tasks must start from one pretrained checkpoint."""
    limits: Limits = Limits()
    """Time and memory."""
    empty_masks: EmptyMasks | None = None
    """Scores of empty masks."""
    nsd_tolerance_mm: float | None = None
    """Of the normalised surface Dice."""
    ranking: Ranking | None = None
    """How places are given."""
    probe: Probe | None = None
    """How embeddings are probed."""
    fairness: Fairness | None = None
    """How fairness is scored."""
    checkpoint: Checkpoint | None = None
    """For a checkpoint submission."""

    @model_validator(mode="after")
    def _whole(self) -> Protocol:
        numbers = [task.number for task in self.tasks]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"two tasks have one number: {numbers}")
        if self.ranking is not None and self.ranking.over_tasks == "weighted":
            weights = [task.weight for task in self.tasks]
            if None in weights or abs(sum(w for w in weights if w is not None) - 1) > 1e-9:
                raise ValueError(f"a weighted ranking needs a weight for every task, together 1; got {weights}")
        return self

    def task(self, number: int | str) -> Task:
        """The task of a number or a name.

        Raises:
            ConfigError: there is none; the message lists them.
        """
        for task in self.tasks:
            if str(number) in (str(task.number), task.name):
                return task
        known = ", ".join(f"{task.number} ({task.name})" for task in self.tasks)
        raise ConfigError(f"{self.title} has no task {number}", expected=known, next_step="give --task NUMBER")


def read(name: str) -> Protocol:
    """The protocol of a name on the shelf.

    Raises:
        ConfigError: there is none of that name, or its file holds an unknown key or an impossible value.
    """
    path = shelf.path_of("protocols", name)
    return parse(Protocol, {"name": name, **read_yaml(path)}, where=path)
