"""The batches that loaders make and objectives take."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from torch import Tensor


class PairBatch(TypedDict):
    """Pairs of scans of one subject, the same box of both.

    A subject whose session has one scan takes part with ``paired`` False; its ``image_b`` repeats ``image_a`` and
    objectives leave every term between the two out. What a subject does not have is marked, never made up.
    """

    image_a: Tensor
    """(B, 1, x, y, z) float32, conformed."""
    image_b: Tensor
    """(B, 1, x, y, z) float32, conformed, the same box."""
    paired: list[bool]
    """Whether B is another scan than A; a list, since a GPU that is asked for it would have to be waited for."""
    contrast_a: list[str]
    """Canonical names."""
    contrast_b: list[str]
    """Canonical names."""
    subject: list[str]
    """Namespaced subjects."""
    sample: list[int]
    """Numbers in the run's global stream of samples; masks and noise are functions of them."""
    health: Tensor
    """(B,) int64: 0 healthy, 1 not, -1 unknown."""
    anatomy: Tensor
    """(B, D) float32 anatomical vectors; rows of subjects without one are 0; D is 0 where no table was given."""
    has_anatomy: Tensor
    """(B,) bool."""
    label_a: NotRequired[Tensor]
    """(B, x, y, z) int64 ids of scan A's label map; 0 where there is none."""
    label_b: NotRequired[Tensor]
    """(B, x, y, z) int64 ids of scan B's label map; 0 where there is none."""
    has_label: Tensor
    """(B,) bool: both label maps are there."""
