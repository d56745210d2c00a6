"""Prediction as a stage: headers, resuming, bad cases among good ones, subsets, abstaining, maps."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest

from neuroprior.core import artifacts
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.errors import ConfigError
from neuroprior.inference import ensemble
from neuroprior.stages.predict import predict


def _made() -> ModuleType:
    path = Path(__file__).parent.parent / "inference" / "made.py"
    spec = importlib.util.spec_from_file_location("inference_made", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _made()
GEOMETRY = ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
            "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def orientations() -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The same head in all 48 orientations and at 50 random oblique angles: name, voxels, affine."""
    voxels = made.head((14, 16, 12))
    base = np.diag([6.0, 6.5, 7.0, 1.0])
    base[:3, 3] = (-40, -50, -30)
    image = nibabel.Nifti1Image(voxels, base)
    found = []
    for order in itertools.permutations(("RL", "AP", "SI")):
        for code in itertools.product(*order):
            ornt = nibabel.orientations.ornt_transform(nibabel.io_orientation(base), nibabel.orientations.axcodes2ornt(code))
            turned = image.as_reoriented(ornt)
            found.append(("".join(code), np.asarray(turned.dataobj), turned.affine))
    rng = np.random.default_rng(0)
    for number in range(50):
        q, r = np.linalg.qr(rng.standard_normal((3, 3)))
        turn = np.eye(4)
        turn[:3, :3] = q * np.sign(np.diag(r))
        found.append((f"oblique{number}", voxels, turn @ base))
    return found


def test_the_header_is_the_inputs_bit_for_bit_in_every_orientation(tmp_path: Path) -> None:
    """All 48 orientations and 50 obliques, with several pairs of codes; nibabel and SimpleITK read the mask on top of its input."""
    sitk = pytest.importorskip("SimpleITK")
    model = made.segmenter(tmp_path / "model", (1, 2), spec=ConformSpec(spacing_mm=6.0))
    paths = []
    for number, (name, voxels, affine) in enumerate(orientations()):
        path = tmp_path / "scans" / f"sub-{name}_T1w.nii{'.gz' if number % 2 else ''}"
        path.parent.mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_sform(affine, code=(1, 2, 4, 0)[number % 4])
        image.set_qform(affine, code=(1, 0, 1, 1)[number % 4])
        nibabel.save(image, path)
        paths.append(path)
    out = tmp_path / "out"
    summary = predict(model, [str(path) for path in paths], out, preset="fast")
    assert (summary.done, summary.failed) == (98, 0)
    for path, row in zip(paths, table(out), strict=True):
        assert row["input"] == str(path)
        scan: Any = nibabel.load(path)
        mask: Any = nibabel.load(out / row["output"])
        for field in GEOMETRY:
            np.testing.assert_array_equal(mask.header[field], scan.header[field], err_msg=f"{path.name} {field}")
        np.testing.assert_array_equal(mask.affine, scan.affine)
        assert mask.get_data_dtype() == np.uint8
        a, b = sitk.ReadImage(str(path)), sitk.ReadImage(str(out / row["output"]))
        assert a.GetSize() == b.GetSize()
        assert a.GetOrigin() == b.GetOrigin()
        assert a.GetSpacing() == b.GetSpacing()
        assert a.GetDirection() == b.GetDirection()
    masks = {
        name: nibabel.as_closest_canonical(nibabel.load(out / row["output"]))
        for (name, _, _), row in zip(orientations()[:48], table(out)[:48], strict=True)
    }
    first = np.asarray(masks["RAS"].dataobj)
    assert {1, 2} <= set(np.unique(first))
    for name, mask in masks.items():
        np.testing.assert_array_equal(np.asarray(mask.dataobj), first, err_msg=name)


def test_one_corrupt_of_a_hundred(tmp_path: Path) -> None:
    model = made.save(tmp_path / "model", {"name": "regression", "target": "age", "mean": 50.0, "std": 9.0, "window": [16, 16, 16]},
                      spec=ConformSpec(spacing_mm=8.0))  # fmt: skip
    paths = [made.write(tmp_path / f"sub-{n:03d}_T1w.nii.gz", made.head((12, 13, 11), seed=n)) for n in range(100)]
    paths[41].write_bytes(paths[41].read_bytes()[:700])
    summary = predict(model, [str(path) for path in paths], tmp_path / "out")
    assert (summary.done, summary.failed, summary.exit_code) == (99, 1, 3)
    rows = table(tmp_path / "out")
    assert [row["case"] for row in rows] == [path.name.split(".")[0] for path in paths]
    assert [n for n, row in enumerate(rows) if row["status"] != "ok"] == [41]
    assert len(rows[41]["reason"]) > 10
    assert rows[41]["value"] == "n/a"
    assert all(float(row["seconds"]) > 0 for row in rows if row["status"] == "ok")
    assert all(float(row["seconds"]) >= 0 and int(row["peak_memory_mb"]) > 50 for row in rows)


def test_killed_in_the_middle_the_rest_follows(tmp_path: Path) -> None:
    model = made.segmenter(tmp_path / "model", spec=ConformSpec(spacing_mm=3.0))
    for n in range(12):
        made.write(tmp_path / "scans" / f"sub-{n:02d}_T1w.nii.gz", made.head((30, 32, 28), seed=n))
    paths = [str(path) for path in sorted((tmp_path / "scans").iterdir())]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "neuroprior", "predict", str(model), *paths, "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    until = time.time() + 120
    while time.time() < until and process.poll() is None and not ((out / "predictions.tsv").is_file() and len(table(out)) >= 3):
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = {row["case"]: (out / row["output"]).stat().st_mtime_ns for row in table(out)}
    assert 3 <= len(before) < 12, "the process was to be killed in the middle"
    summary = predict(model, list(paths), out)
    assert (summary.kept, summary.done, summary.failed) == (len(before), 12 - len(before), 0)
    rows = table(out)
    assert len(rows) == 12
    for row in rows[: len(before)]:
        assert (out / row["output"]).stat().st_mtime_ns == before[row["case"]]
    assert not list(out.rglob(".*-????????*")), "no temporary file is left"
    fresh = tmp_path / "fresh"
    predict(model, list(paths), fresh)
    for row in rows:
        assert artifacts.sha256_file(out / row["output"]) == artifacts.sha256_file(fresh / row["output"])


def test_what_changed_is_predicted_again_and_nothing_else(tmp_path: Path) -> None:
    model = made.segmenter(tmp_path / "model")
    paths = [made.write(tmp_path / f"sub-{n}_T1w.nii.gz", made.head(seed=n)) for n in range(3)]
    given, out = [str(path) for path in paths], tmp_path / "out"
    predict(model, given, out)
    assert predict(model, given, out).kept == 3
    made.write(paths[1], made.head(seed=9))
    (out / table(out)[2]["output"]).write_bytes(b"cut short")
    summary = predict(model, given, out)
    assert (summary.kept, summary.done) == (1, 2)
    assert predict(model, given, out, overlap=0.25).kept == 0
    assert predict(model, given, out, overlap=0.25, skip_existing=False).done == 3
    assert predict(model, given, out, overlap=0.25, uncertainty=True).kept == 0, "the maps are not there yet"
    assert predict(model, given, out, overlap=0.25).kept == 3, "fewer maps than last time"
    made.segmenter(tmp_path / "other", target="tumour")
    with pytest.raises(ConfigError, match="another task"):
        predict(tmp_path / "other", given, out)


def test_maps_are_written_in_eight_bits_on_request(tmp_path: Path) -> None:
    members = [made.segmenter(tmp_path / f"m{seed}", (1, 2), seed=seed) for seed in range(2)]
    model = ensemble.write_ensemble(tmp_path / "ensemble", members)
    path = str(made.write(tmp_path / "sub-1_T1w.nii.gz", made.head()))
    options: dict[str, Any] = {"probabilities": True, "uncertainty": True}
    predict(model, [path], tmp_path / "float", **options)
    predict(model, [path], tmp_path / "bytes", quantise=True, **options)
    for kind in ("probseg", "entropy", "mutualinfo"):
        (a,), (b,) = ([*(tmp_path / name).rglob(f"*_{kind}.nii.gz")] for name in ("float", "bytes"))
        first, second = nibabel.load(a), nibabel.load(b)
        assert second.get_data_dtype() == np.uint8
        assert b.stat().st_size < a.stat().st_size / 3
        np.testing.assert_allclose(second.get_fdata(), first.get_fdata(), atol=0.5 / 255 + 1e-6)
    (row,) = table(tmp_path / "float")
    mask = np.asarray(nibabel.load(tmp_path / "float" / row["output"]).dataobj)
    assert float(row["volume_ml_1"]) == pytest.approx((mask == 1).sum() * 64 / 1000, rel=1e-5)
    assert int(row["value"]) == (mask > 0).sum()


def test_all_subsets_each_a_derivative(tmp_path: Path) -> None:
    contrasts = ("T1w", "T1ce", "T2w", "FLAIR")
    model = made.segmenter(tmp_path / "model", (1, 2, 3), contrasts=contrasts)
    given = [f"{name}={made.write(tmp_path / f'{name}.nii.gz', made.head(seed=n))}" for n, name in enumerate(contrasts)]
    out = tmp_path / "out"
    summary = predict(model, given, out, preset="fast", subsets=True)
    assert summary.failed == 0
    assert len(summary.subsets) == 15
    assert set(summary.subsets) == {path.name for path in (out / "subsets").iterdir()}
    whole, masks = table(out)[0], set()
    for name in summary.subsets:
        folder = out / "subsets" / name
        (row,) = table(folder)
        assert row["contrasts"].split(",") == sorted(name.split("+"))
        assert set(row["missing"].replace("n/a", "").split(",")) - {""} == set(contrasts) - set(name.split("+"))
        assert (folder / "dataset_description.json").is_file()
        masks.add(artifacts.sha256_file(folder / row["output"]))
    assert artifacts.sha256_file(out / "subsets" / "T1w+T1ce+T2w+FLAIR" / whole["output"]) == artifacts.sha256_file(
        out / whole["output"]
    )
    assert len(masks) > 10, "subsets answer differently"
    permuted = predict(model, given[::-1], tmp_path / "permuted", preset="fast")
    assert permuted.done == 1
    assert table(tmp_path / "permuted")[0]["output_sha256"] == whole["output_sha256"]


def test_an_answer_that_is_not_sure_enough_is_left_out(tmp_path: Path) -> None:
    calibration = {"n": 9, "temperature": 1.0, "level": 0.9, "quantiles": {}, "abstain_below": 1.0}
    task = {"name": "classification", "target": "sex", "classes": ["F", "M"], "positive": "M"}
    model = made.save(tmp_path / "model", task, calibration=calibration)
    path = str(made.write(tmp_path / "sub-1_T1w.nii.gz", made.head()))
    summary = predict(model, [path], tmp_path / "told")
    assert (summary.done, summary.abstained) == (1, 0)
    assert table(tmp_path / "told")[0]["flags"] == "low_confidence"
    summary = predict(model, [path], tmp_path / "quiet", abstain=True)
    assert (summary.abstained, summary.exit_code) == (1, 0)
    (row,) = table(tmp_path / "quiet")
    assert (row["status"], row["value"], row["p_F"]) == ("abstained", "n/a", "n/a")
    assert float(row["confidence"]) < 1
    assert predict(model, [path], tmp_path / "quiet", abstain=True).kept == 1
    plain = made.save(tmp_path / "plain", task)
    with pytest.raises(ConfigError, match="has not learned when to abstain"):
        predict(plain, [path], tmp_path / "x", abstain=True)


def test_a_contrast_the_model_never_saw_is_told_in_the_row(tmp_path: Path) -> None:
    model = made.segmenter(tmp_path / "model", contrasts=("T1w", "T2w"))
    path = made.write(tmp_path / "sub-1_PDw.nii.gz", made.head())
    assert predict(model, [str(path)], tmp_path / "a").failed == 1
    assert "--as" not in table(tmp_path / "a")[0]["reason"]
    predict(model, [str(path)], tmp_path / "b", as_="T2w")
    (row,) = table(tmp_path / "b")
    assert (row["status"], row["contrasts"], row["missing"]) == ("ok", "T2w", "T1w")
    assert "PDw is taken as T2w" in row["reason"]


def test_another_artefacts_folder_and_a_file_are_left_alone(tmp_path: Path) -> None:
    model = made.segmenter(tmp_path / "model")
    scan = made.write(tmp_path / "sub-1_T1w.nii.gz", made.head((14, 16, 12)))
    (tmp_path / "store").mkdir()
    (tmp_path / "store/store.json").write_text("{}")
    for out, said in (
        (tmp_path / "store", "(?s)something else.*got: store"),
        (model, "(?s)something else.*got: model"),
        (scan, "--out is a file"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConfigError, match=said):
            predict(model, [str(scan)], out=out)
        assert sorted(tmp_path.rglob("*")) == before
