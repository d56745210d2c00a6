"""Three tasks from 16 labelled subjects: every pretraining beside a net from scratch, a floor that knows no network, and a ceiling.

What is scored is the same for all rows: 64 test subjects of a family that no pretraining saw.

- ``lesion``: DSC of the mask on FLAIR, over the subjects that have a lesion. Floor: one threshold on the smoothed scan.
- ``health``: AUROC of healthy or not, from FLAIR. Floor: the smoothed FLAIR's largest value in the head, and 0.5.
- ``age``: mean absolute error in years, from T1w, T2w and FLAIR. Floor: the mean age of the 16; what the true regional volumes give from the 16 (ridge).

Ceiling: the net from scratch with 240 labelled subjects and three times the steps. Boxes, steps and learning rates were chosen on 16 subjects of the
ceiling's family (16 others watched, 80 asked), never on these.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import neuroprior
from neuroprior.core import artifacts
from neuroprior.data.store import Store

logger = logging.getLogger("study")

SCRATCH = {"scratch": "ours", "scratch_vit": "vit_mae"}
"""Rows that were not pretrained -> the row whose net they have. Rates from scratch were chosen for the first; the second takes those of pretrained nets."""
CEILING = "supervised_on_all"
SOLVED = "ours_closed_form"
"""The net of ``ours`` left as it is and a linear head solved on it (``--strategy closed-form``): seconds, and not for lesions."""


@dataclass(frozen=True)
class Plan:
    """How a task is learned. All rows take the same steps.

    Attributes:
        task, target, contrasts: of ``finetune``.
        steps: of every row; the ceiling takes three times as many.
        scratch, pretrained: learning rates, each the better one of two for that start (see README).
        whole: about the whole head in a box, or the box of the pretraining.
    """

    task: str
    target: str
    contrasts: str
    steps: int
    scratch: float
    pretrained: float
    whole: bool


TASKS = {
    "lesion": Plan("segmentation", "lesion", "FLAIR", 400, 1e-2, 3e-3, True),
    "health": Plan("classification", "health", "FLAIR", 300, 1e-3, 1e-3, True),
    "age": Plan("regression", "age", "T1w,T2w,FLAIR", 300, 1e-3, 1e-3, False),
}
BETTER = {"lesion": 1, "health": 1, "age": -1}
"""Whether more is better."""
HEADINGS = {"lesion": "lesion DSC", "health": "healthy or not, AUROC", "age": "age, absolute error (years)"}


@dataclass(frozen=True)
class Answers:
    """What one row said of the test subjects, in the order of their names.

    Attributes:
        values: (n,) DSC, absolute error, or a score that is larger for ill.
        truth: (n,) 1 for ill where the task is ``health``, else ones.
    """

    values: np.ndarray
    truth: np.ndarray

    def score(self, task: str, weights: np.ndarray) -> float:
        """The task's metric when each subject counts so often."""
        if task != "health":
            return float(np.average(self.values, weights=weights))
        if min(weights[self.truth == 1].sum(), weights[self.truth == 0].sum()) == 0:
            return float("nan")
        ill, well = self.truth == 1, self.truth == 0
        higher = np.sign(self.values[ill][:, None] - self.values[well]) / 2 + 0.5  # scikit-learn's roc_auc_score, for many draws
        return float(weights[ill] @ higher @ weights[well] / (weights[ill].sum() * weights[well].sum()))


def run(out: Path, row: str, seed: int, settings: Mapping[str, Any]) -> str:
    """Fine-tune one row's net (or one from scratch) on each task, and predict the test subjects."""
    import torch

    torch.set_num_threads(settings["threads"])
    few = out / "few"
    index = out / "data" / "few.parquet"
    ceiling, scratch = row == CEILING, row in (*SCRATCH, CEILING)
    for name, plan in TASKS.items():
        label = f"{name}-{row}-{seed}"
        if (few / f"{label}.json").exists() or (row == SOLVED and name == "lesion"):
            continue
        x, y, z = (2 * settings["patch"][0],) * 3 if plan.whole else settings["patch"]
        steps = 0 if row == SOLVED else max(1, round(plan.steps * settings["few_share"])) * (3 if ceiling else 1)
        done = neuroprior.finetune(
            out / "data" / ("full_store" if ceiling else "few_store"),
            "scratch" if scratch else str(out / "runs" / f"{row if row != SOLVED else 'ours'}-{seed}"),
            plan.task, plan.target, contrasts=plan.contrasts, out=few / label, recipe=str(out / "recipes" / f"{SCRATCH.get(row, 'ours')}.yaml"), seed=seed,
            strategy="closed-form" if row == SOLVED else None,
            set=[
                f"training.steps={steps}", f"training.validate_every={max(1, steps)}", f"data.patch=[{x},{y},{z}]",
                f"training.optimizer.lr={plan.scratch if row in ('scratch', CEILING) else plan.pretrained}",
            ],
        )  # fmt: skip
        if done.exit_code:  # interrupted: what it wrote is no result
            raise SystemExit(done.exit_code)
        predictions = few / f"{label}-predictions"
        neuroprior.predict(few / label, [str(index)], out=predictions, split=settings["few_split"], preset="fast")
        if name == "lesion":
            neuroprior.evaluate(predictions, index, out=few / f"{label}.parquet", name=row, resample=True)
        artifacts.write_json(few / f"{label}.json", {"steps": steps, "box": [x, y, z]})
    return f"few-shot {row}-{seed}"


def people(out: Path, split: str) -> pd.DataFrame:
    """Subjects of a split by name, with what is known of them."""
    folder = out / "data"
    table = pd.read_csv(folder / "few" / "participants.tsv", sep="\t").merge(
        pd.read_csv(folder / "few_split.tsv", sep="\t"), on="participant_id"
    )
    return table[table["split"] == split].sort_values("participant_id").set_index("participant_id")


def answers(out: Path, task: str, row: str, seed: int, split: str) -> Answers | None:
    """What a row said; None where it was not run."""
    label = f"{task}-{row}-{seed}"
    if not (out / "few" / f"{label}.json").exists():
        return None
    known = people(out, split)
    ill = (known["health"] != "healthy").to_numpy()
    if task == "lesion":
        table = pd.read_parquet(out / "few" / f"{label}.parquet")
        rows = table[
            (table["model"] == row) & (table["metric"] == "dice") & (table["case"] != "all") & (table["region"] == "lesion")
        ]
        found = rows.assign(subject=[_subject(case) for case in rows["case"]]).set_index("subject")["value"]
        return Answers(found.reindex(known.index).fillna(0.0).to_numpy()[ill], np.ones(int(ill.sum())))
    table = pd.read_csv(out / "few" / f"{label}-predictions" / "predictions.tsv", sep="\t").assign(
        subject=lambda t: [_subject(name) for name in t["subject"]]
    )
    table = table.set_index("subject").reindex(known.index)
    if task == "age":
        return Answers((table["value"].astype(float) - known["age"]).abs().to_numpy(), np.ones(len(known)))
    return Answers(1 - table["p_healthy"].astype(float).to_numpy(), ill.astype(int))


def _subject(text: str) -> str:
    return next(part for part in str(text).replace("\\", "/").split("/") if part.startswith("sub-"))


def floors(out: Path, split: str) -> dict[tuple[str, str], Answers]:
    """(row, task) -> what no network knows: a constant, true volumes, and intensities."""
    from scipy import ndimage
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    train, known = people(out, "train"), people(out, split)
    ill = (known["health"] != "healthy").to_numpy()
    store = Store.open(out / "data" / "few_store")
    by_subject = {_subject(session.subject): session for session in store.sessions}
    ones = np.ones(len(known))
    found = {
        ("constant", "age"): Answers((known["age"] - train["age"].mean()).abs().to_numpy(), ones),
        ("constant", "health"): Answers(np.zeros(len(known)), ill.astype(int)),
    }
    columns = sorted(c for c in by_subject[known.index[0]].columns if c.endswith("_ml") and "lesion" not in c)
    volumes = {name: np.array([float(session.value(c)) for c in columns]) for name, session in by_subject.items()}
    scaler = StandardScaler().fit([volumes[name] for name in train.index])
    ridge = RidgeCV(np.logspace(-1, 4, 20)).fit(scaler.transform([volumes[n] for n in train.index]), train["age"])
    guess = ridge.predict(scaler.transform([volumes[n] for n in known.index]))
    found["true_volumes", "age"] = Answers(np.abs(guess - known["age"].to_numpy()), ones)
    smooth, masks = {}, {}
    for name in (*train.index, *known.index):
        session = by_subject[name]
        image = store.read(session.key, "FLAIR")
        voxel = np.linalg.norm(session.affine[:3, :3], axis=0)
        smooth[name] = np.where(image == 0, image.min(), ndimage.gaussian_filter(image, 3.0 / voxel))
        masks[name] = store.read_label(session.key, "lesion") > 0 if "lesion" in session.labels else np.zeros(image.shape, bool)
    brightest = np.array([smooth[name].max() for name in known.index])
    found["raw_pixels", "health"] = Answers(brightest, ill.astype(int))

    def dice(name: str, threshold: float) -> float:
        guess = smooth[name] > threshold
        both = guess.sum() + masks[name].sum()
        return float(2 * (guess & masks[name]).sum() / both) if both else 1.0

    tried = np.linspace(0.5, 5, 46)
    sick = train.index[train["health"] != "healthy"]
    best = max(tried, key=lambda t: float(np.mean([dice(name, t) for name in sick])))
    found["raw_pixels", "lesion"] = Answers(np.array([dice(name, best) for name in known.index[ill]]), np.ones(int(ill.sum())))
    return found


def table(
    out: Path, rows: Sequence[str], seeds: Sequence[int], split: str, draws: int = 2000
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the mean over seeds with a 95 % bootstrap interval over subjects pooled over seeds, and the same of the difference
    to the net from scratch of the same seed, better or worse by the same draws of subjects."""
    known = floors(out, split)
    made: dict[str, list[str]] = {}
    order = [*dict.fromkeys(row for row, _ in known), *SCRATCH, *rows, SOLVED, CEILING]
    for row in order:
        cells: list[str] = []
        for task in TASKS:
            if (row, task) in known:
                by_seed = dict.fromkeys(seeds, known[row, task])
            else:
                found = {seed: answers(out, task, row, seed, split) for seed in seeds}
                by_seed = {seed: one for seed, one in found.items() if one is not None}
            cells += [_value(by_seed, task, draws), _difference(out, by_seed, task, row, seeds, split, draws)]
        if any(cell != "–" for cell in cells):
            made[row] = [f"*{row}*" if any(name == row for name, _ in known) else row, *cells]
    header = ["row"]
    for task in HEADINGS:
        header += [HEADINGS[task], "better than scratch by"]
    return header, list(made.values())


def _weights(n: int, draws: int) -> np.ndarray:
    """(draws, n) how often each subject is drawn; the same for all rows of a task."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)


def _value(found: Mapping[int, Answers], task: str, draws: int) -> str:
    if not found:
        return "–"
    point = [one.score(task, np.ones(len(one.values))) for one in found.values()]
    spread = [one.score(task, w) for one in found.values() for w in _weights(len(one.values), draws)]
    low, high = np.nanpercentile(spread, [2.5, 97.5])
    return f"{np.mean(point):.2f} [{low:.2f}, {high:.2f}]"


def _difference(
    out: Path, found: Mapping[int, Answers], task: str, row: str, seeds: Sequence[int], split: str, draws: int
) -> str:
    if row in (*SCRATCH, CEILING):
        return "–"
    rival = "scratch_vit" if row.startswith("vit") else "scratch"
    values, spread = [], []
    for seed in seeds:
        mine, scratch = found.get(seed), answers(out, task, rival, seed, split)
        if mine is None or scratch is None:
            continue
        even = np.ones(len(mine.values))
        values.append(BETTER[task] * (mine.score(task, even) - scratch.score(task, even)))
        spread += [BETTER[task] * (mine.score(task, w) - scratch.score(task, w)) for w in _weights(len(even), draws)]
    if not values:
        return "–"
    low, high = np.nanpercentile(spread, [2.5, 97.5])
    return f"{np.mean(values):+.2f} [{low:+.2f}, {high:+.2f}]"
