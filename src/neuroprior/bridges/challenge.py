"""A challenge container: ``predict`` with the contract's arguments, the inference code alone, the weights, an Apptainer definition.

What is written is checked by ``_check`` and answered by ``_contract``; the rules come from ``protocols``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import artifacts
from ..core.errors import ArtifactError, ConfigError, InputError
from ..inference.model import read_info, resolve
from ..protocols import ANY, Protocol, Task
from ._contract import MODEL, TASK
from ._travelling import PYTHON, copy_code, folder_bytes, package_bytes, requirements, write_licence

ENTRY, APP, DEFINITION, REQUIREMENTS, CARD = "predict", "app", "Apptainer.def", "requirements.txt", "README.md"

ENSEMBLE = "ensemble.json"
"""What makes a folder an ensemble of models."""

MAX_BYTES = 1_000_000_000
"""Of the exported folder and the packages it needs, torch and what torch brings apart."""

# ------------------------------------------------------------------------------------------------------------- does it fit?


def fit(
    info: Mapping[str, Any], protocol: Protocol, task: Task, *, partial: bool = False, where: Path | None = None
) -> list[str]:
    """What a user should know of a model that fits a task.

    Args:
        info: the content of ``model.json``.
        protocol, task: what is asked.
        partial: accept a model that does not know every contrast of the task; those it does not know are left out.
        where: the model's folder, for errors.

    Raises:
        ConfigError: the organisers take no containers, or the model is for another kind of task, other classes, labels or contrasts.
    """
    title = f"{protocol.title} task {task.number} ({task.name})"
    if protocol.submission != "container":
        raise ConfigError(
            f"{protocol.title} takes no containers", expected="a protocol with a container contract (fomo25, fomo26)",
            next_step=f"{protocol.title} fine-tunes checkpoints itself ({', '.join(protocol.checkpoint.networks if protocol.checkpoint else ())}): "
            "neuroprior export nnssl MODEL --out DIR",
        )  # fmt: skip
    if task.kind == "embedding":
        return [] if info.get("task") is None else ["the encoder of a fine-tuned model embeds; its head is not used"]
    has = info.get("task") or {}
    if has.get("name") != task.kind:
        raise ConfigError(
            f"the model does not fit {title}", file=where, expected=f"a model fine-tuned for {task.kind}",
            got=f"{has['name']} of {has.get('target')}" if has else "a pretrained model with no head",
            next_step=f"fine-tune it: neuroprior finetune STORE --from MODEL --task {task.kind} --target ...",
        )  # fmt: skip
    if task.kind == "classification" and len(has.get("classes", ())) != 2:
        raise ConfigError(
            f"{title} asks for one probability",
            file=where,
            expected="a model with two classes",
            got=", ".join(has.get("classes", ())),
        )
    if task.kind == "segmentation" and task.labels is not None:
        extra = sorted(set(has.get("label_values", ())) - set(task.labels))
        if extra:
            raise ConfigError(
                f"the model's labels do not fit {title}", file=where, expected=f"values among {list(task.labels)}",
                got=f"{has['label_values']}", next_step="fine-tune on masks with the task's values",
            )  # fmt: skip
    notes, known = [], set(info["contrasts"])
    missing: list[str] = []
    for entry in task.inputs:
        lacking = [name for name in entry.contrasts if name not in known]
        if lacking and entry.one_of and len(lacking) < len(entry.contrasts):
            notes.append(
                f"the model does not know {', '.join(lacking)}: a case that has it in place of another is answered without"
            )
        elif lacking:
            missing.append(" or ".join(lacking))
    if len(missing) == len(task.inputs) or (missing and not partial):
        raise ConfigError(
            f"the model does not know the contrasts of {title}", file=where, expected=_contrasts_of(task),
            got=", ".join(info["contrasts"]),
            next_step="fine-tune with these contrasts" + ("" if len(missing) == len(task.inputs) else ", or leave them out with --partial"),
        )  # fmt: skip
    return notes + [f"left out, unknown to the model: {name}" for name in missing]


def _contrasts_of(task: Task) -> str:
    return ", ".join(" or ".join(entry.contrasts) for entry in task.inputs)


def contract(protocol: Protocol, task: Task, info: Mapping[str, Any], preset: str = "fast") -> dict[str, Any]:
    """The content of ``task.json``: all that ``predict`` and the check need to know."""
    has = info.get("task") or {}
    return {
        "artifact": "challenge", "version": 1, "neuroprior": __version__, "protocol": protocol.name, "title": protocol.title,
        "number": task.number, "name": task.name, "kind": task.kind, "output": task.output,
        "inputs": [entry.model_dump(mode="json") for entry in task.inputs],
        "labels": None if task.labels is None else list(task.labels),
        "positive": has.get("positive") if task.kind == "classification" else None,
        "seconds": protocol.limits.seconds, "preset": preset, "weights_sha256": info["weights_sha256"],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- what travels


def read_source(model: Path) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """The folder of a model or an ensemble, its description, and the descriptions of the models in it.

    Args:
        model: a model folder, the run folder that holds it, or an ensemble's folder (``ensemble.json`` and ``members/``).

    Raises:
        ArtifactError: it is none of these, or damaged.
    """
    if (model / ENSEMBLE).is_file():
        info = artifacts.read_json(model / ENSEMBLE)
        return model, info, [read_info(model / entry["folder"]) for entry in info["members"]]
    folder = resolve(model)
    info = read_info(folder)
    return folder, info, [info]


def roots_of(infos: Iterable[Mapping[str, Any]]) -> list[str]:
    """The modules that answering with models starts from: the contract, their nets and their heads."""
    names = ["neuroprior.bridges._contract"]
    for one in infos:
        names += [f"neuroprior.nets.{one['net']['name']}"]
        names += [f"neuroprior.heads.{one['head']['name']}"] if one["head"] is not None else []
    return names


def require_small(folder: Path, lines: Sequence[str], limit: int = MAX_BYTES) -> int:
    """The size of an exported folder and its packages without torch.

    Raises:
        InputError: it is above the limit; the message names the largest parts.
    """
    parts = {"the folder": folder_bytes(folder), **package_bytes(lines)}
    total = sum(parts.values())
    if total > limit:
        largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
        raise InputError(
            "the image is too large", file=folder, expected=f"under {limit / 1e6:.0f} MB without torch",
            got=f"{total / 1e6:.0f} MB (" + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in largest) + ")",
            next_step="use a smaller net or fewer models in the ensemble",
        )  # fmt: skip
    return total


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    model: Path, protocol: Protocol, task: Task, out: Path, *, partial: bool = False, preset: str = "fast"
) -> dict[str, Any]:
    """Write the folder, answer one synthetic case with it, and list what that loaded.

    Args:
        model: a model folder, or the run folder that holds it.
        protocol, task: what is asked.
        out: where to write; must not hold anything but an earlier export.
        partial: see :func:`fit`.
        preset: how the container predicts (``inference.presets``).

    Returns:
        ``task.json`` with ``bytes`` and ``notes``.

    Raises:
        ConfigError: the model does not fit.
        InputError: ``out`` is another kind of folder, or the result is too large.
        ArtifactError: the model folder is damaged, or the exported ``predict`` gives no answer.
    """
    source, info, members = read_source(model)
    notes = fit(info, protocol, task, partial=partial, where=source)
    if out.exists() and any(out.iterdir()) and not (out / TASK).is_file():
        raise InputError("the output folder holds something else", file=out, expected="an empty folder or an earlier export")
    for name in (APP, MODEL):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (TASK, "check.json"):
        (out / name).unlink(missing_ok=True)
    copy_code(roots_of(members), out / APP)
    _copy_model(source, out / MODEL)
    artifacts.write_text(out / ENTRY, _ENTRY)
    os.chmod(out / ENTRY, 0o755)
    described = contract(protocol, task, info, preset)
    artifacts.write_json(out / TASK, described)

    from ._check import answer_one

    outcome = answer_one(out)
    if outcome.returncode != 0:
        raise ArtifactError(
            "the exported predict gives no answer", file=out / ENTRY, got=outcome.tail or f"exit status {outcome.returncode}",
            next_step="try the model with neuroprior predict first",
        )  # fmt: skip
    lines = requirements(out / APP, outcome.modules)
    artifacts.write_text(out / REQUIREMENTS, "\n".join(lines) + "\n")
    artifacts.write_text(out / DEFINITION, definition(described))
    write_licence(out)
    artifacts.write_text(out / CARD, _readme(described, info, task, notes))
    return {**described, "bytes": require_small(out, lines), "notes": notes}


def _copy_model(source: Path, target: Path) -> None:
    """Weights and descriptions of a model or an ensemble; nothing else that lies there."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.suffix in {".safetensors", ".json", ".md"} and not path.name.startswith("."):
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.relative_to(source))


_ENTRY = '''#!/usr/bin/env python3
"""Answers one case of the challenge; see README.md."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(FOLDER / "app"))

from neuroprior.bridges._contract import main

sys.exit(main(FOLDER))
'''


def definition(described: Mapping[str, Any]) -> str:
    """The Apptainer definition."""
    return f"""Bootstrap: docker
From: python:{PYTHON}-slim

%labels
    challenge {described["title"]}
    task {described["number"]} {described["name"]}
    neuroprior {described["neuroprior"]}
    weights {described["weights_sha256"]}

%files
    {ENTRY} /opt/challenge/{ENTRY}
    {TASK} /opt/challenge/{TASK}
    {REQUIREMENTS} /opt/challenge/{REQUIREMENTS}
    {APP} /opt/challenge/{APP}
    {MODEL} /opt/challenge/{MODEL}

%post
    pip install --no-cache-dir --requirement /opt/challenge/{REQUIREMENTS}
    chmod 755 /opt/challenge/{ENTRY}
    ln -s /opt/challenge/{ENTRY} /usr/local/bin/{ENTRY}

%environment
    export PYTHONDONTWRITEBYTECODE=1
    export PYTHONNOUSERSITE=1

%runscript
    exec /usr/local/bin/python3 /opt/challenge/{ENTRY} "$@"
"""


def usage(described: Mapping[str, Any]) -> str:
    """The arguments of ``predict``, as one line."""
    words = []
    for entry in described["inputs"]:
        flags = [
            f"{flag} {contrast if contrast != ANY else 'SCAN'}.nii.gz"
            for contrast, flag in zip(entry["contrasts"], entry["flags"], strict=True)
        ]
        words.append(flags[0] if len(flags) == 1 else f"({' | '.join(flags)})")
    ending = {"mask": "mask.nii.gz", "embedding": "embedding.npy"}.get(str(described["output"]), "answer.txt")
    return " ".join([*words, f"--output {ending}"])


def _readme(described: Mapping[str, Any], info: Mapping[str, Any], task: Task, notes: Sequence[str]) -> str:
    licences = "; ".join(info["licences"]) or "not stated"
    told = "".join(f"- {note}\n" for note in notes)
    return f"""# {described["title"]} task {described["number"]}: {described["name"]}

`predict` answers one case a call: {_SAYS[task.output]}.

```
./predict {usage(described)}
```

## Check, build, run

```
neuroprior export check .                       # the contract, here and now
apptainer build predict.sif {DEFINITION}
neuroprior export check .                       # again, now also inside the image
apptainer run --nv predict.sif {usage(described)}
```

Building needs the network (PyPI); running needs none. The code in `{APP}/` is the inference part of neuroprior {described["neuroprior"]}
and holds no training code; `{REQUIREMENTS}` lists exactly what it imports.

## Model

| | |
|---|---|
| weights sha256 | {info["weights_sha256"]} |
| contrasts it knows | {", ".join(info["contrasts"])} |
| licence of the code | Apache-2.0 |
| licences of the training data | {licences} |

{told}
Research use; not a medical device.
"""


_SAYS = {
    "probability": "one probability in [0, 1] as text",
    "number": "one number as text",
    "mask": "a NIfTI on the grid of the first scan, with integer labels",
    "embedding": "one 1-D float32 vector as .npy",
}
