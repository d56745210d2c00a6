"""Preprocessing, storing and reading real scans: ours beside other ways (``peers.py``), in one run on one core.

    python benchmarks/data/compare.py [--data ../shared/data/openms-long] [--repeats 40]

Raw clinical scans of 3-4 mm slices. Prints CPU-seconds, bytes, errors, peak memory, and milliseconds from drawing a place to a tensor, warm
and cold (the file's pages dropped before each read).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["BLOSC_NTHREADS"] = "1"

import numpy as np
import peers
import torch
from scipy import ndimage

from neuroprior.core import nifti
from neuroprior.core.geometry import ConformSpec, Grid, canonical_grid, grid_of, resample
from neuroprior.core.volume import Volume
from neuroprior.data import building, sessions
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
    sessions._opened.cache_clear()


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
    print(cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


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


def timed(function, files: list[Path], repeats: int) -> tuple[float, float]:
    """Median milliseconds of a read, warm and cold."""
    found = []
    for dropped in (False, True):
        times = []
        for number in range(repeats):
            draw = np.random.default_rng(number)
            if dropped:
                for file in files:
                    cold(file)
            began = time.perf_counter()
            function(number, draw)
            times.append(time.perf_counter() - began)
        found.append(1e3 * float(np.median(times)))
    return found[0], found[1]


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
        print(f"\nlargest rounding error of ours: {max(errors):.6f} standard deviations (stated: {1 / 1024:.6f})")
        told = [interpolation(path) for path in paths[:4]]
        print("interpolation between slices, RMS distance to float64 cubic splines: "
              + ", ".join(f"{name} {np.mean([row[name] for row in told]):.2g}" for name in told[0]))  # fmt: skip
        names = [(s.key, n) for s in store.sessions for n in s.scans]
        print("\n| ms, warm / cold | nnssl's way | ours | ratio |\n|---|--:|--:|--:|")
        theirs = sorted((folder / "nnssl").iterdir())
        for size in (64, 96, 160):
            config = PairConfig(patch=size, min_head=0.0)
            dataset = PairDataset(store, ("train", "val", "test"), config, seed=0, augment=False)

            def ours(number: int, draw: np.random.Generator, size: int = size, dataset: PairDataset = dataset) -> torch.Tensor:
                key, contrast = names[number % len(names)]
                _, image = dataset._box((store[key], contrast), draw)
                return torch.from_numpy(image)

            def nnssl(number: int, draw: np.random.Generator, size: int = size) -> torch.Tensor:
                return peers.nnssl_read(theirs[number % len(theirs)], size, draw)

            a, b = timed(nnssl, theirs, given.repeats), timed(ours, [s.file for s in store.sessions], given.repeats)
            print(
                f"| {size}^3 | {a[0]:.2f} / {a[1]:.2f} | {b[0]:.2f} / {b[1]:.2f} | {b[0] / a[0]:.2f} / {b[1] / a[1]:.2f} |",
                flush=True,
            )
        arrays = sorted((folder / "fomo").iterdir())
        dataset = PairDataset(store, ("train", "val", "test"), PairConfig(patch=64), seed=0)
        paired = [number for number in range(200) if dataset[number]["paired"]]
        a = timed(
            lambda n, draw: peers.fomo_read_pair((arrays[n % len(arrays)], arrays[(n + 1) % len(arrays)]), 64, draw),
            arrays,
            given.repeats,
        )
        b = timed(lambda n, draw: torch.from_numpy(np.stack([(item := dataset[paired[n % len(paired)]])["image_a"], item["image_b"]])), [s.file for s in store.sessions], given.repeats)  # fmt: skip
        print(f"\na pair of 64^3, ms, warm / cold: FOMO2JOMO's way {a[0]:.1f} / {a[1]:.1f}, ours (flip and draws again for the head included) "
              f"{b[0]:.1f} / {b[1]:.1f}, ratio {a[0] / b[0]:.1f} / {a[1] / b[1]:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
