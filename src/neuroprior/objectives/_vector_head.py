"""The head between a pooled part of the code and what it should tell: the SSL3D winner's MLP.

Gordaliza, Banus et al., arXiv 2601.13166: adaptive average pool to 2^3, flatten, (Linear, LayerNorm, ReLU) twice, Linear,
LayerNorm; the first width is the next power of two above the input, the second 256. Departures, each a switch: the input may
be centred first (``centre``), since a cosine target is otherwise met by one constant direction; the last LayerNorm can be
left out, which a target with a scale needs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Centre = Literal["none", "batch_mean", "batchnorm"]
"""What is done to the head's input: nothing; the batch's mean is taken off while training, a running mean after; BatchNorm."""


class VectorHead(nn.Module):
    """(B, inputs) -> (B, outputs)."""

    def __init__(self, inputs: int, outputs: int, *, centre: Centre, final_norm: bool) -> None:
        super().__init__()
        first = 1 << max(0, inputs).bit_length()
        self.centre: nn.Module = (
            (nn.BatchNorm1d(inputs, affine=centre == "batchnorm") if centre == "batchnorm" else _MeanOff(inputs))
            if centre != "none"
            else nn.Identity()
        )
        layers: list[nn.Module] = [
            nn.Linear(inputs, first), nn.LayerNorm(first), nn.ReLU(), nn.Linear(first, 256), nn.LayerNorm(256), nn.ReLU(),
            nn.Linear(256, outputs),
        ]  # fmt: skip
        if final_norm:
            layers.append(nn.LayerNorm(outputs))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions of a batch of pooled codes. BatchNorm needs a batch of 2 while training and is skipped for 1."""
        if isinstance(self.centre, nn.BatchNorm1d) and self.training and x.shape[0] < 2:
            x = nn.functional.batch_norm(
                x, self.centre.running_mean, self.centre.running_var, self.centre.weight, self.centre.bias, False, 0.0, self.centre.eps
            )  # fmt: skip
        else:
            x = self.centre(x)
        return self.mlp(x)


class _MeanOff(nn.Module):
    """The batch's mean taken off while training; a running mean in evaluation and for a batch of one."""

    mean: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.shape[0] < 2:
            return x - self.mean.to(x.dtype)
        here = x.mean(0)
        with torch.no_grad():
            self.mean.lerp_(here.detach().to(self.mean.dtype), 0.1)
        return x - here
