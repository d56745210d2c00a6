"""Several sources in one index: datasets of one name, one dataset in two indexes, names that differ by case, and who gets which split."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from neuroprior.core.errors import ConfigError, InputError, LeakageError
from neuroprior.data.index import read_index, read_table
from neuroprior.data.merging import longer_names, told_apart
from neuroprior.stages.index import index


def scan(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, (10, 10, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([9.0, 9, 9, 1])), path)
    return path


def dataset(root: Path, subjects: list[str], seed: int, contrasts: str = "T1w", table: str | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for n, subject in enumerate(subjects):
        for c, contrast in enumerate(contrasts.split()):
            scan(root / f"sub-{subject}/anat/sub-{subject}_{contrast}.nii.gz", seed + 100 * n + c)
    if table is not None:
        (root / "participants.tsv").write_text(table)
    return root


def rows(out: Path) -> dict[str, Any]:
    found = read_index(out)
    assert len({row.scan for row in found}) == len(found)
    return {row.scan: row for row in found}


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    """Two folders of one name with other people in them, each with its index."""
    made = [dataset(tmp_path / "m/a/site", ["01", "02"], 0), dataset(tmp_path / "m/b/site", ["01", "03"], 5000)]
    return [index([root], tmp_path / f"{root.parent.name}.parquet", split="train=1", workers=1).out for root in made]


def test_indexes_whose_datasets_share_a_name_stay_apart(
    sites: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from neuroprior.data.store import Store
    from neuroprior.stages.prepare import prepare

    both = tmp_path / "both.parquet"
    summary = index(sites, both, workers=1)
    assert summary.datasets == {"a-site": 2, "b-site": 2}
    assert summary.subjects == 4
    assert "several datasets are called 'site'; that of" in caplog.text
    found = rows(both)
    for name, row in found.items():
        assert name.startswith(f"{row.dataset}/")
        assert row.subject.startswith(f"{row.dataset}/sub-")
        assert f"/{row.dataset[0]}/site/" in row.path
    prepare(both, tmp_path / "store", spacing="9", workers=1)
    assert Counter(len(session.scans) for session in Store.open(tmp_path / "store").sessions) == {1: 4}
    # again: the same names, from the rows that are there
    again = index(sites, both, workers=1)
    assert (again.reused, again.datasets) == (4, summary.datasets)
    assert rows(both) == found
    # one of them changes: the other's rows are kept, under the same names
    scan(tmp_path / "m/b/site/sub-04/anat/sub-04_T1w.nii.gz", 77)
    index([tmp_path / "m/b/site"], sites[1], split="train=1", workers=1)
    assert index(sites, both, workers=1).reused >= 2
    assert set(rows(both)) == {*found, "b-site/sub-04_T1w"}
    # one goes: the other has its own name back, as in a fresh index
    assert index(sites[:1], both, workers=1).reused == 2
    assert set(rows(both)) == {"site/sub-01_T1w", "site/sub-02_T1w"}
    # an index and a folder; an index of the indexes
    assert index([sites[0], tmp_path / "m/b/site"], tmp_path / "j.parquet", workers=1).datasets == {"a-site": 2, "b-site": 3}
    index(sites, both, workers=1)
    assert index([both, dataset(tmp_path / "m/c/site", ["01"], 9000)], tmp_path / "k.parquet", workers=1).datasets == {
        "a-site": 2,
        "b-site": 3,
        "site": 1,
    }


def test_labels_splits_pairs_and_licences_follow_the_new_names(sites: list[Path], tmp_path: Path) -> None:
    mask = tmp_path / "m/b/site/sub-03/anat/sub-03_label-lesion_mask.nii.gz"
    voxels = np.zeros((10, 10, 10), np.uint8)
    voxels[4:6, 4:6, 4:6] = 1
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([9.0, 9, 9, 1])), mask)
    index([tmp_path / "m/b/site"], sites[1], split="test=1", workers=1)
    both = tmp_path / "both.parquet"
    stated = index(sites, both, licence=["a-site=CC0"], workers=1)
    assert stated.licences == {"a-site": "CC0", "b-site": "not stated"}
    found = rows(both)
    assert found["b-site/sub-03_T1w"].labels == {"lesion": str(mask)}
    assert {row.subject: row.split for row in found.values()} == {
        "a-site/sub-01": "train", "a-site/sub-02": "train", "b-site/sub-01": "test", "b-site/sub-03": "test",
    }  # fmt: skip
    (tmp_path / "s.tsv").write_text("participant_id\tsplit\nb-site/sub-01\tval\nsite/sub-02\tval\n03\tval\n")
    index(sites, both, split_file=tmp_path / "s.tsv", workers=1)
    assert {row.subject for row in read_index(both) if row.split == "val"} == {"b-site/sub-01", "a-site/sub-02", "b-site/sub-03"}
    (tmp_path / "s.tsv").write_text("participant_id\tsplit\nsite/sub-01\tval\n")
    with pytest.raises(InputError, match="site/sub-01 could be a-site/sub-01 or b-site/sub-01"):
        index(sites, both, split_file=tmp_path / "s.tsv", workers=1)
    (tmp_path / "pairs.tsv").write_text("left_subject\tright_subject\nsite/sub-02\tsite/sub-03\n")
    with pytest.raises(LeakageError, match="belong together"):  # one is train, the other test
        index(sites, both, together=tmp_path / "pairs.tsv", workers=1)


def test_one_dataset_in_two_indexes_is_one(tmp_path: Path) -> None:
    """Two indexes of one folder hold the same people: they are not made two; a file that both hold is used once."""
    root = dataset(tmp_path / "one", ["1", "2"], 0, "T1w FLAIR")
    parts = [
        index([root], tmp_path / f"{n}.parquet", where=text, split="train=1", workers=1).out
        for n, text in enumerate(("contrast == 'T1w'", "contrast == 'FLAIR'", "contrast == 'FLAIR'"))
    ]
    summary = index(parts[:2], tmp_path / "both.parquet", workers=1)
    assert (summary.datasets, summary.subjects, summary.ok) == ({"one": 4}, 2, 4)
    summary = index(parts, tmp_path / "both.parquet", workers=1)
    assert (summary.subjects, summary.ok, summary.bad) == (2, 4, 2)
    found = rows(tmp_path / "both.parquet")
    assert found["one/sub-1_FLAIR.2"].reasons == ("the same file is indexed already",)
    assert index(parts[:2], tmp_path / "both.parquet", workers=1).ok == 4
    assert len(rows(tmp_path / "both.parquet")) == 4


def test_tables_and_manifests_whose_datasets_share_a_name(tmp_path: Path) -> None:
    for n, name in enumerate("ab"):
        scan(tmp_path / f"t/{name}.nii.gz", n)
        (tmp_path / f"t/{name}.csv").write_text(f"path,subject,contrast,dataset\n{name}.nii.gz,1,T1w,site\n")
    dataset(tmp_path / "site", ["1"], 9)
    scan(tmp_path / "o/x.nii.gz", 3)
    images = [{"name": "x", "modality": "T1w", "image_path": "x.nii.gz"}]
    manifest = {"collection_name": "c", "datasets": {"site": {"subjects": {"1": {"sessions": {"1": {"images": images}}}}}}}
    (tmp_path / "o/pretrain_data.json").write_text(json.dumps(manifest))
    given = [tmp_path / "t/a.csv", tmp_path / "t/b.csv", tmp_path / "site", tmp_path / "o/pretrain_data.json"]
    summary = index(given, tmp_path / "i.parquet", workers=1)
    assert summary.subjects == 4
    assert set(summary.datasets) == {"a-site", "b-site", f"{tmp_path.name}-site", "pretrain_data-site"}
    assert len(rows(tmp_path / "i.parquet")) == 4


@pytest.mark.parametrize(("sources", "names"), [
    ([{"s": ["/x/a/s"]}, {"s": ["/x/b/s"]}], [{"s": "a-s"}, {"s": "b-s"}]),
    ([{"s": ["/x/r/s"]}, {"s": ["/y/r/s"]}], [{"s": "x-r-s"}, {"s": "y-r-s"}]),
    ([{"S": ["/x/a/S"]}, {"s": ["/x/b/s"]}], [{"S": "a-S"}, {"s": "b-s"}]),
    ([{"s": ["/x/a/s"]}, {"s": ["/x/a/s"]}], [{}, {}]),
    ([{"s": ["/x/a/s"]}, {"s": ["/x/a/s"]}, {"s": ["/x/b/s"]}], [{"s": "a-s"}, {"s": "a-s"}, {"s": "b-s"}]),
    ([{"s": ["/x/a/s"], "a-s": ["/x/t.csv"]}, {"s": ["/x/b/s"]}], [{"s": "x-a-s"}, {"s": "x-b-s"}]),
    ([{"s": ["/s"]}, {"s": ["/t.csv"]}], [{"s": "root-s"}, {"s": "t-s"}]),
    ([{"s": ["/t.csv"], "S": ["/t.csv"]}, {"q": ["/q"]}], [{}, {}]),
])  # fmt: skip
def test_names_that_are_told_apart(sources: list[dict[str, list[str]]], names: list[dict[str, str]]) -> None:
    assert told_apart(sources) == names


def test_longer_names_are_found_by_the_dataset_that_the_folder_is_called_after() -> None:
    assert longer_names("site", "/x/a/site/bids")[:2] == ["a-site", "x-a-site"]
    assert longer_names("ds1", "/x/OpenMind")[:2] == ["OpenMind-ds1", "x-OpenMind-ds1"]


def test_subjects_whose_names_differ_by_case_are_told_even_if_their_scans_do_not(tmp_path: Path) -> None:
    root = dataset(tmp_path / "d", ["a1", "b"], 0)
    scan(root / "sub-A1/anat/sub-A1_T2w.nii.gz", 7)
    if len(list(root.iterdir())) < 4:
        pytest.skip("this file system does not tell cases apart")
    index([root], tmp_path / "i.parquet", workers=1)
    told = {row.scan: "; ".join(row.reasons) for row in read_index(tmp_path / "i.parquet") if row.status == "warning"}
    assert set(told) == {"d/sub-a1_T1w", "d/sub-A1_T2w"}
    assert all("two are one person" in reason for reason in told.values())


# --------------------------------------------------------------------------------------------------------------- splits


def test_the_split_that_a_dataset_states_is_taken(tmp_path: Path) -> None:
    """Ten subjects, half of them test by participants.tsv; two without a word are drawn; a split file comes first; an index keeps them."""
    names = [f"{n:02d}" for n in range(12)]
    lines = [f"sub-{name}\t{'test' if n < 5 else 'training' if n < 10 else 'n/a'}" for n, name in enumerate(names)]
    root = dataset(tmp_path / "d", names, 0, table="participant_id\tsplit\n" + "\n".join(lines) + "\n")
    out = tmp_path / "i.parquet"

    def split(**options: Any) -> list[str]:
        index([root], out, workers=1, **options)
        return [row.split for row in read_index(out)]

    assert split(split="val=1") == ["test"] * 5 + ["train"] * 5 + ["val"] * 2
    assert split(split="test=1") == ["test"] * 5 + ["train"] * 5 + ["test"] * 2  # of rows that are there already
    (tmp_path / "s.tsv").write_text("participant_id\tsplit\n00\tval\n11\ttrain\n")
    assert split(split="test=1", split_file=tmp_path / "s.tsv") == ["val"] + ["test"] * 4 + ["train"] * 5 + ["test", "train"]
    assert split(split="val=1") == ["test"] * 5 + ["train"] * 5 + ["val"] * 2
    (root / "participants.tsv").write_text((root / "participants.tsv").read_text().replace("sub-00\ttest", "sub-00\tval"))
    assert split(split="val=1")[:2] == ["val", "test"]
    merged = tmp_path / "m.parquet"
    index([out], merged, split="test=1", workers=1)
    assert [row.split for row in read_index(merged)] == [row.split for row in read_index(out)]
    (root / "sub-05/sub-05_sessions.tsv").write_text("session_id\tsplit\nses-1\ttest\n")
    scan(root / "sub-05/ses-1/anat/sub-05_ses-1_T1w.nii.gz", 99)
    with pytest.raises(LeakageError, match=r"two splits of their dataset[\s\S]*d/sub-05"):
        split()


def test_a_split_file_is_matched_and_what_is_not_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    roots = [
        dataset(tmp_path / name, people, seed)
        for seed, (name, people) in enumerate({"p": ["00", "01"], "q": ["01", "02"]}.items())
    ]
    out, file = tmp_path / "i.parquet", tmp_path / "s.tsv"

    def split(*lines: str) -> dict[str, str]:
        file.write_text("participant_id\tsplit\n" + "".join(f"{line}\ttest\n" for line in lines))
        caplog.clear()
        index(roots, out, split="train=1", split_file=file, workers=1)
        return {row.subject: row.split for row in read_index(out) if row.split == "test"}

    assert set(split("00", "sub-02", "q/01", "p/sub-01")) == {"p/sub-00", "q/sub-02", "q/sub-01", "p/sub-01"}
    assert "nobody" not in caplog.text
    assert set(split("00", "77", "r/01")) == {"p/sub-00"}
    assert "2 identifiers of s.tsv are nobody's here: 77, r/01" in caplog.text
    for name in ("01", "sub-01"):
        with pytest.raises(InputError, match=f"{name} could be p/sub-01 or q/sub-01"):
            split("00", name)
    with pytest.raises(InputError, match=r"names nobody of the index[\s\S]*such as p/sub-00[\s\S]*77"):
        split("77", "78")
    file.write_text("participant_id\tsplit\n00\ttest\np/sub-00\ttrain\n")
    with pytest.raises(LeakageError, match=r"two splits[\s\S]*p/sub-00"):
        index(roots, out, split_file=file, workers=1)


def test_a_copy_that_an_index_refused_is_a_copy_after_a_merge(tmp_path: Path) -> None:
    root = dataset(tmp_path / "one", ["1", "2"], 0)
    shutil.copy(root / "sub-1/anat/sub-1_T1w.nii.gz", root / "sub-2/anat/sub-2_T1w.nii.gz")
    index([root], tmp_path / "i.parquet", policy=["duplicates=skip"], workers=1)
    summary = index([tmp_path / "i.parquet"], tmp_path / "j.parquet", policy=["duplicates=skip"], workers=1)
    assert (summary.ok, summary.bad) == (1, 1)
    summary = index([tmp_path / "i.parquet"], tmp_path / "j.parquet", split="train=0.5,test=0.5", workers=1)
    assert (summary.ok, summary.warning) == (1, 1)
    assert read_table(tmp_path / "j.parquet")[1]["together"] == [["one/sub-1", "one/sub-2"]]


def test_stratify_by_what_no_row_has(tmp_path: Path) -> None:
    root = dataset(tmp_path / "one", ["1", "2"], 0, table="participant_id\thandedness\nsub-1\tR\nsub-2\tL\n")
    index([root], tmp_path / "i.parquet", stratify="handedness,dataset", workers=1)
    with pytest.raises(ConfigError, match=r"'handednes', which --stratify asks for[\s\S]*did you mean 'handedness'"):
        index([root], tmp_path / "i.parquet", stratify="handednes", workers=1)
