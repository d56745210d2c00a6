"""Few-shot: how good a model gets with 1, 2, 5, 10, 20 or all labelled subjects, and what pretraining is worth at each."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.places import Place

if TYPE_CHECKING:
    from ..assessments.fewshot import Difference, Point

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FewshotSummary:
    """The curve in words.

    Attributes:
        out: folder of the runs, table and picture.
        lines: the plan.
        points: of every condition's curve.
        differences: paired, of the first condition minus each other, by name.
        floor: the trivial prediction's score, or None.
        stopped: a signal ended it; the same command goes on.
    """

    out: Path
    lines: tuple[str, ...]
    points: tuple[Point, ...] = ()
    differences: tuple[tuple[str, Difference], ...] = ()
    floor: float | None = None
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """75 (try again) when stopped, else 0."""
        return 75 if self.stopped else 0

    def __str__(self) -> str:
        made = list(self.lines)
        for p in self.points:
            between = "" if p.low is None else f" [{p.low:.3f}, {p.high:.3f}]"
            spread = "" if p.spread is None else f", {p.spread:.3f} between seeds"
            made.append(
                f"{p.condition:<12} {p.shots:>4} shots ({p.subjects:g} subjects): {p.metric} {p.value:.3f}{between}{spread}"
            )
        if self.floor is not None and self.points:
            made.append(f"floor: {self.points[0].metric} {self.floor:.3f}")
        for name, d in self.differences:
            between = "" if d.low is None else f" [{d.low:+.3f}, {d.high:+.3f}]"
            made.append(f"{name} at {d.shots} shots: {d.metric} {d.value:+.3f}{between}, {d.n} cases, paired")
        if self.stopped:
            made.append("stopped: run the same command again to go on")
        return "\n".join([*made, str(self.out)])


def fewshot(
    store: Place,
    from_: str,
    task: str,
    target: str,
    out: Path = Path("runs/fewshot"),
    shots: str = "1,2,5,10,20,all",
    seeds: int = 3,
    compare: str | None = None,
    test_share: float = 0.3,
    contrasts: str | None = None,
    recipe: str = "tiny",
    set: list[str] | None = None,
    seed: int = 0,
    dry_run: bool = False,
) -> FewshotSummary:
    """Fine-tune on few labelled subjects, many times, and draw the curve.

    Draws are nested (the 5-shot subjects contain the 2-shot ones) and every run is tested on the same subjects, so that the curve is
    paired. Runs have a fixed number of steps and no validation: nothing is chosen, so nothing can be chosen in hindsight.
    Run again, finished runs are kept.

    Args:
        store: prepared store, or the address of one, with labels or participants columns; its test split is tested on where it has one.
        from_: run or model folder to start from, or the address of one (hf://ORG/NAME), or "scratch".
        task: segmentation, classification or regression.
        target: label name (segmentation) or participants column (classification, regression).
        out: folder of the runs, the table and the picture.
        shots: labelled subjects to learn from, comma-separated; for a classification they are counted by class; "all" takes everybody.
        seeds: draws (and initialisations) for each number of shots.
        compare: comma-separated other starting points under the same protocol: scratch, or model folders.
        test_share: share of the subjects to test on where the store has no test split.
        contrasts: comma-separated names, for example T1w,FLAIR; all of the store by default.
        recipe: pretraining recipe whose net is built when training from scratch.
        set: settings such as training.steps=500, as for finetune.
        seed: of the first draw; the others follow.
        dry_run: only say what would be done, and how long it takes.

    Returns:
        The curve with intervals, the floor, and paired differences; the table is curve.parquet, the picture curve.png.

    Raises:
        InputError: nobody carries the target, or one class only.
        ConfigError: a setting is unknown or impossible, or the folder holds runs of other settings.
    """
    from dataclasses import replace

    from ..assessments import fewshot as scoring
    from ..assessments._tables import write_scores
    from ..assessments.accuracy import Context
    from ..core import artifacts, shelf
    from ..data.store import Store
    from ..inference import model as models
    from ..tasks import _folds as many

    shelf.path_of("tasks", task)
    artifacts.require_place(out, "few-shot curve")
    opened = Store.open(store)
    assignments = list(set or [])
    many.settings(assignments, seed=seed, task=task)
    values = many.targets(opened, task, target, contrasts)
    test, pool, told = _divide(opened, values, task, test_share, seed)
    wanted = _numbers(shots, task, pool)
    conditions = _conditions(from_, compare)
    runs = _runs(conditions, wanted, pool, test, task, seeds, seed)
    lines = [
        f"{task} of {target}: {len(pool)} subjects to learn from, {len(test)} to test on ({told}); shots "
        f"{', '.join(name for name, _ in wanted)} x {seeds} seeds x {', '.join(conditions)} = {len(runs)} runs"
    ]
    once = many.estimate_seconds(from_, opened, assignments, task)
    if once is not None:
        lines.append(f"about {once * len(runs) / 60:.0f} minutes of training on a machine like the one that pretrained")
    if dry_run:
        plan = [f"  {run.name}: {len(run.fold.part('train'))} subjects" for run in runs]
        return FewshotSummary(out, (*lines, *plan, "dry run: nothing was trained"))
    for line in lines:
        logger.info("%s", line)

    regions = many.label_values(opened, target, sorted(values)) if task == "segmentation" else []
    classes = sorted({str(v) for v in values.values()}) if task == "classification" else []
    pace = many.Pace(len(runs))
    rows, extra = [], []
    floor = None
    metric = scoring.CASE_METRIC[task]
    for run in runs:
        # no bootstrap a run: the curve has its own, over cases and seeds together
        context = Context(run.tags["condition"], task, target, condition=run.tags["condition"], resamples=0, seed=seed)
        kept = (out / run.name / many.ANSWERS).is_file()
        found = many.make(
            opened, run, task, target, out=out, assignments=assignments, contrasts=contrasts, recipe=recipe,
            look=(lambda _, context=context: scoring.looker(context, regions)) if regions else None,
        )  # fmt: skip
        if found is None:
            return FewshotSummary(out, tuple(lines), stopped=True)
        described = dict(models.read_info(out / run.name)["task"])
        if classes:
            found = many.reordered(found, described["classes"], classes)
            described |= {"classes": classes, "positive": _rarest(values, classes)}
        last = run.tags["shots"] == wanted[-1][0]
        made = scoring.score(context, found, described, floor=last)
        tags = {"shots": run.tags["shots"], "seed": run.seed, "subjects_learned": len(run.fold.part("train"))}
        mine = [row for row in made if not row.model.startswith("floor")]
        rows += mine
        extra += [tags] * len(mine)
        if last:  # the floor of the most data
            trivial = [replace(row, condition="floor") for row in made if row.model.startswith("floor")]
            number = [row.value for row in trivial if row.metric == metric and row.case != "all" and row.value is not None]
            if floor is None:
                floor = sum(number) / len(number) if number else None
                rows += trivial
                extra += [tags] * len(trivial)
        pace.step(run.name, kept=kept)

    table = [{**vars(row), **more} for row, more in zip(rows, extra, strict=True) if row.condition != "floor"]
    points = scoring.curve(table, metric, seed=seed)
    first, *others = conditions
    found_differences = [
        (f"{first} - {other}", difference)
        for other in others
        for difference in scoring.differences(table, metric, first, other, seed=seed)
    ]
    facts = {
        "stage": "fewshot",
        "store_hash": opened.store_hash,
        "grid": "the store's",
        "test_subjects": sorted(test),
        "floor": floor,
    }
    write_scores(rows, out / "curve.parquet", facts, extra=extra)
    scoring.plot(out / "curve.png", points, floor, f"{task} of {target}, {len(test)} test subjects")
    summary = FewshotSummary(out, tuple(lines), tuple(points), tuple(found_differences), floor)
    artifacts.write_text(out / "summary.txt", f"{summary}\n")
    return summary


def _rarest(values: dict[str, Any], classes: list[str]) -> str:
    """The class that counts as positive in every run, whatever its draw."""
    return min(classes, key=lambda name: (sum(str(v) == name for v in values.values()), -classes.index(name)))


def _divide(store: Any, values: dict[str, Any], task: str, share: float, seed: int) -> tuple[list[str], dict[str, str], str]:
    """(test subjects, stratum of each subject to learn from, how they were told apart)."""
    from ..core.errors import InputError
    from ..data import splits

    standing = {s.subject: s.split for s in store.sessions}
    test = sorted(subject for subject in values if standing[subject] == "test")
    told = "the store's test split"
    of = splits.strata(values)
    if not test:
        _, held = splits.holdout(of, share, seed=seed)
        test, told = list(held), f"drawn, a share of {share:g}"
    pool = {subject: stratum for subject, stratum in of.items() if subject not in test}
    divided = splits.Fold("", {**dict.fromkeys(pool, "train"), **dict.fromkeys(test, "test")})
    apart = splits.unparted([divided], store.inseparable())[0]
    pool = {subject: stratum for subject, stratum in pool.items() if subject in apart.split}
    if task == "segmentation":  # a case with an empty label teaches nothing of what is looked for
        empty = [subject for subject in pool if values[subject] == 0]
        if empty:
            logger.info("%d subjects with an empty label are not drawn from", len(empty))
        pool = {subject: stratum for subject, stratum in pool.items() if values[subject] != 0}
    if not test or not pool:
        raise InputError(
            f"there is nobody to {'learn from' if test else 'test on'}", file=store.path, got=f"{len(values)} subjects with the target",
            next_step="index with other --split shares, or label more subjects",
        )  # fmt: skip
    return test, pool, told


def _numbers(text: str, task: str, pool: dict[str, str]) -> list[tuple[str, int | None]]:
    """The shots as (name, number or None for all), in rising order; impossible ones are left out and told."""
    from collections import Counter

    from ..core.errors import ConfigError

    most = max(Counter(pool.values()).values()) if task == "classification" else len(pool)
    made: dict[str, int | None] = {}
    for part in (p.strip() for p in text.split(",")):
        if part == "all":
            continue
        if not part.isdigit() or int(part) < 1:
            raise ConfigError(f"cannot read the shots {part!r}", expected="numbers and 'all', as in 1,2,5,10,20,all")
        if task == "regression" and int(part) < 2:
            logger.warning("%s shot is left out: one number sets no scale for a regression", part)
        elif int(part) > most:
            logger.warning("%s shots are left out: there are %d%s", part, most, " of a class" if task == "classification" else "")
        else:
            made[part] = int(part)
    rising: list[tuple[str, int | None]] = sorted(made.items(), key=lambda item: item[1] or 0)
    if "all" in text:
        rising.append(("all", None))
    if not rising:
        raise ConfigError("no number of shots is left", got=text, expected=f"numbers up to {most}, or 'all'")
    return rising


def _conditions(source: str, compare: str | None) -> dict[str, str]:
    """Name -> starting point: the model's is called pretrained, others by ``scratch`` or their folder."""
    from ..core.errors import ConfigError

    made = {"scratch" if source == "scratch" else "pretrained": source}
    for other in (part.strip() for part in (compare or "").split(",") if part.strip()):
        name = "scratch" if other == "scratch" else Path(other).name
        if name in made:
            raise ConfigError(
                f"--compare names {name!r} twice", got=compare, next_step="compare starting points of different names"
            )
        made[name] = other
    return made


def _runs(
    conditions: dict[str, str],
    wanted: list[tuple[str, int | None]],
    pool: dict[str, str],
    test: list[str],
    task: str,
    seeds: int,
    seed: int,
) -> list[Any]:
    from ..data import splits
    from ..tasks._folds import Run

    made = []
    for name, k in wanted:
        for n in range(seeds):
            drawn = splits.shots(pool, k, seed=seed + n, per_class=task == "classification")
            split = {**dict.fromkeys(drawn, "train"), **dict.fromkeys(test, "test")}
            fold = splits.Fold(f"{name} shots, seed {seed + n}", dict(sorted(split.items())))
            for condition, source in conditions.items():
                tags = {"condition": condition, "shots": name}
                made.append(Run(f"runs/{condition}-shots-{name}-seed-{seed + n}", source, fold, seed + n, tags))
    return made
