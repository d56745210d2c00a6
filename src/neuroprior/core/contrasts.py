"""The vocabulary of MRI contrasts: canonical names, their aliases, and inputs that accept one of several.

A contrast is a *name*, never a channel number. Names follow BIDS suffixes where BIDS has one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InputError, suggestion


@dataclass(frozen=True)
class Contrast:
    """One entry of the vocabulary.

    Attributes:
        name: the canonical name, for example ``T1ce``.
        meaning: what the image shows.
        bids: the BIDS suffix and entities that write it, for example ``ce-gadolinium_T1w``.
        aliases: other spellings, compared without case, spaces, dashes and underscores.
    """

    name: str
    meaning: str
    bids: str
    aliases: tuple[str, ...] = ()


VOCABULARY: tuple[Contrast, ...] = (
    Contrast("T1w", "T1-weighted", "T1w", ("T1", "T1 weighted", "MPRAGE", "SPGR", "BRAVO", "3DT1")),
    Contrast(
        "T1ce",
        "T1-weighted after gadolinium",
        "ce-gadolinium_T1w",
        ("T1Gd", "T1c", "T1CE", "T1 post", "T1wCE", "T1+C", "T1KM", "T1post", "ce T1w", "T1 contrast"),
    ),
    Contrast("T2w", "T2-weighted", "T2w", ("T2", "T2 weighted", "3DT2")),
    Contrast("FLAIR", "fluid-attenuated inversion recovery", "FLAIR", ("T2FLAIR", "T2-FLAIR", "FLAIR T2", "T2f")),
    Contrast("PDw", "proton-density-weighted", "PDw", ("PD", "proton density")),
    Contrast("DWI", "diffusion-weighted trace image", "dwi", ("trace", "TRACEW", "b1000", "dwi b1000")),
    Contrast("ADC", "apparent diffusion coefficient", "ADC", ("ADC map", "dADC")),
    Contrast("SWI", "susceptibility-weighted", "swi", ("SWIp", "susceptibility")),
    Contrast("T2starw", "T2*-weighted gradient echo", "T2starw", ("T2*", "T2star", "T2s", "GRE", "T2*w", "T2starmap")),
    Contrast("MP2RAGE", "MP2RAGE uniform image", "UNIT1", ("UNI", "MP2RAGE UNI", "UNIT1")),
    Contrast("T1map", "quantitative T1", "T1map", ("qT1",)),
    Contrast("angio", "time-of-flight angiogram", "angio", ("MRA", "TOF", "TOF MRA")),
    Contrast("FA", "fractional anisotropy", "FA", ("fractional anisotropy",)),
    Contrast("MD", "mean diffusivity", "MD", ("mean diffusivity",)),
    Contrast("PWI", "perfusion-weighted", "perf", ("perfusion", "CBF", "asl")),
)
"""Every contrast that the package knows by name."""

ONE_OF: dict[str, tuple[str, ...]] = {"SWI_OR_T2STAR": ("SWI", "T2starw"), "T1w_OR_MP2RAGE": ("T1w", "MP2RAGE")}
"""Inputs that accept one of several contrasts, in order of preference."""

UNKNOWN = "unknown"
"""What stands in the ``contrast`` column where the name is in nobody's vocabulary."""


def _key(text: str) -> str:
    return re.sub(r"[\s_\-.]+", "", text).casefold()


_BY_KEY = {_key(spelling): entry.name for entry in VOCABULARY for spelling in (entry.name, *entry.aliases)}
NAMES: tuple[str, ...] = tuple(entry.name for entry in VOCABULARY)
"""The canonical names."""


def find(text: str) -> str | None:
    """The canonical name for a spelling, or None where the vocabulary has none."""
    return _BY_KEY.get(_key(text))


def canonical(text: str) -> str:
    """The canonical name for a spelling.

    Raises:
        InputError: nobody knows that name; the message suggests the nearest.
    """
    name = find(text)
    if name is None:
        near = suggestion(text, sorted({*NAMES, *(alias for entry in VOCABULARY for alias in entry.aliases)}))
        raise InputError(f"unknown contrast {text!r}", next_step=near if near.startswith("did") else suggestion(text, NAMES))
    return name


def from_bids(suffix: str, entities: dict[str, str]) -> str | None:
    """The canonical name for a BIDS suffix and its entities, or None.

    ``ce-gadolinium`` with ``T1w`` is T1ce; ``acq-MPRAGE_T1w`` stays T1w; ``part-phase`` is nobody's contrast.
    """
    if entities.get("part") not in (None, "mag"):
        return None
    name = find(suffix)
    if name == "T1w" and "ce" in entities:
        return "T1ce"
    return name


def accepts(wanted: str) -> tuple[str, ...]:
    """The canonical contrasts that an input name accepts, in order of preference.

    ``accepts("SWI_OR_T2STAR")`` is ``("SWI", "T2starw")``; ``accepts("T2FLAIR")`` is ``("FLAIR",)``.

    Raises:
        InputError: the name is unknown.
    """
    for name, members in ONE_OF.items():
        if _key(name) == _key(wanted):
            return members
    return (canonical(wanted),)
