"""Folds, sites, files and few-shot draws."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from neuroprior.core.errors import ConfigError, InputError, LeakageError
from neuroprior.data import splits
from neuroprior.data.store import Store
from neuroprior.stages.crossvalidate import crossvalidate
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare

PEOPLE = {f"d/sub-{n:02d}": ("ill" if n % 4 == 0 else "well") for n in range(23)}


def test_every_subject_is_tested_once_and_every_class_in_every_fold() -> None:
    folds = splits.kfold(PEOPLE, 5, seed=1)
    tested = Counter(subject for fold in folds for subject in fold.part("test"))
    assert tested == dict.fromkeys(PEOPLE, 1)
    for fold in folds:
        assert {PEOPLE[s] for s in fold.part("test")} == {"ill", "well"}
        assert {PEOPLE[s] for s in fold.part("train")} == {"ill", "well"}
        assert fold.part("val")
        assert set(fold.split) == set(PEOPLE)
    sizes = [len(fold.part("test")) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    assert folds == splits.kfold(dict(reversed(PEOPLE.items())), 5, seed=1)
    assert folds != splits.kfold(PEOPLE, 5, seed=2)


def test_a_class_too_rare_for_the_folds_is_told_and_too_few_subjects_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        splits.kfold(PEOPLE | {"d/sub-99": "rare"}, 3)
    assert "'rare' has 1 subjects for 3 folds" in caplog.text
    with pytest.raises(InputError, match="fewer subjects with the target than folds: 3 subjects, 5 folds"):
        splits.kfold({"a": "x", "b": "y", "c": "x"}, 5)
    with pytest.raises(ConfigError, match="at least two folds"):
        splits.kfold(PEOPLE, 1)


def test_the_inner_part_does_not_know_the_test_subjects_labels() -> None:
    for fold in splits.kfold(PEOPLE, 4):
        test = fold.part("test")
        altered = {s: ("well" if v == "ill" else "ill") if s in test else v for s, v in PEOPLE.items()}
        rest = {s: v for s, v in altered.items() if s not in test}
        assert splits.holdout(rest, 0.2)[1] == fold.part("val")


def test_numbers_are_stratified_by_bins_of_equal_count() -> None:
    made = splits.strata({f"s{n}": float(n) for n in range(20)} | {"none": None, "text": "n/a"})
    assert Counter(made.values()) == {f"bin {n} of 5": 4 for n in range(1, 6)}
    assert made["s0"] == made["s3"] == "bin 1 of 5"
    assert splits.strata({"a": 0, "b": 1, "c": 1, "d": 0}) == {"a": "0", "b": "1", "c": "1", "d": "0"}
    assert set(splits.strata({f"s{n}": n + 0.5 for n in range(8)}).values()) == {"bin 1 of 2", "bin 2 of 2"}


def test_leave_one_site_out(caplog: pytest.LogCaptureFixture) -> None:
    sites = {s: ("east", "west", "north")[n % 3] for n, s in enumerate(PEOPLE)}
    sites["d/sub-05"] = None  # type: ignore[assignment]  # n/a in the table
    with caplog.at_level(logging.WARNING):
        folds = splits.leave_one_out(PEOPLE, sites)
    assert [fold.name for fold in folds] == ["east", "north", "west"]
    for fold in folds:
        assert {sites[s] for s in fold.part("test")} == {fold.name}
        assert fold.name not in {sites[s] for s in (*fold.part("train"), *fold.part("val"))}
        assert "d/sub-05" not in fold.part("test")
    assert "1 subjects have no site" in caplog.text
    with pytest.raises(InputError, match="at least two sites"):
        splits.leave_one_out(PEOPLE, dict.fromkeys(PEOPLE, "east"))


def test_holdout_keeps_the_shares() -> None:
    kept, held = splits.holdout(PEOPLE, 0.25, seed=3)
    assert len(held) == 6
    assert set(kept) | set(held) == set(PEOPLE)
    assert not set(kept) & set(held)
    assert Counter(PEOPLE[s] for s in held) == {"well": 4, "ill": 2}
    assert splits.holdout(PEOPLE, 0.25, seed=3, repeat=1)[1] != held
    assert splits.holdout({"a": "x", "b": "y"}, 0.5)[1] == ()  # the only one of its class is never held out


def test_draws_are_nested_balanced_and_paired() -> None:
    before: set[str] = set()
    for k in (1, 2, 5, 10, 20, None):
        drawn = splits.shots(PEOPLE, k, seed=4)
        assert len(drawn) == (k or len(PEOPLE))
        assert before <= set(drawn)
        before = set(drawn)
    assert Counter(PEOPLE[s] for s in splits.shots(PEOPLE, 10, seed=4)) == {"ill": 5, "well": 5}
    each = splits.shots(PEOPLE, 5, seed=4, per_class=True)
    assert Counter(PEOPLE[s] for s in each) == {"ill": 5, "well": 5}
    assert set(splits.shots(PEOPLE, 2, seed=4, per_class=True)) <= set(each)
    assert Counter(PEOPLE[s] for s in splits.shots(PEOPLE, 8, per_class=True)) == {"ill": 6, "well": 8}
    assert splits.shots(PEOPLE, 5, seed=4) != splits.shots(PEOPLE, 5, seed=5)
    with pytest.raises(InputError, match="not enough training subjects for 24 shots"):
        splits.shots(PEOPLE, 24)


def test_a_written_file_is_read_back_with_its_hash(tmp_path: Path) -> None:
    folds = splits.kfold(PEOPLE, 4)
    digest = splits.write(tmp_path / "folds.tsv", folds)
    again = splits.read(tmp_path / "folds.tsv", list(PEOPLE), PEOPLE)
    assert again == folds
    assert splits.digest(again) == digest


def test_files_of_others_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = sorted(PEOPLE)
    lines = [f"{name.removeprefix('d/')}\t{n % 3}" for n, name in enumerate(names)]
    (tmp_path / "f.tsv").write_text("\n".join(["participant_id\tfold", *lines, "sub-77\t0"]) + "\n")
    with caplog.at_level(logging.WARNING):
        folds = splits.read(tmp_path / "f.tsv", names, PEOPLE)
    assert "1 subjects of f.tsv are not in the store: sub-77" in caplog.text
    assert [fold.part("test") for fold in folds] == [tuple(names[n::3]) for n in range(3)]
    assert all(fold.part("val") for fold in folds)
    half = len(names) // 2
    (tmp_path / "splits_final.json").write_text(
        json.dumps([{"train": names[:half], "val": names[half:]}, {"train": names[half:], "val": names[:half]}])
    )
    one, two = splits.read(tmp_path / "splits_final.json", names, PEOPLE, validation=0)
    assert one.part("test") == two.part("train") == tuple(names[half:])


def test_a_subject_in_two_folds_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("participant_id\tfold\nsub-01\t0\nsub-02\t1\nsub-02\t0\n")
    with pytest.raises(LeakageError, match=r"for example d/sub-02 \(folds 0, 1\)"):
        splits.read(tmp_path / "a.tsv", list(PEOPLE), PEOPLE)
    (tmp_path / "b.json").write_text(json.dumps([{"train": ["d/sub-01", "d/sub-02"], "val": ["d/sub-02"]}]))
    with pytest.raises(LeakageError, match="d/sub-02 stands on both sides of fold 0"):
        splits.read(tmp_path / "b.json", list(PEOPLE), PEOPLE)
    (tmp_path / "c.tsv").write_text("participant\tfold\nsub-01\t0\n")
    with pytest.raises(InputError, match="lacks a column"):
        splits.read(tmp_path / "c.tsv", list(PEOPLE), PEOPLE)
    (tmp_path / "d.tsv").write_text("participant_id\tfold\nsub-77\t0\nsub-78\t1\n")
    with pytest.raises(InputError, match="nobody to learn from"):
        splits.read(tmp_path / "d.tsv", list(PEOPLE), PEOPLE)


# ------------------------------------------------------------------------------------------------------- who belongs together


def test_who_belongs_to_a_test_subject_is_not_learned_from(caplog: pytest.LogCaptureFixture) -> None:
    of = {f"s{n}": "a" for n in range(12)}
    groups = [["s0", "s1"], ["s1", "s2"], ["s5", "s6"], ["elsewhere", "s7"]]
    folds = splits.kfold(of, 4, validation=0.3)
    made = splits.unparted(folds, groups)
    assert sorted(s for fold in made for s in fold.part("test")) == sorted(of)
    for before, after in zip(folds, made, strict=True):
        assert after.part("test") == before.part("test")
        for group in ({"s0", "s1", "s2"}, {"s5", "s6"}):
            parts = {after.split[s] for s in group & after.split.keys()}
            assert len(parts) <= 1
        others = of.keys() - {"s0", "s1", "s2", "s5", "s6"}
        assert {s: after.split.get(s) for s in others} == {s: before.split.get(s) for s in others}
    assert "not learned from in folds that test their like" in caplog.text
    assert splits.unparted(folds, []) == folds


def test_copies_of_a_scan_are_not_parted_by_folds(heads: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(heads, raw)
    first = sorted(raw.glob("sub-*"))[0]
    for file in sorted(first.rglob("*_T1w.nii.gz")):
        copy = raw / "sub-copy" / file.relative_to(first).parent / file.name.replace(first.name, "sub-copy")
        copy.parent.mkdir(parents=True)
        shutil.copyfile(file, copy)
    people = (raw / "participants.tsv").read_text().splitlines()
    row = next(line for line in people if line.startswith(f"{first.name}\t"))
    (raw / "participants.tsv").write_text("\n".join([*people, row.replace(first.name, "sub-copy", 1)]) + "\n")
    index([raw], tmp_path / "i.parquet", workers=1)
    prepare(tmp_path / "i.parquet", tmp_path / "store", spacing="8", workers=1, timeout=0)
    (group,) = Store.open(tmp_path / "store").inseparable()
    assert {name.rpartition("/")[2] for name in group} == {first.name, "sub-copy"}
    plan = crossvalidate(
        tmp_path / "store", "scratch", "classification", "sex", tmp_path / "cv", folds=3, parts="train,val,test", dry_run=True
    )
    sizes = [
        sum(map(int, re.findall(r"(\d+) (?:train|inner|test)", line)))
        for line in plan.lines
        if "fold " in line and "train" in line
    ]
    assert sorted(sizes)[:2] == [max(sizes) - 1] * 2  # two folds test one of the two, and learn from neither
