"""Swapped reconstructions: a scan decoded from its own contrast half and from whose anatomy?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..engine import panels
from ._features import Views


def _nobody() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True)
class Swaps:
    """Errors of swapped reconstructions, mean absolute over the head; NaN where a scan has no such partner.

    Attributes:
        model: the row's name.
        cases: (M,) the reconstructed scans, ``session:contrast``.
        own: (M,) with the scan's own anatomy half.
        other: (M,) with the anatomy half of another contrast of the session.
        wrong: (M,) with the anatomy half of the same other contrast of another subject.
        reason: why there is nothing, when there is nothing.
    """

    model: str
    cases: np.ndarray = field(default_factory=_nobody)
    own: np.ndarray = field(default_factory=_nobody)
    other: np.ndarray = field(default_factory=_nobody)
    wrong: np.ndarray = field(default_factory=_nobody)
    reason: str = ""


@torch.inference_mode()
def swap(model: str, net: nn.Module, views: Views, *, limit: int = 96, picture: Path | None = None) -> Swaps:
    """Decode evaluated scans from their own contrast half and three anatomy halves.

    The boxes are not shifted here, so that the contrasts of a session lie on one another. The wrong subject is the next one that has
    the same contrast as the other scan, on the same scanner where there is one.

    Args:
        model: the row's name.
        net: with ``encode`` and ``decode``.
        views: the boxes.
        limit: most scans, evenly spread.
        picture: PNG to write of some of them, or None.
    """
    rows = np.flatnonzero(~views.fit)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, limit).astype(int))]
    device, was_training = next(net.parameters()).device, net.training
    net.eval()
    try:
        first = torch.from_numpy(views.aligned(int(rows[0])).image)[None, None].to(device)
        if net.encode(first).contrast.shape[1] == 0:
            return Swaps(model, reason="this net has no contrast half")
        return _swap(model, net, views, rows, device, picture)
    finally:
        net.train(was_training)


def _swap(model: str, net: nn.Module, views: Views, rows: np.ndarray, device: torch.device, picture: Path | None) -> Swaps:
    errors = np.full((3, len(rows)), np.nan)
    shown: dict[str, list[np.ndarray]] = {}
    partners = [_partners(views, int(row)) for row in rows]
    for first in range(0, len(rows), views.config.batch):
        here = range(first, min(first + views.config.batch, len(rows)))
        needed = sorted({int(rows[n]) for n in here} | {row for n in here for row in partners[n] if row is not None})
        place = {row: n for n, row in enumerate(needed)}
        boxes = torch.from_numpy(np.stack([views.aligned(row).image for row in needed]))[:, None].to(device)
        code = net.encode(boxes)
        own = [place[int(rows[n])] for n in here]
        contrast, truth = code.contrast[own], boxes[own]
        head = torch.from_numpy(np.stack([views.aligned(int(rows[n])).head for n in here]))[:, None].to(device)
        columns = [truth]
        for kind, sources in enumerate((own, *([place.get(partners[n][k], -1) for n in here] for k in (0, 1)))):
            guess = net.decode(code.anatomy[[max(s, 0) for s in sources]], contrast, truth.shape[2:])
            error = _error(guess, truth, head).cpu().numpy()
            errors[kind, first : first + len(own)] = np.where(np.array(sources) >= 0, error, np.nan)
            columns.append(guess)
        if picture is not None:
            complete = [n for n, index in enumerate(here) if None not in partners[index]]
            for name, column in zip(("scan", "own anatomy", "other contrast's", "wrong subject's"), columns, strict=True):
                shown.setdefault(name, []).extend(column[n, 0].float().cpu().numpy() for n in complete[:1])
    if picture is not None and shown and len(shown["scan"]):
        picture.parent.mkdir(parents=True, exist_ok=True)
        panels.draw({name: np.stack(images) for name, images in shown.items()}, picture, rows=4)
    cases = np.array([f"{views.rows[row][0].key}:{views.rows[row][1]}" for row in rows], dtype=object)
    return Swaps(model, cases, *errors)


def _error(guess: Tensor, truth: Tensor, head: Tensor) -> Tensor:
    """(B,) mean absolute error over the head; over the whole box where no head is seen."""
    seen = torch.where(head.flatten(1).any(1).view(-1, 1, 1, 1, 1), head, torch.ones_like(head))
    return ((guess.float() - truth).abs() * seen).flatten(1).sum(1) / seen.flatten(1).sum(1)


def _partners(views: Views, row: int) -> tuple[int | None, int | None]:
    """Row numbers of another contrast of the session, and of that contrast of another subject."""
    session, contrast = views.rows[row]
    evaluated = [n for n in range(len(views)) if not views.fit[n]]
    same = [n for n in evaluated if views.rows[n][0].key == session.key and views.rows[n][1] != contrast]
    if not same:
        return None, None
    names = sorted(views.rows[n][1] for n in same)
    after = [name for name in names if name > contrast]
    wanted = (after or names)[0]
    other = next(n for n in same if views.rows[n][1] == wanted)
    strangers = [n for n in evaluated if views.rows[n][0].subject != session.subject and views.rows[n][1] == wanted]
    scanner = session.value("scanner")
    alike = [n for n in strangers if views.rows[n][0].value("scanner") == scanner] or strangers
    alike = [n for n in alike if n > row] + [n for n in alike if n < row]
    return other, alike[0] if alike else None
