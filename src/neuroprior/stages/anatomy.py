"""Anatomy: an index in, one table of regional volumes out."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..anatomy import Candidate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnatomySummary:
    """What a table of anatomy holds.

    Attributes:
        out: the table.
        source: where the volumes come from.
        ok, failed, missing: rows by status; those that are not ok bear a reason.
        subjects: with a row that is used.
        without: subjects of the index without one.
        regions: how many.
        reused: rows kept because their files had not changed.
        issues: the table of reasons, or None where every row is ok.
        reasons: the commonest reasons of failed rows, with counts.
    """

    out: Path
    source: str
    ok: int
    failed: int
    missing: int
    subjects: int
    without: int
    regions: int
    reused: int
    issues: Path | None
    reasons: dict[str, int]

    def __str__(self) -> str:
        lines = [
            f"{self.subjects} subjects with {self.regions} regional volumes ({self.source}), {self.without} without: {self.out}"
        ]
        lines.append(f"  scans: {self.ok} ok, {self.failed} failed, {self.missing} missing")
        if self.reused:
            lines.append(f"  {self.reused} rows kept from before")
        lines += [f"  {n} x {reason}" for reason, n in self.reasons.items()]
        if self.issues:
            lines.append(f"  reasons in {self.issues}")
        return "\n".join(lines)


def anatomy(
    index: Path,
    source: str = "labelmap",
    out: Path = Path("anatomy.parquet"),
    files: Path | None = None,
    set: list[str] | None = None,
    workers: int | None = None,
    scheduler: str = "processes",
    dry_run: bool = False,
) -> AnatomySummary:
    """Collect every subject's regional volumes: the prior that the anatomy half is taught.

    Args:
        index: made by neuroprior index.
        source: name on the anatomy shelf: labelmap, synthseg, freesurfer or atlas.
        out: the table; rows of unchanged files are kept, an interrupted run is resumed.
        files: where a tool left its results: SynthSeg's table or a folder of its maps, FreeSurfer's SUBJECTS_DIR, a folder of label maps.
        set: a setting of the source (units=ml) or of the checks (quality.icv_low_ml=600); may be given several times.
        workers: processes; by default as many as cores are granted.
        scheduler: "processes", or "dask" for a local Dask cluster.
        dry_run: only say what there is to measure.

    Returns:
        The counts. Every scan of the index is a row; what cannot be used says why, also in OUT.issues.tsv.

    Raises:
        InputError: the index holds no scan, or the tool's results cannot be read as a whole (a column is missing).
        ConfigError: a setting is unknown.
        MissingDependency: the source needs a package that is not installed.
    """
    from rich.progress import Progress

    from ..anatomy import FAILED, MISSING, OK
    from ..core import artifacts, shelf
    from ..core.config import override, parse
    from ..core.errors import ConfigError, InputError
    from ..data.anatomy import Quality, choose, judge, write_anatomy
    from ..data.index import read_index

    if scheduler not in ("processes", "dask"):
        raise ConfigError(f"unknown --scheduler {scheduler!r}", expected="processes or dask")
    module = shelf.load("anatomy", source)
    settings = override({}, set or [])
    quality = parse(Quality, settings.pop("quality", {}))
    config = parse(module.Config, settings)
    scans = read_index(index)
    if not scans:
        raise InputError("the index holds no scan", file=index)
    candidates = _candidates(module, scans, files, config)
    workers = workers or len(os.sched_getaffinity(0))
    hashes = [_inputs_sha256(candidate, source, module.VERSION, config) for candidate in candidates]
    parts = out.with_name(out.stem + ".parts")
    known = _known(out, parts)
    rows: dict[int, dict[str, Any]] = {}
    todo: list[int] = []
    for i, (candidate, sha256) in enumerate(zip(candidates, hashes, strict=True)):
        if candidate.status != OK:
            rows[i] = _row(candidate, source, "", status=candidate.status, reason=candidate.reason)
        elif sha256 in known:
            rows[i] = {**_row(candidate, source, sha256), **known[sha256]}
        else:
            todo.append(i)
    reused = sum(candidate.status == OK for candidate in candidates) - len(todo)
    if dry_run:
        missing = sum(candidate.status == MISSING for candidate in candidates)
        logger.info(
            "dry run: %d scans, %d to measure, %d kept from before, %d missing", len(candidates), len(todo), reused, missing
        )
        subjects = len({scan.subject for scan in scans})
        return AnatomySummary(out, source, 0, 0, missing, 0, subjects, 0, reused, None, {})
    if reused and todo:
        logger.info("resuming: %d of %d scans are there", reused, reused + len(todo))
    arguments = [(i, source, candidates[i], config, hashes[i], parts) for i in todo]
    with Progress(disable=len(arguments) < 2) as progress:
        bar = progress.add_task("measuring anatomy", total=len(arguments))
        for i, found in _run(measure_one, arguments, workers, scheduler):
            rows[i] = {**_row(candidates[i], source, hashes[i]), **found}
            progress.advance(bar)

    table = choose(judge([rows[i] for i in range(len(candidates))], quality))
    note = {
        "source": source, "settings": config.model_dump(mode="json"), "quality": quality.model_dump(mode="json"),
        "made_by": artifacts.provenance("anatomy"),
    }  # fmt: skip
    write_anatomy(table, out, note)
    _clear(parts)
    issues = _write_issues(table, out)
    count = {status: sum(row["status"] == status for row in table) for status in (OK, FAILED, MISSING)}
    used = {row["subject"] for row in table if row["used"]}
    regions = len({name for row in table for name in row["volumes"]})
    reasons = _commonest([row["reason"] for row in table if row["status"] == FAILED])
    return AnatomySummary(
        out, source, count[OK], count[FAILED], count[MISSING], len(used), len({scan.subject for scan in scans} - used), regions, reused, issues,
        reasons,
    )  # fmt: skip


def measure_one(i: int, source: str, candidate: Candidate, config: Any, sha256: str, parts: Path) -> tuple[int, dict[str, Any]]:
    """Measure one candidate and write what was found into ``parts``, so that an interrupted run keeps it.

    Args:
        i: its place in the table, handed back.
        source: name on the shelf.
        candidate: what to measure.
        config: the source's settings.
        sha256: of what the figures depend on.
        parts: folder of finished rows.

    Returns:
        The place, and the row's ``volumes``, ``icv_ml``, ``provenance``, ``notes``, ``status`` and ``reason``.
    """
    from ..anatomy import FAILED
    from ..core import artifacts, shelf
    from ..core.errors import InputError

    try:
        found = shelf.load("anatomy", source).measure(candidate, config)
    except InputError as error:
        row = {"status": FAILED, "reason": error.reason}
    except MemoryError:
        return i, {"status": FAILED, "reason": "out of memory: run it with one worker", "inputs_sha256": ""}
    else:
        provenance = {**found.provenance, "absent_ml": found.absent_ml}
        row = {"volumes": dict(found.volumes_ml), "icv_ml": found.icv_ml, "provenance": provenance, "notes": list(found.notes)}
    if not candidate.given:  # what stands in a table is read again faster than it is kept
        artifacts.write_json(parts / f"{sha256}.json", row)
    return i, row


def _candidates(module: Any, scans: list[Any], files: Path | None, config: Any) -> list[Any]:
    """The source's candidates; scans that the index calls bad are failed with its reason, and never measured."""
    from dataclasses import replace

    from ..anatomy import FAILED
    from ..core.records import BAD

    bad = {scan.scan: "; ".join(scan.reasons) for scan in scans if scan.status == BAD}
    found = module.find(scans, files, config)
    return [
        replace(candidate, status=FAILED, reason=f"the index calls the scan bad: {bad[candidate.scan]}")
        if candidate.scan in bad
        else candidate
        for candidate in found
    ]


def _row(candidate: Candidate, source: str, sha256: str, status: str = "ok", reason: str = "") -> dict[str, Any]:
    return {
        "dataset": candidate.dataset, "subject": candidate.subject, "session": candidate.session, "scan": candidate.scan,
        "contrast": candidate.contrast, "contrast_raw": candidate.contrast_raw, "source": source, "path": candidate.path, "status": status,
        "reason": reason, "icv_ml": None, "volumes": {}, "notes": [], "provenance": {}, "inputs_sha256": sha256,
    }  # fmt: skip


def _inputs_sha256(candidate: Candidate, source: str, version: int, config: Any) -> str:
    """The hash of everything that a row's figures depend on: method, settings, files by size and time."""
    from ..core import artifacts

    files = []
    for path in candidate.inputs:
        try:
            stat = Path(path).stat()
            files.append([path, stat.st_size, stat.st_mtime_ns])
        except OSError:
            files.append([path, None, None])
    given = {name: repr(value) for name, value in candidate.given.items()}
    return artifacts.sha256_json(
        [source, version, config.model_dump(mode="json"), files, given, candidate.path, candidate.subject]
    )


KEPT = ("volumes", "icv_ml", "provenance", "notes", "status", "reason")


def _known(out: Path, parts: Path) -> dict[str, dict[str, Any]]:
    """Hash of the inputs -> what was found, from an earlier table and from an interrupted run."""
    from ..anatomy import OK
    from ..core import artifacts
    from ..core.errors import ArtifactError
    from ..data.anatomy import read_rows

    known: dict[str, dict[str, Any]] = {}
    if out.is_file():
        for row in read_rows(out)[0]:
            if row["inputs_sha256"]:
                found = {name: row[name] for name in KEPT}
                known[row["inputs_sha256"]] = {**found, "status": OK, "reason": ""} if row["volumes"] else found
    for path in sorted(parts.glob("[0-9a-f]*.json")):
        try:
            known[path.stem] = artifacts.read_json(path)
        except ArtifactError:
            path.unlink(missing_ok=True)
    return known


def _clear(parts: Path) -> None:
    import shutil

    shutil.rmtree(parts, ignore_errors=True)


def _run(function: Any, arguments: list[tuple[Any, ...]], workers: int, scheduler: str) -> Any:
    """(place, row) of each candidate as it is done."""
    if scheduler == "dask":
        from distributed import Client, as_completed

        from ..engine import clusters

        with clusters.local_cluster(workers) as cluster, Client(cluster) as client:
            futures = [client.submit(function, *args, pure=False) for args in arguments]
            for future in as_completed(futures):
                yield future.result()
    elif workers == 1 or len(arguments) < 4 or arguments[0][2].given:
        for args in arguments:
            yield function(*args)
    else:
        from concurrent.futures import ProcessPoolExecutor, as_completed

        from ..core import processes

        with ProcessPoolExecutor(workers, mp_context=processes.context()) as pool:
            try:
                for future in as_completed([pool.submit(function, *args) for args in arguments]):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _commonest(reasons: list[str], most: int = 5) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(reasons).most_common(most))


def _write_issues(rows: list[dict[str, Any]], out: Path) -> Path | None:
    """The rows that are not ok, with their reasons, as a table people can read; None where there is none."""
    from ..anatomy import OK
    from ..core import artifacts

    path = out.with_name(out.stem + ".issues.tsv")
    told = [row for row in rows if row["status"] != OK]
    if not told:
        path.unlink(missing_ok=True)
        return None
    lines = ["status\tscan\treason\tpath"] + [f"{r['status']}\t{r['scan']}\t{r['reason']}\t{r['path'] or ''}" for r in told]
    artifacts.write_text(path, "\n".join(lines) + "\n")
    return path
