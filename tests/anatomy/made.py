"""Small made-up results of tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from neuroprior.anatomy import synthseg
from neuroprior.core.records import Scan
from neuroprior.data.index import write_index


def scan(folder: Path, subject: str, contrast: str = "T1w", session: str = "") -> Scan:
    """A scan whose file is there (16 cubed, 4 mm)."""
    base = "_".join(part for part in (subject, session, contrast) if part)
    path = folder / "made" / f"{base}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).normal(100, 10, (16, 16, 16)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1.0])), path)
    return Scan(f"made/{base}", "made", f"made/{subject}", session, contrast, contrast, str(path))


def people(folder: Path, n: int) -> list[Scan]:
    """The T1w of ``n`` subjects."""
    return [scan(folder, f"sub-{i:02d}") for i in range(n)]


def index(scans: Sequence[Scan], folder: Path) -> Path:
    """Their index."""
    return write_index(scans, folder / "index.parquet")


def label_map(path: Path, ids: dict[int, int], spacing: float = 5.0) -> Path:
    """A label map with so many voxels of each id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = np.repeat(np.array(list(ids), dtype=np.uint8), list(ids.values()))
    voxels = np.zeros(30**3, dtype=np.uint8)
    voxels[: len(flat)] = flat
    nibabel.save(nibabel.Nifti1Image(voxels.reshape(30, 30, 30), np.diag([spacing, spacing, spacing, 1.0])), path)
    return path


def names_table(path: Path, names: dict[int, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("index\tname\n" + "".join(f"{i}\t{name}\n" for i, name in names.items()), encoding="utf-8")
    return path


def label_maps(scans: Sequence[Scan], folder: Path) -> Path:
    for k, row in enumerate(scans):
        label_map(folder / f"{Path(row.path).name.removesuffix('.nii.gz')}_dseg.nii.gz", {1: 6000 + 50 * k, 2: 5000, 4: 40})
    names_table(folder / "dseg.tsv", {0: "background", 1: "grey", 2: "white", 4: "ventricle", 5: "nobody has it"})
    return folder


def synthseg_rows(scans: Sequence[Scan], seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for row in scans:
        shares = rng.uniform(0.9, 1.1, len(synthseg.NAMES)) / len(synthseg.NAMES)
        total = rng.uniform(1.3e6, 1.6e6)
        record = {"subject": Path(row.path).name.removesuffix(".nii.gz"), synthseg.INTRACRANIAL: total}
        rows.append(record | {name: total * share for name, share in zip(synthseg.NAMES.values(), shares, strict=True)})
    return pd.DataFrame(rows)


def synthseg_table(scans: Sequence[Scan], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    synthseg_rows(scans).to_csv(folder / "volumes.csv", index=False)
    return folder / "volumes.csv"


ASEG = """# Title Segmentation Statistics
# generating_program mri_segstats
# subjectname {name}
# Measure BrainSeg, BrainSegVol, Brain Segmentation Volume, 1169408.000000, mm^3
# Measure BrainSegVol-to-eTIV, BrainSegVol-to-eTIV, Ratio of BrainSegVol to eTIV, 0.823275, unitless
# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, 1420434.160521, mm^3
# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean
  1   4      5077     5581.1  Left-Lateral-Ventricle            27.3055
  2   5       132      195.5  Left-Inf-Lat-Vent                 53.1970
"""


def freesurfer_folders(scans: Sequence[Scan], folder: Path) -> Path:
    for row in scans:
        name = row.subject.rsplit("/", 1)[-1]
        stats = folder / name / "stats"
        stats.mkdir(parents=True)
        (stats / "aseg.stats").write_text(ASEG.format(name=name), encoding="utf-8")
    return folder
