"""What a head's last layer says: numbers as they are, log-probabilities of ordered classes, or a binned distribution's expected value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["plain", "ordered_classes", "ordered_values"]


class Readout(nn.Module):
    """(B, width) of the last layer -> (B, outputs) that tasks and inference take.

    - ``plain``: as they are; width = outputs.
    - ``ordered_classes``: one score -> log-probabilities of ordered classes (proportional odds, McCullagh 1980); width 1.
    - ``ordered_values``: logits of exceeding the middle between neighbouring levels -> the expected value in front of them.

    Args:
        kind: one of these.
        outputs: classes, or numbers of the last layer.
        levels: the values between the thresholds of ``ordered_values``, one more than there are thresholds.
    """

    def __init__(self, kind: Kind, outputs: int, levels: Sequence[float] = ()) -> None:
        super().__init__()
        self.kind, self.levels = kind, tuple(levels)
        self.width = 1 if kind == "ordered_classes" else outputs
        self.steps = nn.Parameter(torch.zeros(outputs - 1)) if kind == "ordered_classes" else None

    def forward(self, output: Tensor) -> Tensor:
        """(B, width) -> (B, outputs), or one more column with ``ordered_values``."""
        if self.kind == "ordered_classes":
            assert self.steps is not None
            rising = functional.softplus(self.steps.float() + 0.5413)  # softplus(0.5413) = 1: thresholds begin one apart
            thresholds = rising.cumsum(0) - rising.sum() / 2 - rising[0] / 2
            above = output.float() - thresholds  # (B, K - 1) logits of "class k + 1 or more"
            upper, lower = functional.logsigmoid(above), functional.logsigmoid(-above)
            middle = torch.sigmoid(above[:, :-1]) - torch.sigmoid(above[:, 1:])
            return torch.cat([lower[:, :1], middle.clamp_min(1e-7).log(), upper[:, -1:]], 1)
        if self.kind == "ordered_values":
            levels = torch.tensor(self.levels, dtype=output.dtype, device=output.device)
            expected = levels[0] + (output.sigmoid() * levels.diff()).sum(1, keepdim=True)
            return torch.cat([expected, output], 1)
        return output
