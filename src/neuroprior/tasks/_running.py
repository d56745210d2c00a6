"""One fine-tuning, from a model folder (or nothing) and labelled sessions to a run folder: what ``finetune`` and its kin call.

Which subjects are learned from and which are watched is the store's split, or any other that the caller gives: folds and
few-shot draws are the same run with another split.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core import artifacts, seeds, shelf
from ..core.config import read_yaml
from ..core.errors import ConfigError
from ..data.cases import CaseDataset, class_numbers, collate
from ..data.loading import make_loader
from ..data.store import Store
from ..engine.training import TrainingResult, train
from ..inference import model as models
from ..inference import windows
from . import _finetuning as finetuning
from ._calibration import calibrate
from ._protocol import Supervised

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


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
    dry_run: bool = False,
) -> TrainingResult | None:
    """Train a net and a head on a task; an interrupted run in ``out`` is resumed.

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
        dry_run: only say what would be done.

    Returns:
        How the run ended; None after a dry run.

    Raises:
        InputError: no training session carries the target.
        ConfigError: the store was prepared otherwise than the model expects.
        ArtifactError: the model or the store is damaged.
    """
    lineage: list[dict[str, Any]] = []
    torch.manual_seed(seeds.entropy(seed, "initialisation") % 2**63)  # the only use of the global generator: initial weights
    if source == "scratch":
        settings = _recipe(recipe)
        net_name = str(settings["net"].pop("name"))
        net_config, patch = settings["net"], settings.get("data", {}).get("patch")
        net = models.build_net(net_name, net_config)
        known: tuple[str, ...] = ()
    else:
        given = models.load(source)
        if given.spec != store.spec:
            raise ConfigError(
                "the store was prepared otherwise than the model expects", file=store.path,
                expected=given.spec.model_dump(), got=store.spec.model_dump(),
                next_step=f"prepare the index again with --spacing {given.spec.spacing_mm}",
            )  # fmt: skip
        net, net_name, net_config = given.net, given.info["net"]["name"], given.info["net"]["config"]
        known, patch = given.contrasts, given.info["method"].get("patch")
        lineage = [*given.info["lineage"], {
            "weights_sha256": given.info["weights_sha256"], "method": given.info["method"], "data": given.info["data"],
            "licences": given.info["licences"],
        }]  # fmt: skip
        _tell_overlap(store, given.info, source, split)
    names = finetuning.expand_contrasts(contrasts, store, known)
    plan = finetuning.plan(store, task, target, names, config, seed=seed, pretraining_patch=patch, split=split)
    if task == "segmentation":
        module = shelf.load("nets", net_name)
        net = module.with_skips(net)
        net_config = net.config.model_dump(mode="json")
    head_name, head_config = plan.task.head(net, plan.contrasts)
    head = models.build_head(head_name, head_config)
    logger.info(
        "%s of %s from %s: %d training and %d validation cases, contrasts %s, box %s",
        task, target, source, len(plan.train), len(plan.validation), ", ".join(plan.contrasts), plan.patch,
    )  # fmt: skip
    if dry_run:
        logger.info("dry run: nothing was trained")
        return None

    dataset = CaseDataset(
        store, plan.train, plan.contrasts, plan.patch, seed=seed, foreground=config.data.foreground,
        contrast_dropout=config.data.contrast_dropout, label_values=getattr(plan.task, "values", (1,)),
        jitter=config.data.jitter, flip_axes=plan.flip_axes, intensity=config.data.intensity,
    )  # fmt: skip
    described = plan.task.describe() | {"window": list(plan.patch)}
    method = {
        "stage": "finetune", "initialised_from": "scratch" if source == "scratch" else "pretrained", "seed": seed,
        "settings": config.model_dump(mode="json"), "training_subjects": len({c.session.subject for c in plan.train}),
    }  # fmt: skip

    def save(folder: Path, trained: Supervised) -> None:
        models.save(
            folder, net=trained.net, net_name=net_name, net_config=net_config, head=trained.head, head_name=head_name,
            head_config=head_config, spec=store.spec, contrasts=plan.contrasts, kind="finetuned", task=described,
            method=method, data=store.data_summary(), lineage=lineage,
        )  # fmt: skip

    def loader(start_sample: int, rank: int, world: int) -> Any:
        return make_loader(
            dataset, batch=config.training.batch, start_sample=start_sample,
            n_samples=(config.training.steps or 0) * config.training.batch * config.training.accumulate * world - start_sample,
            rank=rank, world=world, workers=config.training.workers, collate=collate,
        )  # fmt: skip

    result = train(
        Supervised(net, head, plan.task), config.training, out, loader=loader,
        validate=_validator(store, plan, described) if plan.validation else None,
        save_model=lambda trained, folder: save(folder, trained),  # type: ignore[arg-type]  # the module is our Supervised
        recipe={"stage": "finetune", "store": store.data_summary(), "task": described, "contrasts": list(plan.contrasts),
                "from": "scratch" if source == "scratch" else lineage[-1]["weights_sha256"],
                "settings": config.model_dump(mode="json"),
                "split": None if split is None else artifacts.sha256_json(dict(sorted(split.items())))},
    )  # fmt: skip
    if plan.validation and result.status == "complete":
        calibrate(out, store, plan.validation, seed=seed)
    return result


def _recipe(name: str) -> dict[str, Any]:
    """The net and data parts of a pretraining recipe, by name or file."""
    return read_yaml(name if name.endswith((".yaml", ".yml")) else shelf.path_of("recipes", name))


def _tell_overlap(store: Store, info: Mapping[str, Any], source: str, split: Mapping[str, str] | None) -> None:
    """Test subjects that the pretraining saw (without labels) are told."""
    seen = {*info["data"].get("subject_hashes", ())}
    if not seen:
        return
    test = {s.subject for s in store.sessions if finetuning.split_of(s, split) == "test"}
    both = sorted(name for name in test if artifacts.sha256_json(name)[:12] in seen)
    if both:
        logger.warning(
            "%d test subjects were in the pretraining data of %s (without labels), for example %s", len(both), source, both[0]
        )


def _validator(store: Store, plan: finetuning.Plan, described: Mapping[str, Any]) -> Callable[[nn.Module], dict[str, float]]:
    """Whole-volume scores on the validation cases, on the store's grid."""

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
                    values = described["label_values"]
                    probability = windows.segment(model, tensor, case.contrasts, window=plan.patch).cpu().numpy()
                    truth = class_numbers(store.read_label(case.session.key, case.target), values)
                    guess = probability.argmax(0)
                    dices += [
                        2 * np.sum((guess == k) & (truth == k)) / (np.sum(guess == k) + np.sum(truth == k))
                        for k in range(1, len(values) + 1)
                        if (truth == k).any()
                    ]
                    chosen = np.take_along_axis(probability, truth[None], 0)
                    losses.append(float(-np.log(np.clip(chosen, 1e-7, 1)).mean()))
                    continue
                raw = windows.pool(model, tensor, case.contrasts, window=plan.patch)
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
