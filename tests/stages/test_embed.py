"""The stage embed: vectors on disk, rows for failures, and nothing done twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.bridges.made import make_model

from neuroprior.assessments import linear_probe
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.inference.embedding import embed_case
from neuroprior.inference.model import load
from neuroprior.inference.reading import CaseInput
from neuroprior.stages.embed import embed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "m", "regression", ["T1w"])


def test_an_index_gives_a_vector_a_scan_and_is_resumed(model: Path, index_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = embed(model, [str(index_file)], out, split="val")
    table = pd.read_parquet(out / "embeddings.parquet")
    assert (first.done, first.kept, first.failed, first.exit_code) == (len(table), 0, 0, 0)
    assert sorted(table["contrast"].unique()) == ["FLAIR", "T1w", "T2w"]
    row = table.iloc[0]
    loaded = load(model)
    for half in ("whole", "anatomy", "contrast"):
        vector = np.load(out / half / f"{row['scan']}.npy")
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, row[f"{half}_vector"])
        case = CaseInput("x", "", "x", "", {"x": Path(row["path"])})
        np.testing.assert_array_equal(vector, embed_case(loaded, case, half=half))  # type: ignore[arg-type]
    (out / "whole" / f"{row['scan']}.npy").unlink()
    again = embed(model, [str(index_file)], out, split="val")
    assert (again.done, again.kept) == (1, len(table) - 1)
    assert embed(model, [str(index_file)], out, split="val", skip_existing=False).done == len(table)
    other = make_model(tmp_path / "other", None, ["T1w"], spacing=6.0, split="none")
    fresh = embed(other, [str(index_file)], out, split="val", contrasts="T1")
    assert (fresh.done, fresh.kept) == (2, 0)
    assert "contrast" not in fresh.lengths


def test_a_bad_scan_is_a_row_with_its_reason(model: Path, heads: Path, tmp_path: Path) -> None:
    good = sorted(heads.rglob("*_T1w.nii.gz"))[0]
    nameless, broken = tmp_path / "a scan.nii.gz", tmp_path / "broken.nii.gz"
    nameless.write_bytes(good.read_bytes())
    broken.write_bytes(good.read_bytes()[:200])
    done = embed(model, [str(nameless), str(broken), f"T1w={good}"], tmp_path / "out")
    assert (done.done, done.failed, done.exit_code) == (2, 1, 3)
    assert "1 FAILED" in str(done)
    table = pd.read_parquet(tmp_path / "out" / "embeddings.parquet").set_index("scan")
    assert table.loc["broken", "status"] == "failed"
    assert table.loc["broken", "reason"]
    assert table.loc["broken", "whole_vector"] is None
    assert table.loc["a scan", "contrast"] == "unknown"
    np.testing.assert_array_equal(*(table.loc[table.status == "ok", "whole_vector"]))


def test_the_probe_of_a_table_is_what_the_assessment_says(model: Path, heads: Path, tmp_path: Path) -> None:
    people = tmp_path / "people.tsv"
    names = sorted(path.name for path in heads.glob("sub-*"))
    rows = [f"{name}\t{'ab'[k % 2]}\t{'FM'[k // 5]}" for k, name in enumerate(names)]
    people.write_text("\n".join(["participant_id\tkind\tsex", *rows]) + "\n")
    done = embed(
        model, [str(heads)], tmp_path / "out", contrasts="T1w", participants=people, target="kind", groups="sex", half="anatomy"
    )
    table = linear_probe.read_table(tmp_path / "out", people, "kind", half="anatomy")
    assert table.embeddings.shape == (done.done, done.lengths["anatomy"])
    expected, _ = linear_probe.assess(table.embeddings, table.labels, table.subjects, model="out", target="kind")
    assert list(done.scores[: len(expected)]) == expected
    assert {row.metric for row in done.scores} == {"auroc", "macro_f1", "fairness"}
    assert len(pd.read_parquet(tmp_path / "out" / "linear_probe.parquet")) == len(done.scores)
    assert "auroc" in str(done)
    with pytest.raises(ConfigError, match="needs --participants and --target"):
        embed(model, [str(heads)], tmp_path / "out", target="kind")
    with pytest.raises(InputError, match="did you mean 'sex'"):
        embed(model, [str(heads)], tmp_path / "out", contrasts="T1w", participants=people, target="kind", groups="sexx")
    with pytest.raises(ConfigError, match="whole, anatomy, contrast"):
        embed(model, [str(heads)], tmp_path / "out", half="left")


def test_what_cannot_be_embedded_is_told(model: Path, heads: Path, index_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such scan"):
        embed(model, [str(index_file)], tmp_path, split="nowhere")
    with pytest.raises(ConfigError, match="need an index"):
        embed(model, [str(heads)], tmp_path, split="val")
    with pytest.raises(InputError, match="none of these|one of these"):
        embed(model, [str(heads)], tmp_path, contrasts="ADC")
    with pytest.raises(InputError, match="no such input"):
        embed(model, [str(tmp_path / "nowhere")], tmp_path)
