"""Every way of fine-tuning: what it freezes stays bit for bit, an interrupted run is the uninterrupted one, and what is saved predicts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from neuroprior.core import artifacts, seeds
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.data.cases import centred, crop
from neuroprior.data.store import Store
from neuroprior.engine import events
from neuroprior.inference import model as models
from neuroprior.nets import resenc, unet
from neuroprior.tasks import _finetuning as finetuning
from neuroprior.tasks import _running, _strategies
from neuroprior.tasks._adapters import adapt, merged

SMALL = [
    "training.steps=8", "training.batch=2", "training.accelerator=cpu", "training.log_every=1", "training.checkpoint_steps=1",
    "training.validate_every=4", "data.patch=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(store_path: Path) -> Store:
    return Store.open(store_path)


def go(
    store: Store, source: Path | str, out: Path, task: str = "segmentation", target: str = "lesion", *more: str, **kw: Any
) -> Any:
    config = finetuning.settings([*SMALL, *more], seed=0)
    return _running.fine_tune(store, str(source), task, target, config=config, out=out, **kw)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def trace(run: Path) -> list[dict[str, Any]]:
    return events.read(run / "events.jsonl")


class Cut(Exception):
    """The power fails."""


def cut_after(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    seen = 0
    real = _running.CaseDataset.__getitem__

    def get(self: Any, sample: int) -> Any:
        nonlocal seen
        seen += 1
        if seen > samples:
            raise Cut
        return real(self, sample)

    monkeypatch.setattr(_running.CaseDataset, "__getitem__", get)


@pytest.mark.parametrize("word", sorted(_strategies.STRATEGIES.keys() - {"closed-form"}))  # that one has a file of its own
def test_resumed_is_uninterrupted_and_the_frozen_is_untouched(
    word: str, store: Store, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = (f"strategy={word}",)
    assert go(store, pretrained, tmp_path / "whole", "segmentation", "lesion", *strategy).status == "complete"
    for samples in (5, 4):  # in the first phase, and in the second
        with monkeypatch.context() as patch:
            cut_after(patch, samples)
            with pytest.raises(InputError, match="could not be read: Cut"):
                go(store, pretrained, tmp_path / "cut", "segmentation", "lesion", *strategy)
    assert go(store, pretrained, tmp_path / "cut", "segmentation", "lesion", *strategy).status == "complete"
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")
    one, other = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)

    loaded = models.load(tmp_path / "whole")  # strict: no adapter, no training code
    assert loaded.info["method"]["strategy"] == word
    assert loaded.info["task"]["mirror_axes"] == [0]
    start = {f"net.{k}": v for k, v in unet.with_skips(models.load(pretrained).net).state_dict().items()}
    changed = {key for key, value in start.items() if not torch.equal(value, other[key])}
    if word == "linear-probe":
        assert not changed
    if word == "lora":
        assert changed
        assert all(key.endswith("weight") and start[key].ndim > 2 for key in changed), "biases and norms stay"
    if word in ("full", "warmup-full", "scratch", "sawtooth", "head-then-full", "llrd"):
        assert {key.split(".")[1] for key in changed} >= {"encoder", "decoder"}
    recipe = finetuning.parse(finetuning.TrainingConfig, _yaml(tmp_path / "whole")["training"])
    assert recipe.steps == 8
    assert recipe.phases == _strategies.phases(word, loaded.net, 0.75)
    expected = {entry["weights_sha256"] for entry in loaded.info["lineage"]}
    assert expected == (set() if word == "scratch" else {models.load(pretrained).info["weights_sha256"]})


def _yaml(run: Path) -> dict[str, Any]:
    from neuroprior.core.config import read_yaml

    return read_yaml(run / "recipe.yaml")


def test_a_phase_trains_what_it_says_and_freezes_the_rest_norms_too(store: Store, pretrained: Path, tmp_path: Path) -> None:
    """Sawtooth stopped at the end of its first phase: only decoder and head have moved."""
    run = tmp_path / "run"

    class Stop(_running.Supervised):
        def forward(self, batch: Any, *, epoch: float = 0.0, seed: int = 0) -> Any:
            if self.training and torch.is_grad_enabled():
                calls.append({name: p.requires_grad for name, p in self.named_parameters()})
                if len(calls) == 2:  # 30 % of 8 steps are 2
                    (run / "STOP").touch()
            return super().forward(batch, epoch=epoch, seed=seed)

    calls: list[dict[str, bool]] = []
    real, _running.Supervised = _running.Supervised, Stop  # type: ignore[misc]
    try:
        stopped = go(store, pretrained, run, "segmentation", "lesion", "strategy=sawtooth")
    finally:
        _running.Supervised = real  # type: ignore[misc]
    assert (stopped.status, stopped.step, stopped.exit_code) == ("stopped", 2, 75)
    assert not (run / "STOP").exists()
    learning = {name for name, on in calls[1].items() if on}
    assert {name.split(".")[1] for name in learning if name.startswith("net.")} == {"up", "decoder", "out"}
    start = {f"net.{k}": v for k, v in unet.with_skips(models.load(pretrained).net).state_dict().items()}
    now = weights(run)
    for key, value in start.items():
        if key.startswith(("net.encoder", "net.latent")):
            assert torch.equal(value, now[key]), key
    assert not torch.equal(start["net.decoder.0.norm.weight"], now["net.decoder.0.norm.weight"])
    assert models.load(run).head is not None, "a stopped run has a usable model"
    assert go(store, pretrained, run, "segmentation", "lesion", "strategy=sawtooth").status == "complete"


@pytest.mark.parametrize("module", [unet, resenc])
def test_adapters_begin_as_nothing_and_merge_exactly(module: Any) -> None:
    torch.manual_seed(0)
    config = {"features": (4, 8, 8), "latent": 4} if module is unet else {"features": (4, 8), "blocks": (1, 1)}
    net = module.build(module.Config(**config)).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    before = net.encode(x).anatomy
    keys, plain = set(net.state_dict()), copy.deepcopy(net)
    added = adapt(net, rank=2, alpha=4.0)
    assert added > 0
    torch.testing.assert_close(net.encode(x).anatomy, before)
    for name, parameter in net.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter)
    whole = merged(net)
    assert set(whole.state_dict()) == keys
    assert whole is not net
    torch.testing.assert_close(whole.encode(x).anatomy, net.encode(x).anatomy, rtol=0, atol=0)
    assert not torch.allclose(whole.encode(x).anatomy, before)
    name = "encoder.1.0.conv" if module is unet else "encoder.stages.1.blocks.0.conv1.conv"
    change = net.get_submodule(name).parametrizations.weight[0]
    by_hand = plain.get_submodule(name).weight + 2.0 * torch.einsum("or,rk->ok", change.up, change.down).view_as(
        plain.get_submodule(name).weight
    )
    torch.testing.assert_close(whole.get_submodule(name).weight, by_hand)
    assert merged(plain) is plain


def test_layer_wise_decay_falls_from_the_head_to_the_finest_stage() -> None:
    net = resenc.build(resenc.Config(features=(4, 8, 8), blocks=(1, 1, 1)))
    (phase,) = _strategies.phases("llrd", net, 0.5)
    rates = phase.rates
    assert [rates[f"encoder.{n}"] for n in range(3)] == [0.125, 0.25, 0.5]
    assert (rates["decoder"], rates["head"]) == (1.0, 1.0)
    groups = {_strategies.group_of(f"net.{name}") for name, _ in net.named_parameters()}
    assert groups == {"encoder.0", "encoder.1", "encoder.2", "decoder"}
    assert _strategies.group_of("net.encoder.stem.convs.0.conv.weight") == "encoder.0"


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_best_by_validation_is_kept_and_patience_ends(
    keep: str, store: Store, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    monkeypatch.setattr(_running, "_validator", lambda *_: lambda module: {"loss": 1.0, "dice": next(scores)})
    more = (f"training.keep={keep}", "training.patience=2", "training.validate_every=1")
    result = go(store, pretrained, tmp_path / "run", "segmentation", "lesion", *more)
    assert (result.status, result.ended, result.step, result.exit_code) == ("complete", "patience", 4, 0)
    marker = artifacts.read_json(tmp_path / "run/complete.json")
    assert marker["ended"] == "patience"
    kept = models.load(tmp_path / "run").info["method"]["kept"]
    assert kept == marker["model"]
    assert (kept["keep"], kept["metric"], kept["best_step"], kept["best_score"], kept["last_step"]) == (keep, "dice", 2, 0.5, 4)
    state = torch.load(tmp_path / "run/state/step-00000004.pt", weights_only=True)
    chosen = state["best"] if keep == "best" else state["module"]
    assert torch.equal(weights(tmp_path / "run")["net.out.weight"], chosen["net.out.weight"])
    assert go(store, pretrained, tmp_path / "run", "segmentation", "lesion", *more).step == 4, "a finished run is left alone"


def test_hours_end_cleanly_and_more_hours_go_on(store: Store, pretrained: Path, tmp_path: Path) -> None:
    short = go(store, pretrained, tmp_path / "run", "segmentation", "lesion", "training.hours=1.0e-7")
    assert (short.status, short.ended, short.step) == ("complete", "hours", 1)
    assert artifacts.read_json(tmp_path / "run/complete.json")["ended"] == "hours"
    again = go(store, pretrained, tmp_path / "run", "segmentation", "lesion", "training.hours=1")
    assert (again.ended, again.step) == ("steps", 8)
    go(store, pretrained, tmp_path / "whole", "segmentation", "lesion")
    steps = [[e for e in trace(tmp_path / name) if e["event"] == "step"] for name in ("run", "whole")]
    assert steps[0] == steps[1]


def test_hours_alone_or_epochs_set_the_steps(store: Store, pretrained: Path, tmp_path: Path) -> None:
    config = finetuning.settings(["training.hours=0.0005", "training.accelerator=cpu", "data.patch=16"], seed=0)
    assert config.training.steps is None
    result = _running.fine_tune(store, str(pretrained), "segmentation", "lesion", config=config, out=tmp_path / "h")
    assert result is not None
    assert result.step >= 1
    assert _yaml(tmp_path / "h")["training"]["steps"] >= result.step
    config = finetuning.settings(["training.epochs=2", "training.accelerator=cpu", "data.patch=16"], seed=0)
    result = _running.fine_tune(store, str(pretrained), "segmentation", "lesion", config=config, out=tmp_path / "e")
    assert result is not None
    assert result.step == 2 * (6 // 2)


def test_what_cannot_be_is_told(store: Store, pretrained: Path, tmp_path: Path) -> None:
    def fails(message: str, *more: str, source: Path | str = pretrained, task: str = "segmentation", target: str = "lesion",
              error: type[Exception] = ConfigError, **kw: Any) -> None:  # fmt: skip
        with pytest.raises(error, match=message):
            go(store, source, tmp_path / "x", task, target, *more, **kw)

    fails("did you mean 'lora'", "strategy=lorra")
    fails("needs pretrained weights", "strategy=lora", source="scratch")
    fails("takes none", "data.covariates=[age]")
    fails("both the target and a covariate", "data.covariates=[age]", task="regression", target="age")
    fails("nobody|no training session has a value", "data.covariates=[shoe]", task="regression", target="age")
    fails("at most 1", "task.deep_supervision=5")
    fails("need validation cases", "training.keep=best",
          split={s.subject: "train" for s in store.sessions})  # fmt: skip
    fails("called 'fold'", split={s.subject: "fold" for s in store.sessions})
    fails("no session in the training split", split={s.subject: "test" for s in store.sessions}, error=InputError)
    fails("only one training subject", task="regression", target="age", error=InputError,
          split={store.sessions[0].subject: "train"})  # fmt: skip
    fails("one class only", task="classification", target="sex", error=InputError,
          split={s.subject: "train" for s in store.sessions if s.value("sex") == "F"})  # fmt: skip
    fails("a class of its own", task="classification", target="age", error=InputError)
    fails("only 6 training subjects", "data.shots=7")
    fails("which no training case", "data.weight_by=shoe")
    fails("unknown transform", "data.transforms={gama: {}}")


def test_the_card_counts_who_was_trained_on(store: Store, pretrained: Path, tmp_path: Path) -> None:
    names = sorted({s.subject for s in store.sessions})
    split = dict.fromkeys(names, "test") | dict.fromkeys(names[:3], "train")
    go(store, pretrained, tmp_path / "run", "segmentation", "lesion", split=split)
    data = models.load(tmp_path / "run").info["data"]
    assert data["subjects"] == 3
    assert set(data["subject_hashes"]) == {artifacts.sha256_json(name)[:12] for name in names[:3]}


def test_the_net_of_a_task_keeps_the_statistics_of_its_batch_norm(store: Store, pretrained: Path, tmp_path: Path) -> None:
    """Two scans a batch say nothing of the spread over people: from scratch it is that of the training scans, pretrained that of then."""
    recipe = tmp_path / "summary.yaml"
    recipe.write_text(
        "net: {name: unet, features: [4, 8], convolutions: 1, split: stages, latent: 4, summary: 4}\ndata: {patch: 16}\n"
    )
    more = ("training.steps=3", "training.validate_every=3", "data.contrast_dropout=0")
    go(store, "scratch", tmp_path / "scratch", "segmentation", "lesion", *more, recipe=str(recipe), contrasts="FLAIR")
    learned = models.load(tmp_path / "scratch").net.latent["summary"].norm  # type: ignore[union-attr,index]
    torch.manual_seed(seeds.entropy(0, "initialisation") % 2**63)
    fresh = unet.build(unet.Config(features=(4, 8), convolutions=1, split="stages", latent=4, summary=4))
    scans = []
    for session in store.sessions:
        if session.split == "train" and "FLAIR" in session.scans and "lesion" in session.labels:
            image = store.read(session.key, "FLAIR")
            scans.append(crop(image, centred(session.shape, (16, 16, 16)), (16, 16, 16)))
    with torch.no_grad():
        stages = fresh.eval().encode(torch.from_numpy(np.stack(scans))[:, None]).stages
        coarsest = stages[-1].shape[2:]
        rows = torch.cat([functional.adaptive_avg_pool3d(s, coarsest) for s in stages], 1)
        rows = functional.adaptive_avg_pool3d(rows, 2).flatten(1)
    torch.testing.assert_close(learned.running_mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learned.running_var, rows.var(0), rtol=1e-3, atol=1e-6)

    go(store, tmp_path / "scratch", tmp_path / "second", "segmentation", "lesion", *more, contrasts="FLAIR")
    kept = models.load(tmp_path / "second").net.latent["summary"].norm  # type: ignore[union-attr,index]
    assert torch.equal(kept.running_mean, learned.running_mean)
    assert torch.equal(kept.running_var, learned.running_var)


def test_maps_computed_again_change_nothing(store: Store, pretrained: Path, tmp_path: Path) -> None:
    go(store, pretrained, tmp_path / "kept", "segmentation", "lesion")
    go(store, pretrained, tmp_path / "again", "segmentation", "lesion", "training.recompute=2")
    one, other = weights(tmp_path / "kept"), weights(tmp_path / "again")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert trace(tmp_path / "kept") == trace(tmp_path / "again")
    assert go(store, pretrained, tmp_path / "again", "segmentation", "lesion").status == "complete", "not another run"
