"""Whether the dry run of ``prepare`` tells the time and the disk that preparing then takes: real scans and synthetic heads.

    python benchmarks/data/dryrun.py [--data ../shared/data] [--sets ixi-2mm ds002748 ...]

Processor time and bytes, foretold and taken, a line a data set; asked: within 25 %.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["BLOSC_NTHREADS"] = "1"

from compare import dry_run

from neuroprior.stages.index import index
from neuroprior.stages.synthesise import synthesise

SETS = ("openms-long", "openms-cross", "stroke-cstar", "ixi-2mm", "ds002748")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data")
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--subjects", type=int, default=20, help="of the synthetic heads")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesise(folder / "heads", subjects=given.subjects, spacing=2.0, contrasts="T1w,T2w,FLAIR", workers=1)
        sources = {"synthetic": [folder / "heads"], **{one: [given.data / one] for one in given.sets}}
        if len(given.sets) > 1:
            sources["together"] = [given.data / one for one in given.sets]
        for name, paths in sources.items():
            index(paths, folder / f"{name}.parquet", workers=1)
            print(
                f"{name}: {dry_run(folder / f'{name}.parquet', folder / f'{name}-store')}, load {os.getloadavg()[0]:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
