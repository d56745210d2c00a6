"""What a GPU would refuse, found without one: pretraining on a stand-in whose tensors say that they are on it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

import neuroprior
from neuroprior.engine import events
from neuroprior.stages.pretrain import pretrain

if shutil.which("g++") is None or importlib.util.find_spec("triton") is None:
    pytest.skip("the stand-in for a GPU needs a C++ compiler and triton", allow_module_level=True)
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("standin_gpu", HERE / "gpu.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(tmp_path_factory.mktemp("standin"))


def recipe(folder: Path, split: str, **parts: Any) -> Path:
    values: dict[str, Any] = {
        "net": {"name": "unet", "features": [4, 8], "convolutions": 1, "latent": 4, "split": split},
        "data": {"patch": 16, "flip": 0.5},
        "training": {
            "steps": 3, "batch": 2, "optimizer": {"name": "adamw", "lr": 1e-3}, "schedule": {"name": "cosine", "warmup_steps": 1},
            "log_every": 1, "validate_every": 3, "panels_every": 3, "precision": "32", "health": {"every": 3}, "checkpoint_steps": 1,
        },
    }  # fmt: skip
    for part, own in parts.items():
        values[part] = values.get(part, {}) | own
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def program(name: str, *arguments: object) -> None:
    """Runs one of the files beside this one."""
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def on_gpu(library: Path, store: Path, path: Path, out: Path, *settings: str, kernels: bool = False) -> dict[str, Any]:
    """What run.py tells."""
    program("run.py", library, int(kernels), store, path, out, *settings)
    told = json.loads((out / "told.json").read_text())
    assert told["device"] == "stand-in"
    return told


def losses(run: Path) -> list[float]:
    """Of the steps and of the validation."""
    return [event["loss"] for event in events.read(run / "events.jsonl") if event["event"] in ("step", "validation")]


CASES = {
    "the paper's": ("variational", {"name": "cross_contrast", "block": 4}, {"accumulate": 2, "batch": 1}),
    "contrastive": ("variational", {"name": "cross_contrast", "block": 4, "agreement_form": "dense_infonce"}, {"recompute": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_that_of_the_cpu_and_no_step_waits(library: Path, store_path: Path, tmp_path: Path, case: str) -> None:
    split, objective, training = CASES[case]
    path = recipe(tmp_path, split, objective=objective, training=training)
    told = on_gpu(library, store_path, path, tmp_path / "gpu")
    pretrain(store_path, recipe=str(path), out=tmp_path / "cpu", set=["training.accelerator=cpu"])
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-5)
    assert told["waits"] == {}
    assert (tmp_path / "gpu" / "panels" / "step-000003.png").exists()


def test_with_the_fused_norm_it_is_the_same(library: Path, store_path: Path, tmp_path: Path) -> None:
    path = recipe(
        tmp_path, "channels", objective={"name": "mae", "block": 4}, data={"patch": 8}, training={"steps": 2, "batch": 1}
    )
    told = on_gpu(library, store_path, path, tmp_path / "gpu", kernels=True)
    pretrain(store_path, recipe=str(path), out=tmp_path / "cpu", set=["training.accelerator=cpu"])
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-5)
    assert told["waits"] == {}


def test_bfloat16_is_near_and_a_stopped_run_goes_on(library: Path, store_path: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, "channels", objective={"name": "anatomy_split", "block": 4, "anatomy": 0.0})
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "STOP").touch()
    on_gpu(library, store_path, path, tmp_path / "gpu", "training.precision=auto")
    assert not (tmp_path / "gpu" / "complete.json").exists()
    told = on_gpu(library, store_path, path, tmp_path / "gpu", "training.precision=auto")
    assert told["waits"] == {}
    assert (tmp_path / "gpu" / "complete.json").exists()
    pretrain(store_path, recipe=str(path), out=tmp_path / "cpu", set=["training.accelerator=cpu"])
    rounded, exact = losses(tmp_path / "gpu"), losses(tmp_path / "cpu")
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != pytest.approx(exact, rel=1e-6)


def test_fine_tuning_and_prediction_are_those_of_the_cpu(
    library: Path, store_path: Path, pretrained: Path, index_file: Path, tmp_path: Path
) -> None:
    same = ["training.batch=2", "training.log_every=1", "training.precision=32", "data.patch=16"]
    program("use.py", library, store_path, pretrained, index_file, tmp_path, *same)
    neuroprior.finetune(
        store_path,
        from_=str(pretrained),
        task="segmentation",
        target="lesion",
        out=tmp_path / "cpu",
        steps=3,
        set=[*same, "training.accelerator=cpu"],
    )
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-5)
    for preset, atol in (("accurate", 1e-4), ("balanced", 0.1)):  # float32; bfloat16 there and float32 here
        neuroprior.predict(
            tmp_path / "run", [str(index_file)], out=tmp_path / "here" / preset, split="test", preset=preset, overlap=0.0, probabilities=True, device="cpu"
        )  # fmt: skip
        names = [path.relative_to(tmp_path / "here") for path in (tmp_path / "here" / preset).rglob("*probseg.nii.gz")]
        assert len(names) == 2
        for name in names:
            here, there = (np.asarray(nibabel.load(folder / name).dataobj) for folder in (tmp_path / "here", tmp_path))
            np.testing.assert_allclose(there, here, atol=atol)
            assert preset == "accurate" or np.abs(there - here).max() > 1e-4


def test_what_a_gpu_refuses_is_refused(library: Path) -> None:
    tried = """
import sys
sys.path.insert(0, sys.argv[2])
import gpu
gpu.install(sys.argv[1])
import torch
on = torch.ones(2, 3, device="cuda")
refused = [
    lambda: on + torch.ones(2, 3),
    lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
    lambda: torch.rand(2, generator=torch.Generator("cuda")),
    lambda: torch.ones(2, 3)[on.bool()],
    lambda: on.numpy(),
]
for number, attempt in enumerate(refused):
    try:
        attempt()
    except (RuntimeError, TypeError):
        continue
    raise SystemExit(f"number {number} went through")
gpu.counting[0] = True
waiting = [lambda: float(on.sum()), lambda: on.cpu(), lambda: torch.ones(2).to("cuda"), lambda: on[on > 0], lambda: on.nonzero(), lambda: on.tolist()]
for number, attempt in enumerate(waiting):
    gpu.waits.clear()
    attempt()
    if not gpu.waits:
        raise SystemExit(f"number {number} was not seen to wait")
gpu.waits.clear()
assert torch.equal((on * 2 + torch.tensor(1.0)).cpu(), torch.full((2, 3), 3.0))
torch.ones(2).to("cuda", non_blocking=True)
assert list(gpu.waits) == ["copy to the CPU: elsewhere"]
"""
    command = [sys.executable, "-c", tried, str(library), str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
