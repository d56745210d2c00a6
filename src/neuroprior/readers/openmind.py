"""OpenMind and nnssl's ``pretrain_data.json``: a collection of datasets of subjects of sessions of images, read and written.

- ``image_path`` and the masks may begin with ``$NAME/``: NAME is looked up in an explicit mapping (``--variable NAME=FOLDER``), never in
  the environment, so that an index does not depend on who made it. Relative paths are relative to the JSON's folder. A path with ``..`` in
  it is refused.
- ``associated_masks`` become labels: ``anatomy_mask`` (where there is anatomy) and ``anonymization_mask`` (what defacing removed).
- ``subject_info`` gives age, sex and health and keeps its other keys as columns; keys of ``session_info`` and ``image_info`` become columns
  ``session_KEY`` and ``image_KEY``, so that :func:`write` gives the same file back.

The file may have hundreds of megabytes: it is walked dataset by dataset. Layout: MIC-DKFZ/nnssl's documentation and the OpenMind dataset
(Wald et al., 2025).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..core import artifacts, contrasts
from ..core.errors import ConfigError, InputError
from ..core.records import BAD, OK, WARNING, Scan
from . import _people
from ._json import Text

logger = logging.getLogger(__name__)

NAME = "pretrain_data.json"
MASKS = ("anatomy_mask", "anonymization_mask")
_LEVELS = ("session", "image")


def recognises(root: Path) -> str | None:
    """Why ``root`` is such a file, or a folder with one, or None. Looks at the beginning of the file only."""
    path = _file(root)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError:
        return None
    return f"{path.name} is a collection of datasets (collection_name)" if b'"collection_name"' in start else None


def _file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix == ".json" else None
    return root / NAME if (root / NAME).is_file() else None


def read(
    root: Path,
    *,
    name: str | None = None,
    contrast_map: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = logger.info,
) -> Iterator[Scan]:
    """The images as scans; headers and voxels are not looked at.

    Args:
        root: the JSON file, or a folder that holds ``pretrain_data.json``.
        name: put before every dataset's name, as in ``NAME-ds000001``; by default nothing.
        contrast_map: the collection's spelling of a modality -> a canonical name.
        variables: what ``$NAME`` at the beginning of a path stands for.
        tell: where to say what was left out and why.

    Raises:
        InputError: the file is no whole JSON, or no collection.
    """
    path = _file(Path(os.path.abspath(root)))
    if path is None:
        raise InputError("there is no collection here", file=root, expected=f"a .json file, or a folder with {NAME}")
    tell = _people.once(tell)
    text = Text(path)
    seen: dict[str, int] = {}
    collection, found = "", False
    places = _Places(path.parent, dict(variables or {}))
    for key, at in text.members(0):
        if key == "collection_name":
            collection = str(text.take(at))
        elif key == "datasets":
            found = True
            for identifier, place in text.members(at):
                entry = text.take(place)
                yield from _dataset(str(identifier), entry, name, collection, contrast_map or {}, places, seen, tell)
    if not found:
        raise InputError("this JSON is no collection of datasets", file=path, expected="the key datasets")


class _Places:
    """Where a manifest's paths lie."""

    def __init__(self, base: Path, variables: dict[str, str]) -> None:
        self.base, self.variables = base, variables

    def resolve(self, text: object) -> tuple[str, str | None]:
        """The absolute path, and what is wrong with it."""
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            return str(self.base), "the manifest gives no path"
        parts = PurePosixPath(text.replace("\\", "/")).parts
        if ".." in parts:
            return str(self.base), "the path climbs out of its folder (..)"
        if not parts[0].startswith("$"):
            return os.path.join(self.base, text), None
        variable = parts[0][1:].strip("{}")
        if variable not in self.variables:
            return os.path.join(self.base, text), f"nobody said where ${variable} is: --variable {variable}=FOLDER"
        return os.path.join(os.path.abspath(self.variables[variable]), *parts[1:]), None


def _mapping(value: object) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _dataset(
    identifier: str, entry: object, name: str | None, collection: str, mapped: Mapping[str, str], places: _Places, seen: dict[str, int],
    tell: Callable[[str], None],
) -> Iterator[Scan]:  # fmt: skip
    facts = _mapping(entry)
    dataset = (f"{name}-" if name else "") + (re.sub(r"[/\\]+", "-", identifier).strip() or "dataset")
    info = _mapping(facts.get("dataset_info"))
    licence = next((str(info[key]) for key in info if key.casefold() in ("license", "licence")), None)
    fixed = {"collection": collection} | ({"dataset_name": str(facts["name"])} if facts.get("name") else {})
    for subject_id, subject in _mapping(facts.get("subjects")).items():
        person = _mapping(subject)
        information = {k: v for k, v in _mapping(person.get("subject_info")).items() if not isinstance(v, (dict, list))}
        known = _people.facts(information, {}, tell)
        columns = {**known.pop("columns"), **fixed}
        bare = subject_id.removeprefix("sub-")
        for session_id, session in _mapping(person.get("sessions")).items():
            visit = _mapping(session)
            images = visit.get("images")
            for image in images if isinstance(images, list) else []:
                yield _scan(
                    dataset, bare, str(session_id), _mapping(image), _mapping(visit.get("session_info")), known, columns, licence,
                    mapped, places, seen,
                )  # fmt: skip


def _scan(
    dataset: str, subject: str, session: str, image: dict[str, Any], visit: dict[str, Any], known: dict[str, Any], columns: dict[str, Any],
    licence: str | None, mapped: Mapping[str, str], places: _Places, seen: dict[str, int],
) -> Scan:  # fmt: skip
    raw = str(image.get("modality") or "")
    contrast = mapped.get(raw) or contrasts.find(raw)
    problems = [] if contrast else [_people.unknown_contrast(raw)]
    path, problem = places.resolve(image.get("image_path"))
    problems += [problem] if problem else []
    labels: dict[str, str] = {}
    notes: list[str] = []
    for mask in MASKS:
        where = _mapping(image.get("associated_masks")).get(mask)
        if where is None:
            continue
        file, problem = places.resolve(where)
        if problem:
            notes.append(f"{mask} left out: {problem}")
        else:
            labels[mask] = file
    details = _mapping(image.get("image_info"))
    session = session.removeprefix("ses-")
    stem = str(image.get("name") or Path(path).name)
    stem = re.sub(r"(\.nii(\.gz)?|\.nrrd|\.mha)$", "", stem).replace("/", "-")
    scan = f"{dataset}/sub-{subject}_{f'ses-{session}_' if session else ''}{stem}"
    seen[scan] = count = seen.get(scan, 0) + 1
    own = {f"session_{key}": _people.value(value) for key, value in visit.items() if not isinstance(value, (dict, list))}
    own |= {f"image_{key}": _people.value(value) for key, value in details.items() if not isinstance(value, (dict, list))}
    own["image_name"] = str(image.get("name") or stem)
    return Scan(
        scan=scan if count == 1 else f"{scan}-{count}", dataset=dataset, subject=f"{dataset}/sub-{subject}",
        session=f"ses-{session}" if session else "", contrast=contrast or contrasts.UNKNOWN, contrast_raw=raw, path=path, labels=labels,
        licence=licence, columns={**columns, **{key: value for key, value in own.items() if value is not None}},
        checks={"faces": "none: the collection holds its anonymisation mask"} if "anonymization_mask" in labels else {},
        status=BAD if problems else WARNING if notes else OK, reasons=(*problems, *notes), scanner=_scanner(details), **known,
    )  # fmt: skip


def _scanner(details: Mapping[str, Any]) -> str | None:
    words = [str(details[key]) for key in ("manufacturer", "model_name", "manufacturers_model_name") if details.get(key)]
    strength = details.get("magnetic_field_strength")
    if isinstance(strength, (int, float)) and not isinstance(strength, bool):
        words.append(f"{strength:g} T")
    return " ".join(words) or None


def write(
    scans: Iterable[Scan], path: str | Path, *, collection: str = "neuroprior", variables: Mapping[str, str] | None = None
) -> int:  # fmt: skip
    """Write usable scans as a ``pretrain_data.json`` that nnssl and :func:`read` understand; returns how many images.

    Args:
        scans: index rows; bad ones are left out.
        path: the file; written atomically.
        collection: its name.
        variables: NAME -> folder; a path inside the folder is written as ``$NAME/...``. Others stay absolute.

    Raises:
        ConfigError: a variable is no name.
    """
    folders = {name: os.path.abspath(folder) for name, folder in (variables or {}).items()}
    for name in folders:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(f"{name!r} cannot be a variable", expected="letters, digits and _")

    def place(file: str) -> str:
        for name, folder in folders.items():
            if Path(file).is_relative_to(folder):
                return f"${name}/{Path(file).relative_to(folder).as_posix()}"
        return file

    datasets: dict[str, Any] = {}
    count = 0
    for scan in scans:
        if scan.status == BAD:
            continue
        columns = dict(scan.columns)
        title = columns.pop("dataset_name", None)
        columns.pop("collection", None)
        image_name = columns.pop("image_name", None) or Path(scan.path).name
        levels: dict[str, dict[str, Any]] = {level: {} for level in _LEVELS}
        person: dict[str, Any] = {"age": scan.age, "sex": scan.sex, "health_status": scan.health}
        person = {key: value for key, value in person.items() if value is not None}
        for key, value in columns.items():
            level, _, rest = key.partition("_")
            (levels[level] if level in levels and rest else person)[rest if level in levels and rest else key] = value
        dataset = datasets.setdefault(
            scan.dataset, {"dataset_index": scan.dataset, "dataset_info": None, "name": title, "subjects": {}}
        )
        if scan.licence:
            dataset["dataset_info"] = {"license": scan.licence}
        identifier = scan.subject.rsplit("/", 1)[-1]
        subject = dataset["subjects"].setdefault(identifier, {"subject_id": identifier, "subject_info": person, "sessions": {}})
        session = subject["sessions"].setdefault(
            scan.session, {"session_id": scan.session, "session_info": levels["session"] or None, "images": []}
        )
        masks = {mask: place(scan.labels[mask]) if mask in scan.labels else None for mask in MASKS}
        session["images"].append({
            "name": image_name, "modality": scan.contrast_raw or scan.contrast, "image_path": place(scan.path),
            "image_info": levels["image"] or None, "associated_masks": masks if any(masks.values()) else None,
        })  # fmt: skip
        count += 1
    value = {"collection_index": 0, "collection_name": collection, "datasets": datasets}
    artifacts.write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")
    return count
