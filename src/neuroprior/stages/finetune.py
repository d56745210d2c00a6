"""Fine-tune: a model folder (or nothing) and labelled sessions in, a predictor out."""

from __future__ import annotations

from pathlib import Path


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
    from ..core import shelf
    from ..core.config import override, parse
    from ..data.store import Store
    from ..tasks import _finetuning as finetuning
    from ..tasks._running import fine_tune

    shelf.path_of("tasks", task)
    values = override({"training": finetuning.DEFAULT_TRAINING | {"seed": seed}}, set or [])
    config = parse(finetuning.FineTuneConfig, values)
    fine_tune(
        Store.open(store),
        from_,
        task,
        target,
        config=config,
        out=out,
        contrasts=contrasts,
        recipe=recipe,
        seed=seed,
        dry_run=dry_run,
    )
    return out
