"""The disentanglement table of real nets on synthetic heads that travel between scanners, and the stage that writes it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neuroprior.assessments import _features as views_of
from neuroprior.assessments import disentanglement as d
from neuroprior.core.errors import ConfigError, InputError, LeakageError, NeuropriorError
from neuroprior.core.representation import Representation
from neuroprior.data.store import Store
from neuroprior.inference import model as model_folder
from neuroprior.stages.probe import probe

Run = Callable[..., subprocess.CompletedProcess[str]]
NET = {"features": [4, 8], "latent": 4}
QUICK = d.Config(views=d.ViewConfig(cells=2, box=(10, 12, 10)), resamples=100, permutations=20, probes=d.ProbeConfig(epochs=5))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Eight subjects, each on four scanners in two contrasts, at 6 mm; half of them to fit on."""
    from neuroprior.stages.index import index
    from neuroprior.stages.prepare import prepare
    from neuroprior.stages.synthesise import synthesise

    root = tmp_path_factory.mktemp("travelling")
    synthesise(
        root / "heads", subjects=8, spacing=6.0, contrasts="T1w,FLAIR", travelling=True, healthy=0.2, workers=1, progress=False
    )
    index([root / "heads"], root / "index.parquet", split="train=0.5,test=0.5", workers=1)
    prepare(root / "index.parquet", root / "store", spacing="6", workers=1)
    return Store.open(root / "store")


def net(split: str = "variational") -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_folder.build_net("unet", {**NET, "split": split})


@pytest.fixture(scope="module")
def made(store: Store, tmp_path_factory: pytest.TempPathFactory) -> d.Assessment:
    pictures = tmp_path_factory.mktemp("pictures")
    before = torch.random.get_rng_state()
    made = d.assess_nets({"split": net(), "plain": net("none")}, store, config=QUICK, pictures=pictures)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (pictures / "swaps-split.png").read_bytes()[:4] == b"\x89PNG"
    assert not (pictures / "swaps-plain.png").exists()
    return made


def test_every_question_has_a_row_for_every_model_and_half(made: d.Assessment) -> None:
    assert {row.model for row in made.scores} == {"split", "plain", "random_weights", "outline", "raw_pixels"}
    asked = {row.target for row in made.scores if row.model == "split" and row.region == "anatomy"}
    assert asked >= {
        "subject across contrasts", "subject across scanners", "subject across scanners and contrasts", "scanners", "subject", "contrast",
        "scanner", "sex", "health", "age", "volumes", "lesion_load", "lesion",
    }  # fmt: skip
    for row in made.scores:
        assert row.value is None or np.isfinite(row.value)
        assert row.value is not None or row.note, row
        assert row.task == "disentanglement"
    known = [row for row in made.scores if row.value is not None]
    assert len(known) > 0.5 * len(made.scores)
    assert all(row.n > 0 for row in known)


def test_a_net_without_a_contrast_half_says_so(made: d.Assessment) -> None:
    rows = [row for row in made.scores if row.model == "plain" and row.region == "contrast"]
    assert rows
    assert {row.value for row in rows} == {None}
    assert {row.note for row in rows} - {"no contrast half"} == {"this net has no contrast half"}
    assert "no contrast half" in made.score("plain", "reconstruction", "swap_mae", "own anatomy", "swaps").note
    assert "decodes nothing" in made.score("outline", "reconstruction", "swap_mae", "own anatomy", "swaps").note


def test_the_same_call_gives_the_same_table(store: Store, made: d.Assessment) -> None:
    again = d.assess_nets({"split": net(), "plain": net("none")}, store, config=QUICK)
    for a, b in zip(made.scores, again.scores, strict=True):
        assert a == b


def test_the_outline_tells_who_it_is_unless_it_cannot_be_seen(store: Store) -> None:
    def found(free: bool) -> float:
        config = d.Config(views=d.ViewConfig(outline_free=free, box=(8, 9, 8) if free else None), swaps=0, resamples=50)
        table = d.assess_nets({}, store, config=config, trivial=("outline",))
        condition = "spatial" if free else "spatial, whole head"
        row = table.score("outline", "subject across contrasts", "retrieval_top1", "image", condition)
        return 0.25 if row.value is None else row.value  # a reason: nothing to be seen

    assert found(False) > found(True) + 0.15
    assert found(True) < 0.45


def test_boxes_are_shifted_one_by_one_and_lie_in_the_head(store: Store) -> None:
    seen = views_of.Views(store, ["train"], ["test"], d.ViewConfig(misalignment_mm=3))
    assert all(n >= 4 for n in seen.box)
    assert min(seen[row].head.mean() for row in range(len(seen))) > 0.8
    assert not np.array_equal(seen[0].image, seen.aligned(0).image)
    session, name = seen.rows[0]
    whole = store.read(session.key, name)
    inner = seen.aligned(0).image
    places = np.lib.stride_tricks.sliding_window_view(whole, inner.shape).reshape(-1, inner.size)
    assert (places == inner.ravel()).all(1).any(), "an aligned box is a box of the scan"
    still = views_of.Views(store, ["train"], ["test"], d.ViewConfig(misalignment_mm=0, box=seen.box))
    shifted = [
        views_of.Views(store, ["train"], ["test"], d.ViewConfig(misalignment_mm=3, box=seen.box, seed=s))[0].image for s in (0, 1)
    ]
    assert not np.array_equal(shifted[0], shifted[1])
    assert np.corrcoef(still[0].image.ravel(), shifted[0].ravel())[0, 1] > 0.5


def test_pooling_counts_the_box_and_not_what_the_net_pads() -> None:
    made = net()
    m = torch.randn(2, 3, 6, 6, 6, generator=torch.Generator().manual_seed(0))  # stride 2: covers 12 voxels, the box has 11
    fine = m.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)[..., :11, :11, :11]
    torch.testing.assert_close(views_of._pool(m, made, (11, 11, 11), 1).flatten(1), fine.mean((2, 3, 4)))
    parts = views_of.edges(11, 3)
    for largest, reduce in ((False, torch.mean), (True, torch.amax)):
        grid = views_of._pool(m, made, (11, 11, 11), 3, largest=largest)
        corner = fine[..., parts[2] : parts[3], : parts[1], parts[1] : parts[2]]
        torch.testing.assert_close(grid[..., 2, 0, 1], reduce(corner, dim=(2, 3, 4)))


class Copy(torch.nn.Module):
    """Its anatomy half is the scan and its decoder gives that back; the contrast half is one empty channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x: torch.Tensor) -> Representation:
        return Representation(x, torch.zeros_like(x), (x,))

    def decode(self, anatomy: torch.Tensor, contrast: torch.Tensor, size: object = None) -> torch.Tensor:
        return anatomy


def test_swaps_take_the_anatomy_of_the_scans_they_name(store: Store) -> None:
    seen = views_of.Views(store, ["train"], ["test"], QUICK.views)
    found = d.swap("copy", Copy(), seen)
    np.testing.assert_allclose(found.own, 0)
    names = [f"{session.key}:{name}" for session, name in seen.rows]
    assert set(found.cases) == {name for name, fit in zip(names, seen.fit, strict=True) if not fit}
    row = names.index(found.cases[0])
    session, contrast = seen.rows[row]
    other = names.index(f"{session.key}:{'T1w' if contrast == 'FLAIR' else 'FLAIR'}")
    here, there = seen.aligned(row), seen.aligned(other)
    assert found.other[0] == pytest.approx(np.abs(here.image - there.image)[here.head].mean(), rel=1e-5)
    assert np.isfinite(found.wrong).all()
    assert not np.allclose(found.wrong, found.other)
    few = d.swap("copy", Copy(), seen, limit=3)
    assert len(few.cases) == 3
    table = d.assess([], d.describe(seen), QUICK, [found])
    cost = table.score("copy", "reconstruction", "swap_cost", "other contrast's anatomy", "swaps")
    assert cost.value == pytest.approx(found.other.mean())


def test_given_targets_and_stages_are_read(store: Store) -> None:
    subjects = sorted({session.subject for session in store.sessions})
    given = {"volumes": {name: [float(k), float(k % 3)] for k, name in enumerate(subjects)}}
    config = QUICK.model_copy(update={"views": QUICK.views.model_copy(update={"stages": True}), "swaps": 0})
    table = d.assess_nets({"split": net()}, store, config=config, trivial=(), targets=given)
    assert "2 numbers" in table.score("split", "volumes", "linear_r2", "stages", "spatial").note
    with pytest.raises(InputError, match="names none of the sessions"):
        d.assess_nets({"split": net()}, store, config=config, targets={"volumes": {"nobody": [1.0]}})


def test_bad_requests_are_told(store: Store) -> None:
    with pytest.raises(LeakageError, match="same split"):
        d.assess_nets({"split": net()}, store, fit=["test"], evaluate=["test"], config=QUICK)
    with pytest.raises(InputError, match="no session of split val"):
        d.assess_nets({"split": net()}, store, evaluate=["val"], config=QUICK)
    with pytest.raises(InputError, match="unknown"):
        d.assess_nets({"split": net()}, store, trivial=["nothing"], config=QUICK)
    with pytest.raises(InputError, match="needs a net"):
        d.assess_nets({}, store, config=QUICK)

    class Foreign(torch.nn.Module):
        weight = torch.nn.Parameter(torch.zeros(1))

    with pytest.raises(ConfigError, match="cannot be built afresh"):
        d.untrained(Foreign(), 0)


def test_the_stage_writes_a_table_a_report_shows(store: Store, tmp_path: Path, run_cli: Run) -> None:
    for name, spec in (("good", store.spec), ("finer", store.spec.model_copy(update={"spacing_mm": 1.0}))):
        model_folder.save(
            tmp_path / name, net=net(), net_name="unet", net_config=NET, spec=spec, contrasts=["T1w", "FLAIR"], kind="pretrained",
            method={"objective": "none"}, data=store.data_summary(),
        )  # fmt: skip
    out = tmp_path / "probes" / "table.parquet"
    done = run_cli("probe", tmp_path / "good", "--store", store.path, "--out", out, "--resamples", 50)
    assert done.returncode == 0, done.stderr
    assert "contrast, linear balanced accuracy" in done.stdout
    table = pd.read_parquet(out)
    assert set(table["model"]) == {"good", "random_weights", "outline", "raw_pixels"}
    assert (out.parent / "table.swaps" / "swaps-good.png").is_file()
    assert d.read(out).facts["store_hash"] == store.store_hash
    done = run_cli("report", out, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    assert "What the halves say" in page
    assert page.count("data:image/png") == 2
    for models, options, message in (
        (["finer"], {}, "prepared otherwise than the model expects"),
        (["good"], {"split": "train"}, "same split"),
        (["good"], {"contrasts": "T9w"}, "unknown contrast"),
        (["good", "good"], {}, "one name"),
    ):
        with pytest.raises(NeuropriorError, match=message):
            probe([tmp_path / name for name in models], store.path, tmp_path / "x.parquet", **options)
