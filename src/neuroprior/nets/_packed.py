"""What is made of a layer's weights once and kept for as long as they are the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor, nn

Made = TypeVar("Made")


class Packed(Generic[Made]):
    """Something made of the weights of a convolution's input channels from ``first`` on; made anew once the weights have changed."""

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[nn.Conv3d, dict[int, tuple[tuple[int, int], Made]]] = weakref.WeakKeyDictionary()

    def of(self, layer: nn.Conv3d, first: int, channels: int, make: Callable[[Tensor], Made]) -> Made:
        """What ``make`` makes of the weights (out, ``channels``, ...) of the input channels from ``first`` on."""
        source = layer.weight.data_ptr(), layer.weight._version  # where the weights lie, and how often they were changed
        kept = self._kept.setdefault(layer, {})
        found = kept.get(first)
        if found is None or found[0] != source:
            found = kept[first] = source, make(layer.weight.detach()[:, first : first + channels])
        return found[1]


def keepable(layer: nn.Conv3d) -> bool:
    """Whether a layer's weights can be told to be the same as before: weights that an adapter computes are new each time."""
    return isinstance(layer.weight, nn.Parameter) and not layer.weight.is_inference()
