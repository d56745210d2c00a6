"""Predict: scans in, masks, classes or numbers in native space out, with a row for every case."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..inference.model import Model
    from ..inference.predictor import CaseInput

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictSummary:
    """How a prediction run ended.

    Attributes:
        out: the derivative's folder.
        done, kept, failed: cases predicted now, kept from an earlier run, and failed (each has a row with its reason).
    """

    out: Path
    done: int
    kept: int
    failed: int

    @property
    def exit_code(self) -> int:
        """3 when a case failed, else 0."""
        return 3 if self.failed else 0

    def __str__(self) -> str:
        kept = f", {self.kept} kept from before" if self.kept else ""
        failed = f", {self.failed} FAILED (reasons in {self.out / 'predictions.tsv'})" if self.failed else ""
        return f"{self.done} cases predicted{kept}{failed}: {self.out}"


def predict(
    model: Path,
    inputs: list[str],
    out: Path = Path("predictions"),
    split: str | None = None,
    dataset: str | None = None,
    reference: str | None = None,
    overlap: float = 0.5,
    probabilities: bool = False,
    skip_existing: bool = True,
    device: str = "auto",
) -> PredictSummary:
    """Predict in native space from a model folder.

    Args:
        model: model folder, or a run folder that holds one.
        inputs: scans by contrast (T1w=a.nii.gz FLAIR=b.nii.gz, together one case), NIfTI files, BIDS folders, or an index.
        out: folder of the BIDS derivative.
        split: only the cases of this split (train, val, test) of an index.
        dataset: only the cases of this dataset of an index.
        reference: contrast whose native grid the masks are given on; by default the first of T1w, T2w, FLAIR, any.
        overlap: of neighbouring windows, 0 to below 1.
        probabilities: also write the foreground probability of every voxel.
        skip_existing: keep results whose inputs and model have not changed (compared by checksum).
        device: cpu, cuda, or auto.

    Returns:
        The counts; a failed case is a row with its reason and makes the exit status 3.

    Raises:
        InputError: an input is not there or holds no scans, or an index has no case of the split.
        ArtifactError: the model folder is damaged.
    """
    import torch
    from rich.progress import track

    from ..core import contrasts as vocabulary
    from ..core.errors import ConfigError, InputError
    from ..data.index import read_index
    from ..inference import derivative
    from ..inference.inputs import from_arguments, from_scans
    from ..inference.model import load, require_head

    if not 0 <= overlap < 1:
        raise ConfigError("--overlap is a share of the window", expected="0 <= overlap < 1", got=overlap)
    loaded = load(model, device=("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    require_head(loaded)
    cases: list[CaseInput] = []
    others: list[str] = []
    for item in inputs:
        if item.endswith(".parquet"):
            scans = read_index(Path(item))
            chosen = [s for s in scans if split in (None, s.split) and dataset in (None, s.dataset)]
            if not chosen:
                raise InputError(
                    "the index has no such scan", file=item, expected=f"split {split or 'any'}, dataset {dataset or 'any'}",
                    got=f"splits {', '.join(sorted({s.split or 'none' for s in scans}))}; "
                    f"datasets {', '.join(sorted({s.dataset for s in scans}))}",
                )  # fmt: skip
            cases += from_scans(chosen)
        else:
            others.append(item)
    if (split or dataset) and others:
        raise ConfigError("--split and --dataset need an index", got=", ".join(others), next_step="run neuroprior index first")
    cases += from_arguments(others, loaded.contrasts)
    cases = [case for case in cases if split is None or any(name in loaded.contrasts for name in case.scans)]
    if not cases:
        raise InputError("there is nothing to predict", expected=f"scans of {', '.join(loaded.contrasts)}")
    wanted = vocabulary.canonical(reference) if reference else None

    out.mkdir(parents=True, exist_ok=True)
    command = {"split": split, "reference": reference, "overlap": overlap, "probabilities": probabilities}
    derivative.write_description(out, loaded.info, command)
    earlier = {row["case"]: row for row in derivative.read_table(out)} if skip_existing else {}
    several = len({case.dataset for case in cases}) > 1
    rows: list[dict[str, Any]] = []
    kept = 0
    for case in track(cases, description="predicting", disable=len(cases) < 2):
        before = earlier.get(case.case)
        digest = _digest(case)
        if before and _still_good(before, digest, str(loaded.info["weights_sha256"]), out):
            rows.append(dict(before))
            kept += 1
        else:
            rows.append(
                _predict_one(loaded, case, out, digest, several=several, reference=wanted, overlap=overlap, maps=probabilities)
            )
        derivative.write_table(out, rows)
    failed = sum(row["status"] != "ok" for row in rows)
    return PredictSummary(out, len(rows) - kept - failed, kept, failed)


def _digest(case: CaseInput) -> str:
    """A checksum of the case's input files; files that cannot be read have one too (the case fails later, with its reason)."""
    from ..core import artifacts

    parts = {}
    for name, path in case.scans.items():
        try:
            parts[name] = artifacts.sha256_file(path)
        except OSError as error:
            parts[name] = f"unreadable: {error.strerror}"
    return artifacts.sha256_json(parts)[:16]


def _still_good(row: dict[str, str | None], digest: str, weights: str, out: Path) -> bool:
    output = row.get("output")
    return (
        row.get("status") == "ok"
        and row.get("inputs_sha256") == digest
        and row.get("model_sha256") == weights[:16]
        and (output is None or (out / output).is_file())
    )


def _predict_one(
    model: Model, case: CaseInput, out: Path, digest: str, *, several: bool, reference: str | None, overlap: float, maps: bool
) -> dict[str, Any]:
    """The row of one case; an error of this case becomes its reason, and nothing else is lost."""
    import resource
    import time

    import numpy as np

    from ..core import nifti
    from ..core.errors import ArtifactError, NeuropriorError
    from ..inference import derivative
    from ..inference.predictor import describe, predict_case

    start = time.perf_counter()
    task = model.task
    row: dict[str, Any] = {
        "case": case.case, "dataset": case.dataset, "subject": case.subject, "session": case.session, "task": task["name"],
        "target": task["target"], "contrasts": ",".join(sorted(n for n in case.scans if n in model.contrasts)),
        "inputs_sha256": digest, "model_sha256": str(model.info["weights_sha256"])[:16],
    }  # fmt: skip
    try:
        result = predict_case(model, case, reference=reference, overlap=overlap)
        row |= {
            "missing": ",".join(result.missing), "reference": result.reference, "input": str(case.scans[result.reference]),
            "status": "ok", "reason": "; ".join(result.notes),
        }  # fmt: skip
        row |= describe(result, task)
        if result.mask is not None:
            like = case.scans[result.reference]
            n_values = len(task["label_values"])
            path = derivative.mask_path(out, case, task["target"], n_values, several_datasets=several)
            nifti.write_like(path, result.mask, like=like, dtype=result.mask.dtype)
            row["output"] = path.relative_to(out).as_posix()
            if maps and result.foreground is not None:
                path = derivative.mask_path(out, case, task["target"], n_values, several_datasets=several, kind="probseg")
                nifti.write_like(path, result.foreground, like=like, dtype=np.float32)
    except ArtifactError:
        raise  # the disk is full or the output folder cannot be written: no case can be saved
    except NeuropriorError as error:
        logger.error("%s: %s", case.case, error)
        row |= {"status": "failed", "reason": error.reason}
    except (MemoryError, RuntimeError) as error:
        logger.exception("%s failed", case.case)
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    row["seconds"] = round(time.perf_counter() - start, 3)
    row["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row
