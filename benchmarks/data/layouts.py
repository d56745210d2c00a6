"""How a scan's bytes are best laid out: chunks, blocks, codec and shuffle, for boxes of 64^3, 96^3 and 160^3.

    python benchmarks/data/layouts.py [--data ../shared/data/openms-long] [--scans 8] [--repeats 24]

Each scan is prepared once as ``prepare`` would, then packed in every layout into session files of its own, and random boxes are read through the store's own
reader, the layouts in turns. Prints a row a layout, and keeps it in ``benchmarks/results/layouts.jsonl``. The row that the code has is marked.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["BLOSC_NTHREADS"] = "1"

import blosc2
import numpy as np

from neuroprior.core import artifacts
from neuroprior.core.conforming import ConformSpec
from neuroprior.data import building, sessions
from neuroprior.data.preparing import PrepareConfig
from neuroprior.data.store import Store
from neuroprior.stages.index import index

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

SIZES = (64, 96, 160)
SHUFFLE, BITS = blosc2.Filter.SHUFFLE, blosc2.Filter.BITSHUFFLE
SPLIT, WHOLE = blosc2.SplitMode.ALWAYS_SPLIT, blosc2.SplitMode.FORWARD_COMPAT_SPLIT
HC, LZ4, ZSTD = blosc2.Codec.LZ4HC, blosc2.Codec.LZ4, blosc2.Codec.ZSTD
Shape = tuple[int, int, int]
Layout = tuple[Shape, Shape, blosc2.Codec, int, blosc2.Filter, blosc2.SplitMode]


def cube(edge: int) -> Shape:
    """Voxels of a cube."""
    return edge, edge, edge


LAYOUTS: dict[str, Layout] = {
    "as in the code": (sessions.CHUNK, sessions.BLOCK, HC, sessions.LEVEL, SHUFFLE, SPLIT),
    "as it was": (cube(32), cube(16), HC, 4, SHUFFLE, WHOLE),
    "bytes not split": (sessions.CHUNK, sessions.BLOCK, HC, sessions.LEVEL, SHUFFLE, WHOLE),
    "LZ4HC 4": (sessions.CHUNK, sessions.BLOCK, HC, 4, SHUFFLE, SPLIT),
    "LZ4HC 5": (sessions.CHUNK, sessions.BLOCK, HC, 5, SHUFFLE, SPLIT),
    "LZ4HC 9": (sessions.CHUNK, sessions.BLOCK, HC, 9, SHUFFLE, SPLIT),
    "16 x 16 x 32": (cube(32), (16, 16, 32), HC, sessions.LEVEL, SHUFFLE, SPLIT),
    "cubes of 24": (cube(24), cube(24), HC, sessions.LEVEL, SHUFFLE, SPLIT),
    "cubes of 32": (cube(32), cube(32), HC, sessions.LEVEL, SHUFFLE, SPLIT),
    "cubes of 16": (cube(16), cube(16), HC, sessions.LEVEL, SHUFFLE, SPLIT),
    "chunks of 64": (cube(64), cube(16), HC, sessions.LEVEL, SHUFFLE, SPLIT),
    "bit shuffle": (sessions.CHUNK, sessions.BLOCK, HC, 4, BITS, WHOLE),
    "LZ4": (sessions.CHUNK, sessions.BLOCK, LZ4, 5, SHUFFLE, WHOLE),
    "zstd 1": (sessions.CHUNK, sessions.BLOCK, ZSTD, 1, SHUFFLE, WHOLE),
    "zstd 5": (sessions.CHUNK, sessions.BLOCK, ZSTD, 5, SHUFFLE, WHOLE),
}
"""Name -> voxels of a chunk, voxels of a block, codec, level, filter, whether high and low bytes are packed apart."""


def packed(array: np.ndarray, scale: float, layout: Layout) -> sessions.Packed:
    """An array in a layout, as :func:`neuroprior.data.sessions.pack` would have it."""
    chunk, block, codec, level, shuffle, split = layout
    stored: Any = blosc2.asarray(
        np.ascontiguousarray(array), chunks=tuple(map(min, chunk, array.shape)), blocks=tuple(map(min, block, array.shape)),
        cparams={"codec": codec, "clevel": level, "filters": [shuffle], "splitmode": split, "nthreads": 1},
    )  # fmt: skip
    frame = bytes(stored.to_cframe())
    header, chunks = int.from_bytes(frame[11:15], "big"), int.from_bytes(frame[39:47], "big")
    return sessions.Packed(frame, header, chunks, artifacts.sha256_array(array), scale)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data/openms-long")
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=24)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index([given.data], folder / "index.parquet", workers=1)
        where = building.Where(workers=1)
        building.build(folder / "index.parquet", folder / "store", ConformSpec(spacing_mm=1.0, order=3), PrepareConfig(), where)
        store = Store.open(folder / "store")
        volumes = [store.read_stored(session.key, name) for session in store.sessions for name in session.scans][: given.scans]
        files: dict[str, list[tuple[Path, sessions.Frame, tuple[int, ...]]]] = {}
        rows: dict[str, dict[str, Any]] = {}
        for number, (name, layout) in enumerate(LAYOUTS.items()):
            began, size, files[name] = time.process_time(), 0, []
            for place, (voxels, scale) in enumerate(volumes):
                one = packed(voxels, scale, layout)
                size += len(one.frame)
                path = folder / f"{number}-{place}.nps"
                sessions.write(path, {}, {"x": one})
                files[name].append((path, sessions.read(path)[1]["x"], voxels.shape))
            rows[name] = {
                "mb": size / len(volumes) / 1e6,
                "write_cpu_s": (time.process_time() - began) / len(volumes),
                "ms": {edge: [] for edge in SIZES},
            }
        for edge in SIZES:
            for turn in range(-1, given.repeats):
                for name in LAYOUTS:
                    path, frame, shape = files[name][turn % len(volumes)]
                    draw = np.random.default_rng(turn + 1)
                    start = [int(draw.integers(0, max(1, n - edge + 1))) for n in shape]
                    x, y, z = (slice(s, min(s + edge, n)) for s, n in zip(start, shape, strict=True))
                    began = time.perf_counter()
                    sessions.read_array(path, frame, (x, y, z))
                    if turn >= 0:
                        rows[name]["ms"][edge].append(1e3 * (time.perf_counter() - began))
    print(f"{len(volumes)} scans of {given.data.name}, load {os.getloadavg()[0]:.1f}\n")
    print("| | MB a scan | CPU-s to write | ms to read 64^3 / 96^3 / 160^3, warm |\n|---|--:|--:|---|")
    for name, row in rows.items():
        row["ms"] = {edge: float(np.median(times)) for edge, times in row["ms"].items()}
        told = " / ".join(f"{row['ms'][edge]:.2f}" for edge in SIZES)
        print(f"| {f'**{name}**' if name == 'as in the code' else name} | {row['mb']:.2f} | {row['write_cpu_s']:.3f} | {told} |")
        facts = {k: v if isinstance(v, int | tuple) else v.name
                 for k, v in zip(("chunk", "block", "codec", "level", "filter", "split"), LAYOUTS[name], strict=True)}  # fmt: skip
        record.keep("layouts", {"benchmark": "layout", "name": name, **facts, **row, "made_by": artifacts.provenance("layouts")})


if __name__ == "__main__":
    main()
