"""OpenMind and nnssl's ``pretrain_data.json``: a collection of datasets of subjects of sessions of images, read and written.

- ``image_path`` and the masks may begin with ``$NAME/``: NAME is looked up in an explicit mapping (``--variable NAME=FOLDER``), never in
  the environment, so that an index does not depend on who made it. Relative paths are relative to the JSON's folder. A path with ``..`` in
  it is refused.
- ``associated_masks`` become labels: ``anatomy_mask`` (where there is anatomy) and ``anonymization_mask`` (what defacing removed).
- ``subject_info`` gives age, sex, health, site and scanner and keeps its other keys as columns; keys of ``session_info`` and ``image_info``
  become columns ``session_KEY`` and ``image_KEY``, so that :func:`write` gives the same file back.
- What changes from visit to visit stands in ``session_info`` (and from image to image in ``image_info``) under the key that ``subject_info``
  has, and goes before it; so do an age, a sex and a health status of ``session_info``, whether the subject has one or not.

The file may have hundreds of megabytes: it is walked dataset by dataset. Layout: MIC-DKFZ/nnssl's documentation and the OpenMind dataset
(Wald et al., 2025).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
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
VISIT_FACTS = {"age": _people.SYNONYMS["age"], "sex": _people.SYNONYMS["sex"], "health": ("health", "health_status")}
"""What ``session_info`` may say of a person at that visit whether or not ``subject_info`` does, and its keys."""
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

    def say(text: str) -> None:
        tell(f"{dataset}: {text}")

    found = list(_images(_mapping(facts.get("subjects"))))
    dictionary = _people.distrusted((person for _, _, _, person, _, _ in found), {}, say)
    for subject, session, image, person, visit, details in found:
        if person.get("health_status") is not None:  # the format's own key goes before a column called group
            person = {"health": person["health_status"], **person}
        known = _people.facts(person, dictionary, say)
        columns = {**known.pop("columns"), **fixed}
        yield _scan(dataset, subject, session, image, visit, details, known, columns, licence, mapped, places, seen)


def _plain(value: object) -> dict[str, Any]:
    return {key: item for key, item in _mapping(value).items() if not isinstance(item, (dict, list))}


def _images(
    subjects: dict[str, Any],
) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Subject, session, image, what is known of the person at that image, and what else the session and the image say."""
    for identifier, subject in subjects.items():
        subject = _mapping(subject)
        always = _plain(subject.get("subject_info"))
        for session_id, session in _mapping(subject.get("sessions")).items():
            session = _mapping(session)
            then, visit = _overlaid(always, _plain(session.get("session_info")), of_a_visit=True)
            images = session.get("images")
            for image in images if isinstance(images, list) else []:
                image = _mapping(image)
                person, details = _overlaid(then, _plain(image.get("image_info")), keys=always)
                yield identifier.removeprefix("sub-"), str(session_id), image, person, visit, details


def _overlaid(
    person: dict[str, Any], said: dict[str, Any], *, keys: Mapping[str, Any] | None = None, of_a_visit: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The person with what a visit (or an image) says of it instead, and what it says beside that."""
    keys = person if keys is None else keys
    own = {key for key in said if key in keys}
    person = dict(person)
    for names in VISIT_FACTS.values() if of_a_visit else ():
        new = {key for key in said if key.casefold() in names}
        if new and not new & own:  # the visit calls it otherwise than the subject does
            own |= new
            person = {key: value for key, value in person.items() if key.casefold() not in names}
    person |= {key: said[key] for key in own}
    return person, {key: value for key, value in said.items() if key not in own}


def _scan(
    dataset: str, subject: str, session: str, image: dict[str, Any], visit: dict[str, Any], details: dict[str, Any], known: dict[str, Any],
    columns: dict[str, Any], licence: str | None, mapped: Mapping[str, str], places: _Places, seen: dict[str, int],
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
    known = {"scanner": _scanner(_plain(image.get("image_info")))} | known
    session = session.removeprefix("ses-")
    stem = str(image.get("name") or Path(path).name)
    stem = re.sub(r"(\.nii(\.gz)?|\.nrrd|\.mha)$", "", stem).replace("/", "-")
    scan = f"{dataset}/sub-{subject}_{f'ses-{session}_' if session else ''}{stem}"
    seen[scan] = count = seen.get(scan, 0) + 1
    own = {f"session_{key}": _people.value(value) for key, value in visit.items()}
    own |= {f"image_{key}": _people.value(value) for key, value in details.items()}
    own["image_name"] = str(image.get("name") or stem)
    return Scan(
        scan=scan if count == 1 else f"{scan}-{count}", dataset=dataset, subject=f"{dataset}/sub-{subject}",
        session=f"ses-{session}" if session else "", contrast=contrast or contrasts.UNKNOWN, contrast_raw=raw, path=path, labels=labels,
        licence=licence, columns={**columns, **{key: value for key, value in own.items() if value is not None}},
        checks={"faces": "none: the collection holds its anonymisation mask"} if "anonymization_mask" in labels else {},
        status=BAD if problems else WARNING if notes else OK, reasons=(*problems, *notes), **known,
    )  # fmt: skip


def _scanner(details: Mapping[str, Any]) -> str | None:
    words = [str(details[key]) for key in ("manufacturer", "model_name", "manufacturers_model_name") if details.get(key)]
    strength = details.get("magnetic_field_strength")
    if isinstance(strength, (int, float)) and not isinstance(strength, bool):
        words.append(f"{strength:g} T")
    return " ".join(words) or None


def write(
    scans: Iterable[Scan], path: str | Path, *, collection: str = "neuroprior", variables: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = logger.warning,
) -> int:  # fmt: skip
    """Write usable scans as a ``pretrain_data.json`` that nnssl and :func:`read` understand; returns how many images.

    What differs between the visits of a subject (age, columns) is written in ``session_info``, and between the images of a visit in
    ``image_info``. Brain masks and labels other than :data:`MASKS` have no place in the layout and are told of.

    Args:
        scans: index rows; bad ones are left out.
        path: the file; written atomically.
        collection: its name.
        variables: NAME -> folder; a path inside the folder is written as ``$NAME/...``. Others stay absolute.
        tell: where to say what has no place.

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
    homeless: Counter[str] = Counter()
    count = 0
    for scan in scans:
        if scan.status == BAD:
            continue
        columns = dict(scan.columns)
        title = columns.pop("dataset_name", None)
        columns.pop("collection", None)
        image_name = columns.pop("image_name", None) or Path(scan.path).name
        levels: dict[str, dict[str, Any]] = {level: {} for level in _LEVELS}
        person: dict[str, Any] = {"age": scan.age, "sex": scan.sex, "health_status": scan.health, "site": scan.site}
        for key, value in columns.items():
            level, _, rest = key.partition("_")
            (levels[level] if level in levels and rest else person)[rest if level in levels and rest else key] = value
        if scan.scanner != _scanner(levels["image"]):
            person["scanner"] = scan.scanner
        dataset = datasets.setdefault(
            scan.dataset, {"dataset_index": scan.dataset, "dataset_info": None, "name": title, "subjects": {}}
        )
        if scan.licence:
            dataset["dataset_info"] = {"license": scan.licence}
        identifier = scan.subject.rsplit("/", 1)[-1]
        subject = dataset["subjects"].setdefault(identifier, {"subject_id": identifier, "subject_info": {}, "sessions": {}})
        session = subject["sessions"].setdefault(
            scan.session, {"session_id": scan.session, "session_info": levels["session"], "images": []}
        )
        masks = {mask: place(scan.labels[mask]) if mask in scan.labels else None for mask in MASKS}
        homeless.update(f"label {label!r}" for label in scan.labels if label not in MASKS)
        homeless.update(["brain mask"] if scan.brain_mask else [])
        session["images"].append({
            "name": image_name, "modality": scan.contrast_raw or scan.contrast, "image_path": place(scan.path),
            "image_info": levels["image"], "associated_masks": masks if any(masks.values()) else None,
            _PERSON: {key: value for key, value in person.items() if value is not None},
        })  # fmt: skip
        count += 1
    for dataset in datasets.values():
        for subject in dataset["subjects"].values():
            _part(subject)
    for what, number in sorted(homeless.items()):
        tell(f"the {what} of {number} scan(s) has no place in {Path(path).name} and is left out")
    value = {"collection_index": 0, "collection_name": collection, "datasets": datasets}
    artifacts.write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")
    return count


_PERSON = ""
"""Key under which an image keeps what is known of its person until :func:`_part` puts it where it belongs."""


def _part(subject: dict[str, Any]) -> None:
    """Put what is known of a person in ``subject_info``, and what differs from it at a visit or an image there; null says that it is unknown there."""
    always: dict[str, Any] = {}
    for session in subject["sessions"].values():
        for image in session["images"]:
            always = {**image[_PERSON], **always}
    for session in subject["sessions"].values():
        people = [image.pop(_PERSON) for image in session["images"]]
        then = {key: people[0].get(key) for key in always}
        session["session_info"] = {
            **session["session_info"],
            **{key: now for key, now in then.items() if now != always[key]},
        } or None
        for image, person in zip(session["images"], people):
            image["image_info"] = {
                **image["image_info"],
                **{key: person.get(key) for key in always if person.get(key) != then[key]},
            } or None
    subject["subject_info"] = always
