"""What statistics and closed forms are taken from: boxes in the middle, read as boxes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neuroprior.data import sessions
from neuroprior.data.cases import Case, centred, crop
from neuroprior.data.store import Store
from neuroprior.engine.settings import TrainingConfig
from neuroprior.tasks import _running


class Plain(nn.Module):
    """Its representation is the images."""

    def encode(self, images: torch.Tensor) -> Any:
        return images


@pytest.mark.parametrize("patch", [(16, 16, 16), (200, 16, 16)])
def test_no_volume_is_read_whole_for_a_box(
    store_path: Path, patch: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(store_path)
    cases = [Case(session, tuple(sorted(session.scans)), 0.0) for session in store.sessions[:3]]
    expected = [
        np.stack([crop(store.read(c.session.key, name), centred(c.session.shape, patch), patch) for name in c.contrasts])
        for c in cases
    ]
    boxes: list[list[int]] = []
    real = sessions.read_array

    def noted(path: Any, frame: Any, box: Any = None) -> np.ndarray:
        found = real(path, frame, box)
        boxes.append(list(found.shape))
        return found

    monkeypatch.setattr(sessions, "read_array", noted)
    plan: Any = SimpleNamespace(patch=patch, contrasts=["FLAIR", "T1w", "T2w"])
    got: Any = list(_running._encoded(Plain(), store, plan, cases, TrainingConfig(steps=1, accelerator="cpu")))
    assert [case for case, _, _ in got] == cases
    assert all(np.array_equal(images[:, 0].numpy(), want) for (_, images, _), want in zip(got, expected, strict=True))
    assert len(boxes) == sum(len(case.contrasts) for case in cases)
    assert all(shape[1:] == [16, 16] and shape[0] <= patch[0] for shape in boxes), boxes
