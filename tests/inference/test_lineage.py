"""What a model takes over from the one it started from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from neuroprior.core import artifacts
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.errors import ConfigError
from neuroprior.inference import lineage
from neuroprior.inference.model import Model

SPEC = ConformSpec(spacing_mm=1.0, order=3)


def model(folder: Path = Path("m"), **info: Any) -> Model:
    nothing: Any = None
    plain = {"preprocessing": SPEC.model_dump(mode="json"), "data": {}, "lineage": [], "licences": []}
    return Model(nothing, None, plain | info, folder)


def test_a_store_prepared_with_other_steps_is_told(caplog: pytest.LogCaptureFixture) -> None:
    given = model(data={"steps": {"bias": "n4", "mask": "head", "align": True}})
    lineage.require_preparation(given, SPEC, {"bias": "none", "mask": "head", "align": False}, "store")
    assert len(caplog.records) == 1
    assert "--bias n4" in caplog.text
    caplog.clear()
    lineage.require_preparation(given, SPEC, {"bias": "n4", "mask": "head", "align": False}, "store")
    lineage.require_preparation(model(), SPEC, {"bias": "none"}, "store")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"spacing_mm": 2.0}, "--spacing 1.0"),
        ({"spacing_mm": "native"}, "--spacing 1.0"),
        ({"crop": "nonzero"}, "--crop head"),
        ({"normalise": "none"}, "--normalise zscore"),
        ({"order": 1}, "--order 3"),
        ({"antialias": False}, "--antialias"),
        ({"order": 1, "crop": "none"}, "--crop head --order 3"),
    ],
)
def test_a_store_conformed_otherwise_is_refused_with_the_options_that_differ(change: dict[str, Any], option: str) -> None:
    other = SPEC.model_copy(update=change)
    with pytest.raises(ConfigError) as caught:
        lineage.require_preparation(model(), other, {}, "store")
    assert str(caught.value).endswith(f"prepare the index again with {option}")


def test_options_of_a_preparation() -> None:
    assert lineage.prepared_with(SPEC) == "--spacing 1.0 --crop head --normalise zscore --order 3"


def test_subjects_of_the_whole_chain(caplog: pytest.LogCaptureFixture) -> None:
    names = ["a/1", "a/2", "b/1"]
    hashes = [artifacts.sha256_json(name)[:12] for name in names]
    given = model(data={"subject_hashes": hashes[:1]}, lineage=[{"data": {}}, {"data": {"subject_hashes": hashes[2:]}}])
    assert lineage.subject_hashes(given.info) == {hashes[0], hashes[2]}
    with caplog.at_level(logging.WARNING):
        lineage.tell_overlap(given.info, ["a/2", "b/1", "b/1"], "runs/x")
        assert "1 test subjects were in the pretraining data of runs/x (without labels), for example b/1" in caplog.text
        caplog.clear()
        lineage.tell_overlap(model().info, names, "runs/x")
        assert caplog.text == ""


def test_a_lineage_grows_by_the_model_and_what_its_run_cost(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "ledger.json").write_text(json.dumps({"device": "cpu", "device_hours": 2.0, "steps": 5}))
    told = {"weights_sha256": "b", "method": {"stage": "pretrain"}, "lineage": [{"weights_sha256": "a"}], "licences": ["CC0"]}
    chain = lineage.inherited(model(tmp_path / "model", **told))
    assert [step["weights_sha256"] for step in chain] == ["a", "b"]
    assert chain[1]["cost"] == {"device": "cpu", "device_hours": 2.0, "flops_total": None, "energy_kwh": None}
    assert chain[1]["licences"] == ["CC0"]
    assert lineage.inherited(model(tmp_path / "another", **told))[1]["cost"] is None, "beside a ledger, but not of that run"
