"""Does ``--preset fast`` say what ``balanced`` says? A trained net, native masks of both, DSC between them and to the truth.

    python benchmarks/presets.py [--out runs/presets] [--steps 400] [--subjects 10]

Synthetic heads at 1 mm with skull, T1w and FLAIR, from the verbs alone: the tiny recipe's net learns the 21 structures from scratch on six subjects in boxes of
64^3, and predicts the test subjects with every preset. DSC by SimpleITK, per structure and case; processor seconds of the prediction with its children.
Appends a JSON line to benchmarks/results/presets.jsonl.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import neuroprior


def overlaps(first: Path, second: Path) -> dict[int, float]:
    """DSC of every label that one of two masks has."""
    a, b = (sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkUInt8) for path in (first, second))
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(a, b)
    labels = np.union1d(np.unique(sitk.GetArrayViewFromImage(a)), np.unique(sitk.GetArrayViewFromImage(b)))
    return {int(label): measure.GetDiceCoefficient(int(label)) for label in labels if label}


def predicted(model: Path, index: Path, out: Path, preset: str) -> float:
    """Predict the test cases in a process of its own; processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["-m", "neuroprior", "predict", str(model), str(index), "--out", str(out), "--split", "test", "--preset", preset]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Train once, predict with every preset, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/presets"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--subjects", type=int, default=10)
    given = parser.parse_args()
    out: Path = given.out
    heads, table, store, run = out / "heads", out / "index.parquet", out / "store", out / "run"
    if not store.exists():
        neuroprior.synthesise(heads, subjects=given.subjects, spacing=1.0, contrasts="T1w,FLAIR", workers=1, progress=False)
        neuroprior.index([heads], out=table, checks="header", split="train=0.6,val=0.1,test=0.3")
        neuroprior.prepare(table, out=store, spacing="1")
    done = neuroprior.finetune(
        store, "scratch", "segmentation", "dseg", out=run, recipe="tiny",
        set=[f"training.steps={given.steps}", f"training.validate_every={given.steps}", "data.patch=64", "training.optimizer.lr=0.003"],
    )  # fmt: skip
    if done.exit_code:
        raise SystemExit(done.exit_code)
    presets = ("fast", "balanced", "accurate")
    seconds = {preset: predicted(run, table, out / preset, preset) for preset in presets}
    masks = {preset: sorted((out / preset).rglob("*_dseg.nii.gz")) for preset in presets}
    names = [path.name.split("_")[0] for path in masks["balanced"]]
    truth = [next((heads / name).rglob("*_dseg.nii.gz"), None) or next(heads.rglob(f"{name}*_dseg.nii.gz")) for name in names]
    result: dict[str, object] = {"benchmark": "presets", "steps": given.steps, "cases": len(names), "processor_s": seconds}
    for preset in presets:
        result[f"{preset}_to_truth"] = float(
            np.mean([list(overlaps(a, b).values()) for a, b in zip(masks[preset], truth, strict=True)])
        )
        if preset != "balanced":
            pairs = [overlaps(a, b) for a, b in zip(masks[preset], masks["balanced"], strict=True)]
            every = [value for pair in pairs for value in pair.values()]
            result[f"{preset}_to_balanced"] = {
                "mean": float(np.mean(every)), "least": float(min(every)), "by_case": [float(np.mean(list(pair.values()))) for pair in pairs],
            }  # fmt: skip
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    with open(folder / "presets.jsonl", "a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
