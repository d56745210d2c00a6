"""The index as a stage: policies, conditions, merges, duplicates, what is kept from before, and what survives a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from neuroprior.core.errors import ConfigError, InputError, LeakageError
from neuroprior.data import indexing
from neuroprior.data.index import read_index, read_table
from neuroprior.stages.index import index

Make = Callable[..., Path]


def scan(
    path: Path, seed: int = 0, *, change: Callable[[np.ndarray], Any] | None = None, affine: np.ndarray | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (12, 12, 12)).astype(np.float32)
    if change is not None:
        change(voxels)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([8.0, 8, 8, 1]) if affine is None else affine), path)
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Two datasets, one without a licence, twelve subjects, and a duplicate across them."""
    root = tmp_path / "data"
    for d, (name, licence) in enumerate((("one", "CC0"), ("two", None))):
        facts = {"Name": name, "BIDSVersion": "1.10.0"} | ({"License": licence} if licence else {})
        (root / name).mkdir(parents=True)
        (root / name / "dataset_description.json").write_text(json.dumps(facts))
        rows = ["participant_id\tage\tsex\tEDSS"]
        for s in range(6):
            rows.append(f"sub-{s}\t{30 + 10 * s}\t{'FM'[s % 2]}\t{s / 2}")
            for c, contrast in enumerate(("T1w", "FLAIR")):
                scan(root / name / f"sub-{s}/anat/sub-{s}_{contrast}.nii.gz", seed=100 * d + 10 * s + c)
        (root / name / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def rows(out: Path) -> dict[str, Any]:
    return {row.scan: row for row in read_index(out)}


def test_a_merge_names_subjects_by_their_dataset(made: Path, tmp_path: Path) -> None:
    summary = index([made], tmp_path / "i.parquet", workers=1)
    assert summary.datasets == {"one": 12, "two": 12}
    assert summary.subjects == 12
    assert summary.licences == {"one": "CC0", "two": "not stated"}
    assert "two" in str(summary)
    assert "--licence two=" in str(summary)
    assert summary.readers[str(made / "one")] == "bids: it has a dataset_description.json"
    stated = index([made], tmp_path / "i.parquet", licence=["two=CC-BY-4.0"], workers=1)
    assert stated.licences["two"] == "CC-BY-4.0"


def test_datasets_of_one_name_get_names_of_their_own(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "one", tmp_path / "other/one")
    summary = index([made, tmp_path / "other"], tmp_path / "i.parquet", workers=1)
    assert set(summary.datasets) == {"data-one", "other-one", "two"}
    with pytest.raises(InputError, match="given twice"):
        index([made, made / "one"], tmp_path / "j.parquet", workers=1)


def test_indexes_merge_and_keep_their_splits(made: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        index([made / name], tmp_path / f"{name}.parquet", split="train=0.5,test=0.5", workers=1)
    index([tmp_path / "one.parquet", tmp_path / "two.parquet"], tmp_path / "both.parquet", split="train=1", workers=1)
    both = rows(tmp_path / "both.parquet")
    for name in ("one", "two"):
        for key, row in rows(tmp_path / f"{name}.parquet").items():
            assert both[key].split == row.split
            assert (both[key].affine, both[key].age, both[key].checks) == (row.affine, row.age, row.checks)
    assert len(both) == 24


def test_a_condition_leaves_rows_out(made: Path, tmp_path: Path) -> None:
    summary = index([made], tmp_path / "i.parquet", where="contrast == 'FLAIR' and age > 60 and licence == 'CC0'", workers=1)
    assert {(r.contrast, r.dataset) for r in read_index(tmp_path / "i.parquet")} == {("FLAIR", "one")}
    assert (summary.ok + summary.warning, summary.left_out) == (2, 22)
    again = index([made], tmp_path / "i.parquet", where="contrast == 'FLAIR' and age > 60 and licence == 'CC0'", workers=1)
    assert (again.reused, again.left_out) == (2, 22)
    index([made], tmp_path / "i.parquet", where="EDSS >= 2.5 and shape is not None", workers=1)
    assert {r.subject for r in read_index(tmp_path / "i.parquet")} == {"one/sub-5", "two/sub-5"}
    with pytest.raises(ConfigError, match="did you mean 'EDSS'"):
        index([made], tmp_path / "k.parquet", where="EDS > 1 or age > 0", workers=1)
    with pytest.raises(InputError, match="leaves none of 24 scans"):
        index([made], tmp_path / "k.parquet", where="age > 900", workers=1)
    with pytest.raises(ConfigError, match="no place in a condition"):
        index([made], tmp_path / "k.parquet", where="__import__('os')", workers=1)


def nan(voxels: np.ndarray) -> None:
    voxels[3, 3, 3] = np.nan


def constant(voxels: np.ndarray) -> None:
    voxels[:] = 7


SHEARED = np.array([[8.0, 2, 0, 0], [0, 8, 0, 0], [0, 0, 8, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(("fault", "check", "policy", "status", "reason"), [
    ({"change": nan}, "intensity", "skip", "bad", "1 NaN"), ({"change": nan}, "intensity", "fix", "warning", "they become 0"),
    ({"change": constant}, "intensity", "fix", "bad", "constant"), ({"affine": SHEARED}, "geometry", "fix", "warning", "not orthogonal"),
    ({"affine": SHEARED}, "geometry", "skip", "bad", "not orthogonal"), ({"affine": np.diag([0.008, 0.008, 0.008, 1])}, "geometry", "fix", "warning", "no brain scan"),
    ({"seed": 1}, "duplicates", "fix", "warning", "same image as one/sub-0_FLAIR"), ({"seed": 1}, "duplicates", "skip", "bad", "same image"),
])  # fmt: skip
def test_every_check_is_a_column_and_has_its_policies(
    made: Path, tmp_path: Path, fault: dict[str, Any], check: str, policy: str, status: str, reason: str
) -> None:  # fmt: skip
    scan(made / "two/sub-3/anat/sub-3_T1w.nii.gz", **fault)
    summary = index([made], tmp_path / "i.parquet", policy=[f"{check}={policy}"], workers=1)
    table = pd.read_parquet(tmp_path / "i.parquet").set_index("scan")
    row = table.loc["two/sub-3_T1w"]
    assert str(row["status"]) == status
    assert reason in "; ".join(row["reasons"])
    assert str(row[f"check_{check}"]) != "ok"
    assert set(table.drop(index="two/sub-3_T1w")[f"check_{check}"]) == {"ok"}
    assert summary.warning + summary.bad == 1
    with pytest.raises(InputError, match=rf"1 scans fail the check '{check}'[\s\S]*two/sub-3_T1w"):
        index([made], tmp_path / "none.parquet", policy=[f"{check}=fail"], workers=1)
    assert not (tmp_path / "none.parquet").exists()


def test_duplicates_across_subjects_stay_in_one_split(made: Path, tmp_path: Path) -> None:
    for s in range(5):  # a chain: every subject of two shares a scan with one of one
        shutil.copy(made / f"one/sub-{s}/anat/sub-{s}_T1w.nii.gz", made / f"two/sub-{s + 1}/anat/sub-{s + 1}_T1w.nii.gz")
    for seed in range(4):
        index([made], tmp_path / "i.parquet", split="train=0.5,test=0.5", seed=seed, workers=1)
        split = {row.subject: row.split for row in read_index(tmp_path / "i.parquet")}
        assert all(split[f"one/sub-{s}"] == split[f"two/sub-{s + 1}"] for s in range(5))
        assert Counter(split.values()) == {"train": 6, "test": 6}
    # the same content packed in another way is found all the same; another content of one checksum is not taken for it
    voxels = nibabel.load(made / "one/sub-5/anat/sub-5_T1w.nii.gz")
    nibabel.save(voxels, made / "two/sub-0/anat/sub-0_T1w.nii")
    (made / "two/sub-0/anat/sub-0_T1w.nii.gz").unlink()
    assert "two/sub-0_T1w" in rows(tmp_path / "i.parquet")


def test_pairs_from_a_table_stay_together_and_contradictions_are_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("left_subject\tright_subject\none/sub-0\ttwo/sub-5\n")
    for seed in range(5):
        index([made], tmp_path / "i.parquet", together=tmp_path / "pairs.tsv", split="train=0.5,test=0.5", seed=seed, workers=1)
        split = {row.subject: row.split for row in read_index(tmp_path / "i.parquet")}
        assert split["one/sub-0"] == split["two/sub-5"]
    (tmp_path / "split.tsv").write_text("participant_id\tsplit\none/sub-0\ttrain\ntwo/sub-5\ttest\n")
    with pytest.raises(LeakageError, match="belong together"):
        index([made], tmp_path / "i.parquet", together=tmp_path / "pairs.tsv", split_file=tmp_path / "split.tsv", workers=1)


def test_strata_are_spread_evenly(made: Path, tmp_path: Path) -> None:
    index([made], tmp_path / "i.parquet", stratify="sex", split="train=0.5,test=0.5", workers=1)
    people = {(row.subject, row.sex, row.split) for row in read_index(tmp_path / "i.parquet")}
    assert Counter((sex, split) for _, sex, split in people) == {(s, p): 3 for s in "FM" for p in ("train", "test")}


def test_what_has_not_changed_is_not_read_again(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    from neuroprior.data import index as tables

    plain = tables.check_scan
    monkeypatch.setattr(tables, "check_scan", lambda scan, **options: read.append(scan.scan) or plain(scan, **options))
    out = tmp_path / "i.parquet"
    index([made], out, workers=1)
    assert len(read) == 24
    first, before = out.read_bytes(), read_table(out)[0]

    def again(expected: set[str], **options: Any) -> None:
        read.clear()
        index([made], out, workers=1, **options)
        assert set(read) == expected

    again(set())
    assert out.read_bytes() == first
    os.utime(made / "one/sub-1/anat/sub-1_T1w.nii.gz", ns=(1, 1))
    again({"one/sub-1_T1w"})
    table = (made / "two/participants.tsv").read_text()
    (made / "two/participants.tsv").write_text(table.replace("sub-2\t50", "sub-2\t51"))
    again({"two/sub-2_T1w", "two/sub-2_FLAIR"})
    assert rows(out)["two/sub-2_T1w"].age == 51
    scan(made / "two/sub-2/ses-1/anat/sub-2_ses-1_T2w.nii.gz", seed=77)
    again({"two/sub-2_ses-1_T2w"})
    shutil.rmtree(made / "two/sub-5")
    again(set())
    assert "two/sub-5" not in {row.subject for row in read_index(out)}
    again({row.scan for row in read_index(out)}, checks="header")
    again(set(), checks="header", split="train=1")
    assert {row.split for row in read_index(out)} == {"train"}
    assert before.num_rows == 24


def test_a_duplicate_that_is_gone_is_no_reason_any_more(made: Path, tmp_path: Path) -> None:
    scan(made / "two/sub-3/anat/sub-3_T1w.nii.gz", seed=1)
    assert index([made], tmp_path / "i.parquet", workers=1).warning == 1
    assert index([made], tmp_path / "i.parquet", workers=1).warning == 1
    scan(made / "one/sub-0/anat/sub-0_FLAIR.nii.gz", seed=555)
    assert index([made], tmp_path / "i.parquet", workers=1).warning == 0


def test_a_damaged_earlier_index_is_made_anew(made: Path, tmp_path: Path) -> None:
    for content in (b"", b"PAR1 nonsense PAR1"):
        (tmp_path / "i.parquet").write_bytes(content)
        assert index([made], tmp_path / "i.parquet", workers=1).reused == 0
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "i.parquet")
    assert index([made], tmp_path / "i.parquet", workers=1).reused == 0


def test_workers_give_the_same_table(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "FEW", {"header": 0, "voxels": 0})
    index([made], tmp_path / "one.parquet", workers=1)
    index([made], tmp_path / "two.parquet", workers=2)
    assert read_table(tmp_path / "one.parquet")[0].equals(read_table(tmp_path / "two.parquet")[0])


def test_a_worker_that_dies_takes_only_its_scan_along(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that kills its process: told by name; the others are there."""
    (tmp_path / "deadly.py").write_text(
        "import os\nfrom neuroprior.data.index import to_table\n"
        "def work(scans):\n    if any('sub-2_T1w' in scan.scan for scan in scans):\n        os._exit(9)\n    return to_table(scans)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    from neuroprior.data.index import scans_of
    from neuroprior.readers import bids

    scans = list(bids.read(made / "one"))
    with indexing.Pool(SimpleNamespace(workers=2)) as pool:  # type: ignore[arg-type]  # it needs no more of the options
        tables = list(pool._parallel(importlib.import_module("deadly").work, [scans[n : n + 4] for n in range(0, 12, 4)]))
    told = {scan.scan: scan for table in tables for scan in scans_of(table)}
    assert len(told) == 12
    assert sum(table.num_rows for table in tables) == 12
    assert "killed the process twice" in told["one/sub-2_T1w"].reasons[0]
    assert [scan.scan for scan in told.values() if scan.status == "bad"] == ["one/sub-2_T1w"]


@pytest.mark.parametrize("checks", ["header", "voxels"])
def test_pipes_and_links_into_nothing_are_told(made: Path, tmp_path: Path, checks: str) -> None:
    for path in (
        made / "one/sub-1/anat/sub-1_T1w.nii.gz",
        made / "one/sub-2/anat/sub-2_T1w.nii.gz",
        made / "one/sub-3/anat/sub-3_T1w.nii.gz",
    ):
        path.unlink()
    os.mkfifo(made / "one/sub-1/anat/sub-1_T1w.nii.gz")
    (made / "one/sub-2/anat/sub-2_T1w.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (made / "one/sub-3/anat/sub-3_T1w.nii.gz").symlink_to(".git/annex/objects/aa/bb/MD5E-s1--x.nii.gz")
    index([made], tmp_path / "i.parquet", checks=checks, workers=1)
    told = {name: "; ".join(row.reasons) for name, row in rows(tmp_path / "i.parquet").items() if row.status == "bad"}
    assert set(told) == {"one/sub-1_T1w", "one/sub-2_T1w", "one/sub-3_T1w"}
    assert "no regular file" in told["one/sub-1_T1w"]
    assert told["one/sub-2_T1w"] == "a link to a file that is not there"
    assert "datalad" in told["one/sub-3_T1w"]


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, made: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed without a word while it reads: the next run takes over what was kept, and gives the table of an undisturbed one."""
    out = tmp_path / "i.parquet"
    index([made], tmp_path / "whole.parquet", workers=1)
    monkeypatch.setattr(indexing, "KEPT_EVERY_S", 0.0)
    monkeypatch.setattr(indexing, "BATCH", {"header": 3, "voxels": 3})
    child = os.fork()
    if child == 0:
        from neuroprior.data import index as tables

        plain, count = tables.check_scan, [0]

        def slow(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == 14:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **options)

        tables.check_scan = slow
        index([made], out, workers=1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not out.exists()
    assert list((tmp_path / "i.parts").glob("*.parquet"))
    started = time.monotonic()
    summary = index([made], out, workers=1)
    assert summary.reused == 12
    assert read_table(out)[0].equals(read_table(tmp_path / "whole.parquet")[0])
    assert not (tmp_path / "i.parts").exists()
    assert time.monotonic() - started < 60


def test_a_dataset_that_cannot_be_read_is_a_row_among_others(made: Path, tmp_path: Path) -> None:
    (made / "two/participants.tsv").write_text("participant_id\tage\nsub-1\t3\nsub-1\t4\n")
    summary = index([made], tmp_path / "i.parquet", workers=1)
    (bad,) = [row for row in read_index(tmp_path / "i.parquet") if row.status == "bad"]
    assert "disagree" in bad.reasons[0]
    assert bad.path == str(made / "two")
    assert summary.ok == 12


def test_the_map_of_contrasts_is_asked_for_and_used(made: Path, tmp_path: Path) -> None:
    for s in range(3):
        (made / f"one/sub-{s}/anat/sub-{s}_FLAIR.nii.gz").rename(made / f"one/sub-{s}/anat/sub-{s}_wonder.nii.gz")
    summary = index([made], tmp_path / "i.parquet", workers=1)
    assert summary.unknown == {"wonder": 3}
    assert "wonder (3)" in str(summary)
    assert "--contrast-map FILE" in str(summary)
    (tmp_path / "map.yaml").write_text("wonder: FLAIR\n")
    assert index([made], tmp_path / "i.parquet", contrast_map=tmp_path / "map.yaml", workers=1).unknown == {}


def test_the_way_to_nnssl_and_back(made: Path, tmp_path: Path) -> None:
    index([made], tmp_path / "i.parquet", pretrain_json=tmp_path / "p.json", variable=[f"here={made}"], workers=1)
    assert "$here/one/sub-0" in (tmp_path / "p.json").read_text()
    index([tmp_path / "p.json"], tmp_path / "again.parquet", variable=[f"here={made}"], workers=1)
    ours, again = read_index(tmp_path / "i.parquet"), read_index(tmp_path / "again.parquet")
    assert {(s.path, s.subject, s.contrast, s.age, s.split) for s in ours} == {
        (s.path, s.subject, s.contrast, s.age, s.split) for s in again
    }


def test_what_the_index_fixed_is_prepared(made: Path, tmp_path: Path) -> None:
    from neuroprior.data.store import Store
    from neuroprior.stages.prepare import prepare

    scan(made / "two/sub-3/anat/sub-3_T1w.nii.gz", change=nan)
    for policy, stored in (("skip", 23), ("fix", 24)):
        index([made], tmp_path / "i.parquet", policy=[f"intensity={policy}"], workers=1)
        prepare(tmp_path / "i.parquet", tmp_path / policy, spacing="8", workers=1)
        assert sum(len(session.scans) for session in Store.open(tmp_path / policy).sessions) == stored
