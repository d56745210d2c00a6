"""Pretraining with vectors and alarms, on synthetic heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from neuroprior.core.errors import ConfigError, DivergenceError, InputError
from neuroprior.engine import events, vram
from neuroprior.stages.anatomy import anatomy
from neuroprior.stages.pretrain import pretrain


@pytest.fixture(scope="session")
def table(index_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("anatomy") / "anatomy.parquet"
    anatomy(index_file, source="labelmap", out=out, set=["label=dseg"], workers=1)
    return out


def write(folder: Path, **parts: Any) -> str:
    recipe: dict[str, Any] = {
        "net": {"name": "unet", "features": [4, 8, 16], "convolutions": 1, "latent": 8},
        "objective": {"name": "cross_contrast", "block": 4},
        "data": {"patch": 16, "flip": 0.0},
        "training": {
            "steps": 200, "batch": 4, "optimizer": {"name": "adamw", "lr": 3e-3}, "schedule": {"name": "cosine", "warmup_steps": 5},
            "health": {"every": 5},
        },
    }  # fmt: skip
    for part, values in parts.items():
        recipe[part] = recipe[part] | values if part != "objective" else values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def told(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in events.read(run / "events.jsonl") if event["event"] == kind]


def test_the_cosine_pull_that_empties_the_anatomy_half_is_flagged_in_the_first_tenth(store_path: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path, training={"health": {"every": 5, "action": "stop"}})
    with pytest.raises(DivergenceError, match=r"(?s)emptied of anatomy.*agreement_form"):
        pretrain(store_path, recipe=recipe, out=tmp_path / "run")
    assert told(tmp_path / "run", "alarm")[0]["step"] <= 20  # of 200


@pytest.mark.parametrize("change", [{"agreement": 0.0}, {"agreement_form": "dense_infonce"}])
def test_what_does_not_empty_the_anatomy_half_is_not_flagged(store_path: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    recipe = write(tmp_path, objective={"name": "cross_contrast", "block": 4} | change, training={"steps": 100})
    pretrain(store_path, recipe=recipe, out=tmp_path / "run")
    assert not told(tmp_path / "run", "alarm")
    looks = told(tmp_path / "run", "health")
    assert all(look["anatomy/spread"] > 0.1 * look["contrast/spread"] for look in looks[1:])


def test_a_vector_head_that_predicts_one_constant_is_flagged_in_the_first_tenth(
    store_path: Path, table: Path, tmp_path: Path
) -> None:
    net, split = {"split": "channels"}, {"name": "anatomy_split", "block": 4}
    raw = write(tmp_path, net=net, objective=split, data={"targets": "raw"}, training={"steps": 100})
    pretrain(store_path, recipe=raw, anatomy=table, out=tmp_path / "raw")
    first = told(tmp_path / "raw", "alarm")[0]
    assert (first["kind"], first["step"]) == ("targets", 5)  # raw volumes of any two people have a cosine of almost 1
    training = {"steps": 400, "health": {"every": 5, "action": "stop"}}
    scored = write(tmp_path, net=net, objective=split, training=training)
    with pytest.raises(DivergenceError, match=r"(?s)constant of anatomical vector.*smooth_l1"):
        pretrain(store_path, recipe=scored, anatomy=table, out=tmp_path / "scored")
    alarm = told(tmp_path / "scored", "alarm")[0]
    assert alarm["step"] <= 40
    assert alarm["value"] < 0.01


def test_a_healthy_run_gives_no_alarm_and_probes_what_is_known(store_path: Path, tmp_path: Path) -> None:
    recipe = write(
        tmp_path, net={"split": "none"}, objective={"name": "mae", "block": 4}, training={"steps": 60, "validate_every": 30}
    )
    pretrain(store_path, recipe=recipe, out=tmp_path / "run")
    assert not told(tmp_path / "run", "alarm")
    probes = told(tmp_path / "run", "probe")
    assert [event["step"] for event in probes] == [30, 60]
    assert "anatomy/contrast" in probes[0]


def test_vectors_reach_the_objective_and_their_absence_is_told(
    store_path: Path, table: Path, index_file: Path, tmp_path: Path
) -> None:
    split = {"name": "anatomy_split", "block": 4, "distance": "smooth_l1"}
    recipe = write(
        tmp_path, net={"name": "resenc", "features": [4, 8, 16], "blocks": [1, 1, 1], "split": "channels"}, objective=split
    )
    text = yaml.safe_load(Path(recipe).read_text())
    del text["net"]["convolutions"]
    Path(recipe).write_text(yaml.safe_dump(text))
    with pytest.raises(ConfigError, match=r"(?s)learns from anatomical volumes.*neuroprior anatomy INDEX"):
        pretrain(store_path, recipe=recipe, out=tmp_path / "without", set=["training.steps=2"])
    result = pretrain(store_path, recipe=recipe, anatomy=table, out=tmp_path / "run", set=["training.steps=40"])
    assert result is not None
    steps = told(tmp_path / "run", "step")
    assert steps[-1]["anatomy"] < steps[0]["anatomy"]
    assert {"reconstruction", "anatomy", "pathology"} <= steps[0].keys()

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = pq.read_schema(table).metadata
    frame = pd.read_parquet(table).assign(subject=lambda rows: "other/" + rows["subject"])
    strangers = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(meta)
    pq.write_table(strangers, tmp_path / "others.parquet")
    with pytest.raises(InputError, match="too few subjects of the training split have anatomy"):
        pretrain(store_path, recipe=recipe, anatomy=tmp_path / "others.parquet", out=tmp_path / "strangers")


def test_the_map_of_the_anatomy_half_is_fitted_saved_and_read_back(store_path: Path, table: Path, tmp_path: Path) -> None:
    import torch

    from neuroprior.inference.model import load

    objective = {
        "name": "anatomy_split", "block": 4, "distance": "smooth_l1", "agreement": 1.0, "agreement_form": "dense_infonce", "refine": 5,
        "refine_summary": 3, "refine_pairs": 24,
    }  # fmt: skip
    net = {"split": "stages", "summary": 4, "refined": True}
    recipe = write(tmp_path, net=net, objective=objective, training={"steps": 4})
    pretrain(store_path, recipe=recipe, anatomy=table, out=tmp_path / "run")
    made: Any = load(tmp_path / "run").net.eval()
    code = made.encode(torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert code.anatomy.shape[1] == 12
    varies = code.anatomy.flatten(2).abs().amax((0, 2)) > 0
    assert varies.tolist() == [True] * 5 + [False] * 3 + [True] * 3 + [False]
    alone = write(tmp_path, net=net, objective=objective, data={"kinds": {"time": 1.0}}, training={"steps": 4})
    with pytest.raises(ConfigError, match=r"(?s)refined on pairs.*refine=0"):
        pretrain(store_path, recipe=alone, anatomy=table, out=tmp_path / "alone")


def test_a_step_in_less_memory_is_the_same_step(store_path: Path, tmp_path: Path) -> None:
    """Micro-batches that fit into a small memory, maps computed again: the trace of the whole batch, and a resume that keeps what was chosen."""
    recipe = write(tmp_path, objective={"name": "mae", "block": 4}, training={"steps": 4, "log_every": 1}, data={"patch": 32})
    pretrain(store_path, recipe=recipe, out=tmp_path / "whole")
    gb = "0.586"
    with pytest.raises(ConfigError, match=r"at least (\d+) MiB") as refused:
        pretrain(store_path, recipe=recipe, out=tmp_path / "less", vram=gb)
    least = float(str(refused.value).split("at least ")[1].split(" MiB")[0]) + 1
    gb = str((least / vram.ROOM + vram.CONTEXT_MB) / 1024)
    assert pretrain(store_path, recipe=recipe, out=tmp_path / "less", vram=gb, dry_run=True) is None
    assert not (tmp_path / "less" / "recipe.yaml").exists()
    pretrain(store_path, recipe=recipe, out=tmp_path / "less", vram=gb)
    kept = yaml.safe_load((tmp_path / "less" / "recipe.yaml").read_text())["training"]
    assert (kept["batch"], kept["accumulate"]) == (1, 4)
    assert kept["recompute"] > 0
    whole, less = ([step["loss"] for step in told(tmp_path / run, "step")] for run in ("whole", "less"))
    assert less == pytest.approx(whole, rel=2e-3)
    assert (
        pretrain(store_path, recipe=recipe, out=tmp_path / "less", vram="24") is not None
    )  # complete already, with its own micro-batch
    with pytest.raises(ConfigError, match=r"training\.batch"):
        pretrain(store_path, recipe=recipe, out=tmp_path / "less")
    coupled = write(tmp_path, objective={"name": "simclr", "block": 4}, training={"steps": 1, "batch": 4})
    pretrain(store_path, recipe=coupled, out=tmp_path / "together", vram="24")
    assert yaml.safe_load((tmp_path / "together" / "recipe.yaml").read_text())["training"]["batch"] == 4
