"""Fine-tune: a model folder (or nothing) and labelled sessions in, a predictor out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..data.store import Store
    from ..tasks._finetuning import Plan

logger = logging.getLogger(__name__)


def finetune(
    store: Path,
    from_: str,
    task: str,
    target: str,
    contrasts: str | None = None,
    out: Path = Path("runs/finetune"),
    recipe: str = "tiny",
    set: list[str] | None = None,
    seed: int = 0,
    dry_run: bool = False,
) -> Path:
    """Fine-tune a pretrained model on labelled sessions, or train the same net from scratch.

    Args:
        store: prepared store with labels or participants columns; its train split is learned from, val only watched.
        from_: run or model folder to start from, or "scratch".
        task: segmentation, classification or regression.
        target: label name (segmentation) or participants column (classification, regression).
        contrasts: comma-separated names, for example T1w,FLAIR or SWI_OR_T2STAR; all of the store by default.
        out: run folder; an interrupted run there is resumed.
        recipe: pretraining recipe whose net is built when training from scratch.
        set: settings such as training.steps=500, data.patch=32, data.shots=16, task.pool=mean.
        seed: of initialisation, draws and augmentation.
        dry_run: only say what would be done.

    Returns:
        The run folder; the model is in its folder model/.

    Raises:
        InputError: no session carries the target.
        ConfigError: a setting is unknown or impossible, or the store was prepared otherwise than the model expects.
        ArtifactError: the model or the store is damaged.
    """
    import torch

    from ..core import seeds, shelf
    from ..core.config import override, parse
    from ..core.errors import ConfigError
    from ..data.cases import CaseDataset, collate
    from ..data.loading import make_loader
    from ..data.store import Store
    from ..engine.training import train
    from ..inference import model as models
    from ..tasks import _finetuning as finetuning
    from ..tasks._protocol import Supervised

    shelf.path_of("tasks", task)
    opened = Store.open(store)
    values = override({"training": finetuning.DEFAULT_TRAINING | {"seed": seed}}, set or [])
    config = parse(finetuning.FineTuneConfig, values)

    lineage: list[dict[str, Any]] = []
    torch.manual_seed(seeds.entropy(seed, "initialisation") % 2**63)  # the only use of the global generator: initial weights
    if from_ == "scratch":
        settings = _recipe(recipe)
        net_name = str(settings["net"].pop("name"))
        net_config, patch = settings["net"], settings.get("data", {}).get("patch")
        net = models.build_net(net_name, net_config)
        known: tuple[str, ...] = ()
    else:
        source = models.load(from_)
        if source.spec != opened.spec:
            raise ConfigError(
                "the store was prepared otherwise than the model expects", file=store,
                expected=source.spec.model_dump(), got=opened.spec.model_dump(),
                next_step=f"prepare the index again with --spacing {source.spec.spacing_mm}",
            )  # fmt: skip
        net, net_name, net_config = source.net, source.info["net"]["name"], source.info["net"]["config"]
        known, patch = source.contrasts, source.info["method"].get("patch")
        lineage = [*source.info["lineage"], {
            "weights_sha256": source.info["weights_sha256"], "method": source.info["method"], "data": source.info["data"],
            "licences": source.info["licences"],
        }]  # fmt: skip
        _refuse_leakage(opened, source.info, from_)
    names = finetuning.expand_contrasts(contrasts, opened, known)
    plan = finetuning.plan(opened, task, target, names, config, seed=seed, pretraining_patch=patch)
    if task == "segmentation":
        module = shelf.load("nets", net_name)
        net = module.with_skips(net)
        net_config = net.config.model_dump(mode="json")
    head_name, head_config = plan.task.head(net, plan.contrasts)
    head = models.build_head(head_name, head_config)
    logger.info(
        "%s of %s from %s: %d training and %d validation cases, contrasts %s, box %s",
        task, target, from_, len(plan.train), len(plan.validation), ", ".join(plan.contrasts), plan.patch,
    )  # fmt: skip
    if dry_run:
        logger.info("dry run: nothing was trained")
        return out

    dataset = CaseDataset(
        opened, plan.train, plan.contrasts, plan.patch, seed=seed, foreground=config.data.foreground,
        contrast_dropout=config.data.contrast_dropout, label_values=getattr(plan.task, "values", (1,)),
        jitter=config.data.jitter, flip_axes=plan.flip_axes, intensity=config.data.intensity,
    )  # fmt: skip
    described = plan.task.describe() | {"window": list(plan.patch)}
    method = {
        "stage": "finetune", "initialised_from": "scratch" if from_ == "scratch" else "pretrained", "seed": seed,
        "settings": config.model_dump(mode="json"), "training_subjects": len({c.session.subject for c in plan.train}),
    }  # fmt: skip

    def save(folder: Path, trained: Supervised) -> None:
        models.save(
            folder, net=trained.net, net_name=net_name, net_config=net_config, head=trained.head, head_name=head_name,
            head_config=head_config, spec=opened.spec, contrasts=plan.contrasts, kind="finetuned", task=described,
            method=method, data=opened.data_summary(), lineage=lineage,
        )  # fmt: skip

    def loader(start_sample: int, rank: int, world: int) -> Any:
        return make_loader(
            dataset, batch=config.training.batch, start_sample=start_sample,
            n_samples=(config.training.steps or 0) * config.training.batch * config.training.accumulate * world - start_sample,
            rank=rank, world=world, workers=config.training.workers, collate=collate,
        )  # fmt: skip

    train(
        Supervised(net, head, plan.task), config.training, out, loader=loader,
        validate=_validator(opened, plan, described) if plan.validation else None,
        save_model=lambda trained, folder: save(folder, trained),  # type: ignore[arg-type]  # the module is our Supervised
        recipe={"stage": "finetune", "store": opened.data_summary(), "task": described, "contrasts": list(plan.contrasts),
                "from": "scratch" if from_ == "scratch" else lineage[-1]["weights_sha256"],
                "settings": config.model_dump(mode="json")},
    )  # fmt: skip
    return out


def _recipe(name: str) -> dict[str, Any]:
    """The net and data parts of a pretraining recipe, by name or file."""
    from ..core import shelf
    from ..core.config import read_yaml

    return read_yaml(name if name.endswith((".yaml", ".yml")) else shelf.path_of("recipes", name))


def _refuse_leakage(store: Store, info: Mapping[str, Any], source: str) -> None:
    """A subject of this store's test split must not have been pretrained on: told loudly, since labels were not seen."""
    seen = {*info["data"].get("subject_hashes", ())}
    if not seen:
        return
    from ..core import artifacts

    test = {s.subject for s in store.sessions if s.split == "test"}
    both = sorted(name for name in test if artifacts.sha256_json(name)[:12] in seen)
    if both:
        logger.warning(
            "%d test subjects were in the pretraining data of %s (without labels), for example %s", len(both), source, both[0]
        )


def _validator(store: Store, plan: Plan, described: Mapping[str, Any]) -> Callable[[nn.Module], dict[str, float]]:
    """Whole-volume scores on the validation cases, on the store's grid."""
    import numpy as np
    import torch

    from ..data.cases import class_numbers
    from ..inference import windows
    from ..inference.model import Model

    def validate(trained: nn.Module) -> dict[str, float]:
        info = {"contrasts": list(plan.contrasts), "task": dict(described)}
        model = Model(trained.net, trained.head, info, Path("."))  # type: ignore[arg-type]  # attributes of our Supervised
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
