"""Several models of one task as one: folds, seeds, or both; probabilities are averaged, never logits.

::

    ensemble/
      ensemble.json   task, contrasts, preprocessing, calibration, the members and their weights' hashes; written last
      members/0/ 1/   whole model folders
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import artifacts
from ..core.errors import ArtifactError, ConfigError
from . import model as models

FORMAT = 1
"""Version of the folder's layout."""
DESCRIPTION = "ensemble.json"
MEMBERS = "members"

SAME_IN_TASK = ("name", "target", "classes", "label_values", "label_pairs", "mirror_axes")
"""What members must agree on; each keeps its own scale of a number, floor and box (a segmentation's box must be the same)."""


def write_ensemble(folder: str | Path, members: Sequence[str | Path], *, calibration: Mapping[str, Any] | None = None) -> Path:
    """Put models together; the folder is an ensemble from the moment ``ensemble.json`` is there.

    Args:
        folder: where to write; an earlier ensemble there is replaced.
        members: at least two model folders, or run folders that hold them.
        calibration: of the averaged answers, as in ``model.json``.

    Returns:
        The folder.

    Raises:
        ConfigError: members differ in task, contrasts or preprocessing (the message names them), or there are fewer than two.
        ArtifactError: a member is damaged.
    """
    folder = Path(folder)
    paths = [models.resolve(member) for member in members]
    if len(paths) < 2:
        raise ConfigError("an ensemble has at least two members", got=len(paths), next_step="use the model itself")
    infos = [models.read_info(path) for path in paths]
    for path, info in zip(paths, infos, strict=True):
        if not info.get("task"):
            raise ConfigError("a member of an ensemble is fine-tuned", file=path, got=info["kind"])
        found = artifacts.sha256_file(path / models.WEIGHTS)
        if found != info["weights_sha256"]:
            raise ArtifactError(
                "the weights are not the ones that model.json describes",
                file=path / models.WEIGHTS,
                next_step="copy the folder again",
            )
    first = _common(infos[0])
    for path, info in zip(paths[1:], infos[1:], strict=True):
        here = _common(info)
        for part, wanted in first.items():
            if here[part] != wanted:
                raise ConfigError(
                    f"the members of an ensemble differ in {part}", file=path, expected=f"{wanted} (as {paths[0]})", got=here[part],
                    next_step="put together models of one task on one store",
                )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    inside = (folder / MEMBERS).resolve()
    if any(path.resolve().is_relative_to(inside) for path in paths):
        raise ConfigError(
            "an ensemble cannot be made of its own members in place", file=folder, next_step="choose another folder"
        )
    shutil.rmtree(folder / MEMBERS, ignore_errors=True)
    listed = []
    for number, (path, info) in enumerate(zip(paths, infos, strict=True)):
        target = folder / MEMBERS / str(number)
        target.mkdir(parents=True)
        for name in (models.WEIGHTS, models.CARD, models.DESCRIPTION):
            if (path / name).is_file():
                shutil.copyfile(path / name, target / name)
        listed.append({"folder": f"{MEMBERS}/{number}", "weights_sha256": info["weights_sha256"], "method": info["method"]})
    info = {
        "artifact": "ensemble", "format": FORMAT, "neuroprior": __version__, "kind": "ensemble", "members": listed,
        "task": infos[0]["task"], "contrasts": infos[0]["contrasts"], "preprocessing": infos[0]["preprocessing"],
        "method": {"stage": "ensemble", "members": len(listed)}, "lineage": infos[0].get("lineage", []), "data": infos[0].get("data", {}),
        "licences": sorted({licence for one in infos for licence in one.get("licences", ())}),
        "weights_sha256": artifacts.sha256_json([one["weights_sha256"] for one in infos]),
    }  # fmt: skip
    if calibration is not None:
        info["calibration"] = dict(calibration)
    artifacts.write_json(folder / DESCRIPTION, info)
    return folder


def _common(info: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal, by the name that a message uses."""
    task = info["task"]
    common = {"preprocessing": info["preprocessing"], "contrasts": list(info["contrasts"])}
    common |= {f"task.{key}": task.get(key) for key in SAME_IN_TASK}
    if task["name"] == "segmentation":
        common["task.window"] = list(task["window"])
    return common


def is_ensemble(folder: str | Path) -> bool:
    """Whether a folder holds an ensemble."""
    return (Path(folder) / DESCRIPTION).is_file()


def read_info(folder: str | Path) -> dict[str, Any]:
    """The content of ``ensemble.json``.

    Raises:
        ArtifactError: it is missing or was written by another version.
    """
    path = Path(folder) / DESCRIPTION
    info = artifacts.read_json(path)
    if info.get("artifact") != "ensemble" or info.get("format") != FORMAT:
        raise ArtifactError(
            "this ensemble was written by another version", file=path, expected=f"ensemble format {FORMAT}",
            got=f"{info.get('artifact')} format {info.get('format')}",
        )  # fmt: skip
    return info


def load(folder: str | Path, *, device: str = "cpu") -> models.Model:
    """The ensemble in a folder as one model, its members in ``members``.

    Raises:
        ArtifactError: a member is missing, damaged, or not the one that the ensemble was written with.
    """
    folder = Path(folder)
    info = read_info(folder)
    members = []
    for entry in info["members"]:
        member = models.load(folder / entry["folder"], device=device)
        if member.info["weights_sha256"] != entry["weights_sha256"]:
            raise ArtifactError(
                "a member is not the one that the ensemble was written with", file=folder / entry["folder"],
                expected=f"weights {entry['weights_sha256'][:12]}…", got=f"{member.info['weights_sha256'][:12]}…",
                next_step="write the ensemble again",
            )  # fmt: skip
        members.append(member)
    return models.Model(members[0].net, members[0].head, info, folder, tuple(members))
