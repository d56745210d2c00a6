"""Maps that are computed again in backward instead of being kept (Chen et al. 2016, arXiv 1604.06174), by torch's checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run(again: bool, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, of which nothing but the inputs and the result is kept where ``again`` is set and gradients are wanted.

    Args:
        again: whether to compute twice.
        function: without any randomness; it may overwrite what it made itself, not its inputs.
        inputs: tensors.
    """
    if not again or not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
