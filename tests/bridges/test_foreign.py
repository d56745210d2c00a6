"""Weights of other frameworks: what they compute there they compute here, and every one is accounted for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.bridges.foreign import (
    BLOCKS,
    FEATURES,
    PlainUNet,
    ResidualUNet,
    fomo_checkpoint,
    nnssl_checkpoint,
    nnssl_plan,
    shaken,
)  # fmt: skip

from neuroprior.bridges import _foreign, nnssl
from neuroprior.core import shelf
from neuroprior.core.errors import ArtifactError, ConfigError, NeuropriorError
from neuroprior.inference import model as models
from neuroprior.stages.convert import convert
from neuroprior.stages.embed import embed
from neuroprior.stages.finetune import finetune
from neuroprior.stages.prepare import prepare
from neuroprior.stages.pretrain import pretrain


def image(*size: int) -> torch.Tensor:
    return torch.randn((1, 1, *size), generator=torch.Generator().manual_seed(2))


def zyx(array: torch.Tensor) -> torch.Tensor:
    """(B, C, x, y, z) as nnssl has it, and back."""
    return array.permute(0, 1, 4, 3, 2)


# ------------------------------------------------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("skips", [True, False])
@torch.no_grad()
def test_a_residual_unet_computes_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skips: bool) -> None:
    theirs, plan = shaken(ResidualUNet(FEATURES, BLOCKS, skips)), nnssl_plan()
    if not skips:  # the plan of a net without skips has a name alone, that of size L, which is a small one here
        monkeypatch.setitem(nnssl.SIZES, "L", (FEATURES, BLOCKS))
        plan |= {"architecture_plans": {"arch_class_name": "NoSkipResEncL", "arch_kwargs": None}}
    done = convert(nnssl_checkpoint(theirs, tmp_path / "checkpoint_final.pth", plan), tmp_path / "model", "T1w,FLAIR")
    assert (done.bridge, done.share, done.drawn) == ("nnssl", 1.0, 0)
    ours, x = models.load(tmp_path / "model").net.double(), image(32, 32, 64).double()
    code = ours.encode(x)
    torch.testing.assert_close(ours.reconstruct(code, x.shape[2:]), zyx(theirs.double()(zyx(x))), atol=1e-9, rtol=1e-9)
    for mine, other in zip(code.stages, theirs.maps(zyx(x)), strict=True):
        torch.testing.assert_close(mine, zyx(other), atol=1e-9, rtol=1e-9)
    assert code.contrast.shape[1] == 0


@pytest.mark.parametrize("forward", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
@torch.no_grad()
def test_axes_mean_the_same(tmp_path: Path, forward: list[int]) -> None:
    """A scan on its way to their net: read as (z, y, x), then transposed as the plan says."""
    theirs, plan = shaken(ResidualUNet(FEATURES, BLOCKS)).double(), nnssl_plan()
    plan["pretrain_plan"]["transpose_forward"] = forward
    plan["recommended_downstream_patchsize"] = [16, 32, 48]
    convert(nnssl_checkpoint(theirs, tmp_path / "c.pth", plan), tmp_path / "model", "T1w")
    loaded = models.load(tmp_path / "model")
    ours, scan = loaded.net.double(), image(16, 32, 48).double()
    read = scan[0, 0].numpy().transpose(2, 1, 0)
    prepared = torch.from_numpy(read.transpose(forward).copy())[None, None]
    answer = theirs(prepared)[0, 0].numpy().transpose(np.argsort(forward)).transpose(2, 1, 0)
    torch.testing.assert_close(ours.reconstruct(ours.encode(scan), scan.shape[2:])[0, 0].numpy(), answer, atol=1e-9, rtol=1e-9)
    box = np.zeros([16, 32, 48]).transpose(np.argsort(forward)).transpose(2, 1, 0)  # theirs, on the way back
    assert box.shape == tuple(loaded.info["method"]["patch"])


@torch.no_grad()
def test_the_winners_net_computes_what_it_did(tmp_path: Path) -> None:
    theirs = shaken(PlainUNet())
    done = convert(fomo_checkpoint(theirs, tmp_path / "last.ckpt", compiled=True), tmp_path / "model", "T1w,T2w")
    assert (done.bridge, done.share) == ("fomo25", 1.0)
    ours = models.load(tmp_path / "model").net
    a, b = image(32, 48, 64), image(32, 48, 64).flip(2)
    code, other = ours.encode(a), ours.encode(b)
    shared, contrast = theirs.halves(a)
    torch.testing.assert_close(code.anatomy, shared, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(code.contrast, contrast, atol=1e-5, rtol=1e-4)
    swapped = theirs.decode(torch.cat([theirs.halves(b)[0], contrast], 1))
    torch.testing.assert_close(ours.decode(other.anatomy, code.contrast, a.shape[2:]), swapped, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("skips", [True, False])
@torch.no_grad()
def test_the_organisers_net_computes_what_it_did(tmp_path: Path, skips: bool) -> None:
    theirs = shaken(PlainUNet(halves=False, skips=skips))
    convert(fomo_checkpoint(theirs, tmp_path / "last.ckpt"), tmp_path / "model", "T1w")
    ours = models.load(tmp_path / "model").net
    x = image(32, 32, 32)
    maps = theirs.maps(x)
    torch.testing.assert_close(ours.reconstruct(ours.encode(x), x.shape[2:]), theirs.decode(maps[-1], maps), atol=1e-5, rtol=1e-4)


def test_size_l_of_the_library_itself(tmp_path: Path) -> None:
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet",
        reason="dynamic-network-architectures is not installed (pip install --no-deps dynamic-network-architectures==0.4.4)",
    )
    theirs = shaken(
        unet.ResidualEncoderUNet(
            1, 6, (32, 64, 128, 256, 320, 320), torch.nn.Conv3d, 3, (1, 2, 2, 2, 2, 2), (1, 3, 4, 6, 6, 6), 1, (1,) * 5, conv_bias=True,
            norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        )
    )  # fmt: skip
    plan = nnssl_plan() | {"architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None}}
    done = convert(nnssl_checkpoint(theirs, tmp_path / "checkpoint_final.pth", plan), tmp_path / "model", "T1w")
    assert done.share == 1.0
    ours = models.load(tmp_path / "model").net.double()
    ours.lay_out(torch.device("cpu"), torch.channels_last_3d)
    x = image(64, 32, 64).double()
    with torch.no_grad():
        torch.testing.assert_close(
            ours.reconstruct(ours.encode(x), x.shape[2:]), zyx(theirs.double()(zyx(x))), atol=1e-9, rtol=1e-9
        )


# ---------------------------------------------------------------------------------------------------------------- the account


def test_every_weight_is_accounted_for(tmp_path: Path) -> None:
    file = nnssl_checkpoint(shaken(ResidualUNet(FEATURES, BLOCKS)), tmp_path / "checkpoint_final.pth")
    done = convert(file, tmp_path / "model", "t1, FLAIR", licence=["CC-BY-4.0"])
    info = models.read_info(tmp_path / "model")
    told = info["method"]["weights"]
    whole = torch.load(file, weights_only=False)["network_weights"]
    assert told["loaded"] + len(told["left_out"]) == len(whole)
    assert told["left_out"]["decoder.seg_layers.0.weight"] == "an output of deep supervision"
    assert told["left_out"]["encoder.stem.convs.0.all_modules.1.bias"] == "the same as encoder.stem.convs.0.norm.bias"
    assert info["contrasts"] == ["T1w", "FLAIR"]
    assert info["licences"] == ["CC-BY-4.0"]
    assert info["preprocessing"]["spacing_mm"] == 4.0
    assert info["method"]["patch"] == [16, 16, 16]
    assert info["method"]["source"] | {"sha256": ""} == {
        "file": "checkpoint_final.pth", "sha256": "", "tool": "nnssl", "method": "BaseMAETrainer", "epoch": 1000, "dataset": "Dataset745_OpenMind",
    }  # fmt: skip
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| converted from | nnssl, BaseMAETrainer, Dataset745_OpenMind, checkpoint_final.pth |" in card
    assert "copy of another" in str(done) and "--spacing 4.0 --crop head --normalise zscore --order 3" in str(done)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    file = fomo_checkpoint(shaken(PlainUNet()), tmp_path / "last.ckpt")
    assert "nothing was written" in str(convert(file, tmp_path / "model", "T1w", dry_run=True))
    assert not (tmp_path / "model").exists()


def test_a_plan_beside_the_file_and_a_hubs_folder(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    file = nnssl_checkpoint(ResidualUNet(FEATURES, BLOCKS), folder / "checkpoint_final.pth", nnssl_adaptation_plan=None)
    with pytest.raises(ArtifactError, match=r"adaptation_plan\.json beside it"):
        convert(file, tmp_path / "model", "T1w")
    (folder / "adaptation_plan.json").write_text(json.dumps(nnssl_plan()))
    assert convert(folder, tmp_path / "model", "T1w").share == 1.0
    (folder / "checkpoint_best.pth").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"(?s)one file of weights.*checkpoint_best\.pth, checkpoint_final\.pth"):
        convert(folder, tmp_path / "model", "T1w")


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({f"model.{name}": value for name, value in PlainUNet().state_dict().items()}, tmp_path / "weights.safetensors")
    assert convert(tmp_path / "weights.safetensors", tmp_path / "model", "T1w").share == 1.0
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:500])
    with pytest.raises(ArtifactError, match="damaged"):
        convert(tmp_path / "broken.safetensors", tmp_path / "model", "T1w")


def test_an_encoder_alone(tmp_path: Path) -> None:
    """Of a contrastive method: a projection, no decoder, another prefix."""
    theirs = shaken(ResidualUNet(FEATURES, BLOCKS))
    state = {f"net.{k}": v for k, v in theirs.state_dict().items() if k.startswith("encoder.")} | {
        "project.0.weight": torch.ones(2, 2)
    }
    plan = nnssl_plan() | {"key_to_encoder": "net.encoder.stages"}
    file = nnssl_checkpoint(theirs, tmp_path / "c.pth", plan, network_weights=state)
    with pytest.raises(ArtifactError, match=r"(?s)1 weights.*project\.0\.weight.*--leave-out project\.0\."):
        convert(file, tmp_path / "model", "T1w")
    with pytest.raises(ArtifactError, match="--encoder-only takes the encoder"):
        convert(file, tmp_path / "model", "T1w", leave_out=["project."])
    done = convert(file, tmp_path / "model", "T1w", encoder_only=True)
    assert done.drawn == sum(name.startswith("decoder.") for name in models.load(done.out).net.state_dict())
    assert 0 < done.share < 1
    x = image(16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            models.load(done.out).net.encode(x).stages[-1], zyx(theirs.maps(zyx(x))[-1]), atol=1e-4, rtol=1e-3
        )


def test_the_decoder_is_drawn_alike_and_the_callers_randomness_stays(tmp_path: Path) -> None:
    theirs = shaken(PlainUNet(halves=False, decoder_convolutions=2))
    file = fomo_checkpoint(theirs, tmp_path / "unet_b.ckpt")
    with pytest.raises(ArtifactError, match=r"(?s)decoder_conv1\.conv2.*--encoder-only"):
        convert(file, tmp_path / "model", "T1w")
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    hashes = {models.read_info(convert(file, tmp_path / name, "T1w", encoder_only=True))["weights_sha256"] for name in ("a", "b")}
    assert len(hashes) == 1
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_what_a_task_has_added_is_left_out(tmp_path: Path) -> None:
    more = {"decoder_task.out_conv.weight": torch.ones(2), "fusion_layer.weights": torch.ones(3)}
    done = convert(fomo_checkpoint(PlainUNet(), tmp_path / "last.ckpt", **more), tmp_path / "model", "T1w")
    assert done.left_out == {"of a task that it was fine-tuned on": 2}


# -------------------------------------------------------------------------------------------------------------------- mistakes


class _Harmful:
    """Would touch a file if it were ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_brings_code_is_not_run(tmp_path: Path) -> None:
    file = nnssl_checkpoint(ResidualUNet(FEATURES, BLOCKS), tmp_path / "c.pth", logging=_Harmful(tmp_path / "harm"))
    with pytest.raises(ArtifactError, match=r"(?s)would run code.*mkdir.*network_weights and nnssl_adaptation_plan"):
        convert(file, tmp_path / "model", "T1w")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel_sizes": [[1, 3, 3]] * 3}, r"(?s)no net on our shelf.*kernel_sizes 3"),
        ({"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}, r"(?s)no net on our shelf.*strides"),
        ({"n_conv_per_stage_decoder": 2}, "n_conv_per_stage_decoder 1"),
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, "norm_op BatchNorm3d"),
        ({"dropout_op": "torch.nn.modules.dropout.Dropout3d"}, "dropout_op"),
        ({"features_per_stage": [4, 8, 16]}, r"(?s)have another shape.*\(16, 8, 3, 3, 3\)"),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    file = nnssl_checkpoint(ResidualUNet(FEATURES, BLOCKS), tmp_path / "c.pth", nnssl_plan(**change))
    with pytest.raises(NeuropriorError, match=words):
        convert(file, tmp_path / "model", "T1w")


def test_a_transformer_is_refused(tmp_path: Path) -> None:
    plan = nnssl_plan() | {"architecture_plans": {"arch_class_name": "PrimusM", "arch_kwargs": None}, "key_to_encoder": "eva"}
    with pytest.raises(ConfigError, match=r"(?s)no net on our shelf.*PrimusM"):
        convert(nnssl_checkpoint(ResidualUNet(FEATURES, BLOCKS), tmp_path / "c.pth", plan), tmp_path / "model", "T1w")


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    net = ResidualUNet(FEATURES, BLOCKS)
    state = net.state_dict()
    file = tmp_path / "c.pth"
    cases = [
        (state | {"encoder.stem.convs.0.conv.weight": torch.full((4, 1, 3, 3, 3), torch.nan)}, "not finite"),
        (state | {"encoder.stem.convs.0.all_modules.0.weight": torch.ones(4, 1, 3, 3, 3)}, "differ in the file"),
        ({k: v for k, v in state.items() if not k.startswith(("encoder.stem.", "decoder.encoder.stem."))}, "are not in the file"),
        (state | {"module.encoder.stem.convs.0.conv.weight": torch.ones(4, 1, 3, 3, 3)}, "one name"),
        ({}, "no network_weights"),
    ]
    for weights, words in cases:
        nnssl_checkpoint(net, file, network_weights=weights)
        with pytest.raises(ArtifactError, match=words):
            convert(file, tmp_path / "model", "T1w")
    for only in (False, True):  # four channels at once
        many = {
            k: torch.ones(4, 4, 3, 3, 3) if k.endswith(("stem.convs.0.conv.weight", "stem.convs.0.all_modules.0.weight")) else v
            for k, v in state.items()
        }
        nnssl_checkpoint(net, file, network_weights=many)
        with pytest.raises(ArtifactError, match="one contrast at a time"):
            convert(file, tmp_path / "model", "T1w", encoder_only=only)


def test_other_mistakes(tmp_path: Path) -> None:
    file = fomo_checkpoint(PlainUNet(), tmp_path / "last.ckpt")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.pth")
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    (tmp_path / "broken.ckpt").write_bytes(file.read_bytes()[:-2000])
    (tmp_path / "table.parquet").write_bytes(b"PAR1 is how a table begins, and no checkpoint")
    with pytest.raises(NeuropriorError, match="cannot be read as weights") as refused:
        convert(tmp_path / "table.parquet", tmp_path / "model", "T1w")
    assert "weights_only" not in str(refused.value), "torch advises to read the file unsafely"
    assert "got: Unsupported operand" in str(refused.value)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    plan = nnssl_plan()
    plan["pretrain_plan"]["configurations"]["onemmiso"]["spacing"] = [1, 1, 3]
    slices = nnssl_checkpoint(ResidualUNet(FEATURES, BLOCKS), tmp_path / "slices.pth", plan)
    calls: list[tuple[dict[str, Any], str]] = [
        ({"source": tmp_path / "nowhere.pth"}, "no such file"),
        ({"source": tmp_path / "other.pth"}, r"(?s)no framework that is known.*weights"),
        ({"source": tmp_path / "tensor.pth"}, "no checkpoint"),
        ({"source": tmp_path / "broken.ckpt"}, "cannot be read as weights"),
        ({"source": file, "bridge": "nnsl"}, r"(?s)nnsl.*nnssl"),
        ({"source": file, "bridge": "nnssl"}, "which net it is of"),
        ({"source": file, "contrasts": "T1w,T9"}, "unknown contrast 'T9'"),
        ({"source": file, "contrasts": " , "}, "no contrast"),
        ({"source": file, "out": tmp_path / "full"}, "something else"),
        ({"source": slices}, r"(?s)isotropic.*--spacing"),
    ]
    for call, words in calls:
        with pytest.raises(NeuropriorError, match=words):
            convert(**({"out": tmp_path / "model", "contrasts": "T1w"} | call))
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert convert(slices, tmp_path / "model", "T1w", spacing=1.0).prepare.startswith("--spacing 1.0")


def test_the_bridges_that_lead_here() -> None:
    assert {"fomo25", "nnssl"} <= set(_foreign.importers())


@pytest.mark.parametrize("name", shelf.names("bridges"))
def test_every_bridge_leads_somewhere(name: str, tmp_path: Path) -> None:
    module = shelf.load("bridges", name)
    assert hasattr(module, "write") or name in _foreign.importers()
    assert shelf.about("bridges", name)
    if name in _foreign.importers():
        assert not module.recognises({})
        assert not module.recognises({"state_dict": None, "network_weights": None, "init_args": {"plans": {}}})
        with pytest.raises(NeuropriorError):
            module.translate({"state_dict": {}, "network_weights": {}}, tmp_path / "c.pth", _foreign.Wishes())


# ------------------------------------------------------------------------------------------------------- what it is good for


def test_they_are_fine_tuned_embedded_and_pretrained_further(
    index_file: Path, heads: Path, tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    file = fomo_checkpoint(shaken(PlainUNet()), tmp_path / "last.ckpt")
    done = run_cli(
        "convert", file, "--out", tmp_path / "model", "--contrasts", "T1w,T2w", "--spacing", 4, "--licence", "CC-BY-4.0"
    )
    assert done.returncode == 0, done.stderr
    options = dict(zip(*[iter(done.stdout.partition("--out STORE ")[2].split()[:8])] * 2, strict=True))
    prepare(
        index_file, tmp_path / "store", spacing=options["--spacing"], crop=options["--crop"], normalise=options["--normalise"],
        order=int(options["--order"]), workers=1,
    )  # fmt: skip
    small = ["training.batch=2", "data.patch=16"]
    run = pretrain(
        tmp_path / "store",
        recipe="tiny",
        from_=str(tmp_path / "model"),
        out=tmp_path / "longer",
        set=["training.steps=2", *small],
    )
    assert run is not None
    tuned = finetune(
        tmp_path / "store",
        from_=str(tmp_path / "longer"),
        task="regression",
        target="age",
        out=tmp_path / "age",
        steps=2,
        set=small,
    )
    info = models.read_info(tuned.run)
    assert [step["method"]["stage"] for step in info["lineage"]] == ["convert", "pretrain"]
    assert "CC-BY-4.0" in info["licences"]
    assert info["contrasts"] == ["T1w", "T2w", "FLAIR"]
    hashes = [step["weights_sha256"][:12] for step in info["lineage"]]
    card = (tuned.run / "model" / "README.md").read_text()
    assert f"| started from | convert [{hashes[0]}], then pretrain [{hashes[1]}] |" in card
    scan = next(heads.rglob("*T1w.nii.gz"))
    assert embed(tmp_path / "model", [str(scan)], out=tmp_path / "vectors", device="cpu").exit_code == 0
