"""Other frameworks' ways of preprocessing, storing and reading a scan, written down here from their description, for comparison.

``nnssl``: crop to what is not 0, z-score, resample at order 3 (slice by slice, nearest between slices, where spacings differ by more than
three times), a second time for a stand-in of an empty mask, Blosc2 float32 with zstd level 8, blocks sized for the caches. ``fomo``:
RAS, crop, clamp and rescale to 0..1, resample at order 3 in 3-D, plain ``.npy``; reading maps the file and searches it for NaN and infinities.
Not their code: the arithmetic and the formats are theirs, the rest is as plain as can be.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage


def _resized(values: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    factors = [a / b for a, b in zip(shape, values.shape, strict=True)]
    return ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)


def _nonzero(values: np.ndarray) -> tuple[slice, ...]:
    inside = ndimage.binary_fill_holes(values != 0)
    return ndimage.find_objects(inside.astype(np.uint8))[0]


def _target(shape: tuple[int, ...], spacing: np.ndarray) -> tuple[int, ...]:
    return tuple(round(n * mm) for n, mm in zip(shape, spacing, strict=True))


def _anisotropic(values: np.ndarray, spacing: np.ndarray, order: int) -> np.ndarray:
    shape = _target(values.shape, spacing)
    if spacing.max() / spacing.min() <= 3:
        return _resized(values.astype(np.float64), shape, order)
    axis = int(spacing.argmax())
    planes = np.moveaxis(values.astype(np.float64), axis, 0)
    flat = tuple(n for k, n in enumerate(shape) if k != axis)
    done = np.stack([_resized(plane, flat, order) for plane in planes])
    places = np.clip(np.round((np.arange(shape[axis]) + 0.5) * len(done) / shape[axis] - 0.5).astype(int), 0, len(done) - 1)
    return np.moveaxis(done[places], 0, axis)


def _blocks(shape: tuple[int, ...], patch: int = 160) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks that fit a level-1 cache of 32 KiB, chunks of whole blocks that fit 1.4 MB."""
    block = np.full(3, 2 ** int(np.ceil(np.log2(patch))))
    while block.prod() * 4 > 0.8 * 32768:
        block[block.argmax()] //= 2
    block = np.minimum(block, shape)
    chunk = block.copy()
    while (grown := _grown(chunk, block, shape)) is not None and grown.prod() * 4 <= 0.8 * 1441792:
        chunk = grown
    return tuple(int(n) for n in chunk), tuple(int(n) for n in block)


def _grown(chunk: np.ndarray, block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    for axis in np.argsort(chunk / block, kind="stable"):
        if chunk[axis] < shape[axis]:
            grown = chunk.copy()
            grown[axis] = min(chunk[axis] + block[axis], shape[axis])
            return grown
    return None


def nnssl_prepare(path: Path, out: Path) -> Path:
    """One scan to ``out.b2nd``."""
    import blosc2

    image = nibabel.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    spacing = np.array(image.header.get_zooms()[:3], dtype=float)
    values = values[_nonzero(values)]
    inside = values != 0
    values = (values - values[inside].mean()) / values[inside].std()
    stored = _anisotropic(values, spacing, 3).astype(np.float32)
    _anisotropic(np.zeros(values.shape, dtype=np.float32), spacing, 1)  # the mask that is not there
    chunks, blocks = _blocks(stored.shape)
    target = out.with_suffix(".b2nd")
    target.unlink(missing_ok=True)
    blosc2.asarray(
        np.ascontiguousarray(stored), urlpath=str(target), chunks=chunks, blocks=blocks, mmap_mode="w+",
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1},
    )  # fmt: skip
    return target


def nnssl_read(path: Path, size: int, draw: np.random.Generator) -> torch.Tensor:
    """A random box as a tensor, padded where the scan is smaller."""
    import blosc2

    stored = blosc2.open(str(path), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
    start = [int(draw.integers(0, max(1, n - size + 1))) for n in stored.shape]
    box = np.asarray(stored[tuple(slice(s, min(s + size, n)) for s, n in zip(start, stored.shape, strict=True))])
    batch = np.zeros((1, size, size, size), dtype=np.float32)
    batch[0] = np.pad(box, [(0, size - n) for n in box.shape])
    return torch.from_numpy(batch)


def fomo_prepare(path: Path, out: Path) -> Path:
    """One scan to ``out.npy``."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = image.get_fdata(dtype=np.float32)
    spacing = np.array(image.header.get_zooms()[:3], dtype=float)
    values = values[_nonzero(values)]
    low, high = np.percentile(values, (1, 99))
    values = np.clip(values, low, high)
    values = (values - values.min()) / (values.max() - values.min())
    stored = _resized(values.astype(np.float64), _target(values.shape, spacing), 3).astype(np.float32)
    target = out.with_suffix(".npy")
    np.save(target, stored)
    return target


def fomo_read_pair(paths: tuple[Path, Path], size: int, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The same random box of two scans of a session; every draw looks through both whole for NaN, and again for infinities
    (github.com/jbanusco/fomo25, src/data/dataset.py, ``PretrainDataset.load_scan``, of 2025-12-09)."""
    volumes = [np.load(path, mmap_mode="r")[None] for path in paths]
    for path, volume in zip(paths, volumes, strict=True):
        if np.isnan(volume).any() or np.isinf(volume).any():
            raise FileNotFoundError(path)
    start: list[int] = [int(draw.integers(0, max(0, n - size) + 1)) for n in volumes[0].shape[1:]]
    boxes = []
    for volume in volumes:
        box = volume[(slice(None), *(slice(s, min(s + size, n)) for s, n in zip(start, volume.shape[1:], strict=True)))]
        out = np.zeros((1, size, size, size), dtype=volume.dtype)
        into = [(size - n) // 2 for n in box.shape[1:]]
        out[(slice(None), *(slice(i, i + n) for i, n in zip(into, box.shape[1:], strict=True)))] = box
        boxes.append(torch.tensor(out, dtype=torch.float32))
    return boxes[0], boxes[1]
