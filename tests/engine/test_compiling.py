"""A compiler that fails before, in the middle or backward costs one line and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuroprior.core.errors import InputError
from neuroprior.engine.compiling import Compiled

CPU = torch.device("cpu")


class Plain(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.calls = 0

    def forward(self, batch: Tensor, *, epoch: float = 0.0) -> dict[str, Tensor]:
        self.calls += 1
        return {"loss": (self.weight * batch).sum() + epoch}


class Broken(torch.autograd.Function):
    """Fails backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("no backward of this graph")


def compiled_as(monkeypatch: pytest.MonkeyPatch, form: Callable[..., Any]) -> Plain:
    """A module whose compiled form is ``form(module, batch, **how)``; the probe works."""
    module = Plain()
    monkeypatch.setattr(torch, "compile", lambda m: (lambda *a, **k: form(module, *a, **k)) if m is module else m)
    return module


def test_an_error_in_the_middle_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def form(module: Plain, batch: Tensor, **how: Any) -> Any:
        if len(batch) == 3:
            raise RuntimeError("cannot compile this shape\nand much more")
        return module(batch, **how)

    module = compiled_as(monkeypatch, form)
    run = Compiled(module, CPU)
    assert run.active
    assert float(run(torch.ones(2), epoch=1.0)["loss"].detach()) == 5
    assert run.active
    assert float(run(torch.ones(3))["loss"].detach()) == 6
    assert not run.active
    run(torch.ones(3))
    assert caplog.text.count("cannot compile this shape") == 1
    assert "and much more" not in caplog.text


def test_a_backward_that_fails_is_done_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def form(module: Plain, batch: Tensor, **how: Any) -> Any:
        return {"loss": Broken.apply(module(batch, **how)["loss"])}

    module = compiled_as(monkeypatch, form)
    run = Compiled(module, CPU)
    run.backward(run(torch.ones(4))["loss"] * 0.5, share=0.5, first=True)
    assert module.weight.grad is not None
    assert float(module.weight.grad) == 2
    assert not run.active
    assert "no backward of this graph" in caplog.text
    run = Compiled(module, CPU)
    loss = run(torch.ones(4))["loss"]
    with pytest.raises(RuntimeError, match="no backward"):  # an earlier gradient of the step must not be lost
        run.backward(loss, share=0.5, first=False)


@pytest.mark.parametrize("error", [InputError("a bad scan"), torch.OutOfMemoryError("full")])
def test_errors_that_are_not_the_compilers_are_raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def form(module: Plain, batch: Tensor, **how: Any) -> Any:
        raise error

    run = Compiled(compiled_as(monkeypatch, form), CPU)
    with pytest.raises(type(error)):
        run(torch.ones(2))
    assert run.active


def test_an_error_of_the_module_itself_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Compiled(compiled_as(monkeypatch, lambda module, batch, **how: module(batch, **how)), CPU)
    with pytest.raises(TypeError, match="epoh"):
        run(torch.ones(2), epoh=1.0)


def test_the_real_compiler_computes_the_same_or_stands_back() -> None:
    module = Plain()
    found = Compiled(module, CPU)(torch.ones(3))
    assert float(found["loss"].detach()) == 6
