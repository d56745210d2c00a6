"""Importing costs nothing, the command line answers at once, and what is exported exists."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable

import neuroprior
from neuroprior.cli import stage_names
from neuroprior.core import shelf

HEAVY = {
    "torch",
    "pandas",
    "nibabel",
    "monai",
    "lightning",
    "pydantic",
    "scipy",
    "sklearn",
    "matplotlib",
    "nilearn",
    "blosc2",
    "pyarrow",
}

Run = Callable[..., subprocess.CompletedProcess[str]]


def loaded_after(code: str) -> set[str]:
    program = (
        f"{code}\nimport sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not loaded_after("import neuroprior") & (HEAVY | {"numpy"})


def test_help_and_list_import_nothing_heavy() -> None:
    for arguments in (
        ["--help"],
        ["list", "objectives"],
        ["list", "recipes", "--json"],
        ["list", "contrasts"],
        ["list", "stages"],
    ):
        code = f"from neuroprior.cli import app\ntry:\n    app({arguments!r})\nexcept SystemExit:\n    pass"
        assert not loaded_after(code) & HEAVY, arguments


def test_everything_exported_is_there() -> None:
    for name in neuroprior.__all__:
        assert getattr(neuroprior, name) is not None
    assert set(stage_names()) <= set(neuroprior.__all__)


def test_inference_imports_no_training_code() -> None:
    loaded = loaded_after(
        "import neuroprior; neuroprior.load; import neuroprior.inference.predictor, neuroprior.inference.windows"
    )
    assert "lightning" not in loaded
    code = "import neuroprior.inference.predictor\nimport sys; print([n for n in sys.modules if n.startswith('neuroprior')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for part in ("engine", "objectives", "tasks", "data"):
        assert f"neuroprior.{part}" not in done.stdout


def test_a_refused_request_does_not_wait_for_the_trainer() -> None:
    tried = "import neuroprior\nfrom neuroprior.core.errors import NeuropriorError\ntry:\n    {}\nexcept NeuropriorError:\n    pass\nelse:\n    raise SystemExit(1)"
    assert "lightning" not in loaded_after(tried.format("neuroprior.pretrain('nothing', recipe='tiny', out='x')"))
    assert "lightning" not in loaded_after("import neuroprior.tasks._running")


def test_every_thing_on_a_shelf_says_what_it_is_and_loads() -> None:
    for name in shelf.SHELVES:
        for thing in shelf.names(name):
            assert shelf.about(name, thing), f"{name}/{thing} has no first line"
            if shelf.path_of(name, thing).suffix == ".py":
                assert shelf.load(name, thing) is importlib.import_module(f"neuroprior.{name}.{thing}")
