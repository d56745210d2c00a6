"""Cases of a report: which are chosen, what the viewer shows, and that it needs no network."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroprior.reporting import cases


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Four predicted cases, one failed, with their inputs and references."""
    folder = tmp_path / "predictions"
    rows = []
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    rng = np.random.default_rng(0)
    for number in range(4):
        image = np.zeros((30, 36, 20), dtype=np.float32)
        image[5:25, 6:30, 4:16] = 100 + 10 * rng.standard_normal((20, 24, 12))
        truth, guess = np.zeros(image.shape, np.uint8), np.zeros(image.shape, np.uint8)
        truth[10:14, 10:16, 8:11] = 1
        guess[10 + number : 14 + number, 10:16, 8:11] = 1
        name = f"sub-{number:02d}"
        anat = folder / name / "anat"
        anat.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / f"{name}_T1w.nii.gz")
        nibabel.save(nibabel.Nifti1Image(truth, affine), tmp_path / f"{name}_truth.nii.gz")
        nibabel.save(nibabel.Nifti1Image(guess, affine), anat / f"{name}_label-lesion_mask.nii.gz")
        rows.append({
            "case": name, "target": "lesion", "status": "ok", "reason": "n/a", "input": str(tmp_path / f"{name}_T1w.nii.gz"),
            "output": f"{name}/anat/{name}_label-lesion_mask.nii.gz",
        })  # fmt: skip
    rows.append(
        {"case": "sub-99", "target": "lesion", "status": "failed", "reason": "cut short", "input": "n/a", "output": "n/a"}
    )
    with open(folder / "predictions.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_worst_and_best_come_first(predictions: Path) -> None:
    key = str(predictions.resolve())
    scored = {(key, "sub-00"): 1.0, (key, "sub-01"): 0.75, (key, "sub-03"): 0.25}
    chosen = cases.choose([predictions], {}, scored, limit=4)
    assert [shown.row["case"] for shown in chosen] == ["sub-03", "sub-00", "sub-01", "sub-02"]
    assert len(cases.choose([predictions], {}, scored, limit=2)) == 2


def test_failed_cases_are_problems(predictions: Path) -> None:
    assert cases.problems(predictions) == [{"where": "predictions", "case": "sub-99", "reason": "failed: cut short"}]


def test_agreement_is_missed_extra_and_both() -> None:
    guess, truth = np.array([[[0, 1, 1, 2, 0]]]), np.array([[[1, 1, 0, 1, 0]]])
    np.testing.assert_array_equal(cases.agreement_map(guess, truth), [[[cases.MISSED, cases.BOTH, cases.EXTRA, cases.MISSED, 0]]])
    np.testing.assert_array_equal(cases.agreement_map(guess, None), [[[0, cases.EXTRA, cases.EXTRA, cases.EXTRA, 0]]])


def test_viewers_are_whole_pages_that_ask_no_network(predictions: Path, tmp_path: Path) -> None:
    uncertainty = np.zeros((30, 36, 20), np.float32)
    uncertainty[12, 12, 9] = 0.7
    nibabel.save(
        nibabel.Nifti1Image(uncertainty, np.diag([-2.0, 2.0, 3.0, 1.0])),
        predictions / "sub-01/anat/sub-01_label-lesion_entropy.nii.gz",
    )
    truth = str(tmp_path / "sub-01_truth.nii.gz")
    shown = next(s for s in cases.choose([predictions], {"sub-01": truth}, {}, 4) if s.row["case"] == "sub-01")
    out = tmp_path / "report"
    block = cases.show(shown, out, 1)
    assert block["src"].startswith("data:image/png;base64,")
    assert [viewer["title"] for viewer in block["viewers"]] == ["prediction and reference", "uncertainty (entropy)"]
    for viewer in block["viewers"]:
        page = (out / viewer["href"]).read_text()
        assert "brainsprite" in page
        assert "x-icon" not in page
        loaded = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)([^"']+)""", page)
        assert not [address for address in loaded if "//" in address]
        assert "sub-01" not in viewer["href"], "file names name nobody"


def test_a_case_whose_files_are_gone_is_said(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "sub-02_T1w.nii.gz").unlink()
    shown = next(s for s in cases.choose([predictions], {}, {}, 4) if s.row["case"] == "sub-02")
    block = cases.show(shown, tmp_path / "report", 1)
    assert block["src"] is None
    assert block["missing"]


def test_a_viewer_is_never_too_large() -> None:
    from neuroprior.core.volume import Volume

    large = Volume(np.zeros((10, 10, 10), np.float32), np.diag([25.0, 25.0, 25.0, 1.0]))
    assert cases.viewer_grid(large).shape == (10, 10, 10)
    fine = Volume(np.broadcast_to(np.float32(0), (400, 400, 300)), np.diag([0.5, 0.5, 0.6, 1.0]))
    assert np.prod(cases.viewer_grid(fine).shape) < 1.3 * cases.VIEWER_VOXELS
