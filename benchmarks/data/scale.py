"""Bookkeeping at scale: preparing, opening and first batch of a store of many tiny scans.

    python benchmarks/data/scale.py [--sessions 300000] [--real] [--folder /dev/shm]

An index of SESSIONS rows that all point at one scan of 10^3 voxels. Without ``--real`` a session's own work is left out (a record made once is
written under each name), so that what is measured is the rest: index, scheduling, processes, files, tables. Prints seconds and peak memory of
the parent, then, in a fresh process, of opening the store and drawing the first batch, with and without a loader process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["BLOSC_NTHREADS"] = "1"

import numpy as np

from neuroprior.core import nifti
from neuroprior.core.geometry import ConformSpec
from neuroprior.core.records import Scan
from neuroprior.core.volume import Volume
from neuroprior.data import building, sessions
from neuroprior.data.index import check_scan, write_index
from neuroprior.data.preparing import PrepareConfig, prepare_session
from neuroprior.data.sessions import session_file


def peak_mb() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MADE: tuple[dict[str, Any], dict[str, sessions.Packed]] | None = None


def stand_in(out: Path, key: str, scans: list[Scan], spec: ConformSpec, config: PrepareConfig) -> str | None:
    """A session file without reading, conforming or compressing anything: one made once, under another name."""
    global MADE
    MADE = MADE or made_once(out.parent / "made", scans[0], spec, config)
    record, packed = MADE
    told = {**record, "key": key, "subject": scans[0].subject, "split": scans[0].split, "columns": {"age": 50 + len(key) % 7}}
    told["scans"] = {name: {**entry, "scan": scans[0].scan} for name, entry in record["scans"].items()}
    sessions.write(session_file(out, key), told, packed)
    return None


def made_once(
    made: Path, scan: Scan, spec: ConformSpec, config: PrepareConfig
) -> tuple[dict[str, Any], dict[str, sessions.Packed]]:
    """The record and the arrays of a session that is prepared for real."""
    prepare_session(made, "made", [scan], spec, config)
    file = session_file(made, "made")
    told, frames = sessions.read(file)
    whole = file.read_bytes()
    arrays = {
        n: sessions.Packed(whole[f.offset : f.offset + f.length], f.header, f.chunks, "", f.scale) for n, f in frames.items()
    }
    return json.loads(told), arrays


def made_index(folder: Path, count: int) -> Path:
    """An index of ``count`` subjects with one scan each."""
    rng = np.random.default_rng(0)
    ball = np.linalg.norm(np.indices((10, 10, 10)) - 4.5, axis=0) < 4
    nifti.write(
        folder / "tiny.nii.gz", Volume((ball * (100 + 10 * rng.random(ball.shape))).astype(np.float32), np.diag([2.0, 2, 2, 1]))
    )
    first = check_scan(Scan("d/0", "d", "d/0", "", "T1w", "T1w", str(folder / "tiny.nii.gz")), voxels=True)
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_index([first], folder / "one.parquet")
    table = pq.read_table(folder / "one.parquet")
    frame = pd.concat([table.to_pandas()] * count, ignore_index=True)
    frame["scan"] = [f"d/sub-{n:06d}_T1w" for n in range(count)]
    frame["subject"] = [f"d/sub-{n:06d}" for n in range(count)]
    frame["split"] = np.where(np.arange(count) % 10 == 0, "val", "train")
    pq.write_table(pa.Table.from_pandas(frame, table.schema, preserve_index=False), folder / "index.parquet")
    return folder / "index.parquet"


def first_batch(store: Path, workers: int) -> None:
    """Open and draw, and say how long each took."""
    import torch  # the package's own imports are not the store's  # noqa: F401

    from neuroprior.data.loading import make_loader
    from neuroprior.data.pairs import PairConfig, PairDataset, collate_pairs
    from neuroprior.data.store import Store

    began, cpu = time.perf_counter(), time.process_time()
    opened = Store.open(store)
    open_s = time.perf_counter() - began
    dataset = PairDataset(opened, ("train",), PairConfig(patch=8), seed=0)
    made_s = time.perf_counter() - began
    loader = make_loader(dataset, batch=8, start_sample=0, n_samples=8, collate=collate_pairs, workers=workers)
    batch: Any = next(iter(loader))
    assert batch["image_a"].shape == (8, 1, 8, 8, 8)
    print(
        f"  {workers} loader processes: open {open_s:.1f} s, with a dataset {made_s:.1f} s, first batch after {time.perf_counter() - began:.1f} s ({time.process_time() - cpu:.1f} CPU-s of this process), peak {peak_mb():.0f} MB"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[30_000, 100_000, 300_000])
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", nargs="*")
    given = parser.parse_args()
    if given.step:
        if given.step[0] == "read":
            first_batch(Path(given.step[1]), int(given.step[2]))
            return
        if not given.real:
            building.prepare_session = stand_in
        folder = Path(given.step[1])
        before = peak_mb()
        began, cpu = time.perf_counter(), time.process_time()
        built = building.build(
            folder / "index.parquet",
            folder / "store",
            ConformSpec(spacing_mm=2.0),
            PrepareConfig(),
            building.Where(workers=given.workers),
        )
        print(f"{built.sessions} sessions: {time.perf_counter() - began:.0f} s, parent {time.process_time() - cpu:.0f} CPU-s, peak {peak_mb():.0f} MB ({before:.0f} before), "
              f"{built.megabytes / built.sessions * 1000:.1f} kB a session")  # fmt: skip
        began = time.perf_counter()
        building.build(
            folder / "index.parquet",
            folder / "store",
            ConformSpec(spacing_mm=2.0),
            PrepareConfig(),
            building.Where(workers=given.workers),
        )
        print(f"  again, nothing to do: {time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.0f}", flush=True)
        return
    for count in given.sessions:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            made_index(Path(name), count)
            options = [*(["--real"] if given.real else []), "--workers", str(given.workers)]
            subprocess.run([sys.executable, __file__, *options, "--step", "build", name], check=True)
            for workers in (0, 1):
                subprocess.run([sys.executable, __file__, "--step", "read", f"{name}/store", str(workers)], check=True)


if __name__ == "__main__":
    main()
