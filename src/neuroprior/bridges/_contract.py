"""``predict`` of an exported challenge folder: one case a call, the contract's arguments, one file out.

It travels inside the exported folder with the inference code, and reads ``task.json`` beside it. Everything that it says goes to
standard error; its exit status is 0, or 1 with the reason when there is no answer.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core import artifacts
from ..core.errors import ArtifactError, InputError, NeuropriorError

logger = logging.getLogger("neuroprior.predict")

TASK, MODEL = "task.json", "model"


def parser(task: dict[str, Any]) -> argparse.ArgumentParser:
    """The contract's arguments: a flag for each contrast, required where every case has it, and ``--output``."""
    made = argparse.ArgumentParser(
        prog="predict", description=f"{task['title']} task {task['number']}: {task['name']}", allow_abbrev=False
    )
    for entry in task["inputs"]:
        only = entry["required"] and len(entry["contrasts"]) == 1
        for contrast, flag in zip(entry["contrasts"], entry["flags"], strict=True):
            made.add_argument(flag, dest=contrast, type=Path, required=only, help=f"{contrast} as NIfTI")
    made.add_argument("--output", type=Path, required=True, help=f"where the {task['output']} goes")
    return made


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Answer one case.

    Args:
        folder: the exported folder, with ``task.json`` and ``model/``.
        arguments: of the command line.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        task = artifacts.read_json(folder / TASK)
        given = vars(parser(task).parse_args(arguments))
        output = given.pop("output")
        answer(folder, task, {name: path for name, path in given.items() if path is not None}, output)
    except NeuropriorError as error:
        logger.error("error: %s", error)
        return 1
    return 0


def answer(folder: Path, task: dict[str, Any], scans: dict[str, Path], output: Path) -> None:
    """Predict one case and write the answer to ``output``.

    Raises:
        InputError: no scan, or one that cannot be read.
        ArtifactError: the model is damaged, or its answer is no finite number.
    """
    import torch

    from ..inference.model import load
    from ..inference.reading import CaseInput

    if not scans:
        raise InputError("no scan was given", expected=" ".join(flag for entry in task["inputs"] for flag in entry["flags"]))
    absent = [path for path in scans.values() if not path.is_file()]
    if absent:
        raise InputError("there is no such scan", file=absent[0])
    model = load(folder / MODEL, device="cuda" if torch.cuda.is_available() else "cpu")
    case = CaseInput("case", "", "sub-case", "", scans)
    if task["kind"] == "embedding":
        from ..inference.embedding import embed

        found = embed(model, case)
        _tell(found.notes)
        _write_vector(output, found.half("whole"))
        return

    from ..inference.predictor import predict_case
    from ..inference.presets import preset

    order = [name for entry in task["inputs"] for name in entry["contrasts"] if name in scans]
    reference = next((name for name in order if name in model.contrasts), None)  # where None, predict_case says what is wrong
    result = predict_case(model, case, preset(task["preset"], model.net), reference=reference)
    _tell(result.notes)
    if task["kind"] == "segmentation":
        from ..core import nifti

        assert result.mask is not None
        mask = result.mask if result.reference == order[0] else _on_grid(result.mask, scans[result.reference], scans[order[0]])
        nifti.write_like(output, mask, like=scans[order[0]], dtype=mask.dtype)
    elif task["kind"] == "classification":
        probability = _finite(result.classes[task["positive"]], folder)
        artifacts.write_text(output, f"{min(max(probability, 0.0), 1.0):.6f}\n")
    else:
        artifacts.write_text(output, f"{_finite(result.value, folder):.6f}\n")


def _on_grid(mask: Any, of: Path, like: Path) -> Any:
    """A mask on the grid of one scan, brought to that of another (the first scan given is not always one that the model knows)."""
    from ..core import nifti
    from ..core.grids import grid_of
    from ..core.resampling import resample_labels
    from ..core.volume import Volume

    wanted = grid_of(nifti.read_scan(like)[0])
    return resample_labels(Volume(mask, nifti.read_scan(of)[0].affine), wanted).astype(mask.dtype)


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        logger.info("note: %s", note)


def _finite(value: float | None, folder: Path) -> float:
    if value is None or not math.isfinite(value):
        raise ArtifactError("the model's answer is no finite number", file=folder / MODEL, got=value)
    return float(value)


def _write_vector(output: Path, vector: Any) -> None:
    import numpy as np

    with artifacts.atomic(output) as temporary, open(temporary, "wb") as file:
        np.save(file, vector.astype(np.float32), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
