"""The built-in atlas against DLMUSE on ixi-2mm, on turned and enlarged copies, and across the contrasts of a session.

    python benchmarks/anatomy/atlas.py --data ../shared/data [--subjects 10] [--workers 2]

Writes README.md beside this file. The scans are public (see the data's own README files); about eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from neuroprior.anatomy import Candidate, atlas
from neuroprior.core import nifti
from neuroprior.core.errors import InputError
from neuroprior.core.grids import Grid, grid_of
from neuroprior.core.resampling import resample
from neuroprior.core.volume import Volume

HERE = Path(__file__).resolve().parent
TURN_DEGREES = (8.0, -6.0, 10.0)
ENLARGED = 1.06
WHOLE = ("brain", "icv", "grey", "white", "csf")
NO_VOLUMES = ("mutual_information", "agreement", "filled", "seconds")
BRIGHTER = 3.0


def one(path: str) -> dict[str, Any]:
    """Volumes in ml, quality and seconds of a scan, or the reason why there are none."""
    begun = time.perf_counter()
    try:
        found = atlas.measure(Candidate("", "", "", "", "", "", path), atlas.Config())
    except InputError as error:
        return {"reason": error.reason, "seconds": time.perf_counter() - begun}
    quality = {name: found.provenance[name] for name in ("mutual_information", "agreement", "filled")}
    return {**found.volumes_ml, "icv": found.icv_ml, **quality, "seconds": time.perf_counter() - begun}


def turned_copy(path: Path, out: Path, enlarged: float, resampled: bool = True) -> Path:
    """A copy of a scan turned about its centre (resampled, or in its header alone), enlarged (in its header) and brightened."""
    volume, _ = nifti.read_scan(path)
    grid = grid_of(volume)
    centre = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", TURN_DEGREES, degrees=True).as_matrix()
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    voxels = (
        np.maximum(resample(Volume(volume.voxels, turn @ volume.affine), Grid(grid.shape, grid.affine), order=3), 0) * BRIGHTER
    )
    affine = grid.affine.copy()
    affine[:3, :3] *= enlarged
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), affine), out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    root = arguments.data / "ixi-2mm"
    oracle = pd.read_csv(root / "derivatives/dlmuse/DLMUSE_Volumes.csv").set_index("MRID") / 1000
    people = pd.read_csv(root / "participants.tsv", sep="\t").set_index("participant_id")["source_id"]
    scans = {path.name.split("_")[0]: path for path in sorted(root.glob("sub-*/ses-1/anat/*_T1w.nii.gz"))}
    scans = dict(list(scans.items())[: arguments.subjects])
    others = sorted((arguments.data / "openms-cross").glob("sub-*/ses-1/anat/*.nii.gz"))
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        jobs: dict[tuple[str, str], str] = {(name, "as it is"): str(path) for name, path in scans.items()}
        for name in list(scans)[: arguments.copies]:
            jobs[name, "turned in the header"] = str(
                turned_copy(scans[name], Path(folder) / f"{name}_h.nii.gz", 1.0, resampled=False)
            )
            jobs[name, "turned"] = str(turned_copy(scans[name], Path(folder) / f"{name}_turned.nii.gz", 1.0))
            jobs[name, "turned, enlarged"] = str(turned_copy(scans[name], Path(folder) / f"{name}_both.nii.gz", ENLARGED))
        jobs |= {(path.name.split("_")[0], path.name.removesuffix(".nii.gz").split("_", 2)[-1]): str(path) for path in others}
        found = dict(zip(jobs, pool.map(one, jobs.values()), strict=True))
    text = report(found, scans, oracle, people)
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print(text)


def report(found: dict[tuple[str, str], dict[str, Any]], scans: dict[str, Path], oracle: pd.DataFrame, people: pd.Series) -> str:
    """The figures as Markdown."""
    rows = []
    for name in scans:
        ours, theirs = found[name, "as it is"], oracle.loc[people[name]]
        if "reason" in ours:
            rows.append({"subject": name, "reason": ours["reason"]})
            continue
        rows.append(
            {"subject": name, "brain": ours["brain"], "DLMUSE brain (701)": theirs["701"], "brain, %": 100 * (ours["brain"] / theirs["701"] - 1),
             "icv": ours["icv"], "DLMUSE all (702)": theirs["702"], "icv, %": 100 * (ours["icv"] / theirs["702"] - 1),
             "grey": ours["grey"], "DLMUSE grey (601)": theirs["601"], "white": ours["white"], "DLMUSE white (604)": theirs["604"],
             "agreement": ours["agreement"], "seconds": ours["seconds"]}
        )  # fmt: skip
    table = pd.DataFrame(rows).set_index("subject")
    r = {
        tissue: np.corrcoef(table[tissue], table[f"DLMUSE {tissue} ({code})"])[0, 1]
        for tissue, code in (("grey", 601), ("white", 604))
    }
    share = {
        tissue: np.corrcoef(table[tissue] / table["brain"], table[f"DLMUSE {tissue} ({code})"] / table["DLMUSE brain (701)"])[
            0, 1
        ]
        for tissue, code in (("grey", 601), ("white", 604))
    }
    tissue_ratio = (table["grey"] + table["white"]) / (table["DLMUSE grey (601)"] + table["DLMUSE white (604)"])
    copies = []
    for (name, kind), ours in found.items():
        if kind.startswith("turned") and "reason" not in ours:
            scale = ENLARGED**3 if "enlarged" in kind else 1.0
            first = found[name, "as it is"]
            change = {key: 100 * (ours[key] / scale / first[key] - 1) for key in first if key not in NO_VOLUMES}
            regions = {key: value for key, value in change.items() if " " in key}
            far = max(regions, key=lambda key: abs(regions[key]))
            copies.append(
                {"subject": name, "copy": kind, **{key: change[key] for key in WHOLE}, "median of 30 regions": float(np.median(np.abs([*regions.values()]))),
                 "largest": f"{regions[far]:+.1f} {far}"}
            )  # fmt: skip
    contrasts = [
        {"subject": name, "contrast": kind, **({key: ours[key] for key in ("brain", "grey", "white", "csf", "agreement", "filled")} if "reason" not in ours
         else {"reason": ours["reason"]})}
        for (name, kind), ours in found.items() if name not in scans
    ]  # fmt: skip
    head = Path(HERE / "head.md").read_text(encoding="utf-8")
    return head.format(
        n=len(table), worst=table["brain, %"].abs().max(), mean=table["brain, %"].mean(), worst_icv=table["icv, %"].abs().max(),
        r_grey=r["grey"], r_white=r["white"], s_grey=share["grey"], s_white=share["white"], ratio=100 * (tissue_ratio.mean() - 1),
        seconds=table["seconds"].mean(), table=_markdown(table.reset_index()), copies=_markdown(pd.DataFrame(copies)),
        contrasts=_markdown(pd.DataFrame(contrasts).fillna("")),
        turned_csf=max((abs(row["csf"]) for row in copies), default=float("nan")),
        turned=max((abs(row[key]) for row in copies for key in ("brain", "grey", "white")), default=float("nan")),
    )  # fmt: skip


def _markdown(frame: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
    for row in frame.to_dict("records"):
        cells = [f"{value:.2f}" if isinstance(value, float) and abs(value) < 20 else f"{value:.0f}" if isinstance(value, float) else str(value)
                 for value in row.values()]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
