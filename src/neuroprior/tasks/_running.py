"""One fine-tuning, from a model folder (or nothing) and labelled sessions to a run folder: what ``finetune`` and its kin call.

Which subjects are learned from and which are watched is the store's split, or any other that the caller gives: folds and
few-shot draws are the same run with another split.
"""

from __future__ import annotations

import copy
import itertools
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core import artifacts, ranks, seeds, shelf
from ..core.config import read_yaml
from ..core.covariates import encode
from ..core.errors import ConfigError
from ..core.representation import Representation
from ..data.augmentation import Augmentation, steps
from ..data.cases import Case, CaseDataset, box_slices, case_weights, centred, class_numbers, collate, crop
from ..data.loading import make_loader
from ..data.store import Store
from ..engine import pace, vram
from ..engine.device import device_of
from ..engine.phases import lengths
from ..engine.settings import TrainingConfig
from ..inference import lineage, windows
from ..inference import model as models
from . import _closed_form as closed_form
from . import _finetuning as finetuning
from . import _strategies as strategies
from ._adapters import adapt, merged
from ._calibration import calibrate
from ._protocol import Supervised, settle

if TYPE_CHECKING:
    from torch import nn

    from ..engine.training import TrainingResult

logger = logging.getLogger(__name__)

VALIDATION_OVERLAP = 0.25
"""Of the windows while a run validates: half the windows of a prediction, and the same order of steps (benchmarks/validation.py)."""


def fine_tune(
    store: Store,
    source: str,
    task: str,
    target: str,
    *,
    config: finetuning.FineTuneConfig,
    out: Path,
    contrasts: str | None = None,
    recipe: str = "tiny",
    seed: int = 0,
    split: Mapping[str, str] | None = None,
    memory: str | None = None,
    dry_run: bool = False,
) -> TrainingResult | None:
    """Train a net and a head on a task; an interrupted run in ``out`` is resumed.

    With the strategy ``scratch`` and a model folder as the source, the same net is trained from random weights.

    Args:
        store: prepared, with labels or participants columns.
        source: run or model folder to start from, or ``scratch``.
        task: a name on the tasks shelf.
        target: label name or participants column.
        config: checked settings.
        out: run folder.
        contrasts: comma-separated names; all of the store by default.
        recipe: pretraining recipe whose net is built from scratch.
        seed: of initialisation, draws and augmentation.
        split: subject (namespaced, as in the store) -> ``train``, ``val`` or ``test``; the store's own by default.
        memory: what a step may take (:func:`neuroprior.engine.vram.limit_of`); by default nobody looks.
        dry_run: only say what would be done.

    Returns:
        How the run ended; None after a dry run.

    Raises:
        InputError: no training session carries the target.
        ConfigError: the store was prepared otherwise than the model expects.
        ArtifactError: the model or the store is damaged.
    """
    strategy = strategies.check(config.strategy or ("scratch" if source == "scratch" else "warmup-full"))
    if source == "scratch" and strategy != "scratch" and strategy not in ("full", "warmup-full"):
        raise ConfigError(
            f"the strategy {strategy!r} needs pretrained weights", expected="--from MODEL", got="--from scratch",
            next_step="leave --strategy out, or give a model folder",
        )  # fmt: skip
    ranks.join(config.training.devices)
    scratch = source == "scratch" or strategy == "scratch"
    ancestors: list[dict[str, Any]] = []
    torch.manual_seed(seeds.entropy(seed, "initialisation") % 2**63)  # the only use of the global generator: initial weights
    if source == "scratch":
        settings = _recipe(recipe)
        net_name = str(settings["net"].pop("name"))
        net_config, patch = settings["net"], settings.get("data", {}).get("patch")
        net = models.build_net(net_name, net_config)
        known: tuple[str, ...] = ()
    else:
        given = models.load(source)
        lineage.require_preparation(given, store.spec, store.info["steps"], store.path)
        net, net_name, net_config = given.net, given.info["net"]["name"], given.info["net"]["config"]
        known, patch = given.contrasts, given.info["method"].get("patch")
        if scratch:
            net = models.build_net(net_name, net_config)
        else:
            ancestors = lineage.inherited(given)
            lineage.tell_overlap(
                given.info, (s.subject for s in store.sessions if finetuning.split_of(s, split) == "test"), source
            )
    names = finetuning.expand_contrasts(contrasts, store, known)
    if strategy == "closed-form" and task == "segmentation":
        raise ConfigError("a segmentation has no closed form", next_step="take --strategy linear-probe, or another task")
    if strategy != "closed-form" and config.training.steps == 0:
        raise ConfigError("training.steps=0 leaves the head as it was drawn", next_step="give steps, or --strategy closed-form")
    if strategy in ("linear-probe", "closed-form") and task != "segmentation":
        config = config.model_copy(update={"task": {"head": "pooled", "hidden": 0} | config.task})
    plan = finetuning.plan(store, task, target, names, config, seed=seed, pretraining_patch=patch, split=split)
    if task == "segmentation":
        module = shelf.load("nets", net_name)
        net = module.with_skips(net)
        net_config = net.config.model_dump(mode="json")
    head_name, head_config = plan.task.head(net, plan.contrasts)
    head = models.build_head(head_name, head_config)
    if strategy == "closed-form":
        closed_form.check(head, plan.task)
    covariates = tuple(getattr(plan.task, "covariates", ()))
    augmentation = Augmentation(
        steps(config.data.augment, config.data.transforms, config.data.intensity), plan.mirror_axes, plan.class_pairs,
        (store.spec.spacing_mm,) * 3,
    )  # fmt: skip
    dataset = CaseDataset(
        store, plan.train, plan.contrasts, plan.patch, seed=seed, augmentation=augmentation, foreground=config.data.foreground,
        balance=config.data.balance, weights=case_weights(plan.train, config.data.weight_by, config.data.temperature),
        contrast_dropout=config.data.contrast_dropout, label_values=getattr(plan.task, "label_values", (1,)),
        shares=getattr(plan.task, "soft", False), jitter=config.data.jitter, covariates=covariates,
        covariate_dropout=config.data.covariate_dropout,
    )  # fmt: skip
    logger.info(
        "%s of %s from %s, strategy %s: %d training and %d validation cases, contrasts %s, box %s, mirrored axes %s", task, target,
        source, strategy, len(plan.train), len(plan.validation), ", ".join(plan.contrasts), plan.patch, list(plan.mirror_axes),
    )  # fmt: skip
    if strategy == "lora":
        added = adapt(net, config.lora_rank, config.lora_alpha)
        logger.info(
            "low-rank adapters: %d numbers beside %d frozen ones", added, sum(p.numel() for p in net.parameters()) - added
        )
    if memory is not None and strategy != "closed-form":
        probe = Supervised(copy.deepcopy(net), copy.deepcopy(head), plan.task)
        config = config.model_copy(update={"training": _in_memory(config.training, probe, dataset, memory, out)})
    if dry_run:
        logger.info("dry run: nothing was trained")
        return None
    if scratch:
        settle(net, _encoded(net, store, plan, _some(plan.train), config.training))
    if hasattr(head, "statistics") and getattr(head.config, "standardise", True):
        _standardise(head, net, store, plan, config.training)
    if strategy == "closed-form":
        _solve(head, net, store, plan, config.training)
    supervised = Supervised(net, head, plan.task)
    training = _resolved(config, strategy, supervised, dataset, out, task)
    config = config.model_copy(update={"training": training, "strategy": strategy})
    described = plan.task.describe() | {
        "window": list(plan.patch), "mirror_axes": list(plan.mirror_axes), "label_pairs": [list(pair) for pair in plan.label_pairs],
    }  # fmt: skip
    summary = store.data_summary(plan.subjects)
    method = {
        "stage": "finetune", "initialised_from": "scratch" if scratch else "pretrained", "strategy": strategy, "seed": seed,
        "settings": config.model_dump(mode="json"), "training_subjects": len(plan.subjects),
    }  # fmt: skip
    kept: dict[str, Any] = {}

    def save(trained: Supervised, folder: Path) -> None:
        models.save(
            folder, net=merged(trained.net), net_name=net_name, net_config=net_config, head=trained.head, head_name=head_name,
            head_config=head_config, spec=store.spec, contrasts=plan.contrasts, kind="finetuned", task=described,
            method=method | {"kept": dict(kept)}, data=summary, lineage=ancestors,
        )  # fmt: skip

    def loader(start_sample: int, rank: int, world: int) -> Any:
        return make_loader(
            dataset, batch=training.batch, start_sample=start_sample,
            n_samples=(training.steps or 0) * training.batch * training.accumulate * world - start_sample,
            rank=rank, world=world, workers=training.workers, collate=collate, timeout_s=training.data_timeout_s,
        )  # fmt: skip

    from ..engine.training import train  # Lightning takes seconds to import: what is wrong with a request is told before

    result = train(
        supervised, training, out, loader=loader, validate=_validator(store, plan, described, training) if plan.validation else None,
        save_model=save, group_of=strategies.group_of, kept=kept,
        recipe={"stage": "finetune", "store": store.data_summary(), "task": described, "contrasts": list(plan.contrasts),
                "from": "scratch" if scratch else ancestors[-1]["weights_sha256"], "strategy": strategy,
                "settings": config.model_dump(mode="json"),
                "split": None if split is None else artifacts.sha256_json(dict(sorted(split.items())))},
    )  # fmt: skip
    if plan.validation and result.status == "complete":
        calibrate(out, store, plan.validation, seed=seed)
    return result


def _resolved(
    config: finetuning.FineTuneConfig, strategy: str, supervised: Supervised, dataset: CaseDataset, out: Path, task: str
) -> TrainingConfig:
    """The training settings with steps, phases and the watched score as plain values."""
    training = config.training
    if training.steps is None and training.epochs is None and training.hours is not None:
        training = training.model_copy(update={"steps": _steps_in(training.hours, supervised, dataset, training, out)})
    training = training.resolved(len(dataset))
    if not training.phases:
        training = training.model_copy(update={"phases": strategies.phases(strategy, supervised.net, config.layer_decay)})
    if "watch" not in config.training.model_fields_set:
        training = training.model_copy(update={"watch": finetuning.WATCH.get(task, "loss")})
    for phase, n in zip(training.phases, lengths(training.phases, training.steps or 0), strict=True):
        if n:
            logger.info("phase of %d steps, warm-up %s: %s", n, "as scheduled" if phase.warmup is None else round(phase.warmup * n),
                        ", ".join(f"{name} x {rate:.3g}" if rate else f"{name} frozen" for name, rate in phase.rates.items()))  # fmt: skip
    return training


def _in_memory(training: TrainingConfig, supervised: Supervised, dataset: CaseDataset, asked: str, out: Path) -> TrainingConfig:
    """The training settings with as many maps computed again as a step needs to fit. Micro-batches stay: Dice, and losses that weigh classes, look at a
    batch as a whole."""

    def draw(n: int) -> Any:
        return collate([dataset[number] for number in range(n)])

    def ladder(couples: int | None) -> vram.Ladder:
        return vram.ladder(supervised, training, draw, couples=couples)

    return vram.fitted(training, out, asked, ladder, training.batch)


def _steps_in(hours: float, supervised: Supervised, dataset: CaseDataset, training: TrainingConfig, out: Path) -> int:
    """How many steps fit into a time: what an earlier call settled on, or by timing three steps of a copy."""
    if (out / "recipe.yaml").is_file():
        before = read_yaml(out / "recipe.yaml").get("training", {})
        if before.get("steps"):
            return int(before["steps"])
    starts = itertools.count(0, training.batch)
    batches = (collate([dataset[first + n] for n in range(training.batch)]) for first in starts)
    seconds = statistics.median(pace.take(copy.deepcopy(supervised), training, batches, 0.0).step_s)
    found = max(1, int(0.9 * hours * 3600 / seconds))
    logger.info("%.3g hours are about %d steps of %.3g s; the run ends when either is reached", hours, found, seconds)
    return found


def _some(cases: Sequence[Case], limit: int = 48) -> list[Case]:
    """At most ``limit`` cases, spread over all."""
    return [cases[n] for n in np.unique(np.linspace(0, len(cases) - 1, min(limit, len(cases))).astype(int))]


@torch.no_grad()
def _encoded(
    net: nn.Module, store: Store, plan: finetuning.Plan, cases: Sequence[Case], training_config: TrainingConfig
) -> Iterator[tuple[Case, Representation, torch.Tensor]]:
    """Cases, seen whole and unaltered: the representation of the K scans of each, and (K,) contrast numbers. The net ends on the CPU."""
    device, training = device_of(training_config), net.training
    net.to(device).eval()
    for case in cases:
        box, offset = box_slices(centred(case.session.shape, plan.patch), plan.patch, case.session.shape)
        images = np.stack([crop(store.read(case.session.key, name, box), offset, plan.patch) for name in case.contrasts])
        numbers = torch.tensor([plan.contrasts.index(name) for name in case.contrasts], device=device)
        yield case, net.encode(torch.from_numpy(images)[:, None].to(device)), numbers
    net.train(training).to("cpu")


def _standardise(head: nn.Module, net: nn.Module, store: Store, plan: finetuning.Plan, training_config: TrainingConfig) -> None:
    """Give the head the mean and spread of its features over some training cases."""
    head.to(device_of(training_config))
    seen: list[tuple[torch.Tensor, ...]] = []
    contrasts: list[torch.Tensor] = []
    for _, representation, numbers in _encoded(net, store, plan, _some(plan.train), training_config):
        seen.append(tuple(rows.cpu() for rows in head.statistics(representation, numbers)))
        contrasts.append(numbers.cpu())
    head.to("cpu").standardise_by(*(torch.cat(rows) for rows in zip(*seen, strict=True)), torch.cat(contrasts))


def _solve(head: nn.Module, net: nn.Module, store: Store, plan: finetuning.Plan, training_config: TrainingConfig) -> None:
    """Fit a linear head to the training cases in closed form."""
    linear = closed_form.check(head, plan.task).to(device_of(training_config))
    seen = []
    for case, representation, numbers in _encoded(net, store, plan, plan.train, training_config):
        each = torch.arange(len(numbers), device=numbers.device)
        anatomy, scans = linear.vectors(representation, each, len(numbers))
        seen.append(closed_form.Seen(*(rows.cpu().numpy() for rows in (anatomy, scans, numbers)), float(case.target)))
    closed_form.fit(linear.to("cpu"), seen, len(getattr(plan.task, "classes", ())))


def _recipe(name: str) -> dict[str, Any]:
    """The net and data parts of a pretraining recipe, by name or file."""
    return read_yaml(name if name.endswith((".yaml", ".yml")) else shelf.path_of("recipes", name))


def _validator(
    store: Store, plan: finetuning.Plan, described: Mapping[str, Any], training: TrainingConfig
) -> Callable[[nn.Module], dict[str, float]]:
    """Whole-volume scores on the validation cases, on the store's grid."""
    precision = "float32" if training.precision == "32" else "auto"

    def validate(trained: nn.Module) -> dict[str, float]:
        info = {"contrasts": list(plan.contrasts), "task": dict(described)}
        model = models.Model(trained.net, trained.head, info, Path("."))  # type: ignore[arg-type]  # attributes of our Supervised
        device = next(trained.parameters()).device
        was_training = trained.training
        trained.eval()
        losses, dices, errors, hits = [], [], [], []
        with torch.inference_mode():
            for case in plan.validation:
                images = np.stack([store.read(case.session.key, name, None) for name in case.contrasts])
                tensor = torch.from_numpy(images).float().to(device)
                if isinstance(case.target, str):
                    values = plan.task.label_values
                    probability = windows.segment(
                        model, tensor, case.contrasts, window=plan.patch, overlap=VALIDATION_OVERLAP, precision=precision
                    )
                    probability = probability.cpu().numpy()
                    truth = class_numbers(store.read_label(case.session.key, case.target), values)
                    guess = probability.argmax(0)
                    dices += [
                        2 * np.sum((guess == k) & (truth == k)) / (np.sum(guess == k) + np.sum(truth == k))
                        for k in range(1, len(values) + 1)
                        if (truth == k).any()
                    ]
                    if not (truth > 0).any():
                        dices.append(float(not (guess > 0).any()))
                    chosen = np.take_along_axis(probability, truth[None], 0)
                    losses.append(float(-np.log(np.clip(chosen, 1e-7, 1)).mean()))
                    continue
                raw = _pooled(model, tensor, case, plan)
                target = torch.tensor([case.target], device=device)
                losses.append(float(plan.task.losses(raw[None], target)["loss"]))
                if "classes" in described:
                    hits.append(float(int(raw.argmax()) == case.target))
                else:
                    errors.append(abs(float(raw[0]) - case.target) * described["std"])
        trained.train(was_training)
        result = {"loss": float(np.mean(losses))}
        result |= {"dice": float(np.mean(dices))} if dices else {}
        result |= {"accuracy": float(np.mean(hits))} if hits else {}
        result |= {"mae": float(np.mean(errors))} if errors else {}
        return result

    return validate


def _pooled(model: models.Model, images: torch.Tensor, case: Case, plan: finetuning.Plan) -> torch.Tensor:
    """(outputs,) of a whole case, with its covariates where the head takes some."""
    covariates = tuple(getattr(plan.task, "covariates", ()))
    if not covariates:
        return windows.pool(model, images, case.contrasts, window=plan.patch)
    row = torch.tensor([encode(case.session.columns, covariates)], dtype=torch.float32, device=images.device)

    class WithCovariates(torch.nn.Module):
        def forward(self, *rows: Any) -> torch.Tensor:
            assert model.head is not None
            return model.head(*rows, row)

    return windows.pool(replace(model, head=WithCovariates()), images, case.contrasts, window=plan.patch)
