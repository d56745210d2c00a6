"""What contrast an MR series shows, guessed from its sequence parameters, with a confidence and the reason in words.

Rules are ordered, the surest first: what the scanner says the image is (ADC, trace), then physics (TR, TE, TI, sequence), and a
vocabulary word in the description as a second witness. Free text never leaves this module: only words of the vocabulary do.
Physics: Bushberg JT et al., The Essential Physics of Medical Imaging, 3rd ed. (2011), chapters 12-13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core import contrasts

WORDS = (
    (r"mp2rage", "MP2RAGE"), (r"\bt1.?(flair|dark.?fluid)", "T1w"), (r"dark.?fluid|flair", "FLAIR"), (r"mp[ -]?rage|bravo|spgr|tfl3d|\bt1", "T1w"),
    (r"\bswi|swan|venobold|\bswip", "SWI"), (r"t2.?star|t2\*|t2s\b|hemo|flash.*t2|\bgre\b", "T2starw"), (r"\badc\b|apparent diff", "ADC"),
    (r"trace|dwi|diff|ep2d b\d", "DWI"), (r"\btof\b|angio|\bmra\b", "angio"), (r"proton|\bpd\b|pdw", "PDw"), (r"\bt2", "T2w"),
    (r"\bfa\b|fractional", "FA"), (r"perf|\basl\b|\bdsc\b", "PWI"),
)  # fmt: skip
"""Patterns in a series description, without case and with blanks for underscores, and the contrast that they name; the first that fits counts."""
NO_CONTRAST = (
    ({"P", "PHASE", "PHASE MAP", "PHASE_MAP"}, r"\bpha(se)?[ -]?(images?|map)\b", "a phase image", "phase"),
    ({"MNIP", "MIP", "MINIP", "MIN IP", "MAX IP", "PROJECTION IMAGE"}, r"\b(m(ax|in|n)?[ -]?ip|mip)\b", "a projection of several slices", "projection"),
    ({"B0", "B1", "B0 MAP", "B1 MAP", "FIELD MAP", "FIELD_MAP"}, r"field.?map|\bfmap\b|\bb[01].?map", "a field map", "fieldmap"),
    ({"LOCALIZER"}, r"locali[sz]er|scout|\bsurvey\b|\b(3|three).?plane\b", "a scout", "scout"),
    (set(), r"\bsb ?ref\b", "a reference of an echo-planar series", "sbref"),
    ({"T2 MAP", "T2_MAP", "T2_STAR MAP", "R2 MAP", "R2_STAR MAP"}, r"\b[tr]2(\*|star)? ?map", "a quantitative map", "map"),
)  # fmt: skip
"""What shows no contrast of the vocabulary, whatever its times: image types, patterns in the description, what it is, and in a word."""
B0 = 50
"""Up to this b-value (s/mm2) an image is not weighted by diffusion."""
AGENT = r"(gd|gad(o\w*)?|contrast|km|ce|\+ ?c)"
WITHOUT = rf"(\b(without|w[/-]?o|no|non|not|pre|before|ohne|sans|sin|nativ)[ .-]*((and|&|/) *(with|w/?) +)?((iv|i\.v\.) )?|(?<!\w)-){AGENT}\b"
"""An agent that was not given, in a description; "with and without" names an examination and says nothing of a series."""
NO_AGENT = ("", "no", "none", "n", "na", "n/a", "nil", "0", "false", "without", "-")
"""Values of ``ContrastBolusAgent`` that name no agent."""


@dataclass(frozen=True)
class Guess:
    """A contrast and how far to trust it.

    Attributes:
        contrast: canonical name, or ``unknown``.
        confidence: 0 to 1: 0.95 said by the scanner, 0.85 physics and words agree, 0.6 physics alone, 0.5 words alone, 0.3 they disagree.
        why: the evidence, in numbers and vocabulary words only.
        shown: what the image is where it shows no contrast of the vocabulary, in a word (``phase``, ``scout`` ...); empty otherwise.
    """

    contrast: str
    confidence: float
    why: str
    shown: str = ""


def guess(tags: Mapping[str, Any]) -> Guess:
    """The contrast of a series; ``unknown`` for what shows none (phase, projections, field maps, scouts, echo-planar images without a b-value).

    Args:
        tags: DICOM keyword -> value of one image: ``ImageType``, ``RepetitionTime`` (ms), ``EchoTime`` (ms), ``InversionTime`` (ms), ``FlipAngle``,
            ``ScanningSequence``, ``SequenceVariant``, ``ContrastBolusAgent``, ``DiffusionBValue``, ``SeriesDescription``, ``ProtocolName``.
    """
    kinds = {str(word).upper() for word in _many(tags.get("ImageType"))}
    sequence = {str(word).upper() for word in _many(tags.get("ScanningSequence"))}
    text = f"{tags.get('SeriesDescription') or ''} {tags.get('ProtocolName') or ''}".replace("_", " ").lower()
    word = next((name for pattern, name in WORDS if re.search(pattern, text)), None)
    for types, pattern, what, name in NO_CONTRAST:
        if types & kinds or re.search(pattern, text):
            return Guess(contrasts.UNKNOWN, 0.0, what, name)
    if {"T1 MAP", "T1_MAP"} & kinds or re.search(r"\bt1 ?map", text):
        return Guess("T1map", 0.95 if {"T1 MAP", "T1_MAP"} & kinds else 0.5, "a T1 map")
    if word == "MP2RAGE":
        if {"UNI", "UNIFORM"} & kinds:
            return Guess("MP2RAGE", 0.95, "image type UNI")
        if re.search(r"\buni(t1|form)?\b", text):
            return Guess("MP2RAGE", 0.5, "described as the uniform image of an MP2RAGE")
        return Guess(contrasts.UNKNOWN, 0.0, "an inversion image or a map of an MP2RAGE, not its uniform image", "inversion")
    if "ADC" in kinds or any("ADC" in kind for kind in kinds):
        return Guess("ADC", 0.95, "image type ADC")
    if {"TRACEW", "TRACE"} & kinds:
        return Guess("DWI", 0.95, "image type TRACEW")
    if {"FA"} & kinds:
        return Guess("FA", 0.95, "image type FA")
    physics, why = _physics(tags, sequence, text)
    if "EP" in sequence and physics is None and word not in ("DWI", "ADC", "FA", "PWI"):
        return Guess(contrasts.UNKNOWN, 0.0, f"{why}: echo-planar without a b-value", "epi")
    b = _number(tags.get("DiffusionBValue"))
    if b is not None and b <= B0 and word in (None, "DWI"):
        return Guess(contrasts.UNKNOWN, 0.0, f"{why}: a diffusion series' image without diffusion weighting", "b0")
    agent = str(tags.get("ContrastBolusAgent") or "").strip().lower() not in NO_AGENT
    given = re.sub(WITHOUT, " ", text)
    enhanced = agent or bool(re.search(r"\b(gd|gado\w*|post|ce|contrast|km)\b|\+ ?c\b", given))
    if word is None and physics is None:
        return Guess(contrasts.UNKNOWN, 0.0, why)
    if physics == word:
        name, confidence = physics, 0.85
    elif word is None:
        name, confidence = physics, 0.6
    elif physics is None or {physics, word} <= {"T2starw", "SWI"}:
        name, confidence, why = word, 0.5, f"{why}; described as {word}"
    else:
        name, confidence, why = word, 0.3, f"{why} suggests {physics}; described as {word}"
    if name == "T1w" and enhanced:
        return Guess("T1ce", min(confidence, 0.8), f"{why}; contrast agent")
    return Guess(str(name), confidence, why)


def _many(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, (str, bytes)) else list(value) if hasattr(value, "__iter__") else [value]


def _number(value: Any) -> float | None:
    try:
        return float(_many(value)[0])
    except (IndexError, TypeError, ValueError):
        return None


def _physics(tags: Mapping[str, Any], sequence: set[str], text: str) -> tuple[str | None, str]:
    """The contrast that the times and the sequence make, and the numbers."""
    tr, te, ti = (_number(tags.get(key)) for key in ("RepetitionTime", "EchoTime", "InversionTime"))
    flip, b = _number(tags.get("FlipAngle")), _number(tags.get("DiffusionBValue"))
    told = [
        f"{name} {value:g}" for name, value in (("TR", tr), ("TE", te), ("TI", ti), ("flip", flip), ("b", b)) if value is not None
    ]
    why = " ".join([*sorted(sequence & {"SE", "IR", "GR", "EP", "RM"}), *told]) or "no sequence parameters"
    if b is not None and b > B0:
        return "DWI", why
    if "EP" in sequence:
        return None, why  # BOLD, SBRef, b = 0: the times of PDw and T2w, another contrast
    if tr is None or te is None:
        return None, why
    gradient = "GR" in sequence and "SE" not in sequence
    if ti and ti > 1500 and te > 60:
        return "FLAIR", why
    if gradient:
        if te >= 12 and tr < 1500:
            return "T2starw", why
        if te < 12 and (tr < 100 or (ti and ti < 1500)):
            return (None if "tof" in text else "T1w"), why
        return None, why
    if ti and ti < 1500 and te < 30:
        return "T1w", why
    if te > 60 and tr > 1800:
        return "T2w", why
    if te < 40 and tr < 1100:
        return "T1w", why
    if te < 40 and tr > 1800:
        return "PDw", why
    return None, why
