"""Pretraining that goes on from a model, on synthetic heads."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml

from neuroprior.core import artifacts
from neuroprior.core.errors import ConfigError, NeuropriorError
from neuroprior.data.store import Store
from neuroprior.engine import events
from neuroprior.inference import lineage
from neuroprior.inference import model as models
from neuroprior.nets import _split, unet
from neuroprior.stages.finetune import finetune
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare
from neuroprior.stages.pretrain import pretrain
from neuroprior.stages.synthesise import synthesise


def write(folder: Path, objective: dict[str, Any] | None = None, **training: Any) -> str:
    """A recipe with another net than the pretrained model's."""
    recipe = {
        "net": {"name": "unet", "features": [2, 4], "convolutions": 1, "latent": 2},
        "objective": objective or {"name": "cross_contrast", "block": 4},
        "data": {"patch": 16},
        "training": {"steps": 4, "batch": 2, "optimizer": {"name": "adamw", "lr": 1e-3}, "checkpoint_steps": 2} | training,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.fixture(scope="session")
def continued(store_path: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continued")
    pretrain(store_path, recipe=write(folder), from_=str(pretrained), out=folder / "run")
    return folder / "run"


def test_it_is_the_models_net_and_begins_with_its_weights(store_path: Path, pretrained: Path, tmp_path: Path) -> None:
    still = {"steps": 1, "optimizer": {"name": "sgd", "lr": 1e-12, "weight_decay": 0.0}}
    pretrain(store_path, recipe=write(tmp_path, **still), from_=str(pretrained), out=tmp_path / "run")
    before, after = models.load(pretrained), models.load(tmp_path / "run")
    assert after.info["net"] == before.info["net"]
    for name, value in before.net.state_dict().items():
        torch.testing.assert_close(after.net.state_dict()[name], value, rtol=0, atol=1e-9)


def test_it_learns_and_says_where_it_comes_from(continued: Path, pretrained: Path) -> None:
    before, after = models.load(pretrained), models.load(continued)
    assert any((after.net.state_dict()[n] != v).any() for n, v in before.net.state_dict().items())
    assert after.info["method"]["initialised_from"] == "pretrained"
    assert [step["weights_sha256"] for step in after.info["lineage"]] == [before.info["weights_sha256"]]
    assert yaml.safe_load((continued / "recipe.yaml").read_text())["from"] == before.info["weights_sha256"]
    assert after.contrasts == before.contrasts


def test_licences_contrasts_and_subjects_of_both_are_kept(store_path: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = unet.build(unet.Config(features=(4, 8), latent=4))
    data = {"licences": ["CC-BY-NC-4.0"], "subject_hashes": ["0123456789ab"], "subjects": 1}
    store = Store.open(store_path)
    models.save(
        tmp_path / "first", net=net, net_name="unet", net_config=net.config.model_dump(mode="json"), spec=store.spec,
        contrasts=["ADC", "T1w"], kind="pretrained", method={}, data=data,
    )  # fmt: skip
    pretrain(store_path, recipe=write(tmp_path, steps=1), from_=str(tmp_path / "first"), out=tmp_path / "run")
    info = models.read_info(tmp_path / "run")
    assert info["contrasts"] == ["ADC", "T1w", "FLAIR", "T2w"]
    assert "CC-BY-NC-4.0" in info["licences"]
    assert lineage.subject_hashes(info) == {"0123456789ab", *store.data_summary()["subject_hashes"]}


def test_interrupted_it_goes_on_to_the_same_trace(store_path: Path, pretrained: Path, continued: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    first = pretrain(store_path, recipe=recipe, from_=str(pretrained), out=tmp_path / "run")
    assert first is not None and first.status == "stopped"
    second = pretrain(store_path, recipe=recipe, from_=str(pretrained), out=tmp_path / "run")
    assert second is not None and second.status == "complete"
    losses = [
        [e["loss"] for e in events.read(run / "events.jsonl") if e["event"] == "step"] for run in (continued, tmp_path / "run")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_another_model_in_the_same_folder_is_refused(store_path: Path, continued: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)another recipe.*from"):
        pretrain(store_path, recipe=write(continued.parent), out=continued)
    with pytest.raises(ConfigError, match=r"(?s)another recipe.*from"):
        pretrain(store_path, recipe=write(continued.parent), from_=str(continued), out=continued)


def test_what_a_fine_tuned_model_has_ever_seen_is_told(
    store_path: Path, continued: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Test subjects that only the model before the last has learned from."""
    info = json.loads((continued / "model" / "model.json").read_text())
    test = next(s.subject for s in Store.open(store_path).sessions if s.split == "test")
    info["lineage"][0]["data"]["subject_hashes"] = [artifacts.sha256_json(test)[:12]]
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "README.md"):
        (folder / name).write_bytes((continued / "model" / name).read_bytes())
    (folder / "model.json").write_text(json.dumps(info))
    with caplog.at_level(logging.WARNING):
        finetune(store_path, from_=str(folder), task="regression", target="age", out=tmp_path / "run", dry_run=True)
    assert "1 test subjects were in the pretraining data" in caplog.text


def test_a_net_without_a_split_can_be_given_one(store_path: Path, tmp_path: Path) -> None:
    net = unet.build(unet.Config(features=(4, 8), split="none"))
    models.save(
        tmp_path / "first", net=net, net_name="unet", net_config=net.config.model_dump(mode="json"), spec=Store.open(store_path).spec,
        contrasts=["T1w"], kind="pretrained", method={}, data={},
    )  # fmt: skip
    recipe = write(tmp_path, {"name": "anatomy_split", "block": 4, "anatomy": 0.0}, steps=1)
    with pytest.raises(ConfigError, match=r"set net\.split=channels"):
        pretrain(store_path, recipe=recipe, from_=str(tmp_path / "first"), out=tmp_path / "run")
    pretrain(store_path, recipe=recipe, from_=str(tmp_path / "first"), out=tmp_path / "run", set=["net.split=channels"])
    after = models.load(tmp_path / "run")
    assert (after.net.anatomy_channels, after.net.contrast_channels) == (4, 4)


def test_a_refinement_is_taken_away_before_it_is_fitted_anew() -> None:
    torch.manual_seed(0)
    net: Any = unet.build(unet.Config(features=(4, 8), latent=4, split="stages", refined=True)).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        plain = net.encode(image).anatomy
        turn = torch.linalg.qr(torch.randn(4, 4))[0]
        net.latent["refine"].weight.copy_(turn)
        net.latent["refine"].offset.fill_(1.0)
        net.latent["restore"].weight.copy_(turn.T)
        net.latent["restore"].offset.fill_(2.0)
        assert not torch.allclose(net.encode(image).anatomy, plain)
        torch.testing.assert_close(_split.unrefined(net).encode(image).anatomy, plain, rtol=0, atol=0)
        code = torch.randn(1, 8, 8, 8, 8)
        torch.testing.assert_close(_split.restored(net.latent, code), code)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"set": ["net.latent=3"]}, "other weights than those of the model"),
        ({"from_": "nowhere"}, "no model folder"),
        ({"recipe": "mae_tiny.yml"}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_an_error(
    store_path: Path, pretrained: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(NeuropriorError, match=words):
        pretrain(store_path, **({"recipe": write(tmp_path), "from_": str(pretrained), "out": tmp_path / "run"} | change))


def test_a_store_of_another_preparation_is_refused_with_the_options_to_take(
    index_file: Path, pretrained: Path, tmp_path: Path
) -> None:
    prepare(index_file, tmp_path / "store", spacing="5", normalise="clamp_zscore_01", antialias=False, workers=1)
    with pytest.raises(ConfigError, match=r"--spacing 4\.0 --normalise zscore --antialias"):
        pretrain(tmp_path / "store", recipe=write(tmp_path), from_=str(pretrained), out=tmp_path / "run")


def test_new_scans_of_a_laboratory(run_cli: Callable[..., CompletedProcess[str]], pretrained: Path, tmp_path: Path) -> None:
    """The command: another family, a contrast fewer, and the whole chain in the card."""
    synthesise(tmp_path / "lab", subjects=4, spacing=4.0, contrasts="T1w,FLAIR", seed=9, workers=1)
    index([tmp_path / "lab"], tmp_path / "index.parquet", split="train=1", workers=1)
    prepare(tmp_path / "index.parquet", tmp_path / "store", spacing="4", workers=1)
    done = run_cli("pretrain", tmp_path / "store", "--recipe", write(tmp_path), "--from", pretrained, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "the weights go on from" in done.stderr
    assert models.load(tmp_path / "run").contrasts == ("T1w", "T2w", "FLAIR")
