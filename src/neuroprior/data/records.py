"""The batches that loaders make and objectives take."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class PairBatch(TypedDict):
    """Pairs of scans of one session, the same box of both.

    A subject whose session has one scan takes part with ``paired`` False; its ``image_b`` repeats ``image_a`` and
    objectives leave every term between the two out.
    """

    image_a: Tensor
    """(B, 1, x, y, z) float32, conformed."""
    image_b: Tensor
    """(B, 1, x, y, z) float32, conformed, the same box."""
    paired: Tensor
    """(B,) bool."""
    contrast_a: list[str]
    """Canonical names."""
    contrast_b: list[str]
    """Canonical names."""
    subject: list[str]
    """Namespaced subjects."""
    sample: Tensor
    """(B,) int64 numbers in the run's global stream of samples; masks and noise are functions of them."""
