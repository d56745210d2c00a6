"""Every shipped recipe is found, says what it is, and can be instantiated; wrong ones are told in the user's spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroprior.core import shelf
from neuroprior.core.errors import ConfigError
from neuroprior.inference.model import build_net
from neuroprior.objectives._recipe import read_recipe


@pytest.mark.parametrize("name", shelf.names("recipes"))
def test_a_shipped_recipe_builds(name: str) -> None:
    recipe = read_recipe(name)
    net = build_net(recipe.net_name, recipe.net)
    recipe.build_objective(net)
    assert recipe.training.resolved(100).steps
    assert recipe.plain()["net"]["name"] == recipe.net_name


def test_fomo25_is_the_papers() -> None:
    recipe = read_recipe("fomo25")
    resolved = recipe.training.resolved(10_068)
    assert resolved.steps == 100 * (10_068 // 4)
    assert resolved.schedule.warmup_steps == 5 * (10_068 // 4)
    assert (resolved.optimizer.name, resolved.optimizer.lr, resolved.clip_norm) == ("adamw", 1e-4, 1.0)
    plain = recipe.plain()["objective"]
    assert [plain[k] for k in ("reconstruction", "cross", "kl", "kl_epochs", "agreement", "separation", "beta", "ratio", "block")] == [
        3.0, 1.0, 0.001, 10.0, 0.5, 0.5, 0.1, 0.6, 4,
    ]  # fmt: skip
    assert recipe.data.size == (64, 64, 64)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.stepz=3", r"'stepz'.*|stepz.*steps"),
        ("objective.ratio=1.5", "objective|ratio.*less than 1"),
        ("objective.wireing=own", "wiring"),
        ("net.name=unett", "unet"),
        ("nets.name=unet", "net"),
        ("training.precision=fp8", "precision"),
        ("objective.name=maee", "mae"),
        ("training.steps", "key=value"),
        ("net.split=none", "split"),
    ],
)
def test_a_wrong_setting_is_told(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe = read_recipe("tiny", [setting])
        recipe.build_objective(build_net(recipe.net_name, recipe.net))


def test_an_absent_or_broken_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read_recipe(str(tmp_path / "absent.yaml"))
    (tmp_path / "broken.yaml").write_text("net: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_recipe(str(tmp_path / "broken.yaml"))
    (tmp_path / "bare.yaml").write_text("training: {steps: 3}")
    with pytest.raises(ConfigError, match="names no net"):
        read_recipe(str(tmp_path / "bare.yaml"))
