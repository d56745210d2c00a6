"""Fingerprints of scans: hashes of their voxels, and a perceptual vector that survives what copies go through.

Three hashes find copies whatever their name, header, compression or axis order. The vector finds copies that were rescaled,
mildly noised, cropped, shifted or resampled: the scan is brought to 4 mm in RAS axes, centred by a mean shift on the head (so
that a crop far from the centre does not move it), band-passed and evened in contrast; what is kept are the magnitudes of its
Fourier spectrum, which do not see a remaining shift, divided by the mean magnitude at their distance from the origin, because
all heads share that profile. Two vectors are compared by their correlation.

The vectors of a folder of scans lie in a Parquet table beside the audit; a scan whose path, size and time have not changed is
not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts, nifti
from ..core.errors import ArtifactError, InputError
from ..core.grids import canonical_grid, grid_of
from ..core.headmask import head_mask
from ..core.places import local
from ..core.resampling import resample
from ..core.volume import Volume
from ..engine import jobs, pools
from ..engine.pools import Where

VERSION = 1
"""Version of hashes and vector; others are not compared with these."""
SPACING_MM = 4.0
CUBE = 40
"""Voxels along each side of the box that is looked at: 160 mm."""
BAND = (3.0, 9.0)
"""Spatial frequencies kept, in cycles per 160 mm: details of 18 to 53 mm."""
SAME = 0.75
"""Correlation from which two scans are called copies. Distinct subjects: at most 0.60 among 38 real ones, 0.42 among 200 synthetic
ones; altered copies of synthetic heads: 0.94 or more, whatever the alteration (``benchmarks/audit.py``)."""
PART = 200
"""Scans after which a part of the table is written."""


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a scan.

    Attributes:
        content: hash of shape and float32 voxels in stored order, scaling applied.
        oriented: the same in RAS axes.
        values: hash of the sorted voxels: the same for every reordering, whatever the header says.
        vector: (1485,) float32, mean 0 and length 1; None where there is no head to see.
        reason: why something is missing.
    """

    content: str | None
    oriented: str | None
    values: str | None
    vector: np.ndarray | None
    reason: str = ""


def content_hash(voxels: np.ndarray) -> str:
    """Hash of an array's shape and values as float32; it does not depend on dtype, memory order or the sign of zero."""
    values = np.ascontiguousarray(voxels, dtype=np.float32) + np.float32(0)
    digest = hashlib.blake2b(f"{values.shape}".encode(), digest_size=16)
    digest.update(values.data)
    return digest.hexdigest()


def oriented_hash(volume: Volume) -> str:
    """:func:`content_hash` after reordering and flipping the axes to the nearest RAS."""
    return content_hash(resample(volume, canonical_grid(grid_of(volume), None)))


def values_hash(voxels: np.ndarray) -> str:
    """Hash of the values alone, sorted."""
    return content_hash(np.sort(voxels, axis=None))


def vector(volume: Volume) -> np.ndarray | None:
    """The perceptual vector of a scan (see the module's text).

    Args:
        volume: finite float32 voxels, any orientation and units.

    Returns:
        (1485,) float32 of mean 0 and length 1, or None where no head is found.
    """
    head = thumbnail(volume)
    return None if head is None else _spectrum(head)


def thumbnail(volume: Volume) -> np.ndarray | None:
    """The head in a box of 40 x 40 x 40 voxels of 4 mm: float32 in [0, 1], the background 0; None where there is no head."""
    from scipy import ndimage

    values = resample(volume, canonical_grid(grid_of(volume), SPACING_MM))
    mask = head_mask(values, (SPACING_MM,) * 3)
    if mask.sum() < 100:
        return None
    background = float(np.median(values[~mask])) if not mask.all() else float(values.min())
    bright = np.where(mask, np.clip(values - np.float32(background), 0, None), 0)
    top = float(np.percentile(bright[mask], 99))
    if top <= 0:
        return None
    bright = np.minimum(bright / np.float32(top), 1)
    offset = _centre(bright, mask) / SPACING_MM - (CUBE - 1) / 2
    return ndimage.affine_transform(bright, np.ones(3), offset, output_shape=(CUBE,) * 3, order=1, output=np.float32)


def _centre(bright: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(3,) centre of brightness in mm under a Gaussian window around itself (mean shift from the mask's centre)."""
    axes = [np.arange(n) * SPACING_MM for n in bright.shape]
    others = [tuple(a for a in range(3) if a != k) for k in range(3)]
    centre = np.array([(mask.sum(others[k]) * axes[k]).sum() / mask.sum() for k in range(3)])
    for _ in range(50):
        x, y, z = (np.exp(-((axes[k] - centre[k]) ** 2) / (2 * 40.0**2)) for k in range(3))
        seen = bright * x[:, None, None] * y[None, :, None] * z
        total = float(seen.sum())
        if total <= 0:
            return centre
        moved = np.array([(seen.sum(others[k]) * axes[k]).sum() / total for k in range(3)])
        done = np.abs(moved - centre).max() < 0.05
        centre = moved
        if done:
            break
    return centre


def _rings() -> tuple[np.ndarray, np.ndarray]:
    """Which coefficients of a real spectrum are kept (flat, one of each conjugate pair), and the ring of each."""
    full = np.fft.fftfreq(CUBE) * CUBE
    x, y, z = full[:, None, None], full[None, :, None], np.arange(CUBE // 2 + 1.0)[None, None]
    radius = np.sqrt(x**2 + y**2 + z**2)
    once = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
    kept = np.flatnonzero((radius >= BAND[0]) & (radius <= BAND[1]) & once)
    return kept, np.rint(radius.ravel()[kept]).astype(int)


def _spectrum(head: np.ndarray) -> np.ndarray | None:
    from scipy import fft, ndimage

    detail = ndimage.gaussian_filter(head, 1.0) - ndimage.gaussian_filter(head, 2.5)
    x = (np.arange(CUBE) - (CUBE - 1) / 2) * SPACING_MM
    away = x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2
    detail *= np.exp(-((away / 65.0**2) ** 2))
    power = np.sqrt(ndimage.gaussian_filter(detail * detail, 4.0))
    if power.max() <= 0:
        return None
    detail = detail / (power + 0.2 * power.max())
    kept, ring = _rings()
    size = np.abs(np.asarray(fft.rfftn(detail))).ravel()[kept]
    mean = np.bincount(ring, size) / np.maximum(np.bincount(ring), 1)
    found = np.sqrt(size / np.maximum(mean[ring], 1e-12))
    found -= found.mean()
    length = float(np.linalg.norm(found))
    return (found / length).astype(np.float32) if length > 0 else None


def of_volume(volume: Volume) -> Fingerprint:
    """The fingerprint of a scan in memory."""
    if np.ptp(volume.voxels) == 0:
        return Fingerprint(
            content_hash(volume.voxels), oriented_hash(volume), values_hash(volume.voxels), None, "every voxel has one value"
        )
    found = vector(volume)
    return Fingerprint(
        content_hash(volume.voxels), oriented_hash(volume), values_hash(volume.voxels), found, "" if found is not None else "no head was found"
    )  # fmt: skip


def of_file(path: str) -> Fingerprint:
    """The fingerprint of a file; one that cannot be read gives the reason and nothing else."""
    try:
        with local(path) as here:
            volume, _ = nifti.read_scan(here, nonfinite="zero")
    except (InputError, ArtifactError) as error:
        return Fingerprint(None, None, None, None, error.reason)
    except OSError as error:
        return Fingerprint(None, None, None, None, f"the file cannot be read ({error.strerror})")
    return of_volume(volume)


# ---------------------------------------------------------------------------------------------------------------------
# Many scans


def gather(paths: Sequence[str], cache: Path, *, workers: int = 1, progress: bool = True) -> dict[str, Fingerprint]:
    """The fingerprints of many files, from the cache where they have not changed.

    Args:
        paths: absolute paths.
        cache: Parquet table, made or added to; a run that was cut off leaves its parts in ``CACHE.parts`` and goes on from
            them.
        workers: processes.
        progress: show a bar.

    Returns:
        path -> fingerprint.

    Raises:
        ArtifactError: the cache is something else.
    """
    wanted = dict.fromkeys(paths)
    known = _read_cache(cache)
    stamps = {path: _stamp(path) for path in wanted}
    done = {path: known[path][1] for path in wanted if path in known and known[path][0] == stamps[path]}
    todo = [path for path in wanted if path not in done]
    if not todo:
        return done
    folder = cache.with_name(cache.stem + ".parts")
    fresh: list[str] = []
    try:
        for path, found, lasting in _compute(todo, workers, progress):
            done[path] = found
            if lasting:
                fresh.append(path)
            if lasting and len(fresh) % PART == 0:
                _write({p: (stamps[p], done[p]) for p in fresh[-PART:]}, folder / f"{os.getpid()}-{len(fresh):09d}.parquet")
    except BaseException:
        rest = fresh[len(fresh) // PART * PART :]
        if rest:
            _write({p: (stamps[p], done[p]) for p in rest}, folder / f"{os.getpid()}-{len(fresh):09d}.parquet")
        raise
    again = set(todo) - set(fresh)
    kept = {path: entry for path, entry in known.items() if path not in wanted}
    _write(kept | {path: (stamps[path], done[path]) for path in wanted if path not in again}, cache)
    if folder.is_dir():
        for part in folder.glob("*.parquet"):
            part.unlink(missing_ok=True)
        folder.rmdir()
    return done


def missing(paths: Sequence[str], cache: Path) -> list[str]:
    """The files that :func:`gather` would have to read."""
    known = _read_cache(cache)
    return [path for path in dict.fromkeys(paths) if path not in known or known[path][0] != _stamp(path)]


def _compute(paths: Sequence[str], workers: int, progress: bool) -> Iterator[tuple[str, Fingerprint, bool]]:
    """(path, fingerprint, whether it is to be kept): what killed its worker is read again another time."""
    from rich.progress import track

    bar: dict[str, Any] = {"description": "fingerprints", "total": len(paths), "disable": not progress or len(paths) < 20}
    pool, budget = pools.pool(of_file, Where(workers if len(paths) >= 20 else 1))
    for outcome in track(jobs.run(pool, (jobs.Job(path, (path,)) for path in paths), budget), **bar):
        if outcome.error is None:
            yield outcome.name, outcome.value, True
        else:
            yield outcome.name, Fingerprint(None, None, None, None, outcome.error), False


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of a file; (-1, -1) where there is none."""
    try:
        stat = Path(path).stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


Entries = Mapping[str, tuple[tuple[int, int], Fingerprint]]


def _write(entries: Entries, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(entries.items())
    vectors = [None if f.vector is None else f.vector.astype(np.float16).tobytes() for _, (_, f) in rows]
    table = pa.table(
        {
            "path": pa.array([path for path, _ in rows], pa.string()),
            "size_bytes": pa.array([stamp[0] for _, (stamp, _) in rows], pa.int64()),
            "mtime_ns": pa.array([stamp[1] for _, (stamp, _) in rows], pa.int64()),
            **{name: pa.array([getattr(f, name) for _, (_, f) in rows], pa.string()) for name in ("content", "oriented", "values", "reason")},
            "vector": pa.array(vectors, pa.binary()),
        }
    )  # fmt: skip
    note = {"artifact": "fingerprints", "version": VERSION}
    table = table.replace_schema_metadata({b"neuroprior": json.dumps(note).encode()})
    with artifacts.atomic(out) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _read_cache(cache: Path) -> dict[str, tuple[tuple[int, int], Fingerprint]]:
    """What the cache and the parts of a run that was cut off hold; a cache of another version counts as empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, tuple[tuple[int, int], Fingerprint]] = {}
    files = sorted(cache.with_name(cache.stem + ".parts").glob("*.parquet"))
    for file in ([cache] if cache.is_file() else []) + files:
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(
                "the table of fingerprints cannot be read", file=file, got=str(error).splitlines()[0], next_step="remove it: it is made again"
            ) from None  # fmt: skip
        note = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
        if note.get("artifact") != "fingerprints":
            raise ArtifactError("this is no table of fingerprints", file=file, next_step="choose another --out")
        if note.get("version") != VERSION:
            continue
        for row in table.to_pylist():
            raw = row["vector"]
            one = None if raw is None else np.frombuffer(raw, np.float16).astype(np.float32)
            found[row["path"]] = (
                (row["size_bytes"], row["mtime_ns"]),
                Fingerprint(row["content"], row["oriented"], row["values"], one, row["reason"] or ""),
            )
    return found


def similar(
    a: np.ndarray, b: np.ndarray, *, threshold: float = SAME, block: int | None = None
) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows whose correlation reaches the threshold.

    Args:
        a, b: (n, 1485) and (m, 1485) vectors.
        threshold: in [-1, 1].
        block: rows of ``a`` at a time; by default such that ``block x m`` float32 take 256 MB.

    Yields:
        (row of a, row of b, correlation).
    """
    b = np.ascontiguousarray(b, dtype=np.float32).T
    block = block or max(1, 2**26 // max(b.shape[1], 1))
    for start in range(0, len(a), block):
        product = a[start : start + block].astype(np.float32, copy=False) @ b
        for i, j in np.argwhere(product >= threshold):
            yield start + int(i), int(j), float(product[i, j])
