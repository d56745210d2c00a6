"""Stress: a model on scans made worse on purpose, nine artefacts at five severities, and how far its scores fall."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.places import Place

if TYPE_CHECKING:
    import numpy as np

    from ..assessments.robustness import Judged
    from ..core.records import Score
    from ..inference.model import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StressSummary:
    """What the artefacts do.

    Attributes:
        out: the table of scores, a row for each case, metric and condition.
        rows: overall means and degradations.
        cases: how many cases.
    """

    out: Path
    rows: tuple[Score, ...]
    cases: int

    def __str__(self) -> str:
        lines = [f"{self.cases} cases; degradation is the weighted fall from the clean scans, positive is worse"]
        for row in self.rows:
            value = "not defined" if row.value is None else f"{row.value:.3f}"
            between = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
            lines.append(f"  {row.condition:<16} {row.metric} {row.region}: {value}{between}")
        return "\n".join([*lines, str(self.out)])


def stress(
    model: Place,
    index: Path,
    out: Path = Path("stress"),
    split: str | None = "test",
    corruptions: str | None = None,
    severities: str = "1,2,3,4,5",
    cases: int | None = None,
    preset: str = "fast",
    name: str | None = None,
    rule: str = "honest",
    seed: int = 0,
    device: str = "auto",
    dry_run: bool = False,
) -> StressSummary:
    """Score a model on the scans of an index as they are and under artefacts of MRI (the ROOD-MRI protocol).

    Args:
        model: model folder, a run folder that holds one, an ensemble's folder, or the address of one (hf://ORG/NAME).
        index: index with labels or columns of the model's target.
        out: folder: scores.parquet, draws.json, pictures/; finished conditions are kept when the command is run again.
        split: cases of this split (train, val, test); an empty text takes all.
        corruptions: comma-separated artefacts; by default motion, ghosting, spike, bias, blur, noise, lowres, gamma, gibbs.
        severities: comma-separated levels, 1 (hardly seen) to 5 (a scan that would be repeated).
        cases: take at most this many cases, the first by name.
        preset: of prediction: fast, balanced or accurate.
        name: of the model in tables; by default the model folder's name.
        rule: for empty masks: "honest" or "fomo26".
        seed: of axes, signs and phases.
        device: cpu, cuda, or auto.
        dry_run: only say what would be done.

    Returns:
        Overall means and degradations; everything is in the table.

    Raises:
        InputError: no case has a contrast and a truth of the model.
        ConfigError: an artefact or a severity is unknown.
        ArtifactError: the model is damaged, or the folder holds another stress test.
    """
    from rich.progress import Progress

    from ..assessments import robustness
    from ..assessments._tables import write_scores
    from ..assessments.accuracy import Context
    from ..core import artifacts
    from ..core.config import parse
    from ..core.errors import ArtifactError, ConfigError
    from ..data.index import read_index
    from ..engine.device import predicting_device
    from ..inference import presets
    from ..inference.elsewhere import name_of
    from ..inference.model import load, require_head

    try:
        levels = [int(part) for part in severities.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"cannot read --severities {severities!r}", expected="1,2,3,4,5") from None
    wanted = {"severities": levels, "seed": seed}
    if corruptions:
        wanted["corruptions"] = [part.strip() for part in corruptions.split(",") if part.strip()]
    config = parse(robustness.Config, wanted)
    loaded = load(model, device=predicting_device(device))
    require_head(loaded)
    scans = [scan for scan in read_index(index) if not split or scan.split == split]
    found = sorted(robustness.judged(loaded, scans), key=lambda item: item.case.case)[:cases]
    conditions = config.conditions()
    logger.info("%d cases under %d conditions", len(found), len(conditions))
    task = loaded.task
    settings = presets.preset(preset, loaded.net)
    context = Context(name or name_of(model), task["name"], task["target"], rule=rule, seed=seed)
    identity = {
        "model": str(loaded.info["weights_sha256"]), "cases": [item.case.case for item in found], "config": config.model_dump(mode="json"),
        "predict": settings.model_dump(mode="json"), "rule": rule,
    }  # fmt: skip
    if dry_run:
        logger.info("dry run: nothing was predicted")
        return StressSummary(out / "scores.parquet", (), len(found))
    artifacts.require_place(out, "stress test")
    out.mkdir(parents=True, exist_ok=True)
    if (out / "stress.json").is_file():
        if artifacts.read_json(out / "stress.json") != identity:
            raise ArtifactError(
                "the folder holds another stress test", file=out, next_step="choose another --out, or delete the folder"
            )
    else:
        artifacts.write_json(out / "stress.json", identity)
    rows: list[Score] = []
    draws: dict[str, Any] = {}
    with Progress() as progress:
        bar = progress.add_task("stress", total=len(conditions) * len(found))
        for corruption, severity in conditions:
            condition = robustness.condition_name(corruption, severity)
            part = out / "parts" / f"{condition.replace(' ', '-')}.json"
            if part.is_file():
                scored, drawn = _read_part(part)
                progress.advance(bar, len(found))
            else:
                scored, drawn = robustness.assess(
                    loaded, found, corruption, severity, config=config, context=context, predict=settings,
                    done=lambda: progress.advance(bar),
                )  # fmt: skip
                _write_part(part, scored, drawn)
            rows += [_renamed(row, context.model) for row in scored]
            draws[condition] = drawn
    made = robustness.summary(rows, context)
    artifacts.write_json(out / "draws.json", draws)
    pictures = _pictures(loaded, found[0], config, out)
    facts = {
        "assessment": "robustness",
        "rule": rule,
        "tolerance_mm": context.tolerance_mm,
        "config": config.model_dump(mode="json"),
        "pictures": pictures,
    }
    write_scores([*rows, *made], out / "scores.parquet", facts)
    headlines = tuple(row for row in made if row.metric.endswith("degradation"))
    return StressSummary(out / "scores.parquet", headlines, len(found))


def _renamed(row: Score, model: str) -> Score:
    from dataclasses import replace

    return replace(row, model=model)


def _write_part(path: Path, rows: list[Score], draws: dict[str, Any]) -> None:
    from dataclasses import asdict

    from ..core import artifacts

    artifacts.write_json(path, {"scores": [asdict(row) for row in rows], "draws": draws})


def _read_part(path: Path) -> tuple[list[Score], dict[str, Any]]:
    from ..core import artifacts
    from ..core.records import Score

    part = artifacts.read_json(path)
    return [Score(**row) for row in part["scores"]], part["draws"]


def _pictures(model: Model, item: Judged, config: Any, out: Path) -> list[str]:
    """One picture an artefact: the middle slice of the first case's reference scan, clean and at every severity."""
    from ..assessments import robustness
    from ..core import nifti
    from ..core.grids import canonical_grid, grid_of
    from ..core.resampling import resample
    from ..core.session import choose_reference
    from ..inference.reading import usable
    from ..reporting.figures import strip

    scans = usable(model, item.case.scans)
    contrast = choose_reference(sorted(scans))
    volume, _ = nifti.read_scan(scans[contrast])
    grid = canonical_grid(grid_of(volume), None)
    written = []
    for corruption in config.corruptions:
        path = out / "pictures" / f"{corruption}.png"
        if not path.is_file():
            slices: dict[str, np.ndarray] = {}
            for severity in (0, *sorted(config.severities)):
                made, _ = robustness.corrupted(
                    {contrast: volume}, item.case.case, corruption if severity else "", severity, config.seed
                )
                turned = resample(made[contrast], grid)
                slices[robustness.condition_name(corruption if severity else "", severity)] = turned[:, :, turned.shape[2] // 2]
            strip(slices, grid.spacing_mm[:2], path)
        written.append(path.relative_to(out).as_posix())
    return written
