"""Anatomy: an index in, one table of regional volumes out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..anatomy import Candidate
    from ..engine.pools import Where

logger = logging.getLogger(__name__)

FEW = 4
"""Fewer scans than this are measured in this process: starting others takes longer."""


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
    timeout: float = 3600,
    scheduler: str | None = None,
    slurm: Path | None = None,
    dry_run: bool = False,
) -> AnatomySummary:
    """Collect every subject's regional volumes: the prior that the anatomy half is taught.

    Args:
        index: made by neuroprior index.
        source: name on the anatomy shelf: labelmap, synthseg, freesurfer or atlas.
        out: the table; rows of unchanged files are kept, an interrupted run is resumed.
        files: where a tool left its results: SynthSeg's table or a folder of its maps, FreeSurfer's SUBJECTS_DIR, a folder of label maps.
        set: a setting of the source (units=ml) or of the checks (quality.icv_low_ml=600); may be given several times.
        workers: processes; by default as many as cores are granted; 1 works in this process, as do fewer than 4 scans.
        timeout: seconds for one scan in a process of its own; one that takes longer twice is failed with its reason. 0 for none.
        scheduler: address or scheduler file of a running Dask cluster, or "local" for one started here.
        slurm: YAML file with the arguments of a cluster that SLURM starts.
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
    from ..core.errors import InputError
    from ..data.anatomy import Quality, choose, judge, write_anatomy
    from ..data.index import read_index
    from ..engine.pools import Where

    where = Where(workers, None, timeout if timeout > 0 else None, scheduler, slurm)
    module = shelf.load("anatomy", source)
    settings = override({}, set or [])
    quality = parse(Quality, settings.pop("quality", {}))
    config = parse(module.Config, settings)
    scans = read_index(index)
    if not scans:
        raise InputError("the index holds no scan", file=index)
    candidates = _candidates(module, scans, files, config)
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
    with Progress(disable=len(todo) < 2) as progress:
        bar = progress.add_task("measuring anatomy", total=len(todo))
        jobs = {i: (source, candidates[i], config, hashes[i], parts.absolute()) for i in todo}
        for i, found in _run(jobs, where) if jobs else ():
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


def measure_one(source: str, candidate: Candidate, config: Any, sha256: str, parts: Path) -> dict[str, Any]:
    """Measure one candidate and write what was found into ``parts``, so that an interrupted run keeps it.

    Args:
        source: name on the shelf.
        candidate: what to measure.
        config: the source's settings.
        sha256: of what the figures depend on.
        parts: folder of finished rows, seen by all machines.

    Returns:
        The row's ``volumes``, ``icv_ml``, ``provenance``, ``notes``, ``status`` and ``reason``.
    """
    from ..anatomy import FAILED
    from ..core import artifacts, shelf
    from ..core.errors import InputError

    try:
        found = shelf.load("anatomy", source).measure(candidate, config)
    except InputError as error:
        row = {"status": FAILED, "reason": error.reason}
    else:
        provenance = {**found.provenance, "absent_ml": found.absent_ml}
        row = {"volumes": dict(found.volumes_ml), "icv_ml": found.icv_ml, "provenance": provenance, "notes": list(found.notes)}
    if not candidate.given:  # what stands in a table is read again faster than it is kept
        artifacts.write_json(parts / f"{sha256}.json", row)
    return row


def _candidates(module: Any, scans: list[Any], files: Path | None, config: Any) -> list[Any]:
    """The source's candidates; scans that the index calls bad are failed with its reason, and never measured."""
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


def _run(arguments: dict[int, tuple[Any, ...]], where: Where) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, row) of each candidate as it is done. One that killed its worker, hung or met a bug is failed, and tried again by the next command."""
    from ..anatomy import FAILED
    from ..engine import jobs, pools
    from ..engine.pools import Where

    given = any(candidate.given for _, candidate, *_ in arguments.values())
    few = where.scheduler is None and where.slurm is None and (where.workers == 1 or len(arguments) < FEW)
    if given or few:
        where = Where(workers=1)
    pool, budget = pools.pool(measure_one, where)
    names = {f"{candidate.scan or candidate.path} ({i + 1})": i for i, (_, candidate, *_) in arguments.items()}
    for outcome in jobs.run(pool, (jobs.Job(name, arguments[i]) for name, i in names.items()), budget):
        failed = {"status": FAILED, "reason": outcome.error, "inputs_sha256": ""}
        yield names[outcome.name], failed if outcome.error is not None else outcome.value


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
