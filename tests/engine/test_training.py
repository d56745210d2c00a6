"""The loop on a toy module: schedules, exact resume, signals, divergence, other people's folders."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuroprior.core.errors import ConfigError, DivergenceError
from neuroprior.engine import events, optimisers
from neuroprior.engine.allocator import KEPT, KEPT_PREDICTING
from neuroprior.engine.device import KEPT_HEAVY, kept_bytes, predicting_device, takes_bf16
from neuroprior.engine.optimisers import OptimizerConfig, build
from neuroprior.engine.schedules import ScheduleConfig, factor
from neuroprior.engine.settings import TrainingConfig
from neuroprior.engine.training import TrainingResult, train
from neuroprior.nets import unet


class Toy(nn.Module):
    """A linear layer behind dropout, so that the random state matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop = nn.Linear(4, 1), nn.Dropout(0.5)

    def forward(self, batch: Tensor, *, epoch: float, seed: int) -> dict[str, Tensor]:
        return {"loss": ((self.layer(self.drop(batch)) - 1) ** 2).mean(), "epoch": torch.tensor(epoch)}


Loader = Callable[[int, int, int], Iterable[Tensor]]


def batches(start: int, rank: int, world: int) -> Iterator[Tensor]:
    for number in range(start // 2, 1000):
        yield torch.randn(2, 4, generator=torch.Generator().manual_seed(number))


def save(module: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.json").write_text(json.dumps(module.layer.weight.tolist()))


def config(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "steps": 20, "batch": 2, "checkpoint_steps": 3, "log_every": 2, "steps_per_epoch": 10, "accelerator": "cpu",
        "optimizer": {"name": "adamw", "lr": 1e-2}, "schedule": {"name": "cosine", "warmup_steps": 4},
    }  # fmt: skip
    return TrainingConfig.model_validate(values | changes)


def go(run: Path, loader: Loader = batches, recipe: dict[str, Any] | None = None, **changes: Any) -> TrainingResult:
    return train(
        Toy(),
        config(**changes),
        run,
        loader=loader,
        save_model=save,
        recipe=recipe or {"toy": 1},
        validate=lambda m: {"loss": 1.0},
    )


def trace(run: Path) -> list[dict[str, Any]]:
    return events.read(run / "events.jsonl")


@pytest.mark.parametrize(("name", "power"), [("cosine", 0.9), ("poly", 0.9), ("constant", 0.9), ("poly", 2.0)])
def test_schedules_follow_their_closed_form(name: Any, power: float) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=5, power=power)
    assert [factor(schedule, step, 25) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for step in range(5, 26):
        t = (step - 5) / 20
        expected = {"cosine": 0.5 * (1 + math.cos(math.pi * t)), "poly": (1 - t) ** power, "constant": 1.0}[name]
        assert factor(schedule, step, 25) == pytest.approx(expected)


def test_cosine_equals_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    for step in range(30):
        assert factor(ScheduleConfig(name="cosine"), step, 30) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        scheduler.step()


def test_every_parameter_is_in_one_group_and_biases_do_not_decay() -> None:
    net = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True))
    for name in ("adamw", "sgd"):
        groups = build(net, OptimizerConfig.model_validate({"name": name, "weight_decay": 0.1})).param_groups
        assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in net.parameters())
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert all(p.ndim == 1 for p in groups[1]["params"])


def test_an_interrupted_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    go(tmp_path / "whole")

    class Cut(Exception):
        pass

    def until(count: int) -> Loader:
        def cut(start: int, rank: int, world: int) -> Iterator[Tensor]:
            for number, batch in enumerate(batches(start, rank, world)):
                if number == count:
                    raise Cut
                yield batch

        return cut

    for count in (5, 1, 8):
        with pytest.raises(Cut):
            go(tmp_path / "cut", until(count))
    assert go(tmp_path / "cut").status == "complete"
    assert trace(tmp_path / "cut") == trace(tmp_path / "whole")
    assert (tmp_path / "cut/model/weights.json").read_text() == (tmp_path / "whole/model/weights.json").read_text()
    assert [event["step"] for event in trace(tmp_path / "whole") if event["event"] == "step"] == list(range(1, 21))
    assert len(list((tmp_path / "cut/state").glob("step-*.pt"))) == 2


def test_accumulation_steps_once_for_several_batches(tmp_path: Path) -> None:
    go(tmp_path / "run", accumulate=3, steps=4)
    assert len([event for event in trace(tmp_path / "run") if event["event"] == "step"]) == 4
    assert json.loads((tmp_path / "run/ledger.json").read_text())["samples"] == 4 * 3 * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_usable_model_and_a_run_that_goes_on(tmp_path: Path, number: int) -> None:
    def signalling(start: int, rank: int, world: int) -> Iterator[Tensor]:
        for count, batch in enumerate(batches(start, rank, world)):
            if start == 0 and count == 7:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    stopped = go(tmp_path / "run", signalling)
    assert stopped.status == "stopped"
    assert stopped.exit_code == 75
    assert 7 <= stopped.step < 20
    assert (tmp_path / "run/model/weights.json").exists()
    assert not (tmp_path / "run/complete.json").exists()
    assert signal.getsignal(number) == before
    assert go(tmp_path / "run").status == "complete"
    go(tmp_path / "whole")
    assert trace(tmp_path / "run") == trace(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_with_advice_and_keeps_the_last_state(tmp_path: Path) -> None:
    def poisoned(start: int, rank: int, world: int) -> Iterator[Tensor]:
        for count, batch in enumerate(batches(start, rank, world)):
            yield batch * float("nan") if count == 9 else batch

    with pytest.raises(DivergenceError, match=r"(?s)step 10.*optimizer\.lr"):
        go(tmp_path / "run", poisoned, health={"max_rollbacks": 0})
    assert [path.name for path in sorted((tmp_path / "run/state").glob("step-*.pt"))] == ["step-00000006.pt", "step-00000009.pt"]


def test_a_folder_of_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    go(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"training\.optimizer\.lr: 0\.01 there, 0\.5 now"):
        go(tmp_path / "run", optimizer={"name": "adamw", "lr": 0.5})
    with pytest.raises(ConfigError, match="toy"):
        go(tmp_path / "run", recipe={"toy": 2})


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    go(tmp_path / "run")

    def untouchable(start: int, rank: int, world: int) -> Iterator[Tensor]:
        raise AssertionError("the data was asked for")

    assert go(tmp_path / "run", untouchable).status == "complete"


def test_length_is_steps_or_epochs() -> None:
    resolved = config(steps=None, epochs=2, steps_per_epoch=None, schedule={"warmup_epochs": 0.5}).resolved(40)
    assert (resolved.steps, resolved.steps_per_epoch, resolved.schedule.warmup_steps) == (40, 20, 10)
    with pytest.raises(ConfigError, match="steps or"):
        config(steps=5, epochs=2).resolved(40)


def test_a_cut_last_line_of_the_trace_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "step", "step": 1}\n{"event": "step", "step": 2}\n{"event": "st')
    assert [event["step"] for event in events.read(path)] == [1, 2]
    events.rewind(path, 1)
    assert path.read_text() == '{"event": "step", "step": 1}\n'


def test_compile_that_fails_does_not_kill_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    assert go(tmp_path / "run", compile=True).status == "complete"
    assert "no compiler here" in caplog.text


class Large(Toy):
    """Runs out of memory with more than ``room`` samples, forward or backward."""

    def __init__(self, room: int, backward: bool) -> None:
        super().__init__()
        self.room, self.late = room, backward

    def forward(self, batch: Tensor, *, epoch: float, seed: int) -> dict[str, Tensor]:
        found = super().forward(batch, epoch=epoch, seed=seed)
        if len(batch) > self.room:
            if not self.late:
                raise torch.OutOfMemoryError("full")
            if found["loss"].requires_grad:
                found["loss"].register_hook(self.fail)
        return found

    @staticmethod
    def fail(_: Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("room", "advice"),
    [(3, "training.batch=2 --set training.accumulate=12"), (1, "training.batch=1 "), (0, "not even a batch of one")],
)
def test_a_first_step_without_room_names_the_batch_that_fits(tmp_path: Path, room: int, advice: str, backward: bool) -> None:
    def eight(start: int, rank: int, world: int) -> Iterator[Tensor]:
        for number in range(100):
            yield torch.randn(8, 4, generator=torch.Generator().manual_seed(number))

    with pytest.raises(ConfigError, match=r"first step does not fit[\s\S]*" + advice):
        train(
            Large(room, backward), config(batch=8, accumulate=3), tmp_path / "run", loader=eight, save_model=save, recipe={"toy": 1}
        )  # fmt: skip


def test_running_out_of_memory_later_is_raised_as_it_is(tmp_path: Path) -> None:
    def growing(start: int, rank: int, world: int) -> Iterator[Tensor]:
        for number in range(100):
            yield torch.randn(2 if number < 3 else 4, 4, generator=torch.Generator().manual_seed(number))

    with pytest.raises(torch.OutOfMemoryError):
        train(Large(2, False), config(), tmp_path / "run", loader=growing, save_model=save, recipe={"toy": 1})


def test_32_is_taken_as_a_number_and_as_text() -> None:
    assert config(precision=32).precision == config(precision="32").precision == "32"
    with pytest.raises(ValueError, match="bf16"):
        config(precision=16)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_run_in_bf16_clips_and_learns_as_one_in_float32_does(name: str, tmp_path: Path) -> None:
    def weights(folder: str, **changes: Any) -> Tensor:
        go(tmp_path / folder, schedule={"name": "constant"}, **changes)
        return torch.tensor(json.loads((tmp_path / folder / "model" / "weights.json").read_text()))

    optimizer = {"name": name, "lr": 1e-2}
    exact, low = (weights(precision, optimizer=optimizer, precision=precision) for precision in ("32", "bf16"))
    torch.testing.assert_close(low, exact, atol=2e-3, rtol=0)
    assert not torch.equal(low, exact)
    plain = {"name": "sgd", "lr": 1e-2, "momentum": 0.0, "weight_decay": 0.0}
    held = weights("held", optimizer=plain, precision="bf16", clip_norm=1e-4)
    assert 0 < float((held - Toy().layer.weight).detach().norm()) <= 20 * 1e-2 * 1e-4 * 1.001


class Deep(nn.Module):
    """A net whose last levels have more weights than voxels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = unet.build(unet.Config(features=(4, 8, 64), latent=4, skips=True)).double()

    def forward(self, batch: Tensor, *, epoch: float, seed: int) -> dict[str, Tensor]:
        x = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(int(1000 * batch.sum().abs()))).double()
        return {"loss": (self.net.reconstruct(self.net.encode(x), x.shape[2:]) - x).square().mean()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_of_a_heavy_net_in_factors_give_the_same_trace(
    tmp_path: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, since such small nets magnify float32's rounding."""
    seen = []
    original = optimisers.advance

    def look(module: nn.Module, *rest: Any) -> None:
        seen.append(sum(bool(getattr(part, "factors", None)) for part in module.modules()))
        original(module, *rest)

    monkeypatch.setattr(optimisers, "advance", look)
    traces = []
    for heavy in (10**9, 1):
        monkeypatch.setattr("neuroprior.engine.device.HEAVY", heavy)
        assert kept_bytes(Deep()) == (KEPT_HEAVY if heavy == 1 else KEPT)
        run, changes = (
            tmp_path / str(heavy),
            {"accumulate": accumulate, "clip_norm": 0.05, "optimizer": {"name": "sgd", "lr": 1e-2}},
        )
        train(
            Deep(),
            config(steps=6, **changes),
            run,
            loader=batches,
            save_model=lambda *_: None,
            recipe={"deep": 1},
            validate=lambda _: {"loss": 1.0},
        )
        traces.append([event["loss"] for event in trace(run) if event["event"] == "step"])
    assert seen[:6] == [0] * 6
    assert min(seen[6:]) >= 2
    assert traces[1] == pytest.approx(traces[0], rel=1e-9)
    assert traces[0][-1] != traces[0][0]


def test_a_device_without_bf16_is_told_of_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert not takes_bf16(config(precision="auto"), cpu=False)
    assert "bfloat16" not in caplog.text
    assert not takes_bf16(config(precision="bf16"), cpu=False)
    assert caplog.text.count("bfloat16") == 1
    assert not takes_bf16(config(precision="auto"), cpu=True)
    for amx in (True, False):
        caplog.clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx}, raising=False)
        assert takes_bf16(config(precision="bf16"), cpu=True)
        assert ("no AMX" in caplog.text) == (not amx)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert takes_bf16(config(precision="auto"), cpu=False)
    assert not takes_bf16(config(precision="32"), cpu=False)


@pytest.mark.parametrize(
    ("wanted", "gpu", "device"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")]
)
def test_a_prediction_finds_its_device_and_keeps_memory_on_a_cpu(
    wanted: str, gpu: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("neuroprior.engine.device.keep_freed_memory", kept.append)
    assert predicting_device(wanted) == device
    assert kept == ([KEPT_PREDICTING] if device == "cpu" else [])


@pytest.mark.parametrize(
    ("wanted", "gpus", "told"),
    [
        ("cdua", 1, "no such --device"),
        ("cuda:x", 1, "no such"),
        ("cuda", 0, "sees no GPU"),
        ("cuda:2", 2, "one of 2 GPUs"),
        ("", 1, "no such"),
    ],
)
def test_a_device_that_is_not_there_is_told(wanted: str, gpus: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=told):
        predicting_device(wanted)
