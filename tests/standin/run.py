"""A pretraining on the stand-in for a GPU; a process of its own, for tests.

    python run.py LIBRARY KERNELS STORE RECIPE OUT [KEY=VALUE ...]

Writes OUT/told.json: the loss of every step, and where a step would have waited for the GPU. KERNELS is 1 to have the fused norm's
interpreted, which takes seconds a map, else 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu


def noted(method: Any) -> Any:
    """A hook of the loop in which waits count; the first step is left out, which tries the kernels."""

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        gpu.counting[0] = self.step > self.start
        try:
            return method(self, *args, **kwargs)
        finally:
            gpu.counting[0] = False

    return wrapped


def main() -> None:
    """Trains."""
    library, kernels, store, recipe, out, *settings = sys.argv[1:]
    gpu.install(Path(library))
    from neuroprior.engine import loop
    from neuroprior.nets import _fused
    from neuroprior.stages.pretrain import pretrain

    if kernels == "1":
        _fused._try = lambda *_: None  # a trial of the kernels on larger maps; it has tests of its own
    else:
        _fused.kernels = lambda _: None
    for name in ("transfer_batch_to_device", "on_train_batch_start", "training_step", "backward", "optimizer_step"):
        setattr(loop.Loop, name, noted(getattr(loop.Loop, name)))
    pretrain(Path(store), recipe=recipe, out=Path(out), set=settings)
    events = [json.loads(line) for line in (Path(out) / "events.jsonl").read_text().splitlines()]
    ledger = json.loads((Path(out) / "ledger.json").read_text())
    told = {
        "losses": [event["loss"] for event in events if event["event"] == "step"],
        "validation": [event["loss"] for event in events if event["event"] == "validation"],
        "device": ledger["device"], "waits": dict(gpu.waits),
    }  # fmt: skip
    (Path(out) / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
