"""The command line as a person meets it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

import neuroprior
from neuroprior.cli import _command, argument_help, stage_names

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("name", stage_names())
def test_every_parameter_of_every_stage_has_a_help_text(name: str) -> None:
    function = getattr(neuroprior, name)
    assert set(argument_help(function)) == set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", stage_names())
def test_every_stage_has_help_with_its_defaults(name: str, run_cli: Run) -> None:
    done = run_cli(name, "--help")
    assert done.returncode == 0, done.stderr
    for parameter in inspect.signature(getattr(neuroprior, name)).parameters.values():
        spelled = parameter.name.rstrip("_").replace("_", "-")
        assert f"--{spelled}" in done.stdout or spelled.upper() in done.stdout


NEEDS = {
    name: [option for option in _command(name).params if isinstance(option, click.Option) and option.required]
    for name in stage_names()
}


@pytest.mark.parametrize("name", [name for name, needed in NEEDS.items() if needed])
def test_an_option_that_is_needed_and_not_given_is_named_before_anything_is_done(
    name: str, run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        one.type.choices[0] if isinstance(one.type, click.Choice) else "x"
        for one in _command(name).params
        if isinstance(one, click.Argument)
    ]
    for missing in NEEDS[name]:
        given = [word for option in NEEDS[name] if option is not missing for word in (option.opts[0], "x")]
        done = run_cli(name, *words, *given, cwd=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert f"Missing option '{missing.opts[0]}'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_needs_an_option() -> None:
    assert {name: [option.opts[0] for option in needed] for name, needed in NEEDS.items() if name in ("prepare", "finetune", "convert")} == {
        "prepare": ["--out"], "finetune": ["--from", "--task", "--target"], "convert": ["--out", "--contrasts"],
    }  # fmt: skip


def test_the_list_is_machine_readable(run_cli: Run) -> None:
    found = json.loads(run_cli("list", "objectives", "--json").stdout)
    assert {"mae", "cross_contrast"} <= found.keys()


def test_an_error_is_a_message_with_a_next_step_not_a_traceback(run_cli: Run, tmp_path: Path) -> None:
    done = run_cli("prepare", tmp_path / "absent.parquet", "--out", tmp_path / "store")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "absent.parquet" in done.stderr
    assert "neuroprior index" in done.stderr
    assert "Traceback" in run_cli("--debug", "prepare", tmp_path / "absent.parquet", "--out", tmp_path / "store").stderr


def test_a_misspelt_name_gets_a_suggestion(run_cli: Run, store_path: Path, tmp_path: Path) -> None:
    done = run_cli("pretrain", store_path, "--recipe", "tinny", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "did you mean 'tiny'" in done.stderr


def test_the_version(run_cli: Run) -> None:
    assert neuroprior.__version__ in run_cli("--version").stdout


ENDING = """
import atexit, gc, sys
from neuroprior.cli import main
atexit.register(lambda: print(gc.get_freeze_count() > 0))
sys.argv = ["neuroprior", "evaluate", "/none", "--reference", "/none"]
if {triton}:
    sys.modules["triton"] = gc
main()
"""


@pytest.mark.parametrize("triton", [False, True])
def test_a_process_that_ends_does_not_look_at_everything_once_more(triton: bool) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING.format(triton=triton)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, str(not triton))
    assert done.stderr.startswith("error: ")


def test_doctor_knows_this_machine(run_cli: Run, tmp_path: Path) -> None:
    found = json.loads(run_cli("doctor", "--json", "--folder", tmp_path).stdout)
    assert {"torch", "cores", "memory", "disk", "write speed"} <= found.keys()
    assert "torchvision" not in found


@pytest.mark.parametrize(
    ("bfloat16", "int8", "said"), [(True, True, None), (False, True, "quick (VNNI)"), (False, False, "not quick (no VNNI)")]
)
def test_doctor_says_what_fast_predictions_do_without_a_card(
    bfloat16: bool, int8: bool, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroprior.core.precision.has_quick_bfloat16", lambda _: bfloat16)
    monkeypatch.setattr("neuroprior.core.precision.has_quick_int8", lambda _: int8)
    rows = {what: value for what, value, _ in neuroprior.doctor(folder=tmp_path).rows}
    assert rows.get("8-bit integers on the cpu") == said
    assert ("AMX" in rows["bfloat16 on the cpu"]) and rows["bfloat16 on the cpu"].startswith("quick") == bfloat16


def test_doctor_says_why_a_card_goes_without_the_fused_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from neuroprior.nets import _fused

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="a card", total_memory=24 * 2**30))
    monkeypatch.setattr(_fused, "_failed", [])
    monkeypatch.setattr(_fused, "kernels", lambda _: _fused._failed.append("ModuleNotFoundError: No module named 'triton'"))
    rows = {what: (value, advice) for what, value, advice in neuroprior.doctor(folder=tmp_path).rows}
    assert rows["norm on gpu 0"] == ("ModuleNotFoundError: No module named 'triton'", "pip install triton")
    monkeypatch.setattr(_fused, "_failed", [])
    monkeypatch.setattr(_fused, "kernels", lambda _: _fused)
    rows = {what: (value, advice) for what, value, advice in neuroprior.doctor(folder=tmp_path).rows}
    assert rows["norm on gpu 0"] == ("fused, maps channels-last", "")
