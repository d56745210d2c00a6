"""Where a subject's anatomical vector comes from: one file is one source, and its name is ``neuroprior anatomy --source NAME``.

Every source offers

- ``Config``: its settings;
- ``VERSION``: a number that grows when its figures change;
- ``find(scans, files, config) -> list[Candidate]``: what there is for each scan of an index, and what belongs to none of them.
  Every scan gives exactly one candidate. It is quick: no voxel is read;
- ``measure(candidate, config) -> Anatomy``: the volumes of one candidate, in ml; it runs in a process of its own and raises
  :class:`~neuroprior.core.errors.InputError` where the candidate cannot be measured.

``files`` is where a tool left its results (a table, a folder of subjects); None leaves it to the source to look where the index points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OK, FAILED, MISSING = "ok", "failed", "missing"
"""The three values of ``status``: measured and plausible; there but not usable, with a reason; not there."""

PREFERENCE = ("T1w", "T2w", "MPRAGE", "MP2RAGE", "FLAIR")
"""Whose volumes a subject with several takes, best first; every other contrast comes after them."""


@dataclass(frozen=True)
class Candidate:
    """A scan and where its anatomy is to be found.

    Attributes:
        dataset, subject, session, scan, contrast, contrast_raw: as in the index; of something that belongs to no scan, ``scan`` is empty.
        path: absolute path of what is measured (a label map, a table, a folder of statistics, the scan itself); None where there is none.
        inputs: absolute paths of every file that the figures depend on.
        given: numbers that were read while looking (a row of a table); names and units are the source's own.
        status: ``ok`` where it may be measured, else ``failed`` or ``missing``.
        reason: why not.
    """

    dataset: str
    subject: str
    session: str
    scan: str
    contrast: str
    contrast_raw: str
    path: str | None = None
    inputs: tuple[str, ...] = ()
    given: Mapping[str, float] = field(default_factory=dict)
    status: str = OK
    reason: str = ""


@dataclass(frozen=True)
class Anatomy:
    """The volumes of one candidate.

    Attributes:
        volumes_ml: region -> millilitres.
        icv_ml: the intracranial volume in millilitres (each source says which it is), or None where it is not known.
        provenance: what made them: tool, version, registration quality ...
        notes: what was assumed, one sentence each.
        absent_ml: the volume of a region that other rows have and this one does not: 0 in a label map, None where nothing is known.
    """

    volumes_ml: Mapping[str, float]
    icv_ml: float | None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    absent_ml: float | None = None


def rank(contrast: str, contrast_raw: str = "") -> int:
    """The place of a contrast in :data:`PREFERENCE`, 0 first. A T1w whose dataset calls it MPRAGE counts as MPRAGE."""
    name = "MPRAGE" if contrast_raw.upper() == "MPRAGE" else contrast
    return PREFERENCE.index(name) if name in PREFERENCE else len(PREFERENCE)
