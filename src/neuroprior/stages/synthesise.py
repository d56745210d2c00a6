"""Synthesise: a family of synthetic heads as a BIDS dataset, with the exact truth beside every scan."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SynthesisSummary:
    """What a run made.

    Attributes:
        out: the dataset's folder.
        made, kept: subjects written now, and found complete from before.
        seconds: how long it took.
    """

    out: Path
    made: int
    kept: int
    seconds: float

    def __str__(self) -> str:
        kept = f", {self.kept} kept from before" if self.kept else ""
        return f"{self.made} synthetic subjects made in {self.seconds:.0f} s{kept}: {self.out}"


def synthesise(
    out: Path = Path("synthetic"),
    subjects: int = 30,
    seed: int = 0,
    spacing: float = 2.0,
    contrasts: str = "T1w,T2w,FLAIR",
    sessions: int = 1,
    travelling: bool = False,
    shortcut: str | None = None,
    skull: bool = True,
    healthy: float = 0.5,
    lesions: str = "wmh,infarct,tumour",
    age_from: float = 20.0,
    age_to: float = 85.0,
    workers: int | None = None,
    progress: bool = True,
) -> SynthesisSummary:
    """Make a family of synthetic heads: a BIDS dataset with exact labels, lesions and volumes.

    A subject depends on the settings, the seed and its number, and on nothing else, to the byte; a run that was cut off
    goes on where it stopped, and more subjects can be added later.

    Args:
        out: new folder, or one that an earlier run with the same settings began.
        subjects: how many.
        seed: of every draw.
        spacing: of each session's reference scan, in mm; other contrasts may have thicker slices.
        contrasts: comma-separated, of T1w, T1ce, T2w, FLAIR, PDw, DWI, ADC, SWI.
        sessions: time points per subject, one to three years apart; brains age, lesions grow.
        travelling: scan every time point on every scanner.
        shortcut: build in a confound on purpose: site, order, fov, header, spacing, background, skull or name.
        skull: keep skull, scalp and face; otherwise every scan is stripped along an outline of its own.
        healthy: fraction of subjects without a lesion.
        lesions: comma-separated kinds that the others have, of wmh, infarct, tumour.
        age_from: youngest age in years.
        age_to: oldest age in years.
        workers: processes; by default the number of usable cores, fewer for small families.
        progress: show a progress bar.

    Returns:
        How many subjects were made and kept.

    Raises:
        ConfigError: a setting is unknown or impossible.
        ArtifactError: the folder holds something else, or the disk is full.
    """
    import os
    import time

    from ..core import artifacts
    from ..core.config import parse
    from ..core.errors import ConfigError
    from ..readers._heads.options import Options
    from ..readers._heads.person import person
    from ..readers._heads.writing import begin, finish, is_written

    artifacts.require_place(out, "family")
    if subjects < 1:
        raise ConfigError("a family needs at least one subject", expected="subjects of 1 or more", got=subjects)
    options = parse(
        Options,
        {
            "seed": seed,
            "spacing_mm": spacing,
            "contrasts": tuple(name.strip() for name in contrasts.split(",") if name.strip()),
            "sessions": sessions,
            "travelling": travelling,
            "skull": skull,
            "age_range": (age_from, age_to),
            "healthy": healthy,
            "lesions": tuple(name.strip() for name in lesions.split(",") if name.strip()),
            "shortcut": shortcut,
            "subjects_for_order": subjects if shortcut == "order" else None,
        },
    )
    started = time.monotonic()
    begin(out, options)
    missing = [n for n in range(1, subjects + 1) if not is_written(out, person(options, n).name)]
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(cores, len(missing) // 5)  # a process takes as long to start as a few subjects to make
    _write_all(out, options, missing, max(1, min(workers, len(missing))), progress)
    names = finish(out, options)
    logger.info("%d subjects in %s", len(names), out)
    return SynthesisSummary(out, len(missing), subjects - len(missing), time.monotonic() - started)


def _write_all(out: Path, options: object, numbers: list[int], workers: int, progress: bool) -> None:
    from concurrent.futures import ProcessPoolExecutor, as_completed

    from rich.progress import track

    from ..core import processes
    from ..readers._heads.options import Options
    from ..readers._heads.writing import write_subject

    assert isinstance(options, Options)
    bar = {"description": "synthetic heads", "total": len(numbers), "disable": not progress}
    if workers == 1:
        for number in track(numbers, **bar):
            write_subject(out, options, number)
        return
    # Fresh processes: forking one that has threads (torch, BLAS) can hang.
    with ProcessPoolExecutor(workers, mp_context=processes.context()) as pool:
        futures = [pool.submit(write_subject, out, options, number) for number in numbers]
        try:
            for future in track(as_completed(futures), **bar):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
