"""What every task answers, and the module that trains a net and a head on one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..data.cases import Case, CaseBatch
from ..data.store import SessionView, Store
from ._losses import deep


class Task(Protocol):
    """A task fitted to the targets of its training sessions."""

    name: str
    """Its name on the shelf."""

    def cases(self, store: Store, sessions: Sequence[SessionView], contrasts: Sequence[str]) -> list[Case]:
        """The sessions that carry a usable target and at least one of ``contrasts``, as cases."""
        ...

    def head(self, net: nn.Module, contrasts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """Name and config of the head that this task needs on ``net``."""
        ...

    def losses(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """``loss`` and its named parts from the head's output and the batch's target."""
        ...

    def describe(self) -> dict[str, Any]:
        """The plain-data description stored in the model folder: name, target, classes or scale, floor."""
        ...


class Supervised(nn.Module):
    """A net and a head trained together on a task: what the engine steps.

    A batch norm inside the net keeps the statistics that it came with (see :func:`settle`): those of two or four scans say nothing.

    Args:
        net: any net of the shelf.
        head: the head that the task asked for.
        task: gives the losses.
    """

    def __init__(self, net: nn.Module, head: nn.Module, task: Task) -> None:
        super().__init__()
        self.net, self.head = net, head
        self.losses = task.losses
        self.levels = len(getattr(head.config, "levels", ())) if hasattr(head, "deep") else 0
        self.train()

    def train(self, mode: bool = True) -> Supervised:
        """As for every module; the net's batch norms stay in evaluation."""
        super().train(mode)
        for module in batch_norms(self.net):
            module.eval()
        return self

    def forward(self, batch: CaseBatch, *, epoch: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
        """The losses of a ragged batch; ``epoch`` and ``seed`` are part of the engine's contract and change nothing."""
        n_cases = batch["target"].shape[0]
        representation = self.net.encode(batch["images"])
        rows = (self.net, representation, batch["case"], batch["contrast"], n_cases)
        if self.levels and self.training:
            outputs = [output.float() for output in self.head.deep(*rows)]
            outputs[0] = _cut(outputs[0], batch["target"])
            return dict(deep(outputs, batch["target"], self.losses))
        covariates = batch.get("covariates")
        output = self.head(*rows) if covariates is None else self.head(*rows, covariates)
        return self.losses(_cut(output.float(), batch["target"]), batch["target"])


def batch_norms(net: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    """Those of a net; its instance norms are none."""
    return [module for module in net.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))]


@torch.no_grad()
def settle(net: nn.Module, encodings: Iterable[object]) -> None:
    """Give the batch norms of a net that was not pretrained the mean and variance of what reaches them from training scans.

    Args:
        net: in evaluation while it encodes; a net without batch norms is left alone.
        encodings: makes ``net`` encode the scans, a case at a time, as it is run through.
    """
    norms = batch_norms(net)
    if not norms:
        return
    seen: list[list[Tensor]] = [[] for _ in norms]
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0].cpu()))
        for norm, rows in zip(norms, seen, strict=True)
    ]
    for _ in encodings:
        pass
    for norm, rows, hook in zip(norms, seen, hooks, strict=True):
        hook.remove()
        values = torch.cat(rows).transpose(0, 1).flatten(1)  # (C, N)
        if values.shape[1] > 1:
            norm.running_mean, norm.running_var = values.mean(1), values.var(1)


def _cut(output: Tensor, target: Tensor) -> Tensor:
    """Label maps without what the net padded odd boxes with at their far end; other outputs as they are."""
    if output.ndim < 5:
        return output
    x, y, z = target.shape[-3:]
    return output[..., :x, :y, :z]


def usable_contrasts(session: SessionView, contrasts: Sequence[str]) -> tuple[str, ...]:
    """Those of ``contrasts`` that the session has, in the order given."""
    return tuple(name for name in contrasts if name in session.scans)
