"""How long a synthetic subject takes: seconds in memory and written, at several spacings, one core.

Usage: python benchmarks/synthetic.py [--spacings 2 1] [--contrasts T1w,T2w,FLAIR,DWI] [--subjects 4]

Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from neuroprior.readers._heads.options import Options
from neuroprior.readers._heads.subject import make_subject
from neuroprior.readers._heads.template import template
from neuroprior.readers._heads.writing import begin, write_subject


def measure(spacing: float, contrasts: tuple[str, ...], subjects: int) -> dict[str, float]:
    options = Options(spacing_mm=spacing, contrasts=contrasts)
    started = time.perf_counter()
    template(spacing)
    prepared = time.perf_counter() - started
    started = time.perf_counter()
    for number in range(1, subjects + 1):
        make_subject(options, number)
    made = (time.perf_counter() - started) / subjects
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "family"
        begin(out, options)
        started = time.perf_counter()
        for number in range(1, subjects + 1):
            write_subject(out, options, number)
        written = (time.perf_counter() - started) / subjects
    return {"spacing_mm": spacing, "template_s": prepared, "make_s": made, "make_and_write_s": written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spacings", nargs="+", type=float, default=[2.0, 1.0])
    parser.add_argument("--contrasts", default="T1w,T2w,FLAIR,DWI")
    parser.add_argument("--subjects", type=int, default=4)
    given = parser.parse_args()
    rows = [measure(spacing, tuple(given.contrasts.split(",")), given.subjects) for spacing in given.spacings]
    print(f"{given.contrasts}, mean of {given.subjects} subjects")
    print("spacing  template once  in memory  written")
    for row in rows:
        print(f"{row['spacing_mm']:4.1f} mm {row['template_s']:12.1f} s {row['make_s']:8.2f} s {row['make_and_write_s']:6.2f} s")
    print(json.dumps({"benchmark": "synthetic", "contrasts": given.contrasts, "rows": rows}))


if __name__ == "__main__":
    main()
