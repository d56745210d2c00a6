"""What nets that only ever saw synthetic heads say of real ones: regional volumes and age of the 30 IXI subjects.

    python benchmarks/priors/real.py [--out runs/priors] [--scans ../shared/data/ixi-2mm] [--rows ours mae ...] [--seeds 0 1 2]

Needs the pretrained runs of ``study.py`` under OUT. T1w scans, one a subject, set to zero outside the brain (the parcellation, grown by 4 mm: the study's
heads have no skull either), brought to the study's 4 mm; then the study's own boxes in the middle of the head, each shifted by up to 4 mm. A ridge from
the frozen spatial features of every half to (1) the volumes of all parcels of at least 1.5 ml by the table that came with the scans, (2) age; every subject
is told by a fit on the other 29, its penalty chosen among these by leave-one-out (scikit-learn's RidgeCV). R2 is against the mean of the other 29,
so a constant guess has 0; that of the volumes is the mean over parcels. Intervals: 95 %, bootstrap over subjects, pooled over seeds. Nothing was chosen here.

Appends a JSON line a row to benchmarks/results/priors_real.jsonl and prints a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from rows import ROWS
from scipy import ndimage
from sklearn.linear_model import RidgeCV
from study import SCALES

import neuroprior
from neuroprior.assessments import _features as features
from neuroprior.assessments import disentanglement as dis
from neuroprior.core import artifacts
from neuroprior.data.store import Store
from neuroprior.inference.model import load

HERE = Path(__file__).resolve().parent
PENALTIES = tuple(10.0 ** np.arange(-2, 7))
LEAST_ML = 1.5


def prepared(out: Path, scans: Path) -> Store:
    """The scans without skull, at the study's spacing; half of the subjects are called train only because a view wants two sets."""
    store = out / "data" / "real_store"
    if not artifacts.is_complete(store):
        folder = out / "data" / "real"
        names = sorted(path.name for path in scans.glob("sub-*"))
        for name in names:
            (scan,), (parcels,) = scans.glob(f"{name}/**/*_T1w.nii.gz"), scans.glob(f"derivatives/**/{name}*_dseg.nii.gz")
            image, labels = nibabel.load(scan), nibabel.load(parcels)
            assert np.allclose(image.affine, labels.affine, atol=1e-3), name
            brain = ndimage.binary_dilation(np.asarray(labels.dataobj) > 0, iterations=2)
            there = folder / name / "anat" / f"{name}_T1w.nii.gz"
            there.parent.mkdir(parents=True, exist_ok=True)
            values = np.where(ndimage.binary_fill_holes(brain), image.get_fdata(dtype=np.float32), 0)
            nibabel.save(nibabel.Nifti1Image(values, image.affine), there)
        pd.read_csv(scans / "participants.tsv", sep="\t").to_csv(folder / "participants.tsv", sep="\t", index=False)
        artifacts.write_json(folder / "dataset_description.json", {"Name": "ixi", "BIDSVersion": "1.10.0"})
        splits = pd.DataFrame({"participant_id": names, "split": ["train", "test"] * (len(names) // 2)})
        splits.to_csv(out / "data" / "real_split.tsv", sep="\t", index=False)
        index = out / "data" / "real.parquet"
        neuroprior.index([folder], out=index, checks="header", split="train=1", split_file=out / "data" / "real_split.tsv")
        neuroprior.prepare(index, out=store, spacing=str(SCALES["toy"]["spacing"]))
    return Store.open(store)


def left_out(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (N, q) of each subject from a ridge fitted on the others, and the others' mean."""
    told, mean = np.empty_like(y), np.empty_like(y)
    for n in range(len(x)):
        rest = np.arange(len(x)) != n
        middle, spread = x[rest].mean(0), x[rest].std(0) + 1e-6
        scaled, unit = (x - middle) / spread, y[rest].std(0)
        mean[n] = y[rest].mean(0)
        fitted = RidgeCV(PENALTIES, alpha_per_target=y.shape[1] > 1).fit(scaled[rest], (y[rest] - mean[n]) / unit)
        told[n] = fitted.predict(scaled[[n]]).reshape(-1) * unit + mean[n]
    return told, mean


def r2(errors: np.ndarray, spread: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(draws,) mean over targets, from squared errors and squared distances from the mean, (N, q) each."""
    return (1 - errors[draws].sum(1) / spread[draws].sum(1)).mean(-1)


def main() -> None:
    """Ask every row and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/priors"))
    parser.add_argument("--scans", type=Path, default=HERE.parents[2] / "shared" / "data" / "ixi-2mm")
    parser.add_argument("--rows", nargs="+", default=[row for row in ROWS if not row.endswith("untrained")], choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    store = prepared(given.out, given.scans)
    people = pd.read_csv(given.scans / "participants.tsv", sep="\t").set_index("participant_id")
    table = pd.read_csv(next(given.scans.glob("derivatives/**/*Volumes.csv"))).set_index("MRID")
    parcels = [name for name in table.columns if name.isdigit() and int(name) <= 207 and table[name].mean() >= 1000 * LEAST_ML]
    squares: dict[tuple[str, str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for seed in given.seeds:
        config = dis.ViewConfig.model_validate({"misalignment_mm": 4.0, "box": SCALES["toy"]["patch"], "seed": seed})
        views = dis.Views(store, ("train",), ("test",), config)
        scans = dis.describe(views)
        who = [str(subject).rpartition("/")[2] for subject in scans.subjects]
        targets = {
            "volumes": table.loc[
                [next(i for i in table.index if name.removeprefix("sub-") in str(i)) for name in who], parcels
            ].to_numpy(float)
            / 1000,
            "age": people.loc[[name if name.startswith("sub-") else f"sub-{name}" for name in who], ["age"]].to_numpy(float),
        }
        found = [features.raw_pixels(views), features.outline(views)]
        for row in given.rows:
            run = given.out / "runs" / f"{row}-{seed}"
            if artifacts.is_complete(run):
                net: Any = load(run).net
                found += dis.extract(row, net, views)
                if row == "ours":
                    found += dis.extract("random_weights", dis.untrained(net, seed), views)
        for one in found:
            if one.spatial is None:
                continue
            for name, y in targets.items():
                told, mean = left_out(np.asarray(one.spatial, dtype=float), y)
                squares.setdefault((one.model, one.half, name), []).append(((told - y) ** 2, (y - mean) ** 2))
    draws = np.random.default_rng(0).integers(0, len(store.sessions), (2000, len(store.sessions)))
    whole = np.arange(len(store.sessions))[None]
    every = {key: np.mean([r2(e, s, draws) for e, s in seeds], 0) for key, seeds in squares.items()}
    folder = HERE.parent / "results"
    folder.mkdir(exist_ok=True)
    with open(folder / "priors_real.jsonl", "a") as file:
        print(
            "| row | half | seeds | volumes R2 | over random weights | age R2 | over random weights |\n|---|---|---|---|---|---|---|"
        )
        for model, half in dict.fromkeys((model, half) for model, half, _ in squares):
            cells = []
            for name in targets:
                key = model, half, name
                rival = ("random_weights", "anatomy" if half == "image" else half, name)
                value = float(np.mean([r2(e, s, whole) for e, s in squares[key]]))
                low, high = np.quantile(every[key], (0.025, 0.975))
                over = np.quantile(every[key] - every[rival], (0.025, 0.5, 0.975)) if rival in every and rival != key else None
                cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
                cells.append("–" if over is None else f"{over[1]:+.2f} [{over[0]:+.2f}, {over[2]:+.2f}]")
                row = {
                    "benchmark": "priors_real",
                    "row": model,
                    "half": half,
                    "target": name,
                    "seeds": len(squares[key]),
                    "r2": value,
                    "low": float(low),
                    "high": float(high),
                }
                file.write(json.dumps(row) + "\n")
            print(f"| {model} | {half} | {len(squares[model, half, 'age'])} | " + " | ".join(cells) + " |")
    print(f"{len(parcels)} parcels, {len(store.sessions)} subjects")


if __name__ == "__main__":
    main()
