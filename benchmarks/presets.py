"""Does ``--preset fast`` say what ``balanced`` says? A trained segmentation net on whole test cases of 1 mm, and what each costs.

    neuroprior synthesise --out heads --subjects 16 --spacing 1 --contrasts T1w,FLAIR --healthy 0
    neuroprior index heads --out index.parquet --split train=0.75,test=0.25
    neuroprior prepare index.parquet --out store --spacing 1
    neuroprior finetune store --from scratch --task segmentation --target dseg --label-map 1:1,2:1,... --set data.patch=64 --out RUN
    python benchmarks/presets.py RUN index.parquet --truth heads [--presets fast balanced] [--without-amx]

Prints, over cases and label values, the DSC between the two presets' masks and of each to the truth, and processor seconds. The truth of the index's
label files is mapped as the model's task says. ``--without-amx`` chooses as on a CPU without it. Appends a JSON line to benchmarks/results/presets.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd

import neuroprior
import record
from neuroprior.inference import presets
from neuroprior.metrics.dice import dice


def masks(folder: Path) -> dict[str, np.ndarray]:
    """Subject -> predicted label map."""
    found = sorted(folder.rglob("*dseg.nii.gz"))
    return {path.name.split("_")[0]: np.asarray(nibabel.load(path).dataobj).astype(int) for path in found}  # type: ignore[attr-defined]


def main() -> None:
    """Predict and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--truth", type=Path, required=True, help="folder of the label files, named sub-..._dseg.nii.gz")
    parser.add_argument("--presets", nargs=2, default=["fast", "balanced"])
    parser.add_argument("--without-amx", action="store_true")
    given = parser.parse_args()
    if given.without_amx:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"  # read at the first convolution
        presets.has_quick_bfloat16 = lambda _: False
    task = json.loads((given.model / "model" / "model.json").read_text())["task"]
    values = [int(value) for value in task["label_values"]]
    sources = task.get("label_sources") or [[value] for value in values]
    seconds: dict[str, float] = {}
    made: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as name:
        for preset in given.presets:
            began = time.process_time()
            neuroprior.predict(
                given.model, [str(given.index)], out=Path(name) / preset, split="test", preset=preset, device="cpu"
            )
            seconds[preset] = time.process_time() - began
            made[preset] = masks(Path(name) / preset)
    one, two = (made[preset] for preset in given.presets)
    rows: list[dict[str, Any]] = []
    for subject in sorted(two):
        path = next(p for p in given.truth.rglob(f"{subject}_*_dseg.nii.gz") if "desc-" not in p.name)
        truth = np.asarray(nibabel.load(path).dataobj).astype(int)  # type: ignore[attr-defined]
        for value, source in zip(values, sources, strict=True):
            real = np.isin(truth, source)
            a, b = one[subject] == value, two[subject] == value
            rows.append(
                {
                    "subject": subject,
                    "value": value,
                    "between": dice(a, b),
                    given.presets[0]: dice(a, real),
                    given.presets[1]: dice(b, real),
                }
            )
    table = pd.DataFrame(rows)
    print(table.round(4).to_string(index=False))
    result = {
        "benchmark": "presets", "presets": given.presets, "without_amx": given.without_amx, "cases": len(two), "between_mean": float(table["between"].mean()),
        "between_least": float(table["between"].min()), **{f"{p}_to_truth": float(table[p].mean()) for p in given.presets},
        "processor_s": seconds, "ratio": seconds[given.presets[0]] / seconds[given.presets[1]],
    }  # fmt: skip
    record.keep("presets", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
