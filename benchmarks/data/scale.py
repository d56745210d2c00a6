"""Bookkeeping at scale: preparing, opening and first batch of a store of many tiny scans.

    python benchmarks/data/scale.py [--sessions 300000] [--real] [--folder /dev/shm]
    python benchmarks/data/scale.py --made [--train] [--sessions 100 10000 100000 300000]

An index of SESSIONS rows that all point at one scan of 10^3 voxels. Without ``--real`` a session's own work is left out (a record made once is
written under each name), so that what is measured is the rest: index, scheduling, processes, files, tables. Prints seconds and peak memory of
the parent, then, in a fresh process, of opening the store and drawing the first batch, with and without a loader process.

With ``--made`` nothing is built: one session of two scans of 96^3 is prepared and linked under SESSIONS names, with a table of as many rows. Prints how long
opening, a dataset, and the first batch take in a fresh process, and how many pairs of 64^3 a second are drawn after that. With ``--made --train`` it is
``neuroprior pretrain --recipe tiny`` that is run on it: seconds from the command to its first step, and steps a second after that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["BLOSC_NTHREADS"] = "1"

import numpy as np

from neuroprior.core import artifacts, nifti
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.peak_memory import peak_mb
from neuroprior.core.records import Scan
from neuroprior.core.volume import Volume
from neuroprior.data import building, sessions
from neuroprior.data import table as table_module
from neuroprior.data.index import check_scan, write_index
from neuroprior.data.preparing import PrepareConfig, prepare_session
from neuroprior.data.sessions import session_file
from neuroprior.data.store import Store, describe_store

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_index([first], folder / "one.parquet")
    table = pq.read_table(folder / "one.parquet")
    frame = table.to_pandas().loc[np.zeros(count, int)].reset_index(drop=True)
    frame["scan"] = [f"d/sub-{n:06d}_T1w" for n in range(count)]
    frame["subject"] = [f"d/sub-{n:06d}" for n in range(count)]
    frame["split"] = np.where(np.arange(count) % 10 == 0, "val", "train")
    pq.write_table(pa.Table.from_pandas(frame, table.schema, preserve_index=False), folder / "index.parquet")
    return folder / "index.parquet"


def made_store(folder: Path, count: int) -> Path:
    """A finished store of ``count`` sessions, all of them links to a few files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, out = np.random.default_rng(0), folder / "store"
    ball = np.linalg.norm(np.indices((96, 96, 96)) - 47.5, axis=0) < 46
    scans = []
    for contrast in ("T1w", "T2w"):
        path = folder / f"{contrast}.nii.gz"
        nifti.write(path, Volume((ball * (100 + 10 * rng.random(ball.shape))).astype(np.float32), np.eye(4)))
        scans.append(check_scan(Scan(f"d/{contrast}", "d", "d/0", "", contrast, contrast, str(path)), voxels=True))
    spec, config = ConformSpec(spacing_mm=1.0), PrepareConfig()
    reason = prepare_session(out, "d/0", scans, spec, config)
    assert reason is None, reason
    table_module.write_table(out, ["d/0"])
    names = [f"d/sub-{number:06d}" for number in range(count)]
    for number, key in enumerate(names):
        target = session_file(out, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if number % 30_000 == 0:
            source = target
            shutil.copyfile(session_file(out, "d/0"), source)
        else:
            os.link(source, target)
    one = pq.read_table(out / "sessions.parquet")
    columns = {name: pa.repeat(one[name][0], count) for name in one.column_names}
    ages, places = rng.integers(18, 90, count), rng.integers(0, 40, count)
    columns |= {
        "key": pa.array(names), "subject": pa.array(names),
        "split": pa.array(np.where(np.arange(count) % 10 == 0, "val", "train").tolist()),
        "columns": pa.array([json.dumps({"age": int(a), "site": f"s{b}"}) for a, b in zip(ages, places, strict=True)]),
    }  # fmt: skip
    pq.write_table(
        pa.table(columns).select(one.column_names).cast(one.schema),
        out / "sessions.parquet",
        compression="zstd",
        row_group_size=2000,
    )
    artifacts.write_json(out / "store.json", describe_store(spec, config.dtype, {}))
    artifacts.mark_complete(out, {"store_hash": "made"})
    return out


def read_made(store: Path) -> None:
    """Open a made store, draw, and say how long each took and how many pairs a second are drawn."""
    import torch  # the package's own imports are not the store's  # noqa: F401

    from neuroprior.data.pairs import PairConfig, PairDataset, collate_pairs
    from neuroprior.data.store import Store

    began, cpu = time.perf_counter(), time.process_time()
    opened = Store.open(store)
    told = [f"open {time.perf_counter() - began:.2f} s"]
    dataset = PairDataset(opened, ("train",), PairConfig(patch=64), seed=0)
    told.append(f"with a dataset {time.perf_counter() - began:.2f} s")
    collate_pairs([dataset[number] for number in range(8)])
    told.append(f"first batch of 8 after {time.perf_counter() - began:.2f} s ({time.process_time() - cpu:.2f} CPU-s)")
    cpu = time.process_time()
    for number in range(8, 408):
        dataset[number]
    told.append(
        f"then {400 / (time.process_time() - cpu):.0f} pairs a CPU-s, peak {peak_mb():.0f} MB, load {os.getloadavg()[0]:.0f}"
    )
    print(f"| {len(opened.sessions)} | " + " | ".join(told) + " |", flush=True)


def train_made(store: Path, steps: int = 60) -> None:
    """Pretrain on a made store, in a process of its own, and say when the first step was taken and how many a second came after it."""
    run = store.parent / "run"
    plain = [f"training.{name}" for name in (f"steps={steps}", "log_every=1", "validate_every=null", "panels_every=null")]
    options = [part for setting in plain for part in ("--set", setting)]
    command = [sys.executable, "-m", "neuroprior", "pretrain", str(store), "--recipe", "tiny", "--out", str(run), *options]
    began, first, trace = time.perf_counter(), None, run / "events.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        time.sleep(0.02)
        if first is None and trace.exists() and '"event": "step"' in trace.read_text():
            first = time.perf_counter() - began
    if process.returncode or first is None:
        raise SystemExit(f"pretrain ended with {process.returncode}: {process.stderr.read() if process.stderr else ''}")
    ledger = artifacts.read_json(run / "ledger.json")
    loop = ledger["wall_seconds"] - ledger["validation_seconds"] - ledger["checkpoint_seconds"]
    count = len(Store.open(store).sessions)
    print(
        f"| {count} | first step after {first:.1f} s | {steps / loop:.2f} steps a second | {ledger['cpu_seconds'] / steps:.3f} CPU-s a step | "
        f"wait for data {ledger['data_wait_seconds'] / loop:.1%} | peak {ledger['peak_memory_mb']:.0f} MB | load {os.getloadavg()[0]:.0f} |",
        flush=True,
    )


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
    parser.add_argument("--made", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", nargs="*")
    given = parser.parse_args()
    if given.made and not given.step:
        for count in given.sessions:
            with tempfile.TemporaryDirectory(dir=given.folder) as name:
                made_store(Path(name), count)
                if given.train:
                    train_made(Path(name) / "store")
                else:
                    subprocess.run([sys.executable, __file__, "--made", "--step", f"{name}/store"], check=True)
        return
    if given.made:
        read_made(Path(given.step[0]))
        return
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
