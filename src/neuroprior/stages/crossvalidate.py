"""Cross-validate: a store in; a model a fold, honest scores of every case, and one calibrated ensemble out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.places import Place

if TYPE_CHECKING:
    from ..core.records import Score

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrossvalidateSummary:
    """What cross-validation found.

    Attributes:
        out: its folder.
        headlines: scores over all cases, each predicted by models that did not see it, and the floor's.
        lines: the plan, the selection gap and the calibration in words.
        stopped: a signal ended it; the same command goes on.
    """

    out: Path
    headlines: tuple[Score, ...]
    lines: tuple[str, ...]
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """75 (try again) when stopped, else 0."""
        return 75 if self.stopped else 0

    def __str__(self) -> str:
        made = list(self.lines)
        for row in self.headlines:
            value = "not defined" if row.value is None else f"{row.value:.3f}"
            between = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
            made.append(f"{row.model:<22} {row.metric} {row.region}: {value}{between}, n = {row.n}")
        if self.stopped:
            made.append("stopped: run the same command again to go on")
        return "\n".join([*made, str(self.out)])


def crossvalidate(
    store: Place,
    from_: str,
    task: str,
    target: str,
    out: Path = Path("runs/crossvalidate"),
    folds: int = 5,
    scheme: str = "kfold",
    by: str = "site",
    split_file: Path | None = None,
    seeds: int = 1,
    validation: float = 0.2,
    parts: str = "train,val,test",
    contrasts: str | None = None,
    recipe: str = "tiny",
    set: list[str] | None = None,
    level: float = 0.9,
    seed: int = 0,
    dry_run: bool = False,
) -> CrossvalidateSummary:
    """Train on all folds but one, test on that one, for every fold; then put the models together, calibrated on what they had not seen.

    Folds are made by subject and spread every class evenly. Best step, temperature and thresholds of a fold are chosen on an inner
    part of its training subjects; its test subjects are looked at once, at the end. Run again, finished folds are kept.

    Args:
        store: prepared store, or the address of one, with labels or participants columns.
        from_: run or model folder to start from, or the address of one (hf://ORG/NAME), or "scratch".
        task: segmentation, classification or regression.
        target: label name (segmentation) or participants column (classification, regression).
        out: folder of runs, tables and the ensemble.
        folds: how many, for the scheme kfold.
        scheme: kfold, loso (leave one value of the column --by out), or file (with --split-file).
        by: column whose values are left out one at a time by the scheme loso: site, scanner, dataset or any other.
        split_file: TSV (participant_id, fold) or nnU-Net's splits_final.json, for the scheme file.
        seeds: runs a fold; their answers are averaged.
        validation: share of a fold's training subjects kept aside for its choices; 0 trains on all and chooses nothing.
        parts: the store's splits that take part; "train,val" keeps its test split for a last exam.
        contrasts: comma-separated names, for example T1w,FLAIR; all of the store by default.
        recipe: pretraining recipe whose net is built when training from scratch.
        set: settings such as training.steps=500, as for finetune.
        level: coverage of the intervals.
        seed: of folds, initialisation and draws.
        dry_run: only say what would be done, and how long it takes.

    Returns:
        Scores with intervals, the gap between selecting per fold and a fixed step, and where everything lies.

    Raises:
        InputError: fewer subjects than folds, one class only, or a split file that does not fit.
        LeakageError: a subject is in two folds.
        ConfigError: a setting is unknown or impossible, or the folder holds runs of other settings.
    """
    from dataclasses import replace

    from ..assessments import fewshot as scoring
    from ..assessments._tables import write_scores
    from ..assessments.accuracy import Context
    from ..core import artifacts, shelf
    from ..core.errors import ConfigError, InputError
    from ..data import splits
    from ..data.store import Store
    from ..inference import model as models
    from ..tasks import _calibration as fitting
    from ..tasks import _folds as many

    shelf.path_of("tasks", task)
    artifacts.require_place(out, "cross-validation")
    opened = Store.open(store)
    assignments = list(set or [])
    many.settings(assignments, seed=seed, task=task)  # a mistake is told before anything is read
    chosen = [part.strip() for part in parts.split(",")]
    values = many.targets(opened, task, target, contrasts, parts=[*chosen, *([""] if "train" in chosen else [])])
    of = splits.strata(values)
    if scheme == "kfold":
        made = splits.kfold(of, folds, seed=seed, validation=validation)
    elif scheme == "loso":
        sites = {s.subject: s.dataset if by == "dataset" else s.value(by) for s in opened.sessions}
        made = splits.leave_one_out(of, sites, seed=seed, validation=validation)
    elif scheme == "file":
        if split_file is None:
            raise ConfigError("--scheme file needs a --split-file", expected="a TSV or JSON of folds")
        made = splits.read(split_file, sorted({s.subject for s in opened.sessions}), of, seed=seed, validation=validation)
    else:
        raise ConfigError(f"unknown --scheme {scheme!r}", expected="kfold, loso or file")
    made = splits.unparted(made, opened.inseparable())
    runs = [
        [
            many.Run(
                f"runs/fold-{_safe(fold.name)}{f'-seed-{n}' if seeds > 1 else ''}", from_, fold, seed + n, {"fold": fold.name}
            )
            for n in range(seeds)
        ]
        for fold in made
    ]
    lines = [
        f"{task} of {target}: {len(values)} subjects, {len(made)} folds ({scheme}) x {seeds} seeds = {len(made) * seeds} runs",
        *(
            f"  fold {fold.name}: {len(fold.part('train'))} train, {len(fold.part('val'))} inner validation, {len(fold.part('test'))} test"
            for fold in made
        ),
    ]
    once = many.estimate_seconds(from_, opened, assignments, task)
    if once is not None:
        lines.append(f"  about {once * len(made) * seeds / 60:.0f} minutes of training on a machine like the one that pretrained")
    if dry_run:
        return CrossvalidateSummary(out, (), (*lines, "dry run: nothing was trained"))
    for line in lines:
        logger.info("%s", line)

    digest = splits.write(out / "folds.tsv", made)
    context = Context("out of fold", task, target, seed=seed)
    regions = many.label_values(opened, target, sorted(values)) if task == "segmentation" else []
    pace = many.Pace(len(made) * seeds)
    classes = sorted({str(v) for v in values.values()}) if task == "classification" else []
    per_fold: list[list[fitting.Answer]] = []
    infos: list[dict[str, Any]] = []
    for group in runs:
        members = []
        for run in group:
            kept = (out / run.name / many.ANSWERS).is_file()
            found = many.make(
                opened, run, task, target, out=out, assignments=assignments, contrasts=contrasts, recipe=recipe,
                look=(lambda _: scoring.looker(context, regions)) if regions else None,
            )  # fmt: skip
            if found is None:
                return CrossvalidateSummary(out, (), (), stopped=True)
            infos.append(models.read_info(out / run.name))
            members.append(many.reordered(found, infos[-1]["task"]["classes"], classes) if classes else found)
            pace.step(run.name, kept=kept)
        per_fold.append(many.average(members))

    described = _described(infos, task, classes, values)
    everyone = [answer for fold in per_fold for answer in fold]
    scores = scoring.score(context, everyone, described)
    for fold, found in zip(made, per_fold, strict=True):
        mine = replace(context, model=f"fold {fold.name}", condition=f"fold {fold.name}", resamples=200)
        scores += [row for row in scoring.score(mine, found, described, floor=False) if row.case == "all"]
    calibration_rows = scoring.calibration_scores(replace(context, model="calibrated"), per_fold, described, level=level)
    scores += calibration_rows
    _write_answers(out / "out_of_fold.tsv", made, per_fold, described, scoring.cross_calibrated(per_fold, described, level=level))

    tail = []
    watched = many.watched(task)
    folders = [out / run.name for group in runs for run in group]
    gap = many.selection_gap(folders, watched)
    if gap is not None and len(gap.steps) > 1:
        each = sum(gap.each) / len(gap.each)
        tail.append(
            f"selection on inner validation ({gap.metric}): each fold at its own best step {gap.best_each:.4g}, all at step "
            f"{gap.common_step} {gap.best_common:.4g}, at the last step {gap.last:.4g}; choosing per fold looks better by {each:.4g}"
        )
    elif validation > 0:
        tail.append("selection gap: every run was validated once only; set training.validate_every for the gap")
    tail += _ensemble(out, folders, everyone, described, level)
    tail += [
        _told(row)
        for row in calibration_rows
        if row.region in ("all", "after - before temperature", "voxels, after - before temperature")
    ]
    facts = {
        "stage": "crossvalidate", "folds_sha256": digest, "store_hash": opened.store_hash, "grid": "the store's", "scheme": scheme,
        "selection_gap": None if gap is None else vars(gap) | {"steps": list(gap.steps), "each": list(gap.each)},
    }  # fmt: skip
    write_scores(scores, out / "scores.parquet", facts)
    artifacts.write_json(out / "summary.json", {"lines": [*lines, *tail], **facts})
    wanted = scoring.HEADLINES[task]
    headlines = tuple(
        row for row in scores
        if row.case == "all" and row.metric in wanted and "," not in row.region and not row.model.startswith(("fold ", "calibrated"))
    )  # fmt: skip
    if not headlines:
        raise InputError("no case could be scored", file=out)
    return CrossvalidateSummary(out, headlines, (lines[0], *tail))


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name) or "none"


def _told(row: Score) -> str:
    value = "not defined" if row.value is None else f"{row.value:.3f}"
    between = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.metric} {row.region}: {value}{between}, n = {row.n}{f' ({row.note})' if row.note else ''}"


def _described(infos: list[dict[str, Any]], task: str, classes: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """The task as all folds have it; the floor is the mean of the folds' floors."""
    first = dict(infos[0]["task"])
    if task == "classification":
        counts = [sum(str(v) == name for v in values.values()) for name in classes]
        named = infos[0]["method"]["settings"].get("task", {}).get("positive")
        first |= {
            "classes": classes,
            "positive": named or min(classes, key=lambda name: (counts[classes.index(name)], -classes.index(name))),
        }
        first["floor"] = {
            "prior": {name: sum(i["task"]["floor"]["prior"].get(name, 0.0) for i in infos) / len(infos) for name in classes}
        }
    elif task == "regression":
        first["floor"] = {"mean": sum(i["task"]["floor"]["mean"] for i in infos) / len(infos)}
    return first


def _write_answers(path: Path, folds: Any, per_fold: Any, task: dict[str, Any], learned: Any) -> None:
    """Every case's answer by models that did not see it, calibrated on the other folds."""
    import csv
    import io

    import numpy as np

    from ..core import artifacts
    from ..inference.calibration import interval, temper

    rows: list[dict[str, Any]] = []
    for fold, answers, made in zip(folds, per_fold, learned, strict=True):
        for answer in answers:
            row: dict[str, Any] = {"case": answer.case, "subject": answer.subject, "fold": fold.name}
            if task["name"] == "classification":
                p = np.array(answer.probabilities)
                q = p if made is None else temper(p, made.temperature)
                row |= {"truth": task["classes"][int(answer.truth)], "value": task["classes"][int(p.argmax())]}
                row |= {f"p_{name}": float(v) for name, v in zip(task["classes"], q, strict=True)}
                row |= {f"p_{name}_uncalibrated": float(v) for name, v in zip(task["classes"], p, strict=True)}
            elif task["name"] == "regression":
                row |= {"truth": answer.truth, "value": answer.value}
                low, high = (None if made is None else made.interval(answer.value, answer.groups)) or (None, None)
                row |= {"value_low": low, "value_high": high}
            else:
                for value, (guess, truth) in answer.volumes_ml.items():
                    row |= {f"volume_ml_{value}": guess, f"true_volume_ml_{value}": truth}
                    half = None if made is None else made.quantiles["volume_ml"].get(value)
                    low, high = (None, None) if half is None else interval(guess, half, lowest=0.0)
                    row |= {f"volume_ml_{value}_low": low, f"volume_ml_{value}_high": high}
            rows.append(row | {f"group_{name}": value for name, value in answer.groups.items()})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            ["n/a" if row.get(c) is None else f"{row[c]:.6g}" if isinstance(row[c], float) else row[c] for c in columns]
        )
    artifacts.write_text(path, text.getvalue())


def _ensemble(out: Path, folders: list[Path], everyone: Any, task: dict[str, Any], level: float) -> list[str]:
    """Put the folds' models together, calibrated on the answers that none of them had learned; the lines that say so."""
    from ..core.errors import ConfigError, InputError
    from ..inference.ensemble import write_ensemble
    from ..tasks import _calibration as fitting

    try:
        calibration = fitting.fit(everyone, task, source="out-of-fold", level=level)
        fitting.tell(calibration)
    except InputError as error:
        logger.warning("the ensemble is not calibrated: %s", error.reason)
        calibration = None
    try:
        folder = write_ensemble(out / "ensemble", folders, calibration=None if calibration is None else calibration.to_json())
    except ConfigError as error:  # a rare class or label value was absent from a fold
        logger.warning("the folds' models cannot be put together: %s", error)
        return [f"no ensemble: {error.reason}"]
    return [f"ensemble of {len(folders)} models: {folder}"]
