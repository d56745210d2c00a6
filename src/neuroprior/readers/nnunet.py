"""A raw nnU-Net dataset as it lies: ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``, ``dataset.json`` (both versions' keys).

- ``modality`` (v1) or ``channel_names`` (v2) say which contrast a channel number is; spellings go through the vocabulary. One that it
  does not know (or a CT window) gives rows with the reason, and ``--contrast-map`` can name it.
- ``labels`` may run from number to name (v1) or from name to number (v2); the names travel with every row in the column
  ``label_names_dseg``, so that undeclared values and left-right pairs can be told later. ``regions`` (lists of numbers) keep their numbers.
- Every case is a subject. A dataset's folder means its ``imagesTr``; ``imagesTs`` is read when it is named itself
  (``neuroprior index DATASET/imagesTs --split test=1``), so that test cases never slip into a training split.
- A case of letters and digits is the subject's name. Where other characters are dropped (``BR_001`` -> ``BR001x...``) a hash of the case
  stands behind, so that ``A_1_11`` and ``A_11_1`` are two people whatever other cases there are; the column ``case`` keeps the name.
- What does not fit is told: a channel or label file that is missing, ``numTraining`` that differs from the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core import contrasts, headers
from ..core.errors import InputError
from ..core.records import BAD, OK, WARNING, Scan
from . import _people

logger = logging.getLogger(__name__)

ENDINGS = tuple(sorted(headers.READABLE, key=len, reverse=True))
"""Endings of images and labels, small; files may have them in capitals."""
LABEL = "dseg"
"""The label's name in the index, as in BIDS."""


def recognises(root: Path) -> str | None:
    """Why ``root`` is a raw nnU-Net dataset, or None."""
    place, folder = _place(root)
    if not (place / "dataset.json").is_file() or not (place / folder).is_dir():
        return None
    return f"it has dataset.json and {folder}"


def _place(root: Path) -> tuple[Path, str]:
    """The dataset and the folder of images that is meant."""
    return (root.parent, root.name) if root.name in ("imagesTr", "imagesTs") else (root, "imagesTr")


def read(root: Path, *, contrast_map: Mapping[str, str] | None = None, name: str | None = None) -> Iterator[Scan]:
    """The files as scans; headers and voxels are not looked at.

    Args:
        root: the dataset's folder, or its imagesTr or imagesTs.
        contrast_map: the dataset's spelling of a contrast (or its channel number) -> a canonical name.
        name: the dataset's name; by default the folder's.

    Raises:
        InputError: ``dataset.json`` cannot be read or names no channels, its file ending cannot be read, or there are no images.
    """
    root, folder = _place(Path(os.path.abspath(root)))
    facts = _facts(root)
    dataset = name or root.name
    channels = _channels(facts, root)
    try:
        names = label_names(facts.get("labels") or {})
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError("the labels of dataset.json cannot be understood", file=root / "dataset.json", expected='{"tumour": 1}',
                         got=str(error)) from None  # fmt: skip
    ending = str(facts.get("file_ending", ".nii.gz"))
    if ending.lower() not in ENDINGS:
        raise InputError("this nnU-Net dataset holds files that cannot be read", file=root / "dataset.json",
                         expected=" or ".join(ENDINGS), got=ending, next_step="convert the images to .nii.gz")  # fmt: skip
    mapped = {str(key): value for key, value in (contrast_map or {}).items()}
    images = _images(root / folder)
    if not images:
        raise InputError("the dataset holds no images", file=root / folder, expected="CASE_0000.nii.gz")
    labels = _labels(root / folder.replace("images", "labels"))
    if folder == "imagesTr":
        _tell_counts(root, facts, images, labels)
        held_out = set(_images(root / "imagesTs"))
        if held_out:
            logger.info("%s: %d cases of imagesTs are left out (index them by themselves: %s --split test=1)", dataset, len(held_out),
                        root / "imagesTs")  # fmt: skip
        both = sorted(held_out & set(images))
        if both:
            logger.warning("%s: %d cases are in imagesTr and in imagesTs, for example %s", dataset, len(both), both[0])
    for case, files in images.items():
        yield from _case(folder, case, files, labels.get(case), dataset, channels, names, mapped, facts)


def label_names(labels: Mapping[str, Any]) -> dict[int, str]:
    """Value -> name from either direction: ``{"1": "tumour"}`` (v1), ``{"tumour": 1}`` or ``{"whole": [1, 2]}`` (v2)."""
    names: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, (list, tuple)):
            for number in value:
                names.setdefault(int(number), f"{key} {number}" if len(value) > 1 else str(key))
        elif isinstance(value, (int, float)) or (
            isinstance(value, str) and value.lstrip("-").isdigit() and not str(key).isdigit()
        ):
            names[int(value)] = str(key)
        elif str(key).lstrip("-").isdigit():
            names[int(key)] = str(value)
    ignored = [number for number, text in names.items() if text == "ignore"]
    if ignored:
        logger.warning(
            "the label %d is called 'ignore': it is learned as a class unless --label-map %d:0 says otherwise", *ignored * 2
        )
    return dict(sorted(names.items()))


def _facts(root: Path) -> dict[str, Any]:
    try:
        facts = json.loads((root / "dataset.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError("dataset.json cannot be read", file=root / "dataset.json", got=str(error)) from None
    if not isinstance(facts, dict):
        raise InputError("dataset.json holds no mapping", file=root / "dataset.json")
    return facts


def _channels(facts: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Four-digit channel -> the dataset's name of it."""
    given = facts.get("channel_names") or facts.get("modality")
    if isinstance(given, list):
        given = {str(number): text for number, text in enumerate(given)}
    if not isinstance(given, dict) or not given:
        raise InputError(
            "dataset.json names no channels", file=root / "dataset.json", expected='"channel_names": {"0": "T1"} (or "modality")',
            got=", ".join(sorted(facts)) or "nothing",
        )  # fmt: skip
    try:
        return {f"{int(number):04d}": str(text) for number, text in given.items()}
    except ValueError:
        raise InputError(
            "the channels of dataset.json are not numbered", file=root / "dataset.json", expected='"channel_names": {"0": "T1"}',
            got=", ".join(map(str, given)),
        ) from None  # fmt: skip


def _images(folder: Path) -> dict[str, dict[str, Path]]:
    """Case -> channel -> file."""
    cases: dict[str, dict[str, Path]] = {}
    if not folder.is_dir():
        return cases
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stem = _stem(entry.name)
        if stem is None:
            continue
        parts = re.fullmatch(r"(.+)_(\d{4})", stem)
        if parts is None:
            logger.warning("%s is left out: its name does not end in a channel number (_0000)", entry.path)
        elif parts[2] in cases.setdefault(parts[1], {}):
            logger.warning("%s is left out: %s is the same case and channel", entry.path, cases[parts[1]][parts[2]].name)
        else:
            cases[parts[1]][parts[2]] = Path(entry.path)
    return cases


def _stem(name: str) -> str | None:
    """A file's name without its ending, or None where it is no image by its name."""
    return next((name[: -len(ending)] for ending in ENDINGS if name[-len(ending) :].lower() == ending), None)


def _labels(folder: Path) -> dict[str, Path]:
    """Case -> label file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        stem = _stem(path.name)
        if stem is not None and path.is_file():
            found.setdefault(stem, path)
    return found


def subject_name(case: str) -> str:
    """A subject's name in letters and digits that no other case has: the case itself, or what is left of it and a hash of the whole."""
    if re.fullmatch(r"[A-Za-z0-9]+", case) and not re.search(r"x[0-9a-f]{10}$", case):
        return case
    digest = hashlib.blake2b(case.encode("utf-8", "surrogateescape"), digest_size=5).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9]', '', case)}x{digest}"


def _tell_counts(root: Path, facts: Mapping[str, Any], images: Mapping[str, Any], labels: Mapping[str, Path]) -> None:
    stated = facts.get("numTraining")
    if stated is not None and stated != len(images):
        logger.warning(
            "%s: dataset.json says numTraining %s, imagesTr holds %d cases: the files count", root.name, stated, len(images)
        )
    orphans = sorted(set(labels) - set(images))
    if orphans:
        logger.warning("%s: %d labels have no image, for example %s", root.name, len(orphans), orphans[0])


def _case(
    folder: str, case: str, files: Mapping[str, Path], label: Path | None, dataset: str, channels: Mapping[str, str],
    names: Mapping[int, str], mapped: Mapping[str, str], facts: Mapping[str, Any],
) -> Iterator[Scan]:  # fmt: skip
    notes = []
    if label is None and folder == "imagesTr":
        notes.append("its label is missing: labelsTr has no file of this name")
    absent = sorted(set(channels) - set(files))
    if absent:
        notes.append(f"the case lacks channel {', '.join(f'{c} ({channels[c]})' for c in absent)}")
    columns: dict[str, Any] = {"case": case, "folder": folder}
    if names:
        columns[f"label_names_{LABEL}"] = ";".join(f"{value}={text}" for value, text in names.items())
    for channel, path in files.items():
        raw = channels.get(channel)
        contrast, reasons = None, list(notes)
        if raw is None:
            reasons.append(f"dataset.json names no channel {int(channel)}")
        else:
            contrast = mapped.get(raw) or mapped.get(str(int(channel))) or contrasts.find(raw)
            if contrast is None:
                reasons.append(_people.unknown_contrast(raw))
        yield Scan(
            scan=f"{dataset}/{case}_{channel}", dataset=dataset, subject=f"{dataset}/sub-{subject_name(case)}", session="",
            contrast=contrast or contrasts.UNKNOWN, contrast_raw=raw or channel, path=str(path),
            labels={} if label is None else {LABEL: str(label)}, licence=str(facts["licence"]) if facts.get("licence") else None,
            columns=columns, status=BAD if contrast is None else WARNING if reasons else OK, reasons=tuple(reasons),
        )  # fmt: skip
