"""Enhanced DICOM: one file of many frames, whose places and times lie in functional groups, for each frame or shared by all.

Reference: DICOM PS3.3, C.7.6.16 (multi-frame functional groups) and C.8.13 (enhanced MR image).
"""

from __future__ import annotations

from typing import Any

GROUPS = {
    "ImagePositionPatient": ("PlanePositionSequence", "ImagePositionPatient"),
    "ImageOrientationPatient": ("PlaneOrientationSequence", "ImageOrientationPatient"),
    "SpacingBetweenSlices": ("PixelMeasuresSequence", "SpacingBetweenSlices"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "ImageType": ("MRImageFrameTypeSequence", "FrameType"),
}
"""Tag of a file of one slice -> functional group and tag that say the same of a frame."""
TAGS = (
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "EchoPulseSequence", "EchoPlanarPulseSequence", "InversionRecovery",
    "ContrastBolusAgentSequence",
)  # fmt: skip
"""What must be read of a file beside the plain tags."""
_PULSES = {
    "EchoPulseSequence": {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("GR", "SE")},
    "EchoPlanarPulseSequence": {"YES": ("EP",)},
    "InversionRecovery": {"YES": ("IR",)},
}


def frames(raw: Any, plain: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an enhanced file says as the plain tags of one slice would: of the file, and of each frame; nothing of other files.

    Args:
        raw: a pydicom dataset.
        plain: (dataset, keyword) -> its value as text, numbers or a list, or None.
    """
    own = list(raw.get("PerFrameFunctionalGroupsSequence") or [])
    if not own:
        return {}, []
    shared = next(iter(raw.get("SharedFunctionalGroupsSequence") or []), None)
    several = len(own) > 1
    found = []
    for frame in own:
        said: dict[str, Any] = {}
        for tag, (group, keyword) in GROUPS.items():
            value = next((v for place in (frame, shared) if (v := _inside(place, group, keyword, plain)) is not None), None)
            if value is not None:
                said[tag] = value
        found.append({**said, "InstanceNumber": None, "ImagesInAcquisition": None} if several else said)
    pulses = [word for tag, words in _PULSES.items() for word in words.get(str(plain(raw, tag) or "").strip().upper(), ())]
    whole = {tag: found[0].get(tag) for tag in GROUPS if found[0].get(tag) is not None and tag != "ImageType"}
    whole |= {"ScanningSequence": pulses} if pulses else {}
    whole |= {"ContrastBolusAgent": "stated"} if raw.get("ContrastBolusAgentSequence") else {}
    return whole, found


def _inside(place: Any, group: str, keyword: str, plain: Any) -> Any:
    for item in (place.get(group) or []) if place is not None else []:
        return plain(item, keyword)
    return None
