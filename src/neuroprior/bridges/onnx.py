"""A fine-tuned model for ONNX Runtime: the graph, the scans' preparation and the way back, in a folder that needs neither torch nor this package.

::

    OUT/
      predict             python script: scans in, an answer on their grid out
      model.json          task, contrasts, preprocessing, calibration, licences; which graphs
      member-0.onnx       one graph a model; an ensemble has several
      app/                the code that predict runs: this package's, without nets and training
      examples/           made-up scans and the package's own answers, which ``predict --check`` compares with
      requirements.txt    what it imports, as installed here
      README.md, LICENSE

A graph takes the scans of one session, however many, in a batch: their number is its free dimension, so any subset of contrasts works.
What is exported is checked before it counts: another process, in which torch cannot be imported, answers the examples.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__
from ..core import artifacts, nifti
from ..core.errors import ArtifactError, InputError, MissingDependency
from ..core.volume import Volume
from ..inference.model import Model, load, require_head
from ..inference.predictor import predict_case
from ..inference.presets import PredictConfig
from ..inference.reading import CaseInput
from ._calling import call
from ._made_up import made_up_head
from ._onnx_runner import DESCRIPTION, EXAMPLES, FORMAT, is_export
from ._travelling import copy_code, folder_bytes, package_bytes, requirements, write_licence

logger = logging.getLogger(__name__)

ENTRY, APP, REQUIREMENTS, CARD = "predict", "app", "requirements.txt", "README.md"

KEPT = ("task", "contrasts", "preprocessing", "calibration", "licences", "method", "weights_sha256")
KEPT_OF_DATA = ("steps", "datasets", "licences")
"""What ``model.json`` of the model says that the exported one says too; of its data, nothing that names subjects."""

UNFINISHED = {"artifact": "onnx", "format": 0}
"""What ``model.json`` of the exported folder says until it is whole: ``predict`` refuses it, and another export may replace it."""

EXAMPLE_WINDOWS = 1.5
"""Extent of an example's scan along its longest axis, in windows of a segmentation."""

WITHOUT_TORCH = "NEUROPRIOR_WITHOUT_TORCH"
"""Set while an exported folder is checked: importing torch is an error then."""


@dataclass(frozen=True)
class Written:
    """What an export came to.

    Attributes:
        megabytes: of the folder and the packages that it needs.
        apart: the largest distance of an example's answer from ours, as a share of what is allowed.
    """

    megabytes: float
    apart: float


class Graph(nn.Module):
    """A net and its head as one function of a session's scans."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.head = model.net, require_head(model)

    def forward(self, scans: Tensor, contrasts: Tensor, covariates: Tensor | None = None) -> Tensor:
        """(K, 1, x, y, z) scans, (K,) numbers of their contrasts [and (1, F) covariates] -> (1, classes, x, y, z) logits or (1, outputs)."""
        extra: dict[str, Any] = {} if covariates is None else {"covariates": covariates}
        out = self.head(self.net, self.net.encode(scans), torch.zeros_like(contrasts), contrasts, 1, **extra)
        if out.ndim == 5:  # the net pads odd boxes at their far end
            x, y, z = scans.shape[2:]
            out = out[..., :x, :y, :z]
        return out.float()


def write(source: Path, out: Path) -> Written:
    """Export a model, and check what was written.

    Args:
        source: a fine-tuned model's folder, the run folder that holds it, or an ensemble's.
        out: where to write; must not hold anything but an earlier export.

    Raises:
        ConfigError: the model is only pretrained.
        InputError: ``out`` holds something else.
        MissingDependency: onnx, onnxscript or onnxruntime is missing.
        ArtifactError: the model is damaged, or the exported folder does not answer as the model does.
    """
    require_packages()
    model = load(source)
    require_head(model)
    if out.exists() and any(out.iterdir()) and not is_export(out):
        raise InputError("the output folder holds something else", file=out, expected="an empty folder or an earlier export")
    out.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(out / DESCRIPTION, UNFINISHED)
    for path in (*out.glob("member-*.onnx"), out / "check.json"):
        path.unlink(missing_ok=True)
    logger.info("answering the examples")
    _write_examples(model, out / EXAMPLES)
    members = []
    for number, member in enumerate(model.each):
        name = f"member-{number}.onnx"
        logger.info("writing %s, %d of %d", name, number + 1, len(model.each))
        with artifacts.atomic(out / name) as temporary:
            _write_graph(member, temporary)
        covariates = [one.model_dump(mode="json") for one in _covariates(member)]
        members.append(
            {"graph": name, "sha256": artifacts.sha256_file(out / name), "task": dict(member.task), "covariates": covariates}
        )
    copy_code(["neuroprior.bridges._onnx_runner"], out / APP)
    artifacts.write_text(out / ENTRY, _ENTRY)
    os.chmod(out / ENTRY, 0o755)
    kept = {key: model.info[key] for key in KEPT if key in model.info}
    kept["data"] = {key: value for key, value in model.info.get("data", {}).items() if key in KEPT_OF_DATA}
    described = {"artifact": "onnx", "format": FORMAT, "neuroprior": __version__, "members": members, **kept}
    artifacts.write_json(out / DESCRIPTION, described)
    logger.info("asking the exported folder for the examples, without torch")
    rows, loaded = check(out)
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        artifacts.write_json(out / DESCRIPTION, UNFINISHED)
        raise ArtifactError(
            "the exported folder does not answer as the model does", file=out,
            expected=f"{wrong[0]['what']} of example {wrong[0]['example']} within {wrong[0]['allowed']:g}", got=f"{wrong[0]['apart']:g}",
            next_step="report this as a bug, with the net and its settings",
        )  # fmt: skip
    lines = requirements(out / APP, loaded)
    artifacts.write_text(out / REQUIREMENTS, "\n".join(lines) + "\n")
    write_licence(out)
    artifacts.write_text(out / CARD, _readme(described))
    size = folder_bytes(out) + sum(package_bytes(lines).values())
    return Written(size / 1e6, max(row["apart"] / row["allowed"] for row in rows))


def require_packages() -> None:
    """Refuse early where something is missing.

    Raises:
        MissingDependency: it is.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependency(f"ONNX needs {error.name}", next_step="pip install 'neuroprior[onnx]'") from None


def _covariates(member: Model) -> Sequence[Any]:
    return getattr(getattr(member.head, "config", None), "covariates", ())


# ------------------------------------------------------------------------------------------------------------- the graph


def _averaged(x: Tensor, size: Sequence[int]) -> Tensor:
    """``adaptive_avg_pool3d`` in operations that ONNX has: (B, C, x, y, z) -> (B, C, *size)."""
    if all(n % m == 0 for n, m in zip(x.shape[2:], size, strict=True)):
        cell = [n // m for n, m in zip(x.shape[2:], size, strict=True)]
        return nn.functional.avg_pool3d(x, cell, cell)
    for axis, (n, m) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        x = torch.cat([part.mean(axis, keepdim=True) for part in _cells(x, axis, n, m)], axis)
    return x


def _largest(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``adaptive_max_pool3d`` likewise; where the largest lies, its second answer, is not asked for by any net and is left at 0."""
    for axis, (n, m) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        x = torch.cat([part.amax(axis, keepdim=True) for part in _cells(x, axis, n, m)], axis)
    return x, torch.zeros_like(x, dtype=torch.int64)


def _cells(x: Tensor, axis: int, n: int, m: int) -> Iterator[Tensor]:
    """The parts of an axis of ``n`` that adaptive pooling to ``m`` takes together."""
    for i in range(m):
        first = i * n // m
        yield x.narrow(axis, first, -(-(i + 1) * n // m) - first)


def _summed(total: Tensor, axis: int, index: Tensor, rows: Tensor, alpha: float = 1.0) -> Tensor:
    """``index_add`` where all rows are of the one case there is. ONNX Runtime's threads lose some when they add to one place at once
    (microsoft/onnxruntime issue 23396; seen here: probabilities off by 0.03 in some runs)."""
    assert axis == 0 and total.shape[0] == 1 and alpha == 1.0
    return total + rows.sum(0, keepdim=True)


def _write_graph(member: Model, path: Path) -> None:
    """The graph of one model, its weights within."""
    aten = torch.ops.aten
    instead = {
        aten.adaptive_avg_pool3d.default: _averaged, aten._adaptive_avg_pool3d.default: _averaged,
        aten.adaptive_max_pool3d.default: _largest, aten.index_add.default: _summed,
    }  # fmt: skip
    graph, count = Graph(member).eval(), len(member.contrasts)
    with torch.no_grad(), _plain_layout(member.net), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        scans = torch.zeros(2, 1, *member.task["window"])  # two: of one, the exporter would take the number for fixed
        inputs: tuple[Tensor, ...] = (scans, torch.arange(2) % count)
        names, free = ["scans", "contrasts"], torch.export.Dim.DYNAMIC
        shapes: tuple[Any, ...] = ({0: free}, {0: free})
        if _covariates(member):
            inputs, names, shapes = (*inputs, torch.zeros(1, len(_covariates(member)))), [*names, "covariates"], (*shapes, None)
        exported = torch.export.export(graph, inputs, dynamic_shapes=shapes).run_decompositions(instead)
        with _quiet():
            program = torch.onnx.export(
                exported, inputs, dynamo=True, input_names=names, output_names=["answer"], verbose=False, external_data=False
            )
        assert program is not None
        program.save(str(path))


@contextmanager
def _plain_layout(net: nn.Module) -> Iterator[None]:
    """Within, a net's maps are contiguous, as ONNX knows them."""
    if not hasattr(net, "lay_out"):
        yield
        return
    device = next(net.parameters()).device
    net.lay_out(device, torch.contiguous_format)
    try:
        yield
    finally:
        net.lay_out(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, the exporter's libraries log errors alone."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


# ------------------------------------------------------------------------------------------------------------- the examples


def _write_examples(model: Model, folder: Path) -> None:
    """Made-up scans with the model's own answers: all contrasts and, of several, the first alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = {name: folder / f"{name}.nii.gz" for name in model.contrasts}
    for name, path in paths.items():
        nifti.write(path, _scan(model, name))
    for example, names in {"all": model.contrasts, "first": model.contrasts[:1]}.items():
        if example == "first" and len(paths) == 1:
            continue
        case = CaseInput("example", "", "sub-example", "", {name: paths[name] for name in names})
        answer = predict_case(model, case, PredictConfig(probabilities=True))
        expected: dict[str, Any] = {"scans": {name: paths[name].name for name in names}}
        if answer.mask is not None:
            for what, voxels in (("mask", answer.mask), ("foreground", answer.foreground)):
                expected[what] = f"{example}_{what}.nii.gz"
                assert voxels is not None
                nifti.write_like(folder / expected[what], voxels, like=paths[answer.reference], dtype=voxels.dtype)
        else:
            expected["numbers"] = dict(answer.classes) if answer.classes else {"value": answer.value}
        artifacts.write_json(folder / f"{example}.json", expected)


def _scan(model: Model, contrast: str) -> Volume:
    """A made-up head, made small where the model would otherwise look at many windows of it."""
    volume = made_up_head("plain", contrast)
    if model.task["name"] != "segmentation" or model.spec.spacing_mm == "native":
        return volume
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    extent = float(max(np.array(volume.shape) * spacing))
    wanted = EXAMPLE_WINDOWS * min(model.task["window"]) * model.spec.spacing_mm
    affine = volume.affine.copy()
    affine[:3] *= min(1.0, wanted / extent)
    return Volume(volume.voxels, affine)


def check(folder: Path) -> tuple[list[dict[str, Any]], Mapping[str, str]]:
    """Ask an exported folder for its examples, in a process without a network in which torch cannot be imported.

    Returns:
        What ``predict --check`` says, a row a comparison; and the modules that the process had loaded, name -> file.

    Raises:
        ArtifactError: it gives no answer.
    """
    with tempfile.TemporaryDirectory(prefix="neuroprior-onnx-") as name:
        report = Path(name, "check.json")
        outcome = call(
            [folder.absolute() / ENTRY, "--check", "--output", report], report, seconds=None, extra={WITHOUT_TORCH: "1"}
        )
        if not report.is_file():
            raise ArtifactError(
                "the exported predict gives no answer", file=folder / ENTRY, got=outcome.tail or f"exit status {outcome.returncode}",
                next_step="export the model again",
            )  # fmt: skip
        return artifacts.read_json(report)["rows"], outcome.modules


_ENTRY = f'''#!/usr/bin/env python3
"""Answers one case; see README.md."""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(FOLDER / "app"))
if os.environ.get("{WITHOUT_TORCH}"):
    sys.modules["torch"] = None

from neuroprior.bridges._onnx_runner import main

sys.exit(main(FOLDER))
'''


def _readme(info: Mapping[str, Any]) -> str:
    task, contrasts = info["task"], info["contrasts"]
    segments = task["name"] == "segmentation"
    ending = "mask.nii.gz" if segments else "answer.json"
    scans = " ".join(f"{name}={name}.nii.gz" for name in contrasts)
    what = {
        "segmentation": f"a mask of {task['target']} on the grid of the scan, and its volume as JSON",
        "classification": f"probabilities of {task['target']} as JSON",
        "regression": f"{task['target']} as JSON",
    }[task["name"]]
    return f"""# {task["name"].capitalize()} of {task["target"]}, for ONNX Runtime

```
python -m venv .venv && .venv/bin/pip install -r {REQUIREMENTS}
.venv/bin/python {ENTRY} --check
.venv/bin/python {ENTRY} {scans} --output {ending}
```

The last line gives {what}. Give raw scans; any of {", ".join(contrasts)} may be missing. `--check` answers the made-up scans in
`{EXAMPLES}/` and compares with the answers of neuroprior {info["neuroprior"]}, which wrote them. `--help` lists the rest. Torch is not
needed. On a GPU, `onnxruntime-gpu` in place of `onnxruntime` should do; it was not tried.

In another program `{info["members"][0]["graph"]}` is one function of one window: `scans` (K, 1, {", ".join(map(str, task["window"]))}) float32,
conformed and normalised as `{DESCRIPTION}` says under `preprocessing`, and `contrasts` (K,) int64, the place of each scan's contrast in
`contrasts` of that file; K is free. `answer` is (1, {"classes, the window) logits" if segments else "outputs)"}.

| | |
|---|---|
| weights sha256 | {info["weights_sha256"]} |
| contrasts | {", ".join(contrasts)} |
| licence of the code | Apache-2.0 |
| licences of the training data | {"; ".join(info.get("licences", ())) or "not stated"} |

Research use; not a medical device.
"""
