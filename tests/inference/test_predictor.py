"""A case from volumes to an answer: slabs, the ladder, calibration, uncertainty, flags, notes."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroprior.core import bias, peak_memory
from neuroprior.core.conforming import ConformSpec, to_native
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.precision import has_quick_int8
from neuroprior.core.session import conform_session
from neuroprior.core.volume import Volume
from neuroprior.inference import answers, ensemble, ladder, windows
from neuroprior.inference.answers import describe, withhold
from neuroprior.inference.model import load
from neuroprior.inference.native import NativeBuilder, native_labels
from neuroprior.inference.predictor import compute, mirror_axes, passes_of, predict_case
from neuroprior.inference.presets import PredictConfig, preset
from neuroprior.inference.reading import CaseInput, prepare
from neuroprior.nets import unet, vit

from . import made

AFFINE = np.array([[-1.5, 0, 0, 30], [0, 0, 2.2, -20], [0, 1.7, 0, -40], [0, 0, 0, 1]])


def volume(seed: int = 0, shape: tuple[int, int, int] = (40, 44, 36), affine: np.ndarray = AFFINE) -> Volume:
    return Volume(made.head(shape, seed=seed), affine)


def record_of(spacing: float = 3.0) -> Any:
    session = conform_session({"T1w": volume()}, ConformSpec(spacing_mm=spacing))
    return session.records["T1w"]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.sum((a > 0) & (a == b)) / max(np.sum(a > 0) + np.sum(b > 0), 1)


@pytest.mark.parametrize("spacing", [1.0, 3.0])
def test_slabs_give_the_whole_volumes_answer(spacing: float) -> None:
    """Against whole-volume resampling of every class, the way it would be done with memory to spare."""
    record = record_of(spacing)
    rng = np.random.default_rng(0)
    p = rng.random((4, *record.grid.shape)).astype(np.float32) ** 4
    p /= p.sum(0)
    values = [2, 5, 300]
    natives = np.stack([to_native(q, record) for q in p])
    covered = to_native(np.ones(record.grid.shape, dtype=np.float32), record) > 0
    natives[0][~covered] = 1
    expected = np.array([0, *values])[natives.argmax(0)]
    mask, foreground = native_labels(p, record, values)
    assert mask.dtype == np.uint16
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(foreground[covered], np.clip(1 - natives[0][covered], 0, 1))
    for thickness in (1, 3):
        builder = NativeBuilder(record, values, foreground=True, thickness=thickness)
        for x in range(p.shape[1]):
            builder.push(x, p[:, x : x + 1].copy())
        answer = builder.finish()
        np.testing.assert_array_equal(answer.mask, mask)
        np.testing.assert_array_equal(answer.foreground, foreground)
        assert answer.voxels == {value: int((mask == value).sum()) for value in values}
        inside = mask > 0
        assert answer.inside == pytest.approx(foreground[inside].mean(), abs=1e-6)
        assert answer.confidence == pytest.approx(natives.max(0)[inside].mean(), abs=1e-6)


def test_rows_out_of_order_or_missing_are_refused() -> None:
    record = record_of()
    builder = NativeBuilder(record, [1])
    with pytest.raises(ValueError, match="in order"):
        builder.push(3, np.zeros((2, 1, *record.grid.shape[1:]), dtype=np.float32))
    with pytest.raises(ValueError, match="never pushed"):
        builder.finish()


def test_entropy_is_that_of_the_tempered_probabilities() -> None:
    record = record_of(1.0)
    p = np.zeros((2, *record.grid.shape), dtype=np.float32)
    p[1] = 0.8
    p[0] = 0.2
    builder = NativeBuilder(record, [1], temperature=2.0, entropy=True)
    builder.push(0, p)
    entropy = builder.finish().entropy
    q = np.sqrt([0.2, 0.8])
    q /= q.sum()
    assert entropy is not None
    assert entropy[20, 22, 18] == pytest.approx(-(q * np.log(q)).sum() / math.log(2), abs=1e-5)


# --------------------------------------------------------------------------------------------------------- the ladder


RUNGS = (
    ladder.Rung("the GPU, 4 windows at a time", "cpu", 4, "cpu"),
    ladder.Rung("the GPU, one window at a time", "cpu", 1, "cpu"),
    ladder.Rung("the GPU, putting windows together on the CPU", "cpu", 1, "cpu"),
    ladder.Rung("the CPU, one window at a time", "cpu", 1, "cpu"),
)


def test_the_ladder_of_a_gpu_and_of_a_cpu() -> None:
    names = [(r.device, r.batch, r.stitch) for r in ladder.rungs("cuda:0", 4)]
    assert names == [("cuda:0", 4, "cuda:0"), ("cuda:0", 1, "cuda:0"), ("cuda:0", 1, "cpu"), ("cpu", 1, "cpu")]
    assert [(r.device, r.batch) for r in ladder.rungs("cpu", 2)] == [("cpu", 2), ("cpu", 1)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no more")])
@pytest.mark.parametrize("falls", [1, 2, 3])
def test_every_rung_gives_the_same_mask_and_says_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, falls: int, error: Exception
) -> None:
    model = load(made.segmenter(tmp_path, (1, 2), spec=ConformSpec(spacing_mm=2.5)))
    prepared = prepare(model, {"T1w": volume(1), "FLAIR": volume(2)})
    config = PredictConfig(probabilities=True)
    expected, rung = compute(model, prepared, config, rungs=RUNGS)
    assert rung == 0
    real, calls = windows.look, 0

    def scarce(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 3 * falls and calls % 3 == 0:  # the third window of each attempt
            raise error
        return real(*args, **options)

    monkeypatch.setattr(windows, "look", scarce)
    got, rung = compute(model, prepared, config, rungs=RUNGS)
    assert rung == falls
    assert got.rung == RUNGS[falls].name
    assert [record.message for record in caplog.records] == [
        f"scan: out of memory on {RUNGS[n].name}; now on {RUNGS[n + 1].name}" for n in range(falls)
    ]
    assert expected.mask is not None
    assert got.mask is not None
    assert (expected.mask > 0).any()
    assert dice(got.mask, expected.mask) >= 0.999
    np.testing.assert_allclose(got.foreground, expected.foreground, atol=1e-5)


def test_when_nothing_fits_it_is_told_and_other_errors_pass() -> None:
    def full(rung: ladder.Rung) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    def wrong(rung: ladder.Rung) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(MemoryError, match="one window at a time"):
        ladder.climb_down(RUNGS, full, what="x")
    with pytest.raises(RuntimeError, match="shapes differ"):
        ladder.climb_down(RUNGS, wrong, what="x")


# ------------------------------------------------------------------------------------ calibration, ensembles, samples


def classifier(folder: Path, **options: Any) -> Path:
    return made.save(folder, {"name": "classification", "target": "sex", "classes": ["F", "M"], "positive": "M"}, **options)


def regressor(folder: Path, mean: float = 50.0, **options: Any) -> Path:
    return made.save(folder, {"name": "regression", "target": "age", "mean": mean, "std": 10.0}, **options)


def test_temperature_and_intervals_are_applied(tmp_path: Path) -> None:
    calibration = {
        "n": 20, "temperature": 2.0, "level": 0.9, "quantiles": {"value": 7.5, "volume_ml": {"1": 1e6, "2": 0.5}}, "abstain_below": 0.999,
    }  # fmt: skip
    volumes = {"T1w": volume()}
    plain, hot = load(classifier(tmp_path / "a")), load(classifier(tmp_path / "b", calibration=calibration))
    p = np.array(list(compute(plain, prepare(plain, volumes))[0].classes.values()))
    output = compute(hot, prepare(hot, volumes))[0]
    expected = np.sqrt(p) / np.sqrt(p).sum()
    np.testing.assert_allclose(list(output.classes.values()), expected, atol=1e-6)
    assert output.flags == ("low_confidence",)
    row = describe(output, hot.task)
    assert row["p_F"] == pytest.approx(expected[0], abs=1e-6)
    hidden = withhold(row | {"status": "ok"})
    assert hidden["status"] == "abstained"
    assert hidden["value"] is hidden["probability"] is hidden["p_F"] is None
    assert hidden["confidence"] == output.confidence

    number = load(regressor(tmp_path / "c", calibration=calibration))
    output = compute(number, prepare(number, volumes))[0]
    assert output.value is not None
    assert (output.low, output.high) == (output.value - 7.5, output.value + 7.5)
    assert output.std is None

    masks = load(made.segmenter(tmp_path / "d", (1, 2), calibration=calibration))
    output = compute(masks, prepare(masks, volumes))[0]
    assert output.mask is not None
    ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    for value in (1, 2):
        assert output.volumes_ml[value][0] == pytest.approx((output.mask == value).sum() * ml)
    assert output.volumes_ml[1][1] == 0.0
    assert output.volumes_ml[2][2] == pytest.approx(output.volumes_ml[2][0] + 0.5)


def test_an_ensemble_averages_probabilities_and_numbers(tmp_path: Path) -> None:
    volumes = {"T1w": volume(), "T2w": volume(3)}
    members = [classifier(tmp_path / f"c{seed}", seed=seed) for seed in range(3)]
    joined = load(ensemble.write_ensemble(tmp_path / "classes", members))
    each = [list(compute(m, prepare(m, volumes))[0].classes.values()) for m in map(load, members)]
    got = compute(joined, prepare(joined, volumes))[0]
    np.testing.assert_allclose(list(got.classes.values()), np.mean(each, 0), atol=1e-6)

    members = [regressor(tmp_path / f"r{seed}", mean=50.0 + seed, seed=seed) for seed in range(3)]
    joined = load(ensemble.write_ensemble(tmp_path / "numbers", members))
    values = [compute(m, prepare(m, volumes))[0].value for m in map(load, members)]
    got = compute(joined, prepare(joined, volumes))[0]
    assert got.value == pytest.approx(np.mean(values))
    assert got.std == pytest.approx(np.std(values))

    members = [made.segmenter(tmp_path / f"s{seed}", (1, 2), seed=seed) for seed in range(2)]
    joined = load(ensemble.write_ensemble(tmp_path / "masks", members))
    config = PredictConfig(probabilities=True, uncertainty=True)
    each = [compute(m, prepare(m, volumes), config)[0] for m in map(load, members)]
    got = compute(joined, prepare(joined, volumes), config)[0]
    np.testing.assert_allclose(got.foreground, np.mean([one.foreground for one in each], 0), atol=1e-5)
    assert each[0].mutual is None
    assert got.mutual is not None
    assert got.entropy is not None
    assert got.mutual.max() > 0.01
    assert (got.mutual <= got.entropy + 1e-5).all()
    assert got.entropy.min() >= 0
    assert got.entropy.max() <= 1 + 1e-6


def test_members_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    first = classifier(tmp_path / "a")
    other = made.save(tmp_path / "b", {"name": "classification", "target": "health", "classes": ["F", "M"], "positive": "M"})
    with pytest.raises(ConfigError, match=r"(?s)task\.target.*/b") as told:
        ensemble.write_ensemble(tmp_path / "e", [first, other])
    assert "/a" in str(told.value)
    for changes, word in (({"contrasts": ("T1w",)}, "contrasts"), ({"spec": ConformSpec(spacing_mm=3.0)}, "preprocessing")):
        with pytest.raises(ConfigError, match=word):
            ensemble.write_ensemble(tmp_path / "e", [first, classifier(tmp_path / word, **changes)])
    with pytest.raises(ConfigError, match="at least two"):
        ensemble.write_ensemble(tmp_path / "e", [first])
    assert not (tmp_path / "e/ensemble.json").exists()


def test_samples_of_the_posterior_give_numbers_a_spread(tmp_path: Path) -> None:
    model = load(regressor(tmp_path / "r"))
    prepared = prepare(model, {"T1w": volume()}, name="a")
    mean = compute(model, prepared)[0]
    drawn = compute(model, prepared, PredictConfig(samples=8))[0]
    assert mean.std is None
    assert drawn.std is not None
    assert drawn.std > 0
    assert compute(model, prepared, PredictConfig(samples=8))[0].value == drawn.value
    assert compute(model, prepared, PredictConfig(samples=8, seed=1))[0].value != drawn.value
    flat = load(regressor(tmp_path / "flat", split="none"))
    with pytest.raises(ConfigError, match="no posterior"):
        compute(flat, prepare(flat, {"T1w": volume()}), PredictConfig(samples=2))


def test_what_a_head_itself_says_of_its_spread() -> None:
    """Against the moments of the distribution that the outputs describe."""
    rows = np.array([[0.0, 2.0], [0.0, 9.0]])
    task: dict[str, Any] = {"spread": {"kind": "log_variance", "output": 1, "clamp": [-4, 4]}}
    np.testing.assert_allclose(answers._own_spread(rows, task), np.exp([1.0, 2.0]))
    share, levels = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.5, 2.0])
    above = np.array([0.8, 0.3])
    task = {"spread": {"kind": "cumulative", "levels": levels.tolist()}}
    got = answers._own_spread(np.array([[0.0, *np.log(above / (1 - above))]]), task)
    np.testing.assert_allclose(got, np.sqrt(share @ levels**2 - (share @ levels) ** 2))
    assert answers._own_spread(rows, {"spread": None}) is None


@pytest.mark.parametrize(
    ("task", "axes"),
    [
        ({"label_values": [1]}, (0,)),
        ({"label_values": [1, 2]}, ()),
        ({"label_values": [1, 2], "mirror_axes": [0, 1]}, (1,)),
        ({"label_values": [1, 2], "mirror_axes": [0, 1], "label_pairs": [[1, 2]]}, (0, 1)),
        ({"label_values": [1], "mirror_axes": []}, ()),
        ({"name": "classification"}, ()),
        ({"name": "classification", "mirror_axes": [0]}, (0,)),
    ],
)
def test_which_axes_may_be_mirrored(task: dict[str, Any], axes: tuple[int, ...]) -> None:
    assert mirror_axes({"name": "segmentation", **task}) == axes


def test_mirrored_prediction_of_a_mirrored_phantom_has_the_sides_exchanged(tmp_path: Path) -> None:
    """Voxels are mirrored, the affine stays: the labels come back mirrored with left and right exchanged."""
    model = load(
        made.segmenter(tmp_path, (1, 2, 3), mirror_axes=[0], label_pairs=[[1, 2]], spec=ConformSpec(spacing_mm=4.0, crop="none"))
    )
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    voxels = made.head((24, 20, 18))
    config = preset("accurate", model.net, overlap=0.5)
    assert config.mirror
    straight = compute(model, prepare(model, {"T1w": Volume(voxels, affine)}), config)[0].mask
    turned = compute(model, prepare(model, {"T1w": Volume(voxels[::-1].copy(), affine)}), config)[0].mask
    assert straight is not None
    assert turned is not None
    assert {1, 2} <= set(np.unique(straight))
    swapped = np.array([0, 2, 1, 3])[straight[::-1]]
    assert (turned == swapped).mean() > 0.999
    assert (turned == straight[::-1]).mean() < 0.9


# ------------------------------------------------------------------------------------------------- notes and flags


def test_what_was_done_to_the_scans_it_learned_from_is_done_again(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="N4 is SimpleITK's")
    model = load(made.segmenter(tmp_path))
    first = volume()
    field = np.exp(np.linspace(-0.4, 0.4, first.shape[0]))[:, None, None]
    drifting = Volume((first.voxels * field).astype(np.float32), first.affine)
    plain = prepare(model, {"T1w": drifting})
    corrected = prepare(model, {"T1w": bias.without_bias(drifting)})
    assert np.abs(plain.images - corrected.images).max() > 0.1
    knowing = replace(model, info={**model.info, "data": {"steps": {"bias": "n4", "mask": "index"}}})
    again = prepare(knowing, {"T1w": drifting})
    np.testing.assert_array_equal(again.images, corrected.images)
    assert again.flags == ("other_mask",)
    assert any("brain masks" in note for note in again.notes)
    assert plain.flags == ()


def test_what_is_told_of_a_case(tmp_path: Path) -> None:
    model = load(made.segmenter(tmp_path))
    shifted = AFFINE.copy()
    shifted[2, 3] += 25
    cut = Volume(volume(2).voxels, shifted)
    scaled = volume(1)
    scaled = Volume((scaled.voxels - scaled.voxels.mean()) / scaled.voxels.std(), scaled.affine)
    prepared = prepare(model, {"T1w": volume(), "FLAIR": cut, "T2w": scaled})
    assert set(prepared.flags) == {"low_overlap:FLAIR", "already_normalised:T2w"}
    assert any("another grid than T1w" in note for note in prepared.notes)
    far = AFFINE.copy()
    far[0, 3] += 500
    with pytest.raises(InputError, match="do not show the same place"):
        prepare(model, {"T1w": volume(), "FLAIR": Volume(volume(2).voxels, far)})
    with pytest.raises(InputError, match="constant"):
        prepare(model, {"T1w": volume(), "FLAIR": Volume(np.zeros((5, 5, 5), dtype=np.float32), AFFINE)})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda v: v, False),
        (lambda v: v / v.max(), True),
        (lambda v: (v > 50).astype(np.float32), False),
        (lambda v: v / 1e5, False),
    ],
)
def test_intensities_that_look_normalised(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], found: bool) -> None:
    model = load(made.segmenter(tmp_path))
    prepared = prepare(model, {"T1w": Volume(change(made.head()), AFFINE)})
    assert bool(prepared.flags) == found


def test_an_empty_mask_and_one_at_the_edge_are_flagged(tmp_path: Path) -> None:
    model = load(made.segmenter(tmp_path, spec=ConformSpec(spacing_mm=4.0, crop="none")))
    assert model.head is not None
    bias = model.head.logits.bias
    assert isinstance(bias, torch.Tensor)
    for value, flag in ((1e4, "touches_edge"), (-1e4, "empty_mask")):
        with torch.no_grad():
            bias[1] = value
        output = compute(model, prepare(model, {"T1w": volume()}))[0]
        assert output.flags == (flag,)


def test_no_known_contrast_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    model = load(made.segmenter(tmp_path / "m"))
    path = made.write(tmp_path / "pd.nii.gz", made.head())
    with pytest.raises(InputError, match="--as T1w"):
        predict_case(model, CaseInput("a", "", "sub-a", "", {"PDw": path}))
    output = predict_case(model, CaseInput("a", "", "sub-a", "", {"PDw": path, "T2w": path}))
    assert "not used, unknown to the model: PDw" in output.notes
    assert output.missing == ("T1w", "FLAIR")


def test_unknown_presets_and_settings_are_told() -> None:
    net = unet.build(unet.Config(features=(4, 8), latent=2))
    with pytest.raises(ConfigError, match="did you mean 'fast'"):
        preset("fasst", net)
    with pytest.raises(ConfigError, match="overlap"):
        preset("fast", net, overlap=1.0)


@pytest.mark.parametrize("name", ["unet", "vit"])
@pytest.mark.parametrize(("bfloat16", "int8"), [(True, True), (True, False), (False, True), (False, False)])
def test_fast_takes_the_windows_of_balanced_on_a_cpu(
    name: str, bfloat16: bool, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroprior.core.precision.has_quick_bfloat16", lambda _: bfloat16)
    monkeypatch.setattr("neuroprior.core.precision.has_quick_int8", lambda _: int8)
    net = (
        unet.build(unet.Config(features=(4, 8), latent=2))
        if name == "unet"
        else vit.build(vit.Config(width=24, depth=1, heads=1))
    )
    fast, balanced = preset("fast", net), preset("balanced", net)
    whole = int8 and not bfloat16 and name == "unet"
    assert fast.precision == ("int8" if whole else "bfloat16")
    assert fast.overlap == balanced.overlap
    assert balanced.precision == "auto"
    assert preset("accurate", net).precision == "float32"
    assert preset("fast", net, overlap=0.1).overlap == 0.1
    assert preset("fast", net.to("meta")).overlap == 0.25  # stands for a GPU


@pytest.mark.parametrize("quick", [True, False])
def test_bfloat16_on_a_cpu_is_taken_where_it_is_quick_and_near_float32(
    tmp_path: Path, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroprior.inference.windows.has_quick_bfloat16", lambda _: quick)
    model = load(made.segmenter(tmp_path / "m"))
    boxes = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, auto, low = (windows.raw_outputs(model, boxes, ["T1w"], precision=p) for p in ("float32", "auto", "bfloat16"))
    assert torch.equal(auto, exact)
    assert torch.equal(low, exact) == (not quick)
    assert float((low - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("quick", [True, False])
def test_int8_on_a_cpu_is_taken_where_it_is_quick_and_near_float32(
    tmp_path: Path, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quick and not has_quick_int8("cpu"):
        pytest.skip("this CPU does not multiply 8-bit integers (VNNI)")
    monkeypatch.setattr("neuroprior.inference.windows.has_quick_int8", lambda _: quick)
    model = load(made.segmenter(tmp_path / "m"))
    boxes = torch.randn(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, low = (windows.raw_outputs(model, boxes, ["T1w"], precision=p) for p in ("float32", "int8"))
        alone = torch.cat([windows.raw_outputs(model, boxes[n : n + 1], ["T1w"], precision="int8") for n in range(3)])
    assert torch.equal(low, exact) == (not quick)
    assert float((low - exact).norm() / exact.norm()) < 0.05
    assert float((low - alone).norm() / low.norm()) < 1e-3  # float32's rounding may move a number to the next level


def test_a_case_seen_whole_is_not_computed_in_integers(tmp_path: Path) -> None:
    assert passes_of(load(made.segmenter(tmp_path / "s")), PredictConfig(precision="int8"), "").precision == "int8"
    assert passes_of(load(classifier(tmp_path / "c")), PredictConfig(precision="int8"), "").precision == "auto"


def test_the_peak_is_of_this_work_alone() -> None:
    if not peak_memory.reset_peak():
        pytest.skip("this system cannot reset a process' peak memory")
    before = peak_memory.peak_mb()
    block = mmap.mmap(-1, 64 << 20)  # fresh pages, whatever the allocator keeps from other work
    block.write(bytes(64 << 20))
    assert peak_memory.peak_mb() >= before + 60
    block.close()
    peak_memory.reset_peak()
    assert peak_memory.peak_mb() < before + 30
