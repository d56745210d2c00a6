"""Pretrain: a store in, a model that has learned without labels out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.places import Place

if TYPE_CHECKING:
    from ..engine.training import TrainingResult

logger = logging.getLogger(__name__)


def pretrain(
    store: Place,
    recipe: str = "tiny",
    from_: str | None = None,
    anatomy: Path | None = None,
    out: Path = Path("runs/pretrain"),
    set: list[str] | None = None,
    vram: str | None = None,
    dry_run: bool = False,
) -> TrainingResult | None:
    """Pretrain a network on a store, without labels.

    Args:
        store: prepared store, or the address of one; its train split is learned from, val only watched, test never touched.
        recipe: name on the recipes shelf, or a YAML file.
        from_: run or model folder, or its address (hf://ORG/NAME), whose net and weights it goes on from, for example one of neuroprior convert; the recipe's own net is then not
            built. Settings of the net may only change what its weights mean, such as net.split=channels.
        anatomy: table of anatomical volumes made by neuroprior anatomy, for objectives that learn from it.
        out: run folder; an interrupted run there is resumed.
        set: settings such as training.steps=500 or objective.wiring=other.
        vram: auto (what is free on the GPU) or a number of GB: take the step in smaller micro-batches, then with maps computed again, so that
            it fits; the effective batch stays.
        dry_run: only check everything and say what would be done.

    Returns:
        How the run ended; the model is in the run folder's model/.

    Raises:
        ConfigError: a setting is unknown or impossible, the folder holds another run, or the store was prepared otherwise than the model
            to go on from expects.
        InputError: the store has nothing to train on.
        DivergenceError: the loss is not finite or explodes, and going back to the last good state did not help.
    """
    import torch

    from ..core import ranks, seeds
    from ..core.errors import ConfigError
    from ..data.loading import make_loader
    from ..data.pairs import PairDataset, collate_pairs
    from ..data.store import Store
    from ..data.watching import observer
    from ..engine import panels
    from ..engine.device import moved
    from ..inference import lineage
    from ..inference import model as models
    from ..objectives._recipe import read_recipe

    of_net = [] if from_ is None else [one for one in set or [] if one.strip().startswith("net.")]
    settings = read_recipe(recipe, [one for one in set or [] if one not in of_net])
    opened = Store.open(store)
    config = settings.training
    ranks.join(config.devices)
    summary = opened.data_summary()
    given = None if from_ is None else _given(from_, opened, of_net)
    if given is not None:
        settings = settings.around(given.info["net"]["name"], given.net.config.model_dump(mode="json"))
    vectors = _vectors(settings, opened, anatomy)
    dimension = len(next(iter(vectors.values()))) if vectors else 0
    settings = settings.fitted(dimension=dimension, contrasts=tuple(summary["contrasts"]))
    dataset = PairDataset(opened, ("train",), settings.data, seed=config.seed, anatomy=vectors, batch=config.batch)
    if vram is not None:
        config = _in_memory(settings, config, dataset, vram, out)
    config = config.resolved(len(dataset))
    if not config.steps:
        raise ConfigError("training.steps=0 pretrains nothing", expected="1 or more")
    torch.manual_seed(seeds.entropy(config.seed, "initialisation") % 2**63)  # the only use of the global generator
    net = models.build_net(settings.net_name, settings.net) if given is None else given.net.train()
    objective = settings.build_objective(net)
    if given is not None:
        own = sum(p.numel() for p in objective.parameters()) - sum(p.numel() for p in net.parameters())
        logger.info("the weights go on from %s; %d numbers of the objective's own heads begin anew", from_, own)
        lineage.tell_overlap(given.info, _subjects(opened, "test"), from_)
    parameters = sum(p.numel() for p in net.parameters())
    logger.info(
        "%s with %s (%.2f M parameters) on %d subjects, %d sessions, %d scans: %d steps of %d pairs of %s voxels",
        settings.objective_name, settings.net_name, parameters / 1e6, summary["subjects"], summary["sessions"], summary["scans"],
        config.steps, config.batch * config.accumulate * config.devices, "x".join(map(str, settings.data.size)),
    )  # fmt: skip
    if dry_run:
        batch = collate_pairs([dataset[number] for number in range(config.batch)])
        seconds = _one_step(objective, batch)
        hours = seconds * config.accumulate * (config.steps or 0) / 3600
        logger.info(
            "dry run: %.2f s a step here on the CPU, about %.1f hours for the whole run; nothing was trained", seconds, hours
        )
        return None

    has_validation = "val" in opened.coded("split")[1]
    batches: list[Any] = []
    if has_validation:
        watched = PairDataset(
            opened, ("val",), settings.data, seed=config.seed + 1, augment=False, anatomy=vectors, batch=config.batch
        )
        batches = [
            collate_pairs([watched[number + k] for k in range(config.batch)])
            for number in range(0, min(16, max(config.batch, 2 * len(watched))), config.batch)
        ]

    def validation(module: Any) -> dict[str, float]:
        device = next(module.parameters()).device
        found: dict[str, list[float]] = {}
        for batch in batches:
            losses = module(moved(batch, device), epoch=settings.full_weight_epoch, seed=config.seed)
            for name, value in losses.items():
                found.setdefault(name, []).append(float(value))
        return {name: sum(values) / len(values) for name, values in found.items()}

    middle = settings.data.model_copy(
        update={"place": "centre", "jitter": 0}
    )  # boxes from anywhere differ in place, not in person
    pictured = PairDataset(
        opened,
        ("val",) if has_validation else ("train",),
        middle,
        seed=config.seed + 2,
        augment=False,
        anatomy=vectors,
        batch=config.batch,
    )
    seen = PairDataset(opened, ("train",), middle, seed=config.seed + 3, augment=False, anatomy=vectors, batch=config.batch)
    picture_batch = collate_pairs([pictured[number] for number in range(3)])

    def draw(module: Any, path: Path) -> None:
        device = next(module.parameters()).device
        images = module.panels(moved(picture_batch, device), seed=config.seed)
        panels.draw({name: image.cpu().numpy() for name, image in images.items()}, path)

    def loader(start_sample: int, rank: int, world: int) -> Any:
        total = (config.steps or 0) * config.batch * config.accumulate * world
        return make_loader(
            dataset, batch=config.batch, start_sample=start_sample, n_samples=total - start_sample, collate=collate_pairs,
            rank=rank, world=world, workers=config.workers, pin_memory=torch.cuda.is_available(), timeout_s=config.data_timeout_s,
        )  # fmt: skip

    method = {
        "stage": "pretrain", "recipe": recipe, "objective": settings.objective_name, "settings": settings.plain(),
        "patch": list(settings.data.size), "steps": config.steps, "seed": config.seed,
    } | ({} if given is None else {"initialised_from": "pretrained"})  # fmt: skip
    ancestors = [] if given is None else lineage.inherited(given)
    known = () if given is None else given.contrasts

    still = PairDataset(
        opened, ("train",), settings.data.model_copy(update={"jitter": 0}), seed=config.seed + 4, anatomy=vectors, batch=config.batch
    )  # fmt: skip

    refines = getattr(objective, "refines", False)
    if refines and sum(bool(still[number]["paired"]) for number in range(min(len(still), 50))) < 2:
        raise ConfigError(
            "the anatomy half is refined on pairs of scans of one subject, and there are none", file=store,
            got=f"data.kinds={dict(settings.data.kinds)}", next_step="set objective.refine=0 and objective.refine_summary=0",
        )  # fmt: skip

    def finished(module: Any) -> Any:
        """The net, with what the objective does to it when training is over."""
        if not refines:
            return module.net
        pairs = module.config.refine_pairs
        return module.finished(
            collate_pairs([still[first + k] for k in range(config.batch)]) for first in range(0, pairs, config.batch)
        )

    def save(module: Any, folder: Path) -> None:
        net = finished(module)
        models.save(
            folder, net=net, net_name=settings.net_name, net_config=net.config.model_dump(mode="json"), spec=opened.spec,
            contrasts=[*known, *(name for name in summary["contrasts"] if name not in known)], kind="pretrained", method=method, data=summary,
            lineage=ancestors,
        )  # fmt: skip

    identity = {"stage": "pretrain", "recipe": recipe, "store_hash": summary["store_hash"], **settings.plain()}
    if given is not None:
        identity["from"] = given.info["weights_sha256"]
    from ..engine.training import train  # Lightning takes seconds to import: what is wrong with a request is told before

    return train(
        objective,
        config,
        out,
        loader=loader,
        save_model=save,
        recipe=identity,
        validate=validation if batches else None,
        panels=draw,
        observe=observer(seen, pictured if has_validation else None, config.batch),
    )


def _given(source: str, store: Any, assignments: list[str]) -> Any:
    """The model to go on from, as it was trained: before its anatomy half was refined.

    Args:
        source: run or model folder.
        store: that it goes on with.
        assignments: settings of the net that leave its weights as they are, such as ``net.split=channels`` for one without a split.

    Raises:
        ConfigError: it is an ensemble, settings ask for a net with other weights, or the store was prepared otherwise.
        ArtifactError: there is no such model, or it is damaged.
    """
    from dataclasses import replace

    from ..core.config import override
    from ..core.errors import ConfigError
    from ..inference import lineage
    from ..inference import model as models
    from ..nets._split import unrefined

    given = models.load(source)
    if given.members:
        raise ConfigError("an ensemble cannot go on learning", file=source, next_step="give the folder of one of its members")
    lineage.require_preparation(given, store.spec, store.info["steps"], store.path)
    unrefined(given.net)
    if not assignments:
        return given
    name, config = given.info["net"]["name"], given.info["net"]["config"]
    net = models.build_net(name, override({"net": config}, assignments)["net"])
    state = given.net.state_dict()
    if {key: value.shape for key, value in net.state_dict().items()} != {key: value.shape for key, value in state.items()}:
        raise ConfigError(
            "these settings make a net with other weights than those of the model to go on from", file=source, got=", ".join(assignments),
            next_step="leave them out, or leave --from out",
        )  # fmt: skip
    net.load_state_dict(state, strict=True)
    return replace(given, net=net)


def _subjects(store: Any, *splits: str) -> set[str]:
    """Namespaced names of the subjects of some splits."""
    import numpy as np

    (subject, subjects), (split, names) = store.coded("subject"), store.coded("split")
    wanted = [number for number, name in enumerate(names) if name in splits]
    return {subjects[number] for number in subject[np.isin(split, wanted)]}


def _in_memory(settings: Any, config: Any, dataset: Any, vram: str, out: Path) -> Any:
    """The training settings with which a step fits into memory."""
    from ..data.pairs import collate_pairs
    from ..engine import vram as memory
    from ..inference import model as models

    objective = settings.build_objective(models.build_net(settings.net_name, settings.net))

    def ladder(couples: int | None) -> Any:
        def draw(n: int) -> Any:
            return collate_pairs([dataset[number] for number in range(n)])

        return memory.ladder(objective, config, draw, couples=couples)

    return memory.fitted(config, out, vram, ladder, settings.together(objective))


def _vectors(settings: Any, store: Any, table: Path | None) -> dict[str, Any]:
    """The anatomical vector of each subject of the store that has one; empty where none is asked for.

    Raises:
        ConfigError: the objective learns from vectors and no table is given.
        InputError: hardly any training subject of the store is in the table.
    """
    from ..core.errors import ConfigError
    from ..data.anatomy import AnatomyTable

    if table is None:
        if settings.wants_vectors():
            raise ConfigError(
                f"{settings.objective_name} learns from anatomical volumes, and no table of them is given",
                next_step="neuroprior anatomy INDEX --out anatomy.parquet, then --anatomy anatomy.parquet; or objective.anatomy=0",
            )
        return {}
    everyone, train = store.coded("subject")[1], sorted(_subjects(store, "train", ""))
    targets = AnatomyTable.read(table).targets(settings.data.targets, train)
    found = {subject: vector for subject in sorted(everyone) if (vector := targets.vector(subject)) is not None}
    having = sum(subject in found for subject in train)
    logger.info(
        "anatomical vectors: %d volumes, %d of %d training subjects (%s)",
        len(targets.names),
        having,
        len(train),
        settings.data.targets,
    )
    return found


def _one_step(objective: Any, batch: Any) -> float:
    """Seconds of a forward and backward pass, the second of two."""
    import time

    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        objective(batch, epoch=0.0, seed=0)["loss"].backward()
        seconds = time.perf_counter() - start
    return seconds
