"""Windows of the paper's segmentation net, ours beside MONAI's sliding window on one window at a time.

    python benchmarks/predict_plain.py [--rounds 5] [--shape 64,64,96] [--batch 2]
    python benchmarks/predict_plain.py --rounds 2 --shape 128,160,128 --kinds plain kept --no-warm-up      # a whole case

Both get the same weights and windows (64^3, overlap 0.5, Gaussian blending) of two contrasts. The plain way takes one window at a
time and encodes and decodes each contrast by itself with ``nn.InstanceNorm3d`` and LeakyReLU as they come; ``ours`` is
``inference/windows.py``, ``kept`` the same with freed memory kept, ``bfloat16`` and
``int8`` that in the precision of ``--preset fast`` on a CPU with AMX or VNNI, ``onnx`` what ``export onnx`` makes of it, by ONNX Runtime. Each has a process of its own, turns are taken, ratios are
of one round. ``ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI`` takes AMX away from torch's convolutions; AVX2 needs ``MKL_ENABLE_INSTRUCTIONS=AVX2``
and ``ATEN_CPU_CAPABILITY=avx2`` beside it, or matrix products and torch's own loops keep AVX-512.
Probabilities must agree everywhere, in the kinds of float32. Appends a JSON line to benchmarks/results/predict.jsonl.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

import record
from neuroprior.engine.allocator import KEPT_PREDICTING, keep_freed_memory
from neuroprior.inference import windows
from neuroprior.inference.layout import lay
from neuroprior.nets import _fused
from predict import build

NAMES = ["T1w", "FLAIR"]
WINDOW = (64, 64, 64)
LOW = ("bfloat16", "int8")
SESSIONS: dict[Path, Any] = {}


def plain(model: Any, images: Tensor) -> Tensor:
    """(classes, x, y, z) probabilities by MONAI, one window and one contrast at a time."""
    net, head = model.net, model.head
    share = head.fusion[[model.contrasts.index(name) for name in NAMES]].softmax(0)

    def one(window: Tensor) -> Tensor:
        codes = [net.encode(window[:, k : k + 1]) for k in range(len(NAMES))]
        anatomy = sum(code.anatomy for code in codes) / len(codes)
        logits: Any = 0
        for code, weight in zip(codes, share, strict=True):
            logits = logits + weight * head.logits(
                net.decode_features(code.stages, torch.cat([anatomy, code.contrast], 1), skips=True)
            )
        return logits.softmax(1)

    with torch.no_grad():
        line = torch.exp(-((torch.arange(WINDOW[0]) - (WINDOW[0] - 1) / 2) ** 2) / (2 * (WINDOW[0] / 8) ** 2))
        weights = (
            1e9 * line[:, None, None] * line[:, None] * line
        )  # MONAI's own, so large that it does not raise the small ones to 0.001
        found: Any = sliding_window_inference(images[None], WINDOW, 1, one, overlap=0.5, roi_weight_map=weights)
    return found[0]


def ours(model: Any, images: Tensor, batch: int, precision: Any) -> Tensor:
    """The same by us."""
    layout = lay(images.shape[1:], WINDOW, 0.5)
    passes = windows.Passes(precision=precision)
    return torch.cat([block for _, block in windows.stream([model], images, NAMES, layout, passes=passes, batch=batch)], 1)


def exported(model: Any, images: Tensor, folder: Path) -> Tensor:
    """The same by ONNX Runtime, in two threads."""
    import onnxruntime

    from neuroprior.bridges import onnx
    from neuroprior.bridges._onnx_runner import Exported, Member, _blocks
    from neuroprior.inference.presets import PredictConfig
    from neuroprior.inference.reading import Prepared

    path = folder / "graph.onnx"
    if not path.exists():
        onnx._write_graph(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if path not in SESSIONS:
        SESSIONS[path] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    case: Any = Prepared("x", tuple(NAMES), images.numpy(), NAMES[0], None, (), (), ())  # type: ignore[arg-type]  # no way back is asked for
    blocks = _blocks(Exported(model.info, folder, (Member(SESSIONS[path], model.task, ()),)), case, PredictConfig(), False, None)
    return torch.cat([torch.from_numpy(block) for _, block in blocks], 1)


def worker(kind: str, shape: tuple[int, ...], batch: int, pipe: Any) -> None:
    """Predicts whenever it is asked to; answers (seconds, processor seconds, probabilities, peak resident MB)."""
    if kind in ("kept", *LOW):
        keep_freed_memory(KEPT_PREDICTING)
    if kind == "plain":
        _fused.fast_layout = lambda _: torch.contiguous_format
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder) / "paper", "fomo25", WINDOW[0], NAMES)
        while pipe.recv():
            wall, cpu = time.perf_counter(), time.process_time()
            if kind == "plain":
                p = plain(model, images)
            elif kind == "onnx":
                p = exported(model, images, Path(folder))
            else:
                p = ours(model, images, batch, kind if kind in LOW else "float32")
            spent = time.perf_counter() - wall, time.process_time() - cpu
            pipe.send((*spent, p.numpy(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", default="64,64,96")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=["plain", "ours", "kept"])
    parser.add_argument("--warm-up", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    shape = tuple(int(n) for n in given.shape.split(","))
    context = multiprocessing.get_context("spawn")
    kinds, pipes = given.kinds, {}
    for kind in kinds:
        pipes[kind], other = context.Pipe()
        context.Process(target=worker, args=(kind, shape, given.batch, other), daemon=True).start()
    wall: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    peak, apart = {}, 0.0
    for number in range(0 if given.warm_up else 1, given.rounds + 1):
        answers = {}
        for kind in kinds if number % 2 else kinds[::-1]:
            pipes[kind].send(True)
            a, b, answers[kind], peak[kind] = pipes[kind].recv()
            if number:  # the first warms up
                wall[kind].append(a)
                cpu[kind].append(b)
        apart = max(apart, *(float(abs(answers[kind] - answers["plain"]).max()) for kind in kinds if kind not in LOW))
        assert apart < 5e-3, apart
    for pipe in pipes.values():
        pipe.send(False)
    n = len(lay(shape, WINDOW, 0.5))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result: dict[str, Any] = {
        "benchmark": "predict_plain", "commit": commit, "shape": shape, "windows": n, "batch": given.batch, "rounds": given.rounds, "largest_difference": apart,
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""), "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {torch.get_num_threads()} threads",
    }  # fmt: skip
    for kind in kinds:
        ratios = [a / b for a, b in zip(wall[kind], wall["plain"], strict=True)]
        by_cpu = [a / b for a, b in zip(cpu[kind], cpu["plain"], strict=True)]
        result[kind] = {
            "s_a_window": statistics.median(wall[kind]) / n, "processor_s_a_window": statistics.median(cpu[kind]) / n,
            "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "processor_ratio": statistics.median(by_cpu), "peak_mb": peak[kind],
        }  # fmt: skip
    record.keep("predict", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
