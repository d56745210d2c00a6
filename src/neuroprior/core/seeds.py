"""Randomness as a function of its name: the same (seed, purpose, step, sample ...) always gives the same draw.

Nothing in the package draws from a global generator, so a draw depends neither on the number of workers nor on
how often a run was interrupted.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str


def entropy(*key: Key) -> int:
    """128 bits of entropy that depend on every part of ``key`` and on their order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(*key: Key) -> np.random.Generator:
    """A NumPy generator for ``key``, for example ``generator(seed, "crop", sample)``."""
    return np.random.Generator(np.random.PCG64(entropy(*key)))


def torch_generator(*key: Key) -> torch.Generator:
    """A CPU torch generator for ``key``."""
    import torch

    made = torch.Generator(device="cpu")
    made.manual_seed(entropy(*key) & 0x7FFF_FFFF_FFFF_FFFF)
    return made
