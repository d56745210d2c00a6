"""Models for ONNX Runtime: the graph computes what the net does, and the folder answers as the package does, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from tests.inference import made
from torch.nn import functional

from neuroprior.bridges import _made_up, _travelling, onnx
from neuroprior.core import artifacts, nifti, shelf
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.errors import ArtifactError, ConfigError, InputError, MissingDependency
from neuroprior.core.volume import Volume
from neuroprior.inference import model as models
from neuroprior.inference.ensemble import write_ensemble
from neuroprior.inference.model import Model, load
from neuroprior.inference.predictor import predict_case
from neuroprior.inference.presets import PredictConfig
from neuroprior.inference.reading import CaseInput
from neuroprior.stages.export import export

CONTRASTS = ("T1w", "T2w", "FLAIR")
WINDOW = (16, 24, 32)
COVARIATES = (
    {"name": "age", "kind": "number", "mean": 50.0, "std": 10.0},
    {"name": "sex", "kind": "category", "levels": ("F", "M")},
)
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet, every option of the split": (
        "unet",
        {
            "features": [4, 6],
            "latent": 4,
            "split": "stages",
            "summary": 3,
            "contrast_pool": "both",
            "contrast_finer": 1,
            "refined": True,
        },
    ),
    "resenc": ("resenc", {"features": [4, 6], "blocks": [1, 1], "split": "channels"}),
    "vit": ("vit", {"width": 12, "depth": 1, "heads": 1, "token": 8}),
    "unet": ("unet", {"features": [4, 6], "latent": 4, "split": "variational"}),
}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "pooled": ("pooled", {"pool": "mean_std", "standardise": True, "covariates": COVARIATES, "readout": "ordered_classes"}),
    "cellwise": ("cellwise", {"readout": "ordered_values", "levels": (1.0, 2.0, 3.0, 4.0)}),
}


def put_together(net_name: str, head_name: str) -> Model:
    """An untrained net and head in memory, with running statistics as if they had been trained."""
    kind, settings = NETS[net_name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: Any = models.build_net(kind, settings)
        if head_name == "segmentation":
            net = shelf.load("nets", kind).with_skips(net)
            head = models.build_head("segmentation", {"contrasts": CONTRASTS, "features": net.feature_channels, "classes": 3})
            torch.nn.init.normal_(head.fusion)
        else:
            name, settings = HEADS[head_name]
            halves = {"anatomy_channels": net.anatomy_channels, "contrast_channels": net.contrast_channels}
            stages = {"stage_channels": net.stage_channels}
            head = models.build_head(name, {"contrasts": CONTRASTS, "outputs": 3} | halves | stages | settings)
        for module in (*net.modules(), *head.modules()):
            if isinstance(module, torch.nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    if hasattr(net, "lay_out"):
        net.lay_out(torch.device("cpu"))
    return Model(net.eval(), head.eval(), {"contrasts": CONTRASTS, "task": {"name": head_name, "window": WINDOW}}, Path("."))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "head"),
    [
        ("unet, every option of the split", "segmentation"), ("resenc", "segmentation"), ("vit", "segmentation"), ("unet", "pooled"),
        ("unet", "cellwise"),
    ],
)  # fmt: skip
def test_the_graph_computes_what_the_net_does_for_any_number_of_scans(net: str, head: str, tmp_path: Path) -> None:
    model = put_together(net, head)
    onnx._write_graph(model, tmp_path / "graph.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"), options, providers=["CPUExecutionProvider"])
    draws = torch.Generator().manual_seed(1)
    for count in (1, 2, 3):
        scans = torch.randn(count, 1, *WINDOW, generator=draws)
        numbers = torch.randperm(3, generator=draws)[:count]
        given = {"scans": scans.numpy(), "contrasts": numbers.numpy()}
        covariates = torch.tensor([[0.3, float("nan")]]) if head == "pooled" else None
        if covariates is not None:
            given["covariates"] = covariates.numpy()
        with torch.inference_mode():
            expected = onnx.Graph(model)(scans, numbers, covariates).numpy()
        got = session.run(None, given)[0]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
        assert all(np.array_equal(session.run(None, given)[0], got) for _ in range(5)), "threads must not change the answer"


def test_nothing_in_a_graph_adds_to_one_place_from_several_threads(tmp_path: Path) -> None:
    """ONNX Runtime's ScatterND with an addition loses rows with more than one thread."""
    import onnx as library

    onnx._write_graph(put_together("unet", "segmentation"), tmp_path / "graph.onnx")
    graph = library.load(str(tmp_path / "graph.onnx")).graph
    assert {node.op_type for node in graph.node} >= {"Conv", "InstanceNormalization"}
    assert not {node.op_type for node in graph.node} & {"ScatterND", "ScatterElements"}
    assert [[d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim][1:] for one in graph.input] == [[1, *WINDOW], []]


@pytest.mark.parametrize("size", [(4, 3, 2), (5, 4, 3), (8, 6, 7)])
def test_pooling_to_a_size_is_torchs_own(size: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 8, 6, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(onnx._averaged(x, size), functional.adaptive_avg_pool3d(x, size))
    torch.testing.assert_close(onnx._largest(x, size)[0], functional.adaptive_max_pool3d(x, size))


def asked(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``predict`` of an exported folder, in a process where torch cannot be imported."""
    import os

    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {onnx.WITHOUT_TORCH: "1"} | environment
    return subprocess.run(
        [sys.executable, str(folder / onnx.ENTRY), *map(str, words)], capture_output=True, text=True, check=False, env=variables
    )


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and what it was exported to: two labels, two models of which the second thinks otherwise."""
    folder = tmp_path_factory.mktemp("segmenter")
    calibration = {"version": 1, "temperature": 1.7, "quantiles": {}, "n": 3}
    members = [made.segmenter(folder / f"m{seed}", (1, 4), seed=seed, window=[16, 16, 16]) for seed in (0, 1)]
    model = write_ensemble(folder / "model", members, calibration=calibration)
    done = export("onnx", model, out=folder / "out")
    assert "checked without torch" in str(done)
    assert done.megabytes is not None
    return model, folder / "out"


@pytest.mark.slow
def test_a_segmentation_is_that_of_the_package_on_any_grid_from_any_contrasts(
    segmenter: tuple[Path, Path], tmp_path: Path
) -> None:
    model, out = segmenter
    scans = {}
    for contrast, grid in (("T1w", "odd"), ("FLAIR", "oblique")):
        scans[contrast] = tmp_path / f"sub-01_{contrast}.nii.gz"
        nifti.write(scans[contrast], _made_up.made_up_head(grid, contrast))
    for names, reference in ((("T1w", "FLAIR"), "T1w"), (("FLAIR",), "FLAIR"), (("T1w", "FLAIR"), "FLAIR")):
        case = CaseInput("x", "", "sub-01", "", {name: scans[name] for name in names})
        expected = predict_case(load(model), case, PredictConfig(probabilities=True), reference=reference)
        words = [f"{name}={scans[name]}" for name in names]
        done = asked(
            out,
            *words,
            "--reference",
            reference.lower(),
            "--output",
            tmp_path / "m.nii.gz",
            "--probabilities",
            tmp_path / "p.nii.gz",
        )
        assert done.returncode == 0, done.stderr
        mask, like = nibabel.load(tmp_path / "m.nii.gz"), nibabel.load(scans[reference])
        assert mask.shape == like.shape  # type: ignore[attr-defined]
        np.testing.assert_array_equal(mask.affine, like.affine)  # type: ignore[attr-defined]
        assert expected.mask is not None
        assert expected.foreground is not None
        assert len(np.unique(expected.mask)) == 3
        assert (np.asarray(mask.dataobj) != expected.mask).mean() < 1e-4  # type: ignore[attr-defined]
        found = np.asarray(nibabel.load(tmp_path / "p.nii.gz").dataobj)  # type: ignore[attr-defined]
        np.testing.assert_allclose(found, expected.foreground, atol=1e-5)
        row = json.loads(done.stdout)
        assert row["reference"] == reference
        assert row["missing"] == sorted(set(made.CONTRASTS) - set(names), key=made.CONTRASTS.index)
        assert row["volume_ml_4"] == pytest.approx(expected.volumes_ml[4][0], rel=1e-3)
        assert row["confidence"] == pytest.approx(expected.confidence, rel=1e-4)


def test_the_folder_holds_what_it_needs_and_nothing_of_training(segmenter: tuple[Path, Path]) -> None:
    _, out = segmenter
    parts = {path.relative_to(out / "app/neuroprior").parts[0] for path in (out / "app/neuroprior").rglob("*.py")}
    assert not parts & {*_travelling.TRAINING, "nets", "heads"}
    needed = {line.split("==")[0] for line in (out / "requirements.txt").read_text().split()}
    assert {"numpy", "onnxruntime", "nibabel"} <= needed
    assert not needed & {"torch", "lightning", "monai", "pandas", "onnx"}
    assert "--check" in (out / "README.md").read_text()
    info = artifacts.read_json(out / "model.json")
    assert [member["graph"] for member in info["members"]] == ["member-0.onnx", "member-1.onnx"]
    assert info["task"]["label_values"] == [1, 4]


def test_a_check_sees_another_answer_and_a_damaged_graph(segmenter: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = segmenter
    good = export("check", out)
    assert good.exit_code == 0
    assert {row.case for row in good.findings} == {"all", "first"}
    assert len(good.findings) == 4
    other = tmp_path / "other"
    shutil.copytree(out, other)
    scan, _ = nifti.read_scan(other / "examples/T1w.nii.gz")
    nifti.write(other / "examples/T1w.nii.gz", Volume(scan.voxels[::-1].copy(), scan.affine))
    wrong = export("check", other)
    assert wrong.exit_code == 3
    assert "FAILED" in asked(other, "--check").stdout
    with open(other / "member-1.onnx", "r+b") as file:
        file.seek(-40, 2)
        file.write(b"x" * 8)
    with pytest.raises(ArtifactError, match="is not the one that was exported"):
        export("check", other)
    (other / "member-1.onnx").unlink()
    done = asked(other, "--check")
    assert done.returncode == 1
    assert "got: nothing" in done.stderr


def test_an_export_that_was_not_finished_does_not_answer_and_is_replaced(
    segmenter: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = segmenter
    half = tmp_path / "half"
    shutil.copytree(out, half)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx, "_write_graph", killed)
    with pytest.raises(KeyboardInterrupt):
        onnx.write(model, half)
    assert "export the model again" in asked(half, "--check").stderr
    assert not list(half.glob("*.onnx"))

    def copied(member: Model, path: Path) -> None:
        shutil.copyfile(out / f"member-{member.folder.name}.onnx", path)

    monkeypatch.setattr(onnx, "_write_graph", copied)
    assert onnx.write(model, half).apart < 1
    # a graph that answers otherwise is no export
    monkeypatch.setattr(onnx, "_write_graph", lambda _, path: shutil.copyfile(out / "member-0.onnx", path))
    with pytest.raises(ArtifactError, match="does not answer as the model does"):
        onnx.write(model, half)
    assert asked(half, "--check").returncode == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (lambda scan: [], "no scan was given"),
        (lambda scan: [scan.parent, "--output", "m.nii.gz"], "a folder was given"),
        (lambda scan: [f"T1w={scan}"], "--output is missing"),
        (lambda scan: [f"T1w={scan}", "--output", "m.txt"], "a name ending in .nii.gz"),
        (lambda scan: [f"T1w={scan}", "--output", "m.nii.gz", "--overlap", "1.5"], "0 to below 1"),
        (lambda scan: [f"T1w={scan}x", "--output", "m.nii.gz"], "there is no such input"),
        (lambda scan: [f"PDw={scan}", "--output", "m.nii.gz"], "expected: T1w, T2w, FLAIR"),
        (lambda scan: [scan, scan, "--output", "m.nii.gz"], "one case a call"),
        (lambda scan: [f"T1w={scan}", "--output", "m.nii.gz", "--covariate", "age"], "--covariate age=63"),
    ],
)
def test_mistakes_are_told_in_a_line(
    segmenter: tuple[Path, Path],
    tmp_path: Path,
    words: Callable[[Path], list[object]],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from neuroprior.bridges._onnx_runner import main

    scan = tmp_path / "sub-01_T1w.nii.gz"
    nifti.write(scan, _made_up.made_up_head("plain", "T1w"))
    assert main(segmenter[1], [str(word) for word in words(scan)]) == 1
    err = caplog.text
    assert "error: " in err
    assert said in err
    assert not list(tmp_path.glob("m.*"))


@pytest.mark.slow
def test_classes_and_numbers_are_those_of_the_package(tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    nifti.write(scan, _made_up.made_up_head("odd", "T2w"))
    case = CaseInput("scan", "", "sub-scan", "", {"T2w": scan})
    tasks = {
        "classification": {"classes": ["no", "yes"], "positive": "yes", "target": "health"},
        "regression": {"mean": 50.0, "std": 12.0, "target": "age"},
    }
    for name, task in tasks.items():
        calibration = {"version": 1, "temperature": 0.5, "quantiles": {}, "n": 3} if name == "classification" else None
        model = made.save(tmp_path / name, {"name": name, **task}, calibration=calibration)
        out = tmp_path / f"{name}-out"
        export("onnx", model, out=out)
        done = asked(out, f"T2w={scan}", "--output", tmp_path / "answer.json")
        assert done.returncode == 0, done.stderr
        row, expected = json.loads(done.stdout), predict_case(load(model), case)
        assert row == artifacts.read_json(tmp_path / "answer.json")
        if name == "classification":
            assert row["p_yes"] == pytest.approx(expected.classes["yes"], abs=1e-5)
        else:
            assert row["value"] == pytest.approx(expected.value, rel=1e-5)


@pytest.mark.slow
def test_covariates_change_the_answer_as_in_the_package_and_unknown_ones_are_told(tmp_path: Path) -> None:
    model = put_together("unet", "pooled")
    assert model.head is not None
    task = {"name": "classification", "target": "grade", "classes": ["a", "b", "c"], "positive": "c", "window": list(WINDOW)}
    models.save(
        tmp_path / "model", net=model.net, net_name="unet", net_config=model.net.config.model_dump(mode="json"),  # type: ignore[union-attr, operator]
        spec=ConformSpec(spacing_mm=8.0), contrasts=CONTRASTS, kind="finetuned", method={}, data={}, head=model.head, head_name="pooled",
        head_config=model.head.config.model_dump(mode="json"), task=task,  # type: ignore[union-attr, operator]
    )  # fmt: skip
    out, scan = tmp_path / "out", tmp_path / "scan.nii.gz"
    onnx.write(tmp_path / "model", out)
    nifti.write(scan, _made_up.made_up_head("odd", "T2w"))
    found = []
    for covariates in ({}, {"age": "63", "sex": "M"}, {"sex": "X"}):
        words = [word for name, value in covariates.items() for word in ("--covariate", f"{name}={value}")]
        case = CaseInput("x", "", "sub-x", "", {"T2w": scan}, covariates=covariates)
        row = json.loads(asked(out, f"T2w={scan}", *words).stdout)
        found.append(row["p_c"])
        assert row["p_c"] == pytest.approx(predict_case(load(tmp_path / "model"), case).classes["c"], abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-3
    assert found[0] == found[2], "a category that nobody knows is a missing one"
    done = asked(out, f"T2w={scan}", "--covariate", "aeg=63")
    assert done.returncode == 1
    assert "expected: age, sex" in done.stderr


def test_what_cannot_be_exported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.bridges.made import make_model

    pretrained = make_model(tmp_path / "pretrained", None, ["T1w"])
    with pytest.raises(ConfigError, match="fine-tune it first"):
        export("onnx", pretrained, out=tmp_path / "out")
    model = made.segmenter(tmp_path / "model")
    with pytest.raises(ConfigError, match="export onnx MODEL --out DIR"):
        export("onnx", model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.docx").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        export("onnx", model, out=tmp_path / "full")
    (tmp_path / "project/examples").mkdir(parents=True)
    (tmp_path / "project/examples/mine.txt").write_text("mine")
    for place in (tmp_path / "project", model):
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        with pytest.raises(InputError, match="holds something else"):
            onnx.write(model, place)
        assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependency, match=r"pip install 'neuroprior\[onnx\]'"):
        export("onnx", model, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
