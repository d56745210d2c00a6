"""What is asked for by name and meets nothing is told; conditions see what the checks found; unknown contrasts become a list to fill in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from neuroprior.core.errors import ConfigError
from neuroprior.data.index import read_index, read_table
from neuroprior.stages.index import index


def scan(path: Path, seed: int, *, bad: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (10, 10, 10)).astype(np.float32)
    if bad:
        voxels[1, 1, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([9.0, 9, 9, 1])), path)
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Two datasets of three subjects; one scan has a NaN, one is a copy of a scan of the other dataset."""
    for d, name in enumerate(("one", "two")):
        root = tmp_path / "data" / name
        root.mkdir(parents=True)
        (root / "dataset_description.json").write_text(json.dumps({"Name": name, "BIDSVersion": "1.10.0"}))
        for s in range(3):
            scan(root / f"sub-{s}/anat/sub-{s}_T1w.nii.gz", 10 * d + s if (d, s) != (1, 2) else 0, bad=(d, s) == (0, 1))
    return tmp_path / "data"


def test_policies_that_nobody_would_look_for_are_refused(made: Path, tmp_path: Path) -> None:
    for name in ("faces", "intensity", "label"):
        for policy in ("fail", "skip") if name != "intensity" else ("fail", "fix"):
            with pytest.raises(ConfigError, match=rf"{name}: this is seen in the voxels only[\s\S]*--checks header"):
                index([made], tmp_path / "i.parquet", checks="header", policy=[f"{name}={policy}"], workers=1)
    index([made], tmp_path / "i.parquet", checks="header", policy=["geometry=skip", "duplicates=skip"], workers=1)


def test_a_condition_sees_what_the_checks_found(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "i.parquet"

    def kept(where: str, fresh: bool = False) -> set[str]:
        summary = index([made], tmp_path / "fresh.parquet" if fresh else out, where=where, workers=1)
        found = {row.scan for row in read_index(summary.out)}
        assert len(found) + summary.left_out == len(list(made.glob("*/sub-*/anat/*.nii.gz")))
        return found

    everything = {f"{name}/sub-{s}_T1w" for name in ("one", "two") for s in range(3)}
    wrong, copy = {"one/sub-1_T1w"}, {"two/sub-2_T1w"}
    for _ in range(2):  # afresh, and from the rows that are there
        assert kept("check_intensity == 'ok'") == everything - wrong
        assert kept("check_duplicates == 'ok'") == everything - wrong - copy
        assert kept("status == 'ok'") == everything - wrong - copy
        assert kept("status == 'ok'") == everything - wrong - copy
        assert kept("status != 'bad'") == everything - wrong
    assert kept("status == 'ok'") == everything - wrong - copy
    # what was a copy is none any more: its own dataset has not changed, and it is back
    scan(made / "one/sub-0/anat/sub-0_T1w.nii.gz", 99)
    assert kept("status == 'ok'") == everything - wrong
    scan(made / "two/sub-2/anat/sub-2_T1w.nii.gz", 99)
    assert kept("status == 'ok'") == everything - wrong - copy == kept("status == 'ok'", fresh=True)
    assert read_table(out)[0].equals(read_table(tmp_path / "fresh.parquet")[0])
    with pytest.raises(ConfigError, match="cannot ask for the split: subjects are split after rows were left out"):
        kept("split == 'train'")
    with pytest.raises(ConfigError, match="did you mean 'check_intensity'"):
        kept("check_intensty == 'ok'", fresh=True)


def test_copies_of_what_was_left_out_stay_together_when_nothing_changes(made: Path, tmp_path: Path) -> None:
    """The groups are remembered, not only the rows: the splits of a second run are those of the first."""
    scan(made / "one/sub-0/ses-1/anat/sub-0_ses-1_T1w.nii.gz", 55)
    for seed in range(6):
        found = []
        for _ in range(2):
            index([made], tmp_path / f"{seed}.parquet", where="spacing_mm is not None and scan != 'one/sub-0_T1w'", split="train=0.5,test=0.5", seed=seed, workers=1)  # fmt: skip
            found.append({row.subject: row.split for row in read_index(tmp_path / f"{seed}.parquet")})
        assert found[0] == found[1]
        assert found[0]["one/sub-0"] == found[0]["two/sub-2"]


def test_workers_are_one_or_more(made: Path, tmp_path: Path) -> None:
    from neuroprior.stages.prepare import prepare

    for workers in (0, -1):
        with pytest.raises(ConfigError, match="1 or more"):
            index([made], tmp_path / "i.parquet", workers=workers)
        with pytest.raises(ConfigError, match="1 or more"):
            prepare(tmp_path / "i.parquet", tmp_path / "store", workers=workers)
    assert not list(tmp_path.glob("i.*"))


def test_names_in_options_that_meet_nothing_are_told(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "map.yaml").write_text("wondr: T1w\nwonder: T1w\nlater:\n")
    scan(made / "one/sub-2/anat/sub-2_wonder.nii.gz", 77)
    options: dict[str, Any] = {
        "licence": ["onne=CC0", "two=CC0"], "contrast_map": tmp_path / "map.yaml", "variable": [f"here={tmp_path / 'nowhere'}", f"there={made}"],
    }  # fmt: skip
    for _ in range(2):  # also when nothing has changed
        caplog.clear()
        index([made], tmp_path / "i.parquet", workers=1, **options)
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(told) == 3
        assert told[0] == "--licence onne: no dataset is called so; did you mean 'one'?"
        assert told[1] == "--contrast-map wondr: no scan's contrast is spelled so; did you mean 'wonder'?"
        assert told[2].startswith(f"--variable here: no scan lies in {tmp_path / 'nowhere'}")
    assert {row.licence for row in read_index(tmp_path / "i.parquet") if row.dataset == "two"} == {"CC0"}


def test_a_licence_is_stated_for_a_source_of_a_collection(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        scan(tmp_path / f"fomo/sub_{n}/ses_1/t1.nii.gz", n)
    (tmp_path / "fomo/participants.tsv").write_text("participant_id\tage\nsub_1\t30\nsub_2\t31\nsub_3\t32\n")
    (tmp_path / "fomo/mapping.tsv").write_text("participant_id\tdataset\nsub_1\tA\nsub_2\tB\nsub_3\tC\n")
    summary = index([tmp_path / "fomo"], tmp_path / "i.parquet", licence=["A=CC0", "B=CC-BY-4.0"], workers=1)
    assert {row.subject: row.licence for row in read_index(tmp_path / "i.parquet")} == {
        "fomo/sub-1": "CC0", "fomo/sub-2": "CC-BY-4.0", "fomo/sub-3": None,
    }  # fmt: skip
    assert summary.licences == {"fomo": "CC-BY-4.0, CC0, not stated"}
    assert "1 datasets state no licence" in str(summary)
    summary = index([tmp_path / "fomo"], tmp_path / "i.parquet", licence=["A=CC0", "fomo=CC-BY-4.0"], workers=1)
    assert summary.licences == {"fomo": "CC-BY-4.0, CC0"}


def test_unknown_contrasts_are_a_list_to_fill_in(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(16):
        scan(made / f"one/sub-0/anat/sub-0_zz{n}.nii.gz", 100 + n)
    scan(made / "one/sub-1/anat/sub-1_zz3.nii.gz", 200)
    out, file = tmp_path / "i.parquet", tmp_path / "i.contrasts.yaml"
    summary = index([made], out, workers=1)
    assert summary.to_name == file
    assert f"name those you want in {file}" in str(summary)
    assert yaml.safe_load(file.read_text()) == dict.fromkeys(f"zz{n}" for n in range(16))
    assert '"zz3":  # 2 scans\n' in file.read_text()
    # filled in, in part, and given back
    file.write_text(file.read_text().replace('"zz3":', '"zz3": T2w').replace('"zz4":', '"zz4": "FLAIR"'))
    index([made], out, workers=1)  # without giving it: what was filled in stays
    summary = index([made], out, contrast_map=file, workers=1)
    assert len(summary.unknown) == 14
    assert {row.contrast for row in read_index(out) if row.contrast_raw in ("zz3", "zz4")} == {"T2w", "FLAIR"}
    named = {f"zz{n}": "T1w" for n in range(16)}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **named}))
    before = file.read_text()
    assert index([made], out, contrast_map=file, workers=1).unknown == {}
    assert file.read_text() == before  # somebody's work
    file.write_text("zz0: [")
    assert index([made], out, workers=1).to_name is None
    assert "the list of unknown contrasts is not written" in caplog.text
    file.write_text("zz0:\n")
    for path in made.glob("one/*/anat/*_zz*"):
        path.unlink()
    index([made], out, workers=1)
    assert not file.exists()


@pytest.mark.parametrize("name", ["yes", "null", "1e5", "007", 'a "b"', "a: b # c", "données", "- x", "\\x"])
def test_any_spelling_survives_the_list(name: str, tmp_path: Path) -> None:
    from neuroprior.data import contrast_list

    file = tmp_path / "x.yaml"
    contrast_list.write(file, {name: 3, "other": 1}, {}, tmp_path / "x.parquet")
    assert contrast_list.read(file) == {}
    assert yaml.safe_load(file.read_text()) == {name: None, "other": None}
    contrast_list.write(file, {"other": 1}, {name: "T1w"}, tmp_path / "x.parquet")
    assert contrast_list.read(file) == {name: "T1w"}
