"""Our weights as a checkpoint of nnssl: what its library would load, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from tests.bridges.foreign import BLOCKS, FEATURES, ResidualUNet, shaken

from neuroprior.bridges import nnssl
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.errors import ConfigError
from neuroprior.inference import model as models
from neuroprior.nets import resenc, unet
from neuroprior.stages.convert import convert
from neuroprior.stages.export import export


def saved(folder: Path, spec: ConformSpec | None = None, **settings: Any) -> Path:
    """A pretrained model of a small residual U-Net."""
    net = shaken(resenc.build(resenc.Config.model_validate({"features": FEATURES, "blocks": BLOCKS} | settings)))
    return models.save(
        folder, net=net, net_name="resenc", net_config=net.config.model_dump(mode="json"), spec=spec or ConformSpec(order=3),
        contrasts=["T1w", "FLAIR"], kind="pretrained", method={"objective": "mae", "patch": [32, 32, 48]}, data={"datasets": ["lab"]},
    )  # fmt: skip


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("split", ["channels", "none"])
@torch.no_grad()
def test_the_librarys_net_takes_every_weight_and_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skips: bool, split: str
) -> None:
    if not skips:
        monkeypatch.setitem(nnssl.SIZES, "L", (FEATURES, BLOCKS))
    model = saved(tmp_path / "model", skips=skips, split=split)
    nnssl.write(model, tmp_path / "out")
    content = torch.load(tmp_path / "out" / nnssl.FILE, weights_only=True)
    theirs: Any = ResidualUNet(FEATURES, BLOCKS, skips)
    theirs.load_state_dict(content["network_weights"], strict=True)
    ours, x = models.load(model).net.double(), torch.randn(1, 1, 32, 16, 32, dtype=torch.float64)
    answer = theirs.double()(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)  # its arrays are (z, y, x)
    torch.testing.assert_close(answer, ours.reconstruct(ours.encode(x), x.shape[2:]), atol=1e-9, rtol=1e-9)
    assert json.loads((tmp_path / "out" / nnssl.BESIDE).read_text()) == content["nnssl_adaptation_plan"]


@pytest.mark.parametrize("split", ["channels", "none"])
def test_there_and_back(tmp_path: Path, split: str, run_cli: Callable[..., CompletedProcess[str]]) -> None:
    model = saved(tmp_path / "model", split=split)
    done = run_cli("export", "nnssl", model, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "z-scored over the head" in done.stdout and "next" not in done.stdout
    back = convert(tmp_path / "out", tmp_path / "back", "T1w,FLAIR", anatomy_share=0.5 if split == "channels" else None)
    before, after = models.load(model), models.load(back.out)
    assert before.info["net"]["config"] == after.info["net"]["config"] | {"size": before.info["net"]["config"]["size"]}
    assert before.spec == after.spec
    assert after.info["method"]["patch"] == [32, 32, 48]
    plan = json.loads((tmp_path / "out" / nnssl.BESIDE).read_text())
    assert plan["recommended_downstream_patchsize"] == [48, 32, 32]
    for name, value in before.net.state_dict().items():
        torch.testing.assert_close(after.net.state_dict()[name], value, rtol=0, atol=0)


def test_size_l_is_called_by_its_name() -> None:
    with torch.device("meta"):
        config = resenc.ResEnc(resenc.Config()).config
    plan = nnssl._plan(config, ConformSpec(), {"method": {}, "data": {}})
    assert plan["architecture_plans"] == {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    assert plan["pretrain_plan"]["configurations"]["onemmiso"]["spacing"] == [1.0, 1.0, 1.0]
    assert plan["recommended_downstream_patchsize"] == [160, 160, 160]


def test_of_halves_from_all_stages_the_encoder_is_written(tmp_path: Path) -> None:
    notes = nnssl.write(saved(tmp_path / "model", split="stages", latent=4), tmp_path / "out")
    assert any("encoder alone" in note for note in notes)
    content = torch.load(tmp_path / "out" / nnssl.FILE, weights_only=True)
    theirs: Any = ResidualUNet(FEATURES, BLOCKS)
    theirs.encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in content["network_weights"].items()}, strict=True)


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    net = unet.build(unet.Config(features=(4, 8), latent=4))
    models.save(
        tmp_path / "unet", net=net, net_name="unet", net_config=net.config.model_dump(mode="json"), spec=ConformSpec(), contrasts=["T1w"],
        kind="pretrained", method={}, data={},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"(?s)no such net.*unet.*ssl3d"):
        export("nnssl", tmp_path / "unet", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="z-scores scans"):
        export("nnssl", saved(tmp_path / "other", ConformSpec(normalise="clamp_zscore_01")), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="size L alone"):
        export("nnssl", saved(tmp_path / "small", skips=False), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="--out DIR"):
        export("nnssl", tmp_path / "small")
    with pytest.raises(ConfigError, match="export nnssl MODEL"):
        export("challenge", tmp_path / "small", protocol="ssl3d", task="1", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
