"""A model folder whose description is not whole is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuroprior.core import artifacts
from neuroprior.core.errors import ArtifactError, ConfigError
from neuroprior.inference.model import PARTS, load

from . import made


def damaged(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A segmentation model whose description was changed."""
    made.segmenter(folder)
    info = artifacts.read_json(folder / "model.json")
    change(info)
    artifacts.write_json(folder / "model.json", info)
    return folder


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        *((lambda info, name=name: info.pop(name), name) for name in PARTS),
        (lambda info: info.update(contrasts=7), "contrasts"),
        (lambda info: info.pop("task"), "task.name"),
        (lambda info: info["task"].update(name="detection"), "task.name"),
        (lambda info: info["task"].pop("label_values"), "task.label_values"),
        (lambda info: info["task"].update(window=None), "task.window"),
        (lambda info: info["task"].update(window=[16, 16]), "task.window: three numbers"),
        (lambda info: info["task"].update(window=[16, 16, 0]), "task.window: three numbers"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], Any], lacking: str) -> None:
    with pytest.raises(ArtifactError, match=rf"(?s)model.json is not whole.*model.json.*expected: .*{lacking}"):
        load(damaged(tmp_path / "model", change))


def test_impossible_preprocessing_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)spacing_mm.*'big'.*model.json"):
        load(damaged(tmp_path / "model", lambda info: info["preprocessing"].update(spacing_mm="big")))
