"""Predict: scans in, masks, classes or numbers in native space out, with a row for every case."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.places import Place

if TYPE_CHECKING:
    from ..inference.answers import CaseOutput
    from ..inference.model import Model
    from ..inference.presets import PredictConfig
    from ..inference.reading import CaseInput, Prepared

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictSummary:
    """How a prediction run ended.

    Attributes:
        out: the derivative's folder.
        done, kept, failed: cases predicted now, kept from an earlier run, and failed (each has a row with its reason).
        abstained: cases among ``done`` whose answer was left out for lack of confidence.
        subsets: folder name -> the same counts for a subset of contrasts.
    """

    out: Path
    done: int
    kept: int
    failed: int
    abstained: int = 0
    subsets: Mapping[str, PredictSummary] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """3 when a case failed, else 0."""
        return 3 if self.failed or any(one.failed for one in self.subsets.values()) else 0

    def __str__(self) -> str:
        kept = f", {self.kept} kept from before" if self.kept else ""
        quiet = f", {self.abstained} of them left to a person" if self.abstained else ""
        failed = f", {self.failed} FAILED (reasons in {self.out / 'predictions.tsv'})" if self.failed else ""
        lines = [f"{self.done} cases predicted{quiet}{kept}{failed}: {self.out}"]
        return "\n".join([*lines, *(str(one) for one in self.subsets.values())])


def predict(
    model: Place,
    inputs: list[str],
    out: Path = Path("predictions"),
    split: str | None = None,
    dataset: str | None = None,
    reference: str | None = None,
    preset: str = "balanced",
    overlap: float | None = None,
    as_: str | None = None,
    covariates: str | None = None,
    probabilities: bool = False,
    uncertainty: bool = False,
    quantise: bool = False,
    samples: int = 0,
    subsets: bool = False,
    abstain: bool = False,
    skip_existing: bool = True,
    seed: int = 0,
    device: str = "auto",
) -> PredictSummary:
    """Predict in native space from a model folder.

    Args:
        model: model folder, a run folder that holds one, an ensemble's folder, or the address of one (hf://ORG/NAME).
        inputs: scans by contrast (T1w=a.nii.gz FLAIR=b.nii.gz, together one case), NIfTI files, BIDS folders, or an index.
        out: folder of the BIDS derivative.
        split: only the cases of this split (train, val, test) of an index.
        dataset: only the cases of this dataset of an index.
        reference: contrast whose native grid the masks are given on; by default the first of T1w, T2w, FLAIR, any.
        preset: fast, balanced or accurate (overlap of windows, mirrored copies, precision).
        overlap: of neighbouring windows, 0 to below 1; by default the preset's.
        as_: take a scan that the model never saw for this contrast (T2w), or by name (PDw=T2w); told in the row.
        covariates: what is known of the cases beside the images (age=63,sex=F), for models that take some; an index has its own.
        probabilities: also write the foreground probability of every voxel.
        uncertainty: also write the entropy of every voxel and, with several members or samples, what they disagree on.
        quantise: write these maps in 8 bits.
        samples: draws from the posterior of a model with a variational split.
        subsets: also predict from every subset of the contrasts that a case has, into OUT/subsets/A+B.
        abstain: leave out answers whose confidence is below what validation cases taught the model.
        skip_existing: keep results whose inputs, model and settings have not changed (compared by checksum).
        seed: of the samples.
        device: cpu, cuda, or auto.

    Returns:
        The counts; a failed case is a row with its reason and makes the exit status 3.

    Raises:
        InputError: an input is not there or holds no scans, or an index has no case of the split.
        ConfigError: a setting is impossible, or the folder holds the predictions of another task.
        ArtifactError: the model folder is damaged.
    """
    from ..core import artifacts
    from ..core import contrasts as vocabulary
    from ..core.errors import ConfigError
    from ..engine.device import predicting_device
    from ..inference import inputs as collecting
    from ..inference import presets
    from ..inference.calibration import Calibration
    from ..inference.model import load, require_head
    from ..inference.predictor import passes_of

    if overlap is not None and not 0 <= overlap < 1:
        raise ConfigError("--overlap is a share of the window", expected="0 <= overlap < 1", got=overlap)
    presets.require(preset)
    artifacts.require_place(out, "predictions")
    loaded = load(model, device=predicting_device(device))
    require_head(loaded)
    config = presets.preset(
        preset, loaded.net, overlap=overlap, samples=samples, seed=seed, probabilities=probabilities, uncertainty=uncertainty
    )
    passes_of(loaded, config, "")
    calibration = Calibration.from_json(loaded.info.get("calibration"))
    if abstain and (calibration is None or calibration.abstain_below is None):
        raise ConfigError(
            "the model has not learned when to abstain", file=loaded.folder, expected="a calibration with abstain_below",
            next_step="calibrate it on validation cases, or leave out --abstain",
        )  # fmt: skip
    cases = _collect(loaded, inputs, split, dataset, as_, _pairs(covariates))
    wanted = vocabulary.canonical(reference) if reference else None
    run = _Run(loaded, config, wanted, quantise, abstain, skip_existing)
    command = {
        "split": split, "reference": reference, "preset": preset, "settings": config.model_dump(), "as": as_, "quantise": quantise,
        "abstain": abstain,
    }  # fmt: skip
    summary = run.all(cases, out, command)
    if not subsets:
        return summary
    artifacts.write_text(out / ".bidsignore", "subsets/\n")
    parts = {}
    for name, chosen in collecting.subsets(cases, loaded.contrasts).items():
        logger.info("subset %s: %d cases", name, len(chosen))
        parts[name] = run.all(chosen, out / "subsets" / name, command | {"subset": name.split("+")})
    return PredictSummary(summary.out, summary.done, summary.kept, summary.failed, summary.abstained, parts)


def _pairs(text: str | None) -> dict[str, str]:
    from ..core.errors import ConfigError

    found = {}
    for part in (text or "").split(","):
        if part.strip():
            name, equals, value = part.partition("=")
            if not equals:
                raise ConfigError("--covariates are pairs", expected="age=63,sex=F", got=part)
            found[name.strip()] = value.strip()
    return found


def _collect(
    model: Model, inputs: list[str], split: str | None, dataset: str | None, as_: str | None, covariates: Mapping[str, str]
) -> list[CaseInput]:
    """The cases of the command line, each with a name and a place of its own."""
    from dataclasses import replace

    from ..core.errors import ConfigError, InputError
    from ..data.index import read_index
    from ..inference import inputs as collecting

    anything, by_name = collecting.parse_as(as_, model.contrasts)
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
            cases += collecting.from_scans(chosen)
        else:
            others.append(item)
    if (split or dataset) and others:
        raise ConfigError("--split and --dataset need an index", got=", ".join(others), next_step="run neuroprior index first")
    cases += collecting.from_arguments(others, model.contrasts, as_=anything)
    cases = [collecting.taken_as(case, model.contrasts, anything, by_name) for case in cases]
    cases = [case for case in cases if split is None or any(name in model.contrasts for name in case.scans)]
    if not cases:
        raise InputError("there is nothing to predict", expected=f"scans of {', '.join(model.contrasts)}")
    if covariates:
        cases = [replace(case, covariates={**case.covariates, **covariates}) for case in cases]
    return collecting.told_apart(cases)


@dataclass
class _Read:
    """A case that was read, or kept from an earlier run, or could not be read."""

    digest: str
    seconds: float
    kept: dict[str, Any] | None = None
    prepared: Prepared | None = None
    error: Exception | None = None


class _Run:
    """One model over many cases: the next case is read and the last one written while this one is computed."""

    def __init__(
        self, model: Model, config: PredictConfig, reference: str | None, quantise: bool, abstain: bool, skip_existing: bool
    ) -> None:
        from ..core import artifacts
        from ..inference import ladder

        self.model, self.config, self.reference = model, config, reference
        self.quantise, self.abstain, self.skip_existing = quantise, abstain, skip_existing
        self.weights = str(model.info["weights_sha256"])[:16]
        # maps are looked for on disk: a run that asks for fewer of them than the last one computes nothing anew
        told = config.model_dump(exclude={"window_batch", "probabilities", "uncertainty"})
        maps = config.probabilities or config.uncertainty
        self.settings = artifacts.sha256_json({
            "config": told, "reference": reference, "quantise": quantise and maps, "abstain": abstain,
            "calibration": model.info.get("calibration"),
        })[:16]  # fmt: skip
        self.ladder = ladder.rungs(str(next(model.net.parameters()).device), config.window_batch)
        self.rung = 0

    def all(self, cases: list[CaseInput], out: Path, command: Mapping[str, Any]) -> PredictSummary:
        """Predict all cases into one derivative; the table grows with every case, in the cases' order."""
        from concurrent.futures import Future, ThreadPoolExecutor

        from rich.progress import Progress

        from ..core import artifacts
        from ..inference import derivative

        derivative.require_same(out, self.model.info)
        out.mkdir(parents=True, exist_ok=True)
        artifacts.sweep(out)
        derivative.write_description(out, self.model.info, command)
        self.several = len({case.dataset for case in cases}) > 1
        earlier = {row["case"]: row for row in derivative.read_table(out)} if self.skip_existing else {}
        rows: list[dict[str, Any] | None] = [None] * len(cases)
        kept = 0

        def tell() -> None:
            """The table: cases done, and the earlier rows of those still to come."""
            known = [row or earlier.get(case.case) for case, row in zip(cases, rows, strict=True)]
            derivative.write_table(out, [row for row in known if row])

        with (
            ThreadPoolExecutor(1, "reading") as reader,
            ThreadPoolExecutor(1, "writing") as writer,
            Progress(disable=len(cases) < 2, transient=False) as progress,
        ):
            bar = progress.add_task("predicting", total=len(cases))
            ahead: Future[_Read] = reader.submit(self._read, cases[0], out, earlier)
            writing: tuple[int, Future[dict[str, Any]]] | None = None
            try:
                for number, case in enumerate(cases):
                    read = ahead.result()
                    if number + 1 < len(cases):
                        ahead = reader.submit(self._read, cases[number + 1], out, earlier)
                    if read.kept is not None:
                        rows[number] = read.kept
                        kept += 1
                    else:
                        row, output = self._compute(case, read, out)
                        if writing is not None:
                            rows[writing[0]] = writing[1].result()
                            progress.advance(bar)
                            tell()
                        writing = (number, writer.submit(self._write, case, row, output, out))
                        continue
                    progress.advance(bar)
                if writing is not None:
                    rows[writing[0]] = writing[1].result()
                    progress.advance(bar)
            finally:
                ahead.cancel()
                tell()
        done = [row for row in rows if row is not None]
        failed = sum(row["status"] == "failed" for row in done)
        fresh = len(done) - kept - failed
        abstained = sum(row["status"] == "abstained" for row in done)
        return PredictSummary(out, fresh, kept, failed, abstained)

    def _read(self, case: CaseInput, out: Path, earlier: Mapping[str, Mapping[str, Any]]) -> _Read:
        """Runs in a thread: checksums, then the scans, conformed; an error becomes the case's."""
        import time

        from ..core.errors import NeuropriorError
        from ..inference.reading import read_case

        start = time.perf_counter()
        digest = _digest(case)
        before = earlier.get(case.case)
        if before and self._still_good(before, digest, case, out):
            return _Read(digest, 0.0, kept=dict(before))
        try:
            prepared = read_case(self.model, case, reference=self.reference)
        except (NeuropriorError, MemoryError, RuntimeError, OSError, ValueError, ArithmeticError) as error:
            return _Read(digest, time.perf_counter() - start, error=error)
        return _Read(digest, time.perf_counter() - start, prepared=prepared)

    def _still_good(self, row: Mapping[str, Any], digest: str, case: CaseInput, out: Path) -> bool:
        from ..core import artifacts

        if row.get("status") not in ("ok", "abstained"):
            return False
        if (row.get("inputs_sha256"), row.get("model_sha256"), row.get("settings_sha256")) != (
            digest,
            self.weights,
            self.settings,
        ):
            return False
        output = row.get("output")
        if output is None:
            return True
        path = out / str(output)
        maps = [place for place in self._map_paths(case, out).values() if place is not None]
        return path.is_file() and artifacts.sha256_file(path)[:16] == row.get("output_sha256") and all(p.is_file() for p in maps)

    def _map_paths(self, case: CaseInput, out: Path) -> dict[str, Path | None]:
        """Where the maps go that were asked for."""
        from ..inference import derivative
        from ..inference.predictor import passes_of

        several_passes = len(self.model.each) * len(passes_of(self.model, self.config, case.case)) > 1
        asked = {
            "probseg": self.config.probabilities,
            "entropy": self.config.uncertainty,
            "mutualinfo": self.config.uncertainty and several_passes,
        }
        task = self.model.task
        return {
            kind: derivative.mask_path(
                out, case, task["target"], len(task["label_values"]), several_datasets=self.several, kind=kind
            )
            if asked[kind]
            else None
            for kind in derivative.MAPS
        }

    def _compute(self, case: CaseInput, read: _Read, out: Path) -> tuple[dict[str, Any], CaseOutput | None]:
        """The row of one case and its answer; an error of this case becomes its reason, and nothing else is lost."""
        import time

        from ..core import peak_memory
        from ..core.errors import NeuropriorError
        from ..inference.answers import describe
        from ..inference.predictor import compute
        from ..inference.reading import read_case

        start = time.perf_counter()
        peak_memory.reset_peak()
        task = self.model.task
        row: dict[str, Any] = {
            "case": case.case, "dataset": case.dataset, "subject": case.subject, "session": case.session, "task": task["name"],
            "target": task["target"], "contrasts": ",".join(sorted(n for n in case.scans if n in self.model.contrasts)),
            "inputs_sha256": read.digest, "model_sha256": self.weights, "settings_sha256": self.settings,
        }  # fmt: skip
        output = None
        try:
            prepared, read.prepared = read.prepared, None  # so that its images are free as soon as they are used
            if isinstance(read.error, MemoryError):  # two cases at a time were too many
                prepared = read_case(self.model, case, reference=self.reference)
            elif read.error is not None:
                raise read.error
            assert prepared is not None
            output, self.rung = compute(self.model, prepared, self.config, rungs=self.ladder, start=self.rung)
            if self.ladder[self.rung].device == "cpu" and self.ladder[0].device != "cpu":
                self.rung -= 1  # one case too large for the GPU does not send the others away from it
            row |= {
                "missing": ",".join(output.missing), "reference": output.reference, "input": str(case.scans[output.reference]),
                "status": "ok", "reason": "; ".join(output.notes), "computed_on": output.rung,
            }  # fmt: skip
            row |= describe(output, task)
        except NeuropriorError as error:
            logger.error("%s: %s", case.case, error)
            row |= {"status": "failed", "reason": error.reason}
        except (MemoryError, RuntimeError, OSError, ValueError, ArithmeticError) as error:
            logger.exception("%s failed", case.case)
            row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        row["seconds"] = read.seconds + time.perf_counter() - start
        row["peak_memory_mb"], row["peak_gpu_memory_mb"] = peak_memory.peak_mb(), peak_memory.peak_gpu_mb()
        return row, output if row["status"] == "ok" else None

    def _write(self, case: CaseInput, row: dict[str, Any], output: CaseOutput | None, out: Path) -> dict[str, Any]:
        """Runs in a thread: the images of a case, each whole or not at all; the finished row."""
        import time

        from ..core import artifacts, nifti
        from ..core.errors import ArtifactError, NeuropriorError
        from ..inference import derivative
        from ..inference.answers import withhold

        start = time.perf_counter()
        if output is not None and self.abstain and "low_confidence" in output.flags:
            row = withhold(row)
        elif output is not None and output.mask is not None:
            like = case.scans[output.reference]
            task = self.model.task
            path = derivative.mask_path(out, case, task["target"], len(task["label_values"]), several_datasets=self.several)
            found = {"probseg": output.foreground, "entropy": output.entropy, "mutualinfo": output.mutual}
            try:
                for kind, place in self._map_paths(case, out).items():
                    array = found[kind]
                    if place is not None and array is not None:
                        derivative.write_map(place, array, like=like, quantise=self.quantise)
                nifti.write_like(path, output.mask, like=like, dtype=output.mask.dtype)
                row["output"] = path.relative_to(out).as_posix()
                row["output_sha256"] = artifacts.sha256_file(path)[:16]
            except ArtifactError:
                raise  # the disk is full or the output folder cannot be written: no case can be saved
            except NeuropriorError as error:
                logger.error("%s: %s", case.case, error)
                row |= {"status": "failed", "reason": error.reason}
        row["seconds"] = round(row["seconds"] + time.perf_counter() - start, 3)
        return row


def _digest(case: CaseInput) -> str:
    """A checksum of the case's inputs; files that cannot be read have one too (the case fails later, with its reason)."""
    from ..core import artifacts

    parts: dict[str, Any] = {}
    for name, path in case.scans.items():
        try:
            parts[name] = artifacts.sha256_file(path)
        except OSError as error:
            parts[name] = f"unreadable: {error.strerror}"
    if case.covariates:
        parts["covariates"] = {key: str(value) for key, value in sorted(case.covariates.items())}
    return artifacts.sha256_json(parts)[:16]
