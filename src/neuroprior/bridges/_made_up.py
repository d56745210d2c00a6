"""Made-up heads on grids of several kinds, for exported folders to answer."""

from __future__ import annotations

import numpy as np

from ..core import seeds
from ..core.volume import Volume

GRIDS: dict[str, tuple[tuple[int, int, int], tuple[float, float, float]]] = {
    "plain": ((44, 52, 46), (4.0, 4.0, 4.0)),
    "oblique": ((46, 50, 32), (4.0, 4.0, 6.0)),
    "odd": ((34, 48, 52), (5.5, 4.2, 3.8)),
    "full": ((182, 218, 182), (1.0, 1.0, 1.0)),
}
"""Voxels and spacing in millimetres of each made-up grid."""


def grid_affine(grid: str) -> np.ndarray:
    """(4, 4) voxel -> RAS+ mm: ``oblique`` is turned by 17 and 9 degrees, ``odd`` has its axes run posterior, inferior, left."""
    shape, spacing = GRIDS[grid]
    turn = np.eye(3)
    if grid == "oblique":
        a, b = np.deg2rad([17, 9])
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
            [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
        )
    elif grid == "odd":
        turn = np.array([[0, 0, -1], [-1, 0, 0], [0, -1, 0]], dtype=float)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = np.array([3.0, -11.0, 7.0]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def made_up_head(grid: str, contrast: str, seed: int = 0) -> Volume:
    """A head of four ellipsoids (scalp, brain, ventricles, a spot) with noise, whose grey values depend on the contrast."""
    shape, _ = GRIDS[grid]
    affine = grid_affine(grid)
    draw = seeds.generator(seed, "made-up head", contrast, grid)
    world = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"), -1) @ affine[:3, :3].T.astype(
        np.float32
    )
    world += (affine[:3, 3] - np.array([3.0, -11.0, 7.0])).astype(np.float32)
    image = draw.normal(0, 6, shape).astype(np.float32)
    for centre, radius in (
        ((0, 0, 0), (72, 88, 78)),
        ((0, 0, 4), (62, 78, 66)),
        ((0, -4, 8), (16, 24, 12)),
        ((30, 10, 20), (12, 10, 11)),
    ):
        inside = (((world - np.float32(centre)) / np.float32(radius)) ** 2).sum(-1) < 1
        image[inside] = draw.uniform(150, 900) + image[inside]
    return Volume(np.abs(image).astype(np.int16), affine)
