"""One vector a scan: its length, what it is the mean of, and that nothing else changes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.bridges.made import make_model

from neuroprior.bridges._check import made_up_head
from neuroprior.core import nifti
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.volume import Volume
from neuroprior.inference.embedding import conformed, embed, embed_case, head_share, lengths
from neuroprior.inference.model import Model, load
from neuroprior.inference.reading import CaseInput


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_model(tmp_path_factory.mktemp("model") / "m", None, ["T1w", "FLAIR"]))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scans")
    made = {}
    for grid in ("plain", "oblique", "odd"):
        made[grid] = folder / f"{grid}.nii.gz"
        nifti.write(made[grid], made_up_head(grid, "T1w"))
    return made


def case(**scans: Path) -> CaseInput:
    return CaseInput("sub-1", "", "sub-1", "", scans)


def test_the_length_depends_on_the_model_and_the_half_alone(model: Model, scans: dict[str, Path]) -> None:
    assert lengths(model) == {"whole": 8 + 8 + 4 + 8, "anatomy": 8, "contrast": 8}
    for half, n in lengths(model).items():
        for path in scans.values():
            vector = embed_case(model, case(any=path), half=half)  # type: ignore[arg-type]
            assert vector.shape == (n,)
            assert vector.dtype == np.float32
            assert np.isfinite(vector).all()
    found = embed(model, case(any=scans["plain"]))
    np.testing.assert_array_equal(
        embed_case(model, case(any=scans["plain"])), np.concatenate([found.anatomy, found.contrast, found.stages])
    )


def test_the_same_scan_gives_the_same_vector_whatever_it_is_called(model: Model, scans: dict[str, Path]) -> None:
    a, b = embed_case(model, case(T1w=scans["odd"])), embed_case(model, case(unknown=scans["odd"]))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, embed_case(model, case(T1w=scans["plain"])))


def test_the_halves_are_means_and_maxima_over_the_head(model: Model, scans: dict[str, Path]) -> None:
    volume, _ = nifti.read_scan(scans["plain"])
    image, head = conformed(volume, model.spec)
    assert 0.1 < head.mean() < 1
    with torch.inference_mode():
        code = model.net.encode(torch.from_numpy(image)[None, None])
    found = embed(model, case(T1w=scans["plain"]))
    for half, values in (("anatomy", code.anatomy), ("contrast", code.contrast)):
        values = values[0].numpy().astype(np.float64)
        weight = np.zeros(values.shape[1:])
        for cell in np.ndindex(weight.shape):  # by definition: voxels of the cell that are head, of all eight
            box = tuple(slice(2 * k, 2 * k + 2) for k in cell)
            weight[cell] = head[box].sum() / 8
        mean = (values * weight).sum((1, 2, 3)) / weight.sum()
        largest = values[:, weight >= 0.5].max(1)
        np.testing.assert_allclose(found.half(half), np.concatenate([mean, largest]), rtol=1e-5, atol=1e-7)  # type: ignore[arg-type]
    finest = code.stages[0][0].numpy().astype(np.float64)[:, : head.shape[0], : head.shape[1], : head.shape[2]]
    np.testing.assert_allclose(found.stages[:4], finest[:, head].mean(1), rtol=1e-5)


def test_what_lies_outside_the_head_counts_for_nothing() -> None:
    head = np.zeros((5, 4, 7), dtype=bool)
    head[:3, :2, :4] = True
    share = head_share(head, (2, 1, 2), 4)
    np.testing.assert_allclose(share, np.array([24, 0, 0, 0]).reshape(2, 1, 2) / 64)
    padded = head_share(np.ones((5, 4, 7), dtype=bool), (2, 1, 2), 4)
    np.testing.assert_allclose(padded[:, 0], [[1, 0.75], [0.25, 0.1875]])


def test_a_volume_that_is_too_large_is_cut_to_its_centre_and_told(
    model: Model, scans: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuroprior.inference import embedding

    whole = embed(model, case(any=scans["plain"]))
    monkeypatch.setattr(embedding, "MAX_VOXELS", 1000)
    cut = embed(model, case(any=scans["plain"]))
    assert any("were cut to the central" in note for note in cut.notes)
    assert not any("cut" in note for note in whole.notes)
    assert cut.half("whole").shape == whole.half("whole").shape
    box = embedding._centre((30, 20, 40))
    sizes = [s.stop - s.start for s in box]
    assert np.prod(sizes) <= 1000
    assert [s.start for s in box] == [(n - size) // 2 for n, size in zip((30, 20, 40), sizes, strict=True)]


def test_several_contrasts_are_averaged(model: Model, scans: dict[str, Path]) -> None:
    a, b = (embed_case(model, case(x=scans[grid])) for grid in ("plain", "odd"))
    np.testing.assert_allclose(embed_case(model, case(T1w=scans["plain"], FLAIR=scans["odd"])), (a + b) / 2, rtol=1e-6)


def test_a_net_without_a_contrast_half_says_so(tmp_path: Path, scans: dict[str, Path]) -> None:
    plain = load(make_model(tmp_path / "m", None, ["T1w"], split="none"))
    assert lengths(plain)["contrast"] == 0
    assert embed_case(plain, case(T1w=scans["plain"])).shape == (lengths(plain)["whole"],)
    with pytest.raises(ConfigError, match="no contrast half"):
        embed_case(plain, case(T1w=scans["plain"]), half="contrast")
    with pytest.raises(ConfigError, match="whole, anatomy or contrast"):
        embed_case(plain, case(T1w=scans["plain"]), half="left")  # type: ignore[arg-type]


def test_a_scan_that_is_no_image_is_refused(model: Model, tmp_path: Path) -> None:
    flat = tmp_path / "flat.nii.gz"
    nifti.write(flat, Volume(np.ones((8, 8, 8), dtype=np.float32), np.eye(4)))
    with pytest.raises(InputError):
        embed_case(model, case(T1w=flat))
    with pytest.raises(InputError, match="no scan"):
        embed_case(model, case())
