"""Preprocessing, storing and reading real scans: ours beside other ways (``peers.py``), in one run on one core.

    python benchmarks/data/compare.py [--data ../shared/data/openms-long] [--repeats 40]

Raw clinical scans of 3-4 mm slices. Prints CPU-seconds, bytes, errors, peak memory, and milliseconds from drawing a place to a tensor, warm
and cold (the file's pages dropped before each read).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["BLOSC_NTHREADS"] = "1"

import numpy as np
import peers
import torch
from scipy import ndimage

from neuroprior.core import nifti
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.grids import Grid, canonical_grid, grid_of
from neuroprior.core.peak_memory import peak_mb
from neuroprior.core.resampling import resample
from neuroprior.core.volume import Volume
from neuroprior.data import building, sessions
from neuroprior.data.foretelling import estimate
from neuroprior.data.pairs import PairConfig, PairDataset
from neuroprior.data.preparing import PrepareConfig
from neuroprior.data.store import Store
from neuroprior.stages.index import index


def cold(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    sessions._FOUND.clear()


def one_way(way: str, paths: list[Path], folder: Path) -> None:
    """Preprocess every scan in this process and print CPU-seconds a scan and the peak memory."""
    began = time.process_time()
    if way == "ours":
        spec = ConformSpec(spacing_mm=1.0, order=3)
        rows = building.Rows(folder / "index.parquet")
        for key in rows.keys:
            building.prepare_session(folder / "ours", key, rows.scans(key), spec, PrepareConfig())
    else:
        for number, path in enumerate(paths):
            getattr(peers, f"{way}_prepare")(path, folder / way / str(number))
    cpu = (time.process_time() - began) / len(paths)
    print(cpu, peak_mb())


def interpolation(path: Path) -> dict[str, float]:
    """RMS distance, in standard deviations of the scan, to cubic splines in float64; through the slices only, and all axes."""
    volume, _ = nifti.read_scan(path)
    native = canonical_grid(grid_of(volume), None)
    turned = Volume(resample(volume, native), native.affine)
    thick = int(np.argmax(native.spacing_mm))
    factor = native.spacing_mm[thick]
    shape = list(native.shape)
    shape[thick] = int(shape[thick] * factor)
    affine = native.affine.copy()
    affine[:3, thick] /= factor
    affine[:3, 3] += native.affine[:3, thick] * (1 / factor - 1) / 2
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    matrix = np.linalg.inv(native.affine) @ grid.affine
    exact = ndimage.affine_transform(
        turned.voxels.astype(np.float64), matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape, order=3, mode="mirror"
    )
    single = ndimage.affine_transform(
        turned.voxels, matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape, order=3, mode="mirror", output=np.float32
    )
    nearest = np.take(
        turned.voxels,
        np.clip(
            np.round(matrix[thick, thick] * np.arange(shape[thick]) + matrix[thick, 3]).astype(int), 0, native.shape[thick] - 1
        ),
        axis=thick,
    )
    linear, ours = resample(turned, grid, order=1), resample(turned, grid, order=3)
    spread, inner = exact.std(), [slice(None)] * 3
    inner[thick] = slice(int(factor), -int(factor))
    named = {"ours": ours, "scipy order 3, float32": single, "linear": linear, "nearest between slices": nearest}
    return {name: float(np.sqrt(np.mean((found - exact)[tuple(inner)] ** 2)) / spread) for name, found in named.items()}


def in_plane(path: Path, spacing: float, slices: int = 6) -> dict[str, dict[str, float]]:
    """RMS distances within the slices, in standard deviations of the scan: to a cubic spline in float64 at the centres of the new pixels, and
    to the same spline's mean over each new pixel (8 by 8 places): what pixels of that size would have seen."""
    volume, _ = nifti.read_scan(path)
    native = canonical_grid(grid_of(volume), None)
    turned = Volume(resample(volume, native), native.affine)
    thick = int(np.argmax(native.spacing_mm))
    flat = [axis for axis in range(3) if axis != thick]
    middle, affine = [slice(None)] * 3, native.affine.copy()
    first = native.shape[thick] // 2 - slices // 2
    middle[thick] = slice(first, first + slices)
    affine[:3, 3] += first * affine[:3, thick]
    slab = Volume(np.ascontiguousarray(turned.voxels[tuple(middle)]), affine)
    shape, target = list(slab.voxels.shape), affine.copy()
    for axis in flat:
        step = spacing / native.spacing_mm[axis]
        shape[axis] = int(shape[axis] / step)
        target[:3, 3] += affine[:3, axis] * (step - 1) / 2
        target[:3, axis] *= step
    grid = Grid((shape[0], shape[1], shape[2]), target)
    matrix = np.linalg.inv(slab.affine) @ target
    spline = np.stack([ndimage.spline_filter(p, 3, np.float64, "mirror") for p in np.moveaxis(slab.voxels, thick, 0)])
    spline = np.moveaxis(spline, 0, thick)

    def exact(shift: np.ndarray) -> np.ndarray:
        axes = [
            matrix[axis, axis] * (np.arange(n) + move) + matrix[axis, 3]
            for axis, (n, move) in enumerate(zip(shape, shift, strict=True))
        ]
        planes = [
            ndimage.map_coordinates(plane, np.meshgrid(*(axes[axis] for axis in flat), indexing="ij"), order=3, mode="mirror", prefilter=False)
            for plane in np.moveaxis(spline, thick, 0)
        ]  # fmt: skip
        return np.moveaxis(np.stack(planes), 0, thick)

    point, area = exact(np.zeros(3)), np.zeros(shape)
    for one in (np.arange(8) + 0.5) / 8 - 0.5:
        for two in (np.arange(8) + 0.5) / 8 - 0.5:
            shift = np.zeros(3)
            shift[flat] = one, two
            area += exact(shift) / 64
    plain = ndimage.affine_transform(
        slab.voxels, matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape, order=3, mode="mirror", output=np.float32
    )
    named = {
        "ours": resample(slab, grid, order=3),
        "ours without antialiasing": resample(slab, grid, order=3, antialias=False),
        "scipy order 3, float32": plain,
        "linear": resample(slab, grid, order=1),
    }
    inner = [slice(3, -3)] * 3
    inner[thick] = slice(1, -1)
    spread = float(point.std())
    return {
        name: {to: float(np.sqrt(np.mean((found - wanted)[tuple(inner)] ** 2)) / spread) for to, wanted in (("centre", point), ("mean", area))}
        for name, found in named.items()
    }  # fmt: skip


def timed(ways: dict[str, Any], files: list[Path], repeats: int, run: int = 1) -> dict[str, np.ndarray]:
    """(3,) median milliseconds of a read by each way: warm, cold, and processor time warm.

    The ways take turns, so that all see the same load, each with ``run`` reads at a time: a loader reads one after another, and what the reads of one way
    leave in the processor's caches should not be charged to another. Cold reads take turns singly.
    """
    found: dict[str, list[list[float]]] = {name: [[], [], []] for name in ways}
    for dropped in (False, True):
        length = 1 if dropped else run
        for begin in range(-length, repeats, length):
            for name, function in ways.items():
                for number in range(begin, begin + length):
                    draw = np.random.default_rng(abs(number))
                    if dropped:
                        for file in files:
                            cold(file)
                    began, cpu = time.perf_counter(), time.process_time()
                    function(abs(number), draw)
                    if number >= 0:
                        found[name][int(dropped)].append(time.perf_counter() - began)
                        if not dropped:
                            found[name][2].append(time.process_time() - cpu)
    return {name: np.array([1e3 * float(np.median(times)) for times in rows]) for name, rows in found.items()}


def dry_run(index_file: Path, folder: Path) -> str:
    """What the dry run says of an index, beside what it took."""
    spec, config, where = ConformSpec(spacing_mm=1.0, order=3), PrepareConfig(), building.Where(workers=1)
    told = estimate(index_file, spec, config, where)
    began = time.process_time()
    built = building.build(index_file, folder, spec, config, where)
    spent = time.process_time() - began
    return (f"dry run: {told.cpu_seconds:.1f} CPU-s and {told.megabytes:.0f} MB foretold, {spent:.1f} CPU-s and {built.megabytes:.0f} MB taken "
            f"({told.cpu_seconds / spent - 1:+.0%}, {told.megabytes / built.megabytes - 1:+.0%}), {built.sessions} sessions")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data/openms-long")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--way")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(given.data.glob("sub-*/ses-*/anat/*.nii.gz"))
    if given.way:
        one_way(given.way, paths, given.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in ("nnssl", "fomo"):
            (folder / way).mkdir()
        index([given.data], folder / "index.parquet", workers=1)
        print(
            f"{len(paths)} scans of {given.data.name}, load {os.getloadavg()[0]:.1f}\n\n| | CPU-s a scan | MB a scan | peak MB |\n|---|--:|--:|--:|"
        )
        for way in ("nnssl", "fomo", "ours"):
            command = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--data", str(given.data)]
            cpu, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
            size = sum(file.stat().st_size for file in (folder / way).rglob("*") if file.is_file())
            if way == "ours":
                building.build(
                    folder / "index.parquet",
                    folder / "ours",
                    ConformSpec(spacing_mm=1.0, order=3),
                    PrepareConfig(),
                    building.Where(workers=1),
                )
                store = Store.open(folder / "ours")
                size = sum(store.frame(s.key, n)[1].length for s in store.sessions for n in s.scans)
            print(f"| {way} | {float(cpu):.2f} | {size / len(paths) / 1e6:.2f} | {float(peak):.0f} |")
        errors = [entry["rounding_error"] for s in store.sessions for entry in s.scans.values()]
        print(
            f"\nlargest rounding error of ours: {max(errors):.6f} standard deviations (half a step is {1 / 1024:.6f}; what would have become 0 is off by up to a whole one)"
        )
        told = [interpolation(path) for path in paths[:4]]
        print("interpolation between slices, RMS distance to float64 cubic splines: "
              + ", ".join(f"{name} {np.mean([row[name] for row in told]):.2g}" for name in told[0]))  # fmt: skip
        for spacing in (0.5, 1.0):
            rows = [in_plane(path, spacing) for path in paths[:4]]
            print(f"in plane to {spacing} mm, RMS distance to float64 cubic splines at the centre of each pixel / to their mean over it: " + ", ".join(
                f"{name} " + " / ".join(f"{np.mean([row[name][to] for row in rows]):.2g}" for to in ("centre", "mean")) for name in rows[0]))  # fmt: skip
        names = [(s.key, n) for s in store.sessions for n in s.scans]
        print("\n| ms: warm / cold / processor, warm | nnssl's way | ours | ratio |\n|---|--:|--:|--:|")
        theirs, own = sorted((folder / "nnssl").iterdir()), [s.file for s in store.sessions]
        for size in (64, 96, 160):
            dataset = PairDataset(store, ("train", "val", "test"), PairConfig(patch=size, min_head=0.0), seed=0, augment=False)

            def ours(number: int, draw: np.random.Generator, dataset: PairDataset = dataset) -> torch.Tensor:
                key, contrast = names[number % len(names)]
                return torch.from_numpy(sessions.scaled(*dataset._box((store[key], contrast), draw)[1]))

            def nnssl(number: int, draw: np.random.Generator, size: int = size) -> torch.Tensor:
                return peers.nnssl_read(theirs[number % len(theirs)], size, draw)

            found = timed({"nnssl": nnssl, "ours": ours}, theirs + own, given.repeats)
            cells = [
                " / ".join(f"{v:.2f}" for v in row) for row in (found["nnssl"], found["ours"], found["ours"] / found["nnssl"])
            ]
            print(f"| {size}^3 | {' | '.join(cells)} |", flush=True)
        arrays = sorted((folder / "fomo").iterdir())
        dataset = PairDataset(store, ("train", "val", "test"), PairConfig(patch=64), seed=0)
        paired = [number for number in range(200) if dataset[number]["paired"]]

        def pair(number: int, draw: np.random.Generator) -> list[torch.Tensor]:
            item = dataset[paired[number % len(paired)]]
            return [torch.from_numpy(np.ascontiguousarray(item[name])) for name in ("image_a", "image_b")]

        places = {path.parent: [n for n, other in enumerate(paths) if other.parent == path.parent] for path in paths}
        couples = [
            (folder / f"fomo/{a}.npy", folder / f"fomo/{b}.npy")
            for group in places.values()
            for a in group
            for b in group
            if a != b
        ]

        def fomo(number: int, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
            return peers.fomo_read_pair(couples[number % len(couples)], 64, draw)

        def opened_anew(number: int, draw: np.random.Generator) -> list[torch.Tensor]:
            sessions._FOUND.clear()  # as in a store of so many scans that none is met twice
            return pair(number, draw)

        for run in (1, 16):
            found = timed(
                {"fomo": fomo, "ours": pair, "ours, each file opened anew": opened_anew}, arrays + own, 2 * given.repeats, run
            )
            print(f"\n| a pair of 64^3, {run} at a time, ms: warm / cold / processor, warm | | times faster |\n|---|--:|--:|")
            for name, row in found.items():  # ours mirrors, and draws again for the head
                print(
                    f"| {name} | {' / '.join(f'{v:.2f}' for v in row)} | {' / '.join(f'{v:.1f}' for v in found['fomo'] / row)} |"
                )
        index(
            [given.data.parent / name for name in ("openms-long", "openms-cross", "stroke-cstar")],
            folder / "three.parquet",
            workers=1,
        )
        print(dry_run(folder / "three.parquet", folder / "three"), f"load {os.getloadavg()[0]:.0f}")


if __name__ == "__main__":
    main()
