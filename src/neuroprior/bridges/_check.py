"""Does an exported folder keep its challenge's contract? It is run as the organisers run it, one process a case, on made-up scans.

Every scenario asks for one case: another grid (axes in order, oblique, odd), another file ending, with each of the 'one of' contrasts
and with none. The child has no network (an audit hook that refuses and reports, and a network namespace of its own where the system
allows one), and what it imported is looked at afterwards.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts, nifti
from ..core.errors import ArtifactError
from ..protocols import ANY
from . import challenge
from ._calling import Outcome, call, network_namespace
from ._contract import TASK
from ._made_up import made_up_head
from ._travelling import TRAINING, folder_bytes, package_bytes, requirements

OK, FAILED, SKIPPED = "ok", "failed", "skipped"

ENDINGS = {"probability": ".txt", "number": ".txt", "mask": ".nii.gz", "embedding": ".npy"}

FOREIGN = {"lightning", "pytorch_lightning", "torchmetrics", "blosc2"}
"""Packages that only training needs. (MONAI imports what else it finds installed; the image holds only what is required.)"""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        case: the scenario's name, or ``all``.
        check: what was looked at.
        status: ``ok``, ``failed`` or ``skipped``.
        message: what was found, and what would have been right.
    """

    case: str
    check: str
    status: str
    message: str


@dataclass(frozen=True)
class Scenario:
    """One made-up case.

    Attributes:
        name: what is special about it.
        grid: ``plain``, ``oblique``, ``odd`` or ``full`` (1 mm).
        ending: of the input files.
        choice: which of several contrasts is given; -1 for none of them.
    """

    name: str
    grid: str = "plain"
    ending: str = ".nii.gz"
    choice: int = 0


# ------------------------------------------------------------------------------------------------------------- made-up scans


def scans_of(task: Mapping[str, Any], scenario: Scenario, folder: Path) -> dict[str, Path]:
    """Write a scenario's scans; flag -> file."""
    given: dict[str, Path] = {}
    for entry in task["inputs"]:
        several = len(entry["contrasts"]) > 1
        if several and scenario.choice < 0:
            continue
        k = scenario.choice if several else 0
        contrast, flag = entry["contrasts"][k], entry["flags"][k]
        path = folder / f"{'scan' if contrast == ANY else contrast}{scenario.ending}"
        nifti.write(path, made_up_head(scenario.grid, contrast))
        given[flag] = path
    return given


def scenarios(task: Mapping[str, Any], *, full_size: bool) -> list[Scenario]:
    """What is asked of a task: an oblique and an odd grid; where there is a choice of contrasts, each of them and none; a case of 1 mm."""
    choice = any(len(entry["contrasts"]) > 1 for entry in task["inputs"])
    if choice:
        made = [
            Scenario("axes in order, .nii.gz, the first of several contrasts"),
            Scenario("oblique, .nii, the other contrast", "oblique", ".nii", 1),
            Scenario("odd axes, .nii.gz, without the optional contrast", "odd", ".nii.gz", -1),
        ]
    else:
        made = [Scenario("oblique, .nii", "oblique", ".nii"), Scenario("odd axes, anisotropic, .nii.gz", "odd")]
    return [*made, Scenario("1 mm, .nii.gz", "full")] if full_size else made


def answer_one(folder: Path, *, seconds: float | None = None) -> Outcome:
    """One small made-up case, for what it loads and whether it answers at all."""
    task = artifacts.read_json(folder / TASK)
    with tempfile.TemporaryDirectory(prefix="neuroprior-case-") as name:
        inputs, outputs = Path(name, "in"), Path(name, "out")
        outputs.mkdir()
        given = scans_of(task, Scenario("first"), inputs)
        output = outputs / f"answer{ENDINGS[task['output']]}"
        return call([folder.absolute() / challenge.ENTRY, *_words(given), "--output", output], output, seconds=seconds)


def _words(given: Mapping[str, Path]) -> list[str]:
    return [word for flag, path in given.items() for word in (flag, str(path))]


# ------------------------------------------------------------------------------------------------------------- the answers

Problem = str | None


def read_number(path: Path) -> tuple[float | None, Problem]:
    """The one number in a text file, or what is wrong with it."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError:
        return None, "the answer is no text; one number is expected"
    if len(words) != 1:
        return None, f"one number is expected, found {len(words)}: {' '.join(words)[:60]!r}"
    try:
        value = float(words[0])
    except ValueError:
        return None, f"one number is expected, found the word {words[0][:30]!r}"
    if not math.isfinite(value):
        return None, f"a finite number is expected, found {words[0]}"
    return value, None


def look_at_probability(path: Path) -> list[tuple[str, Problem]]:
    """One number, in [0, 1]."""
    value, problem = read_number(path)
    if value is None:
        return [("one number", problem)]
    return [("one number", None), ("range", None if 0 <= value <= 1 else f"a probability in [0, 1] is expected, found {value:g}")]


def look_at_number(path: Path) -> list[tuple[str, Problem]]:
    """One finite number."""
    return [("one number", read_number(path)[1])]


def look_at_mask(path: Path, like: Path, labels: Sequence[int] | None) -> list[tuple[str, Problem]]:
    """A NIfTI on the grid of ``like`` whose voxels are integers among ``labels``."""
    import nibabel

    try:
        image, reference = nibabel.load(path), nibabel.load(like)
        voxels = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        return [("readable", f"a NIfTI is expected: {error}")]
    shape, wanted = tuple(image.shape), tuple(reference.shape)  # type: ignore[attr-defined]
    rows: list[tuple[str, Problem]] = [("readable", None)]
    rows.append(("shape", None if shape == wanted else f"the input's shape {wanted} is expected, found {shape}"))
    apart = float(np.abs(np.asarray(image.affine) - np.asarray(reference.affine)).max())  # type: ignore[attr-defined]
    rows.append(
        ("affine", None if apart <= 1e-4 else f"the input's affine is expected, found one that differs by up to {apart:.4g}")
    )
    kind = image.get_data_dtype()  # type: ignore[attr-defined]
    rows.append(("integers", None if kind.kind in "iu" else f"an integer data type is expected on disk, found {kind}"))
    values = np.unique(voxels)
    if not np.isfinite(values.astype(float)).all():
        rows.append(("labels", "whole labels are expected, found NaN or infinity"))
    elif (values != np.round(values.astype(float))).any():
        rows.append(("labels", f"whole labels are expected, found {values[values != np.round(values.astype(float))][0]:g}"))
    else:
        extra = sorted({int(v) for v in values} - set(labels)) if labels is not None else []
        rows.append(("labels", f"labels among {list(labels or ())} are expected, found {extra[:5]}" if extra else None))
    return rows


def look_at_vector(path: Path) -> list[tuple[str, Problem]]:
    """A 1-D float32 array of finite numbers that are not all the same."""
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return [("readable", f"a .npy array is expected: {error}")]
    if not isinstance(vector, np.ndarray):
        return [("readable", "one .npy array is expected, found an archive")]
    rows: list[tuple[str, Problem]] = [("readable", None)]
    rows.append(
        ("one axis", None if vector.ndim == 1 and vector.size else f"a 1-D array is expected, found shape {vector.shape}")
    )
    rows.append(("float32", None if vector.dtype == np.float32 else f"float32 is expected, found {vector.dtype}"))
    if vector.dtype.kind not in "fiu" or not vector.size:
        return rows
    bad = int(np.count_nonzero(~np.isfinite(vector)))
    rows.append(
        ("finite", f"finite numbers are expected, found {bad} of {vector.size} that are NaN or infinite" if bad else None)
    )
    if not bad and vector.size > 1 and float(np.ptp(vector)) == 0:
        rows.append(("informative", "all numbers of the embedding are the same"))
    return rows


# ------------------------------------------------------------------------------------------------------------- all of it


def check(
    folder: Path, *, seconds: float | None = None, memory_gb: float | None = None, full_size: bool = True, apptainer: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Finding]:  # fmt: skip
    """Run the contract.

    Args:
        folder: an exported folder.
        seconds: for a case; by default the protocol's limit.
        memory_gb: most resident memory of a case; only reported where None.
        full_size: also ask for a case of 1 mm.
        apptainer: also run the image ``predict.sif`` of the folder, where Apptainer is installed.
        tell: called with the name of each scenario before it runs.

    Returns:
        One row for each thing that was looked at.

    Raises:
        ArtifactError: this is no exported folder.
    """
    folder = folder.absolute()
    if not (folder / TASK).is_file():
        raise ArtifactError(
            "this is no exported challenge folder",
            file=folder,
            expected=f"{TASK}, or the model.json of export onnx",
            next_step="make one: neuroprior export challenge MODEL --protocol fomo26 --task 1 --out DIR",
        )
    task = artifacts.read_json(folder / TASK)
    if task.get("artifact") != "challenge" or task.get("version") != 1:
        raise ArtifactError("this folder was exported by another version", file=folder / TASK, next_step="export it again")
    seconds = seconds if seconds is not None else task["seconds"]
    found = _look_at_files(folder)
    if any(row.status == FAILED for row in found):
        return found
    prefix = network_namespace()
    vectors: dict[str, int] = {}
    loaded: dict[str, str] = {}
    for scenario in scenarios(task, full_size=full_size):
        tell(scenario.name)
        rows, outcome, length = _ask(folder, task, scenario, [folder / challenge.ENTRY], seconds, memory_gb, prefix)
        found += rows
        loaded |= outcome.modules
        if length is not None:
            vectors[scenario.name] = length
    if len(vectors) > 1:
        same = len(set(vectors.values())) == 1
        text = ", ".join(f"{name}: {n}" for name, n in vectors.items())
        found.append(
            _row(
                "all",
                "constant length",
                None if same else f"one length for every scan is expected, found {text}",
                f"{next(iter(vectors.values()))} numbers",
            )
        )
    found += _look_at_requirements(folder, loaded)
    if apptainer:
        found += _in_apptainer(folder, task, seconds, memory_gb, tell)
    return found


def _row(case: str, name: str, problem: Problem, good: str = "") -> Finding:
    return Finding(case, name, FAILED if problem else OK, problem or good)


def _look_at_files(folder: Path) -> list[Finding]:
    entry = folder / challenge.ENTRY
    problem = None
    if not entry.is_file():
        problem = f"there is no {challenge.ENTRY}"
    elif not os.access(entry, os.X_OK):
        problem = f"{challenge.ENTRY} is not executable; chmod 755 {challenge.ENTRY}"
    rows = [_row("all", "entry point", problem)]
    missing = [name for name in (challenge.DEFINITION, challenge.REQUIREMENTS, challenge.CARD) if not (folder / name).is_file()]
    rows.append(_row("all", "files", f"missing: {', '.join(missing)}" if missing else None))
    if not missing:
        lines = (folder / challenge.REQUIREMENTS).read_text(encoding="utf-8").split()
        parts = {"folder": folder_bytes(folder), **package_bytes(lines)}
        parts["folder"] -= sum(path.stat().st_size for path in folder.glob("*.sif"))
        total = sum(parts.values())
        text = f"{total / 1e6:.0f} MB without torch ({parts['folder'] / 1e6:.1f} MB of it the folder)"
        limit = challenge.MAX_BYTES
        rows.append(_row("all", "size", f"under {limit / 1e6:.0f} MB is expected, found {text}" if total > limit else None, text))
    return rows


def _ask(
    folder: Path, task: Mapping[str, Any], scenario: Scenario, command: Sequence[str | Path], seconds: float | None,
    memory_gb: float | None, prefix: Sequence[str], *, inside: bool = False,
) -> tuple[list[Finding], Outcome, int | None]:  # fmt: skip
    """One scenario: its rows, how the call ended, and the length of an embedding."""
    with tempfile.TemporaryDirectory(prefix="neuroprior-case-") as name:
        inputs, outputs = Path(name, "in"), Path(name, "out")
        outputs.mkdir()
        given = scans_of(task, scenario, inputs)
        output = outputs / f"answer{ENDINGS[task['output']]}"
        full = [*command, *_words(given), "--output", output]
        if inside:
            full = [full[0], full[1], "--bind", name, *full[2:]]
        outcome = call(full, output, seconds=seconds, prefix=prefix)
        case = ("in the image: " if inside else "") + scenario.name
        rows = _look_at_outcome(case, outcome, output, seconds, memory_gb, watched=not inside)
        length = None
        if output.is_file() and outcome.returncode == 0:
            if task["output"] == "mask":
                answers = look_at_mask(output, next(iter(given.values())), task["labels"])
            elif task["output"] == "embedding":
                answers = look_at_vector(output)
                if all(problem is None for _, problem in answers):
                    length = int(np.load(output, allow_pickle=False).size)
            else:
                answers = (look_at_probability if task["output"] == "probability" else look_at_number)(output)
            rows += [_row(case, what, problem) for what, problem in answers]
    return rows, outcome, length


def _look_at_outcome(
    case: str, outcome: Outcome, output: Path, seconds: float | None, memory_gb: float | None, *, watched: bool
) -> list[Finding]:
    last = outcome.tail.splitlines()[-1] if outcome.tail else "nothing was said"
    rows = []
    if outcome.returncode is None:
        rows.append(_row(case, "time", f"at most {seconds:g} s are allowed; it was stopped after {outcome.seconds:.1f} s"))
    else:
        rows.append(_row(case, "time", None, f"{outcome.seconds:.1f} s" + (f" of {seconds:g} s" if seconds else "")))
        rows.append(
            _row(case, "exit status", f"0 is expected, found {outcome.returncode}: {last}" if outcome.returncode else None)
        )
        others = sorted(set(outcome.files) - {output.name})
        if output.name not in outcome.files:
            rows.append(_row(case, "output file", "no output was written"))
        else:
            rows.append(
                _row(case, "output file", f"only the output is expected, found also {', '.join(others[:3])}" if others else None)
            )
    limit = None if memory_gb is None else memory_gb * 1024
    over = limit is not None and outcome.peak_mb > limit
    text = f"{outcome.peak_mb:.0f} MB"
    rows.append(_row(case, "memory", f"at most {limit:.0f} MB are allowed, found {text}" if over else None, text))
    if not watched:
        return rows
    tried = f"no network is allowed at run time; it tried {outcome.network[0]}" if outcome.network else None
    rows.append(_row(case, "network", tried))
    if outcome.modules:
        training = sorted(
            name for name in outcome.modules
            if name in FOREIGN or (name.startswith("neuroprior.") and name.split(".")[1] in TRAINING)
        )  # fmt: skip
        rows.append(_row(case, "no training code", f"imported {', '.join(training[:4])}" if training else None))
    elif outcome.returncode is not None:
        rows.append(Finding(case, "no training code", SKIPPED, "what it imported could not be seen (no Python, or python -I)"))
    return rows


def _look_at_requirements(folder: Path, loaded: Mapping[str, str]) -> list[Finding]:
    """What the travelling code imports and loaded, against requirements.txt."""
    if not loaded or not (folder / challenge.APP / "neuroprior").is_dir():
        return []
    wanted = {line.split("==")[0] for line in requirements(folder / challenge.APP, loaded)}
    listed = {
        line.split("==")[0].strip().lower().replace("_", "-")
        for line in (folder / challenge.REQUIREMENTS).read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")
    }  # fmt: skip
    problems = []
    if wanted - listed:
        problems.append(f"imported but not listed: {', '.join(sorted(wanted - listed))}")
    if listed - wanted:
        problems.append(f"listed but never imported: {', '.join(sorted(listed - wanted))}")
    return [_row("all", "requirements", "; ".join(problems) or None, ", ".join(sorted(listed)))]


def _in_apptainer(
    folder: Path, task: Mapping[str, Any], seconds: float | None, memory_gb: float | None, tell: Callable[[str], None]
) -> list[Finding]:
    image = folder / "predict.sif"
    if shutil.which("apptainer") is None:
        return [Finding("all", "apptainer", SKIPPED, "Apptainer is not installed here; the contract was run without it")]
    if not image.is_file():
        build = f"apptainer build {image.name} {challenge.DEFINITION}"
        return [Finding("all", "apptainer", SKIPPED, f"there is no {image.name} yet: {build}")]
    scenario = scenarios(task, full_size=False)[0]
    tell("in the image")
    command = ["apptainer", "run", "--containall", "--net", "--network", "none", image]
    return _ask(folder, task, scenario, command, seconds, memory_gb, (), inside=True)[0]
