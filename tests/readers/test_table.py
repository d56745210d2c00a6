"""Tables of scans: identifiers are text, an empty one is a row with a reason, and people are understood as BIDS understands them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroprior.core.errors import InputError, LeakageError
from neuroprior.core.records import Scan
from neuroprior.readers import _people, table


def read(path: Path, text: str = "", **options: object) -> tuple[list[Scan], str]:
    if text:
        path.write_text(text)
    told: list[str] = []
    return list(table.read(path, tell=told.append, **options)), "\n".join(told)  # pyright: ignore[reportArgumentType]


def test_identifiers_are_the_text_that_they_are(tmp_path: Path) -> None:
    lines = (
        "path,subject,session,contrast\n1e3.nii.gz,1E5,1E2,T1w\nb.nii.gz,10E4,010,T1w\nc.nii.gz,007,100,T1w\nd.nii.gz,7,100,T1w\n"
    )
    rows, _ = read(tmp_path / "scans.csv", lines)
    assert [row.subject for row in rows] == ["scans/sub-1E5", "scans/sub-10E4", "scans/sub-007", "scans/sub-7"]
    assert [row.session for row in rows] == ["ses-1E2", "ses-010", "ses-100", "ses-100"]
    assert rows[0].path == str(tmp_path / "1e3.nii.gz")
    frame = pa.table({"path": ["a.nii", "b.nii"], "subject": [1, None], "contrast": ["T1w", "T1w"], "site": [3, None]})
    pq.write_table(frame, tmp_path / "scans.parquet")
    rows, _ = read(tmp_path / "scans.parquet")
    assert [(row.subject, row.status, row.site) for row in rows] == [("scans/sub-1", "ok", "3"), ("scans/?", "bad", None)]


@pytest.mark.parametrize("empty", ["", "  ", "n/a", "nan"])
@pytest.mark.parametrize("column", ["path", "subject", "contrast"])
def test_an_empty_cell_is_a_row_with_a_reason(column: str, empty: str, tmp_path: Path) -> None:
    cells = {"path": "a.nii.gz", "subject": "1", "contrast": "T1w"} | {column: empty}
    good = {"path": "b.nii.gz", "subject": "2", "contrast": "T1w"}
    pd.DataFrame([cells, good, cells]).to_csv(tmp_path / "scans.csv", index=False)
    rows, _ = read(tmp_path / "scans.csv")
    assert [row.status for row in rows] == ["bad", "ok", "bad"]
    assert [row.reasons for row in rows[::2]] == [(f"row {n} of the table has no {column}",) for n in (1, 3)]
    assert len({row.scan for row in rows}) == 3
    assert not any("None" in row.subject or "nan" in row.subject for row in rows)


def test_a_session_is_missing_only_where_the_subject_has_several(tmp_path: Path) -> None:
    rows, _ = read(
        tmp_path / "scans.csv",
        "path,subject,session,contrast\na.nii,1,1,T1w\nb.nii,1,,T1w\nc.nii,2,,T1w\nd.nii,2,n/a,T2w\n",
    )
    assert [row.status for row in rows] == ["ok", "bad", "ok", "ok"]
    assert rows[1].reasons == ("row 2 of the table has no session, and other rows of the subject have one",)


def test_people_are_understood_as_in_bids(tmp_path: Path) -> None:
    head = "path,subject,contrast,age,sex,group,EDSS,birth_date\n"
    text = head + "a.nii,1,T1w,240,0,ms,2,1952-03-11\nb.nii,2,T2w,30,1,,,\nc.nii,3,T1w,old,F,,3.5,\n"
    rows, told = read(tmp_path / "scans.csv", text)
    assert [(row.age, row.sex, row.health, row.status) for row in rows] == [
        (None, None, "ms", "ok"), (None, None, None, "ok"), (None, "F", None, "ok"),
    ]  # fmt: skip
    assert [row.columns.get("age") for row in rows] == [240, 30, "old"]
    assert [row.columns.get("sex") for row in rows] == [0, 1, None]
    assert [row.columns.get("EDSS") for row in rows] == [2, None, 3.5]
    assert "holds 240, which is no age in years" in told
    assert "age 30 is not understood" not in told  # that is said once, of the column
    assert "sex 0 is not understood" in told
    assert "'birth_date' may say who somebody is" in told
    assert "1952" not in told + repr(rows)
    (tmp_path / "scans.json").write_text(
        json.dumps({"age": {"Units": "months"}, "sex": {"Levels": {"0": "female", "1": "male"}}})
    )
    rows, told = read(tmp_path / "scans.csv")
    assert [(row.age, row.sex) for row in rows] == [(20.0, "F"), (2.5, "M"), (None, "F")]
    assert "age 'old' is not understood" in told


def test_facts_under_names_of_their_own(tmp_path: Path) -> None:
    text = "path,subject,contrast,age_months_at_mri,klinik\na.nii,1,T1w,240,1E5\n"
    rows, told = read(tmp_path / "scans.csv", text, column_map={"age": "age_months_at_mri", "site": "klinik"})
    assert (rows[0].age, rows[0].site, dict(rows[0].columns), told) == (20.0, "1E5", {}, "")


def test_subjects_called_by_a_column_of_names_are_told(tmp_path: Path) -> None:
    _, told = read(tmp_path / "scans.csv", "path,Nachname,contrast\na.nii,x,T1w\n", column_map={"subject": "Nachname"})
    assert "'Nachname' says, which may tell who somebody is" in told


def test_splits(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "scans.csv", "path,subject,contrast,split\na.nii,1,T1w,train\nb.nii,2,T1w,test\n")
    assert [row.split for row in rows] == ["train", "test"]
    with pytest.raises(LeakageError, match=r"scans/sub-1 stands in more than one split[\s\S]*row 2, test"):
        read(tmp_path / "scans.csv", "path,subject,contrast,split\na.nii,1,T1w,train\nb.nii,1,T2w,test\n")


def test_a_damaged_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "scans.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "scans.parquet")


@pytest.mark.parametrize("number", [10**18, -(10**400), 10**400])
def test_whole_numbers_that_no_column_holds_are_codes(number: int) -> None:
    assert _people.value(str(number) if abs(number) < 10**300 else f"{'-' if number < 0 else ''}1{'0' * 400}") == _people.value(
        number
    )
    assert isinstance(_people.value(number), str)
    assert _people.value(10**17) == _people.value("1" + "0" * 17) == 10**17
    rows = [{"age": f"1{'0' * 400}"}, {"age": "30"}]
    assert _people.distrusted(rows, {}, lambda _: None) == {}
    assert _people.age_years(rows[0]["age"]) is None
