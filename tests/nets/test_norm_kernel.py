"""The GPU's norm without a GPU: the kernels are interpreted, compared with torch's own operations, and compiled for real cards."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuroprior.engine.device import set_layout
from neuroprior.engine.settings import TrainingConfig
from neuroprior.nets import _fused, resenc, unet

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed (pip install triton)", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

NAME = "neuroprior.nets._norm_kernel"
LAST = torch.channels_last_3d


@pytest.fixture
def kernels() -> ModuleType:
    """The module; the tests' conftest has triton interpreted."""
    return importlib.import_module(NAME)


@pytest.fixture
def on_cpu(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Nets take the kernels on this machine too."""
    monkeypatch.setattr(_fused, "GPUS", ("cpu",))
    monkeypatch.setattr(_fused, "kernels", lambda _: kernels)
    monkeypatch.setattr(_fused, "_failed", [])
    return kernels


def both(kernels: ModuleType, *, channels: int, size: tuple[int, int, int], last: bool, slope: float, added: bool, dtype: torch.dtype) -> list[list[Tensor]]:  # fmt: skip
    """Answer and gradients by the kernels, and by torch in float64."""
    layout = LAST if last else torch.contiguous_format
    torch.manual_seed(0)
    x, shortcut, grad = (torch.randn(3, 2, channels, *size) * 2 + 5).to(dtype).unbind()
    weight, bias = torch.randn(2, channels).unbind()
    found = []
    for call, exact in ((kernels.norm_act, False), (_fused.composed, True)):
        tensors = [x.contiguous(memory_format=layout), weight, bias, *([shortcut] if added else [])]
        tensors = [(t.double() if exact else t).detach().requires_grad_() for t in tensors]
        y = call(*tensors[:3], tensors[3] if added else None, 1e-5, slope)
        found.append([y.detach(), *torch.autograd.grad(y, tensors, grad.to(y.dtype))])
    assert found[0][0].is_contiguous(memory_format=layout)
    assert found[0][0].dtype == found[0][1].dtype == dtype
    return found


CUTS = {"one launch": (2048, 1024, 4), "shares": (4, 16, 1), "a share a tile": (8, 10**6, 0)}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("slope", "added"), [(0.01, True), (1.0, False)])
def test_values_and_gradients_are_those_of_torch(
    kernels: ModuleType, cut: str, last: bool, slope: float, added: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("TILE", "PROGRAMS", "ALONE"), CUTS[cut], strict=True):
        monkeypatch.setattr(kernels, name, value)
    shape = {"channels": 3, "size": (3, 2, 3), "last": last}
    shares = kernels.plan(torch.empty(2, 3, 3, 2, 3).to(memory_format=LAST if last else torch.contiguous_format)).shares
    assert (shares == 1) is (cut == "one launch")
    ours, theirs = both(kernels, **shape, slope=slope, added=added, dtype=torch.float32)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 2e-5
    # rounded to eight bits at the end only: sums and the gradients of the weights are as exact as in float32
    ours, theirs = both(kernels, **shape, slope=slope, added=added, dtype=torch.bfloat16)
    for name, a, b in zip(("y", "x", "weight", "bias"), ours, theirs, strict=False):
        assert float((a.double() - b).norm() / b.norm()) < (5e-3 if name in "yx" else 1e-4), name


def test_more_channels_than_a_tile_is_wide(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "WIDEST", 4)
    assert kernels.plan(torch.empty(2, 6, 3, 2, 3).to(memory_format=LAST)).blocks == 2
    ours, theirs = both(kernels, channels=6, size=(3, 2, 3), last=True, slope=0.01, added=True, dtype=torch.float32)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 2e-5


def test_a_mean_far_from_zero_costs_no_digits(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TILE", 32)
    x = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 3000
    y = kernels.norm_act(x, torch.ones(1), torch.zeros(1), None, 1e-5, 1.0)
    expected = (x.double() - x.double().mean()) / (x.double().var(correction=0) + 1e-5).sqrt()
    assert float((y - expected).abs().max()) < 1e-3


NETS = {
    "unet": (unet, unet.Config(features=(4, 8), latent=3, skips=True)),
    "resenc": (resenc, resenc.Config(features=(4, 8), blocks=(1, 2))),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_net_computes_and_learns_what_it_does_without(
    on_cpu: ModuleType, name: str, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, config = NETS[name]
    torch.manual_seed(0)
    net = module.build(config)
    x = torch.randn(1, 1, 4, 8, 4)
    calls: list[bool] = []
    original = on_cpu.norm_act

    def counted(x: Tensor, *rest: Any) -> Tensor:
        calls.append(x.is_contiguous())
        return original(x, *rest)

    monkeypatch.setattr(on_cpu, "norm_act", counted)

    def run() -> dict[str, Tensor]:
        net.zero_grad()
        y = net.reconstruct(net.encode(x), x.shape[2:])
        y.square().mean().backward()
        return {"y": y.detach()} | {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    set_layout(net, TrainingConfig(layout=layout), torch.device("cpu"))
    ours = run()
    assert len(calls) == sum(isinstance(part, nn.InstanceNorm3d) for part in net.modules())
    assert set(calls) == {layout == "contiguous"}
    monkeypatch.setattr(_fused, "GPUS", ())
    set_layout(net.to(memory_format=torch.contiguous_format), TrainingConfig(layout="contiguous"), torch.device("cpu"))
    plain = run()
    assert ours.keys() == plain.keys()
    for key, value in plain.items():
        scale = float(value.abs().max()) + 1e-6
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-3 * scale if "conv.bias" not in key else 1e-5, msg=key)


def test_the_layout_follows_the_kernels(on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fused.fast_layout(torch.device("cpu")) == LAST
    net = unet.build(NETS["unet"][1])
    weight = net.get_parameter("encoder.1.0.conv.weight")
    set_layout(net, TrainingConfig(compile=True), torch.device("cpu"))
    assert weight.is_contiguous()
    set_layout(net, TrainingConfig(), torch.device("cpu"))
    assert weight.is_contiguous(memory_format=LAST)
    monkeypatch.setattr(_fused, "_failed", ["it"])
    assert _fused.fast_layout(torch.device("cpu")) == torch.contiguous_format
    monkeypatch.setattr(_fused, "GPUS", ("cuda",))
    assert _fused.fast_layout(torch.device("cpu")) == LAST
    assert _fused.fast_layout(torch.device("mps")) == torch.contiguous_format


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_a_kernel_raises_is_told_once_and_the_run_goes_on(
    on_cpu: ModuleType, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("no such instruction\nand a long trace")

    if where == "forward":
        monkeypatch.setattr(on_cpu, "norm_act", fail)
    else:
        monkeypatch.setattr(on_cpu.NormAct, "by_kernels", fail)
    norm = nn.InstanceNorm3d(3, affine=True)
    torch.manual_seed(0)
    x, shortcut = torch.randn(2, 2, 3, 4, 2, 2)
    answers = []
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tensors = [t.clone().requires_grad_() for t in (x, shortcut)]
            y = _fused.norm_act(tensors[0] * 1, norm, shortcut=tensors[1])
            answers.append([y, *torch.autograd.grad(y.square().sum(), [*tensors, norm.weight, norm.bias])])
    told = [record.getMessage() for record in caplog.records]
    assert told == ["the fused norm does not work on this GPU, going on without it: RuntimeError: no such instruction"]
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_out_of_memory_is_not_taken_for_a_failure(on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("all of it")

    monkeypatch.setattr(on_cpu, "norm_act", fail)
    with pytest.raises(torch.OutOfMemoryError, match="all of it"):
        _fused.norm_act(torch.randn(1, 3, 4, 2, 2), nn.InstanceNorm3d(3, affine=True))
    assert not _fused._failed


def test_kernels_that_answer_wrongly_are_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def wrong(x: Tensor, *rest: Any) -> Tensor:
        return _fused.composed(x, *rest) * 1.01

    def exact(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, *rest: Any) -> Tensor:
        return _fused.composed(x.double(), weight.double(), bias.double(), shortcut.double(), *rest).to(x.dtype)

    right = SimpleNamespace(norm_act=exact)
    _fused._try(right, torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(ArithmeticError, match=r"off by 1\.\de-02 on maps of \(3, 4, 5\) in torch.float32"):
        _fused._try(SimpleNamespace(norm_act=wrong), torch.device("cpu"))  # type: ignore[arg-type]
    monkeypatch.setattr(_fused, "_failed", [])
    monkeypatch.setitem(sys.modules, NAME, SimpleNamespace(norm_act=wrong))
    monkeypatch.setattr("neuroprior.nets._norm_kernel", SimpleNamespace(norm_act=wrong), raising=False)
    with caplog.at_level(logging.WARNING):
        assert _fused.kernels.__wrapped__(torch.device("cpu")) is None
    assert "going on without it: ArithmeticError: off by" in caplog.text
    assert _fused.trouble(torch.device("cpu")).startswith("ArithmeticError: off by")


COMPILE = """
import re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from neuroprior.nets import _norm_kernel

card, dtype, last = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
constants = {"rows": 64 if last else 2048, "width": 32 if last else 1, "last": last, "added": True, "active": True, "passed": True}
for name in sys.argv[4:]:
    kernel = getattr(_norm_kernel, name)
    known = {key: value for key, value in constants.items() if key in kernel.arg_names}
    kinds = {}
    for key in kernel.arg_names:
        if key in known:
            kinds[key] = "constexpr"
        elif key in ("channels", "voxels", "share", "shares", "maps"):
            kinds[key] = "i32"
        elif key in ("eps", "slope"):
            kinds[key] = "fp32"
        else:
            kinds[key] = f"*{dtype if key in ('x', 'y', 'shortcut', 'grad', 'dx', 'dshortcut') else 'fp32'}"
    where = {key: n for n, key in enumerate(kernel.arg_names)}
    aligned = {(n,): [["tt.divisibility", 16]] for key, n in where.items() if kinds[key] == "i32" or kinds[key][0] == "*"}
    source = ASTSource(kernel, kinds, {(where[key],): value for key, value in known.items()}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", card, 32))
    assert made.asm["cubin"], name
    if "x" in where:
        assert re.search(r"ld\\.global\\.v4", made.asm["ptx"]), name
    print(name)
"""
"""Without a GPU: Triton's compiler and the assembler that comes with it. Maps are read sixteen bytes at a time."""

KERNELS = ("_forward_moments", "_join_moments", "_forward_apply", "_forward_whole", "_backward_sums", "_join_sums", "_backward_apply", "_backward_whole")  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("card", "dtype"), [(70, "fp16"), (90, "bf16")])
def test_they_compile_for_real_cards_and_read_wide(last: bool, card: int, dtype: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(card), dtype, str(last), *KERNELS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == list(KERNELS), done.stderr[-2000:]
