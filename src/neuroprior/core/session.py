"""A session's scans on one grid: the preprocessing that preparing a store and predicting replay alike.

The session's grid is the head box of its reference scan, reoriented to RAS+ at the wanted spacing; every other scan is
brought to it by its header. Both the store and the predictor call :func:`conform_session`, so a scan is seen by a model
exactly as the scans it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .conforming import Conformed, ConformSpec, conform, session_grid
from .errors import InputError
from .grids import Grid, grid_of
from .relations import overlap
from .resampling import resample_labels
from .volume import Volume

PREFERENCE = ("T1w", "T2w", "FLAIR", "MP2RAGE", "T1ce", "PDw")
"""Which contrast is a session's reference, best first; any other contrast comes after, in alphabetical order."""

MIN_OVERLAP = 0.2
"""A scan of which less than this fraction of the session's grid lies in its field of view is refused."""


@dataclass(frozen=True)
class ConformedSession:
    """The scans of one session on one grid.

    Attributes:
        reference: the contrast that gave the grid.
        grid: RAS+ grid shared by all volumes.
        volumes: contrast -> conformed float32 volume.
        records: contrast -> how it was conformed, with everything needed to go back.
        refused: contrast -> why it could not be brought to the grid.
        notes: what was assumed on the way.
    """

    reference: str
    grid: Grid
    volumes: Mapping[str, Volume]
    records: Mapping[str, Conformed]
    refused: Mapping[str, str]
    notes: tuple[str, ...] = ()


def choose_reference(contrasts: list[str], reference: str | None = None) -> str:
    """The session's reference among ``contrasts``: the one asked for, else the first by ``PREFERENCE``.

    Raises:
        InputError: the one asked for is not there.
    """
    if reference is not None:
        if reference not in contrasts:
            raise InputError(f"the session has no {reference} to serve as reference", got=", ".join(sorted(contrasts)))
        return reference
    rank = {name: place for place, name in enumerate(PREFERENCE)}
    return min(contrasts, key=lambda name: (rank.get(name.split(".")[0], len(rank)), name))


def conform_session(
    volumes: Mapping[str, Volume], spec: ConformSpec, *, reference: str | None = None, mask: Volume | None = None
) -> ConformedSession:
    """All scans of a session on one grid.

    Args:
        volumes: contrast -> native volume, at least one.
        spec: spacing, crop and normalisation.
        reference: contrast that gives the grid; by default the first by ``PREFERENCE``.
        mask: a brain mask on any grid of the same world; where given, the head box and the normalisation use it.

    Raises:
        InputError: there is no volume, or the reference asked for is not among them.
    """
    if not volumes:
        raise InputError("the session has no scan")
    chosen = choose_reference(sorted(volumes), reference)
    frame = frame_of(volumes[chosen], spec, mask)
    done: dict[str, Volume] = {}
    records: dict[str, Conformed] = {}
    refused: dict[str, str] = {}
    for name in sorted(volumes):
        problem = None if name == chosen else covers(volumes[name], frame, name, chosen)
        if problem is not None:
            refused[name] = problem
            continue
        done[name], records[name] = conform(volumes[name], spec, grid=frame.grid, mask=frame.mask)
    return ConformedSession(chosen, frame.grid, done, records, refused, tuple(refused.values()))


@dataclass(frozen=True)
class SessionFrame:
    """What all scans of a session are brought to.

    Attributes:
        grid: RAS+ grid.
        mask: bool on the grid, the voxels that normalise; None where each scan's own head does.
    """

    grid: Grid
    mask: np.ndarray | None


def frame_of(source: Volume, spec: ConformSpec, mask: Volume | None = None) -> SessionFrame:
    """The frame that a session's reference gives; with it scans can be conformed one by one.

    Args:
        source: the reference.
        spec: spacing, crop and normalisation.
        mask: a brain mask on any grid of the same world; one that does not meet the reference is not used.
    """
    on_reference = None if mask is None else resample_labels(mask, grid_of(source)) > 0
    if on_reference is not None and not on_reference.any():
        on_reference = None
    grid = session_grid(source, spec, on_reference)
    inside = None if on_reference is None else resample_labels(Volume(on_reference.astype(np.uint8), source.affine), grid) > 0
    return SessionFrame(grid, inside)


def covers(volume: Volume, frame: SessionFrame, name: str, reference: str) -> str | None:
    """Why a scan cannot be brought to a session's grid, or None: too little of the head lies in its field of view."""
    covered = overlap(frame.grid, grid_of(volume))
    return (
        None if covered >= MIN_OVERLAP else f"only {covered:.0%} of the head of {reference} lies in the field of view of {name}"
    )
