"""Files of other tools find their references, and what does not fit is listed with its reason."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuroprior.assessments.matching import Matching, core, entities, match, subject
from neuroprior.assessments.significance import read_scores
from neuroprior.core.errors import InputError


def joined(references: list[str], predictions: list[str]) -> tuple[list[tuple[str, str, str]], Matching]:
    found = match([PurePosixPath(name) for name in references], [PurePosixPath(name) for name in predictions])
    return [(pair.reference.as_posix(), pair.prediction.as_posix(), pair.rule) for pair in found.pairs], found


@pytest.mark.parametrize(
    ("reference", "prediction", "rule"),
    [
        ("labelsTs/BRATS_001.nii.gz", "labelsTs/BRATS_001.nii.gz", "path"),
        ("a/BRATS_001.nii", "a/BRATS_001.nii.gz", "path"),
        ("BRATS_001.nii.gz", "fold_0/validation/BRATS_001.nii.gz", "name"),  # nnU-Net
        ("BRATS_001.nii.gz", "BRATS_001/BRATS_001_trans.nii.gz", "core name"),  # MONAI's bundles
        ("case7.nii.gz", "case7_0000_seg.nii.gz", "core name"),
        ("Case7_lesion_mask.nii.gz", "case7_pred.nii.gz", "core name"),
        ("case7/segmentation.nii.gz", "case7.nii.gz", "core name"),
        ("s0001/segmentations/hippocampus.nii.gz", "s0001/segmentations/hippocampus.nii.gz", "path"),  # TotalSegmentator
        ("sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz", "sub-01_ses-1_space-orig_dseg.nii.gz", "entities"),
        ("sub-01/anat/sub-01_desc-manual_mask.nii.gz", "sub-01/lesion.nii.gz", "entities"),
        ("sub-01_ses-1_label-lesion_mask.nii.gz", "sub-01_ses-1_acq-highres_run-2_dseg.nii.gz", "fewer entities"),
    ],
)
def test_a_pair_is_found_by_its_rule(reference: str, prediction: str, rule: str) -> None:
    pairs, found = joined([reference, "zz/other_9.nii.gz"], [prediction, "yy/another_8.nii.gz"])
    assert pairs == [(reference, prediction, rule)]
    assert [file.as_posix() for file in found.references] == ["zz/other_9.nii.gz"]
    assert [file.as_posix() for file in found.predictions] == ["yy/another_8.nii.gz"]


def test_nothing_is_guessed() -> None:
    pairs, found = joined(["sub-01_label-lesion_mask.nii.gz"], ["sub-01_run-1_dseg.nii.gz", "sub-01_run-2_dseg.nii.gz"])
    assert pairs == []
    assert all(
        "several files fit by fewer entities" in reason for reason in (*found.references.values(), *found.predictions.values())
    )
    pairs, _ = joined(["sub-01_ses-1_mask.nii.gz"], ["sub-01_ses-2_mask.nii.gz"])
    assert pairs == []
    pairs, _ = joined(["sub-1_mask.nii.gz"], ["sub-10_mask.nii.gz"])
    assert pairs == []
    pairs, found = joined(["a/case.nii.gz", "b/case.nii.gz"], ["case.nii.gz"])
    assert pairs == []
    assert "several files fit by name" in str(found)


def test_order_and_rules_do_not_disturb_each_other() -> None:
    references = [f"sub-{k:02}_mask.nii.gz" for k in range(30)]
    predictions = [f"out/sub-{k:02}/sub-{k:02}_seg.nii.gz" for k in reversed(range(30))]
    pairs, found = joined(references, predictions)
    assert [(a[:6], Path(b).name[:6]) for a, b, _ in pairs] == [(f"sub-{k:02}",) * 2 for k in range(30)]
    assert str(found) == "30 pairs: 30 by entities"


def test_parts_of_names() -> None:
    assert entities(PurePosixPath("sub-01/ses-1/sub-01_ses-2_desc-x_mask.nii.gz")) == {"sub": "01", "ses": "2"}
    assert subject(PurePosixPath("x/sub-01_ses-2_mask.nii.gz")) == "sub-01"
    assert subject(PurePosixPath("x/case.nii.gz")) == "x/case.nii.gz"
    assert core(PurePosixPath("CASE_1/pred_seg.nii.gz")) == "case_1"
    assert core(PurePosixPath("mask.nii.gz")) == "mask"


# --- the command


def write(path: Path, voxels: np.ndarray, spacing: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), np.diag([spacing, spacing, spacing, 1])), path)


def box(shift: int = 0) -> np.ndarray:
    made = np.zeros((16, 16, 16), dtype=np.uint8)
    made[4 + shift : 10 + shift, 4:10, 4:10] = 1
    return made


def test_evaluate_scores_the_masks_of_any_tool(tmp_path: Path) -> None:
    from neuroprior.stages.evaluate import evaluate

    reference, predictions = tmp_path / "truth", tmp_path / "tool"
    for k in range(4):
        write(reference / f"sub-{k:02}_label-lesion_mask.nii.gz", box())
        if k < 3:
            write(predictions / f"sub-{k:02}" / f"sub-{k:02}_seg.nii.gz", box(k))
    write(predictions / "sub-99_seg.nii.gz", box())
    done = evaluate(predictions, reference, tmp_path / "scores.parquet")
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert done.failed == 1
    rows = table[(table["metric"] == "dice") & (table["case"] != "all")]
    dice = {str(who): float(value) for who, value in zip(rows["subject"], rows["value"], strict=True)}
    assert dice["sub-00"] == 1
    assert dice["sub-01"] == pytest.approx(5 / 6)
    assert dice["sub-03"] == 0
    notes = {str(who): str(note) for who, note in zip(rows["subject"], rows["note"], strict=True)}
    assert notes["sub-03"].startswith("failed: there is no prediction (no file of that name or subject)")
    strange = table[table["metric"] == "not_scored"]
    assert list(strange["case"]) == ["sub-99_seg.nii.gz"]
    assert "no reference" in strange["note"].iloc[0]
    again = read_scores(tmp_path / "scores.parquet")
    assert len(again) == len(table)
    assert next(row.value for row in again if row.metric == "not_scored") is None
    with pytest.raises(InputError, match="cannot be read"):
        read_scores(reference / "sub-00_label-lesion_mask.nii.gz")
    mean = table[(table["metric"] == "dice") & (table["case"] == "all")].iloc[0]
    assert (mean["n"], mean["value"]) == (4, pytest.approx((1 + 5 / 6 + 4 / 6) / 4))


def test_evaluate_says_when_nothing_fits(tmp_path: Path) -> None:
    from neuroprior.stages.evaluate import evaluate

    write(tmp_path / "truth" / "sub-01_mask.nii.gz", box())
    write(tmp_path / "tool" / "sub-02_mask.nii.gz", box())
    with pytest.raises(InputError, match="no prediction fits any reference"):
        evaluate(tmp_path / "tool", tmp_path / "truth", tmp_path / "s.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no NIfTI masks"):
        evaluate(tmp_path / "empty", tmp_path / "truth", tmp_path / "s.parquet")


def test_another_grid_is_an_error_row_unless_asked_for_and_all_zero_references_are_no_structure(tmp_path: Path) -> None:
    from neuroprior.stages.evaluate import evaluate

    write(tmp_path / "truth" / "a.nii.gz", box())
    write(tmp_path / "truth" / "b.nii.gz", np.zeros((16, 16, 16)))
    write(tmp_path / "tool" / "a_seg.nii.gz", np.ones((8, 8, 8)), 2.0)
    write(tmp_path / "tool" / "b_seg.nii.gz", box())
    done = evaluate(tmp_path / "tool", tmp_path / "truth", tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet")
    row = table.query("metric == 'not_scored'").iloc[0]
    assert row["case"] == "a.nii.gz"
    for part in ("16 x 16 x 16 voxels of 1 x 1 x 1 mm", "8 x 8 x 8 voxels of 2 x 2 x 2 mm", "--resample"):
        assert part in row["note"]
    assert (done.unscored, done.unusable, done.exit_code) == (1, 1, 3)
    assert "NOT SCORED" in str(done)
    dice = table.query("metric == 'dice'").set_index("case")
    assert (dice.loc["b.nii.gz", "value"], dice.loc["b.nii.gz", "note"]) == (0, "reference empty")

    done = evaluate(tmp_path / "tool", tmp_path / "truth", tmp_path / "s.parquet", resample=True)
    assert done.exit_code == 0
    dice = pd.read_parquet(tmp_path / "s.parquet").query("metric == 'dice'").set_index("case")
    assert "resampled by nearest neighbour from 8 x 8 x 8 voxels" in dice.loc["a.nii.gz", "note"]
    covered = 16**3  # the last small centres lie on the edge of the last large voxel
    assert dice.loc["a.nii.gz", "value"] == pytest.approx(2 * 216 / (216 + covered))
    assert done.rule.startswith("rule for empty masks: honest")
    assert done.rule in str(done)


def test_the_nearest_neighbour_is_scipys() -> None:
    """An oblique, anisotropic grid against scipy's affine transform of order 0."""
    from scipy import ndimage

    from neuroprior.assessments._predictions import nearest
    from neuroprior.core.grids import grid_of
    from neuroprior.core.volume import Volume

    rng = np.random.default_rng(0)
    source = np.diag([1.0, 1.3, 2.1, 1.0])
    source[:3, 3] = (-4, 3, 1)
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    target = np.eye(4)
    target[:3, :3] = turn @ np.diag([0.7, 1.9, 1.1])
    target[:3, 3] = (-1, 2, 2)
    labels = rng.integers(0, 5, (14, 12, 9)).astype(np.int16)
    grid = grid_of(Volume(np.zeros((10, 11, 12), dtype=np.int16), target))
    back = np.linalg.inv(source) @ target
    theirs = ndimage.affine_transform(labels, back[:3, :3], back[:3, 3], (10, 11, 12), order=0, mode="grid-constant", cval=0)
    mine = nearest(Volume(labels, source), grid)
    assert mine.dtype == labels.dtype
    assert np.count_nonzero(mine) > 100
    assert np.array_equal(mine, theirs)
