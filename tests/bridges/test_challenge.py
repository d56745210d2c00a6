"""Exported folders: they keep the contract of every FOMO26 task, and hold what they need and nothing else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroprior.bridges import _check, _made_up, _travelling, challenge
from neuroprior.bridges._contract import main
from neuroprior.core import nifti
from neuroprior.core.errors import ArtifactError, ConfigError, InputError
from neuroprior.inference.embedding import embed_case
from neuroprior.inference.ensemble import write_ensemble
from neuroprior.inference.model import load, read_info
from neuroprior.inference.predictor import predict_case
from neuroprior.inference.presets import preset
from neuroprior.inference.reading import CaseInput
from neuroprior.protocols import read
from neuroprior.stages.export import export

from .made import MODELS, make_model

Run = Callable[..., subprocess.CompletedProcess[str]]


def model_for(folder: Path, number: int, **changes: Any) -> Path:
    settings = {**MODELS[number], **changes}
    return make_model(folder, settings.pop("kind"), settings.pop("contrasts"), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("number", MODELS)
def test_every_fomo26_task_is_exported_and_keeps_its_contract(number: int, tmp_path: Path) -> None:
    model, out = model_for(tmp_path / "model", number), tmp_path / "out"
    done = export("challenge", model, protocol="fomo26", task=str(number), out=out)
    assert "next: neuroprior export check" in str(done)
    assert done.megabytes is not None
    assert done.megabytes < 1000
    checked = export("check", out, full_size=False)
    assert checked.failed == 0, str(checked)
    assert checked.exit_code == 0
    stored = json.loads((out / "check.json").read_text())
    assert stored["failed"] == 0
    assert {row["check"] for row in stored["findings"]} >= {
        "entry point",
        "size",
        "time",
        "memory",
        "network",
        "no training code",
        "requirements",
    }

    assert (out / "predict").stat().st_mode & stat.S_IXUSR
    parts = {path.relative_to(out / "app" / "neuroprior").parts[0] for path in (out / "app").rglob("*.py")}
    assert not parts & set(_travelling.TRAINING)
    needed = {line.split("==")[0] for line in (out / "requirements.txt").read_text().split()}
    assert needed >= {"torch", "numpy", "scipy", "nibabel", "safetensors", "pydantic"}
    assert not needed & {"lightning", "pandas", "scikit-learn", "blosc2", "matplotlib"}
    assert "CC0" in (out / "README.md").read_text()
    assert "Apache License" in (out / "LICENSE").read_text()
    assert f"weights {read_info(model)['weights_sha256']}" in (out / "Apptainer.def").read_text()
    _same_answer(out, model, number, tmp_path)


@pytest.mark.slow
def test_an_ensemble_is_exported_whole(tmp_path: Path) -> None:
    folder = write_ensemble(
        tmp_path / "ensemble", [model_for(tmp_path / f"m{k}", 2, contrasts=["FLAIR", "DWI", "SWI", "T2starw"]) for k in range(2)]
    )
    out = tmp_path / "out"
    assert export("challenge", folder, protocol="fomo26", task="meningioma", out=out).notes == ()
    assert len(list((out / "model").rglob("model.safetensors"))) == 2
    checked = export("check", out, full_size=False)
    assert checked.failed == 0, str(checked)


def _same_answer(out: Path, model: Path, number: int, tmp_path: Path) -> None:
    """The exported code, in a process that cannot see the package, answers as the package does."""
    task = json.loads((out / "task.json").read_text())
    given = _check.scans_of(task, _check.Scenario("x", "odd"), tmp_path / "in")
    answer = tmp_path / "answer" / f"it{_check.ENDINGS[task['output']]}"
    answer.parent.mkdir()
    words = [str(word) for pair in given.items() for word in pair]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, out / "predict", *words, "--output", answer], env=environment, check=True, capture_output=True
    )
    loaded = load(model)
    names = {flag: name for entry in task["inputs"] for flag, name in zip(entry["flags"], entry["contrasts"], strict=True)}
    case = CaseInput("x", "", "x", "", {names[flag]: path for flag, path in given.items()})
    if task["kind"] == "embedding":
        np.testing.assert_allclose(np.load(answer), embed_case(loaded, case), rtol=1e-5, atol=1e-6)
        return
    reference = next(name for name in case.scans if name in loaded.contrasts)
    expected = predict_case(loaded, case, preset(task["preset"], loaded.net), reference=reference)
    if task["kind"] == "segmentation":
        mask, _ = nifti.read_labels(answer)
        assert expected.mask is not None
        assert np.mean(mask.voxels == expected.mask) > 0.999
        assert set(np.unique(mask.voxels)) <= set(task["labels"])
        np.testing.assert_array_equal(mask.affine, nifti.read_scan(next(iter(given.values())))[0].affine)
    else:
        wanted = expected.classes["yes"] if task["kind"] == "classification" else expected.value
        assert float(answer.read_text()) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (1, {"kind": None}, "a pretrained model with no head"),
        (1, {"kind": "regression"}, "got: regression of age"),
        (1, {"contrasts": ["FLAIR", "DWI"]}, "leave them out with --partial"),
        (1, {"contrasts": ["T1w"]}, "expected: FLAIR, DWI, ADC, T2starw or SWI"),
        (1, {"classes": ("a", "b", "c")}, "a model with two classes"),
        (2, {"labels": (1, 2)}, r"expected: values among \[0, 1\]"),
        (4, {"labels": (1, 3)}, r"values among \[0, 1, 2\]"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(number: int, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = model_for(tmp_path / "model", number, **changes)
    with pytest.raises(ConfigError, match=message):
        export("challenge", model, protocol="fomo26", task=str(number), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_fits_in_part_is_told(tmp_path: Path) -> None:
    info = read_info(model_for(tmp_path / "model", 1, contrasts=["FLAIR", "DWI", "SWI"]))
    protocol = read("fomo26")
    notes = challenge.fit(info, protocol, protocol.task(1), partial=True)
    assert any("T2starw" in note for note in notes)
    assert "left out, unknown to the model: ADC" in notes
    assert challenge.fit(info, protocol, protocol.task(6)) == ["the encoder of a fine-tuned model embeds; its head is not used"]


def test_options_and_folders_that_do_not_fit_are_told(tmp_path: Path) -> None:
    model = model_for(tmp_path / "model", 6)
    with pytest.raises(ConfigError, match="--task, --out"):
        export("challenge", model, protocol="fomo26")
    with pytest.raises(ConfigError, match="takes no containers"):
        export("challenge", model, protocol="ssl3d", task="1", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="takes only the exported folder"):
        export("check", tmp_path, task="1")
    with pytest.raises(ArtifactError, match="no exported challenge folder"):
        export("check", model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        export("challenge", model, protocol="fomo26", task="6", out=tmp_path / "full")


def test_the_size_counts_packages_but_not_torch(tmp_path: Path) -> None:
    lines = ["torch==2.13.0", "nibabel==5.4.2", "scipy==1.0"]
    sizes = _travelling.package_bytes(lines)
    assert {"nibabel", "scipy", "numpy"} <= sizes.keys()
    assert not {"torch", "sympy", "networkx"} & sizes.keys()
    (tmp_path / "weights").write_bytes(b"0" * 1000)
    total = challenge.require_small(tmp_path, lines)
    assert total == 1000 + sum(sizes.values())
    with pytest.raises(InputError, match="too large"):
        challenge.require_small(tmp_path, lines, limit=total - 1)


def test_what_travels_is_what_inference_imports_and_no_training_code() -> None:
    found = _travelling.closure(["neuroprior.bridges._contract", "neuroprior.nets.unet"])
    assert {
        "neuroprior",
        "neuroprior.core.nifti",
        "neuroprior.inference.predictor",
        "neuroprior.inference.embedding",
    } <= found.keys()
    assert not {name.split(".")[1] for name in found if "." in name} & set(_travelling.TRAINING)
    assert "neuroprior.bridges.challenge" not in found
    assert "neuroprior.nets.vit" not in found


def test_the_entry_point_says_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    protocol = read("fomo26")
    task = challenge.contract(protocol, protocol.task(1), {"weights_sha256": "0", "task": {"positive": "yes"}})
    (tmp_path / "task.json").write_text(json.dumps(task))
    with pytest.raises(SystemExit):
        main(tmp_path, ["--flair", "x.nii", "--output", "y.txt"])  # --dwi and --adc are required
    words = ["--flair", "x.nii", "--dwi", "x.nii", "--adc", "x.nii", "--output", str(tmp_path / "y.txt")]
    assert main(tmp_path, words) == 1
    assert "there is no such scan" in caplog.text
    assert not (tmp_path / "y.txt").exists()


def test_a_mask_lies_on_the_first_scan_even_if_the_model_does_not_know_it(tmp_path: Path) -> None:
    model_for(tmp_path / "model", 2, contrasts=["DWI"])
    protocol = read("fomo26")
    task = challenge.contract(protocol, protocol.task(2), {"weights_sha256": "0"})
    (tmp_path / "task.json").write_text(json.dumps(task))
    flair, dwi, out = tmp_path / "flair.nii.gz", tmp_path / "dwi.nii.gz", tmp_path / "mask.nii.gz"
    nifti.write(flair, _made_up.made_up_head("odd", "FLAIR"))
    nifti.write(dwi, _made_up.made_up_head("plain", "DWI"))
    assert main(tmp_path, ["--flair", str(flair), "--dwi", str(dwi), "--output", str(out)]) == 0
    assert all(problem is None for _, problem in _check.look_at_mask(out, flair, [0, 1]))
    case = CaseInput("x", "", "x", "", {"DWI": dwi})
    there = predict_case(load(tmp_path / "model"), case).mask
    assert there is not None
    assert 0 < np.count_nonzero(there) < there.size
    ml = [float(np.prod(_made_up.GRIDS[grid][1])) / 1000 for grid in ("plain", "odd")]
    here = nifti.read_labels(out)[0].voxels
    assert np.count_nonzero(here) * ml[1] == pytest.approx(np.count_nonzero(there) * ml[0], rel=0.1)
    assert main(tmp_path, ["--flair", str(flair), "--dwi", str(tmp_path / "model" / "model.json"), "--output", str(out)]) == 1


def test_a_failed_check_is_a_table_and_an_exit_status(tmp_path: Path, run_cli: Run) -> None:
    from .test_check import BROKEN, folder_of

    folder = folder_of(tmp_path / "broken", *BROKEN["probability 1.2"][:2])
    done = run_cli("export", "check", folder, "--no-full-size")
    assert done.returncode == 3
    assert "failed   oblique, .nii, the other contrast" in done.stdout
    assert "a probability in [0, 1] is expected, found 1.2" in done.stdout
    assert "checks FAILED" in done.stdout
    wrong = run_cli("export", "challenge", tmp_path / "nowhere", "--protocol", "fomo62", "--task", "1", "--out", tmp_path / "out")
    assert wrong.returncode == 2
    assert "did you mean 'fomo26'" in wrong.stderr
