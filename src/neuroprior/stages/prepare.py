"""Prepare: an index in, a store of conformed sessions out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

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
        quarantined: sessions that killed their worker or took too long, twice.
    """

    out: Path
    sessions: int
    scans: int
    left_out: int
    store_hash: str
    megabytes: float
    quarantined: int = 0

    def __str__(self) -> str:
        left = f", {self.left_out} scans left out (reasons in {self.out / 'scans.parquet'})" if self.left_out else ""
        bad = f", {self.quarantined} sessions quarantined" if self.quarantined else ""
        return f"{self.sessions} sessions, {self.scans} scans, {self.megabytes:.0f} MB{left}{bad}: {self.out} [{self.store_hash[:12]}]"


def prepare(
    index: Path,
    out: Path,
    spacing: str = "1.0",
    crop: str = "head",
    normalise: str = "zscore",
    order: int = 3,
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
        out: the store's folder; an interrupted run there is resumed, and several runs may fill one store together.
        spacing: isotropic spacing in mm, or "native", which keeps tiny structures.
        crop: head, nonzero or none.
        normalise: zscore, clamp_zscore_01 or none.
        order: interpolation of intensities, 3 (cubic spline) or 1 (linear).
        dtype: of the voxels on disk, int16 (steps of 1/512 standard deviation), float16 or float32.
        mask: what is normalised over, "head" (found in each scan) or "index" (the index's brain masks, from any tool).
        bias: none, or n4 to remove slow intensity drifts (needs SimpleITK).
        align: align a session's scans rigidly where their headers do not (needs the extra atlas); what does not help is undone.
        workers: processes; by default as many as cores are granted; 1 with --timeout 0 works in this process.
        memory: MB for all workers together; by default nine tenths of what is free. A session that needs more runs alone.
        timeout: seconds for one session; one that takes longer twice is quarantined with its reason.
        scheduler: address or scheduler file of a running Dask cluster, or "local" for one started here.
        slurm: YAML file with the arguments of a cluster that SLURM starts.
        dry_run: only estimate time and disk, from the headers and a few sessions that are timed.

    Returns:
        The counts and the store's hash.

    Raises:
        InputError: the index holds no usable scan.
        ArtifactError: the store was made by another version or with other settings, or the disk is full.
    """
    from rich.progress import Progress

    from ..core.config import parse
    from ..core.conforming import ConformSpec
    from ..core.errors import ConfigError
    from ..data.building import Where, build, estimate
    from ..data.preparing import PrepareConfig, need_n4

    try:
        spacing_mm: float | str = spacing if spacing == "native" else float(spacing)
    except ValueError:
        raise ConfigError(f"cannot read --spacing {spacing!r}", expected="a number of mm, or native") from None
    if scheduler is not None and slurm is not None:
        raise ConfigError("both --scheduler and --slurm are given", expected="one of them")
    spec = parse(ConformSpec, {"spacing_mm": spacing_mm, "crop": crop, "normalise": normalise, "order": order})
    config = parse(PrepareConfig, {"dtype": dtype, "mask": mask, "bias": bias, "align": align})
    if config.bias == "n4":
        need_n4()
    where = Where(workers, memory, timeout if timeout > 0 else None, scheduler, slurm)
    if dry_run:
        told = estimate(index, spec, config, where)
        logger.info(
            "dry run: %d sessions, %d scans: about %.0f CPU-seconds (%.0f s with the workers asked for) and %.0f MB; the largest session "
            "needs about %.0f MB of memory. Timed %d sessions.",
            told.sessions, told.scans, told.cpu_seconds, told.wall_seconds, told.megabytes, told.memory_mb, told.timed,
        )  # fmt: skip
        return PrepareSummary(out, told.sessions, told.scans, 0, "", told.megabytes)
    with Progress(transient=True) as bars:
        bar = bars.add_task("preparing sessions", total=None)
        built = build(index, out, spec, config, where, progress=lambda done, total: bars.update(bar, completed=done, total=total))
    return PrepareSummary(out, built.sessions, built.scans, built.left_out, built.store_hash, built.megabytes, built.quarantined)
