"""Three lines of Python: paths, images and arrays give the same; nothing else is imported, opened or needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import neuroprior
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.inference import model as models
from neuroprior.nets import unet

from . import made

AFFINE = np.array([[-4.0, 0, 0, 70], [0, 0, 4.2, -20], [0, 3.9, 0, -40], [0, 0, 0, 1]])


def scan(folder: Path, name: str = "sub-1_T1w.nii.gz", seed: int = 0) -> Path:
    return made.write(folder / name, made.head(seed=seed), AFFINE)


def test_a_path_an_image_and_an_array_give_the_same(tmp_path: Path) -> None:
    model = neuroprior.load(made.segmenter(tmp_path / "model", (1, 2)))
    path = scan(tmp_path)
    image = nibabel.Nifti1Image.from_filename(path)
    by_path = model.predict(path, probabilities=True, uncertainty=True)
    by_image = model.predict(image, contrast="T1w", probabilities=True)
    by_array = model.predict(np.asarray(image.dataobj), affine=image.affine, contrast="T1", probabilities=True)
    by_name = model.predict({"T1w": str(path)}, probabilities=True)
    for other in (by_image, by_array, by_name):
        np.testing.assert_array_equal(np.asarray(other.mask.dataobj), np.asarray(by_path.mask.dataobj))
        np.testing.assert_array_equal(np.asarray(other.probabilities.dataobj), np.asarray(by_path.probabilities.dataobj))
        np.testing.assert_array_equal(other.mask.affine, image.affine)
    assert by_image.mask.header["sform_code"] == image.header["sform_code"]
    assert by_path.uncertainty.shape == image.shape
    assert by_path.reference == "T1w"
    assert by_path.missing == ("T2w", "FLAIR")
    assert set(by_path.volumes_ml) == {1, 2}
    nibabel.save(by_path.mask, tmp_path / "mask.nii.gz")
    again = nibabel.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(by_path.mask.dataobj))


def test_several_contrasts_in_any_order_and_one_of_several(tmp_path: Path) -> None:
    model = neuroprior.load(made.segmenter(tmp_path / "model", contrasts=("T1w", "T2starw")))
    a, b = scan(tmp_path), scan(tmp_path, "b.nii.gz", seed=1)
    first = model.predict({"T1w": a, "SWI_OR_T2STAR": b})
    second = model.predict({"T2*": b, "T1": a})
    assert first.missing == ()
    np.testing.assert_array_equal(np.asarray(first.mask.dataobj), np.asarray(second.mask.dataobj))
    with pytest.raises(InputError, match="two scans are given for T1w"):
        model.predict({"T1w": a, "MPRAGE": b})


def test_numbers_and_classes(tmp_path: Path) -> None:
    path = scan(tmp_path)
    task = {"name": "classification", "target": "sex", "classes": ["F", "M"], "positive": "M"}
    sure = neuroprior.load(made.save(tmp_path / "c", task)).predict(path)
    assert sum(sure.classes.values()) == pytest.approx(1)
    assert sure.value in ("F", "M")
    assert sure.mask is None
    calibration = {"n": 9, "temperature": 1.0, "level": 0.9, "quantiles": {"value": 3.0}, "abstain_below": None}
    task = {"name": "regression", "target": "age", "mean": 40.0, "std": 9.0}
    number = neuroprior.load(made.save(tmp_path / "r", task, calibration=calibration)).predict(path)
    assert isinstance(number.value, float)
    assert number.interval == (number.value - 3, number.value + 3)


def test_features_of_any_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = unet.build(unet.Config(features=(4, 8), latent=4))
    models.save(
        tmp_path / "m", net=net, net_name="unet", net_config=net.config.model_dump(mode="json"), spec=ConformSpec(spacing_mm=4.0),
        contrasts=("T1w", "T2w"), kind="pretrained", method={}, data={},
    )  # fmt: skip
    model = neuroprior.load(tmp_path / "m")
    path = scan(tmp_path)
    features = model.encode_scans({"T1w": path, "T2w": scan(tmp_path, "t2.nii.gz", 1)})
    assert features.anatomy.shape[0] == 4
    assert set(features.contrasts) == {"T1w", "T2w"}
    assert features.vector().shape == (8,)
    assert features.vector().dtype == np.float32
    with pytest.raises(ConfigError, match="fine-tune it first"):
        model.predict(path)


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    model = neuroprior.load(made.segmenter(tmp_path / "model"))
    voxels = made.head()
    with pytest.raises(InputError, match="needs its place in the world"):
        model.predict(voxels, contrast="T1w")
    with pytest.raises(InputError, match="contrast of this scan is not known"):
        model.predict(voxels, affine=AFFINE)
    with pytest.raises(InputError, match="three axes"):
        model.predict(np.stack([voxels] * 2, -1), affine=AFFINE, contrast="T1w")
    with pytest.raises(InputError, match="this is no scan"):
        model.predict(3, contrast="T1w")
    with pytest.raises(InputError, match="contrast that the model knows"):
        model.predict(voxels, affine=AFFINE, contrast="ADC")
    with pytest.raises(ConfigError, match="unknown key 'overlp'"):
        model.predict(voxels, affine=AFFINE, contrast="T1w", overlp=0.1)


PROGRAM = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise RuntimeError("a socket was opened")

import neuroprior
import torch  # its own imports may look at sockets; ours may not
socket.socket = refuse
socket.create_connection = refuse
model = neuroprior.load(sys.argv[1])
print(int((model.predict(sys.argv[2]).mask.get_fdata() > 0).sum()))
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_nothing_of_training_is_imported_no_socket_opened_and_no_variable_needed(tmp_path: Path) -> None:
    folder, path = made.segmenter(tmp_path / "model"), scan(tmp_path)
    root = str(Path(neuroprior.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(path)], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": root, "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stderr.strip().splitlines()[-1])
    training = ("data", "tasks", "objectives", "engine", "stages", "assessments", "readers", "metrics")
    loaded = [name for name in modules if name.startswith("neuroprior.")]
    assert not [name for name in loaded if name.split(".")[1] in training], loaded
    assert not {"lightning", "monai", "pandas", "sklearn", "torchmetrics"} & set(modules)
    assert int(done.stdout) > 0


def _voxels(folder: str, path: str) -> int:
    torch.set_num_threads(1)
    return int((neuroprior.load(folder).predict(path).mask.get_fdata() > 0).sum())


def test_it_works_in_a_spawned_process(tmp_path: Path) -> None:
    folder, path = made.segmenter(tmp_path / "model"), scan(tmp_path)
    code = (
        "import multiprocessing, neuroprior, sys\n"
        "def work(args):\n"
        "    return int((neuroprior.load(args[0]).predict(args[1]).mask.get_fdata() > 0).sum())\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(work, [sys.argv[1:3]])[0])\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script), str(folder), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == _voxels(str(folder), str(path))
