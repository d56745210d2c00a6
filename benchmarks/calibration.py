"""Does calibration do what it says? Figures for docs/calibration.md and benchmarks/README.md.

Three parts, all on cases that the calibration did not see:

``simulated``: classifiers whose true probabilities are known, made too sure by a factor; errors whose spread differs between groups.
``held-out FOLDER``: 440 synthetic heads at 4 mm, T1w; age and sex learned end to end from 132, and sex from 20 of them with
three seeds, calibrated on 66, asked of the other 242.
``OUT``: what ``neuroprior crossvalidate`` found (its ``scores.parquet``), printed as one table.

Run: python benchmarks/calibration.py simulated | held-out FOLDER | OUT [OUT ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import binom

from neuroprior.core import seeds
from neuroprior.inference import calibration
from neuroprior.metrics import ece as measures

LEVEL = 0.9


def temperature(repeats: int = 200) -> list[str]:
    """ECE of the top class before and after, for several sizes of the validation set; 500 new cases each time."""
    lines = ["too sure by | validation cases | ECE before | ECE after | difference [95 % of repeats] | lower in"]
    for sharp in (1.0, 2.0, 4.0):
        for n in (20, 50, 200):
            before, after = [], []
            for repeat in range(repeats):
                draw = seeds.generator("benchmark", "temperature", n, repeat)
                logits = draw.standard_normal((n + 500, 2)) * 1.5
                truth = (draw.random(n + 500) < softmax(logits, 1)[:, 1]).astype(int)
                p = softmax(logits * sharp, 1)
                found = calibration.fit_temperature(p[:n], truth[:n])
                q = calibration.temper(p[n:], found)
                for kept, r in ((before, p[n:]), (after, q)):
                    kept.append(measures.ece(r.argmax(1) == truth[n:], r.max(1)))
            d = np.array(after) - np.array(before)
            low, high = np.quantile(d, [0.025, 0.975])
            lines.append(
                f"{sharp:g} | {n} | {np.mean(before):.3f} | {np.mean(after):.3f} | {d.mean():+.3f} [{low:+.3f}, {high:+.3f}] | "
                f"{(d < 0).mean():.0%}"
            )
    return lines


def coverage(repeats: int = 2000) -> list[str]:
    """Coverage of one new case a group and repeat: common half-widths beside half-widths by group, older people twice as hard."""
    groups = {"F, <40": 1.0, "F, 60+": 2.0, "M, <40": 1.0, "M, 60+": 2.0}
    hits: dict[tuple[int, str, str], int] = {}
    for n in (20, 80, 400):
        for repeat in range(repeats):
            draw = seeds.generator("benchmark", "coverage", n, repeat)
            names = list(groups)
            of = [names[k] for k in draw.integers(0, 4, n)]
            errors = draw.standard_t(4, n) * np.array([groups[g] for g in of])
            common = calibration.conformal(errors, LEVEL)
            by_age = calibration.conformal_by_group(errors, [g.split(", ")[1] for g in of], LEVEL)
            for g, scale in groups.items():
                error = abs(float(draw.standard_t(4)) * scale)
                age = g.split(", ")[1]
                hits[n, g, "common"] = hits.get((n, g, "common"), 0) + (error <= common.value)
                hits[n, g, "by age"] = hits.get((n, g, "by age"), 0) + (error <= by_age.get(age, common).value)
    low, high = binom.interval(0.95, repeats, LEVEL)
    lines = [f"n | group | common | by age group (binomial range at {LEVEL:g}: {low / repeats:.3f} to {high / repeats:.3f})"]
    for n in (20, 80, 400):
        for g in [*groups, "all"]:
            chosen = groups if g == "all" else [g]
            shares = [np.mean([hits[n, one, kind] / repeats for one in chosen]) for kind in ("common", "by age")]
            lines.append(f"{n} | {g} | {shares[0]:.3f} | {shares[1]:.3f}")
    return lines


def found(folder: Path) -> list[str]:
    """The calibration rows of a cross-validation, in words."""
    table = pd.read_parquet(folder / "scores.parquet")
    chosen = table[(table["model"] == "calibrated") | ((table["model"] == "out of fold") & (table["case"] == "all"))]
    lines = [f"{folder.name}: metric | region | value | 95 % interval | n"]
    for row in chosen.itertuples():
        between = "" if pd.isna(row.low) else f"[{row.low:.3f}, {row.high:.3f}]"
        lines.append(f"{row.metric} | {row.region} | {row.value:.3f} | {between} | {row.n}")
    return lines


def held_out(folder: Path) -> list[str]:
    """Age and sex by the verbs alone; a step whose result is there is kept."""
    import neuroprior

    heads, index, store = folder / "heads", folder / "index.parquet", folder / "store"
    if not index.exists():
        neuroprior.synthesise(heads, subjects=440, spacing=4.0, contrasts="T1w,FLAIR", seed=77)
        neuroprior.index([heads], out=index, split="train=0.3,val=0.15,test=0.55")
    if not (store / "complete.json").exists():
        neuroprior.prepare(index, out=store, spacing="4")
    lines = []
    few = ["data.shots=20"]
    pooled = ["task.head=pooled"]
    runs = [("age", 300, 0, []), ("sex", 200, 0, []), *(("sex", 200, seed, few) for seed in range(3)), ("age", 300, 0, pooled)]
    for target, steps, seed, more in runs:
        name = f"{target}-20-{seed}" if more == few else f"{target}-pooled" if more else f"{target}-1"
        run, scores = folder / name, folder / f"{name}s.parquet"
        if not scores.exists():
            task = "regression" if target == "age" else "classification"
            settings = [f"training.steps={steps}", "training.batch=8", "data.patch=[40,48,40]", *more]
            neuroprior.finetune(store, "scratch", task, target, contrasts="T1w", out=run, set=settings, seed=seed)
            neuroprior.predict(run, [str(index)], out=folder / f"{name}p", split="test")
            neuroprior.evaluate(folder / f"{name}p", index, out=scores, name="scratch")
        table = pd.read_parquet(scores)
        lines.append(f"{name}: model | metric | region | value | 95 % interval | n")
        wanted = ["mae", "pearson_r", "auroc", "coverage", "interval_width", "ece", "ece_equal_mass", "brier", "nll"]
        for row in table[(table["case"] == "all") & table["metric"].isin(wanted)].itertuples():
            between = "" if pd.isna(row.low) else f"[{row.low:.3f}, {row.high:.3f}]"
            lines.append(f"{row.model} | {row.metric} | {row.region} | {row.value:.3f} | {between} | {row.n}")
        if target == "age":
            lines += resplit(scores)
    return lines


def resplit(scores: Path, repeats: int = 500, calibrating: int = 100) -> list[str]:
    """Coverage of age intervals over many draws of who calibrates: one draw of 66 says as much of the draw as of the method.

    All of these subjects are held out; ``calibrating`` of them learn the intervals, the others are asked, ``repeats`` times.
    """
    table = pd.read_parquet(scores)
    table = table[(table["model"] == "scratch") & (table["case"] != "all") & table["metric"].isin(["predicted", "truth"])]
    wide = table.pivot_table(index="case", columns="metric", values="value")
    value, truth = wide["predicted"].to_numpy(), wide["truth"].to_numpy()
    ages = {"below 40": truth < 40, "40 to 59": (truth >= 40) & (truth < 60), "from 60": truth >= 60, "all": truth > 0}
    found: dict[str, list[float]] = {name: [] for name in ages}
    for repeat in range(repeats):
        order = seeds.generator("benchmark", "resplit", repeat).permutation(len(truth))
        fit, new = order[:calibrating], order[calibrating:]
        parts = calibration.conformal_by_range(np.abs(value - truth)[fit], truth[fit], (40, 60), LEVEL)
        ranges = [(part.low, part.high, part.half_width) for part in parts]
        ends = np.array([calibration.interval_over(v, ranges) for v in value[new]])
        hit = (ends[:, 0] <= truth[new]) & (truth[new] <= ends[:, 1])
        for name, mine in ages.items():
            found[name].append(float(hit[mine[new]].mean()))
    lines = [f"{repeats} draws of {calibrating} who calibrate | mean coverage | 95 % of draws"]
    for name, shares in found.items():
        low, high = np.quantile(shares, [0.025, 0.975])
        lines.append(f"{name} | {np.mean(shares):.3f} | {low:.3f} to {high:.3f}")
    return lines


if __name__ == "__main__":
    arguments = sys.argv[1:] or ["simulated"]
    if arguments[0] == "held-out":
        sys.stdout.write("\n".join(held_out(Path(arguments[1]))) + "\n")
        arguments = []
    for argument in arguments:
        lines = [*temperature(), "", *coverage()] if argument == "simulated" else found(Path(argument))
        sys.stdout.write("\n".join(lines) + "\n")
