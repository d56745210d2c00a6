"""Models at an address: brought once, checked, and used from the copy."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import fsspec
import pytest
import torch

from neuroprior.core import places
from neuroprior.core.errors import ArtifactError, InputError, MissingDependency
from neuroprior.inference import elsewhere
from neuroprior.inference import model as models
from neuroprior.inference.ensemble import write_ensemble
from neuroprior.stages.finetune import finetune


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROPRIOR_CACHE", str(tmp_path / "cache"))
    places._folder_of.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def there(pretrained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "there" / "openmind"))


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that come."""
    names: list[str] = []
    real = places.Folder.get

    def get(self: Any, name: str, *args: Any) -> bool:
        names.append(name)
        return real(self, name, *args)

    monkeypatch.setattr(places.Folder, "get", get)
    return names


def test_it_is_the_model_and_comes_once(there: Path, cache: Path, pretrained: Path, brought: list[str]) -> None:
    here, other = models.load(pretrained), models.load(f"file://{there}")
    assert other.info == here.info
    assert other.folder.is_relative_to(cache)
    for name, value in here.net.state_dict().items():
        torch.testing.assert_close(other.net.state_dict()[name], value, rtol=0, atol=0)
    assert sorted(brought) == ["README.md", "model.safetensors"]
    models.load(f"file://{there}/")
    assert len(brought) == 2, "a slash at the end is the same address, and nothing comes twice"


def test_new_weights_there_are_new_weights_here(there: Path, brought: list[str]) -> None:
    url = f"file://{there}"
    first = models.load(url)
    net = models.build_net(first.info["net"]["name"], first.info["net"]["config"])
    torch.nn.init.constant_(next(net.parameters()), 0.25)
    models.save(
        there, net=net, net_name=first.info["net"]["name"], net_config=first.info["net"]["config"], spec=first.spec, contrasts=first.contrasts,
        kind="pretrained", method={}, data={},
    )  # fmt: skip
    assert (next(models.load(url).net.parameters()) == 0.25).all()
    assert brought.count("model.safetensors") == 2


def test_a_hubs_repository_without_a_card(there: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("model.json", "model.safetensors"):
        memory.pipe_file(f"/hub/org/name/{name}", (there / name).read_bytes())
    assert models.load("memory://hub/org/name").contrasts == ("T1w", "T2w", "FLAIR")
    memory.rm("/hub", recursive=True)


def test_where_the_other_side_is_away_the_copy_serves_and_that_is_told(
    there: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{there}"
    models.load(url)

    def away(*args: Any, **kw: Any) -> bytes:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(places.folder_at(url).files), "cat_file", away)
    with caplog.at_level(logging.WARNING):
        assert models.load(url).info["kind"] == "pretrained"
    assert "no route to host" in caplog.text and "the copy in" in caplog.text
    with pytest.raises(ArtifactError, match="does not answer"):
        models.load(f"{url}-another")


def test_weights_that_do_not_arrive_as_described_are_not_kept(there: Path, cache: Path) -> None:
    weights = there / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"(?s)not the ones that model\.json describes.*file://"):
        models.load(f"file://{there}")
    assert not list(cache.rglob("*.safetensors")) and not list(cache.rglob("model.json"))
    weights.write_bytes(sound)
    models.load(f"file://{there}")


def test_a_run_and_an_ensemble(store_path: Path, pretrained: Path, tmp_path: Path) -> None:
    small = ["training.batch=2", "data.patch=16"]
    for seed in (0, 1):
        finetune(
            store_path, from_=str(pretrained), task="regression", target="age", out=tmp_path / f"runs/{seed}", steps=2, seed=seed, set=small
        )  # fmt: skip
    write_ensemble(tmp_path / "both", [tmp_path / "runs/0", tmp_path / "runs/1"])
    assert models.load(f"file://{tmp_path}/runs/0").info == models.read_info(tmp_path / "runs/0")
    both = models.load(f"file://{tmp_path}/both")
    assert [one.info["method"]["seed"] for one in both.each] == [0, 1]
    description = json.loads((tmp_path / "both/ensemble.json").read_text())
    description["members"][0]["folder"] = "../runs/0"
    (tmp_path / "both/ensemble.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match="outside of it"):
        models.load(f"file://{tmp_path}/both")


def test_mistakes_are_errors(there: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"(?s)no model at this address.*model/model\.json"):
        models.load(f"file://{tmp_path}/nowhere")
    with pytest.raises(InputError, match="cannot be opened"):
        models.load("nobody://knows/this")
    (there / "model.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        models.load(f"file://{there}")


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match="pip install huggingface_hub"):
        elsewhere.at_hand("hf://org/name")


def test_the_commands_take_one(
    there: Path, store_path: Path, index_file: Path, heads: Path, tmp_path: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    url, small = f"file://{there}", ["--set", "data.patch=16", "--set", "training.batch=2"]
    scan = next(heads.rglob("*T1w.nii.gz"))
    calls: list[list[Any]] = [
        ["finetune", store_path, "--from", url, "--task", "regression", "--target", "age", "--steps", 2, *small, "--out", tmp_path / "age"],
        ["predict", f"file://{tmp_path}/age", scan, "--out", tmp_path / "predictions"],
        ["embed", url, scan, "--out", tmp_path / "vectors"],
        ["pretrain", store_path, "--from", url, "--set", "training.steps=1", *small, "--out", tmp_path / "more"],
        ["audit", index_file, "--model", url, "--voxels", 0, "--no-duplicates", "--out", tmp_path / "audit.parquet"],
    ]  # fmt: skip
    for call in calls:
        done = run_cli(*call)
        assert done.returncode in (0, 3), done.stderr
    info = models.read_info(tmp_path / "age")
    assert info["lineage"][0]["weights_sha256"] == models.read_info(there)["weights_sha256"]
    done = run_cli(
        "evaluate", tmp_path / "predictions", "--reference", index_file, "--model", url, "--out", tmp_path / "scores.parquet"
    )
    assert done.returncode == 2 and "must be a path of this machine" in done.stderr
