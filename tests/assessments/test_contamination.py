"""Who and what stands on both sides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from neuroprior.assessments import contamination
from neuroprior.core import artifacts
from neuroprior.core.records import Scan
from neuroprior.data.fingerprint import Fingerprint


def scan(dataset: str, subject: str, name: str = "T1w", split: str = "") -> Scan:
    return Scan(
        f"{dataset}/{subject}_{name}",
        dataset,
        f"{dataset}/{subject}",
        "",
        "T1w",
        "T1w",
        f"/{dataset}/{subject}_{name}.nii",
        split=split,
    )


def printed(number: int, content: str | None = None, values: str | None = None, like: np.ndarray | None = None) -> Fingerprint:
    vector = np.random.default_rng(number).normal(size=1485) if like is None else like
    vector = (vector - vector.mean()) / np.linalg.norm(vector - vector.mean())
    return Fingerprint(content or f"c{number}", f"o{number}", values or f"v{number}", vector.astype(np.float32))


def test_each_kind_is_found_and_named() -> None:
    left = [scan("a", f"sub-{k}") for k in range(6)]
    right = [scan("b", "sub-0"), scan("b", "x1"), scan("b", "x2"), scan("b", "x3"), scan("a", "sub-4", "T2w"), left[5]]
    prints = {one.path: printed(k) for k, one in enumerate(left)}
    prints |= {one.path: printed(100 + k) for k, one in enumerate(right) if one.path not in prints}
    prints[right[1].path] = printed(101, content="c1")
    prints[right[2].path] = printed(102, values="v2")
    near = prints[left[3].path].vector
    assert near is not None
    prints[right[3].path] = printed(103, like=near + 0.01 * np.random.default_rng(0).normal(size=1485).astype(np.float32))
    pairs = contamination.compare({"A": left, "B": right}, [("A", "B")], fingerprints=prints)
    found = {(pair.kind, pair.left, pair.right) for pair in pairs}
    assert found == {
        (contamination.SUBJECT, "a/sub-4", "a/sub-4"), (contamination.SUBJECT, "a/sub-5", "a/sub-5"), (contamination.BARE, "a/sub-0", "b/sub-0"),
        (contamination.EXACT, "a/sub-1_T1w", "b/x1_T1w"), (contamination.TURNED, "a/sub-2_T1w", "b/x2_T1w"),
        (contamination.NEAR, "a/sub-3_T1w", "b/x3_T1w"), (contamination.FILE, "a/sub-5_T1w", "a/sub-5_T1w"),
    }  # fmt: skip
    lines = contamination.summary(pairs, {"A": left, "B": right})
    assert any(
        kind == contamination.NEAR and pairs == 1 and "1 of 6 scans of B" in words for kind, _, _, pairs, _, words in lines
    )
    assert not any(pair.kind == contamination.NEAR for pair in contamination.compare({"A": left, "B": right}, [("A", "B")]))


def test_within_one_set_only_different_subjects_count() -> None:
    rows = [scan("a", "sub-1"), scan("a", "sub-1", "T1w-again"), scan("a", "sub-2")]
    prints = {one.path: printed(0) for one in rows}
    pairs = contamination.compare({"A": rows}, fingerprints=prints)
    assert {(pair.left_subject, pair.right_subject) for pair in pairs} == {("a/sub-1", "a/sub-2")}
    assert len(pairs) == 2


def test_empty_and_unread_scans_are_never_copies() -> None:
    rows = [scan("a", "sub-1"), scan("b", "sub-2")]
    prints = {one.path: Fingerprint("same", "same", "same", None, "every voxel has one value") for one in rows}
    assert contamination.compare({"A": rows[:1], "B": rows[1:]}, fingerprints=prints) == []


def test_a_model_tells_whom_it_saw_by_hash() -> None:
    rows = [scan("a", f"sub-{k}", split="train" if k < 2 else "test") for k in range(4)]
    hashes = [artifacts.sha256_json(f"a/sub-{k}")[:12] for k in (0, 3)]
    assert contamination.seen_by_model(hashes, rows) == {"train": ["a/sub-0"], "test": ["a/sub-3"]}
    assert contamination.seen_by_model(hashes, [replace(row, subject="other/" + row.subject) for row in rows]) == {}
