"""``predict`` of an exported ONNX folder: one case a call, by ONNX Runtime, without torch.

It travels inside the exported folder with the code that prepares scans and brings answers back, and reads ``model.json`` beside it. The
answer's row goes to standard output as JSON, all else to standard error; the exit status is 0, or 1 with the reason where there is none.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from ..core import artifacts, contrasts, nifti
from ..core.covariates import Covariate, encode
from ..core.errors import ArtifactError, ConfigError, InputError, NeuropriorError
from ..inference.answers import CaseOutput, describe, pooled, segmented
from ..inference.described import Described
from ..inference.inputs import from_arguments
from ..inference.layout import Ring, centring, lay
from ..inference.native import entropy
from ..inference.presets import PredictConfig
from ..inference.reading import CaseInput, Prepared, read_case

logger = logging.getLogger("neuroprior.predict")

DESCRIPTION, EXAMPLES = "model.json", "examples"

FORMAT = 1
"""Version of the folder's layout."""

PROBABILITY_TOLERANCE, NUMBER_TOLERANCE, LABEL_TOLERANCE = 1e-3, 1e-3, 1e-3
"""How far an answer may be from that of the package: a foreground probability anywhere, a number (as a share of its size or of 1), and
the share of a mask's voxels whose label differs."""


@dataclass(frozen=True)
class Member:
    """One graph.

    Attributes:
        session: of ONNX Runtime. Inputs: ``scans`` (K, 1, *window) float32, ``contrasts`` (K,) int64 and, where the model takes some,
            ``covariates`` (1, F) float32 with NaN for missing. Output: (1, classes, *window) logits or (1, outputs).
        task: what it predicts; each member has its own scale of a number and its own window.
        covariates: that it takes.
    """

    session: Any
    task: Mapping[str, Any]
    covariates: tuple[Covariate, ...]

    def __call__(self, scans: np.ndarray, numbers: np.ndarray, covariates: Mapping[str, Any]) -> np.ndarray:
        """The head's answer for one box (K, *window) of the contrasts with these numbers."""
        given = {"scans": np.ascontiguousarray(scans[:, None]), "contrasts": numbers}
        if self.covariates:
            given["covariates"] = np.array([encode(covariates, self.covariates)], dtype=np.float32)
        return self.session.run(None, given)[0][0]


@dataclass(frozen=True)
class Exported(Described):
    """An exported folder, ready to answer.

    Attributes:
        info: the content of its ``model.json``.
        folder: where it lies.
        members: its graphs, at least one.
    """

    info: Mapping[str, Any]
    folder: Path
    members: tuple[Member, ...]


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export for ONNX Runtime, be it one that was not finished."""
    return (folder / DESCRIPTION).is_file() and artifacts.read_json(folder / DESCRIPTION).get("artifact") == "onnx"


def load(folder: Path, *, threads: int | None = None) -> Exported:
    """The exported folder, on a GPU where ONNX Runtime has one, else on the CPU.

    Args:
        folder: with ``model.json`` and the graphs.
        threads: of the CPU; None for as many as there are cores.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    import onnxruntime

    info = artifacts.read_json(folder / DESCRIPTION)
    if info.get("artifact") != "onnx" or info.get("format") != FORMAT:
        raise ArtifactError(
            "this is no exported ONNX folder of this version", file=folder / DESCRIPTION, expected=f"onnx format {FORMAT}",
            got=f"{info.get('artifact')} format {info.get('format')}", next_step="export the model again: neuroprior export onnx",
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = [
        name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in onnxruntime.get_available_providers()
    ]
    members = []
    for entry in info["members"]:
        path = folder / entry["graph"]
        found = artifacts.sha256_file(path) if path.is_file() else "nothing"
        if found != entry["sha256"]:
            raise ArtifactError(
                "a graph is not the one that was exported", file=path, expected=f"sha256 {entry['sha256'][:12]}…", got=f"{found[:12]}…",
                next_step="copy the whole folder again",
            )  # fmt: skip
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        members.append(Member(session, entry["task"], tuple(Covariate(**one) for one in entry["covariates"])))
    return Exported(info, folder, tuple(members))


def predict_case(
    model: Exported, case: CaseInput, config: PredictConfig | None = None, *, reference: str | None = None, tell: Any = None
) -> CaseOutput:  # fmt: skip
    """The answer for one case, on the grid of its reference scan.

    Args:
        model: see :func:`load`.
        case: the scans.
        config: overlap of windows, and which maps are kept.
        reference: contrast whose grid the answer is given on.
        tell: takes (windows done, of how many), for a progress line.

    Raises:
        InputError: a scan cannot be used.
    """
    config = config or PredictConfig()
    prepared = read_case(model, case, reference=reference)
    if model.task["name"] == "segmentation":
        spread = config.uncertainty and len(model.members) > 1
        return segmented(model, prepared, _blocks(model, prepared, config, spread, tell), config, spread=spread)
    raw = []
    for member in model.members:
        window = member.task["window"]
        box = np.zeros((len(prepared.contrasts), *window), dtype=np.float32)
        source, target = centring(prepared.images.shape[1:], window)
        box[(slice(None), *target)] = prepared.images[(slice(None), *source)]
        raw.append(member(box, _numbers(model, prepared), prepared.covariates)[None].astype(np.float64))
    return pooled(model, prepared, raw, [member.task for member in model.members])


def _numbers(model: Described, prepared: Prepared) -> np.ndarray:
    """(K,) int64: the contrasts of a case by the numbers that the graph knows them by."""
    return np.array([model.contrasts.index(name) for name in prepared.contrasts], dtype=np.int64)


def _blocks(
    model: Exported, prepared: Prepared, config: PredictConfig, spread: bool, tell: Any
) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """What ``windows.stream`` yields, in numpy: (first row, (classes [+ 1], rows, y, z))."""
    layout = lay(prepared.images.shape[1:], model.task["window"], config.overlap)
    images = np.pad(prepared.images, [(0, 0), *layout.padding])
    numbers, ring, done = _numbers(model, prepared), None, 0
    for i, _ in enumerate(layout.starts[0]):
        for j, _ in enumerate(layout.starts[1]):
            for k, _ in enumerate(layout.starts[2]):
                box = images[(slice(None), *layout.box((i, j, k)))]
                found = [softmax(member(box, numbers, prepared.covariates), axis=0) for member in model.members]
                answer = np.mean(found, axis=0)
                if spread:
                    doubt = np.mean([entropy(p) for p in found], axis=0)
                    answer = np.concatenate([answer, doubt[None]])
                if ring is None:
                    ring = Ring(layout, np.zeros((len(answer), layout.window[0], *layout.shape[1:]), dtype=np.float32))
                answer *= layout.weights[0][i][:, None, None] * layout.weights[1][j][:, None] * layout.weights[2][k]
                ring.add(answer, (i, j, k))
                done += 1
                if tell is not None:
                    tell(done, len(layout))
        assert ring is not None
        for first, block in ring.finished(i):
            yield first, block.copy()


# ------------------------------------------------------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    """The arguments of ``predict``."""
    made = argparse.ArgumentParser(prog="predict", description="Predict one case; see README.md.", allow_abbrev=False)
    made.add_argument("scans", nargs="*", metavar="CONTRAST=FILE", help="scans of one session, as NIfTI")
    made.add_argument("--output", type=Path, help="where the mask goes (.nii.gz), or the answer as JSON")
    made.add_argument("--probabilities", type=Path, help="where the foreground probability goes (.nii.gz), of a segmentation")
    made.add_argument("--reference", help="contrast whose grid the mask is given on")
    made.add_argument(
        "--covariate", action="append", default=[], metavar="NAME=VALUE", help="for a model that takes some, as age=63"
    )
    made.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows, as a share of the window")
    made.add_argument("--threads", type=int, help="of the CPU")
    made.add_argument(
        "--check", action="store_true", help="answer the examples and compare with the answers that travel with them"
    )
    return made


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Answer one case, or check the folder.

    Args:
        folder: the exported folder.
        arguments: of the command line.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = parser().parse_args(arguments)
    try:
        if given.check:
            rows = check(folder, threads=given.threads)
            for row in rows:
                word = "ok" if row["ok"] else "FAILED"
                sys.stdout.write(f"{word}  {row['example']}  {row['what']}: {row['apart']:.2g}, allowed {row['allowed']:g}\n")
            if given.output is not None:
                artifacts.write_json(given.output, {"artifact": "check", "rows": rows})
            return int(any(not row["ok"] for row in rows))
        sys.stdout.write(json.dumps(answer(folder, given), indent=1) + "\n")
    except NeuropriorError as error:
        logger.error("error: %s", error)
        return 1
    return 0


def answer(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Predict one case and write its answer; returns its row."""
    if not given.scans:
        raise InputError(
            "no scan was given", expected="predict T1w=scan.nii.gz [FLAIR=flair.nii.gz] --output ANSWER, or predict --check"
        )
    if not 0 <= given.overlap < 1:
        raise ConfigError("--overlap is a share of the window", expected="0 to below 1", got=given.overlap)
    if any(Path(word).is_dir() for word in given.scans):
        raise InputError("a folder was given", expected="the scans of one case, each as CONTRAST=FILE", got=" ".join(given.scans))
    model = load(folder, threads=given.threads)
    segments = model.task["name"] == "segmentation"
    for name, path in (("--output", given.output), ("--probabilities", given.probabilities)):
        if path is not None and segments and not path.name.endswith((".nii", ".nii.gz")):
            raise ConfigError(f"{name} of a segmentation is a NIfTI file", expected="a name ending in .nii.gz", got=path.name)
    if segments and given.output is None:
        raise ConfigError("--output is missing", expected="where the mask goes: --output mask.nii.gz")
    if given.probabilities is not None and not segments:
        raise ConfigError("--probabilities is for segmentations", got=model.task["name"])
    cases = from_arguments(given.scans, model.contrasts)
    if len(cases) != 1:
        raise InputError(
            "several cases were given", expected="one case a call", got=f"{len(cases)} scans without a name",
            next_step=f"name them: {' '.join(f'{name}=FILE' for name in model.contrasts)}",
        )  # fmt: skip
    case = replace(cases[0], covariates=_covariates(given.covariate, model))
    config = PredictConfig(overlap=given.overlap, probabilities=given.probabilities is not None)
    reference = contrasts.canonical(given.reference) if given.reference else None
    result = predict_case(model, case, config, reference=reference, tell=_progress if sys.stderr.isatty() else None)
    for note in result.notes:
        logger.info("note: %s", note)
    row = {"case": case.case, **describe(result, model.task), "reference": result.reference, "missing": list(result.missing)}
    if result.mask is None:
        if given.output is not None:
            artifacts.write_json(given.output, row)
        return row
    like = case.scans[result.reference]
    for path, voxels in ((given.output, result.mask), (given.probabilities, result.foreground)):
        if path is not None and voxels is not None:
            nifti.write_like(path, voxels, like=like, dtype=voxels.dtype)
    return row


def _covariates(words: Sequence[str], model: Exported) -> dict[str, str]:
    """``age=63`` and the like by name, each one that the model takes."""
    known = sorted({one.name for member in model.members for one in member.covariates})
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ConfigError("a covariate has a name and a value", expected="--covariate age=63", got=word)
        if name not in known:
            raise ConfigError("the model takes no such covariate", expected=", ".join(known) or "none at all", got=name)
        found[name] = value
    return found


def _progress(done: int, total: int) -> None:
    sys.stderr.write(f"\rwindow {done} of {total}" + ("\n" if done == total else ""))
    sys.stderr.flush()


# ------------------------------------------------------------------------------------------------------------- the examples


def check(folder: Path, *, threads: int | None = None) -> list[dict[str, Any]]:
    """Every example answered, beside the answer of the package that exported the folder.

    Returns:
        One row an example and thing compared: ``example``, ``what``, ``apart`` (how far from the package's answer), ``allowed``, ``ok``.

    Raises:
        ArtifactError: the folder is damaged.
    """
    model = load(folder, threads=threads)
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / EXAMPLES).glob("*.json")):
        expected = artifacts.read_json(path)
        scans = {name: folder / EXAMPLES / file for name, file in expected["scans"].items()}
        got = predict_case(model, CaseInput("example", "", "sub-example", "", scans), PredictConfig(probabilities=True))
        rows += compared(path.stem, got, expected, folder / EXAMPLES)
    if not rows:
        raise ArtifactError(
            "the folder has no examples to check", file=folder / EXAMPLES, next_step="copy the whole folder again"
        )
    return rows


def compared(example: str, got: CaseOutput, expected: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The rows of one example; see :func:`check`."""

    def row(what: str, apart: float, allowed: float) -> dict[str, Any]:
        return {"example": example, "what": what, "apart": apart, "allowed": allowed, "ok": bool(apart <= allowed)}

    if got.mask is not None:
        assert got.foreground is not None
        foreground = nifti.read_scan(folder / expected["foreground"])[0].voxels
        mask = nifti.read_scan(folder / expected["mask"])[0].voxels
        if mask.shape != got.mask.shape:
            raise ArtifactError("an example's answer has another shape", file=folder, expected=mask.shape, got=got.mask.shape)
        return [
            row(
                "foreground probability, largest difference",
                float(np.abs(got.foreground - foreground).max()),
                PROBABILITY_TOLERANCE,
            ),
            row("labels, share of voxels that differ", float((got.mask != mask).mean()), LABEL_TOLERANCE),
        ]
    numbers = got.classes if got.classes else {"value": got.value}
    wanted = expected["numbers"]
    if set(numbers) != set(wanted):
        raise ArtifactError("an example's answer has other names", file=folder, expected=sorted(wanted), got=sorted(numbers))
    rows = []
    for name, value in numbers.items():
        assert value is not None
        rows.append(row(name, abs(value - wanted[name]) / max(1.0, abs(wanted[name])), NUMBER_TOLERANCE))
    return rows
