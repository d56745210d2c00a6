"""The built-in atlas on real scans (all ten subjects and the other contrasts: benchmarks/anatomy), and scans that it must refuse."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("dipy", reason="the extra 'atlas' is not installed")

from neuroprior.anatomy import Anatomy, Candidate, atlas
from neuroprior.core import nifti
from neuroprior.core.errors import ConfigError, InputError

SUBJECTS = ("sub-IXI174", "sub-IXI211")


def measure(path: Path) -> Anatomy:
    return atlas.measure(Candidate("", "", "", "", "", "", str(path)), atlas.Config())


@pytest.mark.slow
def test_volumes_are_near_dlmuse(real_data: Path) -> None:
    root = real_data / "ixi-2mm"
    oracle = pd.read_csv(root / "derivatives/dlmuse/DLMUSE_Volumes.csv").set_index("MRID") / 1000
    people = pd.read_csv(root / "participants.tsv", sep="\t").set_index("participant_id")["source_id"]
    for name in SUBJECTS:
        ours, theirs = measure(root / name / f"ses-1/anat/{name}_ses-1_T1w.nii.gz"), oracle.loc[people[name]]
        assert ours.volumes_ml["brain"] == pytest.approx(theirs["701"], rel=0.06)
        assert ours.icv_ml == pytest.approx(theirs["702"], rel=0.06)
        assert ours.volumes_ml["grey"] == pytest.approx(theirs["601"], rel=0.08)
        for tissue in ("grey", "white"):
            parts = [ml for region, ml in ours.volumes_ml.items() if region.endswith(f" {tissue}")]
            assert len(parts) == 15
            assert sum(parts) == pytest.approx(ours.volumes_ml[tissue], rel=0.02)
        for lobe in ("frontal", "temporal", "occipital", "cerebellum"):
            left, right = (ours.volumes_ml[f"{side} {lobe} grey"] for side in ("left", "right"))
            assert left == pytest.approx(right, rel=0.2)


def test_the_template_is_divided_without_rest() -> None:
    model = atlas.template()
    inside = model.brain > 0.5
    assert set(np.unique(model.regions[inside])) == set(range(1, len(model.names) + 1))
    world = np.argwhere(inside) @ model.affine[:3, :3].T + model.affine[:3, 3]
    codes = model.regions[inside]
    for k, name in enumerate(model.names, start=1):
        if name.startswith("left"):
            assert world[codes == k][:, 0].max() <= 0
    centre = {name: world[codes == k].mean(0) for k, name in enumerate(model.names, start=1)}
    assert centre["left frontal"][1] > centre["left parietal"][1] > centre["left occipital"][1]
    assert centre["left cerebellum"][2] < centre["left temporal"][2] < centre["left parietal"][2]


def test_a_scan_upside_down_is_a_failed_registration(real_data: Path, tmp_path: Path) -> None:
    volume, _ = nifti.read_scan(real_data / "ixi-2mm/sub-IXI132/ses-1/anat/sub-IXI132_ses-1_T1w.nii.gz")
    affine = np.diag([1.0, -1.0, -1.0, 1.0]) @ volume.affine
    nibabel.save(nibabel.Nifti1Image(volume.voxels, affine), tmp_path / "turned.nii.gz")
    with pytest.raises(InputError, match="failed registration"):
        measure(tmp_path / "turned.nii.gz")


def test_an_empty_scan_is_refused(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((40, 40, 40), np.float32), np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "empty.nii.gz"
    )
    with pytest.raises(InputError, match="constant|empty"):
        measure(tmp_path / "empty.nii.gz")


def test_results_of_a_tool_are_not_for_the_atlas(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --files out"):
        atlas.find([], tmp_path, atlas.Config())
