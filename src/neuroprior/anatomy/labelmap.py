"""Label maps of any tool (``*_dseg.nii.gz``), with a table that names their ids.

The maps are those in the ``labels`` column of the index, or lie in a folder of their own (``files``) with their scan's name as the start of
theirs. The names come from ``names``, or from a table beside the maps as BIDS has it: a TSV with the columns ``index`` and ``name``, with the
map's own name or, in a folder above, with part of its entities (``desc-aseg_dseg.tsv``). A region's volume is its number of voxels times the
voxel's volume; ids of one name are summed. Without any table the regions bear their ids as names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..core import nifti
from ..core.config import Config as Base
from ..core.errors import ConfigError, InputError, suggestion
from ..core.records import Scan
from . import Anatomy, Candidate
from ._matching import candidate, stem

VERSION = 1

BACKGROUND = 0


class Config(Base):
    """Which maps, what their ids are called, and what counts as intracranial."""

    label: str | None = None
    """Name of the map in the index's ``labels``; None takes the one whose file is a ``dseg``."""
    names: Path | None = None
    """Table that names the ids: TSV or CSV with the columns index and name, or JSON from id to name; None looks beside the maps."""
    unnamed: Literal["refuse", "by_id", "drop"] = "refuse"
    """What becomes of ids that the table does not name: the scan fails, they are called by their number, or they are left out."""
    ignore: tuple[int, ...] = ()
    """Ids that belong to no region and not to the intracranial volume; the background, 0, never does."""
    icv: Literal["labels", "none"] = "labels"
    """Intracranial volume: the sum of all regions, or not known."""


def find(scans: Sequence[Scan], files: Path | None, config: Config) -> list[Candidate]:
    """The label map of every scan.

    Raises:
        ConfigError: several maps could be meant, or the wanted one is nowhere.
        InputError: ``files`` is no folder, or the table of names is missing or damaged.
    """
    if config.names is not None:
        read_names(config.names)
    maps = _in_folder(scans, files) if files is not None else _in_index(scans, config)
    found = []
    for scan in scans:
        path = maps.get(scan.scan)
        if path is None:
            found.append(candidate(scan, reason="no label map belongs to this scan"))
            continue
        table = config.names or names_beside(Path(path))
        inputs = (path,) if table is None else (path, str(table))
        found.append(candidate(scan, path, inputs=inputs))
    return found


def measure(candidate: Candidate, config: Config) -> Anatomy:
    """The volumes of a label map's regions.

    Raises:
        InputError: the map or its table cannot be read, the map is empty, or it holds ids without a name.
    """
    assert candidate.path is not None
    table = Path(candidate.inputs[1]) if len(candidate.inputs) > 1 else None
    return count(Path(candidate.path), None if table is None else read_names(table), config, table)


def count(path: Path, names: Mapping[int, str] | None, config: Config, table: Path | None = None) -> Anatomy:
    """The volumes of the regions in one label map.

    Args:
        path: the map.
        names: id -> region; None calls regions by their ids.
        config: what to do with ids that have no name.
        table: where the names stand, for errors.

    Raises:
        InputError: the map cannot be read, is empty, or holds ids without a name.
    """
    volume, notes = nifti.read_labels(path)
    ids, counts = np.unique(volume.voxels, return_counts=True)
    found = {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i != BACKGROUND and int(i) not in config.ignore}
    if not found:
        raise InputError("the label map is empty", file=path, expected="ids above 0")
    if names is None:
        names = {i: str(i) for i in found}
        absent = 0.0
        notes = (*notes, "no table names the ids: the regions bear their numbers")
    else:
        names = {i: name for i, name in names.items() if i != BACKGROUND and i not in config.ignore}
        absent = None
    strangers = sorted(set(found) - set(names))
    if strangers and config.unnamed == "refuse":
        some = ", ".join(map(str, strangers[:12])) + (" ..." if len(strangers) > 12 else "")
        raise InputError(
            f"{len(strangers)} label ids have no name in {table.name if table else 'the table'}: {some}", file=path,
            next_step="name them, or say --set unnamed=by_id, --set unnamed=drop or --set ignore=[...]",
        )  # fmt: skip
    if strangers and config.unnamed == "by_id":
        names = {**names, **{i: str(i) for i in strangers}}
        absent = 0.0
    ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    ml = round(ml, 12)  # the determinant of 2 x 2 x 2 mm is 8 up to rounding
    voxels: dict[str, int] = dict.fromkeys(names.values(), 0)
    for i, name in names.items():
        voxels[name] += found.get(i, 0)
    if strangers and config.unnamed == "drop":
        notes = (*notes, f"{len(strangers)} ids without a name were left out")
    volumes = {name: n * ml for name, n in voxels.items()}
    icv = sum(voxels.values()) * ml if config.icv == "labels" else None
    return Anatomy(volumes, icv, {"names": table.name if table else None}, notes, absent)


def read_names(path: Path) -> dict[int, str]:
    """id -> region from a TSV or CSV with the columns index and name, or from JSON.

    Raises:
        InputError: the table is missing or damaged, lacks a column, names an id twice or has an id that is no whole number.
    """
    import pandas as pd

    if not path.is_file():
        raise InputError("there is no table of label names", file=path, next_step="check --set names=PATH")
    try:
        if path.suffix == ".json":
            pairs = list(json.loads(path.read_text(encoding="utf-8")).items())
        else:
            table = pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str, keep_default_na=False)
            lower = {str(column).strip().casefold(): column for column in table.columns}
            if "index" not in lower or "name" not in lower:
                raise InputError(
                    "the table of label names lacks a column",
                    file=path,
                    expected="index, name",
                    got=", ".join(map(str, table.columns)),
                )
            pairs = list(zip(table[lower["index"]], table[lower["name"]], strict=True))
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the table of label names cannot be read", file=path, got=str(error).splitlines()[0]) from None
    names: dict[int, str] = {}
    for key, name in pairs:
        try:
            number = int(str(key).strip())
        except ValueError:
            raise InputError("a label id is no whole number", file=path, got=repr(key)) from None
        if number in names and names[number] != str(name).strip():
            raise InputError(f"the table names label {number} twice", file=path, got=f"{names[number]!r} and {str(name)!r}")
        names[number] = str(name).strip()
    return names


def names_beside(path: Path) -> Path | None:
    """The table that names a map's ids, found as BIDS has it, nearest first; None where there is none.

    Looks in the map's folder and above it, up to the folder with a ``dataset_description.json``.
    """
    own = set(stem(path).split("_"))
    for folder in (path.parent, *path.parent.parents):
        fitting = [
            (len(parts), file)
            for file in sorted(folder.glob("*dseg.tsv")) + sorted(folder.glob("*dseg.json"))
            if (parts := set(file.stem.split("_"))) <= own and (file.suffix == ".tsv" or _is_lookup(file))
        ]
        if fitting:
            return max(fitting, key=lambda pair: pair[0])[1]
        if (folder / "dataset_description.json").is_file() or folder == folder.parent:
            return None
    return None


def _is_lookup(path: Path) -> bool:
    """Whether a JSON file goes from ids to names, and is no sidecar of metadata."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content) and all(str(key).lstrip("-").isdigit() for key in content)


def _in_index(scans: Sequence[Scan], config: Config) -> dict[str, str]:
    known = sorted({name for scan in scans for name in scan.labels})
    if config.label is not None:
        if config.label not in known:
            raise ConfigError(
                f"no scan of the index has a label {config.label!r}", next_step=suggestion(config.label, known) if known else None
            )
        return {scan.scan: scan.labels[config.label] for scan in scans if config.label in scan.labels}
    chosen: dict[str, str] = {}
    for scan in scans:
        maps = {name: path for name, path in scan.labels.items() if stem(path).endswith("dseg")}
        if len(maps) > 1:
            raise ConfigError(
                "a scan has several label maps",
                got=f"{scan.scan}: {', '.join(sorted(maps))}",
                next_step="choose one: --set label=NAME",
            )
        if maps:
            (chosen[scan.scan],) = maps.values()
    return chosen


def _in_folder(scans: Sequence[Scan], folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise InputError("there is no such folder of label maps", file=folder)
    maps = sorted(path.absolute() for path in folder.rglob("*.nii*") if path.name.endswith((".nii", ".nii.gz")))
    chosen: dict[str, str] = {}
    for scan in scans:
        name = stem(scan.path)
        trunk = name.rsplit("_", 1)[0]  # of a T1w, a map may bear the name without the contrast
        own = [path for path in maps if stem(path) == name or stem(path).startswith(f"{name}_")]
        own = own or [path for path in maps if _of_session(stem(path), trunk)]
        if len(own) > 1:
            raise ConfigError(
                "several label maps bear a scan's name", file=folder, got=f"{scan.scan}: {', '.join(path.name for path in own[:4])}",
                next_step="keep one map a scan in the folder",
            )  # fmt: skip
        if own:
            chosen[scan.scan] = str(own[0])
    return chosen


def _of_session(name: str, trunk: str) -> bool:
    """Whether a map is a session's own: ``sub-01_ses-1_desc-x_dseg`` is that of ``sub-01_ses-1``, but not of ``sub-01``."""
    if not name.startswith(f"{trunk}_"):
        return False
    *entities, suffix = name[len(trunk) + 1 :].split("_")
    return suffix == "dseg" and all("-" in entity and not entity.startswith("ses-") for entity in entities)
