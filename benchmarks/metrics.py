"""How fast masks are scored beside the surface-distance package, and how often the intervals cover.

    python benchmarks/metrics.py [--pairs 1000] [--timed 120] [--processes 2]
    python benchmarks/metrics.py --coverage [--draws 500]

Speed: pairs of 1 mm masks of 182 x 218 x 182 voxels with DSC, NSD (1 mm) and HD95. Both score the same pair one after the
other, in turn, in one process and one thread; the ratio is taken pair by pair. The pairs repeat a fixed mix: seven of ten lesion sets of 0.1 to 30 ml, two deep
structures, one whole brain. With fewer ``--timed`` pairs than ``--pairs`` the total is the mean times the pairs, and is called extrapolated. Scaling: the same
pairs over processes against one, ours alone, in wall time and in CPU time (on a busy machine only the latter says anything). Appends a JSON line to benchmarks/results/metrics.jsonl.

Coverage: the share of 95 % intervals that hold the true value, for the AUROC, and for seeds by subjects (benchmarks/intervals.py has means).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from scipy import ndimage

import record
from neuroprior.core.seeds import generator
from neuroprior.metrics import _inputs, auroc, dice, surface
from neuroprior.metrics._bootstrap import Method, hierarchical, interval, mean_interval

SHAPE, SPACING = (182, 218, 182), (1.0, 1.0, 1.0)
MIX = ("lesions",) * 7 + ("structure",) * 2 + ("brain",)


def ellipsoid(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Bool of SHAPE."""
    inside = sum(
        ((axis - c) / r) ** 2 for axis, c, r in zip(np.ogrid[tuple(slice(0, n) for n in SHAPE)], centre, radii, strict=True)
    )
    return inside <= 1


def pair(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A reference and a prediction with ragged borders, a shift, a missed lesion and a false one."""
    draw = generator("benchmark", "pair", number)
    kind = MIX[number % len(MIX)]
    middle = np.array(SHAPE) / 2
    p, r = (np.zeros(SHAPE, dtype=bool) for _ in range(2))
    if kind == "lesions":
        for k in range(int(draw.integers(2, 15))):
            centre, radii = middle + draw.uniform(-45, 45, 3), draw.uniform(1.5, 7, 3)
            if k:
                r |= ellipsoid(centre, radii)
            if k != 1:
                p |= ellipsoid(centre + draw.normal(0, 0.7, 3), radii * draw.uniform(0.8, 1.2))
        return p, r
    radii = np.array([8.0, 20, 9]) if kind == "structure" else np.array([65.0, 80, 60])
    r = ellipsoid(middle, radii)
    p = ellipsoid(middle + draw.normal(0, 1, 3), radii * draw.uniform(0.95, 1.05, 3))
    rough = ndimage.zoom(draw.standard_normal((24, 28, 24)), 8, order=1)[: SHAPE[0], : SHAPE[1], : SHAPE[2]] > 1.2
    return p & ~(rough & ~ellipsoid(middle, radii * 0.9)), r


def ours(p: np.ndarray, r: np.ndarray) -> tuple[float, float, float]:
    """DSC, NSD and HD95, as assessments.accuracy scores a case."""
    box = _inputs.crop(p, r)
    assert box is not None
    p, r = p[box], r[box]
    found = surface.measure(p, r, SPACING, SHAPE)
    return dice.dice(p, r), found.nsd(1.0), found.hausdorff()


def theirs(p: np.ndarray, r: np.ndarray) -> tuple[float, float, float]:
    """The same by surface-distance (its own definition of a surface, so NSD and HD95 differ a little)."""
    import surface_distance

    found = surface_distance.compute_surface_distances(r, p, SPACING)
    return (
        surface_distance.compute_dice_coefficient(r, p),
        surface_distance.compute_surface_dice_at_tolerance(found, 1.0),
        surface_distance.compute_robust_hausdorff(found, 95),
    )


def seconds(score: Callable[[np.ndarray, np.ndarray], object], p: np.ndarray, r: np.ndarray) -> tuple[float, float]:
    """CPU and wall time of one call; one thread, so they differ by what other programs took."""
    wall, cpu = time.perf_counter(), time.process_time()
    score(p, r)
    return time.process_time() - cpu, time.perf_counter() - wall


def share_of_pairs(numbers: list[int]) -> float:
    """CPU-seconds of scoring these pairs, of those that this process keeps."""
    started = time.process_time()
    for number in numbers:
        ours(*_KEPT[number % len(_KEPT)])
    return time.process_time() - started


_KEPT: list[tuple[np.ndarray, np.ndarray]] = []


def keep() -> None:
    """Ten pairs in each process, made before the clock starts."""
    _KEPT.extend(pair(number) for number in range(len(MIX)))


def speed(pairs: int, timed: int, processes: int) -> None:
    """Print and save the paired ratio and the scaling."""
    warnings.simplefilter("ignore", DeprecationWarning)
    rows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in dict.fromkeys(MIX)}
    wall: list[tuple[float, float]] = []
    theirs(*pair(0))  # imports, tables
    for number in range(min(timed, pairs)):
        p, r = pair(number)
        both = (ours, theirs) if number % 2 else (theirs, ours)
        took = {score.__name__: seconds(score, p, r) for score in both}
        rows[MIX[number % len(MIX)]].append((took["ours"][0], took["theirs"][0]))
        wall.append((took["ours"][1], took["theirs"][1]))
    everything = [row for found in rows.values() for row in found]
    how = "" if len(everything) == pairs else f" (extrapolated from {len(everything)})"
    mine, other = (statistics.mean(row[k] for row in everything) * pairs for k in range(2))
    ratios = [a / b for a, b in everything]
    slow, slower = (statistics.mean(row[k] for row in wall) * pairs for k in range(2))
    print(f"{pairs} pairs{how}: ours {mine:.1f} CPU-s, surface-distance {other:.1f} CPU-s, ratio of totals {mine / other:.3f}")
    print(f"by the clock: ours {slow:.1f} s, surface-distance {slower:.1f} s, ratio {slow / slower:.3f}")
    print(f"ratio pair by pair: median {statistics.median(ratios):.3f}, worst {max(ratios):.3f}")
    for kind, found in rows.items():
        a, b = (statistics.mean(row[k] for row in found) * 1000 for k in range(2))
        print(
            f"  {kind:<10} ours {a:7.1f} ms, surface-distance {b:7.1f} ms, median ratio {statistics.median(x / y for x, y in found):.3f}"
        )

    rate = {}
    numbers = list(range(240))
    for workers in sorted({1, processes}):
        with ProcessPoolExecutor(workers, initializer=keep) as pool:
            list(pool.map(share_of_pairs, [[0]] * workers * 4))  # every process is up
            started = time.perf_counter()
            chunks = [numbers[k : k + 10] for k in range(0, len(numbers), 10)]
            spent = sum(pool.map(share_of_pairs, chunks))
            rate[workers] = len(numbers) / (time.perf_counter() - started), spent / len(numbers) * 1000
    for workers, (per_second, cpu) in rate.items():
        print(f"{workers} process(es): {per_second:.1f} pairs/s, {cpu:.1f} CPU-ms a pair")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    row = {
        "pairs": pairs, "timed": len(everything), "ours_cpu_s": round(mine, 2), "surface_distance_cpu_s": round(other, 2), "ours_wall_s": round(slow, 2),
        "surface_distance_wall_s": round(slower, 2),
        "ratio_of_totals": round(mine / other, 4), "median_ratio": round(statistics.median(ratios), 4), "worst_ratio": round(max(ratios), 4),
        "pairs_per_second": {str(workers): round(value, 1) for workers, (value, _) in rate.items()},
        "cpu_ms_a_pair": {str(workers): round(cpu, 1) for workers, (_, cpu) in rate.items()}, "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1), "python": platform.python_version(), "numpy": np.__version__,
    }  # fmt: skip
    record.keep("metrics", row)


METHODS: tuple[Method, ...] = ("percentile", "expanded", "bca")


def coverage_of_auroc(draws: int, resamples: int = 300) -> None:
    """Print the share of 95 % intervals of an AUROC that hold the truth."""
    print("AUROC | n | " + " | ".join(METHODS))
    area = 0.760250  # of normals one standard deviation apart: Phi(1 / sqrt 2)
    for n in (20, 50):
        names, hit = [f"{k:03}" for k in range(n)], dict.fromkeys(METHODS, 0)
        truth = np.arange(n) < n // 2
        for trial in range(draws):
            score = truth + generator("coverage", "auroc", n, trial).normal(0, 1, n)
            for method in hit:
                low, high = interval(
                    names, lambda k, t=truth, s=score: auroc.auroc(t[k], s[k]), resamples=resamples, seed=trial, method=method
                )
                hit[method] += low is not None and high is not None and low <= area <= high
        print(f"AUROC 0.76 | {n} | " + " | ".join(f"{value / draws:.3f}" for value in hit.values()))


def coverage_over_seeds(draws: int, resamples: int = 1000) -> None:
    """The same of a mean over seeds and subjects."""
    print("\nseeds | subjects | both levels | subjects only (mean over seeds, expanded)")
    for s, n in ((3, 20), (5, 20), (10, 20), (5, 50)):
        both = one = 0
        for trial in range(draws):
            g = generator("coverage", "seeds", s, n, trial)
            values = g.normal(0, 0.02, (s, 1)) + g.normal(0, 0.1, (1, n)) + g.normal(0, 0.03, (s, n))
            low, high = hierarchical(values, resamples=resamples, seed=trial)
            both += low is not None and high is not None and low <= 0 <= high
            low, high = mean_interval(
                [f"{k:03}" for k in range(n)], values.mean(0), resamples=resamples, seed=trial, method="expanded"
            )
            one += low is not None and high is not None and low <= 0 <= high
        print(f"{s} | {n} | {both / draws:.3f} | {one / draws:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=120)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--draws", type=int, default=500)
    chosen = parser.parse_args()
    if chosen.coverage:
        coverage_of_auroc(chosen.draws)
        coverage_over_seeds(chosen.draws)
    else:
        speed(chosen.pairs, chosen.timed, chosen.processes)
