"""Where bfloat16 is worth taking."""

from __future__ import annotations

import pytest
import torch

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
