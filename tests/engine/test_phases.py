"""Phases and the choice of weights, as pure functions."""

from __future__ import annotations

import pytest
from torch import nn

from neuroprior.core.errors import ConfigError
from neuroprior.engine.optimisers import OptimizerConfig, build
from neuroprior.engine.phases import PhaseConfig, lengths, rate_of, share_of_rate
from neuroprior.engine.schedules import ScheduleConfig, factor
from neuroprior.engine.selection import Selection


def test_shares_become_whole_steps_that_sum() -> None:
    phases = [PhaseConfig(share=0.3), PhaseConfig(share=0.7)]
    assert lengths(phases, 10) == [3, 7]
    for steps in range(1, 50):
        assert sum(lengths([PhaseConfig(share=s) for s in (1, 1, 1)], steps)) == steps


def test_the_longest_name_counts() -> None:
    phase = PhaseConfig(rates={"encoder": 0.5, "encoder.2": 0.1, "all": 2.0})
    assert [rate_of(phase, g) for g in ("encoder.1", "encoder.2", "encoder.2.conv", "head")] == [0.5, 0.1, 0.1, 2.0]
    with pytest.raises(ConfigError, match="says nothing of the parameters 'head'"):
        rate_of(PhaseConfig(rates={"encoder": 1.0}), "head")


def test_every_phase_runs_through_the_schedule_from_its_own_warm_up() -> None:
    schedule = ScheduleConfig(name="cosine", warmup_steps=1)
    phases = [PhaseConfig(share=0.4, warmup=0.5), PhaseConfig(share=0.6)]
    found = [share_of_rate(phases, schedule, step, 10)[0] for step in range(10)]
    assert found[:4] == [factor(schedule.model_copy(update={"warmup_steps": 2}), s, 4) for s in range(4)]
    assert found[4:] == [factor(schedule, s, 6) for s in range(6)]
    assert found[1] == found[4] == 1.0
    assert share_of_rate((), schedule, 3, 10) == (factor(schedule, 3, 10), None)


def test_named_groups_hold_every_parameter_once() -> None:
    net = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True))
    groups = build(net, OptimizerConfig(), lambda name: f"part{name[0]}").param_groups
    assert {(g["group"], g["weight_decay"] > 0) for g in groups} == {
        ("part0", True),
        ("part0", False),
        ("part1", True),
        ("part1", False),
    }
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in net.parameters())


def test_the_best_is_by_the_direction_of_the_score_smoothed_and_the_earlier_on_a_tie() -> None:
    dice, loss = Selection("dice"), Selection("loss")
    assert [dice.update(n, v) for n, v in enumerate((0.2, 0.5, 0.5, 0.4))] == [True, True, False, False]
    assert (dice.step, dice.score, dice.stale) == (1, 0.5, 2)
    assert [loss.update(n, v) for n, v in enumerate((0.2, 0.5, 0.1))] == [True, False, True]
    smooth = Selection("dice", ema=0.5)
    for n, v in enumerate((0.0, 1.0, 0.0)):
        smooth.update(n, v)
    assert (smooth.step, smooth.score, smooth.raw, smooth.smoothed) == (1, 0.5, 1.0, 0.25)
    assert Selection(**smooth.state()) == smooth
