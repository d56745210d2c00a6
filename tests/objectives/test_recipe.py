"""Recipes that cannot work are refused where they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from neuroprior.core.errors import ConfigError
from neuroprior.objectives._recipe import read_recipe


def test_a_setting_is_named_whole_and_the_file_only_where_it_lies_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.precision: ") as told:
        read_recipe("tiny", ["training.precision=16"])
    assert "tiny.yaml" not in str(told.value)
    with pytest.raises(ConfigError, match=r"unknown key 'training\.stepps'.*steps"):
        read_recipe("tiny", ["training.stepps=1"])
    path = tmp_path / "own.yaml"
    values: dict[str, Any] = {
        "net": {"name": "unet"},
        "objective": {"name": "mae", "ratio": 2},
        "data": {"patch": 16},
        "training": {"steps": 1},
    }
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"objective\.ratio: .*got 2") as told:
        read_recipe(str(path), ["training.steps=2"])
    assert "own.yaml" in str(told.value)


def test_maps_as_targets_need_a_label() -> None:
    wanted = ["objective.target=map", "objective.map_labels=[1, 2]"]
    with pytest.raises(ConfigError, match=r"data\.label"):
        read_recipe("ssl3d", wanted)
    assert read_recipe("ssl3d", [*wanted, "data.label=dseg"]).data.label == "dseg"
