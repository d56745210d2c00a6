"""Measures against numpy, alarms, and going back."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuroprior.core.errors import DivergenceError
from neuroprior.engine import events, health
from neuroprior.engine.health import HealthConfig, Monitor, Observation
from neuroprior.engine.settings import TrainingConfig
from neuroprior.engine.training import TrainingResult, train

RNG = np.random.default_rng(0)


def test_the_effective_rank_is_rankme() -> None:
    x = RNG.normal(size=(40, 12)) @ np.diag(np.linspace(1, 0.01, 12))
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum() + 1e-7
    assert health.effective_rank(torch.tensor(x)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    q, _ = np.linalg.qr(RNG.normal(size=(40, 5)))
    assert health.effective_rank(torch.tensor(q)) == pytest.approx(5, rel=1e-4)
    assert health.effective_rank(torch.ones(10, 4)) == pytest.approx(1, abs=1e-4)


def test_spread_and_std_are_their_definitions() -> None:
    x, groups = RNG.normal(size=(6, 4)) + 1, list("aabbcc")
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(6) for j in range(6) if groups[i] != groups[j]]
    assert health.spread(torch.tensor(x), groups) == pytest.approx(1 - np.mean(pairs))
    assert health.relative_std(torch.tensor(x)) == pytest.approx(np.sqrt(x.var(0).mean()) / np.sqrt((x**2).mean()))


def test_variances_recover_what_was_put_in() -> None:
    groups = [str(n // 4) for n in range(4000)]
    who = np.repeat(RNG.normal(scale=2.0, size=(1000, 3)), 4, axis=0)
    between, within = health.variances(torch.tensor(who + RNG.normal(scale=1.0, size=who.shape)), groups)
    assert between == pytest.approx(4.0, rel=0.1)
    assert within == pytest.approx(1.0, rel=0.05)
    assert math.isnan(health.variances(torch.randn(5, 2), list("abcde"))[0])


def test_the_probe_reads_what_is_there_and_nothing_else() -> None:
    n = 200
    features = RNG.normal(size=(n, 6)).astype(np.float32)
    seen = Observation(
        {"half": torch.tensor(features)}, [str(k) for k in range(n)], fit=torch.arange(n) < 120,
        labels={
            "age": (50 + 5 * features[:, 0]).tolist(), "contrast": ["T1w" if v > 0 else "T2w" for v in features[:, 1]],
            "sex": ["F" if v > 0 else "M" for v in RNG.normal(size=n)], "site": ["only"] * n, "never": [None] * n,
        },
    )  # fmt: skip
    found = health.probe(seen)
    assert found["half/age"] > 0.99
    assert found["half/contrast"] > 0.85
    assert found["half/sex"] == pytest.approx(0.5, abs=0.15)
    assert found.keys() == {"half/age", "half/contrast", "half/sex"}


def looks(monitor: Monitor, **values: list[float]) -> list[str]:
    """The alarms of a series of looks, every tenth step."""
    given = []
    for n, found in enumerate(zip(*values.values(), strict=True)):
        for alarm in monitor.look(
            10 * n, {key.replace("__", "/"): value for key, value in zip(values, found, strict=True)}, {"half"}
        ):
            given.append(f"{10 * n} {alarm.kind} {alarm.name}")
            assert health.ADVICE[alarm.kind] in str(alarm)
    return given


def test_alarms_come_after_patience_and_once() -> None:
    monitor = Monitor(HealthConfig(), 100)
    assert looks(monitor, half__std=[1.0, 1e-5, 1.0, 1e-5, 1e-5, 1e-5]) == ["40 collapse half"]
    assert looks(Monitor(HealthConfig(), 100), half__rank=[20.0, 1.5, 1.5]) == ["20 rank half"]
    assert looks(Monitor(HealthConfig(), 100), half__spread=[0.5, 0.03, 0.03]) == ["20 emptied half"]
    assert not looks(Monitor(HealthConfig(), 100), half__spread=[0.03, 0.03, 0.025])  # an untrained net's features are alike
    assert looks(Monitor(HealthConfig(), 100), half__spread=[0.1, 0.04, 0.04], rest__spread=[0.1, 0.9, 0.95]) == [
        "20 emptied half against the other half"
    ]
    for kept in ([0.2, 0.11, 0.11], [0.04, 0.03, 0.03]):  # enough of the other half's; or as little as it began with
        assert not looks(Monitor(HealthConfig(), 100), half__spread=kept, rest__spread=[0.1, 0.9, 0.95])
    assert not looks(Monitor(HealthConfig(), 100), half__between_posterior=[0.1, 0.01, 0.01])  # an untrained net has no more
    assert looks(Monitor(HealthConfig(), 100), v__ratio=[0.0, 0.005, 0.004]) == ["20 constant v"]
    assert looks(Monitor(HealthConfig(), 100), v__target_cosine=[0.9996, 0.9996]) == ["10 targets v"]
    assert not looks(
        Monitor(HealthConfig(), 100), half__std=[1.0, 0.5, 0.7], half__rank=[20.0, 9.0, 30.0], half__spread=[0.5, 0.9, 0.4]
    )
    assert looks(Monitor(HealthConfig(), 100), half__std=[math.nan, math.nan]) == ["10 collapse half"]


def test_what_is_not_finite_is_told_at_once_and_every_time() -> None:
    rows = torch.randn(6, 4)
    rows[0, 0] = math.nan
    found = health.measure(Observation({"half": rows}, list("aabbcc"), predictions={"v": (rows / 0, rows, True)}))
    assert found["half/finite"] == pytest.approx(23 / 24)
    assert found.keys() == {"half/finite", "v/finite"}
    assert looks(Monitor(HealthConfig(), 100), half__finite=[0.5, 0.5]) == ["0 features half", "10 features half"]
    assert math.isnan(health.effective_rank(rows))


def test_targets_that_are_alike_do_not_make_the_weights_bad() -> None:
    monitor = Monitor(HealthConfig(), 100)
    assert [alarm.kind for n in (0, 10) for alarm in monitor.look(n, {"v/target_cosine": 0.9996})] == ["targets"]
    assert monitor.healthy
    monitor.look(20, {"v/target_cosine": 0.9996, "half/std": 0.0})
    assert not monitor.healthy


def test_a_loss_is_judged_alike_however_the_trace_is_flushed() -> None:
    monitor = Monitor(HealthConfig(), 5000)
    draw = np.random.default_rng(3)
    values = [*(1 + 0.5 * draw.random(600)), *(1.3 ** np.arange(60))]
    fired = [n for n, value in enumerate(values) if monitor.loss(value) is not None]
    assert 600 < fired[0] < 625  # 1.3^12 is 23, and ten steps' median must be there
    calm = Monitor(HealthConfig(), 5000)
    assert all(calm.loss(value) is None for value in values[:600])
    assert calm.calm
    for value in values[600 : fired[0]]:
        assert calm.loss(value) is None
    assert not calm.calm, "a state on the brink of an explosion must not be kept as good"


def test_the_state_of_a_monitor_is_all_there_is() -> None:
    monitor = Monitor(HealthConfig(), 100)
    looks(monitor, half__std=[1.0, 1e-5])
    again = Monitor(HealthConfig(), 100, json.loads(json.dumps(monitor.state())))
    assert (
        [a.kind for a in again.look(20, {"half/std": 1e-5})]
        == [a.kind for a in monitor.look(20, {"half/std": 1e-5})]
        == ["collapse"]
    )


class Encoder(nn.Module):
    """A small encoder; the loss is that of a regression, so that a huge learning rate ruins it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8)), nn.Linear(8, 1)

    def forward(self, batch: Tensor, *, epoch: float, seed: int) -> dict[str, Tensor]:
        return {"loss": ((self.out(self.layer(batch)) - batch.sum(1, keepdim=True)) ** 2).mean()}


FIXED = torch.randn(12, 4, generator=torch.Generator().manual_seed(5))


def observe(module: Any) -> Observation:
    return Observation({"code": module.layer(FIXED)}, [str(n // 2) for n in range(12)])


def batches(start: int, rank: int, world: int) -> Iterator[Tensor]:
    for number in range(start // 8, 100000):
        yield torch.randn(8, 4, generator=torch.Generator().manual_seed(number))


def save(module: Any, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    assert all(value.isfinite().all() for value in module.state_dict().values()), "ruined weights reached the model folder"


def go(run: Path, loader: Any = batches, watch: Any = observe, module: Any = Encoder, **changes: Any) -> TrainingResult:
    values: dict[str, Any] = {
        "steps": 200, "batch": 8, "checkpoint_steps": 10, "log_every": 1, "steps_per_epoch": 10, "accelerator": "cpu",
        "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.0}, "schedule": {"name": "constant"}, "clip_norm": None,
    }  # fmt: skip
    config = TrainingConfig.model_validate(values | changes)
    return train(
        module(),
        config,
        run,
        loader=loader,
        save_model=save,
        recipe={},
        observe=watch,
    )


def told(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in events.read(run / "events.jsonl") if event["event"] in kinds]


def test_a_healthy_run_is_silent(tmp_path: Path) -> None:
    assert go(tmp_path / "run").status == "complete"
    assert not told(tmp_path / "run", "alarm", "rollback")
    looked = told(tmp_path / "run", "health")
    assert [event["step"] for event in looked] == list(range(0, 201, 10))
    assert all(event["code/rank"] > 1 for event in looked)


def test_a_huge_learning_rate_is_caught_taken_back_and_survived(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        go(run, optimizer={"name": "sgd", "lr": 0.8, "momentum": 0.0}, health={"max_rollbacks": 8, "lr_factor": 0.1}).status
        == "complete"
    )
    back = told(run, "rollback")
    assert back
    assert back[0]["step"] <= 200
    assert back[0]["to"] < back[0]["step"]
    alarm = told(run, "alarm")[0]
    assert alarm["kind"] in ("loss", "explosion", "collapse", "rank")
    assert "training.optimizer.lr" in alarm["advice"]
    steps = told(run, "step")
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["lr"] == pytest.approx(0.8 * 0.1 ** len(back))


def test_it_stops_with_advice_when_going_back_does_not_help(tmp_path: Path) -> None:
    def poisoned(start: int, rank: int, world: int) -> Iterator[Tensor]:
        for batch in batches(start, rank, world):
            yield batch * float("nan")

    with pytest.raises(DivergenceError, match=r"(?s)after 2 rollbacks.*optimizer\.lr"):
        go(tmp_path / "run", poisoned)
    assert len(told(tmp_path / "run", "rollback")) == 2


def test_one_bad_batch_does_not_end_a_run(tmp_path: Path) -> None:
    def poisoned(start: int, rank: int, world: int) -> Iterator[Tensor]:
        for count, batch in enumerate(batches(start, rank, world), start // 8):
            yield batch * float("nan") if count == 57 else batch

    assert go(tmp_path / "run", poisoned).status == "complete"
    assert [(event["step"], event["to"]) for event in told(tmp_path / "run", "rollback")] == [(60, 50)]
    assert [(event["step"], event["kind"], event["threshold"]) for event in told(tmp_path / "run", "alarm")] == [
        (58, "loss", "finite")
    ]
    assert "Infinity" not in (tmp_path / "run/events.jsonl").read_text()
    assert "NaN" not in (tmp_path / "run/events.jsonl").read_text()
    assert all(math.isfinite(event["loss"]) for event in told(tmp_path / "run", "step"))


def test_a_constant_input_is_caught_within_200_steps(tmp_path: Path) -> None:
    def constant(module: Any) -> Observation:
        return Observation({"code": module.layer(torch.ones(12, 4))}, [str(n // 2) for n in range(12)])

    with pytest.raises(DivergenceError, match=r"(?s)collapse of code.*inputs differ"):
        go(tmp_path / "run", watch=constant, health={"action": "stop"})
    assert told(tmp_path / "run", "alarm")[0]["step"] <= 20
    assert go(tmp_path / "warned", watch=constant).status == "complete"
    assert [event["kind"] for event in told(tmp_path / "warned", "alarm")] == ["collapse", "rank"]


def test_a_run_cut_off_after_going_back_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def loader(kill: bool) -> Any:
        def poisoned(start: int, rank: int, world: int) -> Iterator[Tensor]:
            for count, batch in enumerate(batches(start, rank, world), start // 8):
                if kill and count == 83:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch * float("nan") if count in (57, 95) else batch

        return poisoned

    assert go(tmp_path / "cut", loader(True)).status == "stopped"
    assert go(tmp_path / "cut", loader(False)).status == "complete"
    go(tmp_path / "whole", loader(False))
    kinds = ("step", "health", "alarm", "rollback")
    whole, cut = (told(tmp_path / name, *kinds) for name in ("whole", "cut"))
    assert [e for e in whole if e["event"] == "step"] == [e for e in cut if e["event"] == "step"]
    assert len([e for e in cut if e["event"] == "rollback"]) == 2


class Ruin(Encoder):
    """Seven rows give a finite loss whose gradient is not finite."""

    def forward(self, batch: Tensor, *, epoch: float, seed: int) -> dict[str, Tensor]:
        found = super().forward(batch, epoch=epoch, seed=seed)
        if len(batch) == 7:
            found["loss"].register_hook(lambda gradient: gradient * math.nan)
        return found


@pytest.mark.parametrize("watch", [None, observe])
def test_ruined_weights_are_never_kept_as_good(tmp_path: Path, watch: Any) -> None:
    def loader(start: int, rank: int, world: int) -> Iterator[Tensor]:
        for count, batch in enumerate(batches(start, rank, world), start // 8):
            yield batch[:7] if count == 59 else batch  # step 60 is one of a look and of a state; its loss is finite

    assert go(tmp_path / "run", loader, watch, Ruin).status == "complete"
    assert [(event["step"], event["kind"]) for event in told(tmp_path / "run", "alarm")] == [(60, "weights")]
    assert [(event["step"], event["to"]) for event in told(tmp_path / "run", "rollback")] == [(60, 50)]


@pytest.mark.parametrize("cut", [54, 58])
def test_what_a_run_goes_back_to_depends_neither_on_interruptions_nor_on_the_clock(tmp_path: Path, cut: int) -> None:
    """Stopped after the last regular state, or between the bad step and the look that answers it."""

    def loader(kill: bool) -> Any:
        def poisoned(start: int, rank: int, world: int) -> Iterator[Tensor]:
            for count, batch in enumerate(batches(start, rank, world), start // 8):
                if kill and count == cut:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch * float("nan") if count == 57 else batch

        return poisoned

    plain = {"optimizer": {"name": "adamw", "lr": 1e-3}}  # its memory must be copied, not shared, when going back
    assert go(tmp_path / "cut", loader(True), **plain).status == "stopped"
    assert go(tmp_path / "cut", loader(False), **plain).status == "complete"
    go(tmp_path / "whole", loader(False), **plain)
    go(tmp_path / "often", loader(False), checkpoint_minutes=1e-9, **plain)
    whole = events.read(tmp_path / "whole/events.jsonl")
    assert [event["to"] for event in whole if event["event"] == "rollback"] == [50]
    assert events.read(tmp_path / "cut/events.jsonl") == whole
    assert events.read(tmp_path / "often/events.jsonl") == whole


def test_a_run_goes_back_twice_to_the_same_weights(tmp_path: Path) -> None:
    def poisoned(start: int, rank: int, world: int) -> Iterator[Tensor]:
        fixed = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
        for count in range(start // 8, 100000):
            yield fixed * float("nan") if count in (55, 65) else fixed

    # the first good state after step 50 would be that of step 70: both times the run goes back to step 50
    go(tmp_path / "run", poisoned, optimizer={"name": "adamw", "lr": 1e-3}, health={"lr_factor": 1.0})
    assert [(event["step"], event["to"]) for event in told(tmp_path / "run", "rollback")] == [(60, 50), (70, 50)]
    losses = [event["loss"] for step in (51, 61, 71) for event in told(tmp_path / "run", "step") if event["step"] == step]
    assert losses[0] == losses[1] == losses[2]


DDP = """
    import sys, time
    from pathlib import Path

    import torch
    from test_health import Encoder, Observation, FIXED, batches
    from neuroprior.engine.settings import TrainingConfig
    from neuroprior.engine.training import train

    def loader(start, rank, world):
        for count, batch in enumerate(batches(start, rank, world), start // (8 * world)):
            yield batch * float("nan") if rank == 1 and count == 33 else batch

    def observe(module):  # only the first process may decide
        import os
        rows = torch.ones(12, 8) if os.environ.get("LOCAL_RANK", "0") == "1" else module.layer(FIXED)
        return Observation({"code": rows}, [str(n // 2) for n in range(12)])

    config = TrainingConfig.model_validate({
        "steps": 60, "batch": 8, "log_every": 7, "steps_per_epoch": 10, "accelerator": "cpu", "devices": 2, "checkpoint_minutes": 0.0002,
        "optimizer": {"name": "adamw", "lr": 1e-3}, "health": {"action": "stop", "every": 10},
    })
    module = Encoder()
    import os
    run = Path(sys.argv[1])
    train(module, config, run, loader=loader, save_model=lambda m, f: f.mkdir(exist_ok=True), recipe={}, observe=observe)
    torch.save(module.state_dict(), run / f"rank{os.environ.get('LOCAL_RANK', '0')}.pt")
"""


def test_two_processes_come_to_one_verdict(tmp_path: Path) -> None:
    script, run = tmp_path / "two.py", tmp_path / "run"
    script.write_text(textwrap.dedent(DDP))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(run)], capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [(event["step"], event["kind"]) for event in told(run, "alarm")] == [(34, "loss")]
    assert [(event["step"], event["to"]) for event in told(run, "rollback")] == [(40, 30)]
    weights = [torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
