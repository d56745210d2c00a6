"""Fine-tuning and prediction on the stand-in for a GPU; a process of its own, for tests.

    python use.py LIBRARY STORE PRETRAINED INDEX OUT [KEY=VALUE ...]

Writes OUT/run (three steps) and predictions of its test cases by two presets, OUT/accurate (float32) and OUT/balanced (bfloat16).
"""

from __future__ import annotations

import sys
from pathlib import Path

import gpu


def main() -> None:
    """Trains and predicts."""
    library, store, pretrained, index, name, *settings = sys.argv[1:]
    gpu.install(Path(library))
    import neuroprior
    from neuroprior.nets import _fused

    _fused.kernels = lambda _: None  # interpreted, they take seconds a map; test_standin.py has them in a pretraining
    out = Path(name)
    neuroprior.finetune(store, from_=pretrained, task="segmentation", target="lesion", out=out / "run", steps=3, set=settings)
    for preset in ("accurate", "balanced"):
        neuroprior.predict(out / "run", [index], out=out / preset, split="test", preset=preset, overlap=0.0, probabilities=True)


if __name__ == "__main__":
    main()
