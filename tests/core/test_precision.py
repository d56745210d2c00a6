"""Where numbers of fewer bits than float32 are worth taking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from neuroprior.core import precision
from neuroprior.core.precision import has_quick_bfloat16


@pytest.mark.parametrize("found", [True, False])
def test_a_cpu_is_quick_where_it_has_amx(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": found, "avx512_bf16": True}, raising=False)
    assert has_quick_bfloat16("cpu") == found
    assert has_quick_bfloat16(torch.device("cpu")) == found


def test_other_processors_and_an_older_torch_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"}, raising=False)
    assert not has_quick_bfloat16("cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_quick_bfloat16("cpu")
    assert not has_quick_bfloat16("mps")


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_is_asked(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: there)
    assert has_quick_bfloat16("cuda") == there


@pytest.fixture
def _asked_anew() -> Iterator[None]:
    """What a process has found out about its CPU is forgotten before and after."""
    precision._int8_works.cache_clear()
    yield
    precision._int8_works.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize("name", ["avx512_vnni", "avx_vnni", "avx512_f"])
def test_integers_need_instructions_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.cpu.get_capabilities()
    if "vnni" in name and not real.get(name):
        pytest.skip("this CPU has it not")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert precision.has_quick_int8("cpu") == ("vnni" in name)
    assert not precision.has_quick_int8("cuda")
    assert not precision.has_quick_int8("meta")


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize("trouble", ["not there", "wrong"])
def test_convolutions_of_integers_that_do_not_work_are_told_once(
    trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})

    class Ops:
        @staticmethod
        def qconv_prepack(*_: Any) -> None:
            if trouble == "not there":
                raise RuntimeError("no such engine\nand more")

        @staticmethod
        def qconv_pointwise(*_: Any) -> torch.Tensor:
            return torch.zeros(1, 16, 8, 8, 8)

    monkeypatch.setattr(torch.ops, "onednn", Ops)
    for _ in range(2):
        assert not precision.has_quick_int8("cpu")
    assert caplog.text.count("going on without") == 1
    assert ("no such engine" if trouble == "not there" else "wrong by 1.0e+00") in caplog.text
    assert "and more" not in caplog.text
