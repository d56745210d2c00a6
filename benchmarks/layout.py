"""A step of small and large nets with channels-last maps and with contiguous ones, in turn in one process. One thread.

Usage: python benchmarks/layout.py [--rounds 15]

Prints a JSON line a case: medians of processor time in ms, and the median of paired ratios with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from neuroprior.engine.allocator import keep_freed_memory
from neuroprior.nets import unet

CASES = {
    "study's box, 24 scans of 16 x 24 x 16, 8 to 64 channels": ((24, 1, 16, 24, 16), (8, 16, 32, 64), 1),
    "tiny, 4 scans of 32^3, 8 to 64 channels": ((4, 1, 32, 32, 32), (8, 16, 32, 64), 2),
    "paper's net, 1 scan of 64^3, 32 to 512 channels": ((1, 1, 64, 64, 64), (32, 64, 128, 256, 512), 2),
}


def step(net: Any, scans: torch.Tensor) -> float:
    start = time.process_time()
    code = net.encode(scans)
    loss = (net.decode(code.anatomy, code.contrast, scans.shape[2:]) - scans).square().mean()
    loss.backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    cpu = torch.device("cpu")
    for name, (shape, features, convolutions) in CASES.items():
        torch.manual_seed(0)
        net = unet.build(unet.Config(features=features, convolutions=convolutions, latent=32))
        scans = torch.randn(shape)
        fast, plain = [], []
        for _ in range(given.rounds + 1):
            for times, layout in ((fast, torch.channels_last_3d), (plain, torch.contiguous_format)):
                net.lay_out(cpu, layout)
                times.append(step(net, scans))
        ratio = np.array(fast[1:]) / plain[1:]
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        print(json.dumps({
            "benchmark": "layout", "case": name, "channels_last_ms": round(1e3 * float(np.median(fast[1:])), 1),
            "contiguous_ms": round(1e3 * float(np.median(plain[1:])), 1), "ratio": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)],
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
