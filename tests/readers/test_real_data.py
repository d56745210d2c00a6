"""The real scans beside the repository as a whole: every trap of their README found and named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from neuroprior.core import headers
from neuroprior.core.records import Scan
from neuroprior.data.index import BRAIN_LITRES, _check_mask, read_index
from neuroprior.data.pairs import PairConfig, PairDataset
from neuroprior.data.store import Store
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare


@pytest.fixture(scope="module")
def rows(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scan]:
    out = tmp_path_factory.mktemp("real") / "i.parquet"
    summary = index([real_data], out, workers=1)
    assert summary.licences["openms-long"] != "not stated"
    return {row.scan: row for row in read_index(out)}


def having(rows: dict[str, Scan], check: str, words: str) -> list[str]:
    return sorted(name for name, row in rows.items() if words in row.checks.get(check, ""))


def test_it_is_all_there(rows: dict[str, Scan]) -> None:
    counts = Counter(row.dataset for row in rows.values() if row.status != "bad")
    assert counts == {
        "openms-cross": 8,
        "openms-long": 14,
        "ixi-2mm": 30,
        "ds002748": 2,
        "stroke-cstar": 3,
        "orientations": 7,
        "torchio-fernando": 1,
    }
    bad = Counter((row.dataset, row.reasons[0]) for row in rows.values() if row.status == "bad")
    assert bad == {("synthseg-labels", "a label map or mask whose session has no scan"): 10}


def test_sform_0_beside_qform_1(rows: dict[str, Scan]) -> None:
    found = having(rows, "geometry", "the qform places it, the sform is not set")
    codes = {
        name
        for name, row in rows.items()
        if row.status != "bad" and (h := headers.inspect_header(row.path)).sform_code == 0 and h.qform_code > 0
    }
    assert found
    assert set(found) == codes


def test_negative_values_and_scaled_integers(rows: dict[str, Scan]) -> None:
    import nibabel
    import numpy as np

    for name, row in rows.items():
        if row.status == "bad":
            continue
        image = nibabel.load(row.path)
        low = float(np.asarray(image.dataobj).min())
        assert ("values below zero" in row.checks["intensity"]) == (low < 0), name
        slope, inter = (float(image.dataobj.slope), float(image.dataobj.inter))
        assert ("with a scale" in row.checks["intensity"]) == ((slope, inter) != (1.0, 0.0)), name
    assert having(rows, "intensity", "values below zero")
    assert having(rows, "intensity", "with a scale")


def test_sessions_on_one_grid_and_on_several(rows: dict[str, Scan]) -> None:
    """The longitudinal scans have a grid for every contrast; the cross-sectional ones share theirs, though rounding parts them by 5e-7."""
    sessions = Counter((row.subject, row.session) for row in rows.values() if row.dataset == "openms-long")
    apart = Counter(
        (rows[name].subject, rows[name].session) for name in having(rows, "geometry", "another grid than openms-long/")
    )
    assert apart == {key: n - 1 for key, n in sessions.items() if n > 1}
    assert not having(rows, "geometry", "another grid than openms-cross/")
    assert not having(rows, "geometry", "another grid than stroke-cstar/")


def test_orientations(rows: dict[str, Scan]) -> None:
    assert {"PSR", "LPS", "LAS"} <= {str(row.orientation) for row in rows.values()}
    assert len({row.orientation for row in rows.values() if row.dataset == "orientations"}) == 7


def test_not_known_is_none(rows: dict[str, Scan], real_data: Path) -> None:
    import pandas as pd

    table = pd.read_csv(real_data / "ds002748/participants.tsv", sep="\t").set_index("participant_id")
    assert table.isna().any().any()
    for row in rows.values():
        if row.dataset == "ds002748":
            cell = table.loc[row.subject.split("/")[1], "age"]
            assert row.age == (None if pd.isna(cell) else cell)
    assert not any(value in ("n/a", "nan") for row in rows.values() for value in row.columns.values())


def test_faces_and_skulls(rows: dict[str, Scan]) -> None:
    faces = {row.dataset for row in rows.values() if row.checks.get("faces", "").startswith("face")}
    assert faces == {"ixi-2mm"}
    assert {row.checks["faces"][:4] for row in rows.values() if row.dataset == "ds002748"} == {"none"}


def test_masks_that_are_no_brain_and_labels_elsewhere(rows: dict[str, Scan], real_data: Path) -> None:
    masks = sorted((real_data / "openms-long").glob("derivatives/**/*L19*desc-brain_mask.nii.gz"))
    assert masks
    said = [text for mask in masks for text in _check_mask(str(mask))]
    assert any("which is no brain" in text for text in said), BRAIN_LITRES
    assert all(
        "brain mask in space-common is left out" in " ".join(row.reasons) for row in rows.values() if row.dataset == "openms-long"
    )
    (thick,) = (row for row in rows.values() if row.dataset == "torchio-fernando")
    assert "it lies on another grid" in thick.checks["label"]


def test_sessions_whose_heads_do_not_align_by_header_are_not_paired(real_data: Path, tmp_path: Path) -> None:
    index([real_data / "openms-long"], tmp_path / "i.parquet", checks="header", workers=1)
    prepare(tmp_path / "i.parquet", tmp_path / "s", spacing="4", workers=1, timeout=0)
    pairs = PairDataset(
        Store.open(tmp_path / "s"), ("train", "val", "test"), PairConfig(patch=16, kinds={"time": 1.0, "both": 1.0}), seed=0
    )
    alone = [not pairs[number]["paired"] for number in range(24)]
    told = {
        (first.split("/")[1], first.split("/")[2] != second.split("/")[2]): why
        for (first, _, second, _), why in pairs.skipped.items()
    }
    assert {subject for subject, between in told if between} == {"sub-L03", "sub-L12", "sub-L19"}
    assert any("the heads overlap by" in why for why in told.values())
    assert any("makes them more alike" in why for why in told.values())
    assert sum(alone) > 12
