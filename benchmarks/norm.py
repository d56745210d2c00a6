"""The fused norm of a GPU beside torch's own operations and beside a plain copy; needs a GPU with Triton.

    python benchmarks/norm.py

Forward and backward, with a shortcut, of the maps of the paper's U-Net and of ResEnc-L. Bandwidth counts the bytes that must be moved
(forward: x twice, shortcut, answer; backward: gradient, x and answer twice, both gradients) against those of a copy in the same run. Errors are
relative to float64, of the answer, of the gradient of x (both rounded to the maps' own digits) and of the weights' gradients.
Appends JSON lines to benchmarks/results/norm.jsonl.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import record
from neuroprior.nets import _fused

SHAPES = (
    (4, 32, 64, 64, 64),
    (16, 32, 64, 64, 64),
    (16, 128, 16, 16, 16),
    (16, 512, 4, 4, 4),
    (2, 32, 160, 160, 160),
    (2, 320, 10, 10, 10),
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Median over repeats, after three to warm up."""
    times = []
    for number in range(repeats + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def measure(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> dict[str, object]:
    """One row."""
    device = torch.device("cuda")
    kernels = _fused.kernels(device)
    assert kernels is not None, "the kernels do not work here"
    torch.manual_seed(0)
    x, shortcut, grad = (
        torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=LAYOUTS[layout]) for _ in range(3)
    )
    weight, bias = torch.randn(2, shape[1], device=device).unbind()
    found: dict[str, object] = {
        "benchmark": "norm",
        "card": torch.cuda.get_device_name(),
        "shape": shape,
        "layout": layout,
        "dtype": str(dtype),
    }
    outcomes: dict[str, list[Tensor]] = {}
    for name, call in (("ours", kernels.norm_act), ("torch", _fused.composed)):
        tensors = [t.clone().requires_grad_() for t in (x, weight, bias, shortcut)]

        def forward(call: Callable[..., Tensor] = call, tensors: list[Tensor] = tensors) -> Tensor:
            return call(*tensors, 1e-5, _fused.SLOPE)

        y = forward()
        outcomes[name] = [y.detach(), *torch.autograd.grad(y, tensors, grad, retain_graph=True)]
        with torch.no_grad():
            found[f"{name}_forward_s"] = seconds(forward)
        found[f"{name}_backward_s"] = seconds(
            lambda y=y, tensors=tensors: torch.autograd.grad(y, tensors, grad, retain_graph=True)
        )
    copied = torch.empty_like(x)
    moved = x.numel() * x.element_size()
    rate = 2 * moved / seconds(lambda: copied.copy_(x))
    found["copy_GB_s"] = rate / 1e9
    found["forward_of_copy"] = 4 * moved / found["ours_forward_s"] / rate  # type: ignore[operator]
    found["backward_of_copy"] = 8 * moved / found["ours_backward_s"] / rate  # type: ignore[operator]
    if x.numel() < 2**25:
        tensors = [t.double().requires_grad_() for t in (x, weight, bias, shortcut)]
        y = _fused.composed(*tensors, 1e-5, _fused.SLOPE)
        exact = [y.detach(), *torch.autograd.grad(y, tensors, grad.double())]
        for name, values in outcomes.items():
            errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(values, exact, strict=True)]
            found[f"{name}_errors"] = dict(zip(("answer", "x", "weight", "bias", "shortcut"), errors, strict=True))
    return found


def main() -> None:
    """Measure and print."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here; the kernels' values are tested on a CPU by tests/nets/test_norm_kernel.py")
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            for layout in LAYOUTS:
                row = measure(shape, layout, dtype)
                print(json.dumps(row))
                record.keep("norm", row)


if __name__ == "__main__":
    main()
