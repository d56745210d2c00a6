"""Places against a table that was computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from neuroprior.assessments.ranking import rank_teams, ranks
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.protocols import Metric, Protocol, read


def rows(task: str, metric: str, **values: float | None) -> list[dict[str, Any]]:
    return [{"team": team, "task": task, "metric": metric, "value": value} for team, value in values.items()]


# FOMO25, four teams:          a           b           c            d
TABLE = [
    *rows("infarct", "auroc", a=0.80, b=0.70, c=0.70, d=None),  # 1    2.5   2.5   4
    *rows("meningioma", "dsc", a=0.30, b=0.40, c=0.20, d=0.10),  # 2    1     3     4
    *rows("meningioma", "nsd", a=0.20, b=0.10, c=0.20, d=0.20),  # 2    4     2     2
    *rows("brain-age", "mae", a=9.0, b=8.0, c=float("nan"), d=100.0),  # 2    1     3.5   3.5   (a failure is 100)
    *rows("brain-age", "pearson_r", a=0.5, b=0.6, c=float("nan"), d=-0.2),  # 2    1     4     3
]  # fmt: skip
# within tasks:  infarct      1    2.5   2.5   4
#                meningioma   2    2.5   2.5   3
#                brain-age    2    1     3.75  3.25
# mean           5/3          2     2.9167  3.4167


def test_the_hand_made_table() -> None:
    places = rank_teams(read("fomo25"), TABLE)
    assert [(place.team, place.place) for place in places] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    assert [place.mean_rank for place in places] == pytest.approx([5 / 3, 2, 8.75 / 3, 10.25 / 3])
    by = {place.team: place for place in places}
    assert by["c"].tasks == {"infarct": 2.5, "meningioma": 2.5, "brain-age": 3.75}
    assert by["d"].ranks["infarct", "auroc"] == 4
    assert by["c"].ranks["brain-age", "mae"] == by["d"].ranks["brain-age", "mae"] == 3.5


def test_ties_may_all_take_the_best_place() -> None:
    by = {place.team: place for place in rank_teams(read("fomo25"), TABLE, ties="min")}
    assert by["b"].ranks["infarct", "auroc"] == by["c"].ranks["infarct", "auroc"] == 2
    assert by["a"].ranks["meningioma", "nsd"] == 1
    assert by["b"].ranks["meningioma", "nsd"] == 4


def test_fomo26_weighs_its_tasks() -> None:
    table = [
        *rows("infarct", "auroc", a=0.9, b=0.8), *rows("meningioma", "dsc", a=0.1, b=0.2), *rows("meningioma", "nsd", a=0.1, b=0.2),
        *rows("brain-age", "mae", a=5, b=6), *rows("brain-age", "pearson_r", a=0.9, b=0.8),
        *rows("trigeminal", "dsc", a=0.1, b=0.2), *rows("trigeminal", "nsd", a=0.1, b=0.2),
        *rows("polymicrogyria", "auroc", a=0.9, b=0.8), *rows("linear-probe", "auroc", a=0.9, b=0.8),
        *rows("linear-probe", "macro_f1", a=0.9, b=0.8), *rows("fairness", "fairness", a=0.9, b=0.8),
    ]  # fmt: skip
    places = rank_teams(read("fomo26"), table)
    # a is first in five tasks of weight 0.1, second in two of 0.25: 0.5 * 1 + 0.5 * 2 for both
    assert [(place.team, place.place, place.mean_rank) for place in places] == [
        ("a", 1, pytest.approx(1.5)),
        ("b", 1, pytest.approx(1.5)),
    ]
    only = rank_teams(read("fomo26"), table[:6])  # weights of the tasks that are there: 0.10 and 0.25
    assert {place.team: place.mean_rank for place in only} == pytest.approx({"a": (0.1 + 0.5) / 0.35, "b": (0.2 + 0.25) / 0.35})


def test_a_team_without_a_row_failed_there() -> None:
    table = [*rows("infarct", "auroc", a=0.1, b=0.2), *rows("polymicrogyria", "auroc", a=0.1)]
    by = {place.team: place for place in rank_teams(read("fomo26"), table)}
    assert by["b"].ranks["polymicrogyria", "auroc"] == 2


def test_a_failure_is_last_where_no_worst_value_is_stated() -> None:
    metric = Metric(name="fairness", better="higher")
    assert ranks([0.2, None, -5.0, float("nan")], metric).tolist() == [1, 3.5, 2, 3.5]
    assert ranks([0.2, None], Metric(name="x", better="lower")).tolist() == [1, 2]


def test_what_cannot_be_ranked_is_told() -> None:
    with pytest.raises(InputError, match="no scores"):
        rank_teams(read("fomo25"), [])
    with pytest.raises(InputError, match="did you mean 'auroc'"):
        rank_teams(read("fomo25"), rows("infarct", "auc", a=1))
    with pytest.raises(InputError, match="there twice"):
        rank_teams(read("fomo25"), rows("infarct", "auroc", a=1) * 2)
    with pytest.raises(ConfigError, match="has no task 9"):
        rank_teams(read("fomo25"), rows("9", "auroc", a=1))
    ssl3d: Protocol = read("ssl3d")
    with pytest.raises(InputError, match="not known"):
        rank_teams(ssl3d, rows("segmentation", "dsc", a=1))
