"""Prepare: an index in, a store of conformed sessions out."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.records import Scan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareSummary:
    """How a store came out.

    Attributes:
        out: the store.
        sessions, scans: in the store.
        left_out: scans of the index that are not in the store; each is a row of ``scans.parquet`` with its reason.
        store_hash: of everything a model can see.
        megabytes: on disk.
    """

    out: Path
    sessions: int
    scans: int
    left_out: int
    store_hash: str
    megabytes: float

    def __str__(self) -> str:
        left = f", {self.left_out} scans left out (reasons in {self.out / 'scans.parquet'})" if self.left_out else ""
        return f"{self.sessions} sessions, {self.scans} scans, {self.megabytes:.0f} MB{left}: {self.out} [{self.store_hash[:12]}]"


def prepare(
    index: Path,
    out: Path,
    spacing: str = "1.0",
    crop: str = "head",
    normalise: str = "zscore",
    dtype: str = "float16",
    workers: int | None = None,
    scheduler: str = "processes",
    dry_run: bool = False,
) -> PrepareSummary:
    """Conform every session of an index into a store that training reads box by box.

    Args:
        index: made by neuroprior index.
        out: the store's folder; an interrupted run there is resumed.
        spacing: isotropic spacing in mm, or "native".
        crop: head, nonzero or none.
        normalise: zscore, clamp_zscore_01 or none.
        dtype: of the voxels on disk, float16 or float32.
        workers: processes; by default as many as cores are granted.
        scheduler: "processes", or "dask" for a local Dask cluster.
        dry_run: only estimate time and disk.

    Returns:
        The counts and the store's hash.

    Raises:
        InputError: the index holds no usable scan.
        ArtifactError: the store was made by another version or with other settings, or the disk is full.
    """
    from rich.progress import Progress

    from ..core import artifacts
    from ..core.config import parse
    from ..core.errors import ArtifactError, ConfigError, InputError
    from ..core.geometry import ConformSpec
    from ..core.records import BAD
    from ..data.index import check_leakage, read_index
    from ..data.preparing import group_sessions, prepare_session
    from ..data.store import describe_store, hash_sessions, key_folder, read_description

    if dtype not in ("float16", "float32"):
        raise ConfigError(f"unknown --dtype {dtype!r}", expected="float16 or float32")
    if scheduler not in ("processes", "dask"):
        raise ConfigError(f"unknown --scheduler {scheduler!r}", expected="processes or dask")
    try:
        spacing_mm: float | str = spacing if spacing == "native" else float(spacing)
    except ValueError:
        raise ConfigError(f"cannot read --spacing {spacing!r}", expected="a number of mm, or native") from None
    spec = parse(ConformSpec, {"spacing_mm": spacing_mm, "crop": crop, "normalise": normalise})
    scans = read_index(index)
    check_leakage(scans)
    groups = group_sessions(scans)
    if not groups:
        raise InputError(
            "the index holds no usable scan", file=index, got=f"{len(scans)} rows, {sum(s.status == BAD for s in scans)} of them bad",
            next_step="read the reasons in the index's issues table",
        )  # fmt: skip
    description = describe_store(spec, dtype)
    if (out / "store.json").exists():
        found = read_description(out)
        if {**found, "neuroprior": ""} != {**description, "neuroprior": ""}:
            raise ArtifactError(
                "another store lies here, prepared with other settings", file=out, expected=description["spec"], got=found["spec"],
                next_step="choose another --out",
            )  # fmt: skip
    workers = workers or len(os.sched_getaffinity(0))
    todo = {key: rows for key, rows in groups.items() if not (key_folder(out, key) / "session.json").is_file()}
    if dry_run:
        _estimate(groups, spec.spacing_mm, dtype, workers)
        return PrepareSummary(out, len(groups), sum(len(rows) for rows in groups.values()), 0, "", 0.0)
    out.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(out / "store.json", description)
    (out / artifacts.MARKER).unlink(missing_ok=True)
    if len(todo) < len(groups):
        logger.info("resuming: %d of %d sessions are there", len(groups) - len(todo), len(groups))

    failures: dict[str, str] = {}
    arguments = [(out, key, rows, spec, dtype) for key, rows in todo.items()]
    with Progress(disable=len(arguments) < 2) as progress:
        bar = progress.add_task("preparing sessions", total=len(arguments))
        for key, reason in _run(prepare_session, arguments, workers, scheduler):
            if reason is not None:
                failures[key] = reason
                logger.error("%s: %s", key, reason)
            progress.advance(bar)

    artifacts.sweep(out)
    wanted = {key_folder(out, key) for key in groups}
    entries = []
    for marker in sorted((out / "sessions").glob("*/*/session.json")):
        if marker.parent not in wanted:
            raise ArtifactError(
                "the store holds a session that is not in the index",
                file=marker.parent,
                next_step="choose another --out for this index",
            )
        entries.append(artifacts.read_json(marker))
    if not entries:
        raise InputError("no session could be prepared", file=index, got="; ".join(sorted(set(failures.values()))[:3]))
    told = [f"{entry['key']}: {note}" for entry in entries for note in entry["notes"]]
    for text in told[:20]:
        logger.warning(text)
    if len(told) > 20:
        logger.warning("... and %d more notes in the sessions' session.json", len(told) - 20)
    rows = _scan_rows(scans, entries, failures)
    _write_rows(out, rows)
    store_hash = hash_sessions(description["spec"], dtype, entries)
    kept = sum(len(entry["scans"]) for entry in entries)
    artifacts.mark_complete(
        out, {"store_hash": store_hash, "sessions": len(entries), "scans": kept, "made_by": artifacts.provenance("prepare")}
    )
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    return PrepareSummary(out, len(entries), kept, sum(row["status"] == BAD for row in rows), store_hash, megabytes)


def _run(function: Any, arguments: list[tuple[Any, ...]], workers: int, scheduler: str) -> Any:
    """(key, reason or None) of each session as it finishes; an error that concerns all sessions is raised."""
    if scheduler == "dask":
        from distributed import Client, LocalCluster, as_completed

        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
            futures = [client.submit(function, *args, pure=False) for args in arguments]
            for future in as_completed(futures):
                yield future.result()
    elif workers == 1 or len(arguments) < 2:
        for args in arguments:
            yield function(*args)
    else:
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from multiprocessing import get_context

        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            try:
                for future in as_completed([pool.submit(function, *args) for args in arguments]):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _estimate(groups: dict[str, list[Scan]], spacing: float | str, dtype: str, workers: int) -> None:
    """Log how long it may take and how much disk it may need, from the headers alone."""
    voxels_in = voxels_out = 0.0
    for rows in groups.values():
        for scan in rows:
            x, y, z = scan.shape or (0, 0, 0)
            a, b, c = scan.spacing_mm or (1.0, 1.0, 1.0)
            voxels_in += x * y * z
            voxels_out += 0.5 * x * y * z * (1.0 if spacing == "native" else a * b * c / float(spacing) ** 3)
    seconds = (voxels_in * 4e-8 + voxels_out * 1.5e-7) / workers
    logger.info(
        "dry run: %d sessions, %d scans, about %.0f s with %d processes and %.0f MB",
        len(groups), sum(len(rows) for rows in groups.values()), seconds, workers,
        voxels_out * (2 if dtype == "float16" else 4) * 0.6 / 1e6,
    )  # fmt: skip


def _scan_rows(scans: list[Scan], entries: list[dict[str, Any]], failures: dict[str, str]) -> list[dict[str, Any]]:
    """A row a scan of the index: where it went, or why it did not."""
    from ..core.contrasts import UNKNOWN
    from ..core.records import BAD
    from ..data.preparing import session_key

    placed = {entry["scan"]: (e["key"], name) for e in entries for name, entry in e["scans"].items()}
    refused = {scan: reason for e in entries for scan, reason in e["refused"].items()}
    rows = []
    for scan in scans:
        key, name = placed.get(scan.scan, (session_key(scan), None))
        status, reason = scan.status, "; ".join(scan.reasons)
        if name is None:
            status = BAD
            reason = refused.get(scan.scan) or failures.get(key) or reason
            if scan.contrast == UNKNOWN and not reason:
                reason = f"unknown contrast {scan.contrast_raw!r}"
        rows.append(
            {"scan": scan.scan, "subject": scan.subject, "contrast": scan.contrast, "key": key, "name": name, "split": scan.split,
             "status": status, "reason": reason, "path": scan.path}
        )  # fmt: skip
    return rows


def _write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    from ..core import artifacts

    with artifacts.atomic(out / "scans.parquet") as temporary:
        pd.DataFrame(rows).to_parquet(temporary, index=False)
