"""Fine-tune: a model folder (or nothing) and labelled sessions in, a predictor out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.places import Place

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneSummary:
    """How a fine-tuning ended. As text, and as a path, it is the run folder.

    Attributes:
        run: the run folder; the model is in its folder model/ (with several seeds: in seed-0/model/ ...).
        status: ``complete``, ``stopped`` (the same command goes on), or ``planned`` (a dry run).
        step: steps done, over all resumes (of the last run that was touched).
        ended: what completed it: ``steps``, ``hours`` or ``patience``.
        twin: the folder of the twin trained from scratch, or None.
    """

    run: Path
    status: Literal["complete", "stopped", "planned"]
    step: int = 0
    ended: str = "steps"
    twin: Path | None = None

    @property
    def exit_code(self) -> int:
        """75 (try again) when stopped, else 0."""
        return 75 if self.status == "stopped" else 0

    def __fspath__(self) -> str:
        return str(self.run)

    def __str__(self) -> str:
        return str(self.run)


def finetune(
    store: Place,
    from_: str,
    task: str,
    target: str,
    contrasts: str | None = None,
    out: Path = Path("runs/finetune"),
    recipe: str = "tiny",
    strategy: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    max_hours: float | None = None,
    keep: str | None = None,
    patience: int | None = None,
    covariates: str | None = None,
    label_map: str | None = None,
    augment: str | None = None,
    compare: str | None = None,
    seeds: int = 1,
    set: list[str] | None = None,
    seed: int = 0,
    vram: str | None = None,
    dry_run: bool = False,
) -> FinetuneSummary:
    """Fine-tune a pretrained model on labelled sessions, or train the same net from scratch.

    Ctrl-C, SIGTERM or a file STOP in the run folder end it with a usable model and exit code 75; the same command goes on.

    Args:
        store: prepared store, or the address of one, with labels or participants columns; its train split is learned from, val only watched.
        from_: run or model folder to start from, or the address of one (hf://ORG/NAME), or "scratch".
        task: segmentation, classification or regression.
        target: label name (segmentation) or participants column (classification, regression).
        contrasts: comma-separated names, for example T1w,FLAIR or SWI_OR_T2STAR; all of the store by default.
        out: run folder; an interrupted run there is resumed.
        recipe: pretraining recipe whose net is built when training from scratch.
        strategy: scratch, full, warmup-full, closed-form, linear-probe, head-then-full, sawtooth, llrd or lora; by default warmup-full.
        steps: length in steps (300 by default).
        epochs: length in epochs instead.
        max_hours: end after so many hours, over all resumes.
        keep: weights of the "last" step or of the "best" validation.
        patience: end after so many validations without a better one.
        covariates: columns that the head takes beside the images, for example age,sex; they may be missing.
        label_map: values in the label files to learn as others, for example 255:1,4:3; 0 is background.
        augment: none, light or mri.
        compare: "scratch" also trains the same net from random weights under the same protocol, into OUT-scratch.
        seeds: runs with the seeds SEED, SEED + 1 ..., into OUT/seed-N.
        set: settings such as training.hours=2, data.patch=32, data.shots=16, task.loss=heteroscedastic, task.deep_supervision=2.
        seed: of initialisation, draws and augmentation.
        vram: auto (what is free on the GPU) or a number of GB: compute as many maps again in backward as a step needs to fit.
        dry_run: only say what would be done.

    Returns:
        The run folder and how the run ended; the model is in the folder model/.

    Raises:
        InputError: no session carries the target.
        ConfigError: a setting is unknown or impossible, or the store was prepared otherwise than the model expects.
        ArtifactError: the model or the store is damaged.
    """
    from ..core import shelf
    from ..core.errors import ConfigError
    from ..data.store import Store
    from ..tasks import _finetuning as finetuning
    from ..tasks import _strategies as strategies
    from ..tasks._running import fine_tune

    shelf.path_of("tasks", task)
    if strategy is not None:
        strategies.check(strategy)
    if compare not in (None, "scratch"):
        raise ConfigError(f"unknown --compare {compare!r}", expected="scratch")
    if compare and (from_ == "scratch" or strategy == "scratch"):
        raise ConfigError("--compare scratch needs a pretrained model beside it", got="a run from scratch")
    if seeds < 1:
        raise ConfigError("--seeds counts runs", expected="1 or more", got=seeds)
    if steps is not None and epochs is not None:
        raise ConfigError("give either --steps or --epochs", got=f"{steps} steps and {epochs} epochs")
    length = {"steps": steps, "epochs": epochs, "hours": max_hours, "keep": keep, "patience": patience}
    changes: dict[str, Any] = {
        "training": {name: value for name, value in length.items() if value is not None},
        "data": {} if covariates is None else {"covariates": [name.strip() for name in covariates.split(",") if name.strip()]},
        "task": {} if label_map is None else {"label_map": _label_map(label_map)},
    }
    if augment is not None:
        changes["data"]["augment"] = augment
    if strategy is not None:
        changes["strategy"] = strategy
    opened = Store.open(store)
    twin = out.with_name(f"{out.name}-scratch") if compare else None
    result = None
    for number in range(seed, seed + seeds):
        config = finetuning.settings(set or [], seed=number, task=task, changes=changes)
        pairs = [(out, config)]
        if twin is not None and config.training.steps == 0:
            raise ConfigError("--compare scratch needs steps: a net from scratch has nothing to solve a head on", got="0 steps")
        if twin is not None:
            pairs.append((twin, config.model_copy(update={"strategy": "scratch"})))
        for folder, one in pairs:
            place = folder if seeds == 1 else folder / f"seed-{number}"
            result = fine_tune(
                opened,
                from_,
                task,
                target,
                config=one,
                out=place,
                contrasts=contrasts,
                recipe=recipe,
                seed=number,
                memory=vram,
                dry_run=dry_run,
            )
            if result is not None and result.status == "stopped":
                return FinetuneSummary(out, "stopped", result.step, twin=twin)
    if result is None:
        return FinetuneSummary(out, "planned", twin=twin)
    if twin is not None:
        _compare(out, twin, [""] if seeds == 1 else [f"seed-{number}" for number in range(seed, seed + seeds)])
    return FinetuneSummary(out, "complete", result.step, result.ended, twin)


def _label_map(text: str) -> dict[int, int]:
    """``255:1,4:3`` as numbers.

    Raises:
        ConfigError: it is no list of FROM:TO.
    """
    from ..core.errors import ConfigError

    try:
        return {int(part.split(":")[0]): int(part.split(":")[1]) for part in text.split(",")}
    except (ValueError, IndexError):
        raise ConfigError(f"cannot read --label-map {text!r}", expected="FROM:TO pairs, as in 255:1,4:3") from None


def _compare(out: Path, twin: Path, names: Sequence[str]) -> None:
    """Say how the pretrained run and its twin did on the validation cases, and keep it in OUT/comparison.json."""
    from ..core import artifacts
    from ..engine import events

    rows = []
    for name in names:
        row: dict[str, Any] = {"run": name or "."}
        for word, folder in (("pretrained", out / name), ("scratch", twin / name)):
            step = artifacts.read_json(folder / artifacts.MARKER)["model"]["step"]
            found = [e for e in events.read(folder / "events.jsonl") if e["event"] == "validation" and e["step"] <= step]
            row[word] = {k: v for k, v in found[-1].items() if k not in ("event", "step")} if found else {}
        rows.append(row)
        for metric in row["pretrained"]:
            logger.info(
                "%s: %s pretrained %.4g, from scratch %.4g", row["run"], metric, row["pretrained"][metric], row["scratch"][metric]
            )
    artifacts.write_json(
        out / "comparison.json", {"twin": twin.name, "protocol": "same cases, draws, steps and seeds", "runs": rows}
    )
    seen = "validation scores in" if rows[0]["pretrained"] else "no validation cases to compare on; see"
    logger.info("the twin from scratch, trained under the same protocol: %s (%s %s)", twin, seen, out / "comparison.json")
    logger.info("to compare on test cases: neuroprior predict both, then neuroprior evaluate them together")
