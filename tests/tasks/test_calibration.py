"""Calibrating from answers with known truth, averaging answers, and the selection gap."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from neuroprior.assessments import fewshot as scoring
from neuroprior.assessments.accuracy import Context
from neuroprior.core.errors import InputError
from neuroprior.data.store import Store
from neuroprior.inference import calibration as calibrating
from neuroprior.inference import model as models
from neuroprior.tasks import _calibration as fitting
from neuroprior.tasks import _folds as many
from neuroprior.tasks._calibration import Answer

CLASSES = {"name": "classification", "classes": ["a", "b"], "positive": "b", "floor": {"prior": {"a": 0.5, "b": 0.5}}}
NUMBER = {"name": "regression", "target": "age", "floor": {"mean": 50.0}}


def classified(n: int, sharp: float, seed: int = 0) -> list[Answer]:
    """Answers that are too sure by a factor; truth drawn from the right probabilities."""
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((n, 2)) * 1.5
    truth = draw.random(n) < softmax(logits, 1)[:, 1]
    p = softmax(logits * sharp, 1)
    return [Answer(f"c{k}", f"s{k}", float(truth[k]), tuple(p[k].tolist())) for k in range(n)]


def numbers(n: int, seed: int = 0) -> list[Answer]:
    """Answers whose error is twice as large for M."""
    draw = np.random.default_rng(seed)
    made = []
    for k in range(n):
        sex, truth = ("F", "M")[k % 2], float(draw.uniform(20, 80))
        error = draw.standard_normal() * (2.0 if sex == "M" else 1.0)
        made.append(
            Answer(f"c{k}", f"s{k}", truth, value=truth + error, groups={"sex": sex, "age": "<40" if truth < 40 else "40+"})
        )
    return made


def test_the_temperature_of_some_folds_lowers_the_ece_of_the_others() -> None:
    folds = [classified(100, 4.0, seed) for seed in range(4)]
    rows = {
        (r.metric, r.region): r
        for r in scoring.calibration_scores(Context("m", "classification", "x", resamples=300), folds, CLASSES)
    }
    for metric in ("ece", "nll", "brier"):
        difference = rows[metric, "after - before temperature"]
        assert difference.value is not None
        assert difference.high is not None
        assert difference.high < 0, metric
    made = fitting.fit(folds[0], CLASSES, source="validation")
    assert made.temperature > 2
    assert made.facts["nll_after"] < made.facts["nll_before"]
    assert made.abstain_below is not None
    p = calibrating.temper(fitting.probability_table(folds[0]), made.temperature).max(1)
    assert np.mean(p >= made.abstain_below) == pytest.approx(0.9, abs=0.01)


def test_intervals_cover_at_their_level_over_all_and_by_sex_and_age() -> None:
    folds = [numbers(200, seed) for seed in range(4)]
    rows = {
        r.region: r
        for r in scoring.calibration_scores(Context("m", "regression", "age"), folds, NUMBER)
        if r.metric == "coverage"
    }
    assert set(rows) == {"all", "sex=F", "sex=M", "age=<40", "age=40+"}
    for region, row in rows.items():
        assert row.low is not None
        assert row.high is not None
        assert row.low <= 0.9 <= row.high, region
    made = fitting.fit(folds[0], NUMBER, source="validation")
    assert made.groups["sex"]["M"] > 1.2 * made.groups["sex"]["F"]
    assert made.quantiles["value"] == sorted(abs((a.value or 0) - (a.truth or 0)) for a in folds[0])[180]  # rank 181 of 201


def test_few_cases_reach_a_lower_level_which_is_told(caplog: pytest.LogCaptureFixture) -> None:
    made = fitting.fit(numbers(6), NUMBER, source="validation")
    assert made.level == pytest.approx(6 / 7)
    assert not made.groups
    with caplog.at_level(logging.WARNING):
        fitting.tell(made)
    assert "cover 86 %" in caplog.text
    with pytest.raises(InputError, match="too few cases"):
        fitting.fit(numbers(4), NUMBER, source="validation")
    with pytest.raises(InputError, match="one class only"):
        fitting.fit([a for a in classified(40, 1.0) if a.truth == 0.0], CLASSES, source="validation")


def segmented(n: int, seed: int = 0) -> list[Answer]:
    draw = np.random.default_rng(seed)
    made = []
    for k in range(n):
        logits = draw.standard_normal((300, 2)) * 1.5
        truth = (draw.random(300) < softmax(logits, 1)[:, 1]).astype(np.int32)
        made.append(Answer(
            f"c{k}", f"s{k}", volumes_ml={"1": (5.0 + k, 5.0)}, confidence=0.9, voxels=softmax(logits * 3, 1).astype(np.float32),
            voxel_truth=truth, voxel_weights=np.ones(300),
        ))  # fmt: skip
    return made


def test_a_segmentation_gets_a_temperature_and_intervals_of_volumes() -> None:
    task = {"name": "segmentation", "label_values": [1]}
    made = fitting.fit(segmented(20), task, source="validation")
    assert made.temperature == pytest.approx(3.0, rel=0.15)
    assert made.quantiles["volume_ml"] == {"1": 18.0}  # rank 19 of 21, errors 0 .. 19
    rows = {r.region: r for r in scoring.calibration_scores(Context("m", "segmentation", "x", resamples=100), [segmented(8, s) for s in range(3)], task)
            if r.metric == "nll"}  # fmt: skip
    assert (rows["voxels, after - before temperature"].high or 0) < 0


def test_voxels_are_drawn_near_the_labels_and_around_the_head() -> None:
    images, truth = np.zeros((1, 20, 20, 20)), np.zeros((20, 20, 20), dtype=int)
    images[:, 4:16, 4:16, 4:16] = 1
    truth[9:11, 9:11, 9:11] = 1
    places, weights = fitting.sample_voxels(images, truth, 200, 0, "a")
    assert len(places) == len(set(places.tolist())) <= 200
    assert weights.sum() == pytest.approx(np.count_nonzero(_dilated(images[0] != 0)))
    inside = np.unravel_index(places, truth.shape)
    assert (truth[inside] > 0).sum() > 5
    assert (images[0][inside] == 0).any(), "around the head too"
    assert np.array_equal(places, fitting.sample_voxels(images, truth, 200, 0, "a")[0])


def _dilated(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(mask, iterations=2))


def test_an_ensembles_answer_is_the_mean() -> None:
    one, two = classified(5, 1.0, 1), classified(5, 1.0, 1)
    two = [Answer(a.case, a.subject, a.truth, a.probabilities[::-1]) for a in two]
    assert all(a.probabilities == pytest.approx((0.5, 0.5)) for a in many.average([one, two]))
    moved = many.reordered(one, ["a", "b"], ["0", "a", "b"])
    assert moved[0].probabilities == (0.0, *one[0].probabilities)
    assert moved[0].truth == (one[0].truth or 0) + 1


def test_the_gap_of_choosing_each_runs_own_best_step(tmp_path: Path) -> None:
    curves = [{10: 3.0, 20: 1.0, 30: 2.0}, {10: 2.0, 20: 2.5, 30: 1.0}]
    for n, curve in enumerate(curves):
        (tmp_path / str(n)).mkdir()
        lines = [json.dumps({"event": "validation", "step": step, "mae": value}) for step, value in curve.items()]
        (tmp_path / str(n) / "events.jsonl").write_text("\n".join(lines) + "\n")
    gap = many.selection_gap([tmp_path / "0", tmp_path / "1"], "mae")
    assert gap is not None
    assert (gap.best_each, gap.best_common, gap.common_step, gap.last) == (1.0, 1.5, 30, 1.5)
    assert gap.each == (1.0, 0.0)
    assert many.selection_gap([tmp_path / "2"], "mae") is None


def test_a_finished_run_is_calibrated_and_still_the_model_it_was(store_path: Path, tmp_path: Path) -> None:
    """The store's ten heads: seven to learn from would leave too few, so the calibration looks at all but the training part."""
    store = Store.open(store_path)
    people = sorted({s.subject for s in store.sessions})
    split = {**dict.fromkeys(people[:5], "train"), **dict.fromkeys(people[5:], "val")}
    settings = ["training.steps=2", "training.accelerator=cpu", "training.schedule.warmup_steps=1"]

    def run(out: Path) -> Any:
        return many.fine_tune(
            store,
            "scratch",
            "regression",
            "age",
            config=many.settings(settings, seed=0, task="regression"),
            out=out,
            contrasts="T1w",
            split=split,
        )

    assert run(tmp_path / "run").status == "complete"
    made = calibrating.read(tmp_path / "run")
    assert made is not None
    assert (made.n, made.facts["source"]) == (5, "validation")
    assert made.level == pytest.approx(5 / 6)
    model = models.load(tmp_path / "run")  # hashes and the forward check hold
    cases = many.test_cases(store, model.info, people[5:])
    errors = [abs((a.value or 0.0) - (a.truth or 0.0)) for a in fitting.answers(model, store, cases)]
    assert made.quantiles["value"] == pytest.approx(max(errors), rel=1e-5)
    before = (tmp_path / "run/model/model.json").read_bytes()
    run(tmp_path / "run")
    assert (tmp_path / "run/model/model.json").read_bytes() == before, "a finished run is not calibrated twice"
