"""Conditions on rows: what they say, what is refused, and that nothing is ever run."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroprior.core.errors import ConfigError
from neuroprior.core.records import Scan
from neuroprior.data.where import parse


def row(**values: Any) -> Scan:
    given = {
        "scan": "d/s",
        "dataset": "d",
        "subject": "d/sub-1",
        "session": "",
        "contrast": "FLAIR",
        "contrast_raw": "FLAIR",
        "path": "/x",
    }
    return Scan(
        **(
            given
            | {"age": 61.0, "sex": "F", "licence": "CC0", "columns": {"EDSS": 2.5, "EDSS score": 3, "site code": "A"}}
            | values
        )
    )


@pytest.mark.parametrize(("text", "holds"), [
    ("contrast == 'FLAIR' and age > 60", True), ("contrast == 'FLAIR' and age > 61", False), ("age >= 61 or sex == 'M'", True),
    ("not age < 18", True), ("18 <= age < 65", True), ("contrast in ('T1w', 'FLAIR')", True), ("contrast not in ['T1w']", True),
    ("licence in ('CC0', 'CC-BY-4.0')", True), ("EDSS < 3", True), ("columns['EDSS score'] == 3", True), ("health is None", True),
    ("health is not None", False), ("health == 'ms'", False), ("health != 'ms'", True), ("age > 'a'", False), ("sex > 5", False),
    ("health < 5", False), ("'FL' in contrast", True), ("site in dataset", False), ("age == -1", False), ("True", True), ("(age > 1)", True),
])  # fmt: skip
def test_what_a_condition_says(text: str, holds: bool) -> None:
    assert parse(text).test(row()) is holds


@pytest.mark.parametrize("text", [
    "", "age >", "__import__('os').system('true')", "age.__class__", "(lambda: 1)()", "[x for x in y]", "age + 1 > 2", "f'{age}'", "age := 3",
    "open('x')", "columns[0]", "columns[age]", "labels['x']", "1 if age else 2", "b'x' == age", "age > 60; import os", "\0", "9" * 5000,
    "(" * 500 + "age" + ")" * 500, "not " * 450 + "age", "-" * 1500 + "1", "*age", "age[0]", "...",
])  # fmt: skip
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text).test(row())


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text("()[]'\"=<>!andornotis None.age_contrast0129,", max_size=60))
def test_any_text_is_a_condition_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse(text).test(row()) in (True, False)


def test_unknown_names_are_told_with_the_nearest() -> None:
    condition = parse("contrst == 'T1w' and EDSS > 1")
    assert condition.names == {"contrst", "EDSS"}
    with pytest.raises(ConfigError, match="did you mean 'contrast'"):
        condition.known({"EDSS"})
    parse("EDSS > 1").known({"EDSS"})
    assert not condition.needs_files
    assert parse("orientation == 'RAS'").needs_files


def test_checks_can_be_asked_for_and_the_split_cannot() -> None:
    found = row(checks={"intensity": "ok", "duplicates": "equals d/x"})
    assert parse("check_intensity == 'ok' and check_duplicates != 'ok' and check_faces is None").test(found) is True
    assert parse("check_faces == 'ok'").needs_files
    for text in ("split == 'train'", "age > 3 and not split in ('test', 'val')", "columns['split'] == 'x'"):
        with pytest.raises(ConfigError, match="cannot ask for the split"):
            parse(text)
    with pytest.raises(ConfigError, match="did you mean 'check_faces'"):
        parse("check_face == 'ok'").known(set())
