"""Whole volumes through a net that was trained on boxes: overlapping windows (MONAI's sliding-window inference)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .model import Model


@torch.inference_mode()
def segment(
    model: Model,
    images: Tensor,
    contrasts: Sequence[str],
    *,
    window: Sequence[int],
    overlap: float = 0.5,
    batch: int = 2,
) -> Tensor:
    """Class probabilities of one case.

    Args:
        model: with a segmentation head.
        images: (K, x, y, z) float32, conformed, one a contrast, on the model's device.
        contrasts: the K canonical names, each known to the model.
        window: box size in voxels; a smaller volume is padded with zeros.
        overlap: of neighbouring windows, in [0, 1).
        batch: windows a step.

    Returns:
        (classes, x, y, z) float32 probabilities; windows are blended with a Gaussian weight.
    """
    from monai.inferers.utils import sliding_window_inference

    head = model.head
    assert head is not None
    numbers = torch.tensor([model.contrasts.index(name) for name in contrasts], device=images.device)

    def step(boxes: Tensor, *_: Any) -> Tensor:
        n, k = boxes.shape[:2]
        rows = boxes.reshape(n * k, 1, *boxes.shape[2:])
        case = torch.arange(n, device=boxes.device).repeat_interleave(k)
        x, y, z = boxes.shape[2:]
        logits = head(model.net, model.net.encode(rows), case, numbers.repeat(n), n)[..., :x, :y, :z]
        return logits.float().softmax(1)

    out = sliding_window_inference(
        images[None], tuple(window), batch, step, overlap=overlap, mode="gaussian", padding_mode="constant", cval=0.0
    )
    assert isinstance(out, Tensor)
    return out[0]


@torch.inference_mode()
def pool(model: Model, images: Tensor, contrasts: Sequence[str], *, window: Sequence[int]) -> Tensor:
    """The pooled head's raw outputs for one case seen whole.

    Args:
        model: with a pooled head.
        images: (K, x, y, z) float32, conformed.
        contrasts: the K canonical names.
        window: the box the head was trained on; the volume is centred in it, cropped or padded with zeros.

    Returns:
        (outputs,) float32.
    """
    head = model.head
    assert head is not None
    boxed = images.new_zeros((images.shape[0], *window))
    source, target = [], []
    for extent, length in zip(images.shape[1:], window, strict=True):
        start = (extent - length) // 2
        low, high = max(start, 0), min(start + length, extent)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    boxed[(slice(None), *target)] = images[(slice(None), *source)]
    case = torch.zeros(len(contrasts), dtype=torch.int64, device=images.device)
    numbers = torch.tensor([model.contrasts.index(name) for name in contrasts], device=images.device)
    return head(model.net, model.net.encode(boxed[:, None]), case, numbers, 1).float()[0]
