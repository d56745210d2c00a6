"""Preparing one session: read its scans, bring them to one grid, write them; the unit of work of ``neuroprior prepare``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..core import artifacts, nifti
from ..core.contrasts import UNKNOWN
from ..core.errors import ArtifactError, InputError, NeuropriorError
from ..core.geometry import ConformSpec, grid_of, overlap, resample_label_shares
from ..core.records import BAD, Scan
from ..core.session import MIN_OVERLAP, conform_session
from .store import key_folder, write_array, write_label


def session_key(scan: Scan) -> str:
    """The unique name of a scan's session: ``dataset/sub-01/ses-1``."""
    return f"{scan.subject}/{scan.session}" if scan.session else scan.subject


def group_sessions(scans: Iterable[Scan]) -> dict[str, list[Scan]]:
    """The usable scans of an index by session, sorted; bad rows and unknown contrasts are left out."""
    groups: dict[str, list[Scan]] = {}
    for scan in sorted(scans, key=lambda scan: (session_key(scan), scan.scan)):
        if scan.status != BAD and scan.contrast != UNKNOWN:
            groups.setdefault(session_key(scan), []).append(scan)
    return groups


def prepare_session(out: Path, key: str, scans: list[Scan], spec: ConformSpec, dtype: str) -> tuple[str, str | None]:
    """Write one session into a store.

    Args:
        out: the store.
        key: the session's name.
        scans: its usable rows.
        spec: how to conform.
        dtype: ``float16`` or ``float32``.

    Returns:
        The key, and None or the reason why the session is not in the store.

    Raises:
        ArtifactError: the disk is full or not writable: this concerns every session.
    """
    try:
        _prepare(out, key, scans, spec, dtype)
    except ArtifactError:
        raise
    except NeuropriorError as error:
        return key, error.reason
    except MemoryError:
        return key, "out of memory: prepare it with one worker, or at a coarser spacing"
    return key, None


def _prepare(out: Path, key: str, scans: list[Scan], spec: ConformSpec, dtype: str) -> None:
    volumes, sources, refused = {}, {}, {}
    for scan in scans:
        name, copy = scan.contrast, 1
        while name in volumes:
            copy += 1
            name = f"{scan.contrast}.{copy}"
        try:
            fixed = scan.checks.get("intensity", "").startswith("fixed")  # index --policy intensity=fix
            volume, _ = nifti.read_scan(scan.path, nonfinite="zero" if fixed else "error")
            problems = nifti.check_voxels(volume)
            if problems:
                raise InputError("; ".join(problems))
            volumes[name], sources[name] = volume, scan
        except InputError as error:
            refused[scan.scan] = error.reason
    if not volumes:
        raise InputError("no scan of the session can be read: " + "; ".join(refused.values()))
    session = conform_session(volumes, spec)
    refused |= {sources[name].scan: reason for name, reason in session.refused.items()}
    folder = key_folder(out, key)
    entries: dict[str, Any] = {}
    for name, volume in session.volumes.items():
        stored = volume.voxels.astype(dtype)
        error = float(np.abs(stored.astype(np.float32) - volume.voxels).max())
        if not np.isfinite(error):
            refused[sources[name].scan] = f"its normalised intensities do not fit {dtype}: use --dtype float32"
            continue
        entries[name] = {
            "scan": sources[name].scan, "sha256": write_array(folder / f"{name}.b2nd", stored), "rounding_error": error,
            "conformed": session.records[name].to_json(),
        }  # fmt: skip
    labels, label_notes = _labels(folder, scans, session.grid)
    first = scans[0]
    columns = {k: v for scan in scans for k, v in scan.columns.items()}
    columns |= {name: getattr(first, name) for name in ("age", "sex", "health", "site", "scanner", "licence")}
    artifacts.write_json(
        folder / "session.json",
        {
            "key": key, "dataset": first.dataset, "subject": first.subject, "session": first.session, "split": first.split,
            "shape": list(session.grid.shape), "affine": session.grid.affine.tolist(), "reference": session.reference,
            "scans": entries, "labels": labels, "columns": columns, "refused": refused, "notes": label_notes,
        },
    )  # fmt: skip


def _labels(folder: Path, scans: list[Scan], grid: Any) -> tuple[dict[str, Any], list[str]]:
    paths = {name: path for scan in scans for name, path in scan.labels.items()}
    labels: dict[str, Any] = {}
    notes: list[str] = []
    for name, path in sorted(paths.items()):
        try:
            volume, repairs = nifti.read_labels(path)
        except InputError as error:
            notes.append(f"label {name} left out: {error.reason}")
            continue
        notes += [f"label {name}: {text}" for text in repairs]
        if overlap(grid, grid_of(volume)) < MIN_OVERLAP:
            notes.append(f"label {name} left out: its field of view does not hold the session's head")
            continue
        shares = resample_label_shares(volume, grid)
        before = int((volume.voxels > 0).sum()) * float(np.prod(volume.spacing_mm)) / 1000
        after = int((shares.first > 0).sum()) * float(np.prod(grid.spacing_mm)) / 1000
        if after < 0.75 * before:
            notes.append(
                f"label {name} shrinks from {before:.2f} to {after:.2f} ml as a hard mask at this spacing; its partial volumes are kept, "
                "but a finer --spacing would show more of it"
            )
        labels[name] = write_label(folder, name, shares)
    return labels, notes
