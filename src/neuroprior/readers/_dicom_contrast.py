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
    (r"dark.?fluid|flair", "FLAIR"), (r"mprage|mp.?rage|bravo|spgr|tfl3d|\bt1", "T1w"), (r"mp2rage", "MP2RAGE"), (r"\bswi|swan|venobold|\bswip", "SWI"),
    (r"t2.?star|t2\*|t2s\b|hemo|flash.*t2|\bgre\b", "T2starw"), (r"\badc\b|apparent diff", "ADC"), (r"trace|dwi|diff|ep2d_b", "DWI"),
    (r"\btof\b|angio|\bmra\b", "angio"), (r"proton|\bpd\b|pdw", "PDw"), (r"\bt2", "T2w"), (r"\bfa\b|fractional", "FA"), (r"perf|\basl\b|\bdsc\b", "PWI"),
)  # fmt: skip
"""Patterns in a series description, without case, and the contrast that they name; the first that fits counts."""


@dataclass(frozen=True)
class Guess:
    """A contrast and how far to trust it.

    Attributes:
        contrast: canonical name, or ``unknown``.
        confidence: 0 to 1: 0.95 said by the scanner, 0.85 physics and words agree, 0.6 physics alone, 0.5 words alone, 0.3 they disagree.
        why: the evidence, in numbers and vocabulary words only.
    """

    contrast: str
    confidence: float
    why: str


def guess(tags: Mapping[str, Any]) -> Guess:
    """The contrast of a series.

    Args:
        tags: DICOM keyword -> value of one image: ``ImageType``, ``RepetitionTime`` (ms), ``EchoTime`` (ms), ``InversionTime`` (ms), ``FlipAngle``,
            ``ScanningSequence``, ``SequenceVariant``, ``ContrastBolusAgent``, ``DiffusionBValue``, ``SeriesDescription``, ``ProtocolName``.
    """
    kinds = {str(word).upper() for word in _many(tags.get("ImageType"))}
    sequence = {str(word).upper() for word in _many(tags.get("ScanningSequence"))}
    text = f"{tags.get('SeriesDescription') or ''} {tags.get('ProtocolName') or ''}".replace("_", " ").lower()
    word = next((name for pattern, name in WORDS if re.search(pattern, text)), None)
    if "mp2rage" in text.replace(" ", "") and {"UNI", "UNIFORM"} & kinds:
        return Guess("MP2RAGE", 0.95, "image type UNI")
    if "ADC" in kinds or any("ADC" in kind for kind in kinds):
        return Guess("ADC", 0.95, "image type ADC")
    if {"TRACEW", "TRACE"} & kinds:
        return Guess("DWI", 0.95, "image type TRACEW")
    if {"FA"} & kinds:
        return Guess("FA", 0.95, "image type FA")
    physics, why = _physics(tags, sequence, text)
    enhanced = bool(str(tags.get("ContrastBolusAgent") or "").strip()) or bool(
        re.search(r"\bgd\b|gado|\+ ?c\b|\bpost\b|\bce\b|contrast|\bkm\b", text)
    )
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
    if b is not None and b > 50:
        return "DWI", why
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
