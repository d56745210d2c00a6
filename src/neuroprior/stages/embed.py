"""Embed: scans in, one vector a scan out, the anatomy and the contrast half apart."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.places import Place

if TYPE_CHECKING:
    from ..core.records import Score
    from ..inference.model import Model
    from ..inference.reading import CaseInput

logger = logging.getLogger(__name__)

TABLE, DESCRIPTION, SCORES = "embeddings.parquet", "embeddings.json", "linear_probe.parquet"

HALVES = ("whole", "anatomy", "contrast")

COLUMNS = {half: f"{half}_vector" for half in HALVES}
"""Half -> column of the table that holds it."""

SAVE_EVERY_S = 10.0
"""The table is written at least this often, so that a killed run loses no more."""


@dataclass(frozen=True)
class EmbedSummary:
    """How an embedding run ended.

    Attributes:
        out: the folder.
        lengths: half -> numbers of its vector.
        done, kept, failed: scans embedded now, kept from an earlier run, and failed (each has a row with its reason).
        scores: of the linear probe and its fairness, where a target was given.
        left_out: reason -> scans that the probe could not use.
    """

    out: Path
    lengths: dict[str, int]
    done: int
    kept: int
    failed: int
    scores: tuple[Score, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """3 when a scan failed, else 0."""
        return 3 if self.failed else 0

    def __str__(self) -> str:
        kept = f", {self.kept} kept from before" if self.kept else ""
        failed = f", {self.failed} FAILED (reasons in {self.out / TABLE})" if self.failed else ""
        long = ", ".join(f"{half} {n}" for half, n in self.lengths.items())
        lines = [f"{self.done} scans embedded{kept}{failed} (numbers a scan: {long}): {self.out / TABLE}", *self.left_out]
        for row in self.scores:
            between = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
            value = "–" if row.value is None else f"{row.value:.3f}{between}, n = {row.n}"
            lines.append(f"{row.target:<10} {row.metric:<10} {row.region:<20} {value}" + (f" ({row.note})" if row.note else ""))
        return "\n".join([*lines, *([str(self.out / SCORES)] if self.scores else [])])


def embed(
    model: Place,
    inputs: list[str],
    out: Path = Path("embeddings"),
    split: str | None = None,
    dataset: str | None = None,
    contrasts: str | None = None,
    skip_existing: bool = True,
    participants: Path | None = None,
    target: str | None = None,
    groups: str | None = None,
    half: str = "whole",
    device: str = "auto",
) -> EmbedSummary:
    """Turn every scan into one vector with a frozen model.

    Args:
        model: model or run folder, pretrained or fine-tuned, or the address of one (hf://ORG/NAME).
        inputs: NIfTI files, CONTRAST=FILE, BIDS folders, or an index; a file's contrast need not be known.
        out: folder of the vectors and their table.
        split: only the scans of this split (train, val, test) of an index.
        dataset: only the scans of this dataset of an index.
        contrasts: comma-separated; only scans of these contrasts.
        skip_existing: keep vectors whose scan and model have not changed (compared by checksum).
        participants: TSV with participant_id and the columns below; asks the vectors what they tell of the target.
        target: column of classes for the linear probe (FOMO26's: 40/10/50 % of each class's subjects, seed 42).
        groups: comma-separated columns whose groups should be served alike, for the fairness score.
        half: the vector that the probe sees: whole, anatomy or contrast.
        device: cpu, cuda, or auto.

    Returns:
        The counts, and the probe's scores; a failed scan is a row with its reason and makes the exit status 3.

    Raises:
        InputError: an input is not there or holds no scans, an index has no scan of the split, or the target cannot be probed.
        ConfigError: an option lacks another, or the net has no such half.
        ArtifactError: the model folder is damaged.
    """
    import time

    from rich.progress import track

    from ..core import artifacts
    from ..core.contrasts import canonical
    from ..core.errors import ConfigError, InputError
    from ..engine.device import predicting_device
    from ..inference.embedding import lengths
    from ..inference.model import load

    if (participants is None) != (target is None) or (groups and target is None):
        raise ConfigError(
            "a linear probe needs --participants and --target", expected="both, and --groups if fairness is asked for"
        )
    artifacts.require_place(out, "embeddings")
    loaded = load(model, device=predicting_device(device))
    cases = _cases(inputs, loaded.contrasts, split, dataset)
    if contrasts:
        wanted = {canonical(part.strip()) for part in contrasts.split(",") if part.strip()}
        cases = [case for case in cases if wanted & set(case.scans)]
        if not cases:
            raise InputError("no scan has one of these contrasts", expected=", ".join(sorted(wanted)))
    if half not in HALVES or (target is not None and not lengths(loaded)[half]):
        raise ConfigError(
            f"the probe cannot see the half {half!r}", expected=", ".join(h for h, n in lengths(loaded).items() if n)
        )
    names = _names(cases)
    sizes = {half: n for half, n in lengths(loaded).items() if n}
    out.mkdir(parents=True, exist_ok=True)
    weights = str(loaded.info["weights_sha256"])[:16]
    artifacts.write_json(
        out / DESCRIPTION,
        {
            "artifact": "embeddings", "version": 1, "lengths": sizes,
            "pooling": "mean and maximum over the head of each half; whole adds the mean of every encoder stage",
            "model": {key: loaded.info.get(key) for key in ("kind", "weights_sha256", "method", "lineage", "licences")},
        },
    )  # fmt: skip
    earlier = {row["scan"]: row for row in read_rows(out)} if skip_existing else {}
    rows: list[dict[str, Any]] = []
    kept, saved = 0, time.monotonic()
    for name, case in track(list(zip(names, cases, strict=True)), description="embedding", disable=len(cases) < 2):
        before, digest = earlier.get(name), _digest(case)
        if before is not None and _still_good(before, digest, weights, out, sizes):
            rows.append(before)
            kept += 1
        else:
            rows.append(_embed_one(loaded, name, case, out, digest, weights))
        if time.monotonic() - saved > SAVE_EVERY_S:
            rest = [
                earlier[later] for later in names[len(rows) :] if later in earlier
            ]  # a killed run keeps what an earlier one had
            _write(out, [*rows, *rest])
            saved = time.monotonic()
    _write(out, rows)
    failed = sum(row["status"] != "ok" for row in rows)
    scores, left_out = _probe(out, participants, target, groups, half) if participants and target else ((), ())
    return EmbedSummary(out, sizes, len(rows) - kept - failed, kept, failed, scores, left_out)


def _probe(
    out: Path, participants: Path, target: str, groups: str | None, half: str
) -> tuple[tuple[Score, ...], tuple[str, ...]]:  # fmt: skip
    """The linear probe's rows and, for ``groups``, its fairness; also in ``linear_probe.parquet``."""
    from dataclasses import asdict

    import pandas as pd

    from ..assessments import fairness, linear_probe
    from ..core import artifacts
    from ..core.errors import InputError, suggestion

    table = linear_probe.read_table(out, participants, target, half=half)
    wanted = [part.strip() for part in (groups or "").split(",") if part.strip()]
    for name in wanted:
        if name not in table.columns:
            raise InputError(
                f"the table has no column {name!r}", file=participants, next_step=suggestion(name, list(table.columns))
            )
    scores, probed = linear_probe.assess(table.embeddings, table.labels, table.subjects, model=out.name, target=target)
    if wanted:
        scores += fairness.assess_probe(probed, {name: table.columns[name] for name in wanted}, model=out.name, target=target)
    with artifacts.atomic(out / SCORES) as temporary:
        pd.DataFrame([asdict(row) for row in scores]).to_parquet(temporary)
    return tuple(scores), tuple(f"{n} scans left out of the probe: {reason}" for reason, n in table.left_out.items())


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of ``embeddings.parquet``, its vectors as lists of numbers; an empty list where there is no table."""
    import pyarrow.parquet as pq

    return pq.read_table(out / TABLE).to_pylist() if (out / TABLE).is_file() else []


def _cases(inputs: Sequence[str], known: Sequence[str], split: str | None, dataset: str | None) -> list[CaseInput]:
    """One case a scan."""
    from ..core import contrasts as vocabulary
    from ..core.errors import ConfigError, InputError
    from ..core.records import BAD
    from ..data.index import read_index
    from ..inference.inputs import IMAGE_SUFFIXES, contrast_of_file, from_arguments
    from ..inference.reading import CaseInput

    cases: list[CaseInput] = []
    for item in inputs:
        path = Path(item)
        if item.endswith(".parquet"):
            scans = read_index(path)
            chosen = [s for s in scans if s.status != BAD and split in (None, s.split) and dataset in (None, s.dataset)]
            if not chosen:
                raise InputError(
                    "the index has no such scan", file=item, expected=f"split {split or 'any'}, dataset {dataset or 'any'}",
                    got=f"splits {', '.join(sorted({s.split or 'none' for s in scans}))}; "
                    f"datasets {', '.join(sorted({s.dataset for s in scans}))}",
                )  # fmt: skip
            cases += [CaseInput(s.scan, s.dataset, s.subject, s.session, {s.contrast: Path(s.path)}) for s in chosen]
            continue
        if split or dataset:
            raise ConfigError("--split and --dataset need an index", got=item, next_step="run neuroprior index first")
        if path.is_file() and item.endswith(IMAGE_SUFFIXES):
            parts = path.name.split(".")[0].split("_")
            subject = next((part for part in parts if part.startswith("sub-")), parts[0])
            session = next((part for part in parts if part.startswith("ses-")), "")
            contrast = contrast_of_file(path) or vocabulary.UNKNOWN
            cases.append(CaseInput(path.name.split(".")[0], "", subject, session, {contrast: path}))
        else:
            for case in from_arguments([item], known):
                cases += [
                    CaseInput(f"{case.case}/{name}", case.dataset, case.subject, case.session, {name: file})
                    for name, file in sorted(case.scans.items())
                ]
    if not cases:
        raise InputError("there is nothing to embed", expected="scans, a BIDS folder, or an index")
    return cases


def _names(cases: Sequence[CaseInput]) -> list[str]:
    """A name for each scan; of equal ones the later carry a number."""
    seen: dict[str, int] = {}
    names = []
    for case in cases:
        seen[case.case] = seen.get(case.case, 0) + 1
        names.append(case.case if seen[case.case] == 1 else f"{case.case}-{seen[case.case]}")
    return names


def vector_path(out: Path, half: str, name: str) -> Path:
    """Where a scan's vector lies: ``anatomy/sub-01/ses-1/T1w.npy``."""
    return out / half / f"{name}.npy"


def _digest(case: CaseInput) -> str:
    """A checksum of the scan's file; one that cannot be read has one too (the scan fails later, with its reason)."""
    from ..core import artifacts

    (path,) = case.scans.values()
    try:
        return artifacts.sha256_file(path)[:16]
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _still_good(row: dict[str, Any], digest: str, weights: str, out: Path, sizes: dict[str, int]) -> bool:
    return (
        row["status"] == "ok"
        and row["input_sha256"] == digest
        and row["model_sha256"] == weights
        and all(row.get(COLUMNS[half]) is not None and len(row[COLUMNS[half]]) == n for half, n in sizes.items())
        and all(vector_path(out, half, row["scan"]).is_file() for half in sizes)
    )


def _embed_one(model: Model, name: str, case: CaseInput, out: Path, digest: str, weights: str) -> dict[str, Any]:
    """The row of one scan; an error of this scan becomes its reason, and nothing else is lost."""
    import time

    import numpy as np

    from ..core import artifacts
    from ..core.errors import ArtifactError, NeuropriorError
    from ..inference import embedding

    start = time.perf_counter()
    ((contrast, path),) = case.scans.items()
    row: dict[str, Any] = {
        "scan": name, "dataset": case.dataset, "subject": case.subject, "session": case.session, "contrast": contrast,
        "path": str(path), "status": "ok", "reason": "", "input_sha256": digest, "model_sha256": weights,
        **dict.fromkeys(COLUMNS.values()),
    }  # fmt: skip
    try:
        found = embedding.embed(model, case)
        row["reason"] = "; ".join(found.notes)
        for half in HALVES:
            if half == "contrast" and found.contrast.size == 0:
                continue
            vector = found.half(half)
            with artifacts.atomic(vector_path(out, half, name)) as temporary:
                np.save(temporary, vector, allow_pickle=False)
            row[COLUMNS[half]] = vector.tolist()
    except ArtifactError:
        raise  # the disk is full or the folder cannot be written: no scan can be saved
    except NeuropriorError as error:
        logger.error("%s: %s", name, error)
        row |= {"status": "failed", "reason": error.reason, **dict.fromkeys(COLUMNS.values())}
    except (MemoryError, RuntimeError) as error:
        logger.exception("%s failed", name)
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}", **dict.fromkeys(COLUMNS.values())}
    row["seconds"] = round(time.perf_counter() - start, 3)
    return row


def _write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """``embeddings.parquet``, atomically: text columns, seconds, and a list of float32 for each half (null where there is none)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..core import artifacts

    text = ("scan", "dataset", "subject", "session", "contrast", "path", "status", "reason", "input_sha256", "model_sha256")
    schema = pa.schema([
        *((name, pa.string()) for name in text), ("seconds", pa.float64()), *((name, pa.list_(pa.float32())) for name in COLUMNS.values()),
    ])  # fmt: skip
    with artifacts.atomic(out / TABLE) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)
