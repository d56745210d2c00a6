"""Draws of labelled cases: in two levels, by (seed, sample), with rare values as often as common ones, sides kept right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroprior.core import seeds
from neuroprior.core.covariates import Covariate
from neuroprior.core.errors import ConfigError
from neuroprior.data.augmentation import PRESETS, Augmentation, steps
from neuroprior.data.cases import Case, CaseDataset, as_shares, case_weights, class_numbers, class_shares, collate
from neuroprior.data.store import Store
from neuroprior.tasks._finetuning import CaseConfig, mirrored
from neuroprior.tasks._sides import checked, pairs_from_names

CONTRASTS = ("T1w", "T2w", "FLAIR")


class Made:
    """A store of made-up sessions: 24^3, label values as wanted, the left half's image -1 and the right half's +1."""

    path = Path("made")

    def __init__(self, labels: list[np.ndarray], shares: bool = False) -> None:
        self.labels, self.soft = labels, shares
        self.cases: list[Case] = []

    def case(self, template: Any, number: int, site: str = "a") -> Case:
        label = self.labels[number]
        view = replace(
            template, key=str(number), shape=label.shape, scans={"T1w": {}}, columns={"site": site, "age": 40 + number, "sex": "F"},
            labels={"dseg": {"values": [int(v) for v in np.unique(label)]}},
        )  # fmt: skip
        return Case(view, ("T1w",), "dseg")

    def read(self, key: str, contrast: str, box: Any = None) -> np.ndarray:
        image = np.where(np.arange(24)[:, None, None] < 12, -1.0, 1.0) * np.ones((24, 24, 24))
        return image.astype(np.float32)[box] if box else image.astype(np.float32)

    def read_label(self, key: str, name: str, box: Any = None) -> np.ndarray:
        return self.labels[int(key)][box] if box else self.labels[int(key)]

    def read_shares(self, key: str, name: str, values: Any, box: Any = None) -> np.ndarray:
        label = self.read_label(key, name, box)
        each = np.stack([(label == value).astype(np.float32) for value in values])
        return each * 0.75 if self.soft else each


@pytest.fixture(scope="module")
def template(store_path: Path) -> Any:
    return Store.open(store_path).sessions[0]


def sided() -> np.ndarray:
    """Value 1 on the left, 2 on the right, 3 on the midline."""
    label = np.zeros((24, 24, 24), dtype=np.uint8)
    label[2:8, 8:16, 8:16], label[16:22, 8:16, 8:16], label[10:14, 2:6, 8:16] = 1, 2, 3
    return label


def test_rare_values_have_an_equal_chance_and_draws_depend_on_the_number_alone(template: Any) -> None:
    common, rare = np.zeros((24,) * 3, np.uint8), np.zeros((24,) * 3, np.uint8)
    common[4:20, 4:20, 4:20], rare[4:20, 4:20, 4:20] = 1, 1
    rare[12, 12, 12] = 9
    made = Made([common, common, common, rare])
    cases = [made.case(template, n) for n in range(4)]
    data = CaseDataset(made, cases, ("T1w",), (8, 8, 8), seed=5, foreground=1.0, label_values=(1, 9))  # type: ignore[arg-type]
    drawn = [data.pick(n)[:2] for n in range(600)]
    assert Counter(group for _, group in drawn)[2] == pytest.approx(300, abs=60)
    assert {number for number, group in drawn if group == 2} == {3}
    for n in range(40):
        if drawn[n][1] == 2:
            assert (data[n]["target"] == 2).any(), "the box holds the voxel"
    places = {tuple(np.argwhere(data[n]["target"].numpy() == 2)[0]) for n in range(80) if drawn[n][1] == 2}
    assert len(places) > 5, "and not always at the same place"
    one, other = data[17], CaseDataset(made, cases, ("T1w",), (8, 8, 8), seed=5, foreground=1.0, label_values=(1, 9))[17]  # type: ignore[arg-type]
    torch.testing.assert_close(one["images"], other["images"], rtol=0, atol=0)
    as_they_come = CaseDataset(made, cases, ("T1w",), (8, 8, 8), seed=5, foreground=1.0, label_values=(1, 9), balance=False)  # type: ignore[arg-type]
    assert Counter(as_they_come.pick(n)[0] for n in range(400))[3] == pytest.approx(100, abs=40)


def test_groups_are_drawn_by_their_temperature(template: Any) -> None:
    made = Made([sided()] * 10)
    cases = [made.case(template, n, site="a" if n else "b") for n in range(10)]  # nine of one, one of another
    assert case_weights(cases, None, 2.0) == pytest.approx(np.full(10, 0.1))
    assert case_weights(cases, "site", 1.0)[0] == pytest.approx(0.1)
    assert case_weights(cases, "site", 2.0)[0] == pytest.approx(1 / (1 + 3))  # sqrt(1) of sqrt(1) + sqrt(9)
    assert case_weights(cases, "site", 1e9)[0] == pytest.approx(0.5)
    data = CaseDataset(made, cases, ("T1w",), (8, 8, 8), seed=0, foreground=0.0, weights=case_weights(cases, "site", 1e9),
                       label_values=(1, 2, 3))  # type: ignore[arg-type]  # fmt: skip
    assert Counter(data.pick(n)[0] for n in range(400))[0] == pytest.approx(200, abs=50)
    with pytest.raises(ConfigError, match="no training case"):
        case_weights(cases, "shoe", 1.0)


@pytest.mark.parametrize("soft", [False, True])
def test_a_mirrored_phantom_has_its_sides_swapped_in_image_and_label(template: Any, soft: bool) -> None:
    made = Made([sided()], shares=soft)
    data = CaseDataset(made, [made.case(template, 0)], ("T1w",), (24, 24, 24), seed=1, foreground=0.0, label_values=(1, 2, 3),
                       augmentation=Augmentation((), (0,), [(1, 2)]))  # type: ignore[arg-type]  # fmt: skip
    seen = set()
    for n in range(12):
        sample = data[n]
        mirrored_now = bool(sample["images"][0, 0, 0, 0] > 0)
        seen.add(mirrored_now)
        target = sample["target"]
        numbers = target.argmax(0) if soft else target
        assert int(numbers[4, 12, 12]) == 1, "the value on the left is the left one"
        assert int(numbers[19, 12, 12]) == 2
        assert int(numbers[12, 4, 12]) == 3
        if soft:
            torch.testing.assert_close(target.sum(0), torch.ones(24, 24, 24))
            assert float(target[1].max()) == 0.75
    assert seen == {True, False}


def test_sides_come_from_names_or_pairs_and_are_not_guessed() -> None:
    names = {1: "Left-Hippocampus", 2: "right hippocampus", 3: "Brain-Stem", 4: "ctx_lh_insula", 5: "ctx_rh_insula", 6: "Left-X",
             7: "L_Amygdala", 8: "R_Amygdala"}  # fmt: skip
    assert pairs_from_names(names) == ((1, 2), (4, 5), (7, 8))
    assert checked([(1, 2)], (1, 2, 3)) == ((1, 2),)
    assert checked([(1, 2), (8, 9)], (1, 2)) == ((1, 2),)
    for wrong in ([(1, 1)], [(1, 2), (2, 3)], [(1, 7)]):
        with pytest.raises(ConfigError, match="label_pairs"):
            checked(wrong, (1, 2, 3))
    assert mirrored(CaseConfig(), (1,), ()) == (0,)
    assert mirrored(CaseConfig(), (1, 2), ()) == ()
    assert mirrored(CaseConfig(mirror_axes=(0, 2)), (1, 2), ()) == (2,)
    assert mirrored(CaseConfig(), (1, 2), ((1, 2),)) == (0,)
    assert mirrored(CaseConfig(label_pairs=()), (1, 2), ()) == (0,), "told that none has a side"
    assert mirrored(CaseConfig(flip=False), (1,), ()) == ()


def test_shares_of_merged_values_add_up_and_batches_mix(template: Any) -> None:
    made = Made([sided()], shares=True)
    got = class_shares(made, "0", "dseg", ((1, 2), 3))  # type: ignore[arg-type]
    assert got.shape == (3, 24, 24, 24)
    assert got[1, 4, 12, 12] == got[1, 19, 12, 12] == 0.75
    np.testing.assert_allclose(got.sum(0), 1)
    assert class_numbers(sided(), ((1, 2), 3)).max() == 2
    whole = torch.zeros(4, 4, 4, dtype=torch.int64)
    rows = [{"contrast": [0], "target": target, "images": torch.zeros(1, 4, 4, 4), "name": "x", "covariates": []}
            for target in (whole, as_shares(whole, 3))]  # fmt: skip
    assert collate(rows)["target"].shape == (2, 3, 4, 4, 4)


def test_words_name_transforms_and_every_one_keeps_the_outside_empty() -> None:
    for word in PRESETS:
        made = steps(word, {}, 0.1)
        assert [step.name for step in made] == list(PRESETS[word])
    everything = Augmentation([replace(step, probability=1.0) for step in steps("mri", {}, 0.1)], (0,), (), (4.0,) * 3)
    images = torch.zeros(2, 12, 12, 12)
    images[:, 3:9, 3:9, 3:9] = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(0)) + 2
    label = (images[0] != 0).long()
    out, moved = everything(seeds.generator(0), images, label)
    again, _ = everything(seeds.generator(0), images, label)
    torch.testing.assert_close(out, again, rtol=0, atol=0)
    assert moved is not None
    assert (out[:, 0, 0, 0] == 0).all()
    assert not torch.equal(out[0][out[0] != 0], out[1][out[1] != 0]), "each contrast has artefacts of its own"
    changed = steps("light", {"gamma": {"probability": 0.5, "log_gamma": 1.0}}, 0.2)
    assert changed[0].config.gain == 0.2
    assert (changed[1].name, changed[1].probability, changed[1].config.log_gamma) == ("gamma", 0.5, 1.0)
    with pytest.raises(ConfigError, match="data.flip"):
        steps("light", {"flip": {}}, 0.1)


def test_covariates_are_standardised_and_may_be_missing(template: Any) -> None:
    made = Made([sided()] * 2)
    covariates = (Covariate(name="age", kind="number", mean=40, std=2), Covariate(name="sex", kind="category", levels=("F", "M")),
                  Covariate(name="iq", kind="number"))  # fmt: skip
    cases = [replace(made.case(template, n), target=0.5) for n in range(2)]
    data = CaseDataset(made, cases, ("T1w",), (8, 8, 8), seed=0, covariates=covariates)  # type: ignore[arg-type]
    row = next(data[n] for n in range(9) if data[n]["name"] == "1")["covariates"]
    assert row[:2] == [0.5, 0.0]
    assert np.isnan(row[2])
    hidden = CaseDataset(made, cases, ("T1w",), (8, 8, 8), seed=0, covariates=covariates, covariate_dropout=0.5)  # type: ignore[arg-type]
    rate = np.mean([np.isnan(hidden[n]["covariates"][1]) for n in range(200)])
    assert rate == pytest.approx(0.5, abs=0.1)
