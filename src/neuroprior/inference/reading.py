"""One case from files to what a net sees: read, checked, brought to one grid, normalised as in training. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core import bias, nifti
from ..core.conforming import Conformed
from ..core.errors import InputError
from ..core.grids import corner_distance_mm, grid_of
from ..core.relations import overlap
from ..core.session import conform_session
from ..core.volume import Volume
from .described import Described

SAME_GRID_VOXELS = 0.1
"""Scans of a case whose corners lie further apart than this are told to be resampled."""

LOW_OVERLAP = 0.8
"""A scan that covers less than this share of the reference's head is flagged."""


@dataclass(frozen=True)
class CaseInput:
    """The scans of one session, before anything is read.

    Attributes:
        case: unique name, ``dataset/sub-01/ses-1``.
        dataset, subject, session: as in the index; subject is namespaced.
        scans: canonical contrast name -> path.
        notes: what was assumed while the inputs were collected (duplicates, one of several contrasts ...).
        covariates: participants column -> value, for models that take some; a missing one is simply not there.
    """

    case: str
    dataset: str
    subject: str
    session: str
    scans: Mapping[str, Path]
    notes: tuple[str, ...] = ()
    covariates: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A case as the net sees it.

    Attributes:
        name: of the case, names random draws and messages.
        contrasts: canonical names, sorted.
        images: (K, x, y, z) float32, conformed.
        reference: the contrast whose native grid answers are given on.
        record: how the reference was conformed.
        missing: contrasts that the model knows and the case has not.
        notes: what was repaired or assumed on the way.
        flags: words for the ``flags`` column.
        covariates: see :class:`CaseInput`.
    """

    name: str
    contrasts: tuple[str, ...]
    images: np.ndarray
    reference: str
    record: Conformed
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    flags: tuple[str, ...]
    covariates: Mapping[str, Any] = field(default_factory=dict)


def read_case(model: Described, case: CaseInput, *, reference: str | None = None) -> Prepared:
    """The scans of a case, read and conformed.

    Args:
        model: fine-tuned, or an ensemble.
        case: at least one scan of a contrast that the model knows; scans of other contrasts are left out, told in a note.
        reference: contrast whose native grid the mask is given on; by default the first of T1w, T2w, FLAIR, any.

    Raises:
        InputError: a scan cannot be read, or none has a contrast that the model knows, or two scans show different places.
    """
    known = usable(model, case.scans)
    volumes: dict[str, Volume] = {}
    notes = [*case.notes]
    for name in sorted(known):
        volumes[name], repairs = nifti.read_scan(known[name])
        notes += [f"{name}: {text}" for text in repairs]
    files = {name: str(path) for name, path in known.items()}
    unknown = sorted(set(case.scans) - set(known))
    if unknown:
        notes.append(f"not used, unknown to the model: {', '.join(unknown)}")
    return prepare(model, volumes, name=case.case, reference=reference, notes=notes, files=files, covariates=case.covariates)


def usable(model: Described, scans: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the scans whose contrast the model knows.

    Raises:
        InputError: there is none.
    """
    known = {name: scan for name, scan in scans.items() if name in model.contrasts}
    if not known:
        raise InputError(
            "no scan of this case has a contrast that the model knows",
            expected=", ".join(model.contrasts), got=", ".join(sorted(scans)) or "no scans",
            next_step=f"name the contrast as in {model.contrasts[0]}=scan.nii.gz, take it for one that the model knows "
            f"(--as {model.contrasts[0]}), or fine-tune on the contrasts that you have",
        )  # fmt: skip
    return known


def prepare(
    model: Described, volumes: Mapping[str, Volume], *, name: str = "scan", reference: str | None = None, notes: Sequence[str] = (),
    files: Mapping[str, str] | None = None, covariates: Mapping[str, Any] | None = None,
) -> Prepared:  # fmt: skip
    """Native volumes as the net sees them: checked, brought to one grid, normalised as in training.

    Args:
        model: gives the preprocessing and the contrasts.
        volumes: contrast that the model knows -> native volume.
        name: of the case.
        reference: contrast that gives the grid.
        notes: what was told already.
        files: contrast -> where it came from, for messages.
        covariates: see :class:`CaseInput`.

    Raises:
        InputError: voxels that are not finite or all the same, or scans that do not show the same place.
        MissingDependency: the model wants N4, and SimpleITK is missing.
    """
    told = [*notes]
    flags: list[str] = []
    for contrast in sorted(volumes):
        problems = nifti.check_voxels(volumes[contrast])
        if problems:
            raise InputError(
                f"{contrast}: {'; '.join(problems)}", file=(files or {}).get(contrast), expected="finite intensities that vary"
            )
        if _looks_normalised(volumes[contrast], contrast):
            flags.append(f"already_normalised:{contrast}")
            told.append(f"{contrast}: the intensities look normalised already; raw scans are expected")
    if model.steps.get("bias") == "n4":
        volumes = {contrast: _without_bias(volumes[contrast], contrast, told) for contrast in sorted(volumes)}
    if model.steps.get("mask", "head") != "head":
        flags.append("other_mask")
        told.append(
            "the model learned from scans that were normalised over another tool's brain masks; here it is the head that is found"
        )
    session = conform_session(volumes, model.spec, reference=reference)
    if session.refused:
        raise InputError(
            "the scans of this case do not show the same place", got="; ".join(session.refused.values()),
            expected="contrasts of one session, aligned by their headers",
            next_step="register them, or predict from one of them alone",
        )  # fmt: skip
    told += session.notes
    base = grid_of(volumes[session.reference])
    for contrast in sorted(volumes):
        grid = grid_of(volumes[contrast])
        if contrast == session.reference:
            continue
        if grid.shape != base.shape or corner_distance_mm(grid, base) > SAME_GRID_VOXELS * min(base.spacing_mm):
            told.append(f"{contrast} lies on another grid than {session.reference} and was resampled to it")
        covered = overlap(session.grid, grid)
        if covered < LOW_OVERLAP:
            flags.append(f"low_overlap:{contrast}")
            told.append(f"only {covered:.0%} of the head of {session.reference} lies in the field of view of {contrast}")
    contrasts = tuple(sorted(session.volumes))
    images = np.stack([session.volumes[c].voxels for c in contrasts]).astype(np.float32, copy=False)
    missing = tuple(contrast for contrast in model.contrasts if contrast not in contrasts)
    record = session.records[session.reference]
    return Prepared(
        name, contrasts, images, session.reference, record, missing, tuple(told), tuple(flags), dict(covariates or {})
    )


def _without_bias(volume: Volume, contrast: str, told: list[str]) -> Volume:
    """What preparing did to the scans of a model that learned without their intensity drifts."""
    bias.need_n4("this model, which learned from scans without intensity drifts,")
    try:
        return bias.without_bias(volume)
    except InputError as error:
        told.append(f"{contrast}: its intensity drifts are left as they are: {error.reason}")
        return volume


def _looks_normalised(volume: Volume, contrast: str) -> bool:
    """Whether voxels look z-scored (negative, mean 0, spread 1) or rescaled to 0..1 (fractional anisotropy is so by nature)."""
    values = volume.voxels[:: max(1, volume.shape[0] // 32)]
    low, high = float(values.min()), float(values.max())
    if low < 0:
        for chosen in (values, values[values != values.flat[0]]):  # with the empty background, and without
            if chosen.size > 1 and abs(float(chosen.mean())) < 0.3 and 0.5 < float(chosen.std()) < 2 and high < 100:
                return True
        return False
    return contrast != "FA" and 0.9 <= high <= 1.0 and bool((values != np.rint(values)).any())
