"""What must hold of the metrics of masks whatever the masks: symmetry, padding, and that missing something is never better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuroprior.metrics import auroc, brier, classification, dice, ece, lesions, selective, surface, volume

SPACINGS = st.tuples(*[st.sampled_from([0.4, 0.8, 1.0, 1.2, 3.0])] * 3)
SHAPES = st.tuples(*[st.integers(2, 7)] * 3)
few = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    a, b = (draw(hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(False))) for _ in range(2))
    return a, b


def everything(p: np.ndarray, r: np.ndarray, spacing: tuple[float, float, float]) -> list[float]:
    found = surface.measure(p, r, spacing)
    return [dice.dice(p, r), dice.iou(p, r), found.nsd(1.0), found.hausdorff(), found.hausdorff(100), found.assd()]


@few
@given(pairs(), SPACINGS)
def test_symmetric(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]) -> None:
    p, r = pair
    assert everything(p, r, spacing) == pytest.approx(everything(r, p, spacing), nan_ok=True)
    assert volume.absolute_error_ml(p, r, spacing) == volume.absolute_error_ml(r, p, spacing)
    there, back = lesions.detect(p, r), lesions.detect(r, p)
    assert (there.false_alarms, there.missed) == (back.missed, back.false_alarms)


@few
@given(pairs(), SPACINGS, st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3))
def test_padding_changes_nothing(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float], more: tuple[tuple[int, int], ...]
) -> None:
    """Only a missing mask knows of the image: its distance is the image's diagonal."""
    p, r = pair
    wide = np.pad(p, more), np.pad(r, more)
    assert lesions.detect(*wide) == lesions.detect(p, r)
    before, after = everything(p, r, spacing), everything(*wide, spacing)
    if p.any() and r.any():
        assert after == pytest.approx(before)
    else:
        assert after[:3] == pytest.approx(before[:3], nan_ok=True)
        assert all(b >= a or np.isnan(a) for a, b in zip(before[3:], after[3:]))


@few
@given(pairs(), SPACINGS)
def test_a_missed_case_is_never_better(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]) -> None:
    p, r = pair
    if not r.any():
        return
    best = everything(p, r, spacing)
    missed = everything(np.zeros_like(p), r, spacing)
    assert all(m <= b + 1e-12 for m, b in zip(missed[:3], best[:3]))
    assert all(m >= b - 1e-9 for m, b in zip(missed[3:], best[3:]))


@few
@given(pairs(), SPACINGS, hnp.arrays(bool, (3, 4, 3)))
def test_a_missed_structure_is_never_better(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float], lesion: np.ndarray
) -> None:
    """A second structure of the reference, apart from the rest, that the prediction had right or does not have at all."""
    p, r = pair
    if not lesion.any() or not p.any() or not r.any():
        return
    shape = np.array(p.shape) + np.array([5, 6, 5])
    with_it, without, reference = (np.zeros(shape, dtype=bool) for _ in range(3))
    place = tuple(slice(0, n) for n in p.shape)
    with_it[place], without[place], reference[place] = p, p, r
    far = tuple(slice(n + 2, n + 2 + m) for n, m in zip(p.shape, lesion.shape))
    with_it[far] = reference[far] = lesion
    found, missed = everything(with_it, reference, spacing), everything(without, reference, spacing)
    assert all(m <= f + 1e-12 for m, f in zip(missed[:3], found[:3]))
    assert all(m >= f - 1e-9 for m, f in zip(missed[3:], found[3:]))
    assert lesions.detect(without, reference).recall < lesions.detect(with_it, reference).recall


@few
@given(pairs(), SPACINGS)
def test_ranges_and_order(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]) -> None:
    p, r = pair
    d, j, n, h95, h, a = everything(p, r, spacing)
    if not p.any() and not r.any():
        assert np.isnan([d, j, n, h95, h, a]).all()
        return
    assert 0 <= j <= d <= 1
    assert 0 <= n <= 1
    assert 0 <= a <= h + 1e-9
    assert h95 <= h + 1e-9 <= np.linalg.norm(np.array(p.shape) * spacing) + 2e-9
    if (p == r).all():
        assert [d, j, n, h95, h, a] == [1, 1, 1, 0, 0, 0]


@few
@given(st.lists(st.tuples(st.booleans(), st.integers(-50, 50)), min_size=1, max_size=40))
def test_ranking_knows_only_the_order(cases: list[tuple[bool, int]]) -> None:
    truth, score = np.array([t for t, _ in cases]), np.array([float(s) for _, s in cases])
    got = auroc.auroc(truth, score)
    assert auroc.auroc(truth, np.arctan(score)) == pytest.approx(got, nan_ok=True)
    assert auroc.auroc(~truth, -score) == pytest.approx(got, nan_ok=True)
    assert auroc.auroc(truth, -score) == pytest.approx(1 - got, nan_ok=True)
    assert np.isnan(got) == (truth.all() or not truth.any())
    if truth.any():
        assert truth.mean() / truth.size <= auroc.auprc(truth, score) <= 1


@few
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_matthews_is_symmetric_and_names_do_not_matter(cases: list[tuple[int, int]]) -> None:
    truth, guess = np.array([t for t, _ in cases]), np.array([g for _, g in cases])
    got = classification.mcc(truth, guess)
    other = classification.mcc(guess, truth)
    assert got == pytest.approx(other) or np.isnan(got) or np.isnan(other)
    names = np.array(["d", "a", "c", "b"])
    assert classification.mcc(names[truth], names[guess]) == pytest.approx(got, nan_ok=True)
    assert classification.macro_f1(truth, guess) == pytest.approx(classification.macro_f1(guess, truth))


@few
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60), st.integers(1, 15))
def test_calibration_stays_in_range_and_knows_no_order(cases: list[tuple[bool, float]], bins: int) -> None:
    truth, p = np.array([t for t, _ in cases]), np.array([q for _, q in cases])
    back = slice(None, None, -1)
    for scheme in ("width", "mass"):
        got = ece.ece(truth, p, bins, scheme)
        assert 0 <= got <= ece.mce(truth, p, bins, scheme) + 1e-12 <= 1 + 2e-12
        assert 0 <= ece.debiased(truth, p, bins, scheme) <= got + 1e-12
        assert ece.ece(truth[back], p[back], bins, scheme) == pytest.approx(got)
    parts = brier.decompose(truth, p, bins)
    assert parts.brier == pytest.approx(((p - truth) ** 2).mean())
    assert min(parts.reliability, parts.resolution, parts.uncertainty, parts.spread) >= 0
    loss = (truth != (p > 0.5)).astype(float)
    assert selective.excess_aurc(loss, np.abs(p - 0.5)) >= -1e-12
    assert selective.aurc(loss[back], np.abs(p - 0.5)[back]) == pytest.approx(selective.aurc(loss, np.abs(p - 0.5)))
