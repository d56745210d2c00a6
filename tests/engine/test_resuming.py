"""What an optimiser remembers, brought back into a net whose maps lie in another layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from neuroprior.core.errors import ArtifactError
from neuroprior.engine.optimisers import OptimizerConfig, build
from neuroprior.engine.resuming import copied, restore

LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(number):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
def test_a_run_goes_on_in_another_layout(name: str, before: torch.memory_format, after: torch.memory_format) -> None:
    torch.manual_seed(0)
    config = OptimizerConfig.model_validate({"name": name, "lr": 0.05})
    net = nn.Conv3d(3, 6, 3).to(memory_format=before)
    optimizer = build(net, config)
    steps(net, optimizer, 3)
    state, weights = copied(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    steps(net, optimizer, 3)

    resumed = nn.Conv3d(3, 6, 3)
    resumed.load_state_dict(weights)
    resumed.to(memory_format=after)
    again = build(resumed, config)
    restore(again, state)
    steps(resumed, again, 3)
    torch.testing.assert_close(resumed.weight, net.weight, rtol=1e-4, atol=1e-5)


def test_the_state_of_another_net_is_refused() -> None:
    config = OptimizerConfig()
    other = build(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 3)), config)
    with pytest.raises(ArtifactError, match="does not fit the net"):
        restore(build(nn.Conv3d(1, 2, 3, bias=False), config), other.state_dict())
