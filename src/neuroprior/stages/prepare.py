"""Prepare: an index in, a store of conformed sessions out."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..core.places import Place, is_address, kept_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareSummary:
    """How a store came out.

    Attributes:
        out: the store: its folder, or its address.
        sessions, scans: in the store.
        left_out: scans of the index that are not in the store; each is a row of ``scans.parquet`` with its reason.
        store_hash: of everything a model can see.
        megabytes: on disk.
        quarantined: sessions that killed their worker or took too long, twice.
        failed: sessions of which nothing could be prepared now, the quarantined ones among them.
    """

    out: Place
    sessions: int
    scans: int
    left_out: int
    store_hash: str
    megabytes: float
    quarantined: int = 0
    failed: int = 0

    @property
    def exit_code(self) -> int:
        """3 where a session failed; a scan that was left out of one that is there is no failure."""
        return 3 if self.failed else 0

    def __str__(self) -> str:
        left = f", {self.left_out} scans left out (reasons in {self.out}/scans.parquet)" if self.left_out else ""
        bad = f", {self.failed} sessions failed" if self.failed else ""
        bad += f" ({self.quarantined} quarantined)" if self.quarantined else ""
        return f"{self.sessions} sessions, {self.scans} scans, {self.megabytes:.0f} MB{left}{bad}: {self.out} [{self.store_hash[:12]}]"


def prepare(
    index: Path,
    out: Place,
    spacing: str = "1.0",
    crop: str = "head",
    normalise: str = "zscore",
    order: int = 3,
    antialias: bool = True,
    dtype: str = "int16",
    mask: str = "head",
    bias: str = "none",
    align: bool = False,
    workers: int | None = None,
    memory: float | None = None,
    timeout: float = 1800,
    scheduler: str | None = None,
    slurm: Path | None = None,
    dry_run: bool = False,
) -> PrepareSummary:
    """Conform every session of an index into a store that training reads box by box.

    Args:
        index: made by neuroprior index.
        out: the store's folder, or an address such as s3://bucket/store, where each session is sent when it is made; an interrupted run there is
            resumed, and several runs may fill one store together.
        spacing: isotropic spacing in mm, or "native", which keeps tiny structures.
        crop: head, nonzero or none.
        normalise: zscore, clamp_zscore_01 or none.
        order: interpolation of intensities, 3 (cubic spline) or 1 (linear).
        antialias: smooth scans that are finer than the spacing to it, so that nothing aliases; without, they are interpolated as they stand.
        dtype: of the voxels on disk, int16 (steps of 1/512 standard deviation), float16 or float32.
        mask: what is normalised over, "head" (found in each scan), "index" (the index's brain masks, from any tool), or a tool's command, such as
            "mri_synthstrip -i {in} -m {out}", that is run on each session's reference.
        bias: none, or n4 to remove slow intensity drifts (needs SimpleITK).
        align: align a session's scans rigidly where their headers do not (needs the extra atlas); what does not help is undone.
        workers: processes; by default as many as cores are granted; 1 with --timeout 0 works in this process.
        memory: MB for all workers together; by default nine tenths of what is free. A session that needs more runs alone.
        timeout: seconds for one session; one that takes longer twice is quarantined with its reason.
        scheduler: address or scheduler file of a running Dask cluster, or "local" for one started here.
        slurm: YAML file with the arguments of a cluster that SLURM starts.
        dry_run: only estimate time and disk, from the headers and a few sessions that are timed.

    Returns:
        The counts and the store's hash; the exit code is 3 where a session could not be prepared.

    Raises:
        InputError: the index holds no usable scan.
        ArtifactError: the store was made by another version or with other settings, or the disk is full.
    """
    from rich.progress import Progress

    from ..core import artifacts
    from ..core.bias import need_n4
    from ..core.config import parse
    from ..core.conforming import ConformSpec
    from ..core.errors import ConfigError
    from ..data.brain_masks import check_command
    from ..data.building import build
    from ..data.foretelling import estimate
    from ..data.preparing import PrepareConfig
    from ..data.remote import Outbox
    from ..engine.pools import Where

    try:
        spacing_mm: float | str = spacing if spacing == "native" else float(spacing)
    except ValueError:
        raise ConfigError(f"cannot read --spacing {spacing!r}", expected="a number of mm, or native") from None
    where = Where(workers, memory, timeout if timeout > 0 else None, scheduler, slurm)
    told = {"spacing_mm": spacing_mm, "crop": crop, "normalise": normalise, "order": order, "antialias": antialias}
    spec = parse(ConformSpec, told)
    config = parse(PrepareConfig, {"dtype": dtype, "mask": mask, "bias": bias, "align": align})
    if config.mask not in ("head", "index"):
        check_command(config.mask)
    if config.bias == "n4":
        need_n4("--bias n4")
    folder = kept_for(str(out)) / "made" if is_address(out) else Path(out)
    artifacts.require_place(folder, "store")
    if folder != out and where.on_a_cluster and not os.environ.get("NEUROPRIOR_CACHE"):
        raise ConfigError(
            "the machines of a cluster must all see the folder in which the store is made before it is sent", got=str(folder),
            next_step="set NEUROPRIOR_CACHE to a folder on a disk that they share",
        )  # fmt: skip
    if dry_run:
        told = estimate(index, spec, config, where, folder)
        logger.info(
            "dry run: %d sessions, %d scans: about %.0f CPU-seconds (%.0f s with the workers asked for) and %.0f MB; the largest session "
            "needs about %.0f MB of memory. Timed %d sessions.",
            told.sessions, told.scans, told.cpu_seconds, told.wall_seconds, told.megabytes, told.memory_mb, told.timed,
        )  # fmt: skip
        free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free / 1e6
        if told.megabytes > free:
            logger.warning(
                "the store needs about %.0f MB, and %.0f MB are free where it is to lie: choose another --out",
                told.megabytes,
                free,
            )
        return PrepareSummary(out, told.sessions, told.scans, 0, "", told.megabytes)
    with Progress(transient=True) as bars:
        bar = bars.add_task("preparing sessions", total=None)

        def told_of(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        if folder == out:
            built = build(index, folder, spec, config, where, progress=told_of)
        else:
            logger.info("%s is made in %s and sent from there", out, folder)
            with Outbox(folder, str(out)) as outbox:
                built = build(index, folder, spec, config, where, progress=told_of)
                outbox.finish()
    counts = (built.sessions, built.scans, built.left_out, built.store_hash, built.megabytes, built.quarantined, built.failed)
    return PrepareSummary(out, *counts)
