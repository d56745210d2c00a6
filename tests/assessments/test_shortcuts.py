"""The audit of shortcuts: its arithmetic against scikit-learn, its alarms against planted and honest data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from neuroprior.assessments import _nuisance as nuisance
from neuroprior.assessments import _permutation as permutation
from neuroprior.assessments import shortcuts
from neuroprior.core import seeds
from neuroprior.core.errors import InputError
from neuroprior.core.records import Scan
from neuroprior.data.index import read_index
from neuroprior.stages.index import index
from neuroprior.stages.synthesise import synthesise

FAST = shortcuts.Config(permutations=1999, resamples=200)


def rows(n: int, seed: int = 0, contrasts: tuple[str, ...] = ("T1w", "FLAIR"), **change: object) -> list[Scan]:
    """An honest index without files: two scans a subject, everything drawn by chance."""
    draw = np.random.default_rng(seed)
    made = []
    for k in range(n):
        ill, age, where = bool(draw.random() < 0.5), float(draw.uniform(20, 80)), int(draw.integers(3))
        stamp = int(draw.integers(10**15, 10**16))
        for contrast in contrasts:
            shape = tuple(int(v) for v in draw.integers(80, 110, 3))
            affine = np.diag([2.0, 2.0, 2.0 if contrast == "T1w" else 4.0, 1.0])
            affine[:3, 3] = draw.normal(-80, 5, 3)
            made.append(
                Scan(
                    f"d/sub-{k:04d}_{contrast}", "d", f"d/sub-{k:04d}", "", contrast, contrast, f"/nowhere/sub-{k:04d}/sub-{k:04d}_{contrast}.nii.gz",
                    age=age, health="ill" if ill else "healthy", site=f"site{where}", shape=shape, spacing_mm=tuple(np.diag(affine)[:3].tolist()),
                    affine=tuple(affine.ravel().tolist()), orientation=str(draw.choice(["RAS", "LAS"])), dtype=str(draw.choice(["int16", "float32"])),
                    size_bytes=int(draw.integers(900_000, 1_100_000)), mtime_ns=stamp,
                )
            )  # fmt: skip
    return made


def verdicts(found: list[shortcuts.Finding], verdict: str = shortcuts.SHORTCUT) -> set[str]:
    return {finding.probe for finding in found if finding.verdict == verdict}


# ------------------------------------------------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("shape", [(40, 5), (30, 50)])
def test_held_out_predictions_are_those_of_a_ridge_refitted_without_the_fold(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(1)
    x, y = permutation.standardised(draw.normal(size=shape)), draw.normal(size=shape[0])
    matrix = permutation.held_out(x, folds=5, repeats=2, seed=3)
    assert np.array_equal(np.diag(matrix), np.zeros(len(x)))
    expected = np.zeros(len(x))
    for repeat in range(2):
        part = seeds.generator(3, "audit folds", repeat).permutation(np.arange(len(x)) % 5)
        for fold in range(5):
            fit = part != fold
            ridge = Ridge(alpha=permutation.penalty(x) * fit.sum() / len(x), fit_intercept=False).fit(x[fit], y[fit])
            expected[~fit] += ridge.predict(x[~fit]) / 2
    np.testing.assert_allclose(matrix @ y, expected, atol=1e-8)


def test_the_penalty_leaves_one_parameter_for_eight_subjects() -> None:
    x = permutation.standardised(np.random.default_rng(0).normal(size=(80, 60)))
    power = np.linalg.svd(x, compute_uv=False) ** 2
    assert (power / (power + permutation.penalty(x))).sum() == pytest.approx(10, rel=1e-3)


def test_the_p_value_is_that_of_refitting_for_every_shuffle() -> None:
    draw = np.random.default_rng(2)
    x = permutation.standardised(draw.normal(size=(30, 3)))
    y = x[:, 0] + draw.normal(size=30) * 2
    orders = permutation.shuffles(30, 199, 0)
    found = permutation.test(x, y, orders, folds=5, repeats=1)

    def refit(label: np.ndarray) -> float:
        label = label - y.mean()
        guess = np.zeros(30)
        part = seeds.generator(0, "audit folds", 0).permutation(np.arange(30) % 5)
        for fold in range(5):
            fit = part != fold
            guess[~fit] = (
                Ridge(alpha=permutation.penalty(x) * fit.sum() / 30, fit_intercept=False).fit(x[fit], label[fit]).predict(x[~fit])
            )
        return float(np.corrcoef(guess, label)[0, 1])

    null = [refit(y[order]) for order in orders]
    assert found.value == pytest.approx(refit(y), abs=1e-6)
    assert found.p == (1 + sum(value >= refit(y) - 1e-6 for value in null)) / 200


def test_p_values_are_uniform_when_nothing_is_there() -> None:
    draw = np.random.default_rng(5)
    orders = permutation.shuffles(24, 199, 1)
    numbers, classes = [], []
    for _ in range(300):
        x = permutation.basis(draw.normal(size=(24, 2)))
        numbers.append(permutation.test(x, draw.normal(size=24), orders, resamples=100).p)
        label = draw.permutation(np.repeat([0.0, 1.0], [6, 18]))
        classes.append(permutation.test(x, label, orders, classes=("a", "b"), resamples=100).p)
    for p in (np.array(numbers), np.array(classes)):
        for level in (0.05, 0.2, 0.5):
            assert abs((p <= level).mean() - level) < 3.5 * np.sqrt(level * (1 - level) / 300)


def test_weighted_auroc_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(3)
    score, truth = np.round(draw.normal(size=50), 1), draw.random(50) < 0.3
    weights = draw.integers(0, 4, (5, 50)).astype(float)
    expected = [roc_auc_score(truth, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(permutation.weighted_auroc(score, truth, weights), expected, atol=1e-12)
    assert np.isnan(permutation.weighted_auroc(score, np.ones(50, bool), weights)).all()


def test_holm_by_hand() -> None:
    assert permutation.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert permutation.holm([0.6, 0.9]) == [1.0, 1.0]


def test_shuffles_stay_within_strata() -> None:
    strata = np.array([0, 1, 0, 1, 1, 0])
    for order in permutation.shuffles(6, 50, 0, strata):
        assert sorted(order) == list(range(6))
        assert np.array_equal(strata[order], strata)


# ------------------------------------------------------------------------------------------------------- planted shortcuts


def plant(kind: str, scans: list[Scan]) -> list[Scan]:
    made = []
    ages = sorted({scan.age or 0 for scan in scans})
    for number, scan in enumerate(scans):
        ill = scan.health == "ill"
        sub = scan.subject.rsplit("/", 1)[-1]
        if kind == "order":
            scan = replace(scan, age=ages[number // 2])
        elif kind == "name":
            scan = replace(scan, path=scan.path.replace(f"/{sub}_", f"/{sub}_{'pat' if ill else 'con'}_"))
        elif kind == "folder":
            scan = replace(scan, path=scan.path.replace("/nowhere/", f"/nowhere/{'AD' if ill else 'CN'}/"))
        elif kind == "header":
            scan = replace(scan, dtype="int16" if ill else "float32")
        elif kind == "scans" and ill and scan.contrast == "FLAIR":
            continue
        elif kind == "spacing" and ill:
            scan = replace(scan, spacing_mm=tuple(1.05 * s for s in scan.spacing_mm or ()))
        elif kind == "shape":
            scan = replace(scan, shape=(120 if ill else 100, *(scan.shape or ())[1:]))
        elif kind == "position" and ill:
            affine = list(scan.affine or ())
            affine[11] += 40
            scan = replace(scan, affine=tuple(affine))
        elif kind == "site":
            scan = replace(scan, site="site0" if ill else scan.site)
        elif kind == "acquisition":
            scan = replace(scan, columns={"acq_time": f"{2009 + ill}-05-{number % 28 + 1:02d}T10:00:00"})
        elif kind == "year":
            scan = replace(scan, columns={"acquisition_year": 2009 + ill})
        made.append(scan)
    return made


@pytest.mark.parametrize(
    "kind", ["order", "name", "folder", "header", "scans", "spacing", "shape", "position", "site", "acquisition", "year"]
)
def test_what_is_planted_in_an_index_is_found_without_reading_a_voxel(kind: str) -> None:
    scans = plant(kind, rows(40, seed=4))
    found = shortcuts.audit(scans, ["age" if kind == "order" else "health"], config=FAST)
    probe = {"folder": "name", "year": "acquisition"}.get(kind, kind)
    assert probe in verdicts(found)
    one = next(finding for finding in found if finding.probe == probe)
    assert one.p is not None and one.p_holm is not None and one.p < 0.01 and one.p_holm < 0.01
    assert one.low is not None and one.value is not None and one.low <= one.value
    assert "predicts" in one.words and f"p {one.p_holm:.2g}" in one.words


def test_an_honest_index_is_left_in_peace() -> None:
    for seed in range(6):
        found = shortcuts.audit(rows(30, seed=50 + seed), ["health", "age"], config=FAST)
        assert not verdicts(found) and not verdicts(found, shortcuts.CHECK)
        assert all("would have been" in finding.words for finding in found if finding.verdict == shortcuts.NONE)


@pytest.mark.parametrize("kind", ["background", "skull"])
def test_what_is_planted_in_voxels_is_found(kind: str, tmp_path: Path) -> None:
    synthesise(tmp_path / "heads", subjects=24, spacing=5.0, contrasts="T1w", shortcut=kind, workers=1, progress=False, seed=1)
    index([tmp_path / "heads"], tmp_path / "index.parquet", checks="header", workers=1)
    scans = [
        replace(scan, health="healthy" if scan.health == "healthy" else "ill") for scan in read_index(tmp_path / "index.parquet")
    ]
    found = shortcuts.audit(scans, ["health"], voxels=24, config=FAST)
    assert kind in verdicts(found)
    assert not verdicts(found) & set(nuisance.FROM_INDEX)
    assert "24 T1w scans" in next(finding for finding in found if finding.probe == kind).sample


def test_comparing_within_datasets_forgets_what_only_tells_datasets_apart() -> None:
    draw = np.random.default_rng(0)
    scans = []
    for scan in rows(60, seed=9, contrasts=("T1w",)):
        young = int(scan.subject[-1]) % 2 == 0
        scans.append(
            replace(
                scan,
                dataset="a" if young else "b",
                age=float(draw.normal(30 if young else 70, 5)),
                dtype="int16" if young else "uint8",
            )
        )
    assert {"header", "site"} <= verdicts(shortcuts.audit(scans, ["age"], config=FAST))
    assert not verdicts(shortcuts.audit(scans, ["age"], config=FAST.model_copy(update={"within": "dataset"})))


def test_files_that_were_written_at_other_times_are_to_be_checked_not_to_fail() -> None:
    scans = [replace(scan, mtime_ns=10**18 + k + (scan.health == "ill") * 10**15) for k, scan in enumerate(rows(40, seed=4))]
    found = shortcuts.audit(scans, ["health"], config=FAST)
    assert verdicts(found, shortcuts.CHECK) == {"file_time"} and not verdicts(found)


def test_a_stratum_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InputError, match="'site'"):
        shortcuts.audit(rows(12), ["age"], config=FAST.model_copy(update={"within": "sit"}))


def test_of_many_subjects_some_are_drawn_and_the_places_are_kept() -> None:
    scans = plant("order", rows(300, seed=3))
    found = shortcuts.audit(scans, ["age"], config=FAST.model_copy(update={"max_subjects": 60}))
    one = next(finding for finding in found if finding.probe == "order")
    assert one.verdict == shortcuts.SHORTCUT and one.subjects == 60
    assert one.sample == "60 of 300 subjects, drawn by chance"


def test_a_probe_does_not_use_its_own_label() -> None:
    assert "site" not in verdicts(shortcuts.audit(rows(40, seed=2), ["site"], config=FAST))


# ---------------------------------------------------------------------------------------------------------------- bad input


def test_a_column_that_is_not_there_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="'health'"):
        shortcuts.audit(rows(12), ["healt"])


def test_what_cannot_be_asked_is_said_and_never_called_clean() -> None:
    few = shortcuts.audit(rows(6), ["age"], config=FAST)
    assert [finding.verdict for finding in few] == [shortcuts.UNKNOWN] and "too few" in few[0].words
    alike = [replace(scan, health="ill") for scan in rows(20)]
    assert "one class" in shortcuts.audit(alike, ["health"], config=FAST)[0].words
    absent = [replace(scan, age=None) for scan in rows(20)]
    assert "no subject has a value" in shortcuts.audit(absent, ["age"], config=FAST)[0].words
    constant = [replace(scan, age=40.0) for scan in rows(20)]
    assert shortcuts.audit(constant, ["age:number"], config=FAST)[0].verdict == shortcuts.UNKNOWN
    rare = [replace(scan, health="ill" if scan.subject.endswith("0001") else "healthy") for scan in rows(20)]
    assert "fewer than two classes" in shortcuts.audit(rare, ["health"], config=FAST)[0].words
    small = shortcuts.audit(rows(10, seed=1), ["age"], config=FAST)
    assert shortcuts.UNKNOWN in {finding.verdict for finding in small}


def test_texts_are_no_numbers_and_missing_values_are_told() -> None:
    scans = [replace(scan, columns={"score": "high" if k < 4 else "n/a" if k < 8 else "low"}) for k, scan in enumerate(rows(30))]
    with pytest.raises(InputError, match="numbers only"):
        shortcuts.audit(scans, ["score:number"], config=FAST)
    label = shortcuts.label_of(scans, "score", FAST.model_copy(update={"min_class": 2}))
    assert label.classes == ("high", "low") and "2 subjects without a value" in label.note


def test_an_index_without_geometry_is_judged_by_what_it_has() -> None:
    bare = [
        replace(scan, shape=None, spacing_mm=None, affine=None, orientation=None, dtype=None, size_bytes=None, mtime_ns=None)
        for scan in rows(20)
    ]
    found = shortcuts.audit(bare, ["health"], config=FAST)
    assert {"shape", "spacing", "fov", "file_time"} <= verdicts(found, shortcuts.CONSTANT)
