"""The rules of the challenges as they stand in the files, and that a wrong file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroprior.core import shelf
from neuroprior.core.config import parse, read_yaml
from neuroprior.core.errors import ConfigError
from neuroprior.protocols import Protocol, read


@pytest.mark.parametrize("name", shelf.names("protocols"))
def test_every_file_is_a_protocol_and_is_frozen(name: str) -> None:
    protocol = read(name)
    assert protocol.name == name
    with pytest.raises(ValueError, match="frozen"):
        protocol.title = "other"  # type: ignore[misc]


def test_fomo26_is_what_its_organisers_say() -> None:
    protocol = read("fomo26")
    assert [task.kind for task in protocol.tasks] == [
        "classification", "segmentation", "regression", "segmentation", "classification", "embedding", "embedding",
    ]  # fmt: skip
    assert [task.weight for task in protocol.tasks] == [0.10, 0.25, 0.10, 0.25, 0.10, 0.10, 0.10]
    assert [task.cases for task in protocol.tasks] == [21, 23, 494, 40, 48, None, None]
    worst = {metric.name: (metric.better, metric.worst) for task in protocol.tasks for metric in task.metrics}
    assert worst["mae"] == ("lower", 100)
    assert worst["pearson_r"] == ("higher", -100)
    assert worst["auroc"] == worst["macro_f1"] == ("higher", 0)
    assert protocol.empty_masks is not None
    assert protocol.empty_masks.both == {"dsc": 1, "nsd": 0}
    assert protocol.empty_masks.one == {"dsc": 0, "nsd": 0}
    assert not protocol.empty_masks.background_counted
    assert (protocol.nsd_tolerance_mm, protocol.limits.seconds) == (1.0, 120)
    assert protocol.probe is not None
    assert (protocol.probe.train, protocol.probe.validation, protocol.probe.test, protocol.probe.seed) == (0.4, 0.1, 0.5, 42)
    flags = {task.name: [flag for entry in task.inputs for flag in entry.flags] for task in protocol.tasks}
    assert flags["infarct"] == ["--flair", "--dwi", "--adc", "--t2s", "--swi"]
    assert flags["meningioma"] == ["--flair", "--dwi", "--t2s", "--swi"]
    assert (flags["brain-age"], flags["trigeminal"], flags["polymicrogyria"]) == (["--t1"], ["--t2"], ["--t1"])
    assert flags["linear-probe"] == flags["fairness"] == ["--input"]
    assert protocol.task(2) is protocol.task("meningioma") is protocol.task("2")


def test_fomo25_and_ssl3d() -> None:
    fomo25, ssl3d = read("fomo25"), read("ssl3d")
    assert [task.cases for task in fomo25.tasks] == [21, 23, 200]
    assert [name for entry in fomo25.task("brain-age").inputs for name in entry.contrasts] == ["T1w", "T2w"]
    assert fomo25.one_checkpoint
    assert {task.kind: task.count for task in ssl3d.tasks} == {"segmentation": 4, "classification": 3}
    assert ssl3d.checkpoint is not None
    assert ssl3d.checkpoint.classification_crop == (160, 160, 160)


def broken(**changes: object) -> dict[str, object]:
    return {"name": "fomo26", **read_yaml(shelf.path_of("protocols", "fomo26")), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nsd_tolerance": 1}, "did you mean 'nsd_tolerance_mm'"),
        ({"tasks": [{"number": 1, "name": "x", "kind": "segmentation", "metrics": []}]}, "needs a weight for every task"),
        ({"tasks": [{"number": 1, "name": "x", "kind": "detection", "metrics": []}]}, "'detection'"),
        (
            {"tasks": [{"number": 1, "name": "x", "kind": "regression", "metrics": [], "inputs": [{"contrasts": ["T1"], "flags": ["--t1"]}]}]},
            "canonical names",
        ),
        (
            {"tasks": [{"number": 1, "name": "x", "kind": "regression", "metrics": [], "inputs": [{"contrasts": ["T1w", "T2w"], "flags": ["--t1"]}]}]},
            "one flag for each contrast",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_a_message(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Protocol, broken(**changes), where=Path("fomo26.yaml"))


def test_an_unknown_name_or_number_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fomo26'"):
        read("fomo62")
    with pytest.raises(ConfigError, match=r"7 \(fairness\)"):
        read("fomo26").task(8)
