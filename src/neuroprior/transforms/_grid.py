"""Small tools of the transforms: separable filters, Fourier space, axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

AXES = (-3, -2, -1)
"""The axes x, y, z of (..., x, y, z)."""


def flat(images: Tensor) -> tuple[Tensor, torch.Size]:
    """(..., x, y, z) as (N, 1, x, y, z), and the shape to go back to."""
    return images.reshape(-1, 1, *images.shape[-3:]), images.shape


def smooth(images: Tensor, sigma_voxels: Sequence[float]) -> Tensor:
    """(..., x, y, z) smoothed by a Gaussian a given number of voxels wide along each axis; edges are repeated."""
    rows, shape = flat(images)
    for axis, sigma in enumerate(sigma_voxels):
        radius = int(4 * sigma + 0.5)
        if sigma <= 0 or radius == 0:
            continue
        at = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-0.5 * (at / sigma) ** 2)
        kernel = (kernel / kernel.sum()).view([-1 if n == axis else 1 for n in range(3)])[None, None]
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        rows = functional.conv3d(functional.pad(rows, padding, mode="replicate"), kernel)
    return rows.reshape(shape)


def to_fourier(images: Tensor) -> Tensor:
    """The centred Fourier transform along x, y, z."""
    return torch.fft.fftshift(torch.fft.fftn(images, dim=AXES), dim=AXES)


def from_fourier(space: Tensor) -> Tensor:
    """The real part of the inverse of :func:`to_fourier`."""
    return torch.fft.ifftn(torch.fft.ifftshift(space, dim=AXES), dim=AXES).real


def along(values: Tensor, axis: int) -> Tensor:
    """A vector as (n, 1, 1), (1, n, 1) or (1, 1, n): to multiply volumes with along one axis (0, 1 or 2)."""
    return values.view([-1 if n == axis else 1 for n in range(3)])
