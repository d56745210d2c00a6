"""The command line: one subcommand a stage, made from the stage function's signature.

Names, defaults and help are the function's own: parameters without a default are arguments, the others options, and the
help texts come from the docstring. A stage is imported only when it is called; ``--help`` reads sources.
"""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import json
import logging
import re
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from . import __version__
from .core import ranks, shelf
from .core.errors import NeuropriorError
from .core.paths import accept_text
from .core.places import is_address
from .core.processes import STOPPING

STAGES = Path(__file__).parent / "stages"
ORDER = (
    "demo", "doctor", "bench", "synthesise", "index", "audit", "prepare", "store", "anatomy", "convert", "pretrain", "finetune", "crossvalidate", "fewshot", "predict", "embed",
    "evaluate", "stress", "probe", "report", "export",
)  # fmt: skip
"""The order in ``--help``: as the data flows; other stages follow by name."""

OPTIONS = {"out", "task", "target", "reference", "contrasts"}
"""Required parameters that read better as options."""


def stage_names() -> list[str]:
    """The stages there are, read from the folder."""
    found = {path.stem for path in STAGES.glob("*.py") if not path.stem.startswith("_")}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def _first_line(name: str) -> str:
    return (ast.get_docstring(ast.parse((STAGES / f"{name}.py").read_text(encoding="utf-8"))) or "").split("\n")[0]


class _Stages(click.Group):
    """A group whose stage commands are made when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*stage_names(), *sorted(self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in stage_names():
            if ctx.resilient_parsing or _only_help(ctx):
                return click.Command(cmd_name, help=_first_line(cmd_name))
            return _command(cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        ctx.meta["invoking"] = True
        return super().resolve_command(ctx, args)


def _only_help(ctx: click.Context) -> bool:
    """True while the list of commands is being drawn, so that no stage is imported for it."""
    return not ctx.meta.get("invoking", False)


@click.group(cls=_Stages, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="neuroprior")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="Only warnings and errors.")
def app(debug: bool, quiet: bool) -> None:
    """Foundation models of brain MRI: raw scans in, native-space predictions and a report you can trust out."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("neuroprior").setLevel(logging.WARNING if quiet else logging.INFO)


@app.command("list")
@click.argument("what", type=click.Choice([*shelf.SHELVES, "stages", "contrasts"]))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def _list(what: str, as_json: bool) -> None:
    """What is on a shelf: objectives, tasks, nets, readers, recipes, metrics ..."""
    if what == "stages":
        things = {name: _first_line(name) for name in stage_names()}
    elif what == "contrasts":
        from .core.contrasts import VOCABULARY

        things = {entry.name: f"{entry.meaning} (also {', '.join(entry.aliases)})" for entry in VOCABULARY}
    else:
        things = {name: shelf.about(what, name) for name in shelf.names(what)}
    if as_json:
        click.echo(json.dumps(things, indent=2))
        return
    width = max((len(name) for name in things), default=0)
    for name, about in things.items():
        click.echo(f"{name:<{width}}  {about}")


def argument_help(function: Callable[..., Any]) -> dict[str, str]:
    """Parameter name -> its text in the ``Args:`` part of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?:\n\S|\Z)", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE)
    texts: dict[str, str] = {}
    name = None
    for line in (section.group(1) if section else "").splitlines():
        entry = re.match(r"^    (\w+): (.*)", line)
        if entry:
            name = entry.group(1)
            texts[name] = entry.group(2)
        elif name:
            texts[name] += " " + line.strip()
    return texts


def _command(name: str) -> click.Command:
    """The click command of a stage."""
    function = getattr(importlib.import_module(f"neuroprior.stages.{name}"), name)
    texts = argument_help(function)
    probe = types.FunctionType(function.__code__, function.__globals__)  # the return type may be known to checkers only
    probe.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    hints = typing.get_type_hints(probe)
    parameters: list[click.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        hint, many = _plain(hints[parameter.name])
        kind: Any = _PATH if hint is Path else hint
        text = texts.get(parameter.name, "")
        spelled = parameter.name.rstrip("_").replace("_", "-")
        if parameter.default is parameter.empty and not parameter.name.endswith("_") and parameter.name not in OPTIONS:
            shown = spelled.upper() + ("..." if many else "")
            parameters.append(click.Argument([parameter.name], type=kind, nargs=-1 if many else 1, required=True, metavar=shown))
        elif hint is bool:
            default = bool(parameter.default)
            flag = f"--{spelled}/--no-{spelled}"
            parameters.append(click.Option([flag, parameter.name], default=default, help=text, show_default=True))
        else:
            required = parameter.default is parameter.empty
            # click takes a default that is named, None too, for an answer
            given: dict[str, Any] = {"required": True} if required else {"default": parameter.default}
            told = not required and parameter.default is not None
            parameters.append(
                click.Option([f"--{spelled}", parameter.name], type=kind, multiple=many, help=text, show_default=told, **given)
            )
    summary = inspect.getdoc(function) or ""
    return click.Command(
        name, params=parameters, help=summary.split("\nArgs:")[0].strip(), callback=lambda **values: _call(function, values)
    )


def _plain(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there may be many."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        hint = Path if Path in members and len(members) > 1 else members[0]
    if typing.get_origin(hint) in (list, tuple):
        return _plain(typing.get_args(hint)[0])[0], True
    if typing.get_origin(hint) is typing.Literal:
        return click.Choice([str(value) for value in typing.get_args(hint)]), False
    return hint, False


class _PathOrAddress(click.Path):
    """A path, or the text of an address: whether that will do is settled where the stage is called."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_address(value) else super().convert(value, param, ctx)


_PATH = _PathOrAddress(path_type=Path)


def _call(function: Callable[..., Any], values: dict[str, Any]) -> None:
    """Run a stage; its result is printed, its exit code handed on."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    result = accept_text(function)(**values)
    if result is not None and ranks.is_first():
        click.echo(str(result))
    sys.exit(getattr(result, "exit_code", 0))


class _Stopped(BaseException):
    """By a signal: as a KeyboardInterrupt it passes all that catches errors, and pools and files are closed on its way."""


def _heed_signals() -> None:
    """End in order on what a scheduler sends before it kills, once; the second signal ends at once. A training puts its own handlers up meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        return
    ours = [number for number in STOPPING if signal.getsignal(number) == signal.SIG_DFL]

    def stop(number: int, _: object) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(signal.Signals(number).name)

    for number in ours:
        signal.signal(number, stop)


def main() -> None:
    """Entry point of the command ``neuroprior``: 0 done, 2 wrong input, 3 done with failed cases, 75 stopped (try again)."""
    _heed_signals()
    try:
        app()
    except _Stopped as stopped:
        click.secho(f"{stopped}: stopped; the same command goes on where it can", fg="yellow", err=True)
        sys.exit(75)
    except NeuropriorError as error:
        if "--debug" in sys.argv:
            raise
        click.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if "triton" not in sys.modules:  # whose library counts what is not taken apart, and complains
            gc.freeze()  # else every object of torch is looked at once more before the process ends: half a second
